"""Model, losses, task and optimizer of a run, from its arguments."""
import argparse
import logging
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
from ...loss import LabelLoss, create_distillation_loss
from ...models.cosine import set_cosine_classifier
from ...models.initialization import initialize
from ...optim.muon import left_to_adamw, orthogonalize_in_float32
from ...task import ClassifierTask, DeiTLTTask
from ...task.guidance import Guidance, check_guidable
from ...task.paco import PaCoTask
from ...task.paco_network import PaCoNet
from .data import Data, input_channels
from .loaders import build_mixup, build_train_transform

_logger = logging.getLogger(__name__)

# torch has one kernel for a whole step of these, on CPU and CUDA
FUSED_OPTIMIZERS = ('adam', 'adamw', 'sgd', 'momentum', 'samsgd', 'samadamw')


def build_model(args: argparse.Namespace, num_classes: int, training: bool = False) -> nn.Module:
    """Create the model and write the resolved data configuration into its `pretrained_cfg`.

    Args:
        args: Settings of the run.
        num_classes: Number of classes.
        training: Whether it takes every size of `--train-img-sizes`, not that of evaluation alone.

    Raises:
        ValueError: If the name is unknown or an image size does not fit.
    """
    sizes = args.train_img_sizes if training else None
    if not timm.is_model(args.model.split('.')[0]):
        near = get_close_matches(args.model, timm.list_models(), n=3)
        raise ValueError(
            f'Unknown model {args.model!r}{"; did you mean " + " or ".join(near) + "?" if near else "."} '
            "timm.list_models('*deit*') after `import timm_deitlt` lists what there is.")
    try:
        model = _create(args, num_classes, any_size=bool(sizes))
    except Exception as error:  # timm, torch and pickle raise many kinds
        if sizes and 'dynamic_img_size' in str(error):
            raise ValueError(f'{args.model} takes one image size only: leave --train-img-sizes out.') from error
        reason = str(error) or f'"{traceback.extract_tb(error.__traceback__)[-1].line}" does not hold'
        raise ValueError(
            f'timm cannot make {args.model} as asked for: {reason.strip().rstrip(".")}. Look at --model-kwargs, --gp, '
            '--img-size, --pretrained and --initial-checkpoint.') from error
    if args.classifier == 'cosine':
        set_cosine_classifier(model)
    if args.init:
        initialize(model, args.init)
    _scale_head(model, args.head_init_scale, args.head_init_bias)
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
    config = _data_config(args, model)
    _check_patches(model, config['input_size'][-2:], '--img-size')
    for size in sizes or ():
        _check_patches(model, (size, size), '--train-img-sizes')
    model.pretrained_cfg = {**model.pretrained_cfg, **config, 'num_classes': num_classes}
    return model


def check_student(args: argparse.Namespace, num_classes: int, class_counts: Sequence[int]) -> nn.Module:
    """Make once what else is made only after the teacher was trained.

    Returns:
        The model, untrained.

    Raises:
        ValueError: If model, optimizer or augmentation cannot be made as asked for, or the model lacks the token that
            a teacher trains.
    """
    model = build_model(args, num_classes, training=True)
    if args.teacher != 'none' and not isinstance(model, VisionTransformerDistilled):
        raise ValueError(
            f'--teacher {args.teacher} trains a DIST token, which {args.model} does not have: use a deit_lt model, or '
            '--teacher none.')
    if guidance_of(args) is not None:
        check_guidable(model)
    build_optimizer(argparse.Namespace(**{**vars(args), 'lr': args.lr or 1.}), model, args.batch_size)
    if args.loss == 'paco':
        PaCoNet(model, args.paco_dim)
    else:
        build_label_loss(args, num_classes, class_counts, drw_targets(args, args.teacher != 'none') in ('cls', 'both'))
    build_train_transform(args, model.pretrained_cfg)
    build_mixup(args, num_classes)
    if args.torchcompile:
        try:
            torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)  # nothing is compiled yet
        except RuntimeError as error:
            raise ValueError(
                f'--torchcompile {args.torchcompile} --torchcompile-mode {args.torchcompile_mode}: {error}') from error
    return model


