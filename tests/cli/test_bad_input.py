"""Bad input: one clear line and exit code 2 before anything is trained; and a folder of one's own, which is good."""
import json
import logging
import re
import resource
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, TINY_TEACHER, run_script
from helpers import settings_of
from PIL import Image
from torch.utils.data import IterableDataset

from timm_deitlt.cli.commands import guarded, train_main, validate_main
from timm_deitlt.data.long_tail import UnreadableImageError
from timm_deitlt.run import train as run
from timm_deitlt.run.build import data as build_data
from timm_deitlt.run.validate import validate
from timm_deitlt.settings.layers import parse_args

SUBSET = TINY.index('--n-max')
# the tiny student without the subset of the digits
MODEL = [*TINY[:SUBSET], *TINY[SUBSET + 4:]]
TINY_PARAMETERS = 67_268


def image_folder(path, **images):
    """A folder of folders: number of images by class name."""
    path.mkdir(parents=True, exist_ok=True)
    for label, (name, count) in enumerate(images.items()):
        (path / name).mkdir(parents=True)
        for i in range(count):
            Image.new('RGB', (16, 16), (70 * label, 10 * i, 100)).save(path / name / f'{i}.png')
    return path


def one_line(stderr, prog='train.py'):
    lines = stderr.splitlines()
    assert sum(line.startswith(f'{prog}: error: ') for line in lines) == 1 and lines[-1].startswith(prog), stderr
    assert 'Traceback' not in stderr
    return lines[-1].removeprefix(f'{prog}: error: ')


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """The message of a run that ends before anything is trained or written."""
    def trains(*args, **kwargs):
        raise AssertionError('this run trains')
    monkeypatch.setattr(run, 'fit', trains)
    output = tmp_path / 'output'

    def refused(*argv, base=TINY):
        with pytest.raises(SystemExit) as error:
            train_main([*map(str, [*base, '--output', output, '--teacher-cache', tmp_path / 'teachers', *argv])])
        assert error.value.code == 2
        assert not output.exists() and not list(tmp_path.glob('teachers/**/*.safetensors'))
        captured = capsys.readouterr()
        assert captured.out == '' and len(captured.err.splitlines()) == 1
        return one_line(captured.err)
    return refused


