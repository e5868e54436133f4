"""Writing: what a crash, a full disk or a wrong path leaves behind."""

import errno
import fcntl
import os
import random
import resource
import signal
import stat
import threading

import numpy as np
import pytest
from crash import kill_often
from forked import run_forked

import arraycnn as ac
from arraycnn import files


@pytest.fixture
def model():
    return ac.Dense(64, 64, seed=1)


@pytest.fixture
def saved(model, tmp_path):
    """A folder with one checkpoint in it; returns its path and bytes."""
    path = tmp_path / "run.h5"
    ac.save_checkpoint(path, model, step=1)
    return path, path.read_bytes()


def assert_untouched(saved):
    path, before = saved
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_kill_while_saving(tmp_path):
    counts = kill_often(25, tmp_path, random.Random(0))
    assert counts["last acknowledged"] + counts["the next"] == 25


class TestFailures:
    @pytest.mark.parametrize("limit", [0, 100, 600, 5_000, 15_000])
    def test_file_size_limit(self, limit, saved):
        """As a full disk: every write past the limit fails."""

        def save_with_limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(OSError, match="what was there before is untouched") as caught:
                ac.save_checkpoint(saved[0], ac.Dense(64, 64), step=2)
            names = os.listdir(saved[0].parent)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            ac.save_checkpoint(saved[0], ac.Dense(64, 64), step=3)  # libhdf5 still works
            return caught.value.errno, names, ac.read_checkpoint_info(saved[0]).step

        assert run_forked(save_with_limit) == (errno.EFBIG, ["run.h5"], 3)

    @pytest.mark.parametrize("name", ["fsync", "replace", "pwrite", "ftruncate"])
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT])
    def test_system_call_that_fails(self, name, number, saved, model, monkeypatch):
        def fail(*arguments):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                ac.save_checkpoint(saved[0], model, step=2)
        assert caught.value.errno == number
        assert caught.value.filename == str(saved[0])
        assert_untouched(saved)
        ac.save_checkpoint(saved[0], model, step=2)
        assert ac.read_checkpoint_info(saved[0]).step == 2

    def test_second_write_fails(self, saved, model, monkeypatch):
        """Like a disk that becomes full on the way: the first error is the one that is told."""
        write, calls = os.pwrite, []

        def fail_later(descriptor, data, offset):
            calls.append(offset)
            if len(calls) > 2:
                raise OSError(errno.ENOSPC, f"full at write {len(calls)}")
            return write(descriptor, data, offset)

        monkeypatch.setattr(os, "pwrite", fail_later)
        with pytest.raises(OSError, match=r"full at write 3.*make space or choose another disk"):
            ac.save_checkpoint(saved[0], model, step=2)
        assert_untouched(saved)

    def test_short_writes_are_continued(self, model, tmp_path, monkeypatch):
        write = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:1000], at))
        ac.save_checkpoint(tmp_path / "run.h5", model)
        ac.load_checkpoint(tmp_path / "run.h5", ac.Dense(64, 64))

    def test_ctrl_c_while_writing(self, saved, model, monkeypatch):
        def interrupt(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "pwrite", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ac.save_checkpoint(saved[0], model, step=2)
        assert_untouched(saved)

    def test_no_permission(self, saved, model, monkeypatch):
        """Root may do everything, so the refusal is simulated."""
        opened = os.open

        def refuse(path, flags, *mode, **keywords):
            if flags & os.O_CREAT:
                raise PermissionError(errno.EACCES, "Permission denied")
            return opened(path, flags, *mode, **keywords)

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(PermissionError, match=r"cannot write the file \(Permission denied\)"):
            ac.save_checkpoint(saved[0], model, step=2)
        assert_untouched(saved)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_folder_that_cannot_be_written(self, saved, model):
        saved[0].parent.chmod(0o500)
        try:
            with pytest.raises(PermissionError):
                ac.save_checkpoint(saved[0], model, step=2)
        finally:
            saved[0].parent.chmod(0o700)
        assert_untouched(saved)

    def test_missing_folder(self, model, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no directory .*/nowhere; create it"):
            ac.save_checkpoint(tmp_path / "nowhere" / "run.h5", model)
        assert os.listdir(tmp_path) == []

    def test_folder_as_file(self, model, tmp_path):
        (tmp_path / "run.h5").mkdir()
        with pytest.raises(IsADirectoryError, match="it is a directory; give the name of a file"):
            ac.save_checkpoint(tmp_path / "run.h5", model)
        assert os.listdir(tmp_path) == ["run.h5"]

    def test_file_as_folder(self, model, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(NotADirectoryError):
            ac.save_checkpoint(tmp_path / "file" / "run.h5", model)

    def test_device_or_pipe_is_not_replaced(self, model, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match="device, pipe or socket"):
            ac.save_checkpoint(tmp_path / "pipe", model)
        assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)

    def test_name_that_is_too_long(self, model, tmp_path):
        with pytest.raises(OSError, match="File name too long"):
            ac.save_checkpoint(tmp_path / ("x" * 300), model)
        assert os.listdir(tmp_path) == []


class TestNames:
    @pytest.mark.parametrize("name", ["x" * 255, "näme 模型.h5", "-", ".hidden", "a\nb"])
    def test_unusual_names(self, name, model, tmp_path):
        for step in (1, 2):
            ac.save_checkpoint(tmp_path / name, model, step=step)
        assert ac.read_checkpoint_info(tmp_path / name).step == 2
        assert os.listdir(tmp_path) == [name]

    def test_relative_name(self, model, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        ac.save_checkpoint("run.h5", model)
        ac.load_model("run.h5")

    def test_symbolic_link_is_followed(self, model, tmp_path):
        (tmp_path / "store").mkdir()
        (tmp_path / "last.h5").symlink_to("store/run.h5")
        for step in (1, 2):
            ac.save_checkpoint(tmp_path / "last.h5", model, step=step)
        assert (tmp_path / "last.h5").is_symlink()
        assert os.listdir(tmp_path / "store") == ["run.h5"]
        assert ac.read_checkpoint_info(tmp_path / "last.h5").step == 2

    def test_permissions_follow_the_umask(self, model, tmp_path):
        before = os.umask(0o027)
        try:
            ac.save_checkpoint(tmp_path / "run.h5", model)
        finally:
            os.umask(before)
        assert stat.S_IMODE(os.stat(tmp_path / "run.h5").st_mode) == 0o640


class TestTemporaries:
    def temporary(self, folder):
        with files.atomic_file(folder / "run.h5"):
            [name] = [name for name in os.listdir(folder) if name.endswith(".tmp")]
        return folder / name

    def test_of_a_dead_writer_is_removed(self, model, tmp_path):
        dead = self.temporary(tmp_path)
        dead.write_bytes(b"half")
        ac.save_checkpoint(tmp_path / "run.h5", model)
        assert os.listdir(tmp_path) == ["run.h5"]

    def test_of_a_living_writer_stays(self, model, tmp_path):
        alive = self.temporary(tmp_path)
        with alive.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            ac.save_checkpoint(tmp_path / "run.h5", model)
            assert sorted(os.listdir(tmp_path)) == sorted([alive.name, "run.h5"])

    def test_of_another_file_stays(self, model, tmp_path):
        other = self.temporary(tmp_path)
        other.write_bytes(b"half")
        ac.save_checkpoint(tmp_path / "other.h5", model)
        assert other.exists()

    def test_two_writers_at_once(self, tmp_path):
        """Each file is whole, and one of the two last ones stays."""
        path = tmp_path / "run.h5"

        def save(number):
            model = ac.Dense(100, 100)
            model.weight.data[...] = number
            for _ in range(20):
                ac.save_checkpoint(path, model, step=number)

        threads = [threading.Thread(target=save, args=(n,)) for n in (1, 2)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if path.exists():
                model = ac.Dense(100, 100)
                info = ac.load_checkpoint(path, model)
                assert np.all(model.weight.data == info.step)
        for thread in threads:
            thread.join()
        assert os.listdir(tmp_path) == ["run.h5"]
