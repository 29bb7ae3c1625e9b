"""Decoded images in memory."""
from collections.abc import Iterable

from PIL import Image


class HeldImages:
    """Decoded images in a single buffer, which forked loader processes share.

    Args:
        images: Pairs of a number and its image.
        max_bytes: Largest allowed size of all images.

    Raises:
        MemoryError: If the images are larger.

    Example:
        >>> held = HeldImages([(7, Image.new('RGB', (4, 2), 'red'))], max_bytes=100)
        >>> held[7].size, 8 in held, held.nbytes
        ((4, 2), False, 24)
    """

    def __init__(self, images: Iterable[tuple[int, Image.Image]], max_bytes: float):
        self._pixels = bytearray()
        self._places: dict[int, tuple[str, tuple[int, int], int, int]] = {}
        for number, image in images:
            start = len(self._pixels)
            self._pixels += image.tobytes()
            self._places[number] = image.mode, image.size, start, len(self._pixels)
            if len(self._pixels) > max_bytes:
                raise MemoryError(f'{len(self._places)} images take more than {max_bytes} bytes')

    @property
    def nbytes(self) -> int:
        return len(self._pixels)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __getitem__(self, number: int) -> Image.Image:
        """The image with this number. Do not change it in place."""
        mode, size, start, end = self._places[number]
        return Image.frombuffer(mode, size, memoryview(self._pixels)[start:end], 'raw', mode, 0, 1)  # type: ignore[arg-type]
