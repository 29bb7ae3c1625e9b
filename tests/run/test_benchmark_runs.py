"""Real runs from the benchmarks' own recipes, on small data in exactly the format of the real ones."""
import json
import os
import pickle

import numpy as np
import pytest
from conftest import last_json, run_script
from PIL import Image

from timm_deitlt.benchmarks import BENCHMARKS

SHORT = [
    '--img-size', '32', '--workers', '0', '--validation-batch-size', '250', '--val-interval', '2', '--epochs', '2',
    '--drw-start-epoch', '1', '--batch-size', '32', '--global-batch-size', '64', '--no-amp', '--no-report',
]
SMALL_STUDENT = ['--model-kwargs', 'embed_dim=48', 'depth=2', 'num_heads=3']  # its patches stay 16 px
# torchvision knows the published files by their checksum; nothing else of it is touched
NO_CHECKSUM = 'from torchvision.datasets import cifar\ncifar.check_integrity = lambda path, md5: True\n'
THREE_UPDATES = '''
from itertools import islice
from timm_deitlt.data.loader import TrainLoader
TrainLoader.epoch = lambda self, epoch, whole=TrainLoader.epoch: islice(whole(self, epoch), 3)
'''


def cifar_pickles(root, num_classes, train_per_class, test_per_class):
    """The python version of CIFAR: pickled dicts with rows of 3 x 32 x 32 bytes."""
    rng = np.random.default_rng(0)
    folder = root / ('cifar-10-batches-py' if num_classes == 10 else 'cifar-100-python')
    folder.mkdir(parents=True)

    def batch(name, per_class, parts=1):
        labels = np.tile(np.arange(num_classes), per_class)
        shade = (labels * (200 // num_classes))[:, None] + rng.integers(0, 56, (len(labels), 3072))
        for part, rows in enumerate(np.array_split(np.arange(len(labels)), parts), 1):
            content = {
                'data': shade[rows].astype(np.uint8), 'filenames': [f'{row}.png' for row in rows],
                'batch_label': f'{name} {part} of {parts}'}
            if num_classes == 10:
                content['labels'] = labels[rows].tolist()
            else:
                content.update(fine_labels=labels[rows].tolist(), coarse_labels=(labels[rows] // 5).tolist())
            (folder / (name if parts == 1 else f'{name}_{part}')).write_bytes(pickle.dumps(content, protocol=2))

    if num_classes == 10:
        batch('data_batch', train_per_class, parts=5)
        batch('test_batch', test_per_class)
        names = {'label_names': list(BENCHMARKS['lt/cifar10'].class_names), 'num_cases_per_batch': 10, 'num_vis': 3072}
        (folder / 'batches.meta').write_bytes(pickle.dumps(names, protocol=2))
    else:
        batch('train', train_per_class)
        batch('test', test_per_class)
        names = {'fine_label_names': [f'fine {i}' for i in range(100)],
                 'coarse_label_names': [f'coarse {i}' for i in range(20)]}
        (folder / 'meta').write_bytes(pickle.dumps(names, protocol=2))
    (root / 'no_checksum.py').write_text(NO_CHECKSUM)
    return ['--data-dir', root, '--device-modules', 'no_checksum'], {'PYTHONPATH': str(root)}


def some_images(root):
    """A few JPEG files of different shades and sizes, to be linked to under many names."""
    folder = root / 'originals'
    folder.mkdir(parents=True)
    files = []
    for i in range(8):
        files.append(folder / f'{i}.jpg')
        Image.new('RGB', (40 + i, 36), (30 * i, 200 - 20 * i, 100)).save(files[-1])
    return files


def link(original, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.link(original, path)


def imagenet_tree(root):
    """train/WNID/x.JPEG, ImageNet's own flat val/, and the three lists in a folder of their own."""
    originals, lists, images = some_images(root), root / 'lists', root / 'imagenet'
    lists.mkdir()
    train, val, test = [], [], []
    for label in range(1000):
        wnid = f'n{1_440_764 + 7 * label:08d}'
        for i in range(3 if label % 97 == 0 else 1):
            train.append(f'train/{wnid}/{wnid}_{i}.JPEG {label}')
        if label % 10 == 0:
            val.append(f'train/{wnid}/{wnid}_90{label}.JPEG {label}')
        test.append(f'val/{wnid}/ILSVRC2012_val_{label:08d}.JPEG {label}')
    for line in (*train, *val):
        link(originals[int(line.split()[1]) % 8], images / line.split()[0])
    for line in test:
        link(originals[int(line.split()[1]) % 8], images / 'val' / line.split()[0].rpartition('/')[2])
    for name, lines in (('train', train), ('val', val), ('test', test)):
        (lists / f'ImageNet_LT_{name}.txt').write_text('\n'.join(lines) + '\n')
    return ['--data-dir', images, '--list-dir', lists]


def inat_tree(root):
    """train_val2018/SUPER/CATEGORY/x.jpg and the two JSON files of the competition."""
    originals = some_images(root)
    for name, labels in (('train', [*range(8142), *range(0, 8142, 40)]), ('val', range(0, 8142, 20))):
        content = {
            'info': {'year': 2018}, 'licenses': [{'id': 1, 'name': 'CC'}], 'images': [], 'annotations': [],
            'categories': [{'id': i, 'name': f'species {i}', 'supercategory': 'Plantae'} for i in range(8142)]}
        for i, label in enumerate(labels):
            file = f'train_val2018/Plantae/{label}/{name}{i:032x}.jpg'
            link(originals[label % 8], root / file)
            content['images'].append(
                {'id': i, 'file_name': file, 'width': 40, 'height': 36, 'license': 1, 'rights_holder': 'A. Person'})
            content['annotations'].append({'id': i, 'image_id': i, 'category_id': label})
        (root / f'{name}2018.json').write_text(json.dumps(content))
    return ['--data-dir', root]


def three_updates(root):
    """Flags and environment with which an epoch ends after three updates, for networks or sets of the real size."""
    (root / 'three_updates.py').write_text(THREE_UPDATES)
    return ['--device-modules', 'three_updates'], {'PYTHONPATH': str(root)}


def run(recipe, root, *args, env=None):
    """train.py from a recipe, with a cache of its own."""
    return last_json(run_script(
        '-c', recipe, *args, '--output', root / 'output', '--teacher-cache', root / 'cache', '--experiment',
        recipe.replace('/', '-'), env=env))


def stages(root, recipe):
    """Lines of summary.csv, and whether the milestone at the DRW start is there."""
    folder = root / 'output' / recipe.replace('/', '-')
    return len((folder / 'summary.csv').read_text().splitlines()) - 1, (folder / 'milestone-1.pth.tar').is_file()


@pytest.mark.parametrize('recipe, num_classes, n_max', [
    ('cifar10_if100/deit_lt_tiny', 10, 10), ('cifar100_if50/deit_lt_tiny', 100, 2)])
def test_cifar_pickles_train_teacher_and_student_from_the_recipe(tmp_path, recipe, num_classes, n_max):
    data, env = cifar_pickles(tmp_path, num_classes, n_max, 2)
    few = ['--n-max', n_max, '--imbalance-factor', n_max, '--teacher-epochs', '1']
    result = run(recipe, tmp_path, *data, *SHORT, *SMALL_STUDENT, *few, env=env)
    counts = result['data']['train_counts']
    assert counts[0] == n_max and counts[-1] == 1 and len(counts) == num_classes
    assert result['teacher']['source'] == 'trained' and result['teacher']['name'] == 'resnet32_paco_sam'
    assert stages(tmp_path, recipe) == (2, True)
    assert sum(result['data']['test_counts']) == 2 * num_classes


@pytest.mark.parametrize('teacher_model', [
    pytest.param([], marks=pytest.mark.slow, id='resnet50'),  # the recipe's own
    pytest.param(['--model', 'test_resnet'], id='test_resnet')])
def test_imagenet_tree_with_lists_trains_teacher_and_student_from_the_recipes(tmp_path, teacher_model):
    data = imagenet_tree(tmp_path)
    images = 64 if teacher_model else 8  # in each of the two micro-batches of an update
    sizes = [*SHORT, '--batch-size', images, '--global-batch-size', 2 * images]
    short, env = ([], None) if teacher_model else three_updates(tmp_path)
    sizes += short
    teacher = run('imagenet_lt/teacher_ldam_sam', tmp_path, *data, *teacher_model, *sizes, env=env)
    assert teacher['data']['train_counts'][:2] == [3, 1] and sum(teacher['data']['test_counts']) == 1000
    assert stages(tmp_path, 'imagenet_lt/teacher_ldam_sam') == (2, True)
    checkpoint = tmp_path / 'output' / 'imagenet_lt-teacher_ldam_sam' / 'last.pth.tar'
    name = [] if not teacher_model else ['--teacher', f'{teacher_model[1]}_sam']
    result = run(
        'imagenet_lt/deit_lt_base_ldam', tmp_path, *data, *sizes, *SMALL_STUDENT, *name,
        '--teacher-checkpoint', checkpoint, env=env)
    assert result['teacher']['source'] == 'file' and result['teacher']['per_class'] == teacher['cls']['per_class']
    assert stages(tmp_path, 'imagenet_lt/deit_lt_base_ldam') == (2, True)
    assert result['shots']['head']['classes'] == 390 and result['data']['class_names'][0] == 'n01440764'


@pytest.mark.slow
def test_inat_tree_with_json_trains_teacher_and_student_from_the_recipes(tmp_path):
    data, (short, env) = inat_tree(tmp_path), three_updates(tmp_path)
    sizes = [*SHORT, '--batch-size', '64', '--global-batch-size', '256', *short]
    teacher = run('inat18/teacher_paco_sam', tmp_path, *data, '--model', 'test_resnet', *sizes, env=env)
    assert len(teacher['data']['train_counts']) == 8142 and sum(teacher['data']['test_counts']) == 408
    checkpoint = tmp_path / 'output' / 'inat18-teacher_paco_sam' / 'last.pth.tar'
    result = run(
        'inat18/deit_lt_base', tmp_path, *data, *sizes, *SMALL_STUDENT, '--teacher', 'test_resnet_paco_sam',
        '--teacher-checkpoint', checkpoint, env=env)
    assert result['teacher']['per_class'] == teacher['cls']['per_class']
    assert stages(tmp_path, 'inat18/deit_lt_base') == (2, True)
    assert (result['shots']['head']['classes'], result['shots']['tail']['classes']) == (842, 3599)
