"""Mean and std that are asked for as 'auto': measured from the training images, and from then on numbers."""
import argparse
import logging

from ...data.long_tail import ClassificationSet
from ...data.statistics import channel_statistics
from ...settings.flags import AUTO
from .data import Data

_logger = logging.getLogger(__name__)


def measure_normalisation(args: argparse.Namespace, data: Data) -> None:
    """Put numbers in the place of `--mean auto` and `--std auto`, in the settings and in `data.measured`.

    Raises:
        ValueError: If the training images are a stream, or one of them cannot be read.
    """
    asked = _asked(args)
    if not asked:
        return
    if not isinstance(data.train, ClassificationSet):
        raise ValueError(f'{data.name} is read as a stream and not measured: give numbers as --mean and --std.')
    mean, std, images = channel_statistics(data.train)
    for name, values in (('mean', mean), ('std', std)):
        if name in asked:
            setattr(args, name, values)
            data.measured[name] = values
            _logger.info(f'--{name} {" ".join(map(str, values))}, measured on {images:,} training images')


def assume_normalisation(args: argparse.Namespace) -> bool:
    """Put any number in their place, for a dry run, which opens no image; returns whether one was asked for."""
    asked = _asked(args)
    for name in asked:
        setattr(args, name, [.5])
    return bool(asked)


def _asked(args: argparse.Namespace) -> list[str]:
    return [name for name in ('mean', 'std') if getattr(args, name) == [AUTO]]
