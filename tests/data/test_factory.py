import random
import shutil

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from timm_deitlt.data import create_dataset, has_split


def image_folder(root, counts, unreadable=False):
    """`counts` images of each class; the colour tells the class by its position."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            path = root / name / f'{i}.png'
            if unreadable:
                path.write_bytes(b'no image')
            else:
                Image.new('RGB', (2, 2), (number, i, 0)).save(path)
    return root


def test_global_random_states_are_neither_read_nor_changed(tmp_path):
    image_folder(tmp_path, {'a': 6, 'b': 6})

    def make():
        return [
            create_dataset('lt/digits').fingerprint, create_dataset('', tmp_path, imbalance_factor=3).fingerprint]

    first = make()
    np.random.seed(5), random.seed(5), torch.manual_seed(5)
    before = (np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate(), torch.get_rng_state())
    assert make() == first
    after = (np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate(), torch.get_rng_state())
    assert before[:3] == after[:3] and torch.equal(before[3], after[3])


@pytest.mark.parametrize('name, near', [
    ('lt/digit', 'did you mean lt/digits'),
    ('lt/Digits', 'did you mean lt/digits'),
    ('lt/svhn', 'The benchmarks are lt/digits, lt/fashion_mnist'),
    ('digits', 'did you mean lt/digits'),
    ('cifar10', 'did you mean lt/cifar10 or torch/cifar10'),
    ('torhc/qmnist', 'did you mean torch/qmnist'),
    ('torch/cifar11', 'did you mean torch/cifar10'),
])
def test_an_unknown_name_brings_up_near_ones(tmp_path, name, near):
    with pytest.raises(ValueError, match=f'Unknown data set .*{near}'):
        create_dataset(name, tmp_path)


def test_benchmarks_take_timms_options_and_no_others():
    options = dict(batch_size=4, seed=1, is_training=True, class_map=None, target_key='y')
    assert len(create_dataset('lt/digits', **options)) == 568
    for option in ('imbalance', 'class_map'):
        with pytest.raises(ValueError, match=f'no option {option}'):
            create_dataset('lt/digits', **{option: 3})
    with pytest.raises(ValueError, match="no split 'dev'"):
        create_dataset('lt/digits', split='dev')
    with pytest.raises(ValueError, match='at least 1'):
        create_dataset('lt/digits', split='test', imbalance_factor=0.1)


def test_an_option_that_timm_does_not_know_is_refused(tmp_path):
    with pytest.raises(ValueError, match='no option target_key'):
        create_dataset('', image_folder(tmp_path, {'a': 1, 'b': 1}), target_key='y')


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        create_dataset('', tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='nowhere'):
        create_dataset('torch/cifar10', tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='torch/cifar10 is not complete.*--dataset-download'):
        create_dataset('torch/cifar10', tmp_path)
    for name in ('', 'torch/cifar10', 'wds/x'):
        with pytest.raises(ValueError, match='--data-dir'):
            create_dataset(name)


def test_a_folder_is_read_by_timm_without_decoding_an_image(tmp_path):
    image_folder(tmp_path / 'train', {'n10': 2, 'n9': 5, 'n2': 3}, unreadable=True)
    train = create_dataset('', tmp_path)
    assert train.class_names == ('n2', 'n9', 'n10') and train.class_counts == [3, 5, 2]
    assert train.name == 'folder' and train.num_classes == 3


def test_a_folder_becomes_long_tailed_from_its_most_frequent_class(tmp_path):
    image_folder(tmp_path, {'a': 5, 'b': 16, 'c': 9})
    assert create_dataset('', tmp_path).class_counts == [5, 16, 9]
    train = create_dataset('', tmp_path, imbalance_factor=4)
    assert train.class_counts == [4, 16, 8]
    assert create_dataset('', tmp_path, imbalance_factor=4, n_max=8).class_counts == [2, 8, 4]
    assert create_dataset('', tmp_path, imbalance_factor=1).class_counts == [5, 5, 5]
    assert train.fingerprint != create_dataset('', tmp_path, imbalance_factor=4, split_seed=1).fingerprint
    for image, target in train:
        assert image.getpixel((0, 0))[0] == target


def test_impossible_long_tails_of_a_folder_are_refused(tmp_path):
    image_folder(tmp_path, {'a': 5, 'b': 16, 'c': 9})
    with pytest.raises(ValueError, match='the largest allowed is 16'):
        create_dataset('', tmp_path, imbalance_factor=17)
    with pytest.raises(ValueError, match='the largest allowed n_max is 16'):
        create_dataset('', tmp_path, imbalance_factor=4, n_max=17)
    with pytest.raises(ValueError, match='n_max needs an imbalance factor'):
        create_dataset('', tmp_path, n_max=4)


def test_validation_labels_follow_the_names_of_the_training_classes(tmp_path):
    image_folder(tmp_path / 'train', {'a': 3, 'b': 2, 'c': 2})
    image_folder(tmp_path / 'val', {'b': 4, 'c': 1})
    train = create_dataset('', tmp_path)
    alone = create_dataset('', tmp_path, 'validation', imbalance_factor=2)
    assert alone.class_names == ('b', 'c') and alone.targets.tolist() == [0, 0, 0, 0, 1]
    validation = create_dataset('', tmp_path, 'validation', class_names=train.class_names)
    assert validation.class_names == train.class_names
    assert validation.targets.tolist() == [1, 1, 1, 1, 2] and validation.class_counts == [0, 4, 1]
    image_folder(tmp_path / 'val', {'d': 1})
    with pytest.raises(ValueError, match="does not have, such as 'd'"):
        create_dataset('', tmp_path, 'validation', class_names=train.class_names)


def test_a_class_map_orders_and_selects_classes(tmp_path):
    image_folder(tmp_path / 'images', {'a': 1, 'b': 2, 'c': 3})
    (tmp_path / 'map.txt').write_text('c\na\n')
    train = create_dataset('', tmp_path / 'images', class_map=str(tmp_path / 'map.txt'))
    assert train.class_names == ('c', 'a') and train.class_counts == [3, 1]
    merged = create_dataset('', tmp_path / 'images', class_map={'a': 0, 'b': 0, 'c': 1})
    assert merged.class_names == ('a / b', 'c') and merged.class_counts == [3, 3]
    with pytest.raises(ValueError, match="no training image: '1', 'x'"):
        create_dataset('', tmp_path / 'images', class_map={'a': 0, 'x': 2})


def test_empty_classes_of_the_training_split_are_named(tmp_path):
    image_folder(tmp_path / 'train', {'a': 1, 'b': 1, 'empty': 0})
    image_folder(tmp_path / 'val', {'a': 1, 'b': 1, 'empty': 0})
    (tmp_path / 'train' / '.cache').mkdir()
    with pytest.raises(ValueError, match="Class 'empty' has no image"):
        create_dataset('', tmp_path)
    assert create_dataset('', tmp_path, 'val').class_counts == [1, 1]
    (tmp_path / 'train' / 'empty' / 'notes.txt').write_text('to come')
    with pytest.raises(ValueError, match="Class 'empty' has no image"):
        create_dataset('', tmp_path)
    for imbalance_factor in (None, 2):
        with pytest.raises(ValueError, match="no training image: 'empty'"):
            create_dataset('', tmp_path, class_map={'a': 0, 'b': 1, 'empty': 2}, imbalance_factor=imbalance_factor)
    with pytest.raises(ValueError, match="no training image: 'c'"):
        create_dataset('', image_folder(tmp_path / 'other', {'a': 1, 'b': 1}), class_names=['a', 'c', 'b'])
    shutil.rmtree(tmp_path / 'train' / 'empty')
    assert create_dataset('', tmp_path).class_counts == [1, 1]


def test_folders_without_two_classes_are_refused(tmp_path):
    (tmp_path / 'none').mkdir()
    with pytest.raises(ValueError, match='Found 0 images'):
        create_dataset('', tmp_path / 'none')
    for imbalance_factor in (None, 2):
        with pytest.raises(ValueError, match=r'one has 1 class\(es\) \(a\), at least 2'):
            create_dataset('', image_folder(tmp_path / 'one', {'a': 3}), imbalance_factor=imbalance_factor)
    Image.new('RGB', (1, 1)).save(image_folder(tmp_path / 'stray', {'a': 1, 'b': 1}) / 'cover.png')
    with pytest.raises(ValueError, match='Images lie directly in .*, 1 in all, such as cover.png: put'):
        create_dataset('', tmp_path / 'stray')


@pytest.mark.parametrize('name', ['', 'torch/image_folder'])
def test_a_class_of_the_evaluation_images_alone_is_named_with_their_folder(tmp_path, name):
    train = create_dataset(name, image_folder(tmp_path / 'train', {'dog': 2, 'cat': 1}).parent)
    image_folder(tmp_path / 'val', {'dgo': 1, 'cat': 1})
    with pytest.raises(ValueError, match=r"/val has 1 class\(es\) that the training set does not have, such as 'dgo'"):
        create_dataset(name, tmp_path, 'validation', class_names=train.class_names)


@pytest.mark.parametrize('folders, split, own', [
    (['train', 'val'], 'train', 'train'),
    (['train', 'val'], 'validation', 'val'),
    (['training', 'validation'], 'train', 'training'),
    (['training', 'validation'], 'val', 'validation'),
    (['train', 'test'], 'test', 'test'),
    ([], 'train', None),
    ([], 'validation', None),
])
def test_has_split_agrees_with_what_timm_reads(tmp_path, folders, split, own):
    for number, folder in enumerate(folders or ['.']):
        image_folder(tmp_path / folder, {'a': number + 1, 'b': 1})
    assert has_split(tmp_path, split) == (own is not None)
    read = timm.data.create_dataset('', str(tmp_path), split).reader.root
    assert read == str(tmp_path / own if own else tmp_path)


def test_a_missing_split_is_not_replaced_by_all_images(tmp_path):
    image_folder(tmp_path / 'train', {'a': 2, 'b': 1})
    assert not has_split(tmp_path, 'validation') and not has_split(tmp_path, '')
    assert not has_split(tmp_path / 'nowhere', 'train')
    # timm's own answer: the training images
    assert len(timm.data.create_dataset('', str(tmp_path), 'validation')) == 3
    for name in ('', 'torch/image_folder'):
        with pytest.raises(FileNotFoundError, match="no folder for the split 'validation', only for train"):
            create_dataset(name, tmp_path, 'validation')


def test_classes_may_be_called_like_splits(tmp_path):
    image_folder(tmp_path, {'bus': 2, 'test': 1, 'train': 3})
    assert create_dataset('', tmp_path, 'validation').class_names == ('bus', 'test', 'train')
    with pytest.raises(ValueError, match='Images lie directly in'):
        create_dataset('', tmp_path, 'train')
    assert create_dataset('', tmp_path, 'train', search_split=False).class_counts == [2, 1, 3]


def test_tar_files_are_read(tmp_path):
    image_folder(tmp_path / 'images', {'a': 2, 'b': 3})
    shutil.make_archive(str(tmp_path / 'images'), 'tar', tmp_path / 'images')
    train = create_dataset('', tmp_path / 'images.tar')
    assert train.class_names == ('a', 'b') and train.class_counts == [2, 3]
    assert [image.getpixel((0, 0))[0] for image, _ in train] == train.targets.tolist()
    assert train.fingerprint == create_dataset('', tmp_path / 'images.tar').fingerprint


def test_the_fingerprint_of_a_folder_does_not_depend_on_its_place(tmp_path):
    image_folder(tmp_path / 'x', {'a': 2, 'b': 3})
    shutil.copytree(tmp_path / 'x', tmp_path / 'y' / 'z')
    one, other = create_dataset('', tmp_path / 'x'), create_dataset('', tmp_path / 'y' / 'z')
    assert one.fingerprint == other.fingerprint
    Image.effect_noise((9, 9), 50).save(tmp_path / 'x' / 'a' / '0.png')
    assert create_dataset('', tmp_path / 'x').fingerprint != one.fingerprint


def test_a_broken_link_is_reported_when_its_image_is_read(tmp_path):
    image_folder(tmp_path, {'a': 1, 'b': 1})
    (tmp_path / 'a' / 'gone.png').symlink_to(tmp_path / 'nowhere.png')
    dataset = create_dataset('', tmp_path)
    with pytest.raises(ValueError, match=r"gone\.png of class 'a'"):
        list(dataset)


def test_a_given_transform_is_applied(tmp_path):
    image_folder(tmp_path, {'a': 1, 'b': 1})
    assert create_dataset('', tmp_path, transform=lambda image: image.size)[0] == ((2, 2), 0)
    assert create_dataset('', tmp_path, input_img_mode='L')[0][0].mode == 'L'


def test_a_target_transform_is_respected(tmp_path):
    image_folder(tmp_path, {'a': 1, 'b': 2, 'c': 3})
    for name in ('', 'torch/image_folder'):
        merged = create_dataset(name, tmp_path, target_transform=lambda target: target // 2)
        assert merged.class_counts == [3, 3] and merged.class_names == ('0', '1')
        assert [target for _, target in merged] == [0, 0, 0, 1, 1, 1]


def test_class_counts_of_an_indexed_set_are_not_asked_for(tmp_path):
    with pytest.raises(ValueError, match='leave --class-counts out'):
        create_dataset('lt/digits', class_counts_file=tmp_path / 'counts.json')


def test_unused_images_are_those_that_training_leaves_out_equally_many_of_each_class():
    common = dict(imbalance_factor=4, n_max=40, split_seed=3)
    train, unused = (create_dataset('lt/digits', split=split, **common) for split in ('train', 'unused'))
    test = create_dataset('lt/digits', split='test', split_seed=3)
    assert len(set(unused.class_counts)) == 1 and unused.class_counts[0] > 50
    parts = [set(part.indices.tolist()) for part in (train, unused, test)]
    assert not (parts[0] & parts[1] or parts[1] & parts[2] or parts[0] & parts[2])
    again = create_dataset('lt/digits', split='unused', **common)
    assert again.indices.tolist() == unused.indices.tolist()
    other = create_dataset('lt/digits', split='unused', **{**common, 'split_seed': 4})
    assert other.indices.tolist() != unused.indices.tolist()


def test_unused_images_that_there_are_none_of_are_an_error():
    with pytest.raises(ValueError, match='smaller --n-max'):
        create_dataset('lt/digits', split='unused', imbalance_factor=1, n_max=140)
    with pytest.raises(ValueError, match="no split 'unused'"):
        create_dataset('lt/imagenet', 'nowhere', split='unused')