@pytest.mark.parametrize('flags, words', [
    # names
    ('--model deit_lt_tny', "Unknown model 'deit_lt_tny'; did you mean deit_lt_tiny"),
    ('--model resnet18.nonsense', r'timm cannot make resnet18.nonsense .*Invalid pretrained tag'),
    ('--teacher resnet32_smm', "Unknown teacher 'resnet32_smm'. Did you mean .*resnet32_sam"),
    ('--teacher resnet18.nonsense_sam', 'timm cannot make resnet18.nonsense .*Invalid pretrained tag'),
    ('--dataset lt/digts', "Unknown data set 'lt/digts'; did you mean lt/digits"),
    ('--dataset digits', "Unknown data set 'digits'; did you mean lt/digits"),
    ('--dataset torch/cifar11 --data-dir .', "Unknown data set 'torch/cifar11'; did you mean torch/cifar10"),
    ('--opt adamww', "Unknown optimizer 'adamww'; did you mean adamw"),
    ('--sam-every 2', '--sam-every 2 belongs to SAM; use --opt samsgd'),
    ('--sam-every 2 --teacher resnet20', '--sam-every belongs to SAM, but resnet20 is trained by momentum'),
    ('--opt samsdg --teacher resnet20_sam', "Unknown optimizer 'samsdg'; did you mean samsgd"),
    # flags
    ('--tta 1', '--tta is not supported: .*--crop-pct'),
    ('--epoch 3', 'unknown argument --epoch; did you mean --epochs'),
    ('--epochs three', "argument --epochs: invalid int value: 'three'"),
    ('--epochs 0', '--epochs must be at least 1, got 0'),
    ('--model-kwargs emb_dim=48', "timm cannot make deit_lt_tiny .*keyword argument 'emb_dim'.*--model-kwargs"),
    ('--model-kwargs num_heads=5', 'timm cannot make deit_lt_tiny .*divisible.*--model-kwargs'),
    ('--gp avg', 'timm cannot make deit_lt_tiny .*distilled head.*--gp'),
    ('--model resnet18 --model-kwargs output_stride=7', 'make resnet18 .*"assert output_stride .*" does not hold'),
    ('--opt-kwargs fooo=1 --teacher resnet20_sam', "timm cannot make the optimizer .*'fooo'.*--opt-kwargs"),
    ('--aa rnad-m9 --teacher resnet20_sam', 'timm cannot make the training transform .*--aa rnad-m9'),
    ('--train-img-sizes 16 20 --teacher resnet20_sam', '20 x 20 do not divide .*multiple of 8 as --train-img-sizes'),
    ('--train-img-sizes 8 16 --train-size-probs 1', r'--train-size-probs needs a weight for each .*\[1.0\] for '),
    ('--train-img-sizes 8 16 --train-size-probs 0 0', '--train-size-probs needs a weight .*a finite sum above 0'),
    ('--train-size-probs 1 2', '--train-size-probs needs a weight for each'),
    ('--train-size-schedule progressive', 'progressive needs two or more --train-img-sizes'),
    ('--train-img-sizes 8 16 --train-size-probs 1e308 1e308', '--train-size-probs needs a weight .*a finite sum'),
    ('--train-img-sizes 8 16 --train-size-random-mix .2', 'belong to --train-size-schedule progressive'),
    ('--train-img-sizes 8 16 --input-size 3 16 24', '--train-img-sizes are squares'),
    ('--model cait_xxs24_224 --model-kwargs depth=1 --teacher none --train-img-sizes 8 16',
     'cait_xxs24_224 takes one image size only: leave --train-img-sizes out'),
    ('--augment-backend opencv --in-chans 4 --mean .5 --std .5 --input-img-mode RGBA', 'grey or RGB .*not images of 4'),
    ('--augment-backend opencv --in-chans 1 --input-img-mode P', 'not images of 1 channels in mode P'),
    ('--train-img-sizes 8 16 --train-size-random-mix 2', '--train-size-random-mix must be between 0 and 1, got 2'),
    ('--augment-backend opencv --aa original --teacher resnet20_sam', r'not AutoAugment \(--aa\): leave out'),
    ('--augment-backend opencv --train-crop-mode pad', r'not Resize \(--train-crop-mode, --no-aug\): leave out'),
    ('--augment-backend device --aa original --teacher resnet20_sam', r'device does .*not AutoAugment \(--aa\): leave'),
    ('--augment-backend device --no-aug', r'not CenterCrop \(--no-aug\)'),
    ('--augment-backend device --aa augmix-m5', r'not AugMixAugment \(--aa\)'),
    ('--augment-backend device --in-chans 1 --input-img-mode P', 'device augments grey or RGB .*mode P'),
    ('--aa rand-x9 --teacher resnet20_sam', 'timm cannot make the training transform .*--aa rand-x9'),
    ('--scale .5 --teacher resnet20_sam', r'timm cannot make the training transform .*--scale \[0.5\] .*two numbers'),
    ('--cutmix-minmax .5 --teacher resnet20_sam', r'--cutmix-minmax takes two numbers, got \[0.5\]'),
    ('--torchcompile inductr --teacher resnet20_sam', "--torchcompile inductr .*Invalid backend: 'inductr'"),
    ('--device-modules no_such_module', "--device-modules: No module named 'no_such_module'"),
    # numbers
    ('--num-classes 9', '--num-classes 9 differs from the 10 classes of the data set; leave'),
    ('--img-size 20', 'Images of 20 x 20 do not divide into patches of 8 x 8: .*multiple of 8.*patch_size'),
    ('--input-size 3 16 20', 'Images of 16 x 20 do not divide into patches of 8 x 8'),
    ('--mean .1 .2', r'--mean has 2 values \(0.1, 0.2\), an image has 3 channels: give one value, or one for each'),
    ('--std .1 .2 .3 .4', '--std has 4 values .*3 channels: give one value'),
    ('--in-chans 2', 'Images of 2 channels .*not from lt/digits.*--input-img-mode'),
    ('--in-chans 2 --input-img-mode LA', '--mean has 3 values .*2 channels'),
    ('--val-split train', 'would evaluate lt/digits on its training images'),
    ('--teacher resnet20 --bce-loss --drw-on both', 'bce'),
    ('--kd-temperature 4 --teacher resnet20_sam', '--kd-temperature has no effect on hard distillation'),
    ('--rho .8 --teacher resnet20_sam', '--rho belongs to the optimizers samsgd .* --teacher-rho'),
    ('--sched wsd --epochs 5 --warmup-epochs 5', '--sched wsd needs epochs after its warm-up of 5, got --epochs 5'),
    ('--input-img-mode gray', '--input-img-mode gray is no mode of Pillow: give L, RGB'),
    ('--model vgg11_bn --model-kwargs --teacher none --img-size 32 --grad-checkpointing',
     'vgg11_bn has no --grad-checkpointing: leave the flag out'),
    ('--drw-start-epoch 9 --epochs 8', '--drw-start-epoch 9 lies beyond --epochs 8; give at most 8, which means never'),
    # the data
    ('--imbalance-factor .5', '--imbalance-factor must be at least 1, got 0.5'),
    ('--imbalance-factor 41', 'imbalance factor of 41 leaves 1 of 10 classes .*the largest allowed is 40'),
    ('--n-max 4000', "With n_max 4000 class '0' .* needs 4000 images but has 144: the largest allowed n_max is"),
    ('--val-fraction 1.5', '--val-fraction must be between 0 and 1'),
    ('--val-split tset', "lt/digits has no split 'tset': use"),
    ('--class-counts no_such_file', '--class-counts no_such_file: no such file'),
    # contradictions
    ('--opt samsgd --amp --amp-dtype float16', '--opt samsgd cannot scale float16 .*--amp-dtype bfloat16 or --no-amp'),
    ('--amp --amp-dtype float16 --teacher resnet20_sam', 'cannot scale float16 .*--amp-dtype bfloat16 or --no-amp'),
    ('--model vit_tiny_patch16_224 --teacher labels', 'trains a DIST token, which vit_tiny_patch16_224 does not have'),
    ('--model vit_tiny_patch16_224 --teacher resnet20_sam', 'does not have: use a deit_lt model, or --teacher none'),
    ('--teacher deit_lt_tiny_sam', 'A cosine classifier needs one classifier to replace, but DeiTLT'),
    ('--teacher labels --drw-on dist', '--drw-on dist re-weights .* use --drw-on cls'),
    ('--loss ldam', '--loss ldam needs hard labels'),
    ('--resume auto', '--resume auto needs the name of the run in --experiment'),
    # files and places
    ('--resume no/last.pth.tar', '--resume no/last.pth.tar: no such file'),
    ('--branch-from no/milestone.pth.tar', '--branch-from no/milestone.pth.tar: no such file'),
    ('--teacher resnet20_sam --teacher-checkpoint no.pth', '--teacher-checkpoint no.pth: no such file'),
    ('--initial-checkpoint no.pth', '--initial-checkpoint no.pth: no such file'),
    ('-c no.yaml', 'no.yaml: no such file or recipe'),
    ('--data-dir no/such/folder', 'There is no folder no/such/folder .--data-dir.'),
    ('--dataset lt/cifar10 --data-dir no/such/folder', 'lt/cifar10 needs .* no/such/folder.*--dataset-download'),
    ('--dataset lt/fashion_mnist', 'lt/fashion_mnist needs the folder of its files: give it by --data-dir'),
    ('--device tpu9', r'--device tpu9 cannot be used \(.+\): leave it out, or give --device cpu'),
    ('--device cuda:99', r'--device cuda:99 cannot be used \(.+\): leave it out, or give --device cpu'),
])
def test_bad_settings_are_refused_in_one_line_that_says_how_to_mend_them(refused, flags, words):
    assert re.search(words, refused(*flags.split()))


