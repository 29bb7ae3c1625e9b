"""The command line as data: timm's flag groups, our one group, and timm's flags that are refused with the reason."""
import argparse
from collections.abc import Callable
from typing import Any

from timm.utils import ParseKwargs

_MULTI_LABEL = 'an image has exactly one label here: teacher labels, class weights and shots are defined per class'
_AUG_SPLITS = 'augmentation splits do not go with distillation; --aug-repeats shows several views of an image'
_OTHER_LOSS = 'this loss is not among ours; use cross entropy, --bce-loss or --loss ldam'

_REFUSED_BY_REASON = {
    'NaFlex models (variable resolution) have no distillation token; use a deit_lt_* model and --img-size':
        '--naflex-loader --naflex-train-seq-lens --naflex-max-seq-len --naflex-patch-sizes --naflex-patch-size-probs '
        '--naflex-loss-scale --naflex-patchify-channels-first',
    'every update has the same image and batch size; set one --img-size and --batch-size':
        '--train-img-sizes --train-batch-sizes --train-size-probs --train-size-schedule --train-size-schedule-spread '
        '--train-size-random-mix --variable-batch-loss-scale',
    'an epoch is one pass over the data; set --epochs, or --aug-repeats for more views of an image':
        '--train-batches-per-epoch --train-steps-per-epoch --epoch-repeats',
    'classes are re-weighted in the second stage only; use --drw-on, --drw-start-epoch and --drw-beta':
        '--loss-class-weight --loss-pos-weight --loss-weight-power',
    'only token distillation is offered; see --teacher and --kd-token-distill-type':
        '--kd-distill-type --kd-loss-type --kd-student-feature-dim --kd-teacher-feature-dim',
    'no epoch is chosen on the test set: last.pth.tar and the milestones (--save-epochs) are kept':
        '--checkpoint-hist --eval-metric',
    'every sample is seeded by (seed, epoch, position), so that a resumed run is the same run; use --seed':
        '--worker-seeding',
    'the workers are seeded anew in every epoch, so that a resumed run is the same run; use --workers':
        '--use-multi-epochs-loader',
    'there is one loader and one order of random numbers; --workers 0 loads in the training process': '--no-prefetcher',
    _MULTI_LABEL: '--task --target-format --multilabel-threshold',
    _AUG_SPLITS: '--aug-splits --jsd-loss --resplit --split-bn',
    _OTHER_LOSS: '--poly-gamma --poly-epsilon',
    'classes are counted in the training data; for data that cannot be counted use --class-counts': '--class-stats',
    'its fusers were removed from PyTorch; use --torchcompile': '--fuser',
    'the training task runs eagerly or compiled; use --torchcompile': '--torchscript',
    'teachers are named, trained and cached here; use --teacher NAME (and --teacher-checkpoint)': '--kd-model-name',
    'an interrupted epoch is redone from last.pth.tar, bit-identically; use --resume auto': '--recovery-interval',
    'the epoch is read from the checkpoint; use --resume or --branch-from': '--start-epoch',
    'every test image is evaluated once, as it is; set --crop-pct and --interpolation': '--tta',
    'torchrun sets the rank in the environment; start with torchrun --nproc-per-node N train.py': '--local_rank',
    'an epoch is timed to the end of its last update without it; leave it out': '--synchronize-step',
    'deprecated by timm; use --drop-path': '--drop-connect',
    'only the plateau schedule has patience, and it follows the test set; use --sched cosine': '--patience-epochs',
    "private to timm's sweep.py, which drives timm's own train.py; use ablate.py": '--sweep-locks --sweep-attempt',
}
REFUSED: dict[str, str] = {flag: reason for reason, flags in _REFUSED_BY_REASON.items() for flag in flags.split()}

