"""ImageNet-LT and iNaturalist-2018 as their list files describe them."""
import dataclasses
import json
import os
import pickle
import random

import numpy as np
import pytest
from PIL import Image

from timm_deitlt.benchmarks import BENCHMARKS
from timm_deitlt.data import UnreadableImageError, create_dataset
from timm_deitlt.data.readers import count_listed, read_list

WNIDS = ('n01440764', 'n01443537', 'n01484850')
TRAIN = [
    ('train/n01484850/n01484850_12.JPEG', 2), ('train/n01440764/n01440764_190.JPEG', 0),
    ('train/n01440764/n01440764_20.JPEG', 0), ('train/n01443537/a copy of 3.JPEG', 1),
    ('train/n01440764/n01440764_3.JPEG', 0),
]
TEST = [('val/n01484850/ILSVRC2012_val_00000003.JPEG', 2), ('val/n01440764/ILSVRC2012_val_00029930.JPEG', 0)]
INAT = [
    ('train_val2018/Plantae/2/9f8e.jpg', 2), ('train_val2018/Aves/0/96.jpg', 0),
    ('train_val2018/Plantae/2/cb75.jpg', 2), ('train_val2018/Insecta/1/11.jpg', 1), ('train_val2018/Aves/0/5.jpg', 0),
]


@pytest.fixture(autouse=True)
def three_classes(monkeypatch):
    """The benchmarks cut down to three classes."""
    for name, class_names in (('lt/imagenet', None), ('lt/inat18', ('0', '1', '2'))):
        small = dataclasses.replace(BENCHMARKS[name], num_classes=3, class_names=class_names)
        monkeypatch.setitem(BENCHMARKS, name, small)


def images(root, rows):
    """Images of these paths; the colour of an image is the length of its path and its label."""
    for path, label in rows:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (2, 2), (len(path), label, 0)).save(root / path, 'png')


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(''.join(f'{path} {label}\n' for path, label in rows))
    return file


def annotations(rows):
    """What the organisers' JSON says of these images."""
    ids = [100 + 7 * i for i in range(len(rows))]
    notes = [{'id': i, 'image_id': i, 'category_id': label} for i, (_, label) in zip(ids, rows, strict=True)]
    random.Random(0).shuffle(notes)
    return {
        'info': {'year': 2018},
        'images': [
            {'id': i, 'file_name': path, 'license': 3, 'rights_holder': 'J. Pérez', 'width': 800, 'height': 600}
            for i, (path, _) in zip(ids, rows, strict=True)
        ],
        'annotations': notes,
        'categories': [{'id': i, 'name': f'species {i}', 'supercategory': 'Aves'} for i in range(3)],
        'licenses': [],
    }


def imagenet(root, train=TRAIN, **lists):
    images(root, train)
    write(root / 'ImageNet_LT_train.txt', train)
    for part, rows in lists.items():
        images(root, rows)
        write(root / f'ImageNet_LT_{part}.txt', rows)
    return root


def inat(root):
    images(root, INAT)
    (root / 'train2018.json').write_text(json.dumps(annotations(INAT)))
    return root


def content(dataset):
    return [(*image.getpixel((0, 0)), target) for image, target in dataset]


def test_imagenet_lt_is_what_its_lists_say(tmp_path):
    imagenet(tmp_path, val=TRAIN[:1], test=TEST)
    train = create_dataset('lt/imagenet', tmp_path)
    assert train.class_names == WNIDS and train.class_counts == [3, 1, 1] and train.name == 'lt/imagenet'
    rows = sorted(TRAIN)
    assert train.keys == [path for path, _ in rows]
    assert content(train) == [(len(path), label, 0, label) for path, label in rows]
    for split, rows in (('validation', TRAIN[:1]), ('val', TRAIN[:1]), ('test', sorted(TEST))):
        part = create_dataset('lt/imagenet', tmp_path, split)
        assert content(part) == [(len(path), label, 0, label) for path, label in rows]
        assert part.class_names == train.class_names


