"""SVHN's MATLAB files: read where SciPy is installed, refused in clear words where they are not."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arraycnn as ac
from arraycnn.data.svhn import read_svhn

scipy_io = pytest.importorskip("scipy.io")


def write(path: Path, **arrays: Any) -> Path:
    scipy_io.savemat(path, arrays, do_compression=True)
    return path


def part(count: int, seed: int) -> dict[str, Any]:
    """X and y as in the published files: pixels first, the digit zero called 10."""
    rng = np.random.default_rng(seed)
    labels = np.arange(1, count + 1)[:, None] % 10
    images = rng.integers(0, 256, (32, 32, 3, count)).astype(np.uint8)
    return {"X": images, "y": np.where(labels == 0, 10, labels).astype(np.uint8)}


@pytest.mark.parametrize("folder", ["", "svhn"])
def test_both_parts_are_found_and_scaled(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    train, test = part(20, 0), part(10, 1)
    write(place / "train_32x32.mat", **train)
    write(place / "test_32x32.mat", **test)
    dataset = ac.datasets.svhn(tmp_path)
    assert dataset.train_images.shape == (20, 3, 32, 32)
    assert dataset.train_images.dtype == np.float32
    assert dataset.test_labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert dataset.class_names == tuple("0123456789")
    expected = test["X"][5, 7, 2, 3] / np.float32(255)
    assert dataset.test_images[3, 2, 5, 7] == expected


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"SVHN was not found: train_32x32\.mat and"):
        ac.datasets.svhn(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(3)}, r"X and y were expected, found \['a'\]"),
        ({"X": np.zeros((32, 32, 3, 5), np.uint8), "y": np.ones((4, 1))}, "X of shape"),
        ({"X": np.zeros((32, 32, 3, 4)), "y": np.ones((4, 1))}, "and uint8 was expected"),
        ({"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.full((4, 1), 11)}, "from 1 to 10"),
        ({"X": np.zeros((32, 32, 3, 1), np.uint8), "y": np.full((1, 1), 2.5)}, "from 1 to 10"),
    ],
)
def test_other_contents(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_svhn(write(tmp_path / "train_32x32.mat", **arrays))


@pytest.mark.parametrize("content", [b"", b"no MATLAB file at all" * 20, None])
def test_damaged_files(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "train_32x32.mat"
    if content is None:
        content = write(path, **part(10, 0)).read_bytes()[:-500]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a readable MATLAB file"):
        read_svhn(path)


def test_without_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        read_svhn(tmp_path / "train_32x32.mat")
