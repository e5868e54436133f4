"""A reader of exactly the HDF5 that arraycnn writes; everything else is refused by name.

libhdf5 trusts a file's structures: one changed byte in a B-tree ends the process, a heap that
points to itself eats all memory. So no byte of a file that we did not just write reaches it.
Section numbers are those of the HDF5 File Format Specification, version 3.0:

    superblock, version 2 or 3 (II)       its base is the end of the user block
    object headers, version 2 (IV.A)      with their checksums, and chunks that continue them
    groups                                link info, group info, and links: compact, or dense
                                          (`links`) where there are more than eight
    datasets                              fixed shape, little-endian numbers, contiguous or empty

Addresses are checked against the file's size before they are used, no byte serves two structures,
nothing is recursive, and work and memory grow with what is asked for.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from arraycnn.arrays import Shape
from arraycnn.checkpoint.lookup3 import checksums
from arraycnn.errors import CheckpointDamagedError, CheckpointError

UNDEFINED = (1 << 64) - 1
MOST_BLOCK = 1 << 16  # bytes of a block of metadata, that of the largest group among them
MOST_MESSAGES = 1 << 16  # of an object header
MOST_RANK = 32

NIL, SPACE, LINK_INFO, TYPE, FILL, LINK, LAYOUT, GROUP_INFO, CONTINUATION = (
    0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x08, 0x0A, 0x10,
)  # fmt: skip
NAMES = {
    SPACE: "dataspace", LINK_INFO: "link info", TYPE: "datatype", FILL: "fill value",
    LINK: "link", LAYOUT: "layout", GROUP_INFO: "group info", CONTINUATION: "continuation",
    0x04: "old fill value", 0x0D: "comment", 0x0F: "shared messages", 0x11: "symbol table",
    0x12: "modification time",
}  # fmt: skip
FLAGS = {
    SPACE: (0,), LINK_INFO: (0,), TYPE: (1,), FILL: (1,), LINK: (0,), LAYOUT: (0, 1),
    GROUP_INFO: (1,), CONTINUATION: (0,),
}  # fmt: skip
RULES = {
    0x07: "its bytes are in another file, which is not allowed",
    0x0B: "filters such as compression are not allowed",
    0x0C: "attributes are not allowed",
    0x15: "attributes are not allowed",
    0x16: "more than one link leads to it, which is not allowed",
}
STORAGE = {0: "compact", 1: "contiguous", 2: "chunked", 3: "virtual"}
SHARED = 2  # flag of a message whose contents are elsewhere


def _datatypes() -> dict[bytes, str]:
    """The dtypes that are written, by the bytes of their message: version 1, little-endian."""
    found = {}
    for size in (1, 2, 4, 8):
        for kind, sign in (("uint", 0), ("int", 8)):
            body = struct.pack("<BBBBIHH", 0x10, sign, 0, 0, size, 0, 8 * size)
            found[body] = f"{kind}{8 * size}"
    for size, exponent, mantissa in ((2, 5, 10), (4, 8, 23), (8, 11, 52)):
        body = struct.pack(
            "<BBBBIHHBBBBI", 0x11, 0x20, 8 * size - 1, 0, size, 0, 8 * size, mantissa, exponent, 0,
            mantissa, (1 << exponent - 1) - 1,
        )  # fmt: skip
        found[body] = f"float{8 * size}"
    return found


DATATYPES = _datatypes()


class Bytes(Protocol):
    """What is read from: a file's bytes by their position."""

    size: int

    def read(self, start: int, length: int) -> bytes: ...


@dataclass(frozen=True)
class Stored:
    """A dataset in a file: where its bytes begin, None where it has none."""

    offset: int | None
    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


Messages = dict[int, list[tuple[int, bytes]]]  # by kind: where each stands, and its body