def test_inat18_is_the_same_by_json_and_by_list(tmp_path):
    by_json = create_dataset('lt/inat18', inat(tmp_path))
    shuffled = random.Random(1).sample(INAT, len(INAT))
    write(tmp_path / 'lists' / 'iNaturalist18_train.txt', shuffled)
    by_list = create_dataset('lt/inat18', tmp_path, list_dir=tmp_path / 'lists')
    assert by_json.class_counts == by_list.class_counts == [2, 1, 2]
    assert by_json.class_names == by_list.class_names == ('0', '1', '2')
    assert by_json.keys == by_list.keys == sorted(path for path, _ in INAT)
    assert content(by_json) == content(by_list) == [(len(path), label, 0, label) for path, label in sorted(INAT)]
    assert by_json.fingerprint == by_list.fingerprint
    write(tmp_path / 'iNaturalist18_train.txt', INAT[:4])
    assert len(create_dataset('lt/inat18', tmp_path)) == 5, 'the organisers\' file is preferred'


@pytest.mark.parametrize('split', ['val', 'valid', 'validation', 'eval', 'evaluation'])
def test_inat18_is_evaluated_on_its_validation_images(tmp_path, split):
    inat(tmp_path)
    write(tmp_path / 'iNaturalist18_val.txt', INAT[:2])
    assert create_dataset('lt/inat18', tmp_path, split).class_counts == [1, 0, 1]
    with pytest.raises(ValueError, match='no labels of its test images.*use validation'):
        create_dataset('lt/inat18', tmp_path, 'test')


@pytest.mark.parametrize('name, num_classes', [('lt/imagenet', 1000), ('lt/inat18', 8142)])
def test_all_classes_of_the_published_sets_are_read(tmp_path, monkeypatch, name, num_classes):
    monkeypatch.undo()
    rows = [(f'train/n{label:08}/{i}.JPEG', label) for label in range(num_classes) for i in range(1 + (label == 5))]
    for path, _ in rows:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    write(tmp_path / BENCHMARKS[name].files['train'][-1], rows)
    train = create_dataset(name, tmp_path)
    assert train.num_classes == num_classes and train.class_counts == [1] * 5 + [2] + [1] * (num_classes - 6)
    assert train.class_names[5] == ('n00000005' if name == 'lt/imagenet' else '5')
    with pytest.raises(UnreadableImageError, match=r'n00000005/0\.JPEG of class'):
        train[5]


def test_natural_counts_are_only_cut_when_asked(tmp_path):
    imagenet(tmp_path, [(f'train/{WNIDS[label]}/{i}', label) for label in range(3) for i in range((2, 8, 4)[label])])
    assert create_dataset('lt/imagenet', tmp_path).class_counts == [2, 8, 4]
    assert create_dataset('lt/imagenet', tmp_path, imbalance_factor=8).class_counts == [1, 8, 2]
    assert create_dataset('lt/imagenet', tmp_path, imbalance_factor=2, n_max=4).class_counts == [2, 4, 2]
    with pytest.raises(ValueError, match='n_max needs an imbalance factor'):
        create_dataset('lt/imagenet', tmp_path, n_max=4)


def test_labels_follow_given_class_names(tmp_path):
    imagenet(tmp_path, test=TEST)
    order = (WNIDS[2], WNIDS[0], WNIDS[1])
    train = create_dataset('lt/imagenet', tmp_path, class_names=order)
    test = create_dataset('lt/imagenet', tmp_path, 'test', class_names=order)
    assert (train.class_names, train.class_counts, test.class_counts) == (order, [1, 3, 1], [1, 1, 0])
    assert [order[label] for _, label in test] == [WNIDS[0], WNIDS[2]]
    plain = create_dataset('lt/imagenet', tmp_path)
    assert train.fingerprint == plain.fingerprint and train.class_names != plain.class_names


def test_flat_validation_images_are_found(tmp_path):
    imagenet(tmp_path / 'x', test=TEST)
    imagenet(tmp_path / 'y', test=TEST)
    moved = tmp_path / 'y' / TEST[0][0]
    moved.rename(tmp_path / 'y' / 'val' / moved.name)
    tree, flat = (create_dataset('lt/imagenet', tmp_path / place, 'test') for place in 'xy')
    assert content(tree) == content(flat) and tree.keys == flat.keys == sorted(path for path, _ in TEST)
    assert tree.fingerprint == flat.fingerprint
    assert flat.base.filename(1, absolute=True) == str(tmp_path / 'y' / 'val' / moved.name)
    assert flat.base.filename(1) == TEST[0][0] and flat.base.filename(1, basename=True) == moved.name


