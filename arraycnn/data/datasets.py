"""The embedded digits; MNIST, Fashion-MNIST and Kuzushiji-MNIST, downloaded if need be; SVHN."""

import hashlib
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from arraycnn.arrays import Array
from arraycnn.data.idx import read_idx
from arraycnn.data.svhn import read_svhn


class Dataset(NamedTuple):
    """Images with their labels, split into a training and a test part."""

    train_images: Array  # (N, C, H, W) float32 in [0, 1]; C is 1 except for svhn
    train_labels: Array  # (N,) int64
    test_images: Array  # (M, C, H, W) float32 in [0, 1]
    test_labels: Array  # (M,) int64
    class_names: tuple[str, ...]


class _RemoteFile(NamedTuple):
    size: int
    sha256: str


@dataclass(frozen=True)
class _Source:
    """Where one data set comes from; ``name`` is also the name of its folder."""

    name: str
    title: str
    class_names: tuple[str, ...]
    mirrors: tuple[str, ...]
    files: dict[str, _RemoteFile]  # keyed by the name without .gz, in the order of Dataset


_DIGIT_NAMES = tuple("0123456789")
_FILE_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

# Sizes and SHA-256 of the published .gz files. Two independent lists agree on them: that of
# TensorFlow Datasets (url_checksums) and that of torchvision's prototype datasets.
_MNIST = _Source(
    name="mnist",
    title="MNIST",
    class_names=_DIGIT_NAMES,
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    files={
        "train-images-idx3-ubyte": _RemoteFile(
            9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        "train-labels-idx1-ubyte": _RemoteFile(
            28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        "t10k-images-idx3-ubyte": _RemoteFile(
            1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        "t10k-labels-idx1-ubyte": _RemoteFile(
            4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    },
)
_FASHION_MNIST = _Source(
    name="fashion-mnist",
    title="Fashion-MNIST",
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    files={
        "train-images-idx3-ubyte": _RemoteFile(
            26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        "train-labels-idx1-ubyte": _RemoteFile(
            29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
        "t10k-images-idx3-ubyte": _RemoteFile(
            4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        "t10k-labels-idx1-ubyte": _RemoteFile(
            5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
    },
)
_KMNIST = _Source(
    name="kmnist",
    title="Kuzushiji-MNIST",
    class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    mirrors=(
        "https://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        # The .gz files were replaced by Parquet later on; this revision still has them.
        "https://huggingface.co/datasets/tanganke/kmnist/resolve/"
        "756d43e894032ce8838db8b32e7500c9c3b5d050/raw/",
    ),
    files={
        "train-images-idx3-ubyte": _RemoteFile(
            18165135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"
        ),
        "train-labels-idx1-ubyte": _RemoteFile(
            29497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"
        ),
        "t10k-images-idx3-ubyte": _RemoteFile(
            3041136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"
        ),
        "t10k-labels-idx1-ubyte": _RemoteFile(
            5120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"
        ),
    },
)

# The three sets use the same file names, so a folder is recognised by its smallest file:
# SHA-256 of the published t10k-labels-idx1-ubyte.gz, and of MNIST's unpacked.
_FINGERPRINTED = "t10k-labels-idx1-ubyte"
_FINGERPRINTS = {
    **{source.files[_FINGERPRINTED].sha256: source for source in (_MNIST, _FASHION_MNIST, _KMNIST)},
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2": _MNIST,
}


def digits() -> Dataset:
    """The embedded handwritten digits: 1,437 training and 360 test images of 8×8 pixels.

    The 1,797 images of the test part of the UCI set "Optical Recognition of Handwritten Digits"
    (E. Alpaydin, C. Kaynak, doi:10.24432/C50P49, CC BY 4.0), as shipped with scikit-learn, with
    their grey levels 0..16 scaled to [0, 1]. The split is fixed, in random order, and stratified:
    each class has the same share of both parts. Nothing is downloaded.
    """
    folder = Path(__file__).parent / "digits"
    return _read([folder / f"{name}.gz" for name in _FILE_NAMES], _DIGIT_NAMES, white=16)


def mnist(data_dir: str | os.PathLike[str] | None = None, *, download: bool = True) -> Dataset:
    """MNIST: 60,000 training and 10,000 test images of 28×28 pixels, ten digits.

    The four IDX files (``train-images-idx3-ubyte`` and so on, unpacked or .gz) are looked for in
    ``data_dir``, then in ``$ARRAYCNN_DATA``, in both cases first in the subfolder ``mnist``, then
    in the cache ``$XDG_CACHE_HOME/arraycnn/mnist`` (``~/.cache/arraycnn/mnist``). If they are
    nowhere and ``download`` is true, they are downloaded into ``data_dir/mnist`` or, without a
    ``data_dir``, into the cache, and compared with their published SHA-256.

    Raises:
        FileNotFoundError: the files are nowhere and were not downloaded; the message names every
            place looked at, every mirror tried, and where to put the files by hand.
        ValueError: a file is damaged, or the files do not fit together.

    Source: Y. LeCun, C. Cortes, C. Burges; LeCun et al., "Gradient-based learning applied to
    document recognition", Proc. IEEE 86 (1998).
    """
    return _load(_MNIST, data_dir, download)


def fashion_mnist(
    data_dir: str | os.PathLike[str] | None = None, *, download: bool = True
) -> Dataset:
    """Fashion-MNIST: articles of clothing, of the sizes of MNIST; found like :func:`mnist`.

    The subfolder is ``fashion-mnist``. Source: H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747.
    """
    return _load(_FASHION_MNIST, data_dir, download)


def kmnist(data_dir: str | os.PathLike[str] | None = None, *, download: bool = True) -> Dataset:
    """Kuzushiji-MNIST: cursive Japanese, of the sizes of MNIST; found like :func:`mnist`.

    The subfolder is ``kmnist``; the class names are the transcribed characters. Source: T. Clanuwat
    et al., "Deep learning for classical Japanese literature", arXiv:1812.01718.
    """
    return _load(_KMNIST, data_dir, download)


def svhn(data_dir: str | os.PathLike[str]) -> Dataset:
    """Street view house numbers: 73,257 training and 26,032 test images of 3×32×32 pixels.

    ``train_32x32.mat`` and ``test_32x32.mat`` are looked for in ``data_dir/svhn``, then in
    ``data_dir``; they are not downloaded. All images together take 1.2 GB.

    Raises:
        FileNotFoundError: the files are not there. ImportError: SciPy is not installed.
        ValueError: a file is damaged or another one.

    Source: Y. Netzer et al., "Reading digits in natural images with unsupervised feature learning",
    2011, http://ufldl.stanford.edu/housenumbers/.
    """
    names = ("train_32x32.mat", "test_32x32.mat")
    folders = [Path(data_dir).expanduser() / "svhn", Path(data_dir).expanduser()]
    for folder in folders:
        if all(os.path.isfile(folder / name) for name in names):
            (train_images, train_labels), (test_images, test_labels) = (
                read_svhn(folder / name) for name in names
            )
            return Dataset(
                _scaled(train_images, 255), train_labels,
                _scaled(test_images, 255), test_labels, _DIGIT_NAMES,
            )  # fmt: skip
    raise FileNotFoundError(
        f"SVHN was not found: {' and '.join(names)} are neither in {folders[0]} nor in "
        f"{folders[1]}; fetch them from http://ufldl.stanford.edu/housenumbers/"
    )


def _load(source: _Source, data_dir: str | os.PathLike[str] | None, download: bool) -> Dataset:
    cache = _cache_folder() / source.name
    roots = [
        Path(root).expanduser() for root in (data_dir, os.environ.get("ARRAYCNN_DATA")) if root
    ]
    looked_at = []
    for folder in [*(place for root in roots for place in (root / source.name, root)), cache]:
        paths, problem = _find(source, folder)
        if not problem:
            return _read(paths, source.class_names, white=255)
        looked_at.append(f"  {folder}: {problem}")

    destination = Path(data_dir).expanduser() / source.name if data_dir else cache
    outcome = "It was not downloaded, because download=False."
    if download:
        outcome = _download(source, destination)
        if not outcome:
            paths, problem = _find(source, destination)
            if not problem:
                return _read(paths, source.class_names, white=255)
            outcome = f"After the download {destination} {problem}"
    raise FileNotFoundError(
        f"{source.title} was not found. Looked for {', '.join(_FILE_NAMES)} (or the same with "
        ".gz) in\n" + "\n".join(looked_at) + f"\n{outcome}\n"
        f"To do it by hand, put the four files into {destination}, or name the folder that has "
        f"them with data_dir or $ARRAYCNN_DATA. They are at {' and '.join(source.mirrors)}"
    )


def _cache_folder() -> Path:
    """``$XDG_CACHE_HOME/arraycnn``, where a relative ``$XDG_CACHE_HOME`` counts as unset."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = configured if configured.is_absolute() else Path("~/.cache").expanduser()
    return base / "arraycnn"


def _find(source: _Source, folder: Path) -> tuple[list[Path], str]:
    """The paths of the four files in ``folder``, and what is wrong with them ("" if nothing)."""
    if not os.path.isdir(folder):
        return [], "no such folder"
    found = {}
    for name in _FILE_NAMES:
        for path in (folder / name, folder / f"{name}.gz"):
            if os.path.isfile(path):
                found[name] = path
                break
    missing = [name for name in _FILE_NAMES if name not in found]
    if missing:
        return [], f"has no {', '.join(missing)}"
    digest = hashlib.sha256(found[_FINGERPRINTED].read_bytes()).hexdigest()
    owner = _FINGERPRINTS.get(digest, source)
    if owner.name != source.name:
        return [], f"has the files of {owner.title}"
    return list(found.values()), ""


def _download(source: _Source, folder: Path) -> str:
    """Download what ``folder`` lacks; returns what went wrong ("" if nothing)."""
    from arraycnn.data.download import DownloadError, fetch  # imports urllib

    mirrors = list(source.mirrors)
    for name, remote in source.files.items():
        if os.path.isfile(folder / name) or os.path.isfile(folder / f"{name}.gz"):
            continue
        try:
            mirror = fetch(mirrors, f"{name}.gz", folder, size=remote.size, sha256=remote.sha256)
        except DownloadError as error:
            return "The download failed:\n" + textwrap.indent(str(error), "  ")
        except OSError as error:
            return f"The download could not be stored: {error}"
        # A mirror that did not answer costs its timeout: ask the one that did first from now on.
        mirrors.sort(key=lambda other: other != mirror)
    return ""


def _read(paths: list[Path], class_names: tuple[str, ...], white: int) -> Dataset:
    """Read the four files, in the order of _FILE_NAMES; grey level ``white`` becomes 1."""
    train_images, train_labels = _read_part(paths[0], paths[1], len(class_names), white)
    test_images, test_labels = _read_part(paths[2], paths[3], len(class_names), white)
    if train_images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            f"{paths[2]}: images of {test_images.shape[2:]} pixels do not fit those of "
            f"{train_images.shape[2:]} in {paths[0]}; take both files from the same data set"
        )
    return Dataset(train_images, train_labels, test_images, test_labels, class_names)


def _read_part(
    images_path: Path, labels_path: Path, class_count: int, white: int
) -> tuple[Array, Array]:
    images = read_idx(images_path)  # (N, H, W)
    labels = read_idx(labels_path)  # (N,)
    for path, array, ndim in ((images_path, images, 3), (labels_path, labels, 1)):
        if array.ndim != ndim or array.dtype != np.uint8 or array.size == 0:
            raise ValueError(
                f"{path}: non-empty uint8 data of {ndim} dimension(s) was expected, the file has "
                f"shape {array.shape} of {array.dtype}; put the right file in its place"
            )
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} has {len(images)} images, but {labels_path} has {len(labels)} labels; "
            "take both files from the same data set"
        )
    if labels.max() >= class_count:
        raise ValueError(
            f"{labels_path}: labels from 0 to {class_count - 1} were expected, found "
            f"{labels.max()}; put the right file in its place"
        )
    return _scaled(images, white)[:, np.newaxis], labels.astype(np.int64)


def _scaled(images: Array, white: int) -> Array:
    """Grey levels 0..white as float32 in [0, 1]."""
    return np.divide(images, np.float32(white), dtype=np.float32)
