"""Decoded images in memory."""
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


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


def pixel_table(dataset: Any) -> tuple[Tensor, Tensor] | None:
    """All images uint8 `[N, C, H, W]` and labels `[N]` of a set that is in memory; None if it is not.

    Sets of torchvision and scikit-learn are in memory if they have `data`, others if their images are held. None too if
    the images differ in size.
    """
    base = getattr(dataset, 'base', dataset)
    if getattr(dataset, 'held', None) is None and not isinstance(getattr(base, 'data', None), (np.ndarray, Tensor)):
        return None
    images, labels = zip(*(dataset[number] for number in range(len(dataset))), strict=True)
    if len({image.size for image in images}) > 1:
        return None
    width, height = images[0].size
    pixels = np.stack([np.asarray(image) for image in images]).reshape(len(images), height, width, -1)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)
