"""Flags: which of timm's are supported, which are refused and why, and which are ours."""
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from timm.loss import LOSS_TYPES
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.scheduler.wsd_lr import _DECAY_FNS

from timm_deitlt.settings.flags import REFUSED, REFUSED_VALUES
from timm_deitlt.settings.groups import NO_NETWORK, NOT_TRAINED
from timm_deitlt.settings.layers import build_parser, parse_args, resolve


def names(text):
    return set(text.split())


# Flags of timm's train.py that are supported, with timm's defaults: all of 1.0.29.dev0 (the newest train.py that could
# be read), then what 1.0.31 is known to add from its README and tests (its train.py is not in the distribution).
SUPPORTED = {
    'Dataset parameters': {
        '--data-dir': None, '--dataset': '', '--train-split': 'train', '--val-split': 'validation',
        '--train-num-samples': None, '--val-num-samples': None, '--dataset-download': False, '--class-map': '',
        '--input-img-mode': None, '--input-key': None, '--target-key': None, '--dataset-trust-remote-code': False,
    },
    'Model parameters': {
        '--model': 'resnet50', '--pretrained': False, '--pretrained-path': None, '--initial-checkpoint': '',
        '--resume': '', '--no-resume-opt': False, '--num-classes': None, '--gp': None, '--img-size': None,
        '--in-chans': None, '--input-size': None, '--crop-pct': None, '--mean': None, '--std': None,
        '--interpolation': '', '--batch-size': 128, '--validation-batch-size': None, '--channels-last': False,
        '--grad-accum-steps': 1, '--grad-checkpointing': False, '--fast-norm': False, '--model-kwargs': {},
        '--head-init-scale': None, '--head-init-bias': None, '--torchcompile-mode': None, '--torchcompile': None,
    },
    'Device parameters': {
        '--device': 'cuda', '--amp': False, '--amp-dtype': 'float16', '--model-dtype': None, '--no-ddp-bb': False,
        '--device-modules': None,
    },
    'Optimizer parameters': {
        '--opt': 'sgd', '--opt-eps': None, '--opt-betas': None, '--momentum': .9, '--weight-decay': 2e-5,
        '--clip-grad': None, '--clip-mode': 'norm', '--layer-decay': None, '--layer-decay-min-scale': 0,
        '--layer-decay-no-opt-scale': None, '--opt-kwargs': {},
    },
    'Learning rate schedule parameters': {
        '--sched': 'cosine', '--sched-on-updates': False, '--lr': None, '--lr-base': .1, '--lr-base-size': 256,
        '--lr-base-scale': '', '--lr-noise': None, '--lr-noise-pct': .67, '--lr-noise-std': 1., '--lr-cycle-mul': 1.,
        '--lr-cycle-decay': .5, '--lr-cycle-limit': 1, '--lr-k-decay': 1., '--warmup-lr': 1e-5, '--min-lr': 0,
        '--epochs': 300, '--decay-milestones': [90, 180, 270], '--decay-epochs': 90, '--warmup-epochs': 5,
        '--warmup-prefix': False, '--cooldown-epochs': 0, '--decay-rate': .1,
    },
    'Augmentation and regularization parameters': {
        '--no-aug': False, '--train-crop-mode': None, '--scale': [.08, 1.], '--ratio': [3 / 4, 4 / 3], '--hflip': .5,
        '--vflip': 0., '--color-jitter': .4, '--color-jitter-prob': None, '--grayscale-prob': None,
        '--gaussian-blur-prob': None, '--aa': None, '--aug-repeats': 0, '--bce-loss': False, '--bce-sum': False,
        '--bce-target-thresh': None, '--bce-pos-weight': None, '--reprob': 0., '--remode': 'pixel', '--recount': 1,
        '--mixup': 0., '--cutmix': 0., '--cutmix-minmax': None, '--mixup-prob': 1., '--mixup-switch-prob': .5,
        '--mixup-mode': 'batch', '--mixup-off-epoch': 0, '--smoothing': .1, '--train-interpolation': 'random',
        '--drop': 0., '--drop-path': None, '--drop-block': None,
    },
    'Batch norm parameters': {
        '--bn-momentum': None, '--bn-eps': None, '--sync-bn': False, '--dist-bn': 'reduce',
    },
    'Model exponential moving average parameters': {
        '--model-ema': False, '--model-ema-force-cpu': False, '--model-ema-decay': .9998, '--model-ema-warmup': False,
    },
    'Miscellaneous parameters': {
        '--seed': 42, '--log-interval': 50, '--val-interval': 1, '--workers': 4, '--save-images': False,
        '--pin-mem': False, '--output': '', '--experiment': '', '--log-wandb': False, '--wandb-project': None,
        '--wandb-tags': [], '--wandb-resume-id': '',
        '--train-img-sizes': None, '--train-size-probs': None, '--train-size-schedule': 'constant',
        '--train-size-schedule-spread': .65, '--train-size-random-mix': .1,
    },
    'Knowledge distillation parameters': {
        '--distill-loss-weight': None, '--task-loss-weight': None, '--kd-temperature': 4.,
        '--kd-token-distill-type': 'soft',
    },
}
SUPPORTED_1_0_31 = {
    '--loss', '--lr-decay-fn', '--lr-stable-timescale', '--pretrained-cfg-overlay', '--save-epochs', '--stop-epoch',
}
# Defaults that differ from timm's.
CHANGED = {
    '--model': 'deit_lt_small', '--device': None, '--amp': None, '--amp-dtype': 'bfloat16', '--opt': 'adamw',
    '--decay-epochs': None, '--output': './output/train', '--task-loss-weight': .5, '--kd-temperature': 1.,
    '--kd-token-distill-type': 'hard',
}
NOT_SUPPORTED = names('''
--fuser --torchscript --synchronize-step --local_rank --epoch-repeats --start-epoch --patience-epochs --aug-splits
--jsd-loss --resplit --drop-connect --split-bn --worker-seeding --recovery-interval --checkpoint-hist --no-prefetcher
--eval-metric --tta --use-multi-epochs-loader --train-batch-sizes --train-batches-per-epoch
--train-steps-per-epoch --variable-batch-loss-scale --naflex-loader --naflex-train-seq-lens --naflex-max-seq-len
--naflex-patch-sizes --naflex-patch-size-probs --naflex-loss-scale --naflex-patchify-channels-first --kd-model-name
--kd-distill-type --kd-loss-type --kd-student-feature-dim --kd-teacher-feature-dim
''')
NOT_SUPPORTED_1_0_31 = names('''
--task --target-format --multilabel-threshold --class-stats --loss-class-weight --loss-pos-weight --loss-weight-power
--poly-gamma --poly-epsilon --sweep-locks --sweep-attempt
''')
OURS = names('''
--teacher --teacher-checkpoint --teacher-source --teacher-cache --teacher-epochs --teacher-rho --teacher-view
--teacher-normalize --teacher-antialias --no-teacher-antialias --drw-on --drw-start-epoch --drw-beta --keep-mixup-drw
--loss --ldam-margin --ldam-scale --classifier --rho --sam-adaptive --filter-bias-and-bn --no-filter-bias-and-bn
--imbalance-factor --imbalance-profile --n-max --split-seed --val-fraction --class-counts --skip-bad-images
--branch-from --log-tensorboard --log-trackio --global-batch-size --cls-loss --logit-adjust-tau --rho-milestones
--rho-values --cutout --force-color-jitter --list-dir --dry-run --world-size --report --no-report --auto-speed
--sam-every --augment-backend --cache-images --folds --fold --fusion --save-interval
''')
OURS_OF_PACO = names('''
--paco-alpha --paco-beta --paco-gamma --paco-temperature --paco-queue --paco-dim --paco-momentum --key-scale
--key-color-jitter --key-color-jitter-prob
''')
OURS_OF_SMALL_DATA = names('''
--guidance --guidance-blocks --guidance-stages --guidance-end --dense-distill --logit-standardize --init
--muon-hidden-only --aug-ramp
''')