@pytest.mark.parametrize('text, words', [
    ('epochss: 3', "unknown setting 'epochss'; did you mean epochs"),
    ('tta: 3', 'tta is not supported'),
    ('epochs: many', "epochs: expected a whole number, got 'many'"),
    ('[1, 2]', 'expected a mapping of settings'),
    ('a: [', 'is not valid YAML'),
])
def test_bad_config_is_refused(refused, tmp_path, text, words):
    (tmp_path / 'my.yaml').write_text(text)
    message = refused('-c', tmp_path / 'my.yaml')
    assert words in message and 'my.yaml' in message


@pytest.mark.parametrize('images, flags, words', [
    (dict(ant=6, bee=0), [], "Class 'bee' has no image in "),
    (dict(ant=6), [], 'data has 1 class(es) (ant), at least 2 are needed'),
    ({}, [], 'Found 0 images'),
    (dict(ant=8, bee=8, cat=8), ['--imbalance-factor', '9'], 'the largest allowed is 8'),
    (dict(ant=8, bee=8, cat=8), ['--imbalance-factor', '2', '--n-max', '9'], 'the largest allowed n_max is 8'),
    (dict(ant=8, bee=8), ['--n-max', '4'], 'n_max needs an imbalance factor'),
    (dict(ant=8, bee=8), ['--class-counts', __file__], 'known from its labels: leave --class-counts out'),
])
def test_folder_that_cannot_be_trained_on_is_refused(refused, tmp_path, images, flags, words):
    assert words in refused('--data-dir', image_folder(tmp_path / 'data', **images), *flags, base=MODEL)


