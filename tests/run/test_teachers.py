"""Teachers by name: their settings, the cache and its key, files, and that it does not matter where one comes from."""
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import timm
import torch
from conftest import TINY, TINY_TEACHER, ends_it_after, run_script
from helpers import CPU, asked, settings_of
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers import set_fused_attn
from torch import nn

from timm_deitlt.engine.meter import NonFiniteLossError
from timm_deitlt.models.cosine import CosineLinear
from timm_deitlt.run import teacher_settings as teachers
from timm_deitlt.run import train as run
from timm_deitlt.run import train_teacher as teach
from timm_deitlt.run.build.data import build_data
from timm_deitlt.run.build.trainer import build_trainer
from timm_deitlt.run.settings import NO_NETWORK, resolve_settings
from timm_deitlt.run.teacher_cache import cache_folder, cached_or_trained
from timm_deitlt.run.teacher_settings import cache_key, key_sha256, split_name, teacher_args
from timm_deitlt.run.validate import validate
from timm_deitlt.settings.checks import validate_args
from timm_deitlt.settings.flags import FLAGS
from timm_deitlt.settings.layers import load_recipe, parse_args

AUGMENTATION = (
    '--no-aug', '--train-crop-mode rkrc', '--scale .1 .2', '--ratio 1 1', '--hflip .7', '--vflip .7',
    '--color-jitter .3', '--color-jitter-prob .5', '--grayscale-prob .1', '--gaussian-blur-prob .1',
    '--aa rand-m9-mstd0.5-inc1', '--aug-repeats 3', '--reprob .7', '--remode const', '--recount 2', '--mixup .1',
    '--cutmix .1', '--cutmix-minmax .2 .4', '--mixup-prob .9', '--mixup-switch-prob .1', '--mixup-mode pair',
    '--mixup-off-epoch 1', '--smoothing .3', '--train-interpolation nearest')
OUR_AUGMENTATION = ('--cutout 5', '--force-color-jitter', '--augment-backend opencv')


def resolve(*argv, **kwargs):
    """The teacher as train.py finds or trains it."""
    return found(asked('--teacher-epochs', '1', *argv, **kwargs))


def found(args):
    settings = resolve_settings(args)
    return teach.resolve_teacher(settings, build_data(settings))


@pytest.fixture
def key_of(monkeypatch):
    """The key that train.py looks for in the cache."""
    monkeypatch.setattr(teach, 'cached_or_trained', lambda asked, key, **_: key)
    return lambda *argv, **kwargs: found(asked(*argv, **kwargs))


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO)
    return lambda: caplog.text


def image_folder(path, classes=('ant', 'bee', 'cat'), images=6):
    for label, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for i in range(images):
            Image.new('RGB', (16, 16), (80 * label, 10 * i, 100)).save(path / name / f'{i}.png')
    return path


# Names and settings

@pytest.mark.parametrize('name, expected', [
    ('resnet32', ('resnet32_cifar', 'plain')),
    ('resnet32_sam', ('resnet32_cifar', 'sam')),
    ('resnet32_strong', ('resnet32_cifar', 'strong')),
    ('resnet32_strong_drw', ('resnet32_cifar', 'strong_drw')), ('resnet32_weak_drw', ('resnet32_cifar', 'weak_drw')),
    ('resnet32_cifar_sam', ('resnet32_cifar', 'sam')),
    ('resnet18_sam', ('resnet18', 'sam')),
    ('resnet18.a1_in1k', ('resnet18.a1_in1k', 'plain')),
])
def test_name_is_an_architecture_and_a_recipe(name, expected):
    assert split_name(name) == expected


@pytest.mark.parametrize('name, near', [
    ('resnet32_smm', 'resnet32_sam'),
    ('resnt32_sam', 'resnet32_sam'),
    ('resnet32_strong_dwr', 'resnet32_strong_drw'),
    ('resnet_18_sam', 'resnet18_sam'),
    ('lables', 'labels'),
])
def test_unknown_name_brings_up_near_ones(name, near):
    with pytest.raises(ValueError, match=f'Unknown teacher {name!r}. Did you mean .*{near}') as error:
        split_name(name)
    assert '_strong_drw' in str(error.value) and 'labels' in str(error.value)


