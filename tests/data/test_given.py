"""The images that a command line names."""
import io

import pytest
from PIL import Image

from timm_deitlt.data.given import given_images
from timm_deitlt.data.image import image_suffixes, open_image


@pytest.fixture
def folder(tmp_path):
    for name in (
            'a/1.png', 'a/10.jpg', 'a/2.tif', 'a/deep/er/x.WEBP', 'b/3.bmp', 'b/notes.txt', 'b/.hidden.png',
            '.ipynb_checkpoints/c.png', '__MACOSX/a/._1.png', 'b/list.pdf'):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')
    return tmp_path


def names(folder, found):
    return [path.removeprefix(f'{folder}/') for path in found]


def test_a_folder_gives_all_images_below_in_the_order_of_their_paths_but_none_hidden(folder):
    assert names(folder, given_images([str(folder)])) == [
        'a/1.png', 'a/2.tif', 'a/10.jpg', 'a/deep/er/x.WEBP', 'b/3.bmp'], '2 before 10, as timm orders them'


def test_what_pillow_reads_is_an_image(tmp_path):
    Image.new('RGB', (4, 4)).save(tmp_path / 'x.gif')
    assert {'.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp', '.webp', '.gif'} <= image_suffixes()
    assert '.pdf' not in image_suffixes(), 'which Pillow only writes'


def test_files_globs_and_a_list_give_each_image_once_in_the_order_in_which_they_are_named(folder):
    listed = io.StringIO(f'{folder}/b/3.bmp\n\n{folder}/gone.png\r\n{folder}/a/1.png\n')
    found = given_images([f'{folder}/b/notes.txt', f'{folder}/*/1*', '-', f'{folder}/a'], listed)
    assert names(folder, found) == [
        'b/notes.txt', 'a/1.png', 'a/10.jpg', 'b/3.bmp', 'gone.png', 'a/2.tif', 'a/deep/er/x.WEBP']
    deep = names(folder, given_images([f'{folder}/a/**']))
    assert sorted(deep) == ['a/1.png', 'a/10.jpg', 'a/2.tif', 'a/deep/er/x.WEBP']


def test_other_spellings_of_a_path_are_one_image(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / 'link').symlink_to('a/deep')
    (folder / 'a' / '3.bmp').write_bytes(b'')
    found = given_images(['a/1.png', './a/1.png', f'{folder}/a//1.png', 'a/1.png', 'link/../3.bmp', 'b/3.bmp'])
    assert found == ['a/1.png', 'link/../3.bmp', 'b/3.bmp'], 'as it was named first'


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path):
    (tmp_path / 'x[1].png').write_bytes(b'')
    assert given_images([str(tmp_path / 'x[1].png')]) == [str(tmp_path / 'x[1].png')]


def test_a_name_that_is_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder 'nowhere.png'.*globs, or -"):
        given_images(['nowhere.png'])
    with pytest.raises(ValueError, match='no image in .*suffix'):
        given_images([str(tmp_path)])


@pytest.mark.parametrize(('in_chans', 'mode'), [(1, 'L'), (3, 'RGB')])
def test_an_image_is_upright_and_has_the_channels_asked_for(tmp_path, in_chans, mode):
    image = Image.new('RGB', (6, 4), 'red')
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / 'x.jpg', exif=exif)
    opened = open_image(tmp_path / 'x.jpg', in_chans)
    assert (opened.size, opened.mode) == ((4, 6), mode)
    with open(tmp_path / 'x.jpg', 'rb') as file:
        assert open_image(file, in_chans).size == (4, 6)
