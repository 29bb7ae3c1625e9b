"""Model, losses, task and optimizer of a run, from its settings."""
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import PretrainedCfg
from timm.models.deit import VisionTransformerDistilled
from timm.optim import Muon, create_optimizer_v2, list_optimizers, optimizer_kwargs
from torch import nn

from ...benchmarks import CATALOGUE
from ...engine.device import has_bfloat16
from ...engine.step_graph import OWN_GRAPHS
from ...loss import LabelLoss, create_distillation_loss
from ...models._initial import load_initial, say_new_heads
from ...models._timm import TimmModel
from ...models.cosine import set_cosine_classifier
from ...models.deit_lt import keep_prefix_tokens
from ...models.initialization import initialize
from ...optim.muon import left_to_adamw, orthogonalize_in_float32
from ...settings.resolved import ModelSettings, Settings
from ...task import ClassifierTask, DeiTLTTask
from ...task.common import ShotEvaluation
from ...task.guidance import Guidance, check_guidable
from ...task.paco import PaCoTask
from ...task.paco_network import PaCoNet
from .data import Data
from .loaders import build_mixup, build_train_transform

# torch has fused kernels for these, on CPU and CUDA
FUSED_OPTIMIZERS = ('adam', 'adamw', 'sgd', 'momentum', 'samsgd', 'samadamw')


def build_model(settings: ModelSettings, num_classes: int, train_sizes: Sequence[int] = ()) -> TimmModel:
    """Create the model and write the resolved data configuration into its `pretrained_cfg`.

    Args:
        settings: Settings of the model.
        num_classes: Number of classes.
        train_sizes: Image sizes that it has to accept besides that of evaluation.

    Raises:
        ValueError: If the name is unknown or an image size does not fit.
    """
    name = settings.name
    if not timm.is_model(name.split('.')[0]):
        near = get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(
            f'Unknown model {name!r}{"; did you mean " + " or ".join(near) + "?" if near else "."} '
            "timm.list_models('*deit*') after `import timm_deitlt` lists what there is.")
    try:
        model = _create(settings, num_classes, any_size=bool(train_sizes))
    except Exception as error:  # timm, torch and pickle raise many kinds
        if train_sizes and 'dynamic_img_size' in str(error):
            raise ValueError(f'{name} takes one image size only: leave --train-img-sizes out.') from error
        reason = str(error) or f'"{traceback.extract_tb(error.__traceback__)[-1].line}" does not hold'
        raise ValueError(
            f'timm cannot make {name} as asked for: {reason.strip().rstrip(".")}. Look at --model-kwargs, --gp, '
            '--img-size, --pretrained and --initial-checkpoint.') from error
    keep_prefix_tokens(model)
    if settings.classifier == 'cosine':
        set_cosine_classifier(model)
    if settings.init:
        initialize(model, settings.init)
    _scale_head(model, settings.head_init_scale, settings.head_init_bias)
    if settings.grad_checkpointing:
        try:
            model.set_grad_checkpointing(enable=True)
        except AssertionError as error:
            raise ValueError(f'{name} has no --grad-checkpointing: leave the flag out.') from error
    config = _data_config(settings, model)
    _check_patches(model, config['input_size'][-2:], '--img-size')
    for size in train_sizes:
        _check_patches(model, (size, size), '--train-img-sizes')
    model.pretrained_cfg = {**model.pretrained_cfg, **config, 'num_classes': num_classes}
    return model


def check_student(settings: Settings, num_classes: int, class_counts: Sequence[int]) -> TimmModel:
    """Build the parts of the student's training once, so that an error shows before the teacher is trained.

    Returns:
        The model, untrained.

    Raises:
        ValueError: If model, optimizer or augmentation cannot be made as asked for, or a teacher is asked for and the
            model has no DIST token.
    """
    model = build_model(settings.model, num_classes, settings.augment.train_img_sizes or ())
    if settings.teacher.name != 'none' and not isinstance(model, VisionTransformerDistilled):
        raise ValueError(
            f'--teacher {settings.teacher.name} trains a DIST token, which {settings.model.name} does not have: use a '
            'deit_lt model, or --teacher none.')
    if guidance_of(settings) is not None:
        check_guidable(model)
    build_optimizer(settings, model)
    if settings.loss.label_loss == 'paco':
        PaCoNet(model, settings.loss.paco_dim)
    else:
        build_label_loss(settings, num_classes, class_counts)
    build_train_transform(settings.augment, model.pretrained_cfg, settings.data.image_mode)
    build_mixup(settings.augment, num_classes)
    backend, mode = settings.machine.torchcompile, settings.machine.torchcompile_mode
    if backend:
        try:
            torch.compile(model, backend=backend, mode=mode)  # only checks the names; nothing is compiled yet
        except RuntimeError as error:
            raise ValueError(f'--torchcompile {backend} --torchcompile-mode {mode}: {error}') from error
    on_gpu = str(settings.machine.device).startswith('cuda')
    if on_gpu and (backend or settings.machine.auto_speed != 'off') and (
            mode in OWN_GRAPHS and settings.loader.micro_batches > 1):
        raise ValueError(
            f'--torchcompile-mode {mode} replays CUDA graphs, which overwrite the gradients that the '
            f'{settings.loader.micro_batches} micro-batches of an update add up: give --torchcompile-mode '
            'max-autotune-no-cudagraphs, or leave it out.')
    return model


