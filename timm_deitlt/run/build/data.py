"""Data sets of a run, from its settings."""
import logging
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch.utils.data import IterableDataset

from ...benchmarks import BENCHMARKS, Benchmark
from ...data.factory import UNUSED, create_dataset
from ...data.folds import split_fold
from ...data.image import ARRAY
from ...data.long_tail import ClassificationSet, holdout
from ...data.look import look_at
from ...evaluation import Shots
from ...settings.images import DataSettings
from ...settings.resolved import Settings
from ...utils.words import first_of

_logger = logging.getLogger(__name__)


@dataclass
class Data:
    """Data sets of a run and what is reported about them.

    Attributes:
        train: Training images.
        evaluation: Evaluation images, or None for none.
        evaluated_on: What the evaluation images are, in words.
        shots: Head, mid and tail classes.
        name: Name of the data set.
        imbalance_factor: n_max / n_min of the training images.
        split_seed: Seed of subset and hold-out.
        measured: Mean and std of the training images, if they were measured.
    """
    train: Any
    evaluation: Any
    evaluated_on: str
    shots: Shots
    name: str
    imbalance_factor: float
    split_seed: int
    measured: dict[str, list[float]] = field(default_factory=dict)

    @property
    def bad_images(self) -> int:
        """Unreadable images that were replaced so far, see `--skip-bad-images`."""
        return sum(getattr(part, 'bad_images', 0) for part in (self.train, self.evaluation))

    def hold(self, gib: float, workers: int) -> None:
        """Keep decoded images in memory if they fit into `gib` GiB, the training images first.

        Nothing is kept if the loader's processes are not forked, because each would be sent a copy in every epoch.
        """
        if workers and multiprocessing.get_start_method() != 'fork':
            return
        left = gib * 2 ** 30
        for part, words in ((self.train, 'training'), (self.evaluation, 'evaluation')):
            if not isinstance(part, ClassificationSet):
                continue
            if part.hold(left) and part.held is not None:
                left -= part.held.nbytes
                _logger.info(f'{len(part.held)} decoded {words} images are in memory, {part.held.nbytes / 1e6:.3g} MB.')
            elif gib and part.is_decoded_anew:
                _logger.info(
                    f'The {words} images are not kept in memory: they do not fit into what is left of {gib:g} GiB '
                    '(--cache-images), so each is decoded anew in every epoch.')

    def describe(self, test_counts: Sequence[int]) -> dict[str, Any]:
        """JSON record of the data."""
        return {
            'name': self.name,
            'imbalance_factor': self.imbalance_factor,
            'train_counts': list(self.train.class_counts),
            'test_counts': [int(count) for count in test_counts],
            'class_names': list(self.train.class_names),
            'evaluated_on': self.evaluated_on,
            'split_seed': self.split_seed,
            'fingerprint': self.train.fingerprint,
        }


def build_data(settings: Settings, evaluate_split: str | None = None) -> Data:
    """Make training and evaluation sets; hold out a part of the training images if the settings say so.

    Args:
        settings: Settings of the run.
        evaluate_split: Evaluate on this split, even if a part of the training images is held out.

    Raises:
        ValueError: If the data do not fit the settings.
        FileNotFoundError: If they are missing.
    """
    chosen = settings.data
    _check_channels(chosen)
    benchmark = BENCHMARKS.get(chosen.dataset)
    common = _opening(settings)
    long_tail: dict[str, Any] = dict(
        imbalance_factor=chosen.imbalance_factor, profile=chosen.imbalance_profile, n_max=chosen.n_max)
    train = create_dataset(
        chosen.dataset,
        split=chosen.train_split,
        class_counts_file=chosen.class_counts,
        num_samples=chosen.train_num_samples,
        is_training=True,
        **long_tail,
        **common,
    )
    if isinstance(train, IterableDataset):
        _check_stream(settings)
    train, evaluation, evaluated_on = _parted(train, chosen)
    if evaluate_split or (chosen.val_split and evaluation is None):
        evaluated_on = f'split {evaluate_split!r}' if evaluate_split else _evaluated_on(benchmark, chosen.val_split)
        evaluation = create_dataset(
            chosen.dataset,
            split=evaluate_split or chosen.val_split,
            **(long_tail if (evaluate_split or chosen.val_split) == UNUSED else {}),
            num_samples=chosen.val_num_samples,
            is_training=False,
            class_counts_file=chosen.class_counts,
            class_names=train.class_names,
            **common,
        )
        _warn_of_classes_without_images(evaluation, evaluated_on)
    if isinstance(evaluation, IterableDataset) and settings.machine.world_size > 1:
        raise ValueError(
            f'The evaluation set {chosen.dataset!r} is a stream, which {settings.machine.world_size} processes cannot '
            "share exactly: give --val-split '', and evaluate the run afterwards by validate.py on one device.")
    look_at(train, evaluation)
    if chosen.num_classes not in (None, train.num_classes):
        raise ValueError(
            f'--num-classes {chosen.num_classes} differs from the {train.num_classes} classes of the data set; leave '
            'the flag out.')
    counts = list(train.class_counts)
    return Data(
        train=train,
        evaluation=evaluation,
        evaluated_on=evaluated_on,
        shots=Shots.of_benchmark(counts, benchmark.shot_boundaries if benchmark else None),
        name=chosen.dataset or str(chosen.data_dir),
        imbalance_factor=max(counts) / min(counts),
        split_seed=chosen.split_seed,
    )