def test_recipes_of_data_set_and_kind_are_layered_under_the_data_of_the_student():
    args = asked('--seed', '7', '--lr', '1', '--epochs', '9')
    settings = teacher_args(args, 568)
    digits = load_recipe('digits/teacher').values
    assert settings.sources['opt'] == 'teachers/sam' and settings.opt == 'samsgd'
    assert settings.sources['lr'] == 'digits/teacher' and settings.lr == digits['lr']
    assert settings.sources['ldam_scale'] == 'default/teacher' and settings.loss == 'ldam'
    assert (settings.epochs, settings.batch_size, settings.img_size) == (
        digits['epochs'], digits['batch_size'], digits['img_size'])
    assert (settings.model, settings.teacher, settings.seed) == ('resnet20_cifar', 'none', 7)
    assert (settings.n_max, settings.imbalance_factor) == (40, 4)


def test_teacher_epochs_stretch_its_drw_start_and_milestones():
    recipe = teacher_args(asked(), 568)
    twice = teacher_args(asked('--teacher-epochs', 2 * recipe.epochs), 568)
    assert twice.epochs == 2 * recipe.epochs and twice.drw_start_epoch == 2 * recipe.drw_start_epoch
    assert twice.decay_milestones == [2 * (epoch - 1) + 1 for epoch in recipe.decay_milestones]


def test_teacher_rho_is_the_radius_of_a_sam_teacher_in_every_epoch():
    settings = teacher_args(asked('--teacher-rho', '.3', '--rho', '.7'), 568)
    assert (settings.opt, settings.rho, settings.rho_milestones) == ('samsgd', .3, [])
    with pytest.raises(ValueError, match='resnet20 is trained by momentum: give --teacher resnet20_sam'):
        teacher_args(asked('--teacher-rho', '.3', teacher='resnet20'), 568)


def test_sam_every_reaches_a_sam_teacher_and_its_key_where_it_is_asked_for(key_of):
    assert teacher_args(asked('--sam-every', '4'), 568).sam_every == 4
    assert 'sam_every' not in key_of()['settings'], 'it is younger than the teachers that are cached'
    assert key_of('--sam-every', '4')['settings']['sam_every'] == 4
    with pytest.raises(ValueError, match='resnet20 is trained by momentum and the student by adamw: give --teacher'):
        teacher_args(asked('--sam-every', '4', teacher='resnet20'), 568)
    plain = teacher_args(asked('--sam-every', '4', '--opt', 'samadamw', teacher='resnet20'), 568)
    assert plain.sam_every == 1
    validate_args(plain)


def test_strong_teacher_is_trained_with_the_augmentation_and_mixing_of_the_student():
    flags = [
        '--aa', 'rand-m7-mstd0.5-inc1', '--scale', '.3', '.9', '--mixup', '.3', '--cutmix', '.7', '--smoothing', '.2']
    args = asked(*flags, teacher='resnet20_strong')
    settings = teacher_args(args, 568)
    for flag in (*AUGMENTATION, *OUR_AUGMENTATION):
        name = flag.split()[0].removeprefix('--').replace('-', '_')
        assert getattr(settings, name) == getattr(args, name), name
    # a crop that the student leaves to timm is not the padded one of the weak recipe
    assert settings.train_crop_mode is None and load_recipe('default/teacher').values['train_crop_mode'] == 'pad'
    assert (settings.loss, settings.drw_on, settings.keep_mixup_drw) == ('ce', 'none', True)
    ramp = ('--aug-ramp', '12', '--epochs', '18', '--teacher-epochs', '30')
    assert teacher_args(asked(*flags, *ramp, teacher='resnet20_strong'), 568).aug_ramp == 20, 'two thirds of its epochs'
    weak = teacher_args(asked(*flags), 568)
    assert (weak.aa, weak.mixup, weak.cutmix, weak.smoothing, weak.train_crop_mode) == (None, 0, 0, 0, 'pad')


