"""Settings: layers, recipe files and checks; the flags themselves are in test_flags."""
import re
from pathlib import Path

import pytest
import yaml

import timm_deitlt
from timm_deitlt.settings.checks import validate_args
from timm_deitlt.settings.layers import args_to_yaml, describe_defaults, model_kind, parse_args, recipes_for, resolve

RECIPES = Path(timm_deitlt.__file__).parent / 'recipes'


@pytest.fixture
def config(tmp_path):
    """Write a config file and return its path."""
    def write(text):
        path = tmp_path / 'config.yaml'
        path.write_text(text)
        return str(path)
    return write


PACO = {'loss': 'paco', 'drw_on': 'none', 'mixup': 0, 'cutmix': 0, 'smoothing': 0}


def valid(**overrides):
    """Settings of the quick start with some changed; checked, and not found wanting."""
    args = resolve({'epochs': 50, 'drw_start_epoch': None, **overrides}, ['default/student', 'digits/student'])
    validate_args(args)
    return args


# Layers

def test_later_layers_win(config):
    path = config('epochs: 7\nlr: 3e-4\nmodel_kwargs: {depth: 2}')
    args = parse_args(['-c', path, '--lr', '1', '--dataset', 'lt/fashion_mnist', '--model-kwargs', 'embed_dim=96'])
    expected = {
        'momentum': (.9, 'default'),
        'weight_decay': (.05, 'default/student'),
        'batch_size': (64, 'fashion_mnist/student'),
        'epochs': (7, path),
        'lr': (1., 'command line'),
        'model_kwargs': ({'patch_size': 7, 'depth': 2, 'embed_dim': 96}, 'command line'),
    }
    assert {key: (getattr(args, key), args.sources[key]) for key in expected} == expected
    assert set(args.sources) == set(vars(args)) - {'sources'}


@pytest.mark.parametrize('argv, dataset', [
    ([], 'lt/digits'), (['--data-dir', 'images'], ''), (['images'], ''), (['--dataset', 'lt/cifar10'], 'lt/cifar10'),
    (['--epochs', '1', 'images'], ''), (['--config', 'digits/student'], 'lt/digits'),
])
def test_the_default_data_set_is_digits_unless_data_are_named(argv, dataset):
    args = parse_args(argv)
    assert args.dataset == dataset
    assert args.data_dir == ('images' if 'images' in argv else None)
    assert (args.sources['batch_size'] == 'digits/student') == (dataset == 'lt/digits')


@pytest.mark.parametrize('model, kind', [
    ('deit_lt_small', 'student'), ('vit_tiny_patch16_224', 'student'), ('hf-hub:me/deit_lt_base', 'student'),
    ('resnet32_cifar', 'teacher'), ('resnet50', 'teacher'), ('convnext_tiny', 'student'),
])
def test_recipes_follow_the_kind_of_model(model, kind):
    args = parse_args(['--model', model])
    assert model_kind(model) == kind
    assert args.sources['weight_decay'] == f'default/{kind}' and args.sources['epochs'] == f'digits/{kind}'


def test_model_and_data_set_may_come_from_the_config(config):
    args = parse_args(['-c', config('model: resnet32_cifar\ndataset: lt/cifar100')])
    assert (args.loss, args.rho, args.sources['rho']) == ('ldam', .8, 'cifar100/teacher')


def test_recipes_under_a_run():
    assert recipes_for('lt/fashion_mnist', 'teacher') == ['default/teacher', 'fashion_mnist/teacher']
    assert recipes_for('torch/cifar10', 'student') == ['default/student']


def test_resolve_layers_exactly_the_named_recipes():
    args = resolve({'epochs': 3}, ['default/teacher', 'teachers/sam'], prog='--teacher resnet32_sam')
    assert (args.opt, args.sources['opt']) == ('samsgd', 'teachers/sam')
    assert (args.batch_size, args.sources['batch_size']) == (128, 'default/teacher')
    assert (args.epochs, args.sources['epochs']) == (3, '--teacher resnet32_sam')
    assert resolve({}).opt == 'adamw' and resolve({}).dataset == 'lt/digits'


def test_layers_do_not_share_mutable_values():
    resolve({}, ['fashion_mnist/student']).model_kwargs['depth'] = 1
    first = resolve({})
    first.scale.append(2.)
    first.model_kwargs['depth'] = 1
    assert resolve({}).scale == [.08, 1.] and resolve({}).model_kwargs == {}


