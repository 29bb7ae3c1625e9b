"""Folders as they arrive: nested, with junk between, of any kind of file."""
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder

from timm_deitlt.data import UnreadableImageError, create_dataset, has_split
from timm_deitlt.data.folders import ReaderFolder, is_hidden, list_images
from timm_deitlt.data.image import image_suffixes, open_image
from timm_deitlt.data.splits import split_folder
from timm_deitlt.data.survey import survey


def put(root, *files, colour=(9, 9, 9), **options):
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 4), colour).save(path, **options)
    return root


def touch(root, *files):
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_the_class_is_the_first_folder_however_deep_the_file_lies(tmp_path):
    put(tmp_path, 'cats/adult/0.png', 'cats/kitten/1.png', 'cats/2.png', 'dogs/adult/0.png', 'dogs/puppy/x/y/1.png')
    train = create_dataset('', tmp_path)
    assert train.class_names == ('cats', 'dogs') and train.class_counts == [3, 2]
    put(tmp_path / 'split', 'train/cats/adult/0.png', 'train/dogs/adult/0.png', 'val/cats/x/1.png', 'val/dogs/1.png')
    assert create_dataset('', tmp_path / 'split').class_names == ('cats', 'dogs')
    assert create_dataset('', tmp_path / 'split', 'validation').class_counts == [1, 1]


@pytest.mark.parametrize('train, val', [('Train', 'Valid'), ('TRAIN', 'Val'), ('Training', 'EVAL'), ('train', 'Val')])
@pytest.mark.parametrize('name', ['', 'torch/image_folder'])
def test_splits_are_recognised_in_any_case(tmp_path, name, train, val):
    put(tmp_path, f'{train}/cats/0.png', f'{train}/cats/1.png', f'{train}/dogs/0.png', f'{val}/cats/2.png')
    put(tmp_path, f'{val}/dogs/2.png', 'TEST/cats/3.png', 'TEST/dogs/3.png', 'TEST/dogs/4.png')
    counts = {
        split: create_dataset(name, tmp_path, split).class_counts for split in ('train', 'validation', 'val', 'test')}
    assert counts == {'train': [2, 1], 'validation': [1, 1], 'val': [1, 1], 'test': [1, 2]}
    assert survey(tmp_path) == {'images': 3, 'side': 4}
    shutil.rmtree(tmp_path / val)
    assert not has_split(tmp_path, 'validation')
    with pytest.raises(FileNotFoundError, match=f"no folder for the split 'validation', only for TEST, {train}"):
        create_dataset(name, tmp_path, 'validation')


def test_among_other_classes_train_is_a_class_and_the_log_says_so(tmp_path, caplog):
    put(tmp_path, 'Train/steam/0.png', 'Train/1.png', 'Bus/0.png', 'Car/0.png')
    assert create_dataset('', tmp_path).class_names == ('Bus', 'Car', 'Train')
    assert 'The folders Train in' in caplog.text and 'are read as classes' in caplog.text
    assert split_folder(tmp_path, 'train') is None
    put(tmp_path / 'one', 'Train/cat/0.png', 'Train/dog/0.png', '__MACOSX/x.png')
    assert create_dataset('', tmp_path / 'one').class_names == ('cat', 'dog')


def test_hidden_and_system_entries_are_left_out_and_counted(tmp_path, caplog):
    put(tmp_path, 'cat/1.png', 'cat/.ipynb_checkpoints/1-checkpoint.png', 'cat/.hidden.png', 'dog/1.png')
    put(tmp_path, '.ipynb_checkpoints/2.png', '__MACOSX/cat/3.png')
    touch(tmp_path, '__MACOSX/cat/._1.png', 'cat/._1.png', 'dog/Thumbs.db', 'dog/.DS_Store', 'desktop.ini')
    with caplog.at_level(logging.INFO):
        train = create_dataset('', tmp_path)
    assert train.class_names == ('cat', 'dog') and train.class_counts == [1, 1]
    assert [line for line in caplog.messages if 'Skipped' in line] == [
        f'Skipped in {tmp_path}: 8 hidden or system entries.']
    assert is_hidden('._0.png') and is_hidden('__MACOSX') and not is_hidden('Thumbs.png')


@pytest.mark.parametrize('suffix', ['.tif', '.TIFF', '.bmp', '.webp', '.gif', '.ppm', '.jp2'])
def test_whatever_pillow_reads_is_read(tmp_path, suffix):
    put(tmp_path, f'a/0{suffix}', f'b/0{suffix}', f'b/1{suffix}')
    train = create_dataset('', tmp_path)
    assert train.class_counts == [1, 2] and [image.size for image, _ in train] == [(4, 4)] * 3


