"""Random changes to training images, and resizing: NumPy in, NumPy out.

Each transform is a pure function of its images and of the generator it is given: the same
generator state gives the same result, the input is left as it is, and the dtype is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from arraycnn.arguments import Size, as_count, as_real, as_sizes
from arraycnn.arrays import Array
from arraycnn.geometry import check_rank

Transform: TypeAlias = Callable[[Array, np.random.Generator], Array]


@dataclass(frozen=True)
class RandomShift:
    """Move each image by up to ``pixels`` in both directions, independently and uniformly.

    ``fill`` is the value of the pixels that move in at the border. Images are (N, C, H, W).
    """

    pixels: int
    fill: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", as_count("pixels", self.pixels, minimum=0))
        as_real("fill", self.fill, minimum=-np.inf)

    def __call__(self, images: Array, rng: np.random.Generator) -> Array:
        """(N, C, H, W) -> the same shape. Raises ValueError for any other rank."""
        check_rank("images", images.shape, 2)
        return _random_windows(images, images.shape[2:], self.pixels, self.fill, rng)


@dataclass(frozen=True)
class RandomCrop:
    """Cut a window of ``size`` (an integer, or height and width) out of each image, uniformly.

    With ``padding`` the image is first surrounded by that many zero pixels on each side.
    """

    size: Size
    padding: int = 0

    def __post_init__(self) -> None:
        as_sizes("size", self.size, 2)
        object.__setattr__(self, "padding", as_count("padding", self.padding, minimum=0))

    def __call__(self, images: Array, rng: np.random.Generator) -> Array:
        """(N, C, H, W) -> (N, C, *size). Raises ValueError if a window does not fit."""
        check_rank("images", images.shape, 2)
        size = as_sizes("size", self.size, 2)
        padded = tuple(length + 2 * self.padding for length in images.shape[2:])
        if size[0] > padded[0] or size[1] > padded[1]:
            raise ValueError(
                f"size must fit into the padded image of {padded} pixels, got {size}; choose a "
                f"smaller size or a padding above {self.padding}"
            )
        return _random_windows(images, size, self.padding, 0.0, rng)


@dataclass(frozen=True)
class RandomFlip:
    """Mirror each image left to right with probability ``p``. Not for digits or letters."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if as_real("p", self.p) > 1:
            raise ValueError(f"p is a probability and must be at most 1, got {self.p!r}")

    def __call__(self, images: Array, rng: np.random.Generator) -> Array:
        """(N, C, H, W) -> the same shape. Raises ValueError for any other rank."""
        check_rank("images", images.shape, 2)
        flipped = rng.random(len(images)) < self.p  # (N,)
        return np.where(flipped[:, None, None, None], images[..., ::-1], images)


class Compose:
    """Apply several transforms one after the other, all with the same generator."""

    def __init__(self, *transforms: Transform) -> None:
        for transform in transforms:
            if not callable(transform):
                raise TypeError(
                    "every transform must be callable as transform(images, rng), got "
                    f"{transform!r}; write Compose(a, b), without a list"
                )
        self.transforms = transforms

    def __call__(self, images: Array, rng: np.random.Generator) -> Array:
        for transform in self.transforms:
            images = transform(images, rng)
        return images

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"


def resize(images: Array, size: Size) -> Array:
    """Resize (N, C, H, W) images bilinearly to (N, C, *size); ``size`` is an integer or a pair.

    Pixel centres lie at half-integers and the border is repeated, as in PyTorch's
    ``interpolate(mode="bilinear", align_corners=False)``: meant for enlarging, since shrinking by
    more than 2 skips pixels. Raises TypeError for integer images, ValueError for another rank.
    """
    height, width = as_sizes("size", size, 2)
    check_rank("images", images.shape, 2)
    if not np.issubdtype(images.dtype, np.floating):
        raise TypeError(
            f"images must be floating point, got {images.dtype}; convert them with "
            "images.astype(np.float32)"
        )
    if 0 in images.shape[2:]:
        raise ValueError(f"images must have at least one pixel to resize, got {images.shape}")
    low, high, weight = _taps(images.shape[3], width)
    rows = images[..., low] * (1 - weight) + images[..., high] * weight  # (N, C, H, width)
    low, high, weight = _taps(images.shape[2], height)
    weight = weight[:, np.newaxis]
    resized = rows[:, :, low] * (1 - weight) + rows[:, :, high] * weight  # (N, C, height, width)
    return resized.astype(images.dtype, copy=False)


def _taps(old: int, new: int) -> tuple[Array, Array, Array]:
    """For each new position the two old ones it lies between, and the weight of the second."""
    position = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1)
    low = position.astype(np.intp)
    return low, np.minimum(low + 1, old - 1), (position - low).astype(np.float32)


def _random_windows(
    images: Array, size: tuple[int, ...], padding: int, fill: float, rng: np.random.Generator
) -> Array:
    """One window of ``size`` per image, anywhere in the image with ``padding`` on each side."""
    count, channels, height, width = images.shape
    padded = np.full(
        (count, channels, height + 2 * padding, width + 2 * padding), fill, dtype=images.dtype
    )
    padded[:, :, padding : padding + height, padding : padding + width] = images
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(2, 3))
    tops, lefts = (rng.integers(windows.shape[axis], size=count) for axis in (2, 3))
    return windows[np.arange(count), :, tops, lefts]  # (N, C, *size)