def _opening(settings: Settings) -> dict[str, Any]:
    """Options of `create_dataset` that training and evaluation images share."""
    chosen = settings.data
    return dict(
        root=chosen.data_dir,
        split_seed=chosen.split_seed,
        list_dir=chosen.list_dir,
        download=chosen.dataset_download,
        skip_bad_images=chosen.skip_bad_images,
        input_img_mode=chosen.image_mode,
        in_chans=chosen.channels,
        class_map=chosen.class_map or None,
        input_key=chosen.input_key,
        target_key=chosen.target_key,
        trust_remote_code=chosen.dataset_trust_remote_code,
        seed=settings.seed,
        batch_size=settings.loader.batch_size,
    )


def _parted(train: Any, chosen: DataSettings) -> tuple[Any, Any, str]:
    """Images to train on, training images that are held out for evaluation or None, and words for the latter."""
    if chosen.held_out:
        train, evaluation, small = holdout(train, chosen.held_out, chosen.split_seed)
        _logger.info(
            f'Holding out {len(evaluation)} of {len(train) + len(evaluation)} training images for evaluation, class by '
            'class; they are never trained on.')
        if small:
            _logger.warning(
                f'{len(small)} class(es) are too small to hold out an image and are not evaluated: '
                f'{_names(train, small)}. With --folds 5 every image is evaluated once.')
        return train, evaluation, f'{100 * chosen.held_out:g} % of the training images, held out'
    if chosen.folds:
        train, evaluation, single = split_fold(train, chosen.folds, chosen.fold or 0, chosen.split_seed)
        if single:
            _logger.warning(
                f'{len(single)} class(es) have only one image, which is never evaluated: {_names(train, single)}')
        return train, evaluation, f'fold {chosen.fold or 0} (from 0) of {chosen.folds}'
    return train, None, ''


def _warn_of_classes_without_images(evaluation: Any, evaluated_on: str) -> None:
    counts = evaluation.class_counts or ()  # unknown for a stream
    if empty := [label for label, count in enumerate(counts) if not count]:
        _logger.warning(
            f'{len(empty)} class(es) have no image in {evaluated_on} and are not evaluated: '
            f'{_names(evaluation, empty)}. Every mean leaves them out.')


def _names(dataset: Any, labels: Sequence[int]) -> str:
    return first_of([dataset.class_names[label] for label in labels])


def _evaluated_on(benchmark: Benchmark | None, split: str) -> str:
    if split == UNUSED:
        return 'training images that the subset leaves out'
    if benchmark is None:
        return f'split {split!r}'
    # iNaturalist-2018 has a public validation set only, ImageNet-LT has both
    return 'the test images' if split == 'test' or not benchmark.files else 'the validation images'


def _check_stream(settings: Settings) -> None:
    for flag, given in (
            ('--val-fraction', settings.data.held_out), ('--aug-repeats', settings.loader.aug_repeats),
            ('--train-img-sizes', settings.augment.train_img_sizes),
            ('--augment-backend device', settings.augment.augment_backend == 'device')):
        if given:
            raise ValueError(
                f'{flag} needs images that can be indexed, but {settings.data.dataset!r} is read as a stream. Leave '
                f'{flag} out{", and give a --val-split" if flag == "--val-fraction" else ""}.')


def _check_channels(data: DataSettings) -> None:
    if data.image_mode == ARRAY:
        _logger.info(
            f'Images are arrays of {data.channels} channels: crop, flips, erasing and mixing augment them. --aa, '
            '--color-jitter and --grayscale-prob do not work on arrays and are left out.')
        return
    try:
        bands = Image.new(data.image_mode, (1, 1)).getbands()
    except ValueError as error:
        raise ValueError(
            f'--input-img-mode {data.image_mode} is no mode of Pillow: give L, RGB, RGBA or array.') from error
    if len(bands) != data.channels:
        raise ValueError(
            f'Images of mode {data.image_mode} do not have {data.channels} channels (--in-chans): give '
            '--input-img-mode, such as L for 1, RGB for 3, RGBA for 4, array for any.')
    if data.channels not in (1, 3):
        _logger.info(
            f'Images have {data.channels} channels: policies of --aa, --grayscale-prob and the hue of --color-jitter '
            'do not work on them and are left out.')