def test_optimizer_arguments_of_a_recipe_go_with_its_optimizer():
    recipe = parse_args([]).opt_kwargs
    assert recipe['ns_steps']
    assert parse_args(['--opt', 'adamw']).opt_kwargs == {}
    assert parse_args(['--opt', 'adamw', '--opt-kwargs', 'amsgrad=True']).opt_kwargs == {'amsgrad': True}
    assert parse_args(['--opt-kwargs', 'momentum=.9']).opt_kwargs == {**recipe, 'momentum': .9}


def test_what_belongs_to_a_choice_of_a_recipe_goes_with_that_choice(config):
    path = config('{opt: muon, muon_hidden_only: true, init: conditioned}')
    assert not parse_args(['-c', path, '--opt', 'adamw']).muon_hidden_only
    assert parse_args(['-c', path, '--opt', 'muon']).muon_hidden_only
    for flags in (['--pretrained'], ['--pretrained-path', 'x'], ['--initial-checkpoint', 'x']):
        assert parse_args(['-c', path, *flags]).init is None
    assert parse_args(['-c', path, '--pretrained', '--init', 'mimetic']).init == 'mimetic'  # an error follows


def test_a_later_choice_is_not_outvoted_by_a_setting_that_timm_prefers(config):
    args = parse_args(['--lr-base', '1e-3', '--input-size', '3', '32', '32'])
    assert (args.lr, args.img_size, args.sources['lr']) == (None, None, 'command line')
    assert parse_args(['--lr-base', '1e-3', '--lr', '1']).lr == 1
    args = parse_args(['-c', config('input_size: [3, 32, 32]'), '--img-size', '48'])
    assert (args.img_size, args.input_size) == (48, None)


def test_a_recipes_schedule_stretches_with_its_epochs(config):
    recipes = ['default/teacher', 'digits/teacher']
    assert resolve({}, recipes).drw_start_epoch == 24
    args = resolve({'epochs': 10}, recipes)
    assert (args.drw_start_epoch, args.decay_milestones) == (8, [9, 10])
    args = parse_args(['--model', 'resnet32_cifar', '--epochs', '80'])
    assert (args.drw_start_epoch, args.decay_milestones) == (64, [65, 73])
    given = ['--model', 'resnet32_cifar', '--epochs', '10']
    assert parse_args([*given, '--drw-start-epoch', '9']).drw_start_epoch == 9
    assert parse_args([*given, '-c', config('epochs: 20\ndrw_start_epoch: 15')]).drw_start_epoch == 15


def test_description_names_what_every_layer_set():
    args = parse_args(['--epochs', '3', '--mean', '.5', '.5', '.5'])
    lines = describe_defaults(vars(args), args.sources).split('\n')
    starts = [line.split(':')[0] for line in lines if not line.startswith(' ')]
    assert starts == ['default/student', 'digits/student', 'command line']
    assert lines[-1] == 'command line: epochs 3, mean 0.5 0.5 0.5'
    assert 'img_size 32' in ' '.join(lines) and max(map(len, lines)) <= 120
    assert describe_defaults(vars(resolve({})), resolve({}).sources) == ''


@pytest.mark.parametrize('argv', [
    [], ['--model', 'resnet32_cifar', '--opt', 'samsgd'], ['--amp', '--torchcompile', '--save-epochs', '2', '3'],
    ['--dataset', 'lt/fashion_mnist', '--model-kwargs', 'embed_dim=96', 'name=x', '--experiment', '2024'],
    ['some/dir', '--lr-base', '1', '--wandb-tags', 'yes', 'null', '--min-lr', '1e-7', '--drw-on', 'none'],
])
def test_saved_settings_read_back_to_the_same_values(argv, tmp_path):
    args = parse_args(argv)
    saved = tmp_path / 'args.yaml'
    saved.write_text(args_to_yaml(args), encoding='utf-8')
    values = {key: value for key, value in vars(args).items() if key != 'sources'}
    assert yaml.safe_load(saved.read_text()) == values
    for again in (resolve(yaml.safe_load(saved.read_text())), parse_args(['-c', str(saved)])):
        assert {key: value for key, value in vars(again).items() if key != 'sources'} == values


# Recipe and config files