def test_balanced_strong_teacher_is_the_strong_one_with_drw():
    plain, drw = (teacher_args(asked(teacher=f'resnet20_{kind}'), 568) for kind in ('strong', 'strong_drw'))
    differing = {name for name, value in vars(plain).items() if getattr(drw, name) != value} - {'sources'}
    assert differing == {'drw_on', 'keep_mixup_drw'} and drw.drw_on == 'cls'


def test_small_data_without_a_recipe_get_a_smaller_batch_at_a_linear_rate(tmp_path):
    args = asked('--data-dir', image_folder(tmp_path / 'data'))
    args.dataset = ''
    published = load_recipe('default/teacher').values
    for images, batch_size in ((12, 16), (600, 32), (1100, 64), (10 ** 6, 128)):
        settings = teacher_args(args, images)
        assert settings.batch_size == batch_size
        assert settings.lr / published['lr'] == settings.warmup_lr / published['warmup_lr'] == batch_size / 128


def test_grey_images_get_a_grey_teacher():
    for flags in (['--in-chans', '1'], ['--input-size', '1', '16', '16']):
        assert teacher_args(asked(*flags), 568).in_chans == 1


# The key of the cache

def test_settings_of_the_teacher_are_in_the_key(key_of):
    key = key_of()
    assert set(load_recipe('default/teacher').values) - {'crop_pct'} <= set(key['settings'])
    assert json.loads(json.dumps(key)) == key, 'it survives the file'
    assert key == key_of()


@pytest.mark.parametrize('flags', [
    '--seed 1', '--split-seed 1', '--n-max 30', '--imbalance-factor 3', '--imbalance-profile step',
    '--val-fraction .2', '--in-chans 1', '--teacher-epochs 2', '--teacher-rho .3', '--teacher resnet20',
    '--teacher resnet32_sam', '--amp', '--amp --amp-dtype float16 --teacher resnet20'])
def test_what_matters_changes_the_key(key_of, flags):
    plain = key_of(*(['--teacher', 'resnet20'] if 'float16' in flags else []))
    assert key_of(*flags.split()) != plain


@pytest.mark.parametrize('name, value', [
    ('rho', .3), ('epochs', 31), ('lr', .11), ('weight_decay', 1e-3), ('momentum', .8), ('batch_size', 8),
    ('drw_start_epoch', 2), ('drw_on', 'none'), ('ldam_margin', .4), ('loss', 'ce'), ('classifier', 'linear'),
    ('mean', [.5]), ('std', [.5]), ('img_size', 28), ('decay_milestones', [3]), ('aa', 'rand-m9'), ('opt', 'samadamw'),
    ('channels_last', False), ('model_kwargs', {'cosine': True}), ('seed', 1)])
def test_every_setting_of_its_training_changes_the_key(name, value):
    settings = teacher_args(asked(), 568)
    images = timm.get_pretrained_cfg('resnet20_cifar').to_dict()
    flags = vars(settings)
    assert cache_key(flags, 'data', ('a', 'b'), images, 'float32') != cache_key(
        {**flags, name: value}, 'data', ('a', 'b'), images, 'float32')


def test_key_of_the_same_teacher_stays_the_same():
    """If this fails, teachers that users have cached are trained again: see FORMAT and YOUNGER_SETTINGS."""
    images = dict(input_size=(3, 32, 32), mean=(.5, .5, .5), std=(.5, .5, .5), interpolation='bicubic')
    key = cache_key(vars(teacher_args(asked(), 568)), 'data', ('a', 'b'), images, 'float32')
    assert key_sha256(key)[:16] == 'ae603949121df4d0'


