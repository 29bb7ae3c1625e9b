"""Recipes: every file holds, names what exists, and comes to the published figures in a dry run."""
import re
from pathlib import Path

import pytest
import timm
import torch
import yaml
from timm.optim import list_optimizers
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

import timm_deitlt
from timm_deitlt.benchmarks import BENCHMARKS
from timm_deitlt.optim.rho_schedule import rho_schedule
from timm_deitlt.run.dry_run import dry_run
from timm_deitlt.run.settings import resolve_settings
from timm_deitlt.run.teacher_settings import IRRELEVANT_SETTINGS, split_name, teacher_args
from timm_deitlt.settings.checks import validate_args
from timm_deitlt.settings.layers import TEACHER_RECIPES, load_recipe, parse_args, recipe_names, recipes_for, resolve

RECIPES = Path(timm_deitlt.__file__).parent / 'recipes'
PATHS = sorted(RECIPES.rglob('*.yaml'))
# Folder of the named runs: classes, images, global batch, epochs, DRW start, peak rate, updates an epoch by METHOD 2,
# then the first and the last class weight where the counts follow from the protocol
PUBLISHED = {
    'cifar10_if100': (10, 12_406, 1024, 1200, 1100, 2.5e-4, 12, .0506, 3.993),
    'cifar10_if50': (10, 13_996, 1024, 1200, 1100, 2.5e-4, 14, .0890, 3.521),
    'cifar100_if100': (100, 10_847, 1024, 1200, 1100, 2.5e-4, 11, .0449, 4.378),
    'cifar100_if50': (100, 12_608, 1024, 1200, 1100, 2.5e-4, 13, .0789, 3.849),
    'imagenet_lt': (1000, 115_846, 2048, 1400, 1200, 5e-4, 57, None, None),
    'inat18': (8142, 437_513, 2048, 1000, 900, 5e-4, 214, None, None),
}
STUDENTS = (
    'deit_lt_base', 'deit_lt_small', 'deit_lt_tiny', 'deit_lt_base_ldam', 'deit_lt_base_balanced',
    'deit_lt_base_released', 'vit_base', 'vit_drw_base', 'deit_base', 'deit_labels_base',
)
SMALL_DATA = {f'{folder}/small_data': f'lt/{folder}' for folder in ('cifar10', 'cifar100', 'digits', 'fashion_mnist')}
TEACHERS = {'teacher_ldam_sam': 'ldam_sam', 'teacher_paco_sam': 'paco_sam'}
NAMED = [f'{folder}/{name}' for folder in PUBLISHED for name in (*STUDENTS, *TEACHERS)]


def name_of(path):
    return path.relative_to(RECIPES).with_suffix('').as_posix()


def launched(path):
    """Words of the launch command in a recipe's head comment."""
    command, = re.findall(r'^# Launch: python train.py (.*)$', path.read_text(), re.M)
    return command.split()


def test_every_recipe_parses_and_opens_with_a_head_comment():
    names = [name_of(path) for path in PATHS]
    assert len(names) > 90 and recipe_names() == sorted(names) and set(NAMED) | {'own_data'} <= set(names)
    for path, name in zip(PATHS, names, strict=True):
        head = re.match(r'(# .*\n)+', path.read_text()).group()
        assert head.count('\n') >= 3 and '\n# Launch: python train.py ' in head and '\n# Source: ' in head, name
        recipe = load_recipe(name)
        written = set(yaml.safe_load(path.read_text())) - {'base', 'needs', 'rules'}
        assert recipe.is_recipe and set(recipe.values) == written
        assert max(map(len, path.read_text().splitlines())) <= 121, name


def test_launch_command_in_every_recipe_is_valid_and_uses_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'OUT').touch()
    for path in PATHS:
        args = parse_args(launched(path))
        validate_args(args)
        used = set(args.sources.values())
        if args.teacher not in ('none', 'labels'):
            settings = teacher_args(args, 10 ** 5)
            validate_args(settings)
            used |= set(settings.sources.values())
        assert name_of(path) in used


def test_recipes_name_only_what_exists():
    for name in recipe_names():
        recipe = load_recipe(name)
        values, followed = recipe.values, [rule.values for lines in recipe.rules for rule in lines]
        assert values.get('opt', 'adamw') in {'samsgd', 'samadamw', *list_optimizers()}, name
        named_run = name in ('own_data', *SMALL_DATA) or name.split('/')[1] in (*STUDENTS, *TEACHERS)
        assert bool({'model', 'dataset', 'teacher'} & set(values)) == named_run and 'data_dir' not in values, name
        if named_run:
            models = [each['model'] for each in (values, *followed) if 'model' in each]
            assert models and all(map(timm.is_model, models)), name
            assert values.get('dataset', 'lt/digits') in BENCHMARKS, name
            if values.get('teacher', 'none') not in ('none', 'labels'):
                assert split_name(values['teacher']), name


