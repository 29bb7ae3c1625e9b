"""What a file holds, as training, validation, analysis and prediction see it."""
import doctest
import importlib.util
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from timm_deitlt.data import image as image_module
from timm_deitlt.data.image import check_readers, image_mode, image_suffixes, open_image


def stored(image, kind='png', **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def pixels(source, *args, **kwargs):
    return np.asarray(open_image(source, *args, **kwargs))


def test_the_example_holds():
    assert doctest.testmod(image_module).failed == 0


def test_channels_choose_the_mode_unless_it_is_named():
    assert [image_mode(channels) for channels in (1, 3, 2, 4, 13)] == ['L', 'RGB', 'array', 'array', 'array']
    assert image_mode(4, 'RGBA') == 'RGBA' and image_mode(3, 'array') == 'array'


def test_all_that_pillow_decodes_is_an_image():
    assert {'.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp', '.webp', '.gif', '.jp2', '.pgm'} <= image_suffixes()
    assert not {'.pdf', '.h5', '.mpg', '.npy', '.txt'} & image_suffixes()
    assert image_suffixes('array') == image_suffixes() | {'.npy'}


@pytest.mark.parametrize('kind', ['png', 'tiff', 'bmp', 'gif', 'webp'])
def test_a_path_and_a_file_give_the_same_image(tmp_path, kind):
    image = Image.effect_noise((7, 5), 60)
    image.save(tmp_path / 'x', kind)
    with open(tmp_path / 'x', 'rb') as file:
        file.read(3)  # wherever it stands
        assert np.array_equal(pixels(file), pixels(tmp_path / 'x'))
    assert open_image(tmp_path / 'x').mode == 'RGB' and open_image(tmp_path / 'x', 1).mode == 'L'


@pytest.mark.parametrize('kind', ['png', 'tiff'])
def test_grey_of_16_bits_is_scaled_by_its_depth_and_not_by_its_extremes(kind):
    values = np.array([[0, 128, 257, 30000], [32768, 60000, 65000, 65535]], dtype=np.uint16)
    wanted = [[round(int(v) * 255 / 65535) for v in row] for row in values]
    for mode in ('L', 'RGB'):
        seen = pixels(stored(Image.fromarray(values), kind), mode=mode)
        assert (seen if mode == 'L' else seen[..., 1]).tolist() == wanted
    dim = pixels(stored(Image.fromarray(values // 16), kind), 1)
    assert dim.max() == 16  # of its own extremes it would be 255


def test_a_tiff_says_that_it_has_12_bits():
    image = Image.fromarray(np.array([[0, 2048, 4095]], dtype=np.uint16))
    file = stored(image, 'tiff', tiffinfo={258: 16})
    assert pixels(file, 1).tolist() == [[0, 8, 16]]
    with Image.open(file) as opened:
        opened.tag_v2[258] = (12,)
        assert np.asarray(image_module._in_mode(opened, 'L', 'TIFF')).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize('array', [np.ones((2, 2), np.float32), np.ones((2, 2), np.int32)])
def test_a_tiff_without_a_known_range_says_what_to_do(array):
    with pytest.raises(ValueError, match='range is not known.*8 or 16 bits.*--input-img-mode array'):
        open_image(stored(Image.fromarray(array), 'tiff'))
    assert open_image(stored(Image.fromarray(array), 'tiff'), mode='F').mode == 'F'


@pytest.mark.parametrize('kind', ['jpeg', 'tiff', 'png', 'webp'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_images_are_upright(kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    file = stored(Image.effect_noise((8, 16), 60).convert('RGB'), kind, exif=exif)
    with Image.open(file) as image:
        image.load()
        wanted = np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    assert np.array_equal(pixels(file), wanted)


def test_damaged_exif_of_a_whole_image_is_no_matter():
    file = stored(Image.new('RGB', (4, 2)), 'jpeg', exif=b'Exif\0\0MM\0*\0\0\xff')
    assert open_image(file).size == (4, 2)


def hidden_colour(mode):
    """A red pixel that is seen, a blue one that is not."""
    image = Image.new('RGBA', (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 255, 0))
    if mode == 'P':
        image = image.convert('P', palette=Image.Palette.ADAPTIVE)
    return image.convert(mode)


@pytest.mark.parametrize('mode', ['RGBA', 'P', 'LA'])
def test_transparent_pixels_are_white(mode):
    file = stored(hidden_colour(mode))
    red = [76, 76, 76] if mode == 'LA' else [255, 0, 0]
    assert pixels(file).tolist() == [[red, [255, 255, 255]]]
    assert pixels(file, 1).tolist() == [[76, 255]]


def test_a_transparent_colour_is_white_and_half_transparent_ones_are_mixed():
    file = stored(Image.new('RGB', (2, 1), (0, 0, 255)), transparency=(0, 0, 255))
    assert pixels(file).tolist() == [[[255, 255, 255]] * 2]
    assert pixels(stored(Image.new('RGBA', (1, 1), (0, 0, 0, 51)))).tolist() == [[[204, 204, 204]]]
    assert pixels(stored(hidden_colour('RGBA')), mode='RGBA').tolist() == [[[255, 0, 0, 255], [0, 0, 255, 0]]]


def test_colours_of_a_palette_are_seen():
    image = Image.new('RGB', (2, 1), (10, 20, 30)).convert('P', palette=Image.Palette.ADAPTIVE)
    assert pixels(stored(image)).tolist() == [[[10, 20, 30]] * 2]
    assert pixels(stored(image), mode='array').tolist() == torch.tensor([10., 20., 30.]).view(3, 1, 1).expand(
        3, 1, 2).tolist()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file


@pytest.mark.parametrize('shape', [(4, 5, 13), (13, 4, 5)])
def test_arrays_of_many_channels_are_read_whichever_way_round(shape):
    values = np.random.RandomState(0).randint(0, 2 ** 16, shape, dtype=np.uint16)
    seen = open_image(npy(values), 13)
    wanted = values if shape[0] == 13 else values.transpose(2, 0, 1)
    assert seen.shape == (13, 4, 5) and seen.dtype == torch.float32 and seen.is_contiguous()
    assert np.allclose(seen, wanted.astype(np.float64) * 255 / 65535, rtol=1e-6)


@pytest.mark.parametrize('value, seen', [
    (np.uint8(51), 51), (np.int16(-32767), -255), (np.uint32(2 ** 32 - 1), 255), (np.float64(.25), 63.75),
    (np.float16(-2), -510), (np.bool_(True), 255),
])
def test_numbers_are_scaled_by_their_type(value, seen):
    assert open_image(npy(np.full((1, 1, 2), value)), 2).flatten().tolist() == pytest.approx([seen, seen])


@pytest.mark.parametrize('array, words', [
    (np.zeros((4, 4, 12)), r'shape \[4, 4, 12\].*13 channels'), (np.zeros((4, 4)), 'shape'), (np.zeros(13), 'shape'),
    (np.full((2, 2, 13), np.nan), 'not finite'), (np.zeros((2, 2, 13), complex), 'real numbers are needed'),
    (np.zeros((0, 2, 13)), 'shape'),
])
def test_arrays_that_are_no_such_images_are_refused(array, words):
    with pytest.raises(ValueError, match=words):
        open_image(npy(array), 13)


def test_an_array_of_objects_is_never_unpickled():
    with pytest.raises(ValueError, match='allow_pickle'):
        open_image(npy(np.array([[{}]], dtype=object)), 13)


def test_pictures_are_arrays_too():
    grey = Image.fromarray(np.full((2, 3), 65535, np.uint16))
    pgm = io.BytesIO(b'P5 3 2 65535\n' + np.asarray(grey).tobytes())  # whose 16 bits Pillow reads as 32
    for file in (stored(grey), pgm):
        assert open_image(file, 1, 'array').tolist() == torch.full((1, 2, 3), 255.).tolist()
    assert open_image(stored(hidden_colour('RGBA')), 4).flatten().tolist() == [255, 0, 0, 0, 0, 255, 255, 0]
    assert open_image(stored(hidden_colour('RGBA')), 3, 'array').flatten().tolist() == [255, 255, 0, 255, 0, 255]
    with pytest.raises(ValueError, match=r'\[1, 2, 4\].*13 channels'):
        open_image(stored(hidden_colour('RGBA')), 13)


@pytest.mark.parametrize('planes', ['contig', 'separate'])
def test_tiffs_of_13_bands_are_read(tmp_path, planes):
    tifffile = pytest.importorskip('tifffile')
    values = np.random.RandomState(0).randint(0, 10000, (6, 5, 13), dtype=np.uint16)
    stack = values if planes == 'contig' else values.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / 'x.tif', stack, planarconfig=planes, photometric='minisblack')
    with pytest.raises(OSError, match='cannot identify'):
        Image.open(tmp_path / 'x.tif')
    seen = open_image(tmp_path / 'x.tif', 13)
    assert np.allclose(seen.permute(1, 2, 0), values / 65535 * 255)
    (tmp_path / 'x.tif').write_bytes((tmp_path / 'x.tif').read_bytes()[:200])
    with pytest.raises(ValueError, match=r'tifffile cannot read it.*timm_deitlt\[tiff\]'):
        open_image(tmp_path / 'x.tif', 13)


@pytest.mark.parametrize('kind', ['uint8', 'uint16', 'int16', 'float32'])
@pytest.mark.parametrize('bands', [2, 4, 5, 13])
@pytest.mark.parametrize('layout', ['contig', 'separate', 'pages'])
def test_a_tiff_of_other_bands_than_colours_is_never_read_as_a_picture(tmp_path, kind, bands, layout):
    tifffile = pytest.importorskip('tifffile')
    stack = np.zeros((6, 7, bands), kind) if layout == 'contig' else np.zeros((bands, 6, 7), kind)
    planes = {} if layout == 'pages' else {'planarconfig': layout}
    tifffile.imwrite(tmp_path / 'x.tif', stack, photometric='minisblack', **planes)
    for mode in ('L', 'RGB'):
        with pytest.raises(ValueError, match=f'its {bands} bands cannot.*mode {mode}.*--in-chans {bands} --mean auto'):
            open_image(tmp_path / 'x.tif', mode=mode)
    assert open_image(tmp_path / 'x.tif', bands).shape == (bands, 6, 7)


@pytest.mark.parametrize('extra', [1, 2])
def test_bands_beside_colours_are_not_passed_over(tmp_path, extra):
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(
        tmp_path / 'x.tif', np.zeros((6, 5, 3 + extra), np.uint8), photometric='rgb', extrasamples=[0] * extra)
    with pytest.raises(ValueError, match=f'its {3 + extra} bands'):
        open_image(tmp_path / 'x.tif')


def test_16_bit_colours_plane_by_plane_are_refused_which_pillow_reads_wrongly(tmp_path):
    tifffile = pytest.importorskip('tifffile')
    colours = np.full((6, 5, 3), 257 * 90, np.uint16)
    tifffile.imwrite(tmp_path / 'x.tif', colours, photometric='rgb')
    assert pixels(tmp_path / 'x.tif').tolist() == np.full((6, 5, 3), 90).tolist()
    tifffile.imwrite(tmp_path / 'x.tif', colours.transpose(2, 0, 1), photometric='rgb', planarconfig='separate')
    with pytest.raises(ValueError, match='its 3 bands.*--in-chans 3 --input-img-mode array'):
        open_image(tmp_path / 'x.tif')


@pytest.mark.parametrize('mode', ['1', 'L', 'RGB', 'RGBA', 'CMYK', 'P', 'LA'])
def test_ordinary_tiffs_are_pictures_and_of_several_pages_the_first_is_read(mode):
    first, preview = Image.new(mode, (8, 6)), Image.new('L', (4, 3), 200)
    assert open_image(stored(first, 'tiff', save_all=True, append_images=[preview])).size == (8, 6)
    if mode not in ('L', 'LA'):
        assert open_image(stored(first, 'tiff', save_all=True, append_images=[first])).size == (8, 6)


@pytest.mark.parametrize('kind, bits', [('int16', 16), ('int8', 8)])
def test_a_signed_tiff_says_that_its_numbers_have_a_sign(tmp_path, kind, bits):
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(tmp_path / 'x.tif', np.array([[-5, 9]], kind))
    with pytest.raises(ValueError, match=f'signed whole numbers of {bits} bits.*unsigned.*array --in-chans 1'):
        open_image(tmp_path / 'x.tif')
    largest = 2 ** (bits - 1) - 1
    assert open_image(tmp_path / 'x.tif', 1, 'array').flatten().tolist() == pytest.approx(
        [-5 * 255 / largest, 9 * 255 / largest])


def test_a_tiff_of_many_bands_names_the_package_it_needs(monkeypatch):
    monkeypatch.setattr(image_module, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'timm_deitlt\[tiff\]'"):
        open_image(stored(Image.new('L', (2, 2)), 'tiff'), 13)
    with pytest.raises(ValueError, match=r"pip install 'timm_deitlt\[tiff\]'"):
        check_readers({'.tif'}, 'array')
    check_readers({'.tif'}, 'RGB'), check_readers({'.npy'}, 'array')
    monkeypatch.setattr(image_module, 'find_spec', importlib.util.find_spec)


def test_what_is_no_image_is_an_error_of_the_file(tmp_path):
    (tmp_path / 'x.png').write_bytes(b'no image')
    for channels in (3, 13):
        with pytest.raises(OSError, match='cannot identify'):
            open_image(tmp_path / 'x.png', channels)
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / 'y.png')
