"""The command line as data: timm's flags, ours, and timm's flags that are refused with the reason."""
import argparse

from ._flag import AUTO as AUTO
from ._flag import KeyValues as KeyValues
from ._flag import number_or_auto as number_or_auto
from .own import OWN_FLAGS
from .refused import REFUSED as REFUSED
from .refused import REFUSED_VALUES as REFUSED_VALUES
from .timms import TIMM_FLAGS

# Title of the group: names, help text and options of add_argument.
FLAGS = {**TIMM_FLAGS, **OWN_FLAGS}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add every supported flag to the parser, in timm's groups and with its default in the help text."""
    parser.add_argument('-c', '--config', default='', metavar='FILE',
                        help='YAML file or recipe such as digits/student; flags win over it (default: none)')
    parser.add_argument('data', nargs='?', metavar='DIR', help='the same as --data-dir (default: none)')
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for names, text, options in flags:
            action = group.add_argument(*names, **options)
            default = ' '.join(map(str, action.default)) if isinstance(action.default, list) else action.default
            shown = '' if 'default' in text else f" (default: {'off' if default is False else default})"
            action.help = text + shown  # set here because older Pythons add the default of a switch on their own