def _data_config(args: argparse.Namespace, model: nn.Module) -> dict[str, Any]:
    config = resolve_data_config({**vars(args), 'mean': None, 'std': None}, model=model)
    channels = input_channels(args)
    for name in ('mean', 'std'):
        values = tuple(getattr(args, name) or config[name])
        if channels == 1:
            values = (sum(values) / len(values),)  # grey is the average of the colours
        if len(values) not in (1, channels):
            raise ValueError(
                f'--{name} has {len(values)} values ({", ".join(map(str, values))}), an image has {channels} channels: '
                'give one value, or one for each channel.')
        config[name] = values if len(values) == channels else values * channels
    config['input_size'] = (channels, *config['input_size'][-2:])
    return config


def untrained_cfg(name: str) -> PretrainedCfg | None:
    """timm's configuration of a name for a model without weights.

    timm's default tag of a name of ours is the first whose weights are published. What is trained from a random start
    does not depend on that: it has the first tag there is.
    """
    first = next((entry.name for entry in CATALOGUE.values() if entry.architecture == name), None)
    if first and timm.models.model_entrypoint(name).__module__.startswith(f'{__package__.partition(".")[0]}.'):
        name = first
    return timm.get_pretrained_cfg(name, allow_unregistered=True)


def _create(args: argparse.Namespace, num_classes: int, any_size: bool) -> nn.Module:
    cfg = untrained_cfg(args.model)
    kwargs = dict(args.model_kwargs)
    if cfg is not None and '.' not in args.model and not args.pretrained:
        kwargs['pretrained_cfg'] = cfg
    size = args.input_size[-1] if args.input_size is not None else args.img_size
    if size is not None and cfg is not None and cfg.fixed_input_size:
        kwargs.setdefault('img_size', tuple(args.input_size[-2:]) if args.input_size is not None else size)
    if any_size and cfg is not None and cfg.fixed_input_size:
        kwargs['dynamic_img_size'] = True
    overlay = dict(file=args.pretrained_path, num_classes=-1) if args.pretrained_path else {}
    overlay.update(args.pretrained_cfg_overlay)
    if overlay:
        kwargs['pretrained_cfg_overlay'] = overlay
    return timm.create_model(
        args.model,
        pretrained=args.pretrained or bool(args.pretrained_path),
        in_chans=input_channels(args),
        num_classes=num_classes,
        drop_rate=args.drop,
        drop_path_rate=args.drop_path,
        drop_block_rate=args.drop_block,
        global_pool=args.gp,
        bn_momentum=args.bn_momentum,
        bn_eps=args.bn_eps,
        checkpoint_path=args.initial_checkpoint,
        **kwargs,
    )


def _scale_head(model: nn.Module, scale: float | None, bias: float | None) -> None:
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


def drw_start(args: argparse.Namespace) -> int:
    """0-based epoch at which the last stage begins: as given, else the paper's ratio of 11/12."""
    return round(args.epochs * 11 / 12) if args.drw_start_epoch is None else args.drw_start_epoch


def drw_targets(args: argparse.Namespace, has_teacher: bool) -> str:
    """What the last stage re-weights: as given, else DIST with a teacher, the labels of LDAM, or nothing."""
    if args.drw_on == 'both' and args.teacher == 'none':
        return 'cls'  # the only expert
    if args.drw_on:
        return args.drw_on
    return 'dist' if has_teacher else 'cls' if args.loss == 'ldam' else 'none'


def build_label_loss(
        args: argparse.Namespace,
        num_classes: int,
        class_counts: Sequence[int],
        weighted: bool,
) -> nn.Module:
    """Loss of labels in both stages."""
    return LabelLoss(
        num_classes,
        loss='bce' if args.bce_loss else args.loss,
        smoothing=args.smoothing,
        class_counts=class_counts,
        drw_start_epoch=drw_start(args),
        weighted=weighted,
        keep_mixup=args.keep_mixup_drw,
        beta=args.drw_beta,
        prior_tau={'ce': 0., 'balanced_softmax': 1., 'logit_adjust': args.logit_adjust_tau}[args.cls_loss],
        ldam_margin=args.ldam_margin,
        ldam_scale=args.ldam_scale,
        bce_kwargs=dict(
            bce_sum=args.bce_sum, bce_target_thresh=args.bce_target_thresh, pos_weight=args.bce_pos_weight),
    )