@pytest.mark.parametrize('name', NAMED)
def test_recipes_of_the_paper_have_none_of_what_is_for_small_data(name):
    args = parse_args(['-c', name, '--teacher-checkpoint', 'OUT'] if name.endswith('released') else ['-c', name])
    off = dict(
        guidance=0, dense_distill=0, init=None, logit_standardize=False, muon_hidden_only=False, aug_ramp=0,
        fusion='mean')
    assert {key: vars(args)[key] for key in off} == off and 'muon' not in args.opt


@pytest.mark.parametrize('name', SMALL_DATA)
def test_recipes_for_small_data_have_the_same_levers_and_the_shape_of_their_images(name):
    levers, args = load_recipe('default/small_data').values, parse_args(['-c', name])
    assert {key: vars(args)[key] for key in levers} == levers and args.teacher == 'resnet32_sam'
    benchmark = BENCHMARKS[args.dataset]
    assert args.dataset == SMALL_DATA[name] and (tuple(args.mean), tuple(args.std)) == (benchmark.mean, benchmark.std)
    assert args.img_size == (28 if name.startswith('fashion') else 32) and args.model_kwargs['patch_size'] == 4


@pytest.mark.parametrize('benchmark', BENCHMARKS.values(), ids=BENCHMARKS)
def test_recipes_of_a_benchmark_are_there_and_use_its_statistics(benchmark):
    teacher = load_recipe(f'{benchmark.recipe}/teacher').values
    student = load_recipe(f'{benchmark.recipe}/student').values
    assert (tuple(teacher['mean']), tuple(teacher['std'])) == (benchmark.mean, benchmark.std)
    if student['img_size'] != 224:  # the paper's students use ImageNet's
        assert (tuple(student['mean']), tuple(student['std'])) == (benchmark.mean, benchmark.std)
    for kind in ('student', 'teacher'):
        validate_args(resolve({}, recipes_for(benchmark.name, kind)))
    for kind in TEACHER_RECIPES:
        validate_args(resolve({}, recipes_for(benchmark.name, 'teacher', kind)))


# Learning rates and radii, epoch by epoch

def rates_of(args):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.lr)
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args))
    rates = []
    for epoch in range(epochs):
        scheduler.step(epoch)
        rates.append(optimizer.param_groups[0]['lr'])
    return rates


def test_cifar_teacher_follows_the_published_schedule():
    # Linear over 5 epochs to .1, a hundredth of it after 160 epochs and again after 180.
    args = resolve({}, recipes_for('lt/cifar10', 'teacher'))
    rates = rates_of(args)
    assert rates == pytest.approx([.02, .04, .06, .08] + [.1] * 156 + [1e-3] * 20 + [1e-5] * 20)
    assert (args.momentum, args.weight_decay, args.filter_bias_and_bn, args.batch_size) == (.9, 2e-4, False, 128)
    assert (args.drw_start_epoch, args.ldam_margin, args.ldam_scale, args.rho) == (160, .5, 30, .8)


def test_cifar_paco_teacher_follows_the_published_schedule():
    # Tenths of .05 over 10 epochs, then a tenth after epoch 320 and again after epoch 360, both counted from 0.
    args = resolve({}, recipes_for('lt/cifar100', 'teacher', 'paco'))
    rates = rates_of(args)
    assert rates == pytest.approx(
        [.005 * (epoch + 1) for epoch in range(10)] + [.05] * 311 + [.005] * 40 + [.0005] * 39)
    assert (args.weight_decay, args.batch_size, args.loss, args.classifier) == (5e-4, 128, 'paco', 'linear')
    assert (args.paco_alpha, args.paco_temperature, args.paco_queue, args.paco_dim) == (.01, .05, 1024, 32)


@pytest.mark.parametrize('dataset, lr, decay', [('lt/imagenet', .2, 2e-4), ('lt/inat18', .1, 1e-4)])
def test_resnet50_ldam_sam_teacher_is_the_published_one(dataset, lr, decay):
    args = resolve({}, recipes_for(dataset, 'teacher', 'sam'))
    rates = rates_of(args)
    assert (rates[0], args.weight_decay, args.global_batch_size) == (lr, decay, 256) and rates[-1] < .001 * lr
    assert (args.epochs, args.drw_start_epoch, args.ldam_margin, args.ldam_scale) == (90, 60, .3, 30)
    rho = rho_schedule(resolve_settings(args, planned=True).optimizer)
    assert [rho(epoch, 0) for epoch in range(90)] == [.05] * 5 + [.1] * 55 + [.5] * 30  # 1-based: to 5, to 60, to 90
    assert (args.train_crop_mode, args.color_jitter, args.img_size) == ('rrc', .4, 224)