def test_cnn_with_a_teacher_is_refused(refused):
    message = refused('--model', 'resnet32_cifar', '--teacher', 'resnet32_sam', base=['--no-amp'])
    assert 'trains a DIST token, which resnet32_cifar does not have: use a deit_lt model, or --teacher none' in message


def test_missing_logger_is_named_before_the_teacher_is_trained(refused, monkeypatch):
    for module in ('wandb', 'tensorboard', 'trackio'):
        monkeypatch.setitem(sys.modules, module, None)
        message = refused(f'--log-{module}', '--teacher', 'resnet20_sam')
        assert f'--log-{module} needs {module}: pip install' in message


def test_wandb_without_a_key_is_named_before_the_teacher_is_trained(refused, monkeypatch):
    def login():
        raise RuntimeError('No API key configured.')

    monkeypatch.setitem(sys.modules, 'wandb', SimpleNamespace(login=login, Error=RuntimeError))
    message = refused('--log-wandb', '--teacher', 'resnet20_sam')
    assert '--log-wandb: No API key configured. Log in by "wandb login"' in message


def test_output_that_cannot_be_written_to_is_refused_before_the_teacher_is_trained(refused, tmp_path):
    (tmp_path / 'file').write_text('')
    for resume in ([], ['--resume', 'auto', '--experiment', 'x']):
        message = refused('--output', tmp_path / 'file' / 'runs', '--teacher', 'resnet20_sam', *resume)
        assert f'{tmp_path / "file"} is not a folder that can be written to: give another --output' in message


# Room on the disk

@pytest.fixture
def left(monkeypatch):
    """Sets the bytes left on the disk of a folder; everywhere else there is room."""
    def left(folder, free):
        monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(
            free=free if Path(path) == folder or folder in Path(path).parents else 10 ** 15))
    return left


# the tiny student and its milestones of 100 epochs: at the start of stage two, and those asked for
@pytest.mark.parametrize('flags, milestones', [
    ('', 1), ('--drw-start-epoch 100', 1), ('--stop-epoch 9', 0), ('--save-epochs 5 50', 3), ('--model-ema', 1),
    ('--teacher resnet20_sam', 1), ('--opt samsgd', 1), ('--model-dtype bfloat16', 1)])
