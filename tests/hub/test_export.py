"""An exported model: it loads where there is only timm, says the same, and is what publishing publishes."""
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from conftest import TINY, last_json, run_script
from PIL import Image
from sklearn.datasets import load_digits

import timm_deitlt
from timm_deitlt.engine.checkpoint import load_checkpoint, save_checkpoint
from timm_deitlt.evaluation.fusion import mean_adjusted
from timm_deitlt.hub.export import export
from timm_deitlt.hub.publish import Options, build_folder
from timm_deitlt.hub.source import read_model
from timm_deitlt.run.validate import validate

COMMAND = 'timm_deitlt_command.py'
# A student, the plain ViT and a CNN, for whom timm knows other names
ARGS = {
    'student': ['--teacher', 'test_resnet_sam', '--teacher-epochs', '1'],
    'vit': ['--teacher', 'none'],
    'cnn': ['--teacher', 'none', '--model', 'resnet20_cifar', '--classifier', 'cosine', '--loss', 'ldam'],
    'timms': ['--teacher', 'none', '--model', 'test_resnet'],
}
ALONE = '''
import json, sys
import timm, torch
from PIL import Image
model = timm.create_model('local-dir:' + sys.argv[1], pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.no_grad():
    chances = model(transform(Image.open(sys.argv[2]).convert('RGB'))[None]).softmax(-1)[0]
assert 'timm_deitlt' not in sys.modules
print(json.dumps(dict(zip(model.pretrained_cfg['label_names'], chances.tolist()))))
'''
PIPELINE = '''
import json, sys
from transformers import pipeline
answers = pipeline('image-classification', sys.argv[1], device='cpu')(sys.argv[2], top_k=10)
assert 'timm_deitlt' not in sys.modules
print(json.dumps({answer['label']: answer['score'] for answer in answers}))
'''


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp('export')
    for name, args in ARGS.items():
        # without the width and depth of the tiny student where it is another model
        flags = ['--img-size', '16', *TINY[TINY.index('--n-max'):]] if '--model' in args else TINY
        run_script(
            *flags, *args, '--epochs', '1', '--output', folder, '--experiment', name, '--teacher-cache',
            folder / 'cache')
        export(folder / name, folder / 'exported' / name)
    Image.fromarray((load_digits().images[3] * 15).astype('uint8')).save(folder / 'digit.png')
    return folder


def config_of(folder):
    return json.loads((folder / 'config.json').read_text())


@pytest.mark.parametrize('name', ARGS)
def test_exported_model_has_the_weights_names_and_figures_of_the_run(place, name):
    run, out = place / name, place / 'exported' / name
    assert {path.name for path in out.iterdir()} == {'args.yaml', 'config.json', 'metrics.json', 'model.safetensors'}
    loaded = timm.create_model(f'local-dir:{out}', pretrained=True)
    trained = load_checkpoint(run / 'last.pth.tar')
    assert all(torch.equal(value, trained['state_dict'][key]) for key, value in loaded.state_dict().items())
    config, cfg = config_of(out), config_of(out)['pretrained_cfg']
    assert config['label_names'] == trained['data']['class_names'] and config['num_classes'] == 10
    assert cfg['input_size'] == [3, 16, 16] and {'mean', 'std', 'crop_pct', 'interpolation'} <= cfg.keys()
    assert cfg['license'] is None, 'nobody was asked for one'
    metrics = json.loads((out / 'metrics.json').read_text())
    assert metrics['mean'] == json.loads((run / 'metrics.json').read_text())['mean']
    assert str(place) not in ''.join(path.read_text() for path in out.glob('*.[jy]*'))


@pytest.mark.parametrize(('name', 'theirs', 'ours'), [
    ('student', 'deit_tiny_distilled_patch16_224', 'deit_lt_tiny'), ('vit', 'deit_lt_tiny', 'deit_lt_tiny'),
    ('cnn', 'resnet20_cifar', 'resnet20_cifar'), ('timms', 'test_resnet', 'test_resnet')])
def test_architecture_is_timms_where_timm_gives_the_same_answer_and_ours_stands_beside(place, name, theirs, ours):
    config = config_of(place / 'exported' / name)
    assert (config['architecture'], config['timm_deitlt']['architecture']) == (theirs, ours)
    assert 'num_classes' not in config.get('model_args', {}), 'transformers gives it a second time'


def test_every_student_of_ours_has_the_keys_and_shapes_of_timms_of_the_same_size():
    from timm_deitlt.hub.export import _TIMMS
    for ours, theirs in _TIMMS.items():
        one, two = (timm.create_model(name, num_classes=7, device='meta').state_dict() for name in (ours, theirs))
        assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in two.items()}


