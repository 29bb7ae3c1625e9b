"""Checks on the settings, made before data and models are touched."""
import argparse
import math
import re
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from .groups import NO_NETWORK
from .layers import flag_of

# Names of settings, the condition that each of their values must meet, and its words.
_BOUNDS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ('epochs stop_epoch save_epochs teacher_epochs batch_size validation_batch_size grad_accum_steps global_batch_size '
     'dry_run_world_size imbalance_factor n_max val_interval save_interval log_interval img_size in_chans '
     'num_classes sam_every rho_milestones paco_queue paco_dim train_img_sizes', lambda x: x >= 1, 'at least 1'),
    ('folds', lambda x: x >= 2, 'at least 2'),
    ('rho rho_values teacher_rho train_size_probs', lambda x: 0 <= x < math.inf, 'at least 0 and finite'),
    ('mixup cutmix cutout workers drw_start_epoch warmup_epochs weight_decay task_loss_weight '
     'distill_loss_weight seed split_seed aug_repeats paco_alpha paco_gamma key_color_jitter '
     'train_size_schedule_spread cache_images fold guidance guidance_blocks guidance_stages dense_distill aug_ramp',
     lambda x: x >= 0, 'at least 0'),
    ('kd_temperature ldam_margin ldam_scale logit_adjust_tau paco_beta paco_temperature key_scale',
     lambda x: x > 0, 'above 0'),
    ('drw_beta val_fraction', lambda x: 0 < x < 1, 'between 0 and 1, both excluded'),
    ('smoothing drop drop_path model_ema_decay paco_momentum', lambda x: 0 <= x < 1, 'at least 0 and below 1'),
    ('hflip vflip reprob mixup_prob mixup_switch_prob key_color_jitter_prob train_size_random_mix guidance_end',
     lambda x: 0 <= x <= 1, 'between 0 and 1'),
)
# Conditions that must not hold, each with its message
Conflicts = tuple[tuple[Any, str], ...]
_FILES = ('teacher_checkpoint', 'class_counts', 'branch_from', 'resume', 'class_map', 'initial_checkpoint')

# Settings that only a teacher with weights has
_OF_TEACHERS = ('teacher_epochs', 'teacher_rho', 'teacher_view', 'teacher_normalize', 'teacher_antialias')


def validate_args(args: argparse.Namespace) -> None:
    """Check what can be checked before data and models are touched.

    Raises:
        FileNotFoundError: If a file that a setting names does not exist.
        ValueError: If a value is out of its range, or two settings contradict each other.
    """
    check_bounds(vars(args))
    for wrong, message in chain.from_iterable(conflicts(args) for conflicts in (
            _conflicts_of_losses, _conflicts_of_images, _conflicts_of_training, _conflicts_of_teachers,
            _conflicts_of_small_data, _conflicts_of_runs)):
        if wrong:
            raise ValueError(message)
    for name in _FILES:
        path = getattr(args, name)
        found = not path or Path(path).is_file() or (
            name == 'teacher_checkpoint' and (Path(path).is_dir() or path.startswith('hf-hub:')))
        if not found and (name, path) != ('resume', 'auto'):
            raise FileNotFoundError(f'{flag_of(name)} {path}: no such file')


def check_bounds(values: Mapping[str, Any]) -> None:
    """Check that numbers are in their range.

    Args:
        values: Some or all settings by name.

    Raises:
        ValueError: If one is out of its range.
    """
    for names, holds, allowed in _BOUNDS:
        for name in names.split():
            value = values.get(name)
            for item in value if isinstance(value, list) else [value]:
                if item is not None and not holds(item):
                    raise ValueError(f'{flag_of(name)} must be {allowed}, got {item}')


def _typed(args: argparse.Namespace) -> set[str]:
    """Settings that the user typed; in a recipe or file they may be meant for other runs too."""
    return {name for name, source in getattr(args, 'sources', {}).items() if source == 'command line'}