@pytest.mark.parametrize('dataset', ['lt/imagenet', 'lt/inat18'])
def test_resnet50_paco_sam_teacher_is_the_published_one_with_our_radius(dataset):
    args = resolve({}, recipes_for(dataset, 'teacher', 'paco_sam'))
    assert (args.epochs, args.global_batch_size, args.batch_size, args.lr) == (400, 128, 32, .02)
    assert (args.paco_alpha, args.paco_temperature, args.paco_queue, args.paco_dim) == (.05, .2, 8192, 128)
    assert (args.aa, args.force_color_jitter, args.cutout) == ('rand-m10-n2-mstd0.5', True, None)
    assert (args.opt, args.rho) == ('samsgd', .05)
    assert rho_schedule(resolve_settings(args, planned=True).optimizer) is None
    rates = rates_of(args)
    assert rates[:10] == pytest.approx([.002 * (epoch + 1) for epoch in range(9)] + [rates[9]]) and rates[9] > .0199


def test_plain_student_recipe_has_the_papers_rate_for_its_batch():
    args = resolve({}, ['default/student'])
    assert args.lr_base * 128 * 2 / args.lr_base_size == pytest.approx(2.5e-4)


# Named runs

@pytest.mark.parametrize('folder', PUBLISHED)
@pytest.mark.parametrize('file, kind', TEACHERS.items())
def test_teacher_recipe_trains_what_the_students_recipe_asks_for(folder, file, kind):
    size = 32 if folder.startswith('cifar') else 50
    student = parse_args(['-c', f'{folder}/deit_lt_base', '--teacher', f'resnet{size}_{kind}'])
    by_name, alone = teacher_args(student, PUBLISHED[folder][1]), parse_args(['-c', f'{folder}/{file}'])
    differing = {name for name, value in vars(by_name).items() if getattr(alone, name) != value}
    assert differing <= IRRELEVANT_SETTINGS, differing


@pytest.mark.parametrize('devices', [1, 2, 4, 8])
@pytest.mark.parametrize('folder', PUBLISHED)
def test_dry_run_meets_every_published_figure_on_any_number_of_devices(folder, devices):
    classes, images, batch, epochs, start, lr, updates, first, last = PUBLISHED[folder]
    result = dry_run(parse_args(['-c', f'{folder}/deit_lt_tiny', '--dry-run', '--world-size', str(devices)]))
    assert result['train_images'] == images and result['updates_per_epoch'] == updates
    assert result['global_batch_size'] == batch
    assert result['batch_size'] * result['grad_accum_steps'] * result['world_size'] == batch
    assert (result['epochs'], result['warmup_epochs']) == (epochs, 5)
    assert (result['drw_start_epoch'], result['drw_start_update']) == (start, start * updates)
    assert result['peak_lr'] == pytest.approx(lr, rel=1e-3) and result['final_lr'] == pytest.approx(1e-5, rel=1e-3)
    if first is None:
        assert result['class_counts'] is result['class_weight_first'] is None
        assert BENCHMARKS[result['data']].files['train'][0] in result['needs']
    else:
        assert result['needs'] is None and len(result['class_counts']) == classes
        assert sum(result['class_counts']) == images
        assert float(f"{result['class_weight_first']:.4f}") == first
        assert float(f"{result['class_weight_last']:.3f}") == last


@pytest.mark.parametrize('name', [
    name for name in NAMED if name.startswith('cifar10_if50/') or name.split('/')[1] in TEACHERS])
def test_named_runs_have_a_dry_run(name, tmp_path):
    (tmp_path / 'OUT').touch()
    released = ['--teacher-checkpoint', str(tmp_path / 'OUT')] if 'released' in name else []
    depth = [] if name.split('/')[1] in TEACHERS else ['--model-kwargs', 'depth=1']
    result = dry_run(parse_args(['-c', name, '--dry-run', *depth, *released]))
    assert result['recipe'] == name and result['updates_per_epoch'] > 0 and result['memory_gib'] > 0
    teacher = result['teacher'] or {}
    if 'deit_lt' in name:
        assert (teacher['normalize'], teacher['antialias']) == (
            ('student', False) if 'released' in name else ('own', True))


def test_base_model_has_the_published_number_of_parameters():
    assert dry_run(parse_args(['-c', 'cifar100_if100/deit_lt_base', '--dry-run']))['parameters'] == 85_953_992