def test_files_of_another_kind_are_read_beside_pngs_and_the_rest_is_counted_in_one_line(tmp_path, caplog):
    put(tmp_path, 'a/0.png', 'a/1.tif', 'b/2.webp', 'b/3.bmp')
    touch(tmp_path, 'a/a.txt', 'b/b.TXT', 'b/label', 'b/raw.nef', 'b/x.npy')
    with caplog.at_level(logging.INFO):
        train = create_dataset('', tmp_path)
    assert train.class_counts == [2, 2]
    assert [line for line in caplog.messages if 'Skipped' in line] == [
        f'Skipped in {tmp_path}: 2 .txt, 1 without a suffix, 1 .nef, 1 .npy.']


def test_an_ordinary_folder_is_what_timm_reads_in_its_order(tmp_path):
    for folder in ('n10', 'n9', 'Cat', 'a b', 'a', 'a.x'):
        touch(tmp_path, *(f'{folder}/{name}.png' for name in ('1', '10', '2', 'img_02', 'IMG_1', 'x-1', 'x1', '007')))
    timms, ours = ReaderImageFolder(str(tmp_path)), ReaderFolder(tmp_path)
    assert list(ours.class_to_idx.items()) == list(timms.class_to_idx.items())
    assert ours.paths == [os.path.relpath(path, tmp_path) for path, _ in timms.samples]
    assert ours.targets == [label for _, label in timms.samples]
    assert ours.filename(0) == timms.filename(0) and ours.filename(0, basename=True) == '1.png'
    assert ours.image_keys[0] == f'{ours.paths[0]}:0'


def test_folders_are_listed_without_opening_a_file(tmp_path, monkeypatch):
    touch(tmp_path, *(f'class_{number}/{i}.png' for number in range(3) for i in range(5)))

    def opens(path, *args, **kwargs):
        raise AssertionError(f'{path} is opened')

    for place in ('builtins.open', 'io.open', 'os.open', 'PIL.Image.open'):
        monkeypatch.setattr(place, opens)
    reader = ReaderFolder(tmp_path)
    monkeypatch.undo()
    assert len(reader) == 15


def test_classes_without_an_image_and_images_without_a_class_are_named(tmp_path):
    put(tmp_path, 'a/0.png', 'b/0.png')
    touch(tmp_path, 'c/x.npy')
    with pytest.raises(ValueError, match="Class 'c' has no image in .*.npy needs --in-chans N"):
        create_dataset('', tmp_path)
    shutil.rmtree(tmp_path / 'c')
    (tmp_path / '.git').mkdir()
    assert create_dataset('', tmp_path).class_counts == [1, 1]
    touch(tmp_path, 'notes.txt')
    assert create_dataset('', tmp_path).class_counts == [1, 1]
    put(tmp_path, 'cover.png')
    with pytest.raises(ValueError, match='Images lie directly in'):
        create_dataset('', tmp_path)


def test_an_empty_folder_says_what_was_left_out(tmp_path):
    touch(tmp_path, 'a/x.npy', 'a/y.npy', 'b/z.txt')
    with pytest.raises(ValueError, match=r'Found 0 images.*2 \.npy, 1 \.txt.*--in-chans N'):
        create_dataset('', tmp_path)


def test_a_class_map_names_first_folders(tmp_path, caplog):
    put(tmp_path, 'cats/adult/0.png', 'dogs/1.png', 'birds/2.png')
    with caplog.at_level(logging.INFO):
        train = create_dataset('', tmp_path, class_map={'dogs': 0, 'cats': 1})
    assert train.class_names == ('dogs', 'cats') and train.class_counts == [1, 1]
    assert any('1 images of classes not in --class-map' in line for line in caplog.messages)
    with pytest.raises(ValueError, match="classes in --class-map.*such as 'birds'"):
        create_dataset('', tmp_path, class_map={'adult': 0})
    (tmp_path / 'map.csv').write_text('cats,0')
    with pytest.raises(ValueError, match='one class name a line'):
        create_dataset('', tmp_path, class_map=str(tmp_path / 'map.csv'))


def test_endings_may_be_chosen(tmp_path):
    put(tmp_path, 'a/0.png', 'a/1.bmp', 'b/0.PNG')
    assert create_dataset('', tmp_path, input_key='.png').class_counts == [1, 1]
    with pytest.raises(ValueError, match=r"Class 'b' has no image in .*: add images \(--input-key .bmp\)"):
        create_dataset('', tmp_path, input_key='.bmp')


