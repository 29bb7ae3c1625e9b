"""Settings of a run: one frozen class for each part of it, made once by `run.settings.resolve_settings`.

A field that holds the value of a flag has the name of the flag. A field that was worked out has a name of its own.
"""
import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from .images import AugmentSettings, DataSettings, LoaderSettings

Part = TypeVar('Part')


@dataclass(frozen=True)
class ModelSettings:
    """The network that is trained.

    Attributes:
        name: timm's name of the network.
        channels: Channels of its images.
    """
    name: str
    model_kwargs: dict[str, Any]
    pretrained: bool
    pretrained_path: str | None
    pretrained_cfg_overlay: dict[str, Any]
    initial_checkpoint: str
    classifier: str
    init: str | None
    head_init_scale: float | None
    head_init_bias: float | None
    gp: str | None
    img_size: int | None
    input_size: tuple[int, int, int] | None
    crop_pct: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    interpolation: str
    drop: float
    drop_path: float | None
    drop_block: float | None
    bn_momentum: float | None
    bn_eps: float | None
    grad_checkpointing: bool
    channels: int


@dataclass(frozen=True)
class LossSettings:
    """The losses: what is learned from the labels and from the teacher.

    Attributes:
        label_loss: 'ce', 'ldam', 'bce' or 'paco'.
        prior_tau: Weight of the class prior in the label loss.
    """
    label_loss: str
    prior_tau: float
    cls_loss: str
    smoothing: float
    bce_sum: bool
    bce_target_thresh: float | None
    bce_pos_weight: float | None
    ldam_margin: float
    ldam_scale: float
    task_loss_weight: float
    distill_loss_weight: float | None
    kd_token_distill_type: str
    kd_temperature: float
    logit_standardize: bool
    guidance: float
    guidance_blocks: tuple[int, ...] | None
    guidance_stages: tuple[int, ...] | None
    guidance_end: float
    dense_distill: float
    paco_alpha: float
    paco_beta: float
    paco_gamma: float
    paco_temperature: float
    paco_queue: int
    paco_dim: int
    paco_momentum: float

    @property
    def logit_scale(self) -> float:
        """Factor from a network's outputs to the logits of its loss: LDAM's scale, which the network does not have."""
        return self.ldam_scale if self.label_loss == 'ldam' else 1.


