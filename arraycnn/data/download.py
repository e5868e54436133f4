"""Download of one file from the first mirror that has it, checked against its SHA-256.

Kept apart from ``datasets`` because ``urllib.request`` takes 25 ms to import and few runs need it.
"""

import hashlib
import http.client
import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_CHUNK = 1 << 16
_HEADERS = {"User-Agent": "arraycnn"}  # some hosts refuse urllib's own


class DownloadError(OSError):
    """No mirror delivered the file; the message gives one line per mirror."""


class _MirrorError(Exception):
    """What went wrong with one mirror."""


def fetch(
    mirrors: Sequence[str],
    name: str,
    folder: Path,
    *,
    size: int,
    sha256: str,
    timeout: float = 20.0,
) -> str:
    """Download ``name`` into ``folder`` and return the mirror that delivered it.

    The file appears under its name only when it is whole: it is written beside it, compared
    with ``size`` and ``sha256``, and renamed. A mirror that fails or sends something else is passed
    over. ``timeout`` is in seconds, for connecting and for every read.

    Raises:
        DownloadError: no mirror delivered the file.
        OSError: ``folder`` cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failures = []
    for mirror in mirrors:
        url = mirror + name
        part = folder / f".{name}.{secrets.token_hex(4)}.part"
        try:
            digest = hashlib.sha256()
            with part.open("xb") as file, _progress(url, size) as advance:
                for chunk in _stream(url, size, timeout):
                    file.write(chunk)
                    digest.update(chunk)
                    advance(len(chunk))
                file.flush()
                os.fsync(file.fileno())
            if digest.hexdigest() != sha256:
                raise _MirrorError(f"SHA-256 {sha256} expected, {digest.hexdigest()} received")
            part.replace(folder / name)
            return mirror
        except _MirrorError as error:
            failures.append(f"{url}: {error}")
        finally:
            part.unlink(missing_ok=True)
    raise DownloadError("\n".join(failures))


def _stream(url: str, size: int, timeout: float) -> Iterator[bytes]:
    """Yield the ``size`` bytes at ``url``; any other number of them is an error."""
    received = 0
    try:
        request = urllib.request.Request(url, headers=_HEADERS)
        with urllib.request.urlopen(request, timeout=timeout) as response:
            while chunk := response.read(_CHUNK):
                received += len(chunk)
                if received > size:
                    raise _MirrorError(f"{size} bytes expected, more received")
                yield chunk
    except urllib.error.HTTPError as error:
        error.close()
        raise _MirrorError(f"HTTP status {error.code} ({error.reason})") from error
    except urllib.error.URLError as error:
        raise _MirrorError(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _MirrorError(f"{type(error).__name__}: {error}") from error
    if received < size:
        raise _MirrorError(f"{size} bytes expected, only {received} received")


@contextmanager
def _progress(url: str, size: int) -> Iterator[Callable[[int], object]]:
    """A progress bar on a terminal with tqdm, one plain line on stderr elsewhere."""
    try:
        from tqdm import tqdm
    except ImportError:
        tqdm = None
    if tqdm is not None and sys.stderr.isatty():
        with tqdm(total=size, desc=url, unit="B", unit_scale=True, file=sys.stderr) as bar:
            yield bar.update
    else:
        print(f"downloading {url} ({size / 1e6:.1f} MB)", file=sys.stderr, flush=True)
        yield lambda count: None