# Values that timm's flags take and ours do not, so that the error can say why.
REFUSED_VALUES: dict[str, dict[str, str]] = {
    '--sched': {'plateau': 'it follows a validation metric, which here is the test set; use cosine or multistep'},
    '--loss': {
        'bce': 'use --bce-loss', 'jsd': _AUG_SPLITS, 'asl': _OTHER_LOSS, 'poly': _OTHER_LOSS,
        **dict.fromkeys(('twoway', 'zlpr', 'db'), _MULTI_LABEL),
    },
}
_MAPPING: dict[str, Any] = {'nargs': '*', 'default': {}, 'action': ParseKwargs, 'metavar': 'K=V'}
_SWITCH: dict[str, Any] = {'action': argparse.BooleanOptionalAction}
SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', 'rsqrt', 'constant', 'none')
_INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')


def _allowed(flag: str) -> Callable[[str], str]:
    def value(text: str) -> str:
        reason = REFUSED_VALUES[flag].get(text)
        if reason:
            raise argparse.ArgumentTypeError(f"'{text}' is not supported: {reason}")
        return text
    return value


def _flag(names: str, text: str, **options: Any) -> tuple[list[str], str, dict[str, Any]]:
    if options.get('type') in (int, float):
        options['metavar'] = 'N' if options['type'] is int else 'X'
    return names.split(), text, options