def test_checkpoints_that_do_not_fit_are_refused_before_anything_is_trained(refused, left, tmp_path, flags, milestones):
    left(tmp_path, 1000)
    message = refused('--epochs', '100', *flags.split())
    found = re.fullmatch(
        rf'The checkpoints do not fit into {tmp_path}/output/\S+: (\d) file\(s\) of about (\S+ .B) each, {milestones} '
        r'of them milestone\(s\), need (\S+ .B), but only 1.0 kB are left. Free some space, or give another '
        r'--output( or fewer --save-epochs)?\.', message)
    assert found, message
    files, size, needed, fewer = found.groups()
    assert int(files) == milestones + 2 and bool(fewer) == ('--save-epochs' in flags)
    needed, size = (float(x.split()[0]) * {'kB': 1e3, 'MB': 1e6}[x.split()[1]] for x in (needed, size))
    assert int(files) * size == pytest.approx(needed, rel=.01)
    # weights of 4 bytes, and what EMA and optimizer keep beside
    numbers = {'--model-ema': 4, '--opt samsgd': 2, '--model-dtype bfloat16': 1.5}.get(flags, 3)
    assert size == pytest.approx(numbers * 4 * TINY_PARAMETERS, rel=.01)


def test_teacher_that_does_not_fit_into_its_cache_is_refused(refused, left, tmp_path):
    (tmp_path / 'teachers').mkdir()
    left(tmp_path / 'teachers', 4_000_000)
    message = refused('--teacher', 'resnet20_sam')
    assert message.startswith(f'The checkpoints do not fit into {tmp_path}/teachers/teachers/resnet20_sam-')
    assert 'only 4.00 MB are left. Free some space, or give another --teacher-cache.' in message


def test_what_lies_in_the_folder_of_a_run_already_is_not_needed_again(checkpoint, left, tmp_path, monkeypatch):
    """The newest checkpoint is replaced; a run that has ended needs no room at all."""
    size = checkpoint.stat().st_size  # about a twentieth more than is estimated: names, settings and padding
    folder = tmp_path / 'run'
    folder.mkdir()
    shutil.copy(checkpoint, folder)
    left(tmp_path, round(1.2 * size))
    trained = []
    monkeypatch.setattr(run, 'fit', lambda *args, **kwargs: trained.append(args))
    monkeypatch.setattr(run, 'run_result', lambda *args: {})
    monkeypatch.setattr(run, 'final_table', lambda *args: '')
    common = [*TINY, '--output', str(tmp_path), '--experiment', 'run', '--resume', 'auto', '--drw-start-epoch', '0']
    run.train(parse_args([*common, '--epochs', '2']))
    assert len(trained) == 1
    with pytest.raises(ValueError, match='2 file.s. of about .* kB each, 1 of them'):
        run.train(parse_args([*common, '--epochs', '3', '--save-epochs', '2']))
    left(tmp_path, 0)
    run.train(parse_args([*common, '--epochs', '1']))
    assert len(trained) == 2


def test_run_whose_disk_fills_up_ends_in_one_line_and_code_2(tmp_path, capsys):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limit[1]))  # the system refuses larger files, as a full disk
    try:
        with pytest.raises(SystemExit) as error:
            train_main([*TINY, '--epochs', '1', '--output', str(tmp_path), '--experiment', 'run'])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    message = one_line(capsys.readouterr().err)
    assert error.value.code == 2
    assert re.match(
        rf'milestone-1.pth.tar cannot be written to {tmp_path}/run: File too large. It needs about \S+ kB, and \S+ .B '
        'are left there', message)
    assert not list(tmp_path.rglob('*.tar*'))


def test_other_file_that_finds_no_room_ends_in_one_line_too(capsys):
    def fails():
        try:
            raise OSError(28, 'No space left on device', '/logs/events')
        except OSError as error:
            raise RuntimeError('the logger died') from error
    with pytest.raises(SystemExit) as error:
        guarded('train.py', fails)
    assert error.value.code == 2
    assert one_line(capsys.readouterr().err).startswith('No space left on device (the logger died). Make room and ')


def test_labels_of_the_evaluation_that_training_does_not_know_are_refused(refused, tmp_path):
    image_folder(tmp_path / 'data' / 'train', ant=6, bee=6)
    image_folder(tmp_path / 'data' / 'val', ant=2, dog=2)
    message = refused('--data-dir', tmp_path / 'data', base=MODEL)
    assert "that the training set does not have, such as 'dog'. Allowed are ant, bee" in message