def _data_config(settings: ModelSettings, model: nn.Module) -> dict[str, Any]:
    asked = {name: getattr(settings, name) for name in ('input_size', 'img_size', 'crop_pct', 'interpolation')}
    config = resolve_data_config(asked, model=model)
    channels = settings.channels
    for name in ('mean', 'std'):
        values = tuple(getattr(settings, name) or config[name])
        if channels == 1:
            values = (sum(values) / len(values),)  # a grey image is the average of the colours
        if len(values) not in (1, channels):
            raise ValueError(
                f'--{name} has {len(values)} values ({", ".join(map(str, values))}), an image has {channels} channels: '
                'give one value, or one for each channel, or auto to have them measured.')
        config[name] = values if len(values) == channels else values * channels
    config['input_size'] = (channels, *config['input_size'][-2:])
    return config


def untrained_cfg(name: str) -> PretrainedCfg | None:
    """timm's configuration for a model that starts from random weights.

    timm's default tag for one of our models is the first tag whose weights are published, so it changes with time.
    Training from random weights must not depend on that: it always uses the first tag.
    """
    first = next((entry.name for entry in CATALOGUE.values() if entry.architecture == name), None)
    if first and timm.models.model_entrypoint(name).__module__.startswith(f'{__package__.partition(".")[0]}.'):
        name = first
    return timm.get_pretrained_cfg(name, allow_unregistered=True)


def _create(settings: ModelSettings, num_classes: int, any_size: bool) -> TimmModel:
    cfg = untrained_cfg(settings.name)
    kwargs = dict(settings.model_kwargs)
    if cfg is not None and '.' not in settings.name and not settings.pretrained:
        kwargs['pretrained_cfg'] = cfg
    size = settings.img_size if settings.input_size is None else settings.input_size[-2:]
    if size is not None and cfg is not None and cfg.fixed_input_size:
        kwargs.setdefault('img_size', size)
    if any_size and cfg is not None and cfg.fixed_input_size:
        kwargs['dynamic_img_size'] = True
    overlay = dict(file=settings.pretrained_path, num_classes=-1) if settings.pretrained_path else {}
    overlay.update(settings.pretrained_cfg_overlay)
    if overlay:
        kwargs['pretrained_cfg_overlay'] = overlay
    model: Any = timm.create_model(
        settings.name,
        pretrained=settings.pretrained or bool(settings.pretrained_path),
        in_chans=settings.channels,
        num_classes=num_classes,
        drop_rate=settings.drop,
        drop_path_rate=settings.drop_path,
        drop_block_rate=settings.drop_block,
        global_pool=settings.gp,
        bn_momentum=settings.bn_momentum,
        bn_eps=settings.bn_eps,
        **kwargs,
    )
    loaded, source = model.pretrained_cfg.get('num_classes'), settings.pretrained_path or settings.name
    if (settings.pretrained or settings.pretrained_path) and loaded != num_classes:
        say_new_heads(model, source, loaded if loaded and loaded > 0 else None, num_classes)
    if settings.initial_checkpoint:
        load_initial(model, settings.initial_checkpoint)
    return model


def _scale_head(model: TimmModel, scale: float | None, bias: float | None) -> None:
    heads = model.get_classifier()
    for head in heads if isinstance(heads, tuple) else (heads,):
        with torch.no_grad():
            if scale is not None:
                for parameter in head.parameters():
                    parameter.mul_(scale)
            if bias is not None and getattr(head, 'bias', None) is not None:
                head.bias.fill_(bias)


def _check_patches(model: nn.Module, size: tuple[int, int], flag: str) -> None:
    patches = getattr(model, 'patch_embed', None)
    patch_size = getattr(patches, 'patch_size', None)
    if patch_size and any(side % patch for side, patch in zip(size, patch_size, strict=True)):
        raise ValueError(
            f'Images of {size[0]} x {size[1]} do not divide into patches of {patch_size[0]} x {patch_size[1]}: give '
            f'a multiple of {patch_size[0]} as {flag}, or another patch by --model-kwargs patch_size=N.')


def build_label_loss(settings: Settings, num_classes: int, class_counts: Sequence[int]) -> nn.Module:
    """Loss on the labels, for both stages."""
    loss, stage_two = settings.loss, settings.stage_two
    return LabelLoss(
        num_classes,
        loss=loss.label_loss,
        smoothing=loss.smoothing,
        class_counts=class_counts,
        drw_start_epoch=stage_two.start_epoch,
        weighted=stage_two.targets in ('cls', 'both'),
        keep_mixup=stage_two.keep_mixup,
        beta=stage_two.beta,
        prior_tau=loss.prior_tau,
        ldam_margin=loss.ldam_margin,
        ldam_scale=loss.ldam_scale,
        bce_kwargs=dict(
            bce_sum=loss.bce_sum, bce_target_thresh=loss.bce_target_thresh, pos_weight=loss.bce_pos_weight),
    )