def _conflicts_of_small_data(args: argparse.Namespace) -> Conflicts:
    places = '--guidance' if args.guidance else '--dense-distill' if args.dense_distill else ''
    blocks, stages = args.guidance_blocks, args.guidance_stages
    return (
        (places and args.teacher in NO_NETWORK,
         f"{places} needs a teacher's feature maps, got --teacher {args.teacher}; use a CNN such as resnet32_sam, or "
         f'give {places} 0'),
        (places and args.teacher_view == 'weak',
         f'{places} needs the same view for student and teacher, which --teacher-view weak does not give; leave '
         f'--teacher-view out, or give {places} 0'),
        (places and args.layer_decay,
         f'{places} trains layers beside the student, which --layer-decay does not know; leave --layer-decay out, or '
         f'give {places} 0'),
        ((blocks or stages or args.guidance_end != 1) and not args.guidance,
         '--guidance-blocks, --guidance-stages and --guidance-end belong to --guidance; give its weight, such as '
         '--guidance 2.5'),
        (blocks and stages and len(blocks) != len(stages),
         f'--guidance-blocks needs a block for each of --guidance-stages; got {blocks} for {stages}'),
        (args.fusion not in ('mean', 'cls_adjusted') and args.teacher == 'none',
         f'--fusion {args.fusion} joins CLS and DIST, but without a teacher there is no DIST; give --fusion mean'),
        (args.fusion != 'mean' and (args.classifier == 'cosine' or args.loss == 'ldam'),
         f'--fusion {args.fusion} needs logits, but LDAM and cosine classifiers scale them later; give --fusion mean'),
        (args.fusion != 'mean' and args.bce_loss,
         f'--fusion {args.fusion} needs the logits of a softmax, but --bce-loss trains each class by itself; give '
         '--fusion mean (own_data sets another one below 5,000 images)'),
        (args.logit_standardize and args.teacher == 'none',
         '--logit-standardize needs a teacher, got --teacher none; leave it out'),
        (args.logit_standardize and args.kd_token_distill_type != 'soft',
         '--logit-standardize has no effect on hard distillation, which uses only the largest logit; give '
         '--kd-token-distill-type soft'),
        (args.init and (args.pretrained or args.pretrained_path or args.initial_checkpoint),
         f'--init {args.init} would overwrite attention weights that were read from a file; leave one of them out'),
        (args.muon_hidden_only and 'muon' not in args.opt.lower(),
         f'--muon-hidden-only belongs to the muon optimizers, not to --opt {args.opt}; leave it out'),
        (args.aug_ramp and not (args.aa or args.reprob or args.mixup or args.cutmix or args.cutmix_minmax),
         '--aug-ramp raises RandAugment, erasing and mixing over the epochs, but all of them are off; leave it out, or '
         'give --aa rand-m9-mstd0.5-inc1, --reprob, --mixup or --cutmix'),
        (args.aug_ramp and args.aa and not args.aa.startswith('rand'),
         f'--aug-ramp raises the magnitude of RandAugment, but --aa {args.aa} is another policy; use one such as '
         'rand-m9-mstd0.5-inc1, or none'),
        (args.aug_ramp and args.aa and not re.search(r'-inc\d', args.aa),
         f'--aug-ramp raises the magnitude of RandAugment, but in --aa {args.aa} some operations are strongest at '
         'magnitude 0; use an increasing policy such as rand-m9-mstd0.5-inc1'),
    )


