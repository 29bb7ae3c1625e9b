"""`--mean auto` and `--std auto`: measure the training images, and put the numbers into the settings."""
import logging
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ...data.long_tail import ClassificationSet
from ...data.statistics import channel_statistics
from ...settings.flags import AUTO
from ...settings.resolved import Settings
from .data import Data

_logger = logging.getLogger(__name__)


def measured_settings(settings: Settings, data: Data) -> Settings:
    """The settings with measured numbers for `--mean auto` and `--std auto`, which are also put into `data.measured`.

    Raises:
        ValueError: If the training images are a stream, or one of them cannot be read.
    """
    asked = to_be_measured(settings)
    if not asked:
        return settings
    if not isinstance(data.train, ClassificationSet):
        raise ValueError(
            f'{data.name} is read as a stream, which auto cannot measure: give numbers to --mean and --std.')
    mean, std, images = channel_statistics(data.train)
    for name, values in (('mean', mean), ('std', std)):
        if name in asked:
            data.measured[name] = values
            _logger.info(f'--{name} {" ".join(map(str, values))}, measured on {images:,} training images')
    return _with(settings, data.measured)


def assumed_settings(settings: Settings) -> Settings:
    """The settings with a placeholder instead of measured numbers, for a dry run, which opens no image."""
    return _with(settings, dict.fromkeys(to_be_measured(settings), [.5]))


def to_be_measured(settings: Settings) -> list[str]:
    """Which of mean and std are asked for as 'auto'."""
    return [name for name in ('mean', 'std') if getattr(settings.model, name) == (AUTO,)]


def _with(settings: Settings, values: dict[str, list[float]]) -> Settings:
    measured: dict[str, Any] = {name: tuple(numbers) for name, numbers in values.items()}
    model = replace(settings.model, **measured)
    return replace(settings, model=model, flags=MappingProxyType({**settings.flags, **values}))
