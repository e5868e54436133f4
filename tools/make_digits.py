"""Write the embedded digits, arraycnn/data/digits/*.gz, from scikit-learn's copy of them.

Run once by hand (needs scikit-learn): python tools/make_digits.py
The split is stored as the order of the images, so nothing has to be drawn when they are loaded.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

FOLDER = Path(__file__).parents[1] / "arraycnn" / "data" / "digits"
TEST_COUNT = 360


def test_counts(labels: np.ndarray) -> np.ndarray:
    """Test images per class: proportional, rounded by largest remainder to TEST_COUNT in all."""
    exact = np.bincount(labels) * TEST_COUNT / len(labels)
    counts = np.floor(exact).astype(int)
    by_remainder = np.argsort(counts - exact, kind="stable")
    counts[by_remainder[: TEST_COUNT - counts.sum()]] += 1
    return counts


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the test images, each in random order."""
    order = np.random.default_rng(0).permutation(len(labels))
    test = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(test_counts(labels)):
        test[order[labels[order] == label][:count]] = True
    return order[~test[order]], order[test[order]]


def write_idx(name: str, array: np.ndarray) -> None:
    """Write a uint8 array as gzip-compressed IDX, without a time stamp."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31, 9)
    content = compressor.compress(header + array.tobytes()) + compressor.flush()
    (FOLDER / f"{name}.gz").write_bytes(content)
    print(f"{name}.gz: {array.shape}, {len(content)} bytes")


def main() -> None:
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    FOLDER.mkdir(exist_ok=True)
    for part, chosen in zip(("train", "t10k"), split(labels), strict=True):
        write_idx(f"{part}-images-idx3-ubyte", images[chosen])  # (N, 8, 8), 0..16
        write_idx(f"{part}-labels-idx1-ubyte", labels[chosen])  # (N,)


if __name__ == "__main__":
    main()