def test_inat_images_without_super_category_are_found(tmp_path):
    old = [(path.replace('Plantae/', '').replace('Aves/', '').replace('Insecta/', ''), label) for path, label in INAT]
    images(tmp_path, old)
    (tmp_path / 'train2018.json').write_text(json.dumps(annotations(INAT)))
    train = create_dataset('lt/inat18', tmp_path)
    assert train.keys == sorted(path for path, _ in INAT)
    assert [target for _, target in train] == [label for _, label in sorted(INAT)]


@pytest.mark.parametrize('place', ['images', 'images/ImageNet_LT', '.'])
@pytest.mark.parametrize('name', ['ImageNet_LT_train.txt', 'Imagenet_LT_train.txt'])
def test_lists_are_found_in_and_beside_the_images(tmp_path, monkeypatch, place, name):
    images(tmp_path / 'images', TRAIN)
    write(tmp_path / place / name, TRAIN)
    assert len(create_dataset('lt/imagenet', tmp_path / 'images')) == 5
    monkeypatch.chdir(tmp_path)
    assert len(create_dataset('lt/imagenet', 'images')) == 5


def test_a_given_list_folder_is_the_only_one_looked_in(tmp_path):
    imagenet(tmp_path / 'images')
    write(tmp_path / 'mine' / 'ImageNet_LT_train.txt', TRAIN[:4])
    assert len(create_dataset('lt/imagenet', tmp_path / 'images', list_dir=tmp_path / 'mine')) == 4
    with pytest.raises(FileNotFoundError, match=r'looked for in \S*nowhere\. Give'):
        create_dataset('lt/imagenet', tmp_path / 'images', list_dir=tmp_path / 'nowhere')
    for name in ('lt/digits', ''):
        with pytest.raises(ValueError, match='only lt/imagenet, lt/inat18: leave --list-dir out'):
            create_dataset(name, tmp_path / 'images', list_dir=tmp_path / 'mine')


@pytest.mark.parametrize('name, split, files, url', [
    ('lt/imagenet', 'train', 'ImageNet_LT_train.txt or Imagenet_LT_train.txt', 'OpenLongTailRecognition-OLTR'),
    ('lt/imagenet', 'test', 'ImageNet_LT_test.txt or', 'OpenLongTailRecognition-OLTR'),
    ('lt/inat18', 'train', 'train2018.json or iNaturalist18_train.txt', 'inat_comp/tree/master/2018'),
    ('lt/inat18', 'validation', 'val2018.json or iNaturalist18_val.txt', 'inat_comp/tree/master/2018'),
])
def test_a_missing_list_is_named_with_its_source(tmp_path, name, split, files, url):
    (tmp_path / 'x').mkdir()
    with pytest.raises(FileNotFoundError, match=f'needs {files}.*{tmp_path}.*--list-dir.*{url}') as error:
        create_dataset(name, tmp_path / 'x', split)
    for folder in (tmp_path / 'x', tmp_path / 'x' / BENCHMARKS[name].files_folder, tmp_path):
        assert str(folder) in str(error.value)
    with pytest.raises(ValueError, match='--data-dir'):
        create_dataset(name)


@pytest.mark.parametrize('line, message', [
    ('train/x.JPEG', r'line 3: expected "path label" .* got .train/x\.JPEG'),
    ('train/x.JPEG two', 'line 3: expected "path label" with a whole number'),
    ('train/x.JPEG 1.0', 'line 3: expected'),
    ('train/x.JPEG 3', r'line 3: the label 3 of train/x\.JPEG is none of the 3 classes\. Allowed are 0 to 2'),
    ('train/x.JPEG -1', 'line 3: the label -1 of'),
    ('train/x.JPEG 99999999999999999999', 'line 3: the label 9999'),
    ('train/n01440764/gone.JPEG 0', r'line 3: train/n01440764/gone\.JPEG is not in .* where 1 of the 6 listed'),
    ('train/n01443537/n01440764_3.JPEG 0', 'line 3: .* each class needs its own folder'),
    ('train/n01440764/n01440764_99.JPEG 1', 'line [35]: .* each class needs its own folder'),
    ('train/n01440764/n01440764_3.JPEG 0', 'line 6: train/n01440764/n01440764_3.JPEG is listed 2 times'),
])
def test_a_wrong_line_is_named(tmp_path, line, message):
    imagenet(tmp_path)
    lines = (tmp_path / 'ImageNet_LT_train.txt').read_text().splitlines()
    (tmp_path / 'ImageNet_LT_train.txt').write_text('\n'.join([*lines[:2], line, *lines[2:]]))
    with pytest.raises((ValueError, FileNotFoundError), match=f'ImageNet_LT_train.txt, {message}'):
        create_dataset('lt/imagenet', tmp_path)