@pytest.mark.parametrize('text, message', [
    ('epoch: 3', "unknown setting 'epoch'; did you mean epochs"),
    ('batch-size: 3', "unknown setting 'batch-size'; did you mean batch_size"),
    ('qqqqqq: 3', r"unknown setting 'qqqqqq'$"),
    ('config: other.yaml', "unknown setting 'config'"),
    ('sources: {}', "unknown setting 'sources'"),
    ('epochs: 3.5', 'epochs: expected a whole number, got 3.5'),
    ('epochs: true', 'epochs: expected a whole number, got True'),
    ('epochs: null', 'epochs: expected a whole number, got None'),
    ('lr: fast', "lr: expected a number, got 'fast'"),
    ('lr: [1]', r'lr: expected a number, got \[1\]'),
    ('aa: true', 'aa: expected text, got True'),
    ('amp: 1', 'amp: expected true or false, got 1'),
    ('pretrained: yes please', "pretrained: expected true or false, got 'yes please'"),
    ('mean: .5', 'mean: expected a list, got 0.5'),
    ('mean: []', r'mean: expected a list, got \[\]'),
    ('mean: [.5, half]', "mean: expected a number or auto, got 'half'"),
    ('input_size: [224, 224]', 'input_size: expected a list of 3'),
    ('model_kwargs: [depth, 2]', 'model_kwargs: expected a mapping'),
    ('model_kwargs: {1: 2}', 'model_kwargs: expected a mapping'),
    ('drw_on: all', "drw_on: 'all' is not one of dist, cls, both, none"),
    ('sched: sine', "sched: 'sine' is not one of cosine"),
    ('- epochs', 'expected a mapping of settings'),
    ('', 'expected a mapping of settings'),
    ('epochs: [3', 'is not valid YAML'),
])
def test_bad_file_is_an_error_that_names_file_and_setting(text, message, config):
    path = config(text)
    with pytest.raises(ValueError, match=message) as error:
        parse_args(['--config', path])
    assert str(error.value).startswith(path) and '\n' not in str(error.value)


def test_file_values_are_read_as_the_command_line_reads_them(config):
    text = 'lr: 3e-4\nepochs: "10"\nmin_lr: 0\nexperiment: 2024\nmean: ["0.5", 0, 0.3]\namp: false\ndrw_on: none'
    args = parse_args(['-c', config(text)])
    assert (args.lr, args.epochs, args.min_lr, args.experiment) == (3e-4, 10, 0., '2024')
    assert (args.mean, args.amp, args.drw_on) == ([.5, 0., .3], False, 'none')


def test_overrides_are_checked_like_a_file():
    with pytest.raises(ValueError, match="^ablation: unknown setting 'epoch'; did you mean epochs"):
        resolve({'epoch': 3}, prog='ablation')
    with pytest.raises(ValueError, match='^overrides: epochs: expected a whole number'):
        resolve({'epochs': 'three'})
    assert resolve({'mean': (.5, .5, .5)}).mean == [.5, .5, .5]


def test_base_of_a_file_stands_in_place_of_the_recipes_that_data_and_model_choose(config):
    path = config('base: [default/teacher, teachers/paco]\nmodel: resnet20_cifar\nlr: 3')
    args = parse_args(['-c', path])
    assert (args.loss, args.lr, args.sources['loss']) == ('paco', 3., 'teachers/paco')
    assert not any(source.startswith('digits/') for source in args.sources.values())


@pytest.mark.parametrize('text, words', [
    ('base: default/teacher', 'base is a list of recipes'), ('base: [1]', 'base is a list of recipes'),
    ('base: [teachers/paca]', "'teachers/paca', which does not exist; did you mean teachers/paco"),
    ('needs: [data_dirr]', "needs names the setting 'data_dirr', which does not exist; did you mean data_dir"),
])
def test_bad_base_is_an_error_that_names_the_file(config, text, words):
    path = config(text)
    with pytest.raises(ValueError, match=words) as error:
        parse_args(['-c', path])
    assert str(error.value).startswith(path)


@pytest.mark.parametrize('recipe, flag', [
    ('own_data', '--data-dir'), ('cifar10_if50/deit_lt_base_released', '--teacher-checkpoint')])
def test_recipe_that_makes_no_sense_without_a_setting_asks_for_it(recipe, flag):
    with pytest.raises(ValueError, match=f'{recipe} needs {flag}'):
        parse_args(['-c', recipe])
    assert parse_args(['-c', recipe, flag, 'x'])


def test_radii_of_a_recipe_are_stretched_with_the_epochs():
    args = parse_args(['-c', 'imagenet_lt/teacher_ldam_sam', '--epochs', '45'])
    assert args.rho_milestones == [round(5 / 2) + 1, 31] and args.drw_start_epoch == 30


def test_missing_config_names_near_recipes():
    with pytest.raises(FileNotFoundError, match='digits/studnt: no such file or recipe; did you mean digits/student'):
        parse_args(['-c', 'digits/studnt'])


# Checks of values