def flags_of(group):
    return {flag for action in group._group_actions for flag in action.option_strings}


def dest(flag):
    return flag.lstrip('-').replace('-', '_')


@pytest.fixture
def fail(capsys):
    """Parse a command line that must fail, and return its one line on stderr."""
    def parse(*argv):
        with pytest.raises(SystemExit) as stopped:
            parse_args(argv)
        assert stopped.value.code == 2
        line, = capsys.readouterr().err.splitlines()
        return line
    return parse


def test_every_flag_of_timm_is_supported_or_refused():
    flags = {flag for group in SUPPORTED.values() for flag in group}
    supported = flags | SUPPORTED_1_0_31
    refused = NOT_SUPPORTED | NOT_SUPPORTED_1_0_31
    options = set(build_parser()._option_string_actions)
    assert len(flags) + len(NOT_SUPPORTED) == 172  # of 1.0.29.dev0, --train-steps-per-epoch among them
    assert supported <= options
    assert refused == set(REFUSED)
    assert not refused & options
    short = {'-h', '--help', '-c', '--config', '-b', '-vb', '-j', '--dr', '--no-amp'}
    assert options == supported | OURS | OURS_OF_PACO | OURS_OF_SMALL_DATA | short


def test_help_of_the_script_needs_no_torch():
    script = (
        'import runpy, sys\nsys.argv = ["train.py", "--help"]\n'
        'try:\n    runpy.run_path("train.py", run_name="__main__")\nfinally:\n'
        '    print({"torch", "timm"} & set(sys.modules), file=sys.stderr)')
    env = {**os.environ, 'COLUMNS': '100'}
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == 'set()'
    assert '--auto-speed' in done.stdout and '--model' in done.stdout


