"""Two inner loops of convolution in vector registers, written as LLVM code through Numba.

A compiler that is given plain loops keeps the sums of a convolution in memory and spends its time
loading and storing them. Here a block of sums stays in registers from the first tap to the last:
`correlation_tile` for outputs and input gradients, `product_tile` for weight gradients. Addresses
are in bytes, strides in elements; the arrays are float32. Every sum is made of fused multiply-adds
in one order, whatever the block that it falls into.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FLOAT, INT32, INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_features = dict(binding.get_host_cpu_features())
_many_registers = bool(_features.get("avx512f")) or not _features.get("sse")  # 32, else 16
LANES = 16 if _features.get("avx512f") else 8 if _features.get("avx") else 4
ROWS = 8 if _many_registers else 4  # outputs in a block; also half of it, …, 1
VECTORS = 3  # of neighbouring elements in a block; also 2, 1, and 0 for a part of one
PRODUCT_ROWS = 4  # channels on the one side of a block of a weight gradient …
PRODUCT_COLUMNS = 4 if _many_registers else 2  # … and on the other


class _Code:
    """LLVM instructions on vectors of `LANES` floats."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self.vector = ir.VectorType(FLOAT, LANES)
        self.zero = ir.Constant(self.vector, None)
        self._fma = self._intrinsic(f"llvm.fma.v{LANES}f32", self.vector, [self.vector] * 3)

    def moved(self, address: Any, elements: Any) -> Any:
        """The address of the element ``elements`` further on."""
        return self.builder.add(address, self.builder.mul(elements, INT64(4)))

    def load(self, address: Any, kind: Any = None) -> Any:
        value = self.builder.load(self._pointer(address, kind or self.vector))
        value.align = 4
        return value

    def store(self, value: Any, address: Any) -> None:
        self.builder.store(value, self._pointer(address, value.type)).align = 4

    def first(self, count: Any) -> Any:
        """A mask of the first ``count`` lanes."""
        kind = ir.VectorType(INT32, LANES)
        lane = ir.Constant(kind, list(range(LANES)))
        count = self._splat(self.builder.trunc(count, INT32), kind)
        return self.builder.icmp_unsigned("<", lane, count)

    def load_some(self, address: Any, mask: Any) -> Any:
        """The lanes in ``mask`` from memory, zeros in the others."""
        pointer = self._pointer(address, self.vector)
        arguments = [pointer, INT32(4), mask, self.zero]
        name = f"llvm.masked.load.v{LANES}f32.p0"
        load = self._intrinsic(name, self.vector, [a.type for a in arguments])
        return self.builder.call(load, arguments)

    def store_some(self, value: Any, address: Any, mask: Any) -> None:
        arguments = [value, self._pointer(address, self.vector), INT32(4), mask]
        name = f"llvm.masked.store.v{LANES}f32.p0"
        store = self._intrinsic(name, ir.VoidType(), [a.type for a in arguments])
        self.builder.call(store, arguments)

    def single(self, number: Any) -> Any:
        """``number`` in the first lane, zeros in the others."""
        return self.builder.insert_element(self.zero, number, INT32(0))

    def broadcast(self, number: Any) -> Any:
        """``number`` in every lane."""
        return self._splat(number, self.vector)

    def sums(self, rows: int, columns: int) -> list[list[Any]]:
        """A block of vectors for which LLVM finds registers, all zero."""
        block = [
            [cgutils.alloca_once(self.builder, self.vector) for _ in range(columns)]
            for _ in range(rows)
        ]
        for row in block:
            for place in row:
                self.builder.store(self.zero, place)
        return block

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.builder.call(self._fma, [a, b, c])

    def add_product(self, place: Any, a: Any, b: Any) -> None:
        self.builder.store(self.fma(a, b, self.builder.load(place)), place)

    def rectified(self, value: Any, relu: Any) -> Any:
        """max(value, 0) where ``relu`` is not 0."""
        negative = self.builder.fcmp_ordered("<", value, self.zero)  # NaN is not, and stays
        positive = self.builder.select(negative, self.zero, value)
        return self.builder.select(self.builder.trunc(relu, ir.IntType(1)), positive, value)

    def total(self, place: Any) -> Any:
        """The sum of the lanes."""
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        reduce = self._intrinsic(name, FLOAT, [FLOAT, self.vector])
        arguments = [ir.Constant(FLOAT, 0.0), self.builder.load(place)]
        return self.builder.call(reduce, arguments, fastmath=("reassoc", "nsz"))

    @contextmanager
    def repeated(self, count: Any) -> Iterator[Any]:
        with cgutils.for_range(self.builder, count) as loop:
            yield loop.index

    def _splat(self, number: Any, kind: Any) -> Any:
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, number, INT32(0))
        zeros = ir.Constant(ir.VectorType(INT32, LANES), [0] * LANES)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def _pointer(self, address: Any, kind: Any) -> Any:
        return self.builder.inttoptr(address, kind.as_pointer())

    def _intrinsic(self, name: str, result: Any, arguments: list[Any]) -> Any:
        kind = ir.FunctionType(result, arguments)
        return cgutils.get_or_insert_function(self.builder.module, kind, name)


