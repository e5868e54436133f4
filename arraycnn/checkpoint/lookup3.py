"""HDF5's checksum: Bob Jenkins' lookup3 (``hashlittle`` with the initial value 0).

A checkpoint has some hundred blocks of some hundred bytes. Their checksums are computed together, a
round of all blocks at a time, which takes a tenth of the time of one after the other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

MASK = 0xFFFFFFFF
TOGETHER = 16  # blocks from which on NumPy is faster than Python's own numbers


def checksums(blocks: Sequence[bytes]) -> list[int]:
    """The checksum of each block."""
    order = sorted(range(len(blocks)), key=lambda i: -len(blocks[i]))  # the longest first
    lengths = np.array([len(blocks[i]) for i in order], np.uint32)
    rounds = -(-lengths.astype(np.int64) // 12)  # a round takes three words
    starts = np.cumsum(rounds) - rounds
    padded = (blocks[i].ljust(12 * n, b"\0") for i, n in zip(order, rounds.tolist(), strict=True))
    words = np.frombuffer(b"".join(padded), "<u4").reshape(-1, 3)
    state = np.repeat(lengths[None] + np.uint32(0xDEADBEEF), 3, 0)
    sums = state[2].copy()  # those of empty blocks
    left, done = int(np.count_nonzero(rounds)), 0
    while left >= TOGETHER:
        state = state[:, :left] + words[starts[:left] + done].T
        done += 1
        more = int(np.count_nonzero(rounds > done))
        sums[more:left] = _finished(*state[:, more:])
        state, left = np.stack(_mixed(*state[:, :more])), more
    for i in range(left):
        rest = words[starts[i] + done : starts[i] + rounds[i]].tolist()
        sums[i] = _one(rest, state[:, i].tolist())
    result = np.empty_like(sums)
    result[order] = sums
    found: list[int] = result.tolist()
    return found


def _one(triples: list[list[int]], state: list[int]) -> Any:
    for number, triple in enumerate(triples):
        if number:
            state = list(_mixed(*state))
        state = [(a + b) & MASK for a, b in zip(state, triple, strict=True)]
    return _finished(*state)


def _mixed(a: Any, b: Any, c: Any) -> tuple[Any, Any, Any]:
    for shift in (4, 6, 8, 16, 19, 4):
        a = ((a - c) & MASK) ^ ((c << shift & MASK) | c >> (32 - shift))
        a, b, c = b, (c + b) & MASK, a
    return a, b, c


def _finished(a: Any, b: Any, c: Any) -> Any:
    for shift in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - ((b << shift & MASK) | b >> (32 - shift))) & MASK
        a, b, c = b, c, a
    return b
