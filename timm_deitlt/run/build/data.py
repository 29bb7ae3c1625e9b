"""Data sets of a run, from its arguments."""
import argparse
import logging
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch.utils.data import IterableDataset

from ...benchmarks import BENCHMARKS, Benchmark
from ...data.factory import UNUSED, create_dataset, has_split
from ...data.long_tail import ClassificationSet, holdout
from ...evaluation import Shots

_logger = logging.getLogger(__name__)

# Without a validation split this part of the training images is held out
DEFAULT_VAL_FRACTION = 0.1
# Names under which timm reads a folder of class folders
FOLDER_DATASETS = ('', 'folder', 'torch/image_folder', 'torch/folder')


@dataclass
class Data:
    """Data sets of a run and what is reported about them.

    Attributes:
        train: Training images.
        evaluation: Evaluation images, or None for none.
        evaluated_on: Words for what the evaluation images are.
        shots: Head, mid and tail classes.
        name: Name of the data set.
        imbalance_factor: n_max / n_min of the training images.
        split_seed: Seed of subset and hold-out.
    """
    train: Any
    evaluation: Any
    evaluated_on: str
    shots: Shots
    name: str
    imbalance_factor: float
    split_seed: int

    @property
    def bad_images(self) -> int:
        """Unreadable images that were replaced so far, see `--skip-bad-images`."""
        return sum(getattr(part, 'bad_images', 0) for part in (self.train, self.evaluation))

    def hold(self, gib: float, workers: int) -> None:
        """Keep decoded images in memory where they fit into so many GiB, the training images first.

        Loader processes that are not forked would each be sent a copy in every epoch: with them nothing is kept.
        """
        if workers and multiprocessing.get_start_method() != 'fork':
            return
        left = gib * 2 ** 30
        for part, words in ((self.train, 'training'), (self.evaluation, 'evaluation')):
            if isinstance(part, ClassificationSet) and part.hold(left):
                left -= part.held.nbytes
                _logger.info(f'{len(part.held)} decoded {words} images are in memory, {part.held.nbytes / 1e6:.3g} MB.')

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


def build_data(args: argparse.Namespace, evaluate_split: str | None = None) -> Data:
    """Make training and evaluation sets; hold out a part of the training images where there is no other.

    The part held out is written into `args.val_fraction`. With `evaluate_split` the evaluation set is that split, even
    where a part of the training images was held out.
    """
    benchmark = BENCHMARKS.get(args.dataset)
    common = dict(
        root=args.data_dir,
        split_seed=args.split_seed,
        list_dir=args.list_dir,
        download=args.dataset_download,
        skip_bad_images=args.skip_bad_images,
        input_img_mode=args.input_img_mode or ('L' if input_channels(args) == 1 else 'RGB'),
        class_map=args.class_map or None,
        input_key=args.input_key,
        target_key=args.target_key,
        trust_remote_code=args.dataset_trust_remote_code,
        seed=args.seed,
        batch_size=args.batch_size,
    )
    long_tail = dict(imbalance_factor=args.imbalance_factor, profile=args.imbalance_profile, n_max=args.n_max)
    train = create_dataset(
        args.dataset,
        split=args.train_split,
        class_counts_file=args.class_counts,
        num_samples=args.train_num_samples,
        is_training=True,
        **long_tail,
        **common,
    )
    evaluation, evaluated_on = None, _evaluated_on(benchmark, args.val_split)
    fraction = args.val_fraction = _fraction_to_hold_out(args, isinstance(train, IterableDataset))
    if fraction:
        train, evaluation, small = holdout(train, fraction, args.split_seed)
        evaluated_on = f'{100 * fraction:g} % of the training images, held out'
        _logger.info(
            f'Holding out {len(evaluation)} of {len(train) + len(evaluation)} training images for evaluation, class by '
            'class; they are never trained on.')
        if small:
            names = ', '.join(train.class_names[label] for label in small[:10])
            _logger.warning(f'{len(small)} class(es) are too small to hold out an image and are not evaluated: {names}')
    if evaluate_split or (args.val_split and not fraction):
        evaluated_on = f'split {evaluate_split!r}' if evaluate_split else evaluated_on
        evaluation = create_dataset(
            args.dataset,
            split=evaluate_split or args.val_split,
            **(long_tail if (evaluate_split or args.val_split) == UNUSED else {}),
            num_samples=args.val_num_samples,
            is_training=False,
            class_counts_file=args.class_counts,
            class_names=train.class_names,
            **common,
        )
    if args.num_classes not in (None, train.num_classes):
        raise ValueError(
            f'--num-classes {args.num_classes} differs from the {train.num_classes} classes of the data set; leave the '
            'flag out.')
    _check_channels(args, common['input_img_mode'])
    counts = list(train.class_counts)
    return Data(
        train=train,
        evaluation=evaluation,
        evaluated_on=evaluated_on,
        shots=Shots.from_counts(counts, benchmark.shot_boundaries if benchmark else None),
        name=args.dataset or str(args.data_dir),
        imbalance_factor=max(counts) / min(counts),
        split_seed=args.split_seed,
    )


def _evaluated_on(benchmark: Benchmark | None, split: str) -> str:
    if split == UNUSED:
        return 'training images that the subset leaves out'
    if benchmark is None:
        return f'split {split!r}'
    # the public evaluation set of iNaturalist-2018 is its validation part, ImageNet-LT has both
    return 'the test images' if split == 'test' or not benchmark.files else 'the validation images'


def _fraction_to_hold_out(args: argparse.Namespace, iterable: bool) -> float | None:
    """Part of the training images to evaluate on: as given, else a tenth of a folder without the evaluation split."""
    fraction = args.val_fraction
    if args.dataset in BENCHMARKS and args.val_split in ('train', 'training'):
        raise ValueError(
            f'--val-split {args.val_split} would evaluate {args.dataset} on its training images: leave it out for '
            'the test images, or give --val-fraction to hold a part of the training images out.')
    if (
            args.val_split and not fraction and args.dataset in FOLDER_DATASETS and args.data_dir
            and not has_split(args.data_dir, args.val_split)
    ):
        fraction = DEFAULT_VAL_FRACTION
        _logger.info(f'{args.data_dir} has no {args.val_split!r} split.')
    if iterable and (fraction or args.aug_repeats or args.train_img_sizes):
        flag = '--val-fraction' if fraction else '--aug-repeats' if args.aug_repeats else '--train-img-sizes'
        raise ValueError(
            f'{flag} needs images that can be indexed, but {args.dataset!r} is read as a stream. Leave {flag} out'
            f'{", and give a --val-split" if fraction else ""}.')
    return fraction


def _check_channels(args: argparse.Namespace, mode: str) -> None:
    channels = input_channels(args)
    if len(Image.new(mode, (1, 1)).getbands()) != channels:
        raise ValueError(
            f'Images of mode {mode} do not have {channels} channels (--in-chans): give --input-img-mode, such as L for '
            '1, RGB for 3, RGBA for 4.')


def input_channels(args: argparse.Namespace) -> int:
    """Channels of the input images."""
    if args.in_chans is not None:
        return args.in_chans
    return args.input_size[0] if args.input_size is not None else 3