def test_two_classes_in_one_folder_are_refused(tmp_path):
    imagenet(tmp_path, [(path, label) if label else (path.replace(WNIDS[0], WNIDS[2]), label) for path, label in TRAIN])
    with pytest.raises(ValueError, match=f"line 2: .* has label 0, but elsewhere .* folder '{WNIDS[2]}' is label 2"):
        create_dataset('lt/imagenet', tmp_path)


def test_blank_lines_are_counted_and_passed_over(tmp_path):
    imagenet(tmp_path)
    file = tmp_path / 'ImageNet_LT_train.txt'
    file.write_bytes(b'\xef\xbb\xbf' + file.read_bytes().replace(b'\n', b'\r\n\r\n'))
    assert len(create_dataset('lt/imagenet', tmp_path)) == 5
    file.write_bytes(file.read_bytes() + b'x\r\n')
    with pytest.raises(ValueError, match="line 11: .* got 'x'"):
        create_dataset('lt/imagenet', tmp_path)


@pytest.mark.parametrize('text, message', [
    (b'', 'names no image'), (b'\n \n', 'names no image'), (b'train/\xff.JPEG 0\n', 'not a text file in UTF-8')])
def test_a_list_without_content_is_named(tmp_path, text, message):
    (tmp_path / 'ImageNet_LT_train.txt').write_bytes(text)
    with pytest.raises(ValueError, match=f'ImageNet_LT_train.txt .*{message}'):
        create_dataset('lt/imagenet', tmp_path)


@pytest.mark.parametrize('change, message', [
    (lambda c: c['annotations'][0].update(category_id=3), r'image id \d+: the label 3 of train_val2018'),
    (lambda c: c['annotations'][0].update(category_id='1'), r"image id \d+: the label '1'"),
    (lambda c: c['annotations'].pop(), r'image id \d+: it has no annotation, so the class of train_val2018'),
    (lambda c: c['annotations'].append({'image_id': 107, 'category_id': 2}), 'image id 107: it has 2 annotations'),
    (lambda c: c['images'][1].update(file_name='train_val2018/Aves/0/x.jpg'), r'image id 107: .*x\.jpg is not in'),
    (lambda c: c['images'][1].pop('id'), "must be a JSON object .*KeyError.'id'"),
    (lambda c: c.pop('annotations'), 'must be a JSON object'),
    (lambda c: (c['images'].clear(), c['annotations'].clear()), 'names no image'),
])
def test_a_wrong_entry_of_the_annotations_is_named(tmp_path, change, message):
    whole = annotations(INAT)
    images(tmp_path, INAT)
    change(whole)
    (tmp_path / 'train2018.json').write_text(json.dumps(whole))
    with pytest.raises((ValueError, FileNotFoundError), match=f'train2018.json.*{message}'):
        create_dataset('lt/inat18', tmp_path)


@pytest.mark.parametrize('text', ['{"images": [', '[]', '3'])
def test_json_of_another_kind_is_refused(tmp_path, text):
    (tmp_path / 'train2018.json').write_text(text)
    with pytest.raises(ValueError, match='train2018.json must be a JSON object with "images"'):
        create_dataset('lt/inat18', tmp_path)


def test_missing_images_are_counted_and_the_first_line_is_named(tmp_path):
    imagenet(tmp_path)
    for path, _ in (TRAIN[4], TRAIN[3]):
        (tmp_path / path).unlink()
    with pytest.raises(FileNotFoundError, match=r'line 4: .*a copy of 3\.JPEG .* 2 of the 5 .*--data-dir'):
        create_dataset('lt/imagenet', tmp_path)
    with pytest.raises(FileNotFoundError, match='line 1: .* 5 of the 5'):
        create_dataset('lt/imagenet', tmp_path / 'nowhere', list_dir=tmp_path)