class Reader:
    """Groups and datasets of the HDF5 part of a checkpoint, by their addresses.

    Args:
        source: the bytes of the file. base: where the HDF5 part begins.

    Raises:
        CheckpointError: (every method) the file is not what is written; at which byte, and why.
            CheckpointDamagedError: it cannot be HDF5 as anybody writes it.
    """

    def __init__(self, source: Bytes, base: int) -> None:
        self._source = source
        self.base = base
        self._used: list[tuple[int, int, str]] = []
        self._left = source.size
        self._sums: list[tuple[int, str, bytes, int]] = []  # where, what, bytes, checksum

    def root(self) -> int:
        """The address of the root group."""
        _, block = self.block(0, 48, "superblock", b"\x89HDF\r\n\x1a\n")
        if block[8] not in (2, 3):
            raise CheckpointDamagedError(
                f"HDF5's superblock version must be 2 or 3, got {block[8]}"
            )
        fields = struct.unpack_from("<BBBQQQQ", block, 9)
        names = {
            "size of offsets": 8,
            "size of lengths": 8,
            "consistency flags": 0,
            "base address": self.base,
            "superblock extension": UNDEFINED,
            "end of file": self._source.size,
        }
        for (name, wanted), value in zip(names.items(), fields, strict=False):
            if value != wanted:
                raise CheckpointDamagedError(f"HDF5's {name} must be {wanted}, got {value}")
        return int(fields[-1])

    def dataset(self, address: int, path: str, check: Callable[[str, Shape], None]) -> Stored:
        """The dataset at an address; ``check`` is asked about its dtype and shape first."""
        _, messages = self.object(address, path)
        if LINK_INFO in messages:
            raise CheckpointError(f"/{path} must be a dataset, got a group")
        for at, body in messages.get(LAYOUT, []):
            storage = STORAGE.get(body[1]) if len(body) > 2 and body[0] in (3, 4) else "unknown"
            if storage != "contiguous" or len(body) != 18:
                raise refused(at, f"{path}: its storage must be contiguous, got {storage}")
        check_messages(path, messages, (SPACE, TYPE, FILL, LAYOUT))
        _, body = messages[TYPE][0]
        dtype = DATATYPES.get(body) or _type(body)
        shape = _shape(*messages[SPACE][0], path)
        check(dtype, shape)
        at, body = messages[FILL][0]
        if len(body) != 2 or body[0] != 3 or body[1] & 0xE0:
            raise refused(at, f"{path}: fill value {body[:16].hex()}")
        at, body = messages[LAYOUT][0]
        start, size = struct.unpack_from("<QQ", body, 2)
        stored = Stored(None, dtype, shape)
        if size != stored.nbytes or (not size and start != UNDEFINED):
            raise refused(at, f"{path}: {stored.nbytes} bytes must be stored, got {size}")
        if size and start == UNDEFINED:
            raise refused(at, f"{path}: its bytes are not in the file")
        return Stored(self.claim(start, size, path), dtype, shape) if size else stored

    def finish(self) -> None:
        """Refuse bytes that serve twice, and wrong checksums, of all that was read."""
        self._used.sort()
        for (_, end, what), (start, _, other) in zip(self._used, self._used[1:], strict=False):
            if start < end:
                raise CheckpointError(f"{what} and {other} share bytes of the file")
        computed = checksums([body for _, _, body, _ in self._sums])
        for (start, what, _, stored), right in zip(self._sums, computed, strict=True):
            if stored != right:
                raise CheckpointDamagedError(
                    f"at byte {start}: the checksum of {what} is {stored:#x} and must be {right:#x}"
                )

    def claim(self, address: int, length: int, what: str) -> int:
        """Where ``length`` bytes at an address begin in the file; for one use only."""
        start = self.base + address
        if start + length > self._source.size:
            raise CheckpointError(
                f"{what}: its bytes must be within {self.base} and {self._source.size}, got "
                f"{start} to {start + length}"
            )
        self._left -= length
        if self._left < 0:
            raise CheckpointError(f"{what}: it shares bytes of the file with other parts")
        self._used.append((start, start + length, what))
        return start

    def block(
        self,
        address: int,
        length: int,
        what: str,
        signature: bytes,
        *,
        used: int | None = None,
        sum_at: int | None = None,
    ) -> tuple[int, bytes]:
        """A block of metadata; its checksum is the last 4 of the ``used`` bytes, or ``sum_at``."""
        if not 8 <= length <= MOST_BLOCK:
            raise CheckpointError(f"{what}: {length} bytes of metadata are not written in a piece")
        start = self.claim(address, length, what)
        block = self._source.read(start, used or length)
        if not block.startswith(signature):
            found = block[: len(signature)]
            raise CheckpointDamagedError(
                f"at byte {start}: {what}: no {signature!r}, got {found!r}"
            )
        at = len(block) - 4 if sum_at is None else sum_at
        body = block[:at] if sum_at is None else block[:at] + bytes(4) + block[at + 4 :]
        self._sums.append((start, what, body, int.from_bytes(block[at : at + 4], "little")))
        return start, block

    def object(self, address: int, path: str) -> tuple[int, Messages]:
        """The messages of an object header, without NIL."""
        origin = self.base + address
        head = self._source.read(origin, 30).ljust(30, b"\0")
        if head[:5] != b"OHDR\2" or head[5] & ~0x23:
            raise refused(origin, f"{path}: a header of version 2 was expected, got {head[:6]!r}")
        times = 16 * (head[5] >> 5)  # bytes, not looked at
        first = 6 + times + (1 << (head[5] & 3))
        size = int.from_bytes(head[6 + times : first], "little")
        what = f"the header of {path}"
        chunks = [(*self.block(address, first + size + 4, what, b"OHDR"), first)]
        messages: Messages = {}
        count = 0
        while chunks:
            start, chunk, at = chunks.pop()
            end = len(chunk) - 4
            while at + 4 <= end:  # a gap of up to 3 bytes may follow
                kind, size, flags = struct.unpack_from("<BHB", chunk, at)
                where, at = start + at, at + 4
                count += 1
                if count > MOST_MESSAGES or at + size > end:
                    raise refused(where, f"{what}: message {_name(kind)} of {size} bytes")
                body, at = chunk[at : at + size], at + size
                if kind == TYPE and flags & SHARED:
                    body = b""  # it is elsewhere
                elif flags not in FLAGS.get(kind, (flags,)):
                    raise refused(where, f"{what}: message {_name(kind)} with flags {flags:#x}")
                if kind == CONTINUATION:
                    if size != 16:
                        raise refused(where, f"{what}: continuation {body[:16].hex()}")
                    place, length = struct.unpack("<QQ", body)
                    chunks.append((*self.block(place, length, what, b"OCHK"), 4))
                elif kind != NIL:
                    messages.setdefault(kind, []).append((where, body))
        return origin, messages


