"""Links of a group in the HDF5 that arraycnn writes: each by itself, and many in a fractal heap.

A group with more than eight links has them in a fractal heap (III.G of the specification), found
through a version 2 B-tree of their names' hashes (III.A.2, type 5). What HDF5 fixes for the heap
and the tree of a group must be as it is fixed; counters for writers (free space, blocks allocated)
are not looked at.
"""

import struct
from bisect import bisect_right
from typing import Any

from arraycnn.checkpoint.lookup3 import checksums
from arraycnn.checkpoint.reader import (
    MOST_BLOCK,
    UNDEFINED,
    Reader,
    expect,
    refused,
    too_many,
)

WIDTH, START, DIRECT_ROWS, MOST_ROWS = 4, 512, 9, 22  # of a heap's doubling table
HEAP = struct.Struct("<4sBHHBIQQQQQQQQQQQQHQQHHQH")
TREE = struct.Struct("<4sBBIHHBBQHQ")
NODE = 512  # bytes of a node of the tree
RECORD = struct.Struct("<IBIH")  # hash, then the heap ID: kind, offset, length
POINTERS = (0, 9, 11, 11, 12)  # bytes of a pointer to a child, by the node's depth
DIRECT_HEAD = 21  # bytes in front of a direct block's contents


def link(at: int, body: bytes, path: str) -> tuple[str, int]:
    """(name, address) of a link message, version 1: hard, without an order of creation."""
    if len(body) >= 3 and body[0] == 1 and body[1] & 8 and body[2]:
        kind = {1: "a soft link", 64: "an external link"}.get(body[2], "a user-defined one")
        raise refused(at, f"/{path}: only hard links are allowed, got {kind}")
    if len(body) < 12 or body[0] != 1 or body[1] & ~0x11:
        raise refused(at, f"/{path}: link {body[:3].hex()}")
    charset = body[1] >> 4
    start = 3 + charset + (body[1] & 1)
    length = int.from_bytes(body[2 + charset : start], "little")
    if len(body) != start + length + 8 or (charset and body[2] > 1):
        raise refused(at, f"/{path}: link {body[:start].hex()} of {len(body)} bytes")
    try:
        name = body[start:-8].decode()
    except UnicodeDecodeError:
        name = ""
    if not name or name == "." or "/" in name or "\0" in name:
        raise refused(at, f"/{path}: link with the name {body[start:-8]!r:.80}")
    return name, int.from_bytes(body[-8:], "little")


def dense_links(
    reader: Reader, heap: int, tree: int, path: str, most: int
) -> list[tuple[int, bytes]]:
    """(where, link message) of each link of a group that has them in a heap."""
    records = _tree(reader, tree, path, most)
    blocks, count = _heap(reader, heap, path)
    if not blocks or len(records) != count:
        raise refused(
            reader.base + heap, f"/{path}: {len(records)} links, {count} of them in the heap"
        )
    starts = [offset for offset, _, _ in blocks]
    links, end = [], 0
    for offset, length, _, at in records:
        start, where, block = blocks[max(0, bisect_right(starts, offset) - 1)]
        first = offset - start
        if offset < end or first < DIRECT_HEAD or first + length > len(block):
            raise refused(at, f"/{path}: link of {length} bytes at {offset} of the heap")
        end = offset + length
        links.append((where + first, block[first : first + length]))
    hashes = checksums([link(at, body, path)[0].encode() for at, body in links])
    for (_, _, stored, at), right in zip(records, hashes, strict=True):
        expect(at, f"/{path}: link", {"hash": (stored, right)})
    return links


def _heap(reader: Reader, owner: int, path: str) -> tuple[list[tuple[int, int, bytes]], int]:
    """Direct blocks (offset in the heap, in the file, bytes) in order; the number of links."""
    what = f"the heap of /{path}"
    at, head = reader.block(owner, HEAP.size + 4, what, b"FRHP")
    found = HEAP.unpack_from(head)
    expect(
        at,
        what,
        {
            "version": (found[1], 0),
            "length of IDs": (found[2], 7),
            "length of filters": (found[3], 0),
            "flags": (found[4], 2),
            "largest object": (found[5], 4096),
            "next huge ID": (found[6], 0),
            "tree of huge objects": (found[7], UNDEFINED),
            "sizes of huge and tiny objects": (found[14:18], (0, 0, 0, 0)),
            "doubling table": (found[18:23], (WIDTH, START, MOST_BLOCK, 32, 1)),
        },
    )
    count, root, rows = found[13], found[23], found[24]
    blocks: list[tuple[int, int, bytes]] = []
    waiting = [(root, 0, START, rows)]
    while waiting:
        address, offset, size, rows = waiting.pop()
        if rows > MOST_ROWS:
            raise refused(at, f"{what}: {rows} rows")
        if not rows:
            where, block = reader.block(address, size, what, b"FHDB", sum_at=17)
            blocks.append((offset, where, block))
        else:
            size = DIRECT_HEAD + 8 * WIDTH * rows
            where, block = reader.block(address, size, what, b"FHIB")
        kind, belongs, begins = struct.unpack_from("<BQI", block, 4)
        expect(where, what, {"block": ((kind, belongs, begins), (0, owner, offset))})
        for number in range(WIDTH * rows):
            (child,) = struct.unpack_from("<Q", block, 17 + 8 * number)
            row, column = divmod(number, WIDTH)
            size = START << max(row - 1, 0)
            place = offset + size * (column + (WIDTH if row else 0))
            if child != UNDEFINED:  # from a certain size on it has rows of its own
                inner = size.bit_length() - 11 if row >= DIRECT_ROWS else 0
                waiting.append((child, place, size, inner))
    return sorted(blocks, key=lambda block: block[0]), count


def _tree(reader: Reader, address: int, path: str, most: int) -> list[tuple[int, int, int, int]]:
    """(offset in the heap, length, hash, where) of each link, in order."""
    what = f"the index of /{path}"
    at, head = reader.block(address, TREE.size + 4, what, b"BTHD")
    found = TREE.unpack_from(head)
    expect(
        at,
        what,
        {
            "version and type": (found[1:3], (0, 5)),
            "sizes of nodes and records": (found[3:5], (NODE, 11)),
            "shares of full and merged nodes": (found[6:8], (100, 40)),
        },
    )
    depth, (root, count, total) = found[5], found[8:]
    if total > most:
        raise too_many(path, most, total)
    if depth >= len(POINTERS):
        raise refused(at, f"{what}: depth {depth}")
    records: list[tuple[int, int, int, int]] = []
    waiting: list[tuple[Any, ...]] = [(root, count, depth)]
    while waiting:
        address, count, depth = waiting.pop()
        pointers = 6 + RECORD.size * count
        used = pointers + POINTERS[depth] * (count + 1) + 4
        if used > NODE or len(records) + count > total:
            raise refused(at, f"{what}: {count} records in a node")
        signature = (b"BTIN" if depth else b"BTLF") + b"\0\5"
        where, block = reader.block(address, NODE, what, signature, used=used)
        for place in range(6, pointers, RECORD.size):
            stored, kind, offset, length = RECORD.unpack_from(block, place)
            expect(where + place, what, {"kind of heap ID": (kind, 0)})
            records.append((offset, length, stored, where + place))
        for place in range(pointers, used - 4, POINTERS[depth] or NODE):
            waiting.append((*struct.unpack_from("<QB", block, place), depth - 1))
    if len(records) != total:
        raise refused(at, f"{what}: {total} records, but {len(records)} found")
    return sorted(records)
