import numpy as np
import pytest
from PIL import Image

from timm_deitlt.data import create_dataset
from timm_deitlt.data.folds import split_fold, stratified_folds


@pytest.mark.parametrize('counts, folds', [([10, 5, 3], 5), ([7, 2, 1, 1], 3), ([2, 2], 4), ([100, 1, 37], 10)])
def test_every_image_is_evaluated_once_and_its_class_is_trained_on(counts, folds):
    targets = np.repeat(np.arange(len(counts)), counts)
    of_image = stratified_folds(targets, folds, seed=3)
    for label, count in enumerate(counts):
        mine = of_image[targets == label]
        if count == 1:
            assert mine.tolist() == [-1]
            continue
        held = np.bincount(mine, minlength=folds)
        assert mine.min() >= 0 and held.max() - held.min() <= 1 and held.max() < count
    sizes = np.bincount(of_image[of_image >= 0], minlength=folds)
    assert sizes.max() - sizes.min() <= 1


def test_the_seed_decides_and_global_state_does_not():
    targets = np.repeat([0, 1], [50, 9])
    first = stratified_folds(targets, 5)
    np.random.seed(4)
    assert np.array_equal(first, stratified_folds(targets, 5))
    assert not np.array_equal(first, stratified_folds(targets, 5, seed=1))
    assert np.random.randint(1000) == np.random.RandomState(4).randint(1000)


def test_impossible_folds_are_refused():
    for folds in (1, 4):
        with pytest.raises(ValueError, match=r'at least 2 and at most the number of images \(3\)'):
            stratified_folds([0, 0, 1], folds)


def test_more_folds_than_images_that_can_be_dealt_say_how_many_are_possible(tmp_path):
    for name, count in (('ant', 1), ('bee', 1), ('cat', 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new('RGB', (4, 4)).save(tmp_path / name / f'{i}.png')
    with pytest.raises(ValueError, match='Fold 2 of 3 has no image of .*: give at most --folds 2'):
        split_fold(create_dataset('', tmp_path), 3, 2)
    for file in (tmp_path / 'cat').iterdir():
        file.unlink()
    (tmp_path / 'cat').rmdir()
    with pytest.raises(ValueError, match='add images, because every class has only one'):
        split_fold(create_dataset('', tmp_path), 2, 0)


def test_folds_of_a_set_cover_it():
    digits = create_dataset('lt/digits', n_max=9, imbalance_factor=9)
    parts = [split_fold(digits, 3, fold) for fold in range(3)]
    evaluated = np.concatenate([evaluation.indices for _, evaluation, _ in parts])
    single = [label for label, count in enumerate(digits.class_counts) if count == 1]
    assert single and all(found == single for _, _, found in parts)
    assert sorted(evaluated) == sorted(digits.indices[~np.isin(digits.targets, single)])
    for train, evaluation, _ in parts:
        assert not set(train.indices) & set(evaluation.indices) and min(train.class_counts) >= 1
        assert len(train) + len(evaluation) == len(digits)
    assert len({train.fingerprint for train, *_ in parts}) == 3
