"""Flags of timm that are refused, with the reason."""

_MULTI_LABEL = 'an image has exactly one label here: teacher labels, class weights and shots are defined per class'
_AUG_SPLITS = 'augmentation splits do not work with distillation; use --aug-repeats for several views of an image'
_OTHER_LOSS = 'this loss is not implemented here; use cross entropy, --bce-loss or --loss ldam'

_REFUSED_BY_REASON = {
    'NaFlex models (variable resolution) have no distillation token; use a deit_lt_* model and --img-size':
        '--naflex-loader --naflex-train-seq-lens --naflex-max-seq-len --naflex-patch-sizes --naflex-patch-size-probs '
        '--naflex-loss-scale --naflex-patchify-channels-first',
    'every update has the same number of images, whatever their size; set one --batch-size':
        '--train-batch-sizes --variable-batch-loss-scale',
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
    'the workers are seeded again in every epoch, so that a resumed run is the same run; use --workers':
        '--use-multi-epochs-loader',
    'there is only one loader; use --workers 0 to load in the training process': '--no-prefetcher',
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
    'an epoch is timed to the end of its last update anyway; leave it out': '--synchronize-step',
    'deprecated by timm; use --drop-path': '--drop-connect',
    'only the plateau schedule has patience, and it follows the test set; use --sched cosine': '--patience-epochs',
    "private to timm's sweep.py, which drives timm's own train.py; use ablate.py": '--sweep-locks --sweep-attempt',
}
REFUSED: dict[str, str] = {flag: reason for reason, flags in _REFUSED_BY_REASON.items() for flag in flags.split()}

# Values that timm's flags take and ours refuse, with the reason for the error message.
REFUSED_VALUES: dict[str, dict[str, str]] = {
    '--sched': {'plateau': 'it follows a validation metric, which here is the test set; use cosine or multistep'},
    '--loss': {
        'bce': 'use --bce-loss', 'jsd': _AUG_SPLITS, 'asl': _OTHER_LOSS, 'poly': _OTHER_LOSS,
        **dict.fromkeys(('twoway', 'zlpr', 'db'), _MULTI_LABEL),
    },
}