def _conflicts_of_losses(args: argparse.Namespace) -> Conflicts:
    ldam, paco, mixes = args.loss == 'ldam', args.loss == 'paco', args.mixup or args.cutmix or args.cutmix_minmax
    typed = _typed(args)
    return (
        ('kd_temperature' in typed and args.kd_token_distill_type != 'soft',
         '--kd-temperature has no effect on hard distillation, which uses only the largest logit; give '
         '--kd-token-distill-type soft'),
        (args.distill_loss_weight is None and args.task_loss_weight > 1,
         f'--task-loss-weight {args.task_loss_weight} leaves a negative weight for DIST; give --distill-loss-weight'),
        (ldam and mixes, '--loss ldam needs hard labels (its margins belong to one class); set --mixup 0 --cutmix 0'),
        (ldam and args.smoothing, '--loss ldam needs hard labels (its margins belong to one class); set --smoothing 0'),
        (paco and (mixes or args.smoothing),
         '--loss paco needs hard labels (its positives are of one class); set --mixup 0 --cutmix 0 --smoothing 0'),
        (paco and (args.teacher != 'none' or args.drw_on not in (None, 'none') or args.classifier != 'linear'),
         '--loss paco trains a CNN with a linear classifier and re-balances by its class prior; give --teacher none '
         '--drw-on none --classifier linear'),
        (paco and args.batch_size < 2, '--loss paco normalises over the batch; give a --batch-size of at least 2'),
        (paco and (args.layer_decay or args.sync_bn),
         '--loss paco trains a projection that --layer-decay and --sync-bn do not know; leave both out'),
        (paco and args.bce_loss, '--loss paco and --bce-loss exclude each other; give one of them'),
        (paco and args.model_ema, '--loss paco keeps a momentum encoder of its own; leave --model-ema out'),
        (args.cls_loss != 'ce' and (args.loss != 'ce' or args.bce_loss),
         f'--cls-loss {args.cls_loss} adds the class prior to cross entropy; leave --loss and --bce-loss out'),
        (args.cls_loss != 'ce' and args.drw_on in ('cls', 'both'),
         f'--cls-loss {args.cls_loss} re-balances CLS already; give --drw-on dist or none'),
        (ldam and args.bce_loss, '--loss ldam and --bce-loss exclude each other; give one of them'),
        (args.bce_loss and args.drw_on in ('cls', 'both'),
         f'--bce-loss cannot weight classes, which --drw-on {args.drw_on} asks of CLS (as recipes for '
         'small sets do); give --drw-on dist or none'),
    )


def _conflicts_of_images(args: argparse.Namespace) -> Conflicts:
    mixes, sizes = args.mixup or args.cutmix or args.cutmix_minmax, args.train_img_sizes or []
    return (
        (mixes and args.batch_size % 2,
         f'mixup and cutmix need an even --batch-size, got {args.batch_size}; or set --mixup 0 --cutmix 0'),
        (not args.key_scale[0] <= args.key_scale[1] <= 1,
         f'--key-scale is the smallest and the largest share of an image, at most 1; got {args.key_scale}'),
        (args.key_color_jitter[3] > .5, f'the hue of --key-color-jitter is at most 0.5, got {args.key_color_jitter}'),
        (args.train_size_probs and (
            len(args.train_size_probs) != len(sizes) or not 0 < sum(args.train_size_probs) < math.inf),
         '--train-size-probs needs a weight for each of --train-img-sizes, with a finite sum above 0; got '
         f'{args.train_size_probs} for {sizes}'),
        (args.train_size_schedule != 'progressive' and (
            args.train_size_schedule_spread, args.train_size_random_mix) != (.65, .1),
         '--train-size-schedule-spread and --train-size-random-mix belong to --train-size-schedule progressive'),
        (sizes and args.input_size is not None and args.input_size[1] != args.input_size[2],
         f'--train-img-sizes are squares, but --input-size {args.input_size} is not; give a square one'),
        (args.train_size_schedule == 'progressive' and len(sizes) < 2,
         f'--train-size-schedule progressive needs two or more --train-img-sizes, got {sizes}'),
        (args.augment_backend == 'device' and args.loss == 'paco',
         '--augment-backend device does not make the blurred view of --loss paco; leave --augment-backend out'),
        (any('auto' in (values or ()) and len(values) > 1 for values in (args.mean, args.std)),
         '--mean and --std take numbers, or only the word auto'),
    )