def test_flags_of_a_teacher_without_one_are_refused():
    for flags in (['--teacher-epochs', '1'], ['--teacher-view', 'weak'], ['--no-teacher-antialias']):
        with pytest.raises(ValueError, match='given, but this run has no teacher network; give one such as --teacher'):
            validate_args(parse_args(flags))
        for teacher in ('resnet32_sam', 'none'):  # none as an answer to a command that has one
            validate_args(parse_args([*flags, '--teacher', teacher]))


@pytest.mark.parametrize('overrides, message', [
    ({'epochs': 0}, '--epochs must be at least 1, got 0'),
    ({'batch_size': 0}, '--batch-size must be at least 1'),
    ({'grad_accum_steps': 0}, '--grad-accum-steps must be at least 1'),
    ({'teacher_epochs': 0}, '--teacher-epochs must be at least 1'),
    ({'folds': 0}, '--folds must be at least 2, got 0'),
    ({'save_epochs': [5, 0]}, '--save-epochs must be at least 1, got 0'),
    ({'imbalance_factor': .01}, '--imbalance-factor must be at least 1, got 0.01'),
    ({'imbalance_factor': float('nan')}, '--imbalance-factor must be at least 1, got nan'),
    ({'rho': -.1}, '--rho must be at least 0'),
    ({'mixup': -1}, '--mixup must be at least 0'),
    ({'drw_start_epoch': -1}, '--drw-start-epoch must be at least 0'),
    ({'val_fraction': 0}, '--val-fraction must be between 0 and 1, both excluded'),
    ({'val_fraction': 1}, '--val-fraction must be between 0 and 1, both excluded'),
    ({'drw_beta': 1}, '--drw-beta must be between 0 and 1, both excluded'),
    ({'drw_beta': 0}, '--drw-beta must be between 0 and 1, both excluded'),
    ({'kd_temperature': 0}, '--kd-temperature must be above 0'),
    ({'smoothing': 1}, '--smoothing must be at least 0 and below 1'),
    ({'hflip': 2}, '--hflip must be between 0 and 1'),
    ({'drw_start_epoch': 51}, '--drw-start-epoch 51 lies beyond --epochs 50'),
    ({'stop_epoch': 51}, 'lies beyond --epochs 50'),
    ({'save_epochs': [10, 52]}, '--save-epochs 52 lies beyond --epochs 50'),
    ({'task_loss_weight': 1.5}, '--task-loss-weight 1.5 leaves a negative weight'),
    ({'batch_size': 31}, 'mixup and cutmix need an even --batch-size, got 31'),
    ({'batch_size': 31, 'mixup': 0, 'cutmix': 0, 'cutmix_minmax': [.2, .8]}, 'an even --batch-size'),
    ({'loss': 'ldam', 'cutmix': 0, 'smoothing': 0}, '--loss ldam needs hard labels .*--mixup 0 --cutmix 0'),
    ({'loss': 'ldam', 'mixup': 0, 'smoothing': 0}, '--loss ldam needs hard labels .*--mixup 0 --cutmix 0'),
    ({'loss': 'ldam', 'mixup': 0, 'cutmix': 0}, '--loss ldam needs hard labels .*--smoothing 0'),
    ({'loss': 'ldam', 'mixup': 0, 'cutmix': 0, 'smoothing': 0, 'bce_loss': True}, 'exclude each other'),
    ({'opt': 'samsgd', 'amp_dtype': 'float16'}, '--opt samsgd cannot scale float16 .*--amp-dtype bfloat16'),
    ({'opt': 'samadamw', 'amp_dtype': 'float16', 'amp': True}, '--opt samadamw cannot scale float16'),
    ({'amp': True, 'model_dtype': 'bfloat16'}, '--amp needs --model-dtype float32'),
    ({'resume': 'auto', 'experiment': 'x', 'branch_from': 'y'}, '--resume continues .* --branch-from'),
    ({'resume': 'auto'}, '--resume auto needs .*--experiment'),
    ({'wandb_resume_id': 'x'}, '--wandb-resume-id needs --resume'),
    ({'drw_on': 'dist'}, '--drw-on dist needs a DIST expert'),
    ({'teacher_checkpoint': 'x'}, '--teacher-checkpoint needs the architecture of the teacher'),
    ({'loss': 'paco'}, '--loss paco needs hard labels .*--mixup 0 --cutmix 0 --smoothing 0'),
    ({**PACO, 'teacher': 'resnet32_sam'}, '--loss paco trains a CNN .*--teacher none'),
    ({**PACO, 'drw_on': 'cls'}, '--loss paco trains a CNN .*--drw-on none'),
    ({**PACO, 'augment_backend': 'device'}, '--augment-backend device does not make the blurred view of --loss paco'),
    ({**PACO, 'classifier': 'cosine'}, '--loss paco trains a CNN .*--classifier linear'),
    ({**PACO, 'bce_loss': True}, '--loss paco and --bce-loss exclude each other'),
    ({**PACO, 'model_ema': True}, '--loss paco keeps a momentum encoder of its own'),
    ({'paco_momentum': 1}, '--paco-momentum must be at least 0 and below 1'),
    ({'cls_loss': 'balanced_softmax', 'bce_loss': True}, '--cls-loss balanced_softmax adds the class prior'),
    ({'cls_loss': 'logit_adjust', 'drw_on': 'cls'}, '--cls-loss logit_adjust re-balances CLS already'),
    ({'rho_milestones': [3, 5], 'rho_values': [.1]}, r'--rho-values needs a value for each .*got \[0.1\] for \[3, 5\]'),
    ({'rho_milestones': [5, 3], 'rho_values': [.1, .2]}, 'ascending --rho-milestones'),
    ({'dry_run_world_size': 4}, '--world-size belongs to --dry-run'),
    ({'global_batch_size': 0}, '--global-batch-size must be at least 1'),
    ({'cutout': -1}, '--cutout must be at least 0'),
    ({'rho_values': [float('inf')], 'rho_milestones': [1]}, '--rho-values must be at least 0 and finite'),
    ({**PACO, 'layer_decay': .7}, '--loss paco trains a projection .*--layer-decay'),
    ({'opt': 'samsgd', 'grad_checkpointing': True}, '--opt samsgd freezes BatchNorm statistics'),
    ({**PACO, 'batch_size': 1}, 'give a --batch-size of at least 2'),
    ({'key_scale': [.9, .2]}, '--key-scale is the smallest and the largest share'),
    ({'key_color_jitter': [.4, .4, .4, .9]}, 'the hue of --key-color-jitter is at most 0.5'),
    ({'dry_run_world_size': 0, 'dry_run': True}, '--world-size must be at least 1'),
])
def test_contradictions_are_errors_that_name_the_flags(overrides, message):
    with pytest.raises(ValueError, match=message):
        valid(**overrides)


