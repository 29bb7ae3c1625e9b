"""Images that Pillow reads wrongly or not at all: negatives, transparent colours of 16 bits, TIFFs of rare numbers."""
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from timm_deitlt.data.image import as_opened, open_image

VALUES = np.array([[0, 10000, 257, 65535], [128, 300, 60000, 40000]], np.uint16)


def tiff(array, **options):
    tifffile = pytest.importorskip('tifffile')
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file


def png_of_16_bits(values, hidden):
    """A PNG with a transparent colour, which Pillow does not write; `[H, W]` is grey and `[H, W, 3]` is RGB."""
    def chunk(name, content):
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    height, width = values.shape[:2]
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
    header = struct.pack('>IIBBBBB', width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    return io.BytesIO(
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'tRNS', np.array(hidden, '>u2').tobytes())
        + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))


@pytest.mark.parametrize('kind', ['uint8', 'uint16'])
def test_a_negative_is_inverted_at_any_depth(kind):
    values = (VALUES >> (8 if kind == 'uint8' else 0)).astype(kind)
    largest = np.iinfo(kind).max
    file = tiff(values, photometric='miniswhite')
    wanted = [[round((largest - int(v)) * 255 / largest) for v in row] for row in values]
    assert np.asarray(open_image(file, 1)).tolist() == wanted
    assert np.asarray(open_image(file))[..., 2].tolist() == wanted
    with Image.open(file) as opened:
        assert np.asarray(as_opened(opened, 1)).tolist() == wanted
    for byteorder in '<>':
        file = tiff(values, photometric='miniswhite', byteorder=byteorder)
        seen = open_image(file, 1, 'array')[0].numpy()
        assert np.allclose(seen, (largest - values.astype(np.float64)) * 255 / largest)
    assert open_image(tiff(values > 9, photometric='miniswhite'), 1, 'array')[0].tolist() == np.where(
        values > 9, 0., 255.).tolist()


def test_negatives_that_cannot_be_inverted_say_what_to_do():
    for byteorder in '<>':
        open_image(tiff(VALUES, photometric='minisblack', byteorder=byteorder))
    with pytest.raises(ValueError, match='big-endian.*MinIsWhite.*0 for black.*--input-img-mode array --in-chans 1'):
        open_image(tiff(VALUES, photometric='miniswhite', byteorder='>'))
    with pytest.raises(ValueError, match='float32 with 0 for white.*MinIsBlack'):
        open_image(tiff(VALUES.astype(np.float32), photometric='miniswhite'), 1, 'array')


@pytest.mark.parametrize('orientation', range(1, 9))
def test_tiffs_are_upright_as_arrays_too(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    picture = Image.effect_noise((5, 8), 60).convert('RGB')
    file = io.BytesIO()
    picture.save(file, 'tiff', exif=exif)
    picture.getexif()[274] = orientation
    wanted = np.asarray(ImageOps.exif_transpose(picture))
    assert np.array_equal(open_image(file, 3, 'array').permute(1, 2, 0), wanted)
    stack = np.asarray(picture).transpose(2, 0, 1)
    for options in ({'photometric': 'rgb', 'planarconfig': 'separate'}, {'photometric': 'minisblack'}):
        file = tiff(stack, extratags=[(274, 'H', 1, orientation, True)], **options)
        assert np.array_equal(open_image(file, 3, 'array').permute(1, 2, 0), wanted)
    file = tiff(stack[0], extratags=[(274, 'H', 1, orientation, True)])
    assert np.array_equal(open_image(file, 1, 'array')[0], wanted[..., 0])


@pytest.mark.parametrize('kind, words', [
    ('float16', 'holds floats'), ('float64', 'holds floats'), ('int64', 'signed whole numbers of 64 bits'),
    ('uint64', 'whole numbers of 64 bits'),
])
@pytest.mark.parametrize('bigtiff', [False, True])
def test_numbers_that_pillow_does_not_know_have_no_known_range(kind, words, bigtiff):
    file = tiff(np.ones((4, 5), kind), photometric='minisblack', bigtiff=bigtiff)
    with pytest.raises(ValueError, match=f'{words}.*range is not known.*--input-img-mode array'):
        open_image(file)
    assert open_image(file, 1, 'array').shape == (1, 4, 5)


def test_the_transparent_colour_of_16_bits_is_white():
    file = png_of_16_bits(VALUES, 257)
    wanted = [[0, 39, 255, 255], [0, 1, 233, 156]]
    for mode in ('L', 'RGB'):
        seen = np.asarray(open_image(file, mode=mode))
        assert (seen if mode == 'L' else seen[..., 0]).tolist() == wanted
    assert np.asarray(open_image(file, mode='LA'))[0].tolist() == [[0, 255], [39, 255], [1, 0], [255, 255]]
    stored = np.where(VALUES == 257, 65535, VALUES)
    assert np.allclose(open_image(file, 1, 'array')[0], stored / 257)


def test_a_transparent_colour_of_three_times_16_bits_is_compared_in_all_bits():
    values = np.full((2, 3, 3), 10000, np.uint16)
    values[0, 1, 2] += 1
    values[1, 0, 0] = 60000
    file = png_of_16_bits(values, [10000] * 3)
    wanted = [[255, 39, 255], [234, 255, 255]]
    assert np.asarray(open_image(file))[..., 0].tolist() == wanted
    assert open_image(file, 3, 'array')[0].tolist() == wanted
    assert np.asarray(open_image(file, mode='RGBA'))[..., 3].tolist() == [[0, 255, 0], [255, 0, 0]]
    with Image.open(file) as opened:
        assert np.asarray(as_opened(opened))[..., 0].tolist() == wanted
        assert opened.mode == 'RGB' and opened.info['transparency'] == (10000,) * 3


@pytest.mark.parametrize('mode', ['RGB', 'array'])
def test_an_empty_file_is_called_empty(tmp_path, mode):
    (tmp_path / 'x.png').touch()
    with pytest.raises(OSError, match='^the file is empty$'):
        open_image(tmp_path / 'x.png', mode=mode)
    with pytest.raises(OSError, match='^the file is empty$'):
        open_image(io.BytesIO())
