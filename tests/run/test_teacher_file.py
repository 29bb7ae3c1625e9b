"""Teachers and students from exported models: their classes are matched to the data by name."""
import json
import logging

import pytest
import timm
import torch
from conftest import last_json, run_script
from helpers import asked
from timm.models import save_for_hf

from timm_deitlt.models.weights import exported_settings, load_config
from timm_deitlt.run import train as run
from timm_deitlt.run.build.data import build_data
from timm_deitlt.run.settings import resolve_settings
from timm_deitlt.run.teacher_file import reorder_classes
from timm_deitlt.run.train_teacher import resolve_teacher
from timm_deitlt.run.validate import validate

CLASSES = [str(i) for i in range(10)]
BY_COUNT = ['3', '1', '4', '0', '5', '9', '2', '6', '8', '7']


def export(folder, name, label_names=CLASSES, seed=0, **kwargs):
    """A model in timm's form for the hub, as hfhub/convert.py writes it; returns it."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=10, **kwargs).eval()
    for module in model.modules():
        if hasattr(module, 'running_var'):
            module.running_var.uniform_(.5, 2.)
    model.pretrained_cfg = {
        **model.pretrained_cfg, 'num_classes': 10, 'mean': (.1, .2, .3), 'std': (.4, .5, .6),
        'interpolation': 'lanczos', 'crop_pct': .77}
    save_for_hf(
        model, folder, model_config=dict(label_names=label_names), safe_serialization=True, model_args=kwargs or None)
    return model


def resolve(*flags, teacher='resnet20'):
    settings = resolve_settings(asked(*map(str, flags), teacher=teacher))
    return resolve_teacher(settings, build_data(settings))


def alike(a, b):
    # on some CPUs a column of a matrix product depends on its place, in the last bit
    return torch.allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize('place', ['', 'model.safetensors'])
@pytest.mark.parametrize('cosine', [False, True])
def test_exported_teacher_gives_its_logits_in_the_order_of_the_data(tmp_path, place, cosine):
    kwargs = {'cosine': True} if cosine else {}
    model = export(tmp_path / 'out', 'resnet20_cifar', BY_COUNT, **kwargs)
    teacher = resolve('--teacher-checkpoint', tmp_path / 'out' / place)
    images = torch.randn(4, 3, 32, 32)
    theirs, ours = model(images), teacher.model(images)
    for label, name in enumerate(CLASSES):
        assert alike(ours[:, label], theirs[:, BY_COUNT.index(name)])
    assert not alike(ours, theirs)
    assert teacher.source == 'file' and teacher.model.pretrained_cfg['mean'] == (.1, .2, .3)
    assert teacher.model.pretrained_cfg['std'] == (.4, .5, .6)
    assert (teacher.model.pretrained_cfg['interpolation'], teacher.model.pretrained_cfg['crop_pct']) == ('lanczos', .77)


def test_a_cached_teacher_of_another_class_order_is_put_in_order(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cached = resolve('--teacher-cache', tmp_path / 'cache', '--teacher-epochs', '1')
    folder = cached.path.parent
    record = json.loads((folder / 'teacher.json').read_text())
    (folder / 'teacher.json').write_text(json.dumps({**record, 'class_names': BY_COUNT}))
    teacher = resolve('--teacher-checkpoint', cached.path)
    images = torch.randn(2, 3, 32, 32)
    order = [BY_COUNT.index(name) for name in CLASSES]
    assert alike(teacher.model(images), cached.model(images)[:, order])
    assert not alike(teacher.model(images), cached.model(images))
    assert 'its classifier was put in order by name' in caplog.text


@pytest.mark.parametrize('names, words', [
    (CLASSES[:9], 'knows 9 classes, but the data set has 10'),
    (['zero', *CLASSES[1:]], "its class 0 is 'zero', but in the data set it is '0'"),
    (['1', '1', *CLASSES[2:]], "its class 0 is '1', but in the data set it is '0'"),
])
def test_exported_teacher_of_other_classes_is_refused(tmp_path, names, words):
    export(tmp_path / 'out', 'resnet20_cifar', names)
    with pytest.raises(ValueError, match=words):
        resolve('--teacher-checkpoint', tmp_path / 'out')


def test_exported_teacher_of_another_architecture_is_refused(tmp_path):
    export(tmp_path / 'out', 'resnet32_cifar')
    with pytest.raises(ValueError, match='of the architecture resnet32_cifar, not resnet20_cifar: give --teacher'):
        resolve('--teacher-checkpoint', tmp_path / 'out')


def test_folder_without_its_config_is_not_taken_for_whole(tmp_path):
    export(tmp_path / 'out', 'resnet20_cifar')
    (tmp_path / 'out' / 'config.json').unlink()
    with pytest.raises(ValueError, match='holds no config.json: it was not written to the end'):
        resolve('--teacher-checkpoint', tmp_path / 'out')


def test_global_batch_that_does_not_fit_is_an_error_before_the_teacher_is_trained(tmp_path):
    args = asked('--teacher-cache', tmp_path / 'cache', '--global-batch-size', '40')
    with pytest.raises(ValueError, match='is not a multiple of --batch-size'):
        run.train(args)
    assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize('text', ['{', '[]', '{"architecture": "resnet20_cifar"}', '{"pretrained_cfg": {}}'])
def test_damaged_config_is_one_clear_error(tmp_path, text):
    export(tmp_path / 'out', 'resnet20_cifar')
    (tmp_path / 'out' / 'config.json').write_text(text)
    with pytest.raises(ValueError, match="is not a config.json in timm's form"):
        resolve('--teacher-checkpoint', tmp_path / 'out')


def test_cosine_resnet50_is_a_resnet50_with_a_cosine_classifier(tmp_path):
    export(tmp_path, 'resnet50_cosine')
    settings = exported_settings(load_config(tmp_path))
    assert (settings['model'], settings['classifier']) == ('resnet50', 'cosine')
    assert not {'num_classes', 'in_chans', 'global_pool'} & set(settings['model_kwargs'])


def test_both_heads_of_a_student_are_put_in_order():
    model = timm.create_model('deit_lt_tiny', img_size=32, num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    before = model.forward_experts(images)
    reorder_classes(model, BY_COUNT, CLASSES, 'it')
    order = [BY_COUNT.index(name) for name in CLASSES]
    for logits, was in zip(model.forward_experts(images), before, strict=True):
        assert alike(logits, was[:, order]) and not alike(logits, was)


def test_exported_student_is_evaluated_by_expert_whatever_its_class_order(tmp_path):
    common = dict(img_size=32, embed_dim=48, depth=2, num_heads=3)
    export(tmp_path / 'a', 'deit_lt_tiny', CLASSES, **common)
    export(tmp_path / 'b', 'deit_lt_tiny', CLASSES, **common)
    weights = tmp_path / 'b' / 'config.json'
    config = json.loads(weights.read_text())
    weights.write_text(json.dumps({**config, 'label_names': CLASSES[1:] + CLASSES[:1]}))
    done = run_script(tmp_path / 'a', '--dataset', 'lt/digits', '--no-amp', '--batch-size', '85', script='validate.py')
    plain = last_json(done)
    turned = validate(str(tmp_path / 'b'), {'dataset': 'lt/digits', 'amp': False, 'validation_batch_size': 85})
    assert set(plain['cls']) >= {'top1', 'head', 'tail'} and plain['dist']['top1'] is not None
    assert plain['model'] == 'deit_lt_tiny' and plain['teacher'] is None and plain['seed'] is None
    assert turned['cls']['per_class'] != plain['cls']['per_class']
    again = validate(str(tmp_path / 'a'), {'dataset': 'lt/digits', 'amp': False, 'validation_batch_size': 170})
    assert again['mean']['per_class'] == plain['mean']['per_class']


def test_exported_student_needs_a_data_set(tmp_path):
    export(tmp_path, 'deit_lt_tiny', img_size=32, embed_dim=48, depth=2, num_heads=3)
    with pytest.raises(ValueError, match='does not say what to evaluate it on: give --dataset'):
        validate(str(tmp_path), {})