def test_with_this_package_the_same_folder_gives_both_experts(place):
    model = timm.create_model(f'local-dir:{place / "exported" / "student"}', pretrained=True).eval()
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        cls, dist = model.forward_experts(images)
        assert torch.allclose((cls + dist) / 2, model(images), atol=1e-6)
    trained = timm_deitlt.load_model(place / 'student').model
    with torch.no_grad():
        assert torch.allclose(trained.forward_experts(images)[1], dist, atol=1e-6)


def alone(place, code, name, **env):
    """What another program than ours says of the digit, in a process that has not seen our package."""
    done = subprocess.run(
        [sys.executable, '-I', '-c', code, place / 'exported' / name, place / 'digit.png'], capture_output=True,
        text=True, cwd=place, env={'PATH': '/usr/bin', 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1', **env})
    assert done.returncode == 0, done.stderr[-3000:]
    return last_json(done)


def predicted(place, name):
    row, = timm_deitlt.load_model(place / name, 'cpu').predict(place / 'digit.png', topk=10)
    return dict(zip(row['labels'], row['probabilities'], strict=True))


@pytest.mark.parametrize('name', ['student', 'timms'])
def test_timm_alone_gives_the_probabilities_of_predict(place, name):
    assert alone(place, ALONE, name) == pytest.approx(predicted(place, name), abs=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec('transformers'), reason='needs transformers')
@pytest.mark.parametrize('name', ['student', 'timms'])
def test_transformers_alone_gives_the_probabilities_of_predict(place, name):
    assert alone(place, PIPELINE, name) == pytest.approx(predicted(place, name), abs=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec('onnxruntime'), reason="needs 'timm_deitlt[export]'")
@pytest.mark.parametrize('name', ['student', 'cnn'])
def test_onnx_takes_any_batch_and_gives_every_expert(place, name, tmp_path):
    import onnxruntime
    export(place / name, tmp_path / 'out', onnx=True)
    session = onnxruntime.InferenceSession(tmp_path / 'out' / 'model.onnx')
    outputs = [output.name for output in session.get_outputs()]
    assert outputs == (['mean', 'cls', 'dist'] if name == 'student' else ['mean'])
    model = timm_deitlt.load_model(place / name).model
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, 16, 16)
        with torch.no_grad():
            expected = [model(images), *(model.forward_experts(images) if name == 'student' else ())]
        for found, wanted in zip(session.run(None, {'images': images.numpy()}), expected, strict=True):
            assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-4)


@pytest.mark.slow
def test_program_of_torch_export_takes_any_batch(place, tmp_path):
    export(place / 'student', tmp_path / 'out', program=True)
    program = torch.export.load(tmp_path / 'out' / 'model.pt2').module()
    model = timm_deitlt.load_model(place / 'student').model
    for batch in (1, 5):
        images = torch.randn(batch, 3, 16, 16)
        with torch.no_grad():
            for found, wanted in zip(program(images), (model(images), *model.forward_experts(images)), strict=True):
                assert torch.allclose(found, wanted, atol=1e-5)


