"""Files: written so that a name always shows a whole one, the old or the new, and opened safely.

The bytes go to a temporary file in the same directory, are forced to the disk, and only then take
over the name. A writer holds a lock on its temporary; the kernel drops the lock of a writer that
died, and the next writer of the same name removes what it left.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from arraycnn.errors import CheckpointError

PathLike: TypeAlias = str | os.PathLike[str]


@contextlib.contextmanager
def atomic_file(path: PathLike) -> Iterator[int]:
    """A descriptor, open for reading and writing, of a file that becomes ``path`` at the end.

    If the block raises, ``path`` is left as it was and nothing else stays behind. A symbolic link
    is followed: the file that it points to is replaced.

    Raises:
        OSError: of the kind that the system reports (FileNotFoundError, PermissionError,
            IsADirectoryError, ENOSPC, …), its text saying what was tried.
    """
    target = Path(os.path.realpath(os.fspath(path)))
    try:
        _check_target(target)
        prefix = f".arraycnn-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]}-"
        _sweep(target.parent, prefix)
        descriptor, temporary = _create(target.parent, prefix)
        try:
            try:
                yield descriptor
                os.fsync(descriptor)
                os.replace(temporary, target)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise
            _sync_directory(target.parent)
        finally:
            os.close(descriptor)
    except OSError as error:
        text = f"cannot write the file ({error.strerror or error})"
        if isinstance(error, FileNotFoundError) and not target.parent.exists():
            text = f"cannot write the file: there is no directory {target.parent}; create it first"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            text += "; what was there before is untouched; make space or choose another disk"
        raise type(error)(error.errno, text, str(path)) from error


@contextlib.contextmanager
def open_regular(path: PathLike) -> Iterator[int]:
    """A descriptor of a regular file, for reading.

    Raises:
        OSError: it cannot be opened. CheckpointError: something else than a regular file.
    """
    # Opening a pipe without O_NONBLOCK would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError("must be a regular file, not a directory, pipe or device")
        yield descriptor
    finally:
        os.close(descriptor)


def _check_target(target: Path) -> None:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory; give the name of a file in it")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a device, pipe or socket and would be replaced")


def _create(directory: Path, prefix: str) -> tuple[int, Path]:
    """A new locked file; a sweeper that came between creation and lock has removed it: again."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        temporary = directory / f"{prefix}{secrets.token_hex(8)}.tmp"
        descriptor = os.open(temporary, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, temporary):
                return descriptor, temporary
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        os.close(descriptor)


def _sweep(directory: Path, prefix: str) -> None:
    """Remove the temporaries whose writers are dead: those that nobody has locked."""
    for temporary in directory.glob(f"{prefix}*.tmp"):
        with contextlib.suppress(OSError):  # somebody else's business, or gone already
            descriptor = os.open(temporary, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, temporary):
                    os.unlink(temporary)
            finally:
                os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _sync_directory(directory: Path) -> None:
    """Force the new name to the disk, where the file system can."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