def test_groups_and_defaults_are_timms_but_for_the_listed_ones():
    parser = build_parser()
    groups = {group.title: flags_of(group) for group in parser._action_groups}
    defaults = vars(parser.parse_args([]))
    for title, flags in SUPPORTED.items():
        assert set(flags) <= groups[title]
        for flag, default in flags.items():
            expected = CHANGED.get(flag, default)
            assert defaults[dest(flag)] == expected and type(defaults[dest(flag)]) is type(expected), flag
    assert groups['DeiT-LT'] == OURS
    assert groups['PaCo (--loss paco)'] == OURS_OF_PACO


def test_short_options_and_aliases_are_timms():
    args = parse_args(['-b', '8', '-vb', '9', '-j', '1', '--dr', '.5', '-c', 'teachers/plain'])
    assert (args.batch_size, args.validation_batch_size, args.workers, args.decay_rate) == (8, 9, 1, .5)
    assert args.opt == 'momentum'


def test_defaults_of_our_flags():
    args = resolve({})
    assert (args.teacher, args.teacher_view, args.teacher_normalize, args.teacher_antialias) == (
        'none', 'student', 'own', True)
    assert (args.drw_on, args.drw_start_epoch, args.drw_beta, args.keep_mixup_drw) == (None, None, .9999, False)
    assert (args.loss, args.ldam_margin, args.ldam_scale, args.classifier) == ('ce', .5, 30., 'linear')
    assert (args.rho, args.sam_adaptive, args.filter_bias_and_bn) == (.05, False, True)
    assert (args.imbalance_factor, args.imbalance_profile, args.n_max, args.split_seed) == (None, 'exp', None, 0)
    assert (args.val_fraction, args.class_counts, args.branch_from, args.log_tensorboard) == (None, None, None, False)


def test_mixed_precision_is_automatic_unless_switched():
    assert [parse_args(argv).amp for argv in ([], ['--amp'], ['--no-amp'])] == [None, True, False]


def test_help_lists_our_group_and_the_default_of_every_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_args(['--help'])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    ours = shown[shown.index('\nDeiT-LT:\n'):]
    assert all(flag in ours for flag in OURS)
    assert '==SUPPRESS==' not in shown
    for action in build_parser()._actions:
        if action.dest != 'help':
            assert action.help.count('(default: ') >= 1 and '\n' not in action.help, action.dest


def test_refused_flag_is_named_with_its_reason_on_the_command_line_and_in_a_file(fail, tmp_path):
    for argv in (['--patience-epochs'], ['--patience-epochs', '1'], ['--patience-epochs=1']):
        assert re.fullmatch('train.py: error: --patience-epochs is not supported: .{10,}', fail(*argv))
    path = tmp_path / 'config.yaml'
    path.write_text('patience_epochs: 1')
    with pytest.raises(ValueError, match=re.escape(f'{path}: patience_epochs is not supported: ') + '.{10,}'):
        parse_args(['--config', str(path)])
    for flag, reason in REFUSED.items():
        assert len(reason) > 10 and fail(flag).endswith(f'{flag} is not supported: {reason}')


@pytest.mark.parametrize('flag, value', [(flag, value) for flag, values in REFUSED_VALUES.items() for value in values])
def test_refused_value_is_named_with_its_reason(flag, value, fail):
    reason = f"'{value}' is not supported: {REFUSED_VALUES[flag][value]}"
    assert fail(flag, value).endswith(reason)
    with pytest.raises(ValueError, match=re.escape(f'{dest(flag)}: {reason}')):
        resolve({dest(flag): value})


def test_every_loss_of_timm_is_offered_or_refused():
    assert set(LOSS_TYPES) == {'ce', *REFUSED_VALUES['--loss']}


def test_closed_sets_are_timms():
    choices = {action.dest: action.choices for action in build_parser()._actions}
    assert choices['lr_decay_fn'] == _DECAY_FNS
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.)
    for sched in choices['sched']:
        scheduler, _ = create_scheduler_v2(optimizer, **scheduler_kwargs(resolve({'sched': sched})))
        assert (scheduler is None) == (sched == 'none')


@pytest.mark.parametrize('argv, line', [
    (['--epoch', '3'], 'unknown argument --epoch; did you mean --epochs'),
    (['--teachr=resnet32'], 'unknown argument --teachr; did you mean --teacher'),
    (['--qqqqqq'], 'unknown argument --qqqqqq'),
    (['one', 'two'], 'unknown argument two'),
    (['--epochs', 'many'], "argument --epochs: invalid int value: 'many'"),
    (['--loss', 'focal'], "argument --loss: invalid choice: 'focal'"),
    (['--img-size'], 'argument --img-size: expected one argument'),
])
def test_bad_command_line_is_one_line_and_exit_code_2(argv, line, fail):
    assert fail(*argv).startswith(f'train.py: error: {line}')


def test_groups_of_settings_name_flags_that_there_are():
    ranks = {'distributed', 'local_rank', 'rank', 'world_size'}  # of timm's init_distributed_device
    assert NOT_TRAINED - ranks <= vars(parse_args([])).keys()
    for teacher in NO_NETWORK:
        assert parse_args(['--teacher', teacher]).teacher == teacher