def build_task(
        settings: Settings,
        model: nn.Module,
        teacher: nn.Module | None,
        data: Data,
        device: torch.device,
        dtype: torch.dtype | None,
        teacher_scale: float = 1.,
) -> ShotEvaluation:
    """The task of a run: distillation, or label training without a teacher network."""
    loss, stage_two = settings.loss, settings.stage_two
    counts = list(data.train.class_counts)
    common: dict[str, Any] = dict(shots=data.shots, device=device, dtype=dtype, verbose=False)
    if loss.label_loss == 'paco':
        return PaCoTask(
            model,
            counts,
            alpha=loss.paco_alpha,
            beta=loss.paco_beta,
            gamma=loss.paco_gamma,
            temperature=loss.paco_temperature,
            queue_size=loss.paco_queue,
            dim=loss.paco_dim,
            momentum=loss.paco_momentum,
            **common,
        )
    label_loss = build_label_loss(settings, data.train.num_classes, counts)
    if teacher is None:
        if stage_two.targets == 'dist':
            raise ValueError(
                f'--drw-on dist re-weights the distillation loss, but with --teacher {settings.teacher.name} there is '
                'none: use --drw-on cls or none, or a teacher such as resnet32_sam.')
        experts = ('cls', 'dist') if settings.teacher.name == 'labels' else ('cls',)
        return ClassifierTask(model, label_loss, experts, **common)
    distillation_loss = create_distillation_loss(
        ('drw_' if stage_two.targets in ('dist', 'both') else '') + loss.kd_token_distill_type,
        class_counts=counts,
        drw_start_epoch=stage_two.start_epoch,
        beta=stage_two.beta,
        temperature=loss.kd_temperature,
        standardize=loss.logit_standardize,
    )
    return DeiTLTTask(
        model,
        teacher,
        distillation_loss,
        label_loss,
        teacher_normalize=settings.teacher.normalize,
        teacher_antialias=settings.teacher.antialias,
        teacher_scale=teacher_scale,
        guidance=guidance_of(settings),
        task_loss_weight=loss.task_loss_weight,
        distill_loss_weight=loss.distill_loss_weight,
        **common,
    )


def guidance_of(settings: Settings) -> Guidance | None:
    """What the student learns from the teacher's feature maps (`--guidance`, `--dense-distill`), or None."""
    loss, epochs = settings.loss, settings.schedule.epochs
    if not loss.guidance and not loss.dense_distill:
        return None
    # a guidance that does not end lasts through cool-down epochs, which come after `epochs`
    end_epoch = round(loss.guidance_end * epochs) if loss.guidance_end < 1 else None
    return Guidance(
        loss.guidance, loss.guidance_blocks, loss.guidance_stages, end_epoch, loss.dense_distill, epochs)


def fuses(settings: Settings) -> bool:
    """Whether the optimizer may be torch's fused one.

    Fused SGD may not be with float16: if the scaler leaves out its first step, as it usually does, it keeps a momentum
    that was never written.
    """
    scaled_sgd = settings.machine.precision.mixed == 'float16' and settings.optimizer.opt.lower() in ('sgd', 'momentum')
    return settings.machine.auto_speed != 'off' and not scaled_sgd


def build_optimizer(run: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """Optimizer by timm's name, by torch's fused kernel if there is one and it may be used.

    Muon's own iteration is in bfloat16, as timm's, only where the run is in lower precision than float32 and the device
    has instructions for it.
    """
    settings, precision = run.optimizer, run.machine.precision
    name = settings.opt.lower()
    if name not in list_optimizers():
        near = get_close_matches(name, map(str, list_optimizers()), n=3)
        raise ValueError(
            f'Unknown optimizer {settings.opt!r}{"; did you mean " + " or ".join(near) + "?" if near else "."} '
            'timm.optim.list_optimizers() lists what there is; SAM is samsgd or samadamw.')
    kwargs = dict(
        optimizer_kwargs(cfg=settings), lr=settings.peak_lr, filter_bias_and_bn=settings.filter_bias_and_bn)
    excluding = {'foreach', 'differentiable'}.intersection(settings.opt_kwargs)
    if fuses(run) and name in FUSED_OPTIMIZERS and not excluding:
        kwargs['fused'] = True
    if settings.is_sam:
        kwargs.update(rho=settings.rho, adaptive=settings.sam_adaptive)
    if settings.muon_hidden_only:
        kwargs.update(fallback_list=left_to_adamw(model), fallback_no_weight_decay=True)
    try:
        optimizer = create_optimizer_v2(model, **{**kwargs, **settings.opt_kwargs})
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).rstrip('.')
        raise ValueError(
            f'timm cannot make the optimizer {settings.opt} as asked for: {reason}. Look at --opt-kwargs, --opt-betas, '
            '--lr and --weight-decay.') from error
    low = precision.mixed or precision.weights == 'bfloat16'
    if isinstance(optimizer, Muon) and not (low and has_bfloat16(next(model.parameters()).device)):
        orthogonalize_in_float32(optimizer)
    return optimizer