def test_onnx_without_its_packages_is_refused_before_any_work(place, tmp_path, monkeypatch):
    monkeypatch.setattr('timm_deitlt.hub.programs.find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r"needs onnx, onnxscript, onnxruntime: pip install 'timm_deitlt\[export\]'"):
        export(tmp_path / 'nowhere', tmp_path / 'out', onnx=True)


def adjusted(place, tmp_path):
    """The run of the student with another prediction."""
    (tmp_path / 'run').mkdir()
    state = load_checkpoint(place / 'student' / 'last.pth.tar')
    state['args'].fusion = 'mean_adjusted'
    save_checkpoint(tmp_path / 'run' / 'last.pth.tar', state)
    return tmp_path / 'run'


def test_without_the_prior_the_mean_that_timm_answers_is_the_fusion_of_the_run(place, tmp_path, caplog):
    run = adjusted(place, tmp_path)
    export(run, tmp_path / 'plain')
    assert 'prediction of this run is mean_adjusted' in caplog.text and '--fold-prior' in caplog.text
    done = run_script('export', run, tmp_path / 'folded', '--fold-prior', script=COMMAND)
    assert 'timm_architecture' in last_json(done) and 'The class prior is taken out' in done.stderr
    images = torch.randn(4, 3, 16, 16)
    model = timm.create_model(f'local-dir:{tmp_path / "folded"}', pretrained=True).eval()
    with torch.no_grad():
        found = model(images).softmax(-1)
        cls, dist = timm_deitlt.load_model(run).model.forward_experts(images)
    counts = torch.tensor(timm_deitlt.load_model(run).class_counts)
    assert torch.allclose(found, mean_adjusted(cls, dist, counts).exp(), atol=1e-6)
    assert (found - ((cls + dist) / 2).softmax(-1)).abs().max() > .02
    images = place / 'digit.png'
    row, other = (timm_deitlt.load_model(folder).predict(images)[0] for folder in (tmp_path / 'folded', run))
    assert row['labels'] == other['labels'] and row['probabilities'] == pytest.approx(other['probabilities'], abs=1e-6)
    assert not {'metrics.json', 'plots'} & {path.name for path in (tmp_path / 'folded').iterdir()}
    run_script(tmp_path / 'folded', '--workers', '0', script='validate.py')
    for other in (tmp_path / 'folded', place / 'student', place / 'vit'):
        with pytest.raises(ValueError, match='--fusion mean_adjusted, but .* predicts by mean'):
            export(other, tmp_path / 'other', fold_prior=True)
    export(run, tmp_path / 'folded')  # over what validate.py wrote there
    assert not (tmp_path / 'other').exists()


@pytest.mark.slow
@pytest.mark.skipif(not find_spec('transformers'), reason='needs transformers')
def test_transformers_give_the_fusion_of_the_run_too_without_the_prior(place, tmp_path):
    run = adjusted(place, tmp_path)
    export(run, tmp_path / 'exported' / 'run', fold_prior=True)
    shutil.copy(place / 'digit.png', tmp_path)
    assert alone(tmp_path, PIPELINE, 'run') == pytest.approx(predicted(tmp_path, 'run'), abs=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec('onnxruntime'), reason="needs 'timm_deitlt[export]'")
def test_programs_give_the_fusion_of_the_run_too(place, tmp_path):
    import onnxruntime
    run = adjusted(place, tmp_path)
    export(run, tmp_path / 'out', onnx=True, program=True)
    session = onnxruntime.InferenceSession(tmp_path / 'out' / 'model.onnx')
    assert [output.name for output in session.get_outputs()] == ['mean', 'cls', 'dist', 'mean_adjusted']
    images, trained = torch.randn(3, 3, 16, 16), timm_deitlt.load_model(run)
    with torch.no_grad():
        wanted = mean_adjusted(*trained.model.forward_experts(images), torch.tensor(trained.class_counts))
        program = torch.export.load(tmp_path / 'out' / 'model.pt2').module()
        assert torch.allclose(program(images)[-1], wanted, atol=1e-4)
    assert torch.allclose(torch.from_numpy(session.run(None, {'images': images.numpy()})[-1]), wanted, atol=1e-4)


def test_vit_whose_dist_token_learned_nothing_is_exported_with_a_warning(place, tmp_path, caplog):
    export(place / 'vit', tmp_path / 'out')
    assert 'DIST token was not trained' in caplog.text
    assert timm_deitlt.load_model(tmp_path / 'out').experts == ('mean', 'cls')
    rows = [timm_deitlt.load_model(folder).predict(place / 'digit.png') for folder in (tmp_path / 'out', place / 'vit')]
    assert rows[0] == rows[1]


def test_what_is_published_is_what_is_exported_with_a_card_and_its_licence(place, tmp_path):
    build_folder(read_model(place / 'student'), tmp_path / 'published', Options(place / 'student', 'me/mine'))
    published = {path.name: path.read_bytes() for path in (tmp_path / 'published').iterdir()}
    exported = {path.name: path.read_bytes() for path in (place / 'exported' / 'student').iterdir()}
    assert published.keys() - exported.keys() == {'README.md'}
    config = json.loads(published['config.json'])
    assert config['pretrained_cfg'].pop('license') == 'apache-2.0'
    expected = json.loads(exported['config.json'])
    del expected['pretrained_cfg']['license']
    assert config == expected
    assert all(published[name] == exported[name] for name in exported if name != 'config.json')
    card = published['README.md'].decode()
    assert 'forward_experts' in card and "pipeline('image-classification', 'me/mine')" in card


def test_an_exported_model_is_evaluated_analysed_and_exported_again(place, tmp_path):
    done = run_script(place / 'exported' / 'student', '--workers', '0', script='validate.py')
    again = last_json(done)
    metrics = json.loads((place / 'student' / 'metrics.json').read_text())
    assert again['dist']['per_class'] == pytest.approx(metrics['dist']['per_class'], abs=1)
    (place / 'exported' / 'student' / 'validation.json').unlink()
    export(place / 'exported' / 'student', tmp_path / 'again')
    ours, theirs = (config_of(folder) for folder in (tmp_path / 'again', place / 'exported' / 'student'))
    assert ours['architecture'] == theirs['architecture'] and ours['label_names'] == theirs['label_names']
    assert timm_deitlt.load_model(tmp_path / 'again').class_counts == tuple(metrics['data']['train_counts'])


def test_an_export_keeps_figures_settings_and_the_choice_of_images_when_it_is_read_again(place, tmp_path):
    run, again = read_model(place / 'student'), read_model(place / 'exported' / 'student')
    assert again.metrics['mean'] == run.metrics['mean'] and again.settings.teacher == run.settings.teacher
    assert again.config['data'] == run.config['data'] and again.config['data']['selection']['n_max'] == 40
    folder = tmp_path / 'published'
    build_folder(again, folder, Options(place / 'exported' / 'student', 'me/model', license='mit'))
    card = (folder / 'README.md').read_text()
    assert (folder / 'args.yaml').is_file() and f'{run.metrics["mean"]["top1"]:.1f}' in card
    assert 'python train.py -c args.yaml' in card


def test_a_fold_is_evaluated_on_its_own_images_after_export_too(tmp_path, caplog):
    folds = [*TINY, '--teacher', 'none', '--epochs', '1', '--output', tmp_path, '--experiment', 'folds', '--folds', '3']
    run_script(*folds, '--fold', '1')
    export(tmp_path / 'folds' / 'fold-1', tmp_path / 'model')
    ours, theirs = (
        json.loads((tmp_path / name / 'metrics.json').read_text()) for name in ('folds/fold-1', 'model'))
    again = validate(str(tmp_path / 'model'), {'device': 'cpu'})
    assert again['data']['fingerprint'] == ours['data']['fingerprint'] and 'fold 1' in again['data']['evaluated_on']
    assert again['mean']['per_class'] == theirs['mean']['per_class']
    assert 'may have been trained' not in caplog.text
    validate(str(tmp_path / 'model'), {'device': 'cpu', 'split_seed': 1})
    assert 'may have been trained on some of the images that are held out here' in caplog.text


def test_a_run_without_figures_or_an_end_is_exported_with_a_warning(place, tmp_path, caplog):
    run = tmp_path / 'run'
    run.mkdir()
    state = load_checkpoint(place / 'student' / 'last.pth.tar')
    state['args'].epochs = 9
    save_checkpoint(run / 'last.pth.tar', state)
    result = export(run, tmp_path / 'out')
    assert 'is not finished: 1 of 9 epochs' in caplog.text and 'Exported without figures' in caplog.text
    assert set(result['files']) == {'args.yaml', 'config.json', 'model.safetensors'}
    assert timm_deitlt.load_model(tmp_path / 'out').predict(place / 'digit.png')


@pytest.mark.parametrize(('name', 'in_timm'), [
    ('student', 'deit_tiny_distilled_patch16_224'), ('vit', None), ('cnn', None), ('timms', 'test_resnet')])
def test_it_says_what_timm_alone_can_load(place, tmp_path, name, in_timm, caplog):
    result = export(place / name, tmp_path / 'out')
    assert result['timm_architecture'] == in_timm
    assert ('this package is needed to load it' in caplog.text) == (in_timm is None)
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['architecture'] == (in_timm or result['architecture'])


def test_a_folder_that_cannot_be_made_is_refused(place, tmp_path):
    (tmp_path / 'file').touch()
    for nowhere in (tmp_path / 'file' / 'x', tmp_path / 'file' / 'x' / 'y', Path('/proc/zz'), Path('/proc/zz/y')):
        with pytest.raises(ValueError, match='cannot be written.*give another folder'):
            export(place / 'vit', nowhere)


def test_an_earlier_export_is_replaced_and_nothing_else(place, tmp_path):
    out = tmp_path / 'out'
    export(place / 'vit', out)
    assert export(place / 'student', out)['timm_architecture'] == 'deit_tiny_distilled_patch16_224'
    (out / 'mine.txt').write_text('mine')
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match=r'holds other files than an exported model \(mine.txt\): give a new folder'):
        export(place / 'vit', out)
    with pytest.raises(ValueError, match='is a file: give a folder'):
        export(place / 'vit', out / 'mine.txt')
    with pytest.raises(ValueError, match='holds other files'):
        export(place / 'vit', place / 'vit')
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {'out'}, 'no folder is left over'


def test_nothing_is_left_of_an_export_that_fails(place, tmp_path, monkeypatch):
    monkeypatch.setattr('timm_deitlt.hub.export.load_back', lambda folder: timm.create_model('test_vit').eval())
    with pytest.raises(ValueError, match='other logits|cannot load'):
        export(place / 'student', tmp_path / 'out')
    assert list(tmp_path.iterdir()) == []


def test_command_exports_without_a_network_or_a_licence(place, tmp_path):
    done = run_script('export', place / 'student', tmp_path / 'out', script=COMMAND, env={'HF_HUB_OFFLINE': '1'})
    result = last_json(done)
    assert result['output'] == str(tmp_path / 'out') and result['experts'] == ['mean', 'cls', 'dist']
    refused = run_script('export', tmp_path, tmp_path / 'new', script=COMMAND, check=False)
    assert refused.returncode == 2 and 'timm-deitlt export: error: ' in refused.stderr
    assert 'holds neither last.pth.tar' in refused.stderr and not (tmp_path / 'new').exists()