def test_the_name_of_a_class_must_be_utf8(tmp_path):
    put(tmp_path, 'a/0.png', os.fsdecode(b'caf\xe9/0.png'))
    with pytest.raises(ValueError, match='is not UTF-8.*rename the folder'):
        create_dataset('', tmp_path)


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    put(tmp_path / 'store', '0.png', '1.png')
    put(tmp_path / 'images', 'b/0.png')
    (tmp_path / 'images' / 'a').symlink_to(tmp_path / 'store')
    (tmp_path / 'images' / 'b' / 'round').symlink_to(tmp_path / 'images')
    listing = list_images(tmp_path / 'images', image_suffixes())
    assert [path for path, _ in listing.files] == ['a/0.png', 'a/1.png', 'b/0.png'] and listing.hidden == 1


def test_folders_that_link_to_each_other_are_each_read_once_a_path(tmp_path):
    put(tmp_path, 'a/0.png', 'b/in/0.png')
    (tmp_path / 'a' / 'l').symlink_to('../b')
    (tmp_path / 'b' / 'in' / 'l').symlink_to('../../a')
    (tmp_path / 'b' / 'self').symlink_to('self')
    (tmp_path / 'c').symlink_to('c')
    listing = list_images(tmp_path, image_suffixes())
    assert [path for path, _ in listing.files] == ['a/0.png', 'a/l/in/0.png', 'b/in/0.png', 'b/in/l/0.png']
    assert listing.hidden == 2 and create_dataset('', tmp_path).class_counts == [2, 2]


def test_images_of_a_folder_are_opened_as_everywhere(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    put(tmp_path, 'a/0.jpg', exif=exif)
    Image.fromarray(np.full((2, 2), 60000, np.uint16)).save(tmp_path / 'a' / '1.png')
    put(tmp_path, 'b/0.png')
    Image.new('RGBA', (2, 2), (9, 9, 9, 0)).save(tmp_path / 'b' / '1.png')
    Image.new('RGB', (8, 4)).save(tmp_path / 'b' / '2.jpg', exif=exif)
    for name in ('', 'torch/image_folder'):
        seen = [np.asarray(image) for image, _ in create_dataset(name, tmp_path)]
        files = [tmp_path / file for file in ('a/0.jpg', 'a/1.png', 'b/0.png', 'b/1.png', 'b/2.jpg')]
        assert all(np.array_equal(x, np.asarray(open_image(file))) for x, file in zip(seen, files, strict=True))
        assert seen[1].max() == 233 and seen[3].min() == 255 and seen[4].shape[:2] == (8, 4)
    held = create_dataset('', tmp_path)
    assert held.hold(1e9) and np.array_equal(np.asarray(held[4][0]), seen[4])


def test_a_float_tiff_in_a_folder_is_named(tmp_path):
    put(tmp_path, 'a/0.png', 'b/0.png')
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / 'b' / '1.tif')
    with pytest.raises(UnreadableImageError, match=r'1\.tif of class .b.: it holds floats.*8 or 16 bits'):
        list(create_dataset('', tmp_path))


def bands(root, *files, channels=13, kind=np.uint16):
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / file, np.random.RandomState(number).randint(0, 200, (8, 6, channels)).astype(kind))
    return root


def test_arrays_of_13_bands_are_read_from_folders(tmp_path):
    bands(tmp_path, 'sea/0.npy', 'sea/1.npy', 'land/0.npy')
    train = create_dataset('', tmp_path, in_chans=13)
    assert train.class_counts == [1, 2] and {tuple(image.shape) for image, _ in train} == {(13, 8, 6)}
    assert not train.hold(1e9)
    with pytest.raises(ValueError, match='such as L, RGB or RGBA'):
        create_dataset('torch/image_folder', tmp_path, in_chans=13)
    with pytest.raises(UnreadableImageError, match=r'land.*12 channels'):
        create_dataset('', tmp_path, in_chans=12)[0]


def test_tiffs_as_arrays_are_refused_before_work_starts_where_nothing_reads_them(tmp_path, monkeypatch):
    put(tmp_path, 'a/0.tif', 'b/0.tif')
    monkeypatch.setattr('timm_deitlt.data.image.find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'timm_deitlt\[tiff\]'"):
        create_dataset('', tmp_path, in_chans=13)