def _conflicts_of_training(args: argparse.Namespace) -> Conflicts:
    epochs, last = args.epochs, max([args.stop_epoch or 0, *(args.save_epochs or [])])
    return (
        ((args.drw_start_epoch or 0) > epochs,
         f'--drw-start-epoch {args.drw_start_epoch} lies beyond --epochs {epochs}; give at most {epochs}, which means '
         'never'),
        (args.sched == 'wsd' and args.warmup_epochs >= epochs and not args.warmup_prefix,
         f'--sched wsd needs epochs after its warm-up of {args.warmup_epochs}, got --epochs {epochs}; lower '
         '--warmup-epochs'),
        ('rho' in _typed(args) and not args.opt.startswith('sam'),
         f'--rho belongs to the optimizers samsgd and samadamw, not to --opt {args.opt}; for a SAM teacher give '
         '--teacher-rho'),
        (last > epochs, f'--stop-epoch or --save-epochs {last} lies beyond --epochs {epochs}'),
        (args.opt.startswith('sam') and args.grad_checkpointing,
         f'--opt {args.opt} freezes BatchNorm statistics in its second pass, but --grad-checkpointing would update '
         'them; leave --grad-checkpointing out'),
        (len(args.rho_values) != len(args.rho_milestones) or args.rho_milestones != sorted(args.rho_milestones),
         f'--rho-values needs a value for each of the ascending --rho-milestones; got {args.rho_values} for '
         f'{args.rho_milestones}'),
        (args.sam_every > 1 and args.teacher in NO_NETWORK and not args.opt.startswith('sam'),
         f'--sam-every {args.sam_every} belongs to SAM; use --opt samsgd or samadamw, or a SAM '
         'teacher such as resnet32_sam'),
        (args.opt.startswith('sam') and args.amp_dtype == 'float16' and args.amp is not False,
         f'--opt {args.opt} cannot scale float16 gradients over its two passes; use --amp-dtype bfloat16 or --no-amp'),
        (args.amp and args.model_dtype in ('bfloat16', 'float16'), '--amp needs --model-dtype float32; leave one out'),
    )


def _conflicts_of_teachers(args: argparse.Namespace) -> Conflicts:
    # a file may hold them for runs that have a teacher and runs that have none, and so may --teacher none end a command
    given = _typed(args)
    typed = [flag_of(name) for name in _OF_TEACHERS if name in given]
    return (
        (typed and args.teacher in NO_NETWORK and 'teacher' not in given,
         f'{", ".join(typed)} given, but this run has no teacher network; give one such as --teacher resnet32_sam'),
        (args.teacher == 'none' and args.drw_on == 'dist',
         f'--drw-on {args.drw_on} needs a DIST expert, which --teacher none does not train; use --drw-on cls'),
        (args.teacher_checkpoint and args.teacher in NO_NETWORK,
         f'--teacher-checkpoint needs the architecture of the teacher, got --teacher {args.teacher}; give one such as '
         '--teacher resnet32'),
        (args.teacher_source == 'hub' and args.teacher in NO_NETWORK,
         f'--teacher-source hub needs the name of a teacher, got --teacher {args.teacher}; give one such as --teacher '
         'resnet32_sam'),
        (args.teacher_source == 'hub' and args.teacher_checkpoint,
         '--teacher-source hub and --teacher-checkpoint exclude each other; give one of them'),
    )


def _conflicts_of_runs(args: argparse.Namespace) -> Conflicts:
    return (
        (args.dry_run_world_size and not args.dry_run,
         '--world-size belongs to --dry-run; to train on N devices start with torchrun --nproc-per-node N'),
        (args.resume and args.branch_from, '--resume continues a run, --branch-from starts a new one; give only one'),
        (args.resume == 'auto' and not args.experiment, '--resume auto needs the name of the run in --experiment'),
        (args.wandb_resume_id and not args.resume, '--wandb-resume-id needs --resume'),
        (args.fold is not None and not 0 <= args.fold < (args.folds or 0),
         f'--fold {args.fold} must be from 0 to K - 1 with --folds K, got --folds {args.folds}; change one of them'),
        (args.fold is not None and not args.experiment and not args.dry_run,
         '--fold needs --experiment, the name of the folder that all folds share'),
        (args.folds and args.val_fraction,
         '--folds evaluates each training image once, so nothing is held out; leave --val-fraction out'),
        (args.folds and (args.teacher_checkpoint or args.teacher_source == 'hub'),
         '--folds trains a teacher for each fold, because another one has seen images that the fold evaluates; leave '
         '--teacher-checkpoint and --teacher-source out'),
        (args.folds and (args.branch_from or args.resume not in ('', 'auto')),
         '--folds resumes what it finds in --experiment by itself; leave --resume and --branch-from out'),
    )
