"""The embedded digits, and where MNIST and its relatives are looked for and downloaded from."""

import hashlib
import io
import os
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from arraycnn.data import datasets
from arraycnn.data.download import DownloadError, fetch

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def small_files(train=6, test=4, side=5):
    """The four files of a small data set in MNIST's form, by name."""
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(256, size=(train, side, side)),
        np.arange(train) % 10,
        rng.integers(256, size=(test, side, side)),
        np.arange(test) % 10,
    ]
    return {
        name: idx_bytes(array.astype(np.uint8)) for name, array in zip(NAMES, arrays, strict=True)
    }


def write_files(folder, files, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (name + suffix)).write_bytes(content)


@pytest.fixture(autouse=True)
def no_data_elsewhere(monkeypatch, tmp_path):
    """Neither this machine's data nor a proxy takes part; returns the cache folder."""
    monkeypatch.delenv("ARRAYCNN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache" / "arraycnn"


# The embedded digits


def test_the_digits_are_the_stored_ones():
    digits = datasets.digits()
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert digits.class_names == tuple("0123456789")
    digest = hashlib.sha256()
    for images, labels in (digits[:2], digits[2:4]):
        assert images.dtype == np.float32
        assert labels.dtype == np.int64
        assert (images.min(), images.max()) == (0, 1)
        digest.update((images * 16).astype(np.uint8).tobytes())
        digest.update(labels.astype(np.uint8).tobytes())
    assert digest.hexdigest() == "6858d1dee2397580da33ea8cff302785a3cb8b486272e1b63baf4b1fa2199b08"


def test_the_split_of_the_digits_is_stratified():
    digits = datasets.digits()
    test = np.bincount(digits.test_labels)
    both = np.bincount(digits.train_labels) + test
    np.testing.assert_array_equal(both, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    assert np.abs(test - both * 360 / 1797).max() < 1


def test_the_digits_are_those_of_scikit_learn():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    original = load_digits()
    digits = datasets.digits()
    images = np.concatenate([digits.train_images, digits.test_images]).reshape(1797, 64) * 16
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    ours = np.column_stack([images, labels])
    theirs = np.column_stack([original.data, original.target])
    np.testing.assert_array_equal(
        ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], strict=False
    )


def test_the_digits_are_small_and_attributed():
    folder = Path(datasets.__file__).parent / "digits"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 100_000
    attribution = (folder / "ATTRIBUTION.md").read_text()
    assert "10.24432/C50P49" in attribution
    assert "CC BY 4.0" in attribution


# Files on disk


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("subfolder", ["", "mnist"])
def test_files_are_found_in_the_data_dir_or_in_its_subfolder(tmp_path, subfolder, suffix):
    write_files(tmp_path / "data" / subfolder, small_files(), suffix)
    found = datasets.mnist(tmp_path / "data", download=False)
    assert found.train_images.shape == (6, 1, 5, 5)
    assert found.train_images.dtype == np.float32
    assert found.train_images.max() <= 1
    np.testing.assert_array_equal(found.test_labels, [0, 1, 2, 3])
    assert found.test_labels.dtype == np.int64


def test_grey_levels_are_divided_by_255(tmp_path):
    files = small_files()
    files[NAMES[0]] = idx_bytes(np.full((6, 5, 5), 51, dtype=np.uint8))
    write_files(tmp_path, files)
    assert np.all(datasets.mnist(tmp_path).train_images == np.float32(51) / np.float32(255))


def test_the_data_dir_comes_before_the_environment_and_that_before_the_cache(
    tmp_path, monkeypatch, no_data_elsewhere
):
    monkeypatch.setenv("ARRAYCNN_DATA", str(tmp_path / "env"))
    write_files(no_data_elsewhere / "kmnist", small_files(train=1))
    assert len(datasets.kmnist(download=False).train_images) == 1
    write_files(tmp_path / "env" / "kmnist", small_files(train=2))
    assert len(datasets.kmnist(download=False).train_images) == 2
    write_files(tmp_path / "data", small_files(train=3))
    assert len(datasets.kmnist(str(tmp_path / "data"), download=False).train_images) == 3
    assert len(datasets.kmnist(tmp_path / "elsewhere", download=False).train_images) == 2


def test_the_cache_is_in_the_home_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    write_files(tmp_path / ".cache" / "arraycnn" / "mnist", small_files())
    assert len(datasets.mnist(download=False).train_images) == 6


def test_missing_files_are_an_error_that_names_every_place(tmp_path, monkeypatch):
    monkeypatch.setenv("ARRAYCNN_DATA", str(tmp_path / "env"))
    files = small_files()
    del files[NAMES[2]]
    write_files(tmp_path / "data", files)
    with pytest.raises(FileNotFoundError) as caught:
        datasets.fashion_mnist(tmp_path / "data", download=False)
    message = str(caught.value)
    assert f"{tmp_path / 'data' / 'fashion-mnist'}: no such folder" in message
    assert f"{tmp_path / 'data'}: has no {NAMES[2]}\n" in message
    assert f"{tmp_path / 'env'}: no such folder" in message
    assert f"{tmp_path / 'cache' / 'arraycnn' / 'fashion-mnist'}: no such folder" in message
    assert "download=False" in message
    assert "by hand" in message


def test_the_files_of_another_data_set_are_not_taken_for_the_wanted_one(tmp_path, monkeypatch):
    files = small_files()
    write_files(tmp_path / "data", files)
    digest = hashlib.sha256(files[NAMES[3]]).hexdigest()
    monkeypatch.setitem(datasets._FINGERPRINTS, digest, datasets._MNIST)
    assert len(datasets.mnist(tmp_path / "data").train_images) == 6
    with pytest.raises(FileNotFoundError, match="has the files of MNIST"):
        datasets.kmnist(tmp_path / "data", download=False)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (NAMES[0], np.zeros((6, 25)), r"3 dimension\(s\) was expected.*\(6, 25\)"),
        (NAMES[0], np.zeros((5, 5, 5)), "has 5 images, but .* has 6 labels"),
        (NAMES[2], np.zeros((4, 7, 7)), r"\(7, 7\) pixels do not fit those of \(5, 5\)"),
        (NAMES[2], np.zeros((0, 5, 5)), "non-empty"),
        (NAMES[1], np.full(6, 10), "labels from 0 to 9 were expected, found 10"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path, name, array, message):
    write_files(tmp_path, {**small_files(), name: idx_bytes(array.astype(np.uint8))})
    with pytest.raises(ValueError, match=message) as caught:
        datasets.mnist(tmp_path, download=False)
    assert str(tmp_path / name) in str(caught.value)


def test_real_mnist_is_read_whole():
    beside = Path(__file__).parents[2] / "shared" / "data" / "mnist"
    folder = Path(os.environ.get("ARRAYCNN_DATA", beside))
    try:
        mnist = datasets.mnist(folder, download=False)
    except FileNotFoundError:
        pytest.skip("needs MNIST in $ARRAYCNN_DATA")
    assert mnist.train_images.shape == (60000, 1, 28, 28)
    assert mnist.test_images.shape == (10000, 1, 28, 28)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    np.testing.assert_array_equal(np.bincount(mnist.train_labels), counts)
    assert mnist.train_images.mean() == pytest.approx(0.1307, abs=1e-4)
    with pytest.raises(FileNotFoundError, match="has the files of MNIST"):
        datasets.fashion_mnist(folder, download=False)


# Downloads


@contextmanager
def serve(files):
    """A web server on this machine; a path not in `files` is 404, one that is None hangs."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = files.get(self.path, 404)
            if content == 404:
                self.send_error(404)
            elif content is None:
                released.wait(timeout=10)
            else:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    released = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()


CONTENT = bytes(range(256)) * 1000
EXPECTED = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}


def test_a_download_is_whole_and_announced(tmp_path, capsys):
    with serve({"/a/file": CONTENT}) as (url, _):
        mirror = fetch([f"{url}/a/"], "file", tmp_path / "new", **EXPECTED)
    assert mirror == f"{url}/a/"
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    captured = capsys.readouterr()
    assert captured.err == f"downloading {url}/a/file (0.3 MB)\n"
    assert captured.out == ""


def test_a_terminal_gets_a_progress_bar(tmp_path, monkeypatch):
    pytest.importorskip("tqdm")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with serve({"/file": CONTENT}) as (url, _):
        fetch([f"{url}/"], "file", tmp_path, **EXPECTED)
    assert "256k/256k" in sys.stderr.getvalue()


def test_nothing_that_only_downloads_need_is_imported_before():
    program = "import sys, arraycnn.data; print({'urllib.request', 'tqdm'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (404, r"HTTP status 404"),
        (b"\xff" + CONTENT[1:], f"SHA-256 {EXPECTED['sha256']} expected, [0-9a-f]{{64}} received"),
        (CONTENT[:-1], "256000 bytes expected, only 255999 received"),
        (CONTENT + b"more", "256000 bytes expected, more received"),
        (None, "timed out"),
    ],
    ids=["missing", "altered", "short", "long", "hanging"],
)
def test_a_bad_mirror_is_passed_over_and_leaves_nothing(tmp_path, content, reason):
    with serve({"/bad/file": content, "/good/file": CONTENT}) as (url, _):
        with pytest.raises(DownloadError, match=reason) as caught:
            fetch([f"{url}/bad/"], "file", tmp_path, timeout=0.3, **EXPECTED)
        assert f"{url}/bad/file" in str(caught.value)
        assert not list(tmp_path.iterdir())
        mirrors = [f"{url}/bad/", f"{url}/good/"]
        assert fetch(mirrors, "file", tmp_path, timeout=0.3, **EXPECTED) == mirrors[1]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_every_mirror_has_its_line_when_none_delivers(tmp_path):
    with serve({}) as (url, _):
        gone = url
    with (
        serve({}) as (url, _),
        pytest.raises(DownloadError) as caught,
    ):
        fetch([f"{gone}/", f"{url}/"], "file", tmp_path, **EXPECTED)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{gone}/file: ")
    assert "refused" in first
    assert second.startswith(f"{url}/file: HTTP status 404")


def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with serve({"/file": CONTENT}) as (url, _), pytest.raises(KeyboardInterrupt):
        fetch([f"{url}/"], "file", tmp_path, **EXPECTED)
    assert not list(tmp_path.iterdir())


def published(monkeypatch, mirrors, files):
    """Make `files` the published KMNIST."""
    remote = {
        name: datasets._RemoteFile(len(content), hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    }
    monkeypatch.setattr(
        datasets, "_KMNIST", replace(datasets._KMNIST, mirrors=mirrors, files=remote)
    )


def test_a_data_set_is_downloaded_once_and_only_what_is_missing(
    tmp_path, monkeypatch, no_data_elsewhere
):
    files = small_files()
    write_files(no_data_elsewhere / "kmnist", {NAMES[1]: files[NAMES[1]]})
    with serve({f"/{name}.gz": content for name, content in files.items()}) as (url, asked):
        published(monkeypatch, (f"{url}/down/", f"{url}/"), files)
        assert len(datasets.kmnist().train_images) == 6
        # The mirror that failed is not asked again.
        assert asked == [f"/down/{NAMES[0]}.gz", *(f"/{NAMES[i]}.gz" for i in (0, 2, 3))]
        datasets.kmnist()
        assert len(asked) == 4
        datasets.kmnist(tmp_path / "mine")
        assert not (tmp_path / "mine").exists()


def test_a_data_dir_receives_the_download_in_a_folder_of_its_own(tmp_path, monkeypatch):
    files = small_files()
    write_files(tmp_path, {NAMES[0]: b"of another data set"})
    with serve({f"/{name}.gz": content for name, content in files.items()}) as (url, _):
        published(monkeypatch, (f"{url}/",), files)
        assert len(datasets.kmnist(tmp_path).train_images) == 6
    assert sorted(path.name for path in (tmp_path / "kmnist").iterdir()) == sorted(
        f"{name}.gz" for name in NAMES
    )
    assert (tmp_path / NAMES[0]).read_bytes() == b"of another data set"


def test_offline_the_message_says_what_was_tried_and_what_to_do(tmp_path, monkeypatch):
    with serve({}) as (url, _):
        published(monkeypatch, (f"{url}/one/", f"{url}/two/"), small_files())
        with pytest.raises(FileNotFoundError) as caught:
            datasets.kmnist(tmp_path)
    message = str(caught.value)
    assert f"{tmp_path}: has no {NAMES[0]}, {NAMES[1]}, {NAMES[2]}, {NAMES[3]}" in message
    assert f"  {url}/one/{NAMES[0]}.gz: HTTP status 404" in message
    assert f"  {url}/two/{NAMES[0]}.gz: HTTP status 404" in message
    assert f"put the four files into {tmp_path / 'kmnist'}" in message
    assert "ARRAYCNN_DATA" in message


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "kmnist").write_text("a file, not a folder")
    with serve({}) as (url, _):
        published(monkeypatch, (f"{url}/",), small_files())
        with pytest.raises(FileNotFoundError, match=r"could not be stored: .*kmnist"):
            datasets.kmnist(tmp_path)


@pytest.mark.parametrize("source", [datasets._MNIST, datasets._FASHION_MNIST, datasets._KMNIST])
def test_every_data_set_has_two_mirrors_and_a_full_checksum_list(source):
    assert len(source.mirrors) == 2
    assert all(mirror.endswith("/") for mirror in source.mirrors)
    assert tuple(source.files) == NAMES
    assert len(source.class_names) == 10
    assert all(len(bytes.fromhex(remote.sha256)) == 32 for remote in source.files.values())