def test_data_classes_images_precision_and_format_change_the_key(monkeypatch):
    images = timm.get_pretrained_cfg('resnet20_cifar').to_dict()
    same = dict(data_fingerprint='data', class_names=('a', 'b'), images=images, precision='float32')
    settings = vars(teacher_args(asked(), 568))
    key = cache_key(settings, **same)
    for change in (
            {'data_fingerprint': 'other'}, {'class_names': ('b', 'a')}, {'images': {**images, 'mean': (.5, .5, .5)}},
            {'images': {**images, 'std': (.5, .5, .5)}}, {'images': {**images, 'input_size': (3, 64, 64)}},
            {'precision': 'bfloat16'}):
        assert cache_key(settings, **{**same, **change}) != key, change
    monkeypatch.setattr(teachers, 'FORMAT', teachers.FORMAT + 1)
    assert cache_key(settings, **same) != key


@pytest.mark.parametrize('flags', [
    '--output o --experiment e', '--workers 3 --pin-mem', '--lr 1 --opt lamb --weight-decay .3 --clip-grad 1',
    '--epochs 7 --model-ema', '--model deit_lt_small --drop-path .3', '--teacher-view weak --no-teacher-antialias',
    '--teacher-normalize student', '--opt samadamw --rho .4', '--drw-start-epoch 3 --drw-on both --keep-mixup-drw',
    '--kd-temperature 2 --kd-token-distill-type soft --task-loss-weight .2', '--img-size 32 --batch-size 8',
    '--teacher-cache c', '--mean .1 --std .2', '--log-interval 3 --log-tensorboard --save-images --no-report',
    '--save-epochs 2', '--classifier linear --loss ce', '--val-interval 2 -vb 7', '--grad-accum-steps 2',
    '--model-dtype float32'])
def test_what_only_concerns_the_student_leaves_the_key(key_of, flags):
    assert key_of(*flags.split()) == key_of()


def test_a_default_given_in_words_leaves_the_key(key_of):
    args = ['--n-max', '140', '--imbalance-factor', '10']
    keys = []
    for flags in (args, [*args, '--imbalance-profile', 'exp', '--split-seed', '0']):
        keys.append(key_of(*flags))
    defaults = parse_args(['--teacher', 'resnet20_sam', '--no-amp'])
    defaults.device = 'cpu'
    keys.append(found(defaults))
    assert keys[0] == keys[1] == keys[2]


def test_augmentation_of_the_student_is_in_the_key_of_a_strong_teacher_only(key_of):
    group = FLAGS['Augmentation and regularization parameters']
    listed = {flag.split()[0] for flag in AUGMENTATION}
    losses = {name for names, _, _ in group for name in names if name.startswith(('--bce', '--drop'))}
    assert listed == {name for names, _, _ in group for name in names} - losses, 'a new flag belongs into the list'
    weak, strong = key_of(), key_of(teacher='resnet20_strong')
    for flags in (*AUGMENTATION, *OUR_AUGMENTATION):
        assert key_of(*flags.split()) == weak, flags
        assert key_of(*flags.split(), teacher='resnet20_strong') != strong, flags


def test_the_place_of_the_data_leaves_the_key_and_their_names_do_not(key_of, tmp_path):
    def key(folder, **kwargs):
        folder = image_folder(tmp_path / folder, **kwargs)
        return found(parse_args([
            '--data-dir', str(folder), '--teacher', 'resnet20_sam', '--no-amp', '--device', 'cpu']))
    assert key('here') == key('there')
    assert key('renamed', classes=('ant', 'bee', 'dog')) != key('here2')


# The cache

KEY = {'format': 1, 'data': 'images', 'class_names': ['a', 'b'], 'precision': 'float32', 'settings': {'lr': .1}}


def never(path):
    raise AssertionError('it is not to be trained')


def trained(path):
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, 3)
    return model


def ask(cache, train=trained, key=KEY):
    return cached_or_trained(kept_in(str(cache)), key, lambda: nn.Linear(2, 2), lambda: None, train)


def kept_in(cache):
    return replace(settings_of('--teacher', 'resnet20_sam').teacher, cache=cache)