def test_split_that_is_not_there_is_refused(refused, tmp_path):
    image_folder(tmp_path / 'data' / 'val', ant=2, bee=2)
    assert "no folder for the split 'train', only for val" in refused('--data-dir', tmp_path / 'data', base=MODEL)


class Stream(IterableDataset):
    class_names, class_counts, num_classes = ('ant', 'bee'), [5, 4], 2

    def __iter__(self):
        return iter(())


@pytest.mark.parametrize('flags, words', [
    (['--val-fraction', '.1'], '--val-fraction needs images that can be indexed.*and give a --val-split'),
    (['--aug-repeats', '3'], '--aug-repeats needs images that can be indexed'),
    (['--train-img-sizes', '8', '16'], '--train-img-sizes needs images that can be indexed'),
    (['--augment-backend', 'device'], '--augment-backend device needs images that can be indexed'),
])
def test_stream_refuses_what_needs_an_index(refused, monkeypatch, flags, words):
    monkeypatch.setattr(build_data, 'create_dataset', lambda *args, **kwargs: Stream())
    assert re.search(words, refused('--dataset', 'wds/images', '--data-dir', '.', *flags))


def test_a_stream_is_not_evaluated_by_several_processes(monkeypatch):
    monkeypatch.setattr(build_data, 'create_dataset', lambda *args, **kwargs: Stream())
    command = [*MODEL, '--dataset', 'wds/images', '--data-dir', '.', '--teacher', 'none']
    one = settings_of(*command)
    two, silent = (replace(each, machine=replace(each.machine, world_size=2)) for each in (
        one, settings_of(*command, '--val-split', '')))
    assert build_data.build_data(one).evaluation is not None and build_data.build_data(silent).evaluation is None
    with pytest.raises(ValueError, match="which 2 processes cannot share exactly: give --val-split ''"):
        build_data.build_data(two)


# Checkpoints

@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """The last checkpoint of a run of one epoch without a teacher."""
    output = tmp_path_factory.mktemp('runs')
    run.train(parse_args([*TINY, '--epochs', '1', '--output', str(output), '--experiment', 'run']))
    return output / 'run' / 'last.pth.tar'


WAYS_IN = ['--resume', '--branch-from', '--teacher-checkpoint']


def way_in(flag, path):
    return [flag, path, *(['--teacher', 'deit_lt_tiny_strong'] if flag == '--teacher-checkpoint' else [])]


@pytest.mark.parametrize('flag', WAYS_IN)
def test_truncated_checkpoint_is_refused(refused, checkpoint, tmp_path, flag):
    path = tmp_path / 'cut.pth.tar'
    path.write_bytes(checkpoint.read_bytes()[:-1000])
    message = refused(*way_in(flag, path))
    assert f"'{path}' cannot be read: it is truncated" in message and 'Use a last.pth.tar' in message


@pytest.mark.parametrize('flag', WAYS_IN)
def test_file_that_is_no_checkpoint_is_refused(refused, tmp_path, flag):
    (tmp_path / 'text.pth').write_text('weights')
    assert 'cannot be read' in refused(*way_in(flag, tmp_path / 'text.pth'))
    torch.save({'weights': torch.zeros(1)}, tmp_path / 'other.pth')
    assert "holds no 'state_dict'" in refused(*way_in(flag, tmp_path / 'other.pth'))


@pytest.mark.parametrize('flag', WAYS_IN)
def test_checkpoint_of_other_data_is_refused(refused, checkpoint, flag):
    message = refused(*way_in(flag, checkpoint), '--split-seed', '1')
    assert str(checkpoint) in message and 'was trained on other images' in message and '--split-seed' in message


def test_checkpoint_of_another_architecture_is_refused(refused, checkpoint):
    for flag in ('--resume', '--branch-from'):
        message = refused(flag, checkpoint, '--model', 'deit_lt_small')
        assert 'is of the architecture deit_lt_tiny, not deit_lt_small: give --model deit_lt_tiny' in message
    message = refused('--teacher-checkpoint', checkpoint, '--teacher', 'resnet20_sam')
    assert 'is of the architecture deit_lt_tiny, not resnet20_cifar: give --teacher deit_lt_tiny' in message


