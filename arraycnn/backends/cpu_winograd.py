"""Columns that need fewer products: m outputs of k taps from m + k − 1 products instead of m·k.

Two polynomials with m and k coefficients can be multiplied through their values at m + k − 1 = P
points. The transpose of that algorithm computes m outputs of a filter with k taps (Winograd,
"Arithmetic complexity of computations", 1980; Lavin & Gray, "Fast algorithms for convolutional
neural networks", 2016). With V(n) the P × n matrix of powers of the points,

    y = V(m)ᵀ [V(k) g ⊙ V(P)⁻ᵀ d]        d: the P inputs that m neighbouring outputs see

Here it runs along the rows of images; the sums over channels and over the kernel's rows are matrix
products, one for each point. Points come in pairs ±a, whose rows of a matrix have the same terms
with even and, up to the sign, with odd powers. Only float32: rounding errors are two to four times
those of the plain sum. Infinities, NaNs and overflow spread to all m outputs; the result must then
be computed again with plain columns.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np

from arraycnn.backends.cpu_columns import FLOPS, Columns, Piece, overlapping, row_blocks
from arraycnn.backends.layout import buffer_of
from arraycnn.backends.memory import Scratch
from arraycnn.geometry import Window, tiles
from arraycnn.types import Array, Shape

POINTS = (0, 1, -1, 2, -2, 0.5, -0.5)  # and ∞, where a polynomial's value is its last coefficient
TILE_BYTES = 3 << 20
LENGTHS = (256, 1024)
SAMPLES = 32  # fewer images make the innermost loops too short
CHUNK = 1 << 15  # elements that are transformed at a time
PASSES = {4: 4, 6: 16, 8: 36}  # over m columns of one channel, to transform them at P points
PRODUCTS_PER_PASS = 11  # multiply-adds in the time of one element of a pass
QUIETLY = np.errstate(over="ignore", invalid="ignore")  # plain columns warn if there is reason to

Terms: TypeAlias = tuple[tuple[np.float32, int], ...]  # of a sum Σ c·x[i]: c and i
Pairs: TypeAlias = tuple[tuple[int, Terms, Terms], ...]  # the points p, p + 1; even and odd terms


class Transform(NamedTuple):
    """The values at P points, row by row of a matrix: at 0, at pairs ±a, at ∞."""

    zero: Terms
    pairs: Pairs
    infinity: Terms


class Filter(NamedTuple):
    """m outputs from products at P points."""

    outputs: int
    points: int
    kernel: Array  # V(k), scaled (P, k)
    seen: Transform  # V(P)⁻ᵀ, each row scaled to end in 1
    spread: Transform  # V(m)
    collect: tuple[Terms, ...]  # V(m)ᵀ, over value at 0, sum and difference of each pair, at ∞


class FilteredColumns(Columns):
    """Columns at P points: matrices (P, R, kh·C, L) for L groups of m outputs in each of R rows.

    A piece of a buffer is its part (R, C, columns, n). ``finite`` tells whether all results were.
    """

    def __init__(
        self, scratch: Scratch, limit: int, x: Array, window: Window, outputs: int, m: int
    ) -> None:
        self.scratch, self.window = scratch, window
        self.buffer = buffer_of(x)  # (C, H, W, N)
        self.filter = minimal_filter(m, window.kernel_size[1])
        self.groups, self.stack = 1, self.filter.points
        self.depth = window.kernel_size[0] * x.shape[1]
        self.per_channel = (-1, 1, 1)
        self.pieces = filtered_pieces(window, x.shape[0], x.shape[1], m, limit)
        products = window.positions * x.shape[0] * self.depth * outputs * self.filter.points / m
        self.seconds = 2 * products / FLOPS

    def kernels(self, weight: Array) -> Array:
        """V(k) g: weights (O, C, kh, kw) as matrices (P, 1, O, kh·C)."""
        values = np.tensordot(self.filter.kernel, weight, (1, 3))  # (P, O, C, kh)
        return values.swapaxes(2, 3).reshape(len(values), 1, -1, self.depth)

    def weight_of(self, kernels: Array) -> Array:
        """The adjoint of `kernels`: (P, O, kh·C) → (O, C, kh, kw)."""
        self.finite &= bool(np.isfinite(kernels).all())
        values = kernels.reshape(*kernels.shape[:2], self.window.kernel_size[0], -1)
        return np.tensordot(values, self.filter.kernel, (0, 0)).swapaxes(1, 2)

    def part(self, buffer: Array, index: int) -> Array:
        return buffer[(slice(None), *self.pieces[index].tile)].swapaxes(0, 1)

    @QUIETLY
    def fill(self, index: int) -> Array:
        """V(P)⁻ᵀ d: the columns (P, R, kh·C, L) of a piece."""
        rows, columns, samples = self.pieces[index].tile
        m, points = self.filter.outputs, self.filter.points
        span, count = self.window.kernel_size[0], -(-(columns.stop - columns.start) // m)
        lines = rows.stop - rows.start + span - 1
        phases = self._phases(rows.start, columns.start, lines, count + (points - 1) // m, samples)
        seen = [phases[p % m][:, :, p // m : p // m + count] for p in range(points)]
        values = self._array("columns", (points, *seen[0].shape))  # (P, lines, C, count, n)
        self._evaluate(self.filter.seen, seen, values)
        return overlapping(values, rows.stop - rows.start, 1, self.depth, self.depth // span)

    @QUIETLY
    def at_points(self, buffer: Array, index: int) -> Array:
        """V(m) u: a piece of a buffer as matrices (P, R, C, L)."""
        part, m = self.part(buffer, index), self.filter.outputs  # (R, C, columns, n)
        rows, channels, columns, samples = part.shape
        count = -(-columns // m)
        if columns % m:
            padded = self._array("padded", (rows, channels, count * m, samples))
            padded[:, :, :columns] = part
            padded[:, :, columns:] = 0
            part = padded
        values = self._array("values", (self.filter.points, rows, channels, count, samples))
        self._evaluate(self.filter.spread, [part[:, :, i::m] for i in range(m)], values)
        return values.reshape(*values.shape[:3], -1)

    @QUIETLY
    def multiply(self, kernels: Array, columns: Array, out: Array) -> None:
        """V(m)ᵀ of the products, into the part (R, O, columns, n) of the output."""
        points, rows, _, length = columns.shape
        outputs, samples = out.shape[1], out.shape[3]
        step = max(1, CHUNK // (outputs * length))
        for y in range(0, rows, step):
            part = out[y : y + step]
            products = self._array("products", (points, len(part), outputs, length))
            np.matmul(kernels, columns[:, y : y + step], out=products)
            self._collect(products.reshape(points, len(part), outputs, -1, samples), part)

    @QUIETLY
    def correlate(self, factors: Array, columns: Array, total: Array) -> None:
        super().correlate(factors, columns, total)

    def _collect(self, products: Array, out: Array) -> None:
        values, spare = list(products), self._array("spare", products.shape[1:])
        for p, _, _ in self.filter.seen.pairs:  # to their sum and difference
            plus, minus = values[p], values[p + 1]
            np.add(plus, minus, out=spare)
            np.subtract(plus, minus, out=minus)
            values[p], spare = spare, plus
        for i, terms in enumerate(self.filter.collect):
            target = out[:, :, i :: self.filter.outputs]
            count = target.shape[2]  # the last group may be cut off
            combine(terms, [value[:, :, :count] for value in values], target, spare[:, :, :count])
        if not np.isfinite(np.einsum("rocn->", out)):
            self.finite = False

    def _phases(self, row: int, column: int, lines: int, count: int, samples: slice) -> Array:
        """The padded input from an output's first tap on, every m-th column together:
        (m, lines, C, count, n)."""
        channels, height, width, _ = self.buffer.shape
        (above, _), (before, _) = self.window.padding
        m, top, left = self.filter.outputs, row - above, column - before
        rows = slice(max(0, top), max(0, min(top + lines, height)))
        phases = self._array("phases", (m, lines, channels, count, samples.stop - samples.start))
        phases[:, : rows.start - top] = 0
        phases[:, rows.stop - top :] = 0
        for j in range(m):
            skip = max(0, -((left + j) // m))  # ⌈−(left + j) / m⌉ columns before the image
            inside = self.buffer[:, rows, left + j + skip * m : width : m, samples]
            inside = inside[:, :, : max(0, count - skip)].swapaxes(0, 1)
            phase = phases[j, rows.start - top : rows.stop - top]
            phase[:, :, :skip] = 0
            phase[:, :, skip : skip + inside.shape[2]] = inside
            phase[:, :, skip + inside.shape[2] :] = 0
        return phases

    def _evaluate(self, transform: Transform, parts: list[Array], out: Array) -> None:
        """The values out[p] of parts, some lines at a time."""
        step = max(1, CHUNK // out[0, :1].size)
        sums = self._array("sums", (3, step, *out.shape[2:]))
        for y in range(0, out.shape[1], step):
            lines, values = [part[y : y + step] for part in parts], out[:, y : y + step]
            even, odd, spare = sums[:, : values.shape[1]]
            combine(transform.zero, lines, values[0], spare)
            combine(transform.infinity, lines, values[-1], spare)
            for p, evens, odds in transform.pairs:
                one, other = combined(evens, lines, even, spare), combined(odds, lines, odd, spare)
                np.add(one, other, out=values[p])
                np.subtract(one, other, out=values[p + 1])

    def _array(self, name: str, shape: Shape) -> Array:
        return self.scratch(name, shape, self.buffer.dtype)


def combined(terms: Terms, parts: Sequence[Array], out: Array, spare: Array) -> Array:
    """Σ c·x[i], in ``out`` unless it is one of the parts as it is."""
    (c, i), *rest = terms
    total = parts[i] if c == 1 else np.multiply(parts[i], c, out=out)
    for c, i in rest:
        if c == 1:
            total = np.add(total, parts[i], out=out)
        elif c == -1:
            total = np.subtract(total, parts[i], out=out)
        else:
            total = np.add(total, np.multiply(parts[i], c, out=spare), out=out)
    return total


def combine(terms: Terms, parts: Sequence[Array], out: Array, spare: Array) -> None:
    """Σ c·x[i] into ``out``."""
    total = combined(terms, parts, out, spare)
    if total is not out:
        np.copyto(out, total)


@lru_cache(maxsize=64)
def minimal_filter(outputs: int, taps: int) -> Filter:
    """The filter for m = ``outputs`` and k = ``taps``, m + k − 1 even."""
    count = outputs + taps - 1
    pairs = range(1, count - 1, 2)

    def powers(length: int) -> Array:  # V(length)
        values = np.vander(POINTS[: count - 1], length, increasing=True)
        return np.vstack([values, np.eye(length)[-1]])

    seen = np.linalg.inv(powers(count)).T.round(12)
    last = np.array([row[np.flatnonzero(row)[-1]] for row in seen])[:, None]
    spread = powers(outputs)
    collect = np.zeros((outputs, count))
    collect[0, 0] = collect[-1, -1] = 1
    for i in range(outputs):  # even powers of a pair from its sum, odd ones from its difference
        for p in pairs:
            collect[i, p + i % 2] = spread[p, i]

    def transform(matrix: Array) -> Transform:
        even = np.arange(matrix.shape[1]) % 2 == 0
        rows = ((p, terms_of(matrix[p] * even), terms_of(matrix[p] * ~even)) for p in pairs)
        return Transform(terms_of(matrix[0]), tuple(rows), terms_of(matrix[-1]))

    kernel = (powers(taps) * last).astype(np.float32)
    return Filter(
        outputs, count, kernel, transform(seen / last), transform(spread),
        tuple(map(terms_of, collect)),
    )  # fmt: skip


def terms_of(row: Array) -> Terms:
    terms = [(np.float32(c), i) for i, c in enumerate(row) if c]
    return tuple(sorted(terms, key=lambda term: term[0] != 1))  # one that needs no product first


def filter_outputs(
    window: Window, batch: int, inputs: int, outputs: int, limit: int
) -> int | None:
    """The m that takes least time; None where plain columns take less, or m cannot be used."""
    if (
        window.ndim != 2
        or any(step != 1 for step in (*window.stride, *window.dilation))
        or batch < SAMPLES
        or window.taps == 1
    ):
        return None
    rows, taps = window.kernel_size

    def cost(m: int) -> float:  # of a row, in multiply-adds
        groups, points = -(-window.output_size[1] // m), m + taps - 1
        products = points * rows * inputs * outputs
        return groups * (products + PASSES[points] * (inputs + outputs) * PRODUCTS_PER_PASS)

    allowed = [
        points - taps + 1
        for points in PASSES
        if points > taps
        and 4 * inputs * points * rows <= limit
        and -(-window.output_size[1] // (points - taps + 1)) * batch >= LENGTHS[0]
    ]
    best = min(allowed, key=cost, default=None)
    plain = window.output_size[1] * rows * taps * inputs * outputs
    return best if best is not None and cost(best) < plain else None


@lru_cache(maxsize=512)
def filtered_pieces(window: Window, batch: int, channels: int, m: int, limit: int) -> list[Piece]:
    """Pieces whose columns take about ``TILE_BYTES`` and no more than ``limit``."""
    span, points = window.kernel_size[0], m + window.kernel_size[1] - 1
    (rows, columns), line = window.output_size, 4 * points * channels
    length = min(LENGTHS[1], max(LENGTHS[0], TILE_BYTES // (2 * span * line)))
    length = min(length, limit // (span * line))
    groups = list(tiles((-(-columns // m), batch), length))
    group, samples = groups[0]
    lines = min(TILE_BYTES, limit) // (line * group.stop * samples.stop)
    return [
        Piece((part, slice(group.start * m, min(group.stop * m, columns)), samples), part, group)
        for part in row_blocks(rows, lines - span + 1)
        for group, samples in groups
    ]


def filtered_bytes(window: Window, batch: int, channels: int, m: int, limit: int) -> int:
    """Bytes of the columns that are held at a time."""
    rows, columns, samples = filtered_pieces(window, batch, channels, m, limit)[0].tile
    lines, points = rows.stop + window.kernel_size[0] - 1, m + window.kernel_size[1] - 1
    return 4 * points * channels * lines * -(-columns.stop // m) * samples.stop