# Title of the group: names, help text and options of add_argument.
FLAGS = {
    'Dataset parameters': (
        _flag('--data-dir', 'folder of the data set (default: none)', metavar='DIR'),
        _flag('--dataset', 'lt/<name> or a timm data set (default: lt/digits; with --data-dir an image folder)',
              metavar='NAME', default=''),
        _flag('--train-split', 'split to train on', metavar='NAME', default='train'),
        _flag('--val-split', 'split to evaluate on', metavar='NAME', default='validation'),
        _flag('--train-num-samples', 'training images of an iterable data set (default: its own count)', type=int),
        _flag('--val-num-samples', 'validation images of an iterable data set (default: its own count)', type=int),
        _flag('--dataset-download', 'allow the download of data sets that support it', action='store_true'),
        _flag('--class-map', 'file that maps class names to indices (default: by name)', default='', metavar='FILE'),
        _flag('--input-img-mode', 'PIL mode of the images (default: RGB, or L for one channel)', metavar='MODE'),
        _flag('--input-key', "key of the image in the data set (default: the data set's)", metavar='KEY'),
        _flag('--target-key', "key of the label in the data set (default: the data set's)", metavar='KEY'),
        _flag('--dataset-trust-remote-code', 'let Hugging Face data sets run their own code', action='store_true'),
    ),
    'Model parameters': (
        _flag('--model', 'timm model to train', default='deit_lt_small', metavar='MODEL'),
        _flag('--pretrained', 'start from the pretrained weights', action='store_true'),
        _flag('--pretrained-path', 'file to load as if it were the pretrained weights (default: none)', metavar='FILE'),
        _flag('--pretrained-cfg-overlay', 'entries of the pretrained config to replace (default: none)', **_MAPPING),
        _flag('--initial-checkpoint', 'weights to start from (default: none)', default='', metavar='FILE'),
        _flag('--resume', 'go on from this checkpoint, or from the last one of the experiment if auto (default: none)',
              default='', metavar='FILE'),
        _flag('--no-resume-opt', 'do not restore the optimizer when resuming', action='store_true'),
        _flag('--num-classes', 'classes (default: those of the data set)', type=int),
        _flag('--gp', "global pooling (default: the model's)", metavar='POOL'),
        _flag('--img-size', "image size in pixels (default: the model's)", type=int),
        _flag('--in-chans', 'image channels (default: 3)', type=int),
        _flag('--input-size', "channels, height, width (default: the model's)", nargs=3, type=int),
        _flag('--crop-pct', "centre crop in evaluation (default: the model's)", type=float),
        _flag('--mean', "mean pixel value (default: the model's)", type=float, nargs='+'),
        _flag('--std', "standard deviation of the pixels (default: the model's)", type=float, nargs='+'),
        _flag('--interpolation', "resizing in evaluation (default: the model's)",
              default='', choices=('', *_INTERPOLATIONS)),
        _flag('-b --batch-size', 'images per micro-batch and device', type=int, default=128),
        _flag('-vb --validation-batch-size', 'images per batch in evaluation (default: --batch-size)', type=int),
        _flag('--channels-last', 'channels_last memory layout', action='store_true'),
        _flag('--grad-accum-steps', 'micro-batches per update', type=int, default=1),
        _flag('--grad-checkpointing', 'trade compute for memory', action='store_true'),
        _flag('--fast-norm', "timm's low-precision norm layers", action='store_true'),
        _flag('--model-kwargs', 'model arguments such as embed_dim=96 (default: none)', **_MAPPING),
        _flag('--head-init-scale', 'scale the initial classifier (default: as initialised)', type=float),
        _flag('--head-init-bias', 'initial classifier bias (default: as initialised)', type=float),
        _flag('--torchcompile-mode', "mode of torch.compile (default: torch's)", metavar='MODE'),
        _flag('--torchcompile', 'compile the model, by inductor if no backend is named (default: off)',
              nargs='?', const='inductor', metavar='BACKEND'),
    ),
    'Device parameters': (
        _flag('--device', 'where to train (default: cuda if there is one, else cpu)', metavar='DEVICE'),
        _flag('--amp', 'mixed precision (default: where CUDA or the CPU has bfloat16)', **_SWITCH, default=None),
        _flag('--amp-dtype', 'type used by --amp', default='bfloat16', choices=('bfloat16', 'float16')),
        _flag('--model-dtype', 'type of the weights (default: float32)', choices=('float32', 'bfloat16', 'float16')),
        _flag('--no-ddp-bb', 'do not broadcast buffers in DDP', action='store_true'),
        _flag('--device-modules', 'Python modules to import first (default: none)', nargs='+', metavar='MODULE'),
    ),
    'Optimizer parameters': (
        _flag('--opt', 'timm optimizer, or samsgd, samadamw', default='adamw', metavar='NAME'),
        _flag('--opt-eps', "optimizer epsilon (default: the optimizer's)", type=float),
        _flag('--opt-betas', "optimizer betas (default: the optimizer's)", type=float, nargs='+'),
        _flag('--momentum', 'optimizer momentum', type=float, default=0.9),
        _flag('--weight-decay', 'weight decay of the optimizer', type=float, default=2e-05),
        _flag('--clip-grad', 'clip the gradient at this value (default: no clipping)', type=float),
        _flag('--clip-mode', 'whether --clip-grad bounds the norm, each value, or the ratio to the weights',
              default='norm', choices=('norm', 'value', 'agc')),
        _flag('--layer-decay', 'layer-wise learning rate decay (default: none)', type=float),
        _flag('--layer-decay-min-scale', 'lower bound of the scale by --layer-decay', type=float, default=0),
        _flag('--layer-decay-no-opt-scale', 'do not train layers scaled below this (default: none)', type=float),
        _flag('--opt-kwargs', 'optimizer arguments (default: none)', **_MAPPING),
    ),
    'Learning rate schedule parameters': (
        _flag('--sched', 'learning rate schedule', type=_allowed('--sched'), default='cosine', choices=SCHEDULES),
        _flag('--sched-on-updates', 'step the schedule per update, not per epoch', action='store_true'),
        _flag('--lr', 'learning rate (default: from --lr-base)', type=float),
        _flag('--lr-base', 'lr = lr-base * images per update / lr-base-size', type=float, default=0.1),
        _flag('--lr-base-size', 'divisor of --lr-base', type=int, default=256),
        _flag('--lr-base-scale', 'how --lr-base follows the batch (default: by optimizer)',
              default='', choices=('', 'linear', 'sqrt')),
        _flag('--lr-noise', 'part of the schedule with learning rate noise (default: none)', type=float, nargs='+'),
        _flag('--lr-noise-pct', 'limit of the learning rate noise', type=float, default=0.67),
        _flag('--lr-noise-std', 'standard deviation of the learning rate noise', type=float, default=1.0),
        _flag('--lr-cycle-mul', 'factor on the length of each cycle of the schedule', type=float, default=1.0),
        _flag('--lr-cycle-decay', 'factor on the learning rate of each cycle', type=float, default=0.5),
        _flag('--lr-cycle-limit', 'number of cycles of the schedule', type=int, default=1),
        _flag('--lr-k-decay', 'k-decay of the cosine and poly schedules', type=float, default=1.0),
        _flag('--lr-decay-fn', 'final decay of wsd (default: 1-sqrt) and rsqrt (default: linear)',
              choices=('linear', '1-sqrt', 'cosine', 'power', 'exp')),
        _flag('--lr-stable-timescale', 'timescale of rsqrt in epochs (default: the warm-up)', type=float),
        _flag('--warmup-lr', 'learning rate at the start of the warm-up', type=float, default=1e-05),
        _flag('--min-lr', 'lower bound of the learning rate', type=float, default=0),
        _flag('--epochs', 'epochs to train', type=int, default=300),
        _flag('--stop-epoch', 'stop after N epochs, schedule unchanged (default: at the end)', type=int),
        _flag('--decay-milestones', 'epochs, counted from 1, from which multistep decays',
              type=int, nargs='+', default=[90, 180, 270]),
        _flag('--decay-epochs', 'epochs between or of decays (default: step 90, wsd the last fifth)', type=float),
        _flag('--warmup-epochs', 'epochs of linear warm-up', type=int, default=5),
        _flag('--warmup-prefix', 'add the warm-up to the epochs', action='store_true'),
        _flag('--cooldown-epochs', 'epochs at --min-lr after the schedule', type=int, default=0),
        _flag('--decay-rate --dr', 'factor of each decay, power of poly', type=float, default=0.1),
    ),
    'Augmentation and regularization parameters': (
        _flag('--no-aug', 'no training augmentation at all', action='store_true'),
        _flag('--train-crop-mode', 'random crop; pad: resize, pad by an eighth, crop (default: rrc)',
              choices=('rrc', 'rkrc', 'rkrr', 'pad')),
        _flag('--scale', 'area of the random crop', type=float, nargs='+', default=[0.08, 1.0]),
        _flag('--ratio', 'aspect ratio of the random crop (default: 3/4 to 4/3)',
              type=float, nargs='+', default=[3 / 4, 4 / 3]),
        _flag('--hflip', 'probability of a horizontal flip', type=float, default=0.5),
        _flag('--vflip', 'probability of a vertical flip', type=float, default=0.0),
        _flag('--color-jitter', 'strength of colour jitter (not with --aa)', type=float, default=0.4),
        _flag('--color-jitter-prob', 'probability of colour jitter (default: always)', type=float),
        _flag('--grayscale-prob', 'probability of a grey image (default: 0)', type=float),
        _flag('--gaussian-blur-prob', 'probability of blur (default: 0)', type=float),
        _flag('--aa', 'augmentation policy such as rand-m9-mstd0.5-inc1 (default: none)', metavar='POLICY'),
        _flag('--aug-repeats', 'views of an image per epoch, on any devices', type=float, default=0),
        _flag('--bce-loss', 'binary cross entropy in place of cross entropy', action='store_true'),
        _flag('--bce-sum', 'sum the BCE loss over the classes', action='store_true'),
        _flag('--bce-target-thresh', 'make the BCE targets binary at this value (default: off)', type=float),
        _flag('--bce-pos-weight', 'weight of the positive term of BCE (default: 1)', type=float),
        _flag('--reprob', 'probability of random erasing', type=float, default=0.0),
        _flag('--remode', 'what an erased box is filled with', default='pixel', choices=('const', 'rand', 'pixel')),
        _flag('--recount', 'number of boxes that random erasing erases', type=int, default=1),
        _flag('--mixup', 'alpha of mixup, on above 0', type=float, default=0.0),
        _flag('--cutmix', 'alpha of cutmix, on above 0', type=float, default=0.0),
        _flag('--cutmix-minmax', 'range of the cutmix box ratio (default: by alpha)', type=float, nargs='+'),
        _flag('--mixup-prob', 'probability that a batch is mixed', type=float, default=1.0),
        _flag('--mixup-switch-prob', 'probability of cutmix where both are on', type=float, default=0.5),
        _flag('--mixup-mode', 'whether a batch, a pair or an image has its own lambda',
              default='batch', choices=('batch', 'pair', 'elem')),
        _flag('--mixup-off-epoch', 'no mixing from this epoch on (default: 0, never)', type=int, default=0),
        _flag('--smoothing', 'label smoothing', type=float, default=0.1),
        _flag('--train-interpolation', 'resizing in training',
              default='random', choices=('', 'random', *_INTERPOLATIONS)),
        _flag('--drop', 'dropout probability', type=float, default=0.0),
        _flag('--drop-path', "probability of stochastic depth (default: the model's)", type=float),
        _flag('--drop-block', "probability of drop block (default: the model's)", type=float),
    ),
    'Batch norm parameters': (
        _flag('--bn-momentum', "momentum of BatchNorm (default: the model's)", type=float),
        _flag('--bn-eps', "epsilon of BatchNorm (default: the model's)", type=float),
        _flag('--sync-bn', 'synchronise BatchNorm across devices', action='store_true'),
        _flag('--dist-bn', 'how devices share BatchNorm statistics after an epoch',
              default='reduce', choices=('broadcast', 'reduce', '')),
    ),
    'Model exponential moving average parameters': (
        _flag('--model-ema', 'keep a moving average of the weights', action='store_true'),
        _flag('--model-ema-force-cpu', 'keep the moving average on the CPU', action='store_true'),
        _flag('--model-ema-decay', 'decay of the moving average per update', type=float, default=0.9998),
        _flag('--model-ema-warmup', 'warm up the decay of the moving average', action='store_true'),
    ),
    'Miscellaneous parameters': (
        _flag('--seed', 'seed of the run', type=int, default=42),
        _flag('--log-interval', 'batches between log lines', type=int, default=50),
        _flag('--val-interval', 'epochs between evaluations', type=int, default=1),
        _flag('--save-epochs', 'keep a milestone after these epochs (default: none)', type=int, nargs='+'),
        _flag('-j --workers', 'loader processes', type=int, default=4),
        _flag('--save-images', 'save the images of a training batch at every log line', action='store_true'),
        _flag('--pin-mem', "pin the loader's memory", action='store_true'),
        _flag('--output', 'folder of the experiments', default='./output/train', metavar='DIR'),
        _flag('--experiment', 'folder of this run (default: a dated name)', default='', metavar='NAME'),
        _flag('--log-wandb', 'log to Weights & Biases', action='store_true'),
        _flag('--wandb-project', "project in Weights & Biases (default: wandb's)", metavar='NAME'),
        _flag('--wandb-tags', 'tags in Weights & Biases (default: none)', nargs='+', default=[], metavar='TAG'),
        _flag('--wandb-resume-id', 'run in Weights & Biases to resume (default: none)', default='', metavar='ID'),
    ),
    'Knowledge distillation parameters': (
        _flag('--distill-loss-weight', 'weight of the DIST loss (default: 1 - task-loss-weight)', type=float),
        _flag('--task-loss-weight', 'weight of the CLS loss', type=float, default=0.5),
        _flag('--kd-temperature', 'temperature of soft distillation', type=float, default=1.0),
        _flag('--kd-token-distill-type', "distil the teacher's probabilities or its predicted class",
              default='hard', choices=('soft', 'hard')),
    ),
    'DeiT-LT': (
        _flag('--teacher', 'teacher recipe such as resnet32_sam, timm model, labels, or none for a plain ViT',
              default='none', metavar='NAME'),
        _flag('--teacher-checkpoint', 'weights of the teacher (default: cached, or trained now)', metavar='FILE'),
        _flag('--teacher-cache', 'folder of trained teachers (default: ~/.cache/timm_deitlt)', metavar='DIR'),
        _flag('--teacher-epochs', "epochs to train the teacher (default: its recipe's)", type=int),
        _flag('--teacher-view', 'view that the teacher labels', default='student', choices=('student', 'weak')),
        _flag('--teacher-normalize', 'whose mean and std normalise what the teacher sees',
              default='own', choices=('own', 'student')),
        _flag('--teacher-antialias', 'antialias when resizing to its size (default: on)', **_SWITCH, default=True),
        _flag('--drw-on', 'expert re-weighted in stage two (default: dist with a teacher, cls for LDAM, else none)',
              choices=('dist', 'cls', 'both', 'none')),
        _flag('--drw-start-epoch', 'first epoch, from 0, of stage two (default: 11/12 of --epochs)', type=int),
        _flag('--drw-beta', 'beta of the effective number of images', type=float, default=0.9999),
        _flag('--keep-mixup-drw', 'keep mixing and smoothing in stage two', action='store_true'),
        _flag('--loss', 'loss on the labels; for BCE see --bce-loss',
              type=_allowed('--loss'), default='ce', choices=('ce', 'ldam')),
        _flag('--ldam-margin', 'margin of the rarest class in LDAM', type=float, default=0.5),
        _flag('--ldam-scale', "scale of LDAM's logits", type=float, default=30.0),
        _flag('--classifier', 'classifier of the resnet*_cifar models', default='linear', choices=('linear', 'cosine')),
        _flag('--rho', 'radius of the samsgd and samadamw optimizers', type=float, default=0.05),
        _flag('--sam-adaptive', 'scale the radius by each weight (ASAM)', action='store_true'),
        _flag('--filter-bias-and-bn', 'no weight decay on biases and norms (default: on)', **_SWITCH, default=True),
        _flag('--imbalance-factor', "largest / smallest class (default: the data set's)", type=float),
        _flag('--imbalance-profile', 'shape of the class counts', default='exp', choices=('exp', 'step')),
        _flag('--n-max', "images of the largest class (default: the data set's)", type=int),
        _flag('--split-seed', 'seed of subset and hold-out, apart from --seed', type=int, default=0),
        _flag('--val-fraction', 'part of the training images held out (default: 0.1 of a folder without --val-split)',
              type=float),
        _flag('--class-counts', 'images per class of an iterable data set (default: counted)', metavar='FILE'),
        _flag('--skip-bad-images', 'count unreadable images and go on', action='store_true'),
        _flag('--branch-from', 'start a new run from this milestone of another (default: none)', metavar='FILE'),
        _flag('--log-tensorboard', 'log to TensorBoard', action='store_true'),
    ),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add every supported flag to the parser, in timm's groups and with its default in the help text."""
    parser.add_argument('-c', '--config', default='', metavar='FILE',
                        help='YAML file or recipe such as digits/student, below the command line (default: none)')
    parser.add_argument('data', nargs='?', metavar='DIR', help='the same as --data-dir (default: none)')
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for names, text, options in flags:
            action = group.add_argument(*names, **options)
            default = ' '.join(map(str, action.default)) if isinstance(action.default, list) else action.default
            shown = '' if 'default' in text else f" (default: {'off' if default is False else default})"
            action.help = text + shown  # set here because older Pythons add the default of a switch on their own