def test_checkpoint_of_another_shape_is_refused_by_its_first_differences(refused, checkpoint):
    for flag in ('--resume', '--branch-from'):
        message = refused(flag, checkpoint, '--model-kwargs', 'depth=3')
        assert 'blocks.2.' in message and 'is missing' in message and '--model-kwargs' in message


@pytest.mark.parametrize('teacher', ['none', 'resnet20_sam'])
def test_checkpoint_of_another_optimizer_is_refused(refused, checkpoint, teacher):
    message = refused('--branch-from', checkpoint, '--layer-decay', '.5', '--teacher', teacher)
    assert 'optimizer state' in message and 'does not fit' in message and '--no-resume-opt' in message


def test_run_does_not_go_on_in_the_folder_of_another(checkpoint, tmp_path, capsys):
    other = tmp_path / 'other'
    shutil.copytree(checkpoint.parent, other)
    before = (other / 'summary.csv').read_bytes()
    with pytest.raises(SystemExit):
        train_main([*TINY, '--resume', str(checkpoint), '--output', str(tmp_path), '--experiment', 'other'])
    assert f'{other} holds another run, which {checkpoint} would overwrite' in one_line(capsys.readouterr().err)
    assert (other / 'summary.csv').read_bytes() == before


def test_weights_to_start_from_that_do_not_fit_are_refused(refused, checkpoint, tmp_path):
    (tmp_path / 'text.pth').write_text('weights')
    assert 'timm cannot make deit_lt_tiny' in refused('--initial-checkpoint', tmp_path / 'text.pth')
    assert '--initial-checkpoint' in refused('--initial-checkpoint', checkpoint, '--model-kwargs', 'depth=3')


def test_validate_refuses_what_is_no_run(checkpoint, tmp_path, capsys):
    torch.save({'state_dict': {}}, tmp_path / 'bare.pth')
    (tmp_path / 'empty').mkdir()
    for path, words in (
            (tmp_path / 'no', 'There is no checkpoint'), (tmp_path / 'empty', 'There is no checkpoint'),
            (tmp_path / 'bare.pth', 'was not written by this train.py')):
        with pytest.raises(SystemExit) as error:
            validate_main([str(path)])
        message = one_line(capsys.readouterr().err, 'validate.py')
        assert error.value.code == 2 and words in message and str(path) in message
    with pytest.raises(SystemExit):
        validate_main([str(checkpoint), '--device', 'tpu9'])
    assert '--device tpu9 cannot be used' in one_line(capsys.readouterr().err, 'validate.py')


# Images that cannot be read

def spoil(*paths):
    for path in paths:
        path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize('flags', ['--workers 0', '--workers 2 --teacher resnet20_sam', '--val-fraction .9'])
def test_unreadable_image_ends_the_run_by_its_name(tmp_path, capsys, flags):
    data = image_folder(tmp_path / 'data', ant=6, bee=6)
    spoil(data / 'bee' / '3.png')
    with pytest.raises(SystemExit) as error:
        train_main([
            *MODEL, '--data-dir', str(data), '--epochs', '1', '--output', str(tmp_path / 'output'), *flags.split()])
    message = one_line(capsys.readouterr().err)
    assert error.value.code == 2
    assert message.startswith(f"Cannot read image {data / 'bee' / '3.png'} of class 'bee': ")
    assert '--skip-bad-images takes the next image of the class instead' in message
    assert not list(tmp_path.rglob('*.pth.tar')) and not list(tmp_path.rglob('metrics.json'))