def build_task(
        args: argparse.Namespace,
        model: nn.Module,
        teacher: nn.Module | None,
        data: Data,
        device: torch.device,
        dtype: torch.dtype | None,
        teacher_scale: float = 1.,
) -> nn.Module:
    """The task of a run: distillation, or label training without a teacher network."""
    targets = drw_targets(args, teacher is not None)
    counts = list(data.train.class_counts)
    common = dict(shots=data.shots, device=device, dtype=dtype, verbose=False)
    if args.loss == 'paco':
        return PaCoTask(
            model,
            counts,
            alpha=args.paco_alpha,
            beta=args.paco_beta,
            gamma=args.paco_gamma,
            temperature=args.paco_temperature,
            queue_size=args.paco_queue,
            dim=args.paco_dim,
            momentum=args.paco_momentum,
            **common,
        )
    if teacher is None:
        experts = ('cls', 'dist') if args.teacher == 'labels' else ('cls',)
        criterion = build_label_loss(args, data.train.num_classes, counts, weighted=targets in ('cls', 'both'))
        if targets == 'dist':
            raise ValueError(
                f'--drw-on dist re-weights the distillation loss, but --teacher {args.teacher} distills nothing: use '
                '--drw-on cls or none, or a teacher such as resnet32_sam.')
        return ClassifierTask(model, criterion, experts, **common)
    distillation_loss = create_distillation_loss(
        ('drw_' if targets in ('dist', 'both') else '') + args.kd_token_distill_type,
        class_counts=counts,
        drw_start_epoch=drw_start(args),
        beta=args.drw_beta,
        temperature=args.kd_temperature,
        standardize=args.logit_standardize,
    )
    return DeiTLTTask(
        model,
        teacher,
        distillation_loss,
        build_label_loss(args, data.train.num_classes, counts, weighted=targets in ('cls', 'both')),
        teacher_normalize=args.teacher_normalize,
        teacher_antialias=args.teacher_antialias,
        teacher_scale=teacher_scale,
        guidance=guidance_of(args),
        task_loss_weight=args.task_loss_weight,
        distill_loss_weight=args.distill_loss_weight,
        **common,
    )


def guidance_of(args: argparse.Namespace) -> Guidance | None:
    """What the student learns from the places of the teacher's feature maps, or None for nothing."""
    if not args.guidance and not args.dense_distill:
        return None
    return Guidance(
        args.guidance, args.guidance_blocks, args.guidance_stages, round(args.guidance_end * args.epochs),
        args.dense_distill, args.epochs)


def learning_rate(args: argparse.Namespace, global_batch_size: int) -> float:
    """Peak learning rate: `--lr`, else `--lr-base` scaled to the images of an update."""
    if args.lr:
        return args.lr
    ratio = global_batch_size / args.lr_base_size
    name = args.opt.lower()
    scale = args.lr_base_scale or ('sqrt' if any(word in name for word in ('ada', 'lamb')) else 'linear')
    return args.lr_base * (ratio ** 0.5 if scale == 'sqrt' else ratio)


def build_optimizer(args: argparse.Namespace, model: nn.Module, global_batch_size: int) -> torch.optim.Optimizer:
    """Optimizer by timm's name; the learning rate follows the global batch where `--lr` is not given."""
    name = args.opt.lower()
    if name not in list_optimizers():
        near = get_close_matches(name, list_optimizers(), n=3)
        raise ValueError(
            f'Unknown optimizer {args.opt!r}{"; did you mean " + " or ".join(near) + "?" if near else "."} '
            'timm.optim.list_optimizers() lists what there is; SAM is samsgd or samadamw.')
    lr = learning_rate(args, global_batch_size)
    if not args.lr:
        _logger.info(f'Learning rate {lr:.3g}: {args.lr_base} for {args.lr_base_size} images, scaled to the batch')
    kwargs = dict(optimizer_kwargs(cfg=args), lr=lr, filter_bias_and_bn=args.filter_bias_and_bn)
    excluding = {'foreach', 'differentiable'}.intersection(args.opt_kwargs)
    if name in FUSED_OPTIMIZERS and args.auto_speed == 'on' and not excluding:
        kwargs['fused'] = True
    if name.startswith('sam'):
        kwargs.update(rho=args.rho, adaptive=args.sam_adaptive)
    if args.muon_hidden_only:
        kwargs.update(fallback_list=left_to_adamw(model), fallback_no_weight_decay=True)
    try:
        optimizer = create_optimizer_v2(model, **{**kwargs, **args.opt_kwargs})
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).rstrip('.')
        raise ValueError(
            f'timm cannot make the optimizer {args.opt} as asked for: {reason}. Look at --opt-kwargs, --opt-betas, '
            '--lr and --weight-decay.') from error
    if isinstance(optimizer, Muon) and not has_bfloat16(next(model.parameters()).device):
        orthogonalize_in_float32(optimizer)
    return optimizer