def too_many(path: str, most: int, count: int) -> CheckpointError:
    """The error about a group with more entries than its contents need."""
    return CheckpointError(
        f"group '/{path}' must have {most} entries, got {count}; more or fewer than the contents "
        "need are not allowed"
    )


def expect(at: int, what: str, fields: dict[str, tuple[Any, Any]]) -> None:
    """Refuse a structure with a field, (found, wanted), that is not as written."""
    for name, (found, wanted) in fields.items():
        if found != wanted:
            raise refused(at, f"{what}: {name} must be {wanted}, got {found}")


def refused(at: int, what: str) -> CheckpointError:
    return CheckpointError(f"{what} (at byte {at})")


def _name(kind: int) -> str:
    return NAMES.get(kind, f"{kind:#x}")


def check_messages(
    path: str, messages: Messages, once: tuple[int, ...], any_number: tuple[int, ...] = ()
) -> None:
    """Refuse an object whose header has other messages than are written, by rule where known."""
    for kind, rule in RULES.items():
        if kind in messages:
            raise CheckpointError(f"{path}: {rule}")
    found = {kind: len(bodies) for kind, bodies in messages.items() if kind not in any_number}
    if found != dict.fromkeys(once, 1):
        names = ", ".join(f"{n} {_name(kind)}" for kind, n in sorted(found.items()))
        wanted = ", ".join(map(_name, once))
        raise CheckpointError(f"{path}: its header must have {wanted}, got {names:.200}")


def _type(body: bytes) -> str:
    """A datatype message in words, as far as they help."""
    classes = ("integer", "float", "time", "string", "bit field", "opaque", "compound",
               "reference", "enum", "variable-length", "array")  # fmt: skip
    if len(body) < 8:
        return "a named type"
    number, size = body[0] & 15, int.from_bytes(body[4:8], "little")
    if number < 2:
        return f"{'<>'[body[1] & 1]}{'if'[number]}{size}"
    return f"{classes[number] if number < len(classes) else 'unknown'} of {size} bytes"


def _shape(at: int, body: bytes, path: str) -> Shape:
    """The shape of a dataspace message, version 2: simple and fixed."""
    rank, flags, kind = body[1:4] if len(body) >= 4 else (99, 0, 0)
    if kind == 2 and rank == 0:
        raise CheckpointError(f"{path}: it has no data space")
    count = rank * (1 + flags)
    fits = rank <= MOST_RANK and flags <= 1 and kind == (rank > 0) and len(body) == 4 + 8 * count
    if not fits or body[0] != 2:
        raise refused(at, f"{path}: data space {body[:4].hex()} of {len(body)} bytes")
    sizes = struct.unpack_from(f"<{count}Q", body, 4)
    if flags and sizes[:rank] != sizes[rank:]:
        raise CheckpointError(f"{path}: its shape must be fixed, but it can grow")
    if math.prod(n or 1 for n in sizes[:rank]) >= 1 << 58:
        raise CheckpointError(f"{path}: its shape {sizes[:rank]} is too large for any file")
    return sizes[:rank]