@pytest.mark.parametrize('overrides', [
    {}, {'drw_start_epoch': 50}, {'drw_start_epoch': 0}, {'imbalance_factor': 1}, {'rho': 0}, {'smoothing': 0},
    {'stop_epoch': 50, 'save_epochs': [1, 50]}, {'batch_size': 31, 'mixup': 0, 'cutmix': 0},
    {'loss': 'ldam', 'mixup': 0, 'cutmix': 0, 'smoothing': 0}, {'opt': 'samsgd', 'amp_dtype': 'float16', 'amp': False},
    {'opt': 'samsgd'}, {'opt': 'sgd', 'amp_dtype': 'float16'}, {'resume': 'auto', 'experiment': 'x'},
    {'drw_on': 'both', 'teacher': 'resnet32_sam'}, {'drw_on': 'cls'}, {'model_dtype': 'bfloat16'},
    {'task_loss_weight': 2, 'distill_loss_weight': 1}, PACO, {'cls_loss': 'balanced_softmax', 'drw_on': 'none'},
    {'rho_milestones': [3, 3], 'rho_values': [.1, .2]}, {'dry_run_world_size': 4, 'dry_run': True},
])
def test_allowed_settings_pass(overrides):
    valid(**overrides)


@pytest.mark.parametrize('key', [
    'teacher_checkpoint', 'class_counts', 'branch_from', 'resume', 'class_map', 'initial_checkpoint',
])
def test_files_must_exist(key, tmp_path):
    path = tmp_path / 'file'
    extra = {'teacher': 'resnet32'} if key == 'teacher_checkpoint' else {}
    with pytest.raises(FileNotFoundError, match=re.escape(f"--{key.replace('_', '-')} {path}: no such file")):
        valid(**{key: str(path)}, **extra)
    path.touch()
    valid(**{key: str(path)}, **extra)


def test_on_and_off_need_no_quotes_in_a_file(tmp_path):
    file = tmp_path / 'plain.yaml'
    for word in ('off', 'on', "'off'"):
        file.write_text(f'auto_speed: {word}\n')
        assert parse_args(['-c', str(file)]).auto_speed == word.strip("'")
    file.write_text('auto_speed: fast\n')
    with pytest.raises(ValueError, match="'fast' is not one of on, graph, off"):
        parse_args(['-c', str(file)])
