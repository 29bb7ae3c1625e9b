"""Settings of the images of a run: which ones, how they are augmented, and how they become batches."""
from dataclasses import dataclass


@dataclass(frozen=True)
class DataSettings:
    """Which images a run uses.

    Attributes:
        image_mode: Pillow's mode to read them in, or 'array'.
        channels: Their number of channels.
        held_out: Share of the training images that is held out for evaluation, or None.
    """
    dataset: str
    data_dir: str | None
    train_split: str
    val_split: str
    train_num_samples: int | None
    val_num_samples: int | None
    dataset_download: bool
    dataset_trust_remote_code: bool
    class_map: str
    class_counts: str | None
    num_classes: int | None
    input_key: str | None
    target_key: str | None
    list_dir: str | None
    imbalance_factor: float | None
    imbalance_profile: str
    n_max: int | None
    split_seed: int
    folds: int | None
    fold: int | None
    skip_bad_images: bool
    cache_images: float
    image_mode: str
    channels: int
    held_out: float | None


@dataclass(frozen=True)
class AugmentSettings:
    """How training images are augmented."""
    no_aug: bool
    train_crop_mode: str | None
    scale: tuple[float, ...]
    ratio: tuple[float, ...]
    hflip: float
    vflip: float
    color_jitter: float
    color_jitter_prob: float | None
    force_color_jitter: bool
    grayscale_prob: float | None
    gaussian_blur_prob: float | None
    aa: str | None
    cutout: int | None
    train_interpolation: str
    augment_backend: str
    aug_ramp: int
    reprob: float
    remode: str
    recount: int
    mixup: float
    cutmix: float
    cutmix_minmax: tuple[float, ...] | None
    mixup_prob: float
    mixup_switch_prob: float
    mixup_mode: str
    mixup_off_epoch: int
    smoothing: float
    train_img_sizes: tuple[int, ...] | None
    train_size_probs: tuple[float, ...] | None
    train_size_schedule: str
    train_size_schedule_spread: float
    train_size_random_mix: float
    key_scale: tuple[float, float]
    key_color_jitter: tuple[float, float, float, float]
    key_color_jitter_prob: float

    @property
    def mixes(self) -> bool:
        """Whether images of a micro-batch are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None

    @property
    def erasing(self) -> float:
        """Probability that a part of an image is erased."""
        return 0. if self.no_aug else self.reprob


@dataclass(frozen=True)
class LoaderSettings:
    """How images become batches.

    Attributes:
        batch_size: Images of a micro-batch.
        processes: Loader processes, 0 for none beside the training process.
        evaluation_batch_size: Images of a batch of evaluation.
        micro_batches: Micro-batches of each device in an update.
        update_images: Images of an update over all devices.
    """
    batch_size: int
    aug_repeats: float
    processes: int
    pin_mem: bool
    evaluation_batch_size: int
    micro_batches: int
    update_images: int
