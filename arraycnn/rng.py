"""Reproducible randomness: host generators for weights, and a counter-based generator for masks.

A counter-based generator computes its i-th number from i alone, so every backend, thread and memory
layout produces the same mask, and its state is two integers. Ours is SplitMix64 (Steele, Lea &
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): number i is the finaliser
applied to key + i·γ.
"""

import secrets
from typing import Any

from arraycnn.arguments import as_count

GAMMA = 0x9E3779B97F4A7C15
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)
_MASK = (1 << 64) - 1


def stream_key(seed: int, counter: int) -> int:
    """The 64-bit key of the ``counter``-th stream of ``seed``."""
    return mix((mix(seed & _MASK) + counter * GAMMA) & _MASK)


def mix(z: int) -> int:
    """SplitMix64's finaliser on one 64-bit integer."""
    z = ((z ^ (z >> SHIFTS[0])) * MULTIPLIERS[0]) & _MASK
    z = ((z ^ (z >> SHIFTS[1])) * MULTIPLIERS[1]) & _MASK
    return z ^ (z >> SHIFTS[2])


def as_seed(seed: Any) -> int:
    """``seed`` as a non-negative int; fresh entropy for ``None``."""
    return secrets.randbits(63) if seed is None else as_count("seed", seed, minimum=0, maximum=None)


def child_seed(seed: int, index: int) -> int:
    """The seed of the ``index``-th part of something seeded with ``seed``."""
    return stream_key(seed, index + 1) >> 1