def test_trained_teacher_is_kept_and_found_again(tmp_path):
    first, second = ask(tmp_path), ask(tmp_path, never)
    assert (first.source, second.source) == ('trained', 'cache')
    assert first.path == second.path and first.path.is_file()
    assert torch.equal(second.model.weight, torch.full((2, 2), 3.)) and not second.model.training
    assert json.loads((first.path.parent / 'teacher.json').read_text()) == KEY
    assert ask(tmp_path, key={**KEY, 'data': 'others'}).source == 'trained'


def test_teacher_that_diverges_is_named_with_flags_that_reach_it(tmp_path, monkeypatch):
    def diverges(*args, **kwargs):
        raise NonFiniteLossError('The loss is not finite in epoch 0.', 'Lower --lr.')

    monkeypatch.setattr(teach, 'fit', diverges)
    with pytest.raises(NonFiniteLossError) as found:
        resolve('--teacher-cache', str(tmp_path))
    said = str(found.value)
    assert said.startswith('The training of the teacher resnet20_cifar failed. The loss is not finite in epoch 0. Use ')
    assert '--no-amp, a smaller --teacher-rho' in said and '--lr' not in said


def test_default_cache_is_in_the_home_folder(tmp_path):
    assert tmp_path / '.cache' / 'timm_deitlt' in cache_folder(kept_in(None), KEY).parents
    assert tmp_path / 'elsewhere' in cache_folder(kept_in('~/elsewhere'), KEY).parents


def tamper(folder):
    record = json.loads((folder / 'teacher.json').read_text())
    record['settings']['lr'] = .2
    (folder / 'teacher.json').write_text(json.dumps(record))


@pytest.mark.parametrize('damage, words', [
    (tamper, 'trained with other settings or data (settings differ)'),
    (lambda folder: (folder / 'teacher.json').write_text('{"format": 1'), 'is damaged'),
    (lambda folder: (folder / 'teacher.json').write_text('[]'), 'is damaged'),
    (lambda folder: os.truncate(folder / 'model.safetensors', 60), 'truncated'),
    (lambda folder: os.truncate(folder / 'model.safetensors', 0), 'truncated'),
    (lambda folder: os.remove(folder / 'model.safetensors'), 'There is no file'),
])
def test_damaged_teacher_is_refused_and_not_trained_over(tmp_path, damage, words):
    folder = ask(tmp_path).path.parent
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        ask(tmp_path, never)
    assert words in str(error.value) and f'elete the folder {folder}' in str(error.value)


def test_teacher_is_only_in_the_cache_when_it_is_complete(tmp_path):
    def interrupted(path):
        path.mkdir()
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, interrupted)
    assert ask(tmp_path).source == 'trained'


def test_cache_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='cannot be kept in .*--teacher-cache'):
        ask(tmp_path / 'file')


class Asker:
    """A process of its own that asks for a teacher; its training waits until it is told to end."""

    def __init__(self, cache, env=None):
        fork = multiprocessing.get_context('fork')
        self.training, self.may_end, self.sources = fork.Event(), fork.Event(), fork.SimpleQueue()
        self.process = fork.Process(target=self.ask, args=(cache, env or {}))
        self.process.start()

    def ask(self, cache, env):
        os.environ.update(env)

        def train(path):
            self.training.set()
            self.may_end.wait(60)
            return trained(path)
        self.sources.put(ask(cache, train).source)

    def source(self):
        self.process.join(60)
        return self.sources.get()


def test_of_two_processes_one_trains_and_the_other_waits_aloud_and_loads(tmp_path, logged):
    first = Asker(tmp_path)
    assert first.training.wait(60)
    threading.Timer(.3, first.may_end.set).start()
    assert ask(tmp_path, never).source == 'cache'
    assert first.may_end.is_set() and first.source() == 'trained'
    assert 'Another process is training the teacher resnet20_sam' in logged()


def test_lock_of_a_dead_process_does_not_block(tmp_path):
    dead = Asker(tmp_path)
    assert dead.training.wait(60)
    os.kill(dead.process.pid, signal.SIGKILL)
    dead.process.join()
    assert list(tmp_path.rglob('.lock'))
    assert ask(tmp_path).source == 'trained'