def test_a_class_without_training_image_is_named(tmp_path):
    imagenet(tmp_path, [row for row in TRAIN if row[1] != 1])
    with pytest.raises(ValueError, match='ImageNet_LT_train.txt has no image of 1 of the 3 classes: label 1'):
        create_dataset('lt/imagenet', tmp_path)


def test_training_images_are_counted_without_any_image(tmp_path):
    write(tmp_path / 'ImageNet_LT_train.txt', TRAIN)
    (tmp_path / 'train2018.json').write_text(json.dumps(annotations(INAT)))
    for folders in ({'root': tmp_path}, {'root': tmp_path / 'images'}, {'list_dir': tmp_path}):
        assert count_listed(BENCHMARKS['lt/imagenet'], **folders) == [3, 1, 1]
        assert count_listed(BENCHMARKS['lt/inat18'], **folders) == [2, 1, 2]
    with pytest.raises(FileNotFoundError, match='needs train2018.json .* looked for in no folder'):
        count_listed(BENCHMARKS['lt/inat18'])


def test_an_evaluation_list_of_some_classes_takes_the_other_names_from_the_training_list(tmp_path):
    imagenet(tmp_path, test=TEST)
    assert create_dataset('lt/imagenet', tmp_path, 'test').class_names == WNIDS
    (tmp_path / 'ImageNet_LT_train.txt').unlink()
    with pytest.raises(FileNotFoundError, match='needs ImageNet_LT_train.txt'):
        create_dataset('lt/imagenet', tmp_path, 'test')
    write(tmp_path / 'ImageNet_LT_test.txt', TRAIN)
    assert create_dataset('lt/imagenet', tmp_path, 'test').class_names == WNIDS


def test_images_are_neither_opened_nor_asked_for_one_by_one(tmp_path, monkeypatch):
    inat(tmp_path)
    asked, listed = [], []
    stat, listdir = os.stat, os.listdir
    monkeypatch.setattr(os, 'stat', lambda path, **kwargs: asked.append(str(path)) or stat(path, **kwargs))
    monkeypatch.setattr(os, 'listdir', lambda path='.': listed.append(path) or listdir(path))
    monkeypatch.setattr(Image, 'open', None)
    train = create_dataset('lt/inat18', tmp_path)
    assert train.class_counts == [2, 1, 2] and train.fingerprint
    assert not [path for path in asked if path.endswith('.jpg')]
    assert len(listed) == len(set(listed)) == 3


def test_an_unreadable_image_of_a_list_is_named_where_it_lies(tmp_path):
    imagenet(tmp_path)
    (tmp_path / TRAIN[3][0]).write_bytes(b'no image')
    dataset = pickle.loads(pickle.dumps(create_dataset('lt/imagenet', tmp_path)))
    position = dataset.keys.index(TRAIN[3][0])
    with pytest.raises(UnreadableImageError, match=f"{tmp_path / TRAIN[3][0]} of class '{WNIDS[1]}'"):
        dataset[position]


def test_the_reader_is_one_of_timm(tmp_path):
    reader = read_list(BENCHMARKS['lt/imagenet'], imagenet(tmp_path), 'train')
    file, target = reader[0]
    with file:
        assert Image.open(file).size == (2, 2) and target == 0
    assert reader.filenames() == sorted(path for path, _ in TRAIN) and len(reader) == 5


def test_images_of_the_lists_are_opened_as_published(tmp_path):
    """Whatever folders do with orientation, depth and transparency: published figures are of what Pillow converts."""
    imagenet(tmp_path)
    exif = Image.Exif()
    exif[274] = 6
    Image.effect_noise((6, 4), 60).convert('RGB').save(tmp_path / TRAIN[0][0], 'jpeg', exif=exif)
    Image.new('RGBA', (2, 2), (9, 99, 200, 0)).save(tmp_path / TRAIN[1][0], 'png')
    Image.fromarray(np.full((2, 2), 60000, np.uint16)).save(tmp_path / TRAIN[2][0], 'png')
    train = create_dataset('lt/imagenet', tmp_path)
    for path, (image, _) in zip(train.keys, train, strict=True):
        with Image.open(tmp_path / path) as file:
            assert image.tobytes() == file.convert('RGB').tobytes() and image.size == file.size