@dataclass(frozen=True)
class StageTwoSettings:
    """The last epochs, whose losses are re-weighted by class (DRW).

    Attributes:
        start_epoch: 0-based epoch it begins with.
        targets: Experts whose loss is re-weighted: 'cls', 'dist', 'both' or 'none'.
        beta: beta of the effective number of images.
        keep_mixup: Whether mixing continues.
    """
    start_epoch: int
    targets: str
    beta: float
    keep_mixup: bool


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer, in the names that `timm.optim.optimizer_kwargs` reads.

    Attributes:
        lr: The flag --lr, or None if the learning rate follows from `lr_base`.
        peak_lr: Peak learning rate, as worked out.
    """
    opt: str
    opt_eps: float | None
    opt_betas: tuple[float, ...] | None
    opt_kwargs: dict[str, Any]
    momentum: float
    weight_decay: float
    layer_decay: float | None
    layer_decay_min_scale: float
    layer_decay_no_opt_scale: float | None
    filter_bias_and_bn: bool
    muon_hidden_only: bool
    lr: float | None
    lr_base: float
    lr_base_size: int
    clip_grad: float | None
    clip_mode: str
    rho: float
    rho_milestones: tuple[int, ...]
    rho_values: tuple[float, ...]
    sam_every: int
    sam_adaptive: bool
    peak_lr: float

    @property
    def is_sam(self) -> bool:
        """Whether it is sharpness-aware."""
        return self.opt.lower().startswith('sam')


@dataclass(frozen=True)
class ScheduleSettings:
    """Epochs, in the names that `timm.scheduler.scheduler_kwargs` reads."""
    sched: str
    sched_on_updates: bool
    epochs: int
    stop_epoch: int | None
    save_epochs: tuple[int, ...] | None
    val_interval: int
    save_interval: int
    lr_noise: tuple[float, ...] | None
    lr_noise_pct: float
    lr_noise_std: float
    lr_cycle_mul: float
    lr_cycle_decay: float
    lr_cycle_limit: int
    lr_k_decay: float
    lr_decay_fn: str | None
    lr_stable_timescale: float | None
    warmup_lr: float
    min_lr: float
    decay_milestones: tuple[int, ...]
    decay_epochs: float | None
    warmup_epochs: int
    warmup_prefix: bool
    cooldown_epochs: int
    decay_rate: float
    seed: int


@dataclass(frozen=True)
class TeacherSettings:
    """The teacher of `--teacher`.

    Attributes:
        name: Its name; 'none' for no teacher, 'labels' if the labels take its place.
        is_network: Whether it is a network.
    """
    name: str
    checkpoint: str | None
    source: str
    cache: str | None
    epochs: int | None
    rho: float | None
    view: str
    normalize: str
    antialias: bool
    is_network: bool


@dataclass(frozen=True)
class OutputSettings:
    """What is answered and written, and which run is continued."""
    output: str
    experiment: str
    resume: str
    no_resume_opt: bool
    branch_from: str | None
    log_interval: int
    log_tensorboard: bool
    log_wandb: bool
    log_trackio: bool
    wandb_project: str | None
    wandb_tags: tuple[str, ...]
    wandb_resume_id: str
    save_images: bool
    report: bool
    fusion: str


@dataclass(frozen=True)
class Precision:
    """Number types that a network computes with.

    Attributes:
        mixed: Type of automatic mixed precision, 'bfloat16' or 'float16', or None for none.
        weights: Type of the weights.
        chosen: Whether it was chosen automatically for the device, not asked for.
    """
    mixed: str | None
    weights: str
    chosen: bool

    @property
    def words(self) -> str:
        """In words, without the device."""
        return f'automatic mixed precision, {self.mixed}' if self.mixed else self.weights

    def words_on(self, device: Any) -> str:
        """In words for the log, with the device and the reason."""
        how = 'chosen automatically, --no-amp turns it off' if self.chosen else '--amp'
        return f'{self.words} on {device}{f" ({how})" if self.mixed else ""}'


@dataclass(frozen=True)
class MachineSettings:
    """Where and how a run computes.

    Attributes:
        device: Type of the device, such as 'cpu', 'cuda' or 'cuda:1'.
        world_size: Number of processes that train together.
        rank: Rank of this process among them.
        precision: Number types that it computes with.
    """
    device: str
    world_size: int
    rank: int
    precision: Precision
    auto_speed: str
    channels_last: bool
    fast_norm: bool
    torchcompile: str | None
    torchcompile_mode: str | None
    sync_bn: bool
    dist_bn: str
    no_ddp_bb: bool
    model_ema: bool
    model_ema_decay: float
    model_ema_warmup: bool
    model_ema_force_cpu: bool


@dataclass(frozen=True)
class Settings:
    """All settings of one training.

    Attributes:
        flags: The value of every flag, by name of the setting. They ask for the same run again; args.yaml holds them.
        sources: Where each setting came from: 'default', a recipe's name, a file or 'command line'.
        seed: Seed of everything but the choice of images.
    """
    flags: Mapping[str, Any]
    sources: Mapping[str, str]
    seed: int
    data: DataSettings
    model: ModelSettings
    augment: AugmentSettings
    loader: LoaderSettings
    loss: LossSettings
    stage_two: StageTwoSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    teacher: TeacherSettings
    output: OutputSettings
    machine: MachineSettings

    def namespace(self) -> argparse.Namespace:
        """The flags as timm's checkpoints hold them, with world size and rank."""
        machine = self.machine
        return argparse.Namespace(
            **self.flags, world_size=machine.world_size, rank=machine.rank, distributed=machine.world_size > 1)


def part(kind: type[Part], args: argparse.Namespace, prefix: str = '', **worked_out: Any) -> Part:
    """Make one part of the settings. Every field that is not in `worked_out` takes the value of the flag of its name.

    Args:
        kind: Class of the part.
        args: The flags.
        prefix: Prefix of the flags' names that the fields' names lack.
        worked_out: Fields that were worked out.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    given = {name: getattr(args, prefix + name) for name in names if name not in worked_out}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()},
                **worked_out)