def test_first_rank_of_a_machine_trains_and_the_others_wait(tmp_path):
    other = Asker(tmp_path, {'LOCAL_RANK': '1', 'RANK': '1', 'WORLD_SIZE': '2'})
    time.sleep(.3)
    assert other.process.is_alive() and not other.training.is_set()
    assert ask(tmp_path).source == 'trained'
    assert other.source() == 'cache'


# Real teachers

@pytest.fixture(scope='module')
def digits():
    return build_data(resolve_settings(asked()))


@pytest.fixture(scope='module')
def teacher_folder(shared_teachers):
    """A cached teacher of one epoch."""
    return resolve('--teacher-cache', shared_teachers).path.parent


@pytest.fixture
def logits():
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def logits(teacher):
        return teacher.model(images)
    return logits


def train_here(folder, *argv):
    args = parse_args([
        *TINY, *TINY_TEACHER, '--epochs', '1', '--output', str(folder), '--experiment', 'run', *map(str, argv)])
    return run.train(args), torch.load(folder / 'run' / 'last.pth.tar', weights_only=False)


@pytest.mark.parametrize('name, precision', [('test_resnet_sam', '--no-amp'), ('test_vit', '--amp')])
def test_student_is_the_same_wherever_its_teacher_comes_from(name, precision, tmp_path):
    # probabilities show a change of the teacher's last bit, which its predicted classes would hide
    flags = ['--teacher', name, precision, '--kd-token-distill-type', 'soft', '--teacher-cache', tmp_path / 'cache']
    first, trained = train_here(tmp_path / 'first', *flags)
    set_fused_attn(True)  # as it is in a fresh process
    second, cached = train_here(tmp_path / 'second', *flags)
    set_fused_attn(True)
    flags += ['--teacher-cache', tmp_path / 'none', '--teacher-checkpoint', first['teacher']['path']]
    third, loaded = train_here(tmp_path / 'third', *flags)
    assert [result['teacher']['source'] for result in (first, second, third)] == ['trained', 'cache', 'file']
    assert not (tmp_path / 'none').exists()
    for result, checkpoint in ((second, cached), (third, loaded)):
        for weight, value in trained['state_dict'].items():
            assert torch.equal(value, checkpoint['state_dict'][weight]), weight
        for metrics in ('mean', 'cls', 'dist'):
            assert result[metrics] == first[metrics]
        assert result['teacher']['per_class'] == first['teacher']['per_class']