def _one_of(builder: Any, choice: Any, cases: Mapping[int, Callable[[], None]]) -> None:
    """Branch to the case that the integer ``choice`` names; nothing happens for another."""
    end = builder.append_basic_block("end")
    switch = builder.switch(choice, end)
    for value, emit in cases.items():
        block = builder.append_basic_block(f"case{value}")
        switch.add_case(INT64(value), block)
        builder.position_at_end(block)
        emit()
        builder.branch(end)
    builder.position_at_end(end)


def _halves(largest: int) -> list[int]:
    return [largest] if largest == 1 else [largest, *_halves(largest // 2)]


def _correlation_block(
    builder: Any, arguments: tuple[Any, ...], rows: int, vectors: int, rest: Any = None
) -> None:
    """``vectors`` whole vectors, or one of which only the first ``rest`` lanes are there."""
    x, w, bias, y, counts, x_strides, w_strides, y_stride, relu = arguments
    code = _Code(builder)
    load, store = code.load, code.store
    if rest is not None:
        mask = code.first(rest)
        load, store = partial(code.load_some, mask=mask), partial(code.store_some, mask=mask)
    sums = code.sums(rows, vectors)
    for row, places in enumerate(sums):
        start = code.broadcast(code.load(code.moved(bias, INT64(row)), FLOAT))
        for place in places:
            builder.store(start, place)

    def taps(x: Any, w: Any, depth: int) -> None:
        if depth < 3:
            with code.repeated(counts[depth]) as index:
                taps(
                    code.moved(x, builder.mul(index, x_strides[depth])),
                    code.moved(w, builder.mul(index, w_strides[depth])),
                    depth + 1,
                )
            return
        inputs = [load(code.moved(x, INT64(LANES * v))) for v in range(vectors)]
        for row, places in enumerate(sums):
            weight = code.broadcast(code.load(code.moved(w, INT64(row)), FLOAT))
            for place, values in zip(places, inputs, strict=True):
                code.add_product(place, values, weight)

    taps(x, w, 0)
    for row, places in enumerate(sums):
        target = code.moved(y, builder.mul(y_stride, INT64(row)))
        for v, place in enumerate(places):
            total = code.rectified(builder.load(place), relu)
            store(total, code.moved(target, INT64(LANES * v)))


def _correlation_tile(
    typing: Any, x: Any, w: Any, bias: Any, y: Any, count_a: Any, count_b: Any, count_c: Any,
    x_a: Any, x_b: Any, x_c: Any, w_a: Any, w_b: Any, w_c: Any, y_stride: Any, relu: Any,
    rows: Any, vectors: Any, rest: Any,
) -> Any:  # fmt: skip
    """y[o, l] = bias[o] + Σ w[a, b, c, o]·x[a, b, c, l] over three dimensions of taps.

    Arguments: addresses of x, w, bias, y; three counts of taps; their strides in x; their strides
    in w, whose outputs are neighbours; the stride of o in y; whether to take max(y, 0); rows (how
    many o: `ROWS` or a half, …), vectors (how many l, in `LANES`), and where that is 0, rest (how
    many l, fewer than `LANES`).
    """
    signature = types.void(*[types.int64] * 18)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        x, w, bias, y = values[:4]
        inner = (x, w, bias, y, values[4:7], values[7:10], values[10:13], values[13], values[14])
        rows, vectors, rest = values[15:]

        def blocks(r: int) -> None:
            block = partial(_correlation_block, builder, inner, r)
            cases = {v: partial(block, v) for v in range(1, VECTORS + 1)}
            _one_of(builder, vectors, cases | {0: partial(block, 1, rest)})

        _one_of(builder, rows, {r: partial(blocks, r) for r in _halves(ROWS)})
        return context.get_dummy_value()

    return signature, generate


def _product_block(builder: Any, arguments: tuple[Any, ...], rows: int, columns: int) -> None:
    d, x, g, length, repeats, d_strides, x_strides, g_strides = arguments
    code = _Code(builder)
    sums = code.sums(rows, columns)

    def add(d: Any, x: Any, load: Callable[[Any], Any]) -> None:
        deltas = [load(code.moved(d, builder.mul(d_strides[0], INT64(row)))) for row in range(rows)]
        for column in range(columns):
            inputs = load(code.moved(x, builder.mul(x_strides[0], INT64(column))))
            for row, delta in enumerate(deltas):
                code.add_product(sums[row][column], delta, inputs)

    whole = builder.udiv(length, INT64(LANES))
    with code.repeated(repeats) as repeat:
        d_run = code.moved(d, builder.mul(repeat, d_strides[1]))
        x_run = code.moved(x, builder.mul(repeat, x_strides[1]))
        with code.repeated(whole) as index:
            start = builder.mul(index, INT64(LANES))
            add(code.moved(d_run, start), code.moved(x_run, start), code.load)
        done = builder.mul(whole, INT64(LANES))
        with code.repeated(builder.sub(length, done)) as index:
            place = builder.add(done, index)
            add(
                code.moved(d_run, place),
                code.moved(x_run, place),
                lambda address: code.single(code.load(address, FLOAT)),
            )
    for row, places in enumerate(sums):
        for column, place in enumerate(places):
            target = code.moved(g, builder.mul(g_strides[0], INT64(row)))
            target = code.moved(target, builder.mul(g_strides[1], INT64(column)))
            code.store(builder.fadd(code.load(target, FLOAT), code.total(place)), target)


def _product_tile(
    typing: Any, d: Any, x: Any, g: Any, length: Any, repeats: Any, d_o: Any, d_r: Any, x_c: Any,
    x_r: Any, g_o: Any, g_c: Any, rows: Any, columns: Any,
) -> Any:  # fmt: skip
    """g[o, c] += Σ d[o, r, l]·x[c, r, l] over r and l.

    Arguments: addresses of d, x, g; how many l (neighbours in d and x) and r; strides of o and r in
    d, of c and r in x, of o and c in g; rows (how many o) and columns (how many c).
    """
    signature = types.void(*[types.int64] * 13)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        d, x, g, length, repeats = values[:5]
        inner = (d, x, g, length, repeats, values[5:7], values[7:9], values[9:11])
        rows, columns = values[11:]

        def blocks(r: int) -> None:
            block = partial(_product_block, builder, inner, r)
            _one_of(builder, columns, {c: partial(block, c) for c in _halves(PRODUCT_COLUMNS)})

        _one_of(builder, rows, {r: partial(blocks, r) for r in _halves(PRODUCT_ROWS)})
        return context.get_dummy_value()

    return signature, generate


def _map_block(
    builder: Any, arguments: tuple[Any, ...], matrix: Sequence[Sequence[float]], whole: bool
) -> None:
    sources, targets, offset, bias, relu, rest = arguments
    code = _Code(builder)
    load, store = code.load, code.store
    if not whole:
        mask = code.first(rest)
        load, store = partial(code.load_some, mask=mask), partial(code.store_some, mask=mask)

    def place(table: Any, index: int) -> Any:
        address = code.load(builder.add(table, INT64(8 * index)), INT64)
        return builder.add(address, offset)

    inputs = [load(place(sources, index)) for index in range(len(matrix[0]))]
    start = code.broadcast(code.load(bias, FLOAT))
    for index, row in enumerate(matrix):
        total = start
        for values, factor in zip(inputs, row, strict=True):
            if factor:
                factors = ir.Constant(code.vector, [float(factor)] * LANES)
                total = code.fma(values, factors, total)
        store(code.rectified(total, relu), place(targets, index))


def linear_map(matrices: Mapping[int, Sequence[Sequence[float]]]) -> Any:
    """An intrinsic that multiplies vectors by one of some small matrices, whose zeros cost nothing.

    y[i] = bias + Σ matrix[i][j]·x[j]. Its arguments: addresses of two tables of addresses, of x and
    of y; an offset to add to each of these; the address of bias; whether to take max(y, 0); the key
    of the matrix; how many elements there are, at most `LANES`.
    """

    def tile(
        typing: Any, sources: Any, targets: Any, offset: Any, bias: Any, relu: Any, key: Any,
        rest: Any,
    ) -> Any:  # fmt: skip
        signature = types.void(*[types.int64] * 7)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            *inner, key, rest = values
            arguments = (*inner, rest)

            def either(matrix: Sequence[Sequence[float]]) -> None:
                whole = builder.icmp_signed("==", rest, INT64(LANES))
                with builder.if_else(whole) as (then, otherwise):
                    with then:
                        _map_block(builder, arguments, matrix, True)
                    with otherwise:
                        _map_block(builder, arguments, matrix, False)

            _one_of(builder, key, {k: partial(either, m) for k, m in matrices.items()})
            return context.get_dummy_value()

        return signature, generate

    return intrinsic(tile)


correlation_tile: Any = intrinsic(_correlation_tile)
product_tile: Any = intrinsic(_product_tile)