@pytest.mark.parametrize('workers', ['0', '2'])
def test_skipped_images_are_counted_in_the_log_and_in_the_metrics(tmp_path, caplog, workers):
    caplog.set_level(logging.INFO)
    train = image_folder(tmp_path / 'data' / 'train', ant=6, bee=6)
    val = image_folder(tmp_path / 'data' / 'val', ant=3, bee=3)
    spoil(train / 'ant' / '0.png', train / 'bee' / '5.png', val / 'bee' / '1.png')
    result = run.train(parse_args([
        *MODEL, '--data-dir', str(tmp_path / 'data'), '--output', str(tmp_path), '--experiment', 'run', '--epochs', '2',
        '--workers', workers, '--skip-bad-images']))
    assert result['data']['bad_images'] == 3 and result['data']['test_counts'] == [3, 3]
    assert json.loads((tmp_path / 'run' / 'metrics.json').read_text())['data']['bad_images'] == 3
    assert '3 unreadable image(s) were replaced by others of their class' in caplog.text
    assert validate(str(tmp_path / 'run'), {})['data']['bad_images'] == 1


def test_class_without_a_readable_image_is_an_error_even_if_bad_images_are_skipped(tmp_path):
    data = image_folder(tmp_path / 'data', ant=6, bee=6)
    spoil(*(data / 'bee').glob('*.png'))
    with pytest.raises(UnreadableImageError, match="None of the .* images of class 'bee'"):
        run.train(parse_args([
            *MODEL, '--data-dir', str(data), '--epochs', '1', '--output', str(tmp_path), '--skip-bad-images']))


# A folder of one's own

def train_folder(tmp_path, *flags):
    return run.train(parse_args([
        *MODEL, *TINY_TEACHER, '--data-dir', str(tmp_path / 'data'), '--epochs', '1', '--output', str(tmp_path),
        '--experiment', 'run', '--teacher-cache', str(tmp_path), *flags]))


def test_folder_without_a_validation_split_trains_and_holds_images_out(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    image_folder(tmp_path / 'data', ant=10, bee=8, cat=2)
    result = train_folder(tmp_path)
    assert result['data']['train_counts'] == [9, 7, 2] and result['data']['test_counts'] == [1, 1, 0]
    assert "has no 'validation' split" in caplog.text and 'never trained on' in caplog.text
    assert 'too small to hold out an image and are not evaluated: cat' in caplog.text
    assert result['data']['class_names'] == ['ant', 'bee', 'cat'] and result['data']['bad_images'] == 0
    assert result['teacher']['source'] == 'trained' and result['dist']['top1'] >= 0 and result['mean']['tail'] is None


def test_folder_with_a_validation_split_is_evaluated_on_it_and_may_be_made_long_tailed(tmp_path):
    image_folder(tmp_path / 'data' / 'train', ant=8, bee=8, cat=8)
    image_folder(tmp_path / 'data' / 'val', ant=2, bee=3, cat=4)
    result = train_folder(tmp_path, '--imbalance-factor', '2')
    assert result['data']['train_counts'] == [8, 5, 4] and result['data']['imbalance_factor'] == 2
    assert result['data']['test_counts'] == [2, 3, 4]


def test_validation_classes_are_matched_by_name_where_their_folders_are_fewer(tmp_path):
    image_folder(tmp_path / 'data' / 'train', ant=6, bee=6, cat=6)
    image_folder(tmp_path / 'data' / 'val', cat=4, bee=3)
    result = train_folder(tmp_path, '--teacher', 'none')
    assert result['data']['test_counts'] == [0, 3, 4]
    assert result['mean']['per_class'][0] is None and None not in result['mean']['per_class'][1:]


# As a user meets it

def test_real_train_py_ends_with_one_line_and_code_2(tmp_path):
    done = run_script(*TINY, '--teacher', 'resnet32_smm', '--output', tmp_path / 'output', check=False)
    assert done.returncode == 2 and done.stdout == '' and not (tmp_path / 'output').exists()
    assert 'resnet32_sam' in one_line(done.stderr)
    assert 'digits' in done.stderr, 'the log before it'


def test_real_train_py_refuses_cuda_where_there_is_none(tmp_path):
    done = run_script(*TINY, '--device', 'cuda', check=False, env={'CUDA_VISIBLE_DEVICES': ''}, cwd=tmp_path)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert re.match(r'--device cuda cannot be used \(.+\): leave it out, or give --device cpu', one_line(done.stderr))
