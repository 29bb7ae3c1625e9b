"""Parts that flags are made of."""
import argparse
from collections.abc import Callable
from typing import Any

from .refused import REFUSED_VALUES


class KeyValues(argparse.Action):
    """timm's `ParseKwargs`, imported only when it is used, because the help must work without timm and torch."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        from timm.utils import ParseKwargs
        ParseKwargs.__call__(self, *args, **kwargs)  # type: ignore[arg-type]


MAPPING: dict[str, Any] = {'nargs': '*', 'default': {}, 'action': KeyValues, 'metavar': 'K=V'}
# Word for a mean or std that is measured from the training images
AUTO = 'auto'
SWITCH: dict[str, Any] = {'action': argparse.BooleanOptionalAction}


def allowed(name: str) -> Callable[[str], str]:
    """Type of a flag that says why a value of timm's is refused."""
    def value(text: str) -> str:
        reason = REFUSED_VALUES[name].get(text)
        if reason:
            raise argparse.ArgumentTypeError(f"'{text}' is not supported: {reason}")
        return text
    return value


def number_or_auto(text: str) -> float | str:
    """Type of a flag that takes numbers or the word auto."""
    return AUTO if text == AUTO else float(text)


def flag(names: str, text: str, **options: Any) -> tuple[list[str], str, dict[str, Any]]:
    """Names, help text and options of add_argument."""
    if options.get('type') in (int, float):
        options['metavar'] = 'N' if options['type'] is int else 'X'
    return names.split(), text, options