def test_teacher_file_comes_before_the_cache_and_the_cache_before_training(teacher_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(teach, 'fit', never)
    cache = ['--teacher-cache', teacher_folder.parents[1]]
    assert resolve(*cache).source == 'cache'
    assert resolve(*cache, '--teacher-checkpoint', teacher_folder / 'model.safetensors').source == 'file'
    with pytest.raises(TypeError, match='never'):
        resolve('--teacher-cache', tmp_path)


def test_killed_training_goes_on_and_gives_the_teacher_that_was_not_killed(tmp_path, logged):
    flags = ['--teacher', 'test_resnet_sam', '--teacher-epochs', '3', '--teacher-cache']
    command = [*TINY, *flags, tmp_path / 'killed', '--output', tmp_path / 'output', '--epochs', '1']
    run_script(*command, check=False, started=ends_it_after(
        signal.SIGKILL, tmp_path, 'killed/teachers/*/train/last.pth.tar'))
    killed = resolve(*flags, tmp_path / 'killed')
    assert f'Training the teacher test_resnet (samsgd, ldam) in {killed.path.parent}' in logged()
    assert 'Going on with epoch' in logged() and 'of the teacher' in logged()
    whole = resolve(*flags, tmp_path / 'whole')
    assert killed.source == whole.source == 'trained' and killed.path.parent.name == whole.path.parent.name
    assert killed.path.read_bytes() == whole.path.read_bytes()


def edit_record(folder, copy, **changes):
    copy.mkdir()
    (copy / 'model.safetensors').write_bytes((folder / 'model.safetensors').read_bytes())
    record = json.loads((folder / 'teacher.json').read_text())
    (copy / 'teacher.json').write_text(json.dumps({**record, **changes}))
    return copy / 'model.safetensors'


@pytest.mark.parametrize('changes, words', [
    ({'class_names': [str(i) for i in range(9)]}, 'knows 9 classes, but the data set has 10'),
    ({'class_names': ['0', 'II', '1', *map(str, range(3, 10))]}, "its class 1 is 'II', but in the data set it is '1'"),
    ({'class_names': ['0', '1', '1', *map(str, range(3, 10))]}, "its class 2 is '1', but in the data set it is '2'"),
    ({'data': 'others'}, 'was trained on other images'),
])
def test_teacher_of_other_data_is_refused(teacher_folder, tmp_path, changes, words):
    path = edit_record(teacher_folder, tmp_path / 'copy', **changes)
    with pytest.raises(ValueError, match=words) as error:
        resolve('--teacher-checkpoint', path)
    assert str(path) in str(error.value) and 'of this data' in str(error.value)


@pytest.mark.parametrize('flags', [['--split-seed', '1'], ['--n-max', '39'], ['--val-fraction', '.2']])
def test_teacher_that_may_know_the_evaluation_images_is_refused(teacher_folder, flags):
    with pytest.raises(ValueError, match='it may have seen the evaluation images'):
        resolve('--teacher-checkpoint', teacher_folder / 'model.safetensors', *flags)


def test_teacher_of_another_architecture_is_refused_with_its_name(teacher_folder):
    with pytest.raises(ValueError, match='architecture resnet20_cifar, not resnet32_cifar: give --teacher resnet20'):
        resolve('--teacher-checkpoint', teacher_folder / 'model.safetensors', teacher='resnet32_sam')


def test_damaged_record_beside_a_teacher_file_is_named(teacher_folder, tmp_path):
    path = edit_record(teacher_folder, tmp_path / 'copy')
    (tmp_path / 'copy' / 'teacher.json').write_text('{')
    with pytest.raises(ValueError, match=r"teacher.json' is damaged. Delete it"):
        resolve('--teacher-checkpoint', path)


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth', '.pt'])
def test_bare_weights_are_taken_with_a_warning(teacher_folder, tmp_path, suffix, caplog, logits):
    weights, path = load_file(teacher_folder / 'model.safetensors'), tmp_path / f'bare{suffix}'
    if suffix == '.safetensors':
        save_file(weights, path)
    else:
        torch.save({'state_dict': weights}, path)
    teacher = resolve('--teacher-checkpoint', path)
    assert 'does not say what it was trained on' in caplog.text
    assert teacher.source == 'file' and teacher.path == str(path)
    cached = resolve('--teacher-checkpoint', teacher_folder / 'model.safetensors')
    assert torch.equal(logits(teacher), logits(cached))


def test_bare_weights_tell_whether_their_classifier_is_linear(tmp_path):
    for classifier, kind in (({}, nn.Linear), ({'cosine': True}, CosineLinear)):
        network = timm.create_model('resnet20_cifar', num_classes=10, **classifier)
        torch.save({'state_dict': network.state_dict()}, tmp_path / 'bare.pth')
        assert type(resolve('--teacher-checkpoint', tmp_path / 'bare.pth').model.fc) is kind


def train_cnn(folder, *argv):
    return run.train(parse_args([
        '--model', 'resnet20_cifar', '--workers', '0', '--n-max', '40', '--imbalance-factor', '4', '--epochs', '1',
        '--no-amp', '--output', str(folder), '--experiment', 'cnn', *map(str, argv)]))


@pytest.mark.parametrize('flags, classifier', [
    ([], CosineLinear), (['--loss', 'ce', '--classifier', 'linear', '--img-size', '12', '--mean', '.1'], nn.Linear)])
def test_checkpoint_of_train_py_says_itself_how_its_teacher_was_made(tmp_path, flags, classifier):
    trained = train_cnn(tmp_path, *flags)
    checkpoint = tmp_path / 'cnn' / 'last.pth.tar'
    teacher = resolve('--teacher-checkpoint', checkpoint, teacher='resnet20')
    assert type(teacher.model.fc) is classifier
    assert teacher.model.pretrained_cfg['input_size'] == ((3, 12, 12) if flags else (3, 16, 16))
    result, _ = train_here(tmp_path, '--teacher', 'resnet20', '--teacher-checkpoint', checkpoint)
    assert result['teacher']['source'] == 'file' and result['teacher']['path'] == str(checkpoint)
    assert result['teacher']['per_class'] == trained['cls']['per_class']


def test_teacher_file_needs_no_weights_that_its_training_started_from(tmp_path, monkeypatch):
    start = timm.create_model('resnet20_cifar', num_classes=10, cosine=True)
    torch.save(start.state_dict(), tmp_path / 'start.pth')
    trained = train_cnn(
        tmp_path, '--img-size', '16', '--classifier', 'linear', '--model-kwargs', 'cosine=True', '--initial-checkpoint',
        tmp_path / 'start.pth')
    (tmp_path / 'start.pth').unlink()
    teacher = resolve('--teacher-checkpoint', tmp_path / 'cnn' / 'last.pth.tar', teacher='resnet20')
    assert teacher.source == 'file'
    again = validate(str(tmp_path / 'cnn'), {})
    assert again['cls']['per_class'] == trained['cls']['per_class']


def test_any_timm_model_is_a_teacher_with_a_cosine_classifier(tmp_path, digits):
    teacher = resolve('--teacher-cache', tmp_path, teacher='test_resnet_sam')
    assert isinstance(teacher.model.get_classifier(), CosineLinear)
    assert teacher.logit_scale == 30 and teacher.model.num_classes == digits.train.num_classes


def test_teacher_sees_images_of_its_own_size_and_statistics(teacher_folder, digits):
    settings = resolve_settings(asked('--mean', '.1', '--std', '.2'))
    teacher = resolve('--teacher-cache', teacher_folder.parents[1])
    trainer = build_trainer(settings, digits, teacher.model, CPU)
    images = torch.zeros(2, 3, 24, 24)
    view = trainer.task.teacher_view(images)
    assert view.shape == (2, 3, 16, 16)
    mean, std = (teacher.model.pretrained_cfg[name][0] for name in ('mean', 'std'))
    assert torch.allclose(view, torch.full_like(view, (.1 - mean) / std), atol=1e-5)


def test_the_scale_of_its_loss_reaches_the_distillation(teacher_folder, tmp_path, monkeypatch):
    def stop(*args):
        raise RuntimeError(f'the student is given scale {args[-1]}')

    monkeypatch.setattr(run, 'build_trainer', stop)
    with pytest.raises(RuntimeError, match='scale 30.0'):
        run.train(asked(
            '--teacher-epochs', '1', '--teacher-cache', teacher_folder.parents[1], '--output', tmp_path,
            '--ldam-scale', '7'))
    with pytest.raises(RuntimeError, match='scale 1.0'):
        run.train(asked('--output', tmp_path, teacher='none'))


def test_grey_teacher_and_student_train_on_one_channel(tmp_path):
    flags = ['--in-chans', '1', '--teacher', 'test_resnet_sam', '--teacher-cache', tmp_path]
    result, checkpoint = train_here(tmp_path, *flags)
    assert checkpoint['state_dict']['patch_embed.proj.weight'].shape[1] == 1
    first = timm.get_pretrained_cfg('test_resnet').first_conv
    assert load_file(result['teacher']['path'])[f'{first}.weight'].shape[1] == 1


@pytest.mark.parametrize('word', NO_NETWORK)
def test_words_for_no_network_give_no_teacher(word):
    assert resolve(teacher=word) is None
