"""The cases of the contract of a backend: every primitive with the arguments that it may get."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.reference import updates
from arraycnn.backends.reference.backend import ReferenceBackend
from arraycnn.geometry import Window, conv_window, pool_window

REAL, COMPLEX = ("float32", "float64", "float16"), ("complex64", "complex128")
LIMITS = (1, 3_000, 20_000)  # bytes of workspace, at which the result must be the same


class BatchLast(NamedTuple):
    """An argument that a primitive gets in batch-last memory."""

    array: Array


class DTYPE:
    """An argument that stands for the dtype in which a case is computed."""


class Gaps(NamedTuple):
    """An argument whose elements have gaps between them."""

    array: Array


class Case(NamedTuple):
    """A call of a primitive."""

    primitive: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    dtypes: tuple[str, ...]
    limit: int | None  # of the workspace

    def __str__(self) -> str:
        options = [f"{name}={value!r}" for name, value in self.options.items()]
        shown = ", ".join([*map(_shown, self.arguments), *options])
        limit = "" if self.limit is None else f" within {self.limit} bytes"
        return f"{self.primitive}({shown}){limit}"


def _shown(argument: Any) -> str:
    if isinstance(argument, BatchLast | Gaps):
        order = "batch last" if isinstance(argument, BatchLast) else "with gaps"
        return f"{_shown(argument.array)} {order}"
    if isinstance(argument, list):
        return f"{len(argument)} arrays"
    if isinstance(argument, Window):
        parts = argument.input_size, argument.kernel_size, argument.stride
        return "window {} {}, stride {}, padding {}, dilation {}".format(
            *parts, argument.padding, argument.dilation
        )
    if callable(argument):
        return str(getattr(argument, "__name__", argument))
    return f"array {argument.shape}" if isinstance(argument, np.ndarray) else repr(argument)


@cache
def cases() -> dict[str, list[Case]]:
    """All cases, by primitive; the arrays are float64 and integers."""
    found: dict[str, list[Case]] = {}
    for batch in (0, 1, 5, 19):  # a vector holds 4 to 16 samples
        for generator in (_memory, _convolutions, _pools, _norms, _elements, _losses):
            for name, *arguments in generator(batch):
                _add(found, name, arguments, REAL)
    for name, *arguments in _large():
        _add(found, name, arguments, REAL[:2])
    for name, *arguments in _convolutions(2):
        if not (name == "convolution" and arguments[5:6] == [True]):  # relu is for real numbers
            _add(found, name, arguments, COMPLEX)
    window = conv_window((9, 8), (3, 2), stride=(2, 1), padding=1)
    for name, *arguments in _convolution_calls(window, 2, 5, "auto"):
        for limit in LIMITS:
            _add(found, name, arguments, REAL[:2], limit)
    for rule, slots, options in UPDATES:
        rng = np.random.default_rng(0)
        shapes = (3, 4), (5,), (), (0, 2), (2, 3, 2, 2), (300, 500)
        arrays = [
            tuple(np.asarray(rng.random(shape) + 0.1) for _ in range(2 + slots)) for shape in shapes
        ]
        case = Case("update_parameters", (rule, arrays), {"step": 3, **options}, REAL[:2], None)
        found.setdefault(case.primitive, []).append(case)
    return found


def _add(
    found: dict[str, list[Case]],
    name: str,
    arguments: Sequence[Any],
    dtypes: tuple[str, ...],
    limit: int | None = None,
) -> None:
    found.setdefault(name, []).append(Case(name, tuple(arguments), {}, dtypes, limit))


Call = tuple[Any, ...]  # the name of a primitive, then its arguments

_CONVOLUTIONS: list[tuple[dict[str, Any], int]] = [
    ({"input_size": (9,), "kernel_size": (3,)}, 1),
    ({"input_size": (12,), "kernel_size": (4,), "stride": 3, "padding": 2, "dilation": 2}, 1),
    ({"input_size": (6, 7), "kernel_size": (3, 2)}, 1),
    ({"input_size": (6, 7), "kernel_size": (1, 1)}, 2),
    ({"input_size": (6, 7), "kernel_size": (1, 1), "stride": 2}, 1),
    ({"input_size": (6, 7), "kernel_size": (3, 3), "padding": 1}, 1),
    ({"input_size": (6, 7), "kernel_size": (3, 3), "padding": "full"}, 2),
    ({"input_size": (6, 7), "kernel_size": (5, 3), "stride": 2, "padding": "same"}, 1),
    ({"input_size": (6, 7), "kernel_size": (2, 2), "padding": ((0, 1), (2, 0))}, 4),
    ({"input_size": (6, 7), "kernel_size": (2, 2), "padding": 3, "dilation": 2}, 1),
    ({"input_size": (5, 6), "kernel_size": (2, 3), "padding": 5}, 1),
    ({"input_size": (4, 3, 5), "kernel_size": (2, 3, 2), "padding": 1}, 2),
    ({"input_size": (5, 4, 5), "kernel_size": (2, 2, 2), "stride": (2, 1, 2)}, 1),
]
_POOLS: list[dict[str, Any]] = [
    {"input_size": (9,), "kernel_size": (2,), "stride": 2},
    {"input_size": (6, 7), "kernel_size": (2, 2), "stride": 2},
    {"input_size": (6, 7), "kernel_size": (2, 2), "stride": 2, "ceil_mode": True},
    {"input_size": (6, 7), "kernel_size": (3, 3), "stride": 2, "padding": 1},
    {"input_size": (6, 7), "kernel_size": (2, 3), "stride": 1, "dilation": (2, 1)},
    {"input_size": (4, 5, 4), "kernel_size": (2, 2, 2), "stride": (2, 1, 2), "padding": 1},
    {"input_size": (18, 20), "kernel_size": (17, 16), "stride": 1, "padding": 1},  # 272 taps
]
_DECAYS = {"lr": 0.1, "weight_decay": 0.01}
_ADAM = {"betas": (0.9, 0.99), "eps": 1e-8}
UPDATES: list[tuple[Any, int, dict[str, Any]]] = [  # rules, their numbers of slots, and options
    (updates.sgd, 0, {**_DECAYS, "momentum": 0.0, "nesterov": False}),
    (updates.sgd, 1, {**_DECAYS, "momentum": 0.9, "nesterov": False}),
    (updates.sgd, 1, {**_DECAYS, "momentum": 0.9, "nesterov": True}),
    (updates.adam, 2, {**_DECAYS, **_ADAM}),
    (updates.adamw, 2, {**_DECAYS, **_ADAM}),
    (updates.rmsprop, 2, {**_DECAYS, "alpha": 0.9, "eps": 1e-8, "momentum": 0.9}),
    (updates.adagrad, 1, {**_DECAYS, "lr_decay": 0.1, "eps": 1e-8}),
]


def _memory(batch: int) -> Iterator[Call]:
    for shape in ((batch, 3), (batch, 2, 5), (batch, 3, 4, 5)):
        yield "new_buffer", shape, DTYPE
        yield "empty", shape, DTYPE
        yield "zeros", shape, DTYPE
    x = np.random.default_rng(0).standard_normal((batch, 3, 4, 5))
    for order in (BatchLast, np.asarray, Gaps):
        yield "batch_last", order(x)
    if batch == 1:
        yield "empty", (), DTYPE
        yield "batch_last", np.asarray(0.5)


def _convolutions(batch: int) -> Iterator[Call]:
    for options, groups in _CONVOLUTIONS:
        window = conv_window(**options)
        for method in ("auto", "fft"):
            yield from _convolution_calls(window, groups, batch, method)
        rng = np.random.default_rng(0)
        x = BatchLast(rng.standard_normal((batch, 4, *window.input_size)))
        yield "im2col", x, window
        columns = rng.standard_normal((4 * window.taps, window.positions * batch))
        yield "col2im", columns, window, batch
        yield "padded", x, window
        yield "patches", x, window
        yield "unpadded", rng.standard_normal((4, *window.padded_size, batch)), window


def _convolution_calls(window: Window, groups: int, batch: int, method: str) -> Iterator[Call]:
    """Convolutions and their gradients for 4 channels in and 8, or 2, out."""
    rng = np.random.default_rng(0)
    x = BatchLast(rng.standard_normal((batch, 4, *window.input_size)))
    for out in (8, 2) if groups < 4 else (8,):
        weight = rng.standard_normal((out, 4 // groups, *window.kernel_size))
        delta = BatchLast(rng.standard_normal((batch, out, *window.output_size)))
        for relu in (False, True):
            bias = rng.standard_normal(out)
            yield "convolution", x, weight, bias, window, groups, relu, method
        yield "convolution", x, weight, None, window, groups, False, method
        yield "convolution_weight_grad", x, delta, weight.shape, window, groups, method
        yield "convolution_input_grad", delta, weight, window, groups, method
        yield "convolution_grads", x, delta, weight, window, groups, method


def _pools(batch: int) -> Iterator[Call]:
    """Inputs with ties, infinities and, for the maximum itself, NaN."""
    reference = ReferenceBackend()
    for options in _POOLS:
        window = pool_window(**options)
        rng = np.random.default_rng(0)
        x = rng.integers(-2, 3, (batch, 3, *window.input_size)).astype(float)
        x[:, 1] = rng.standard_normal(x[:, 1].shape)
        x[:, 2] = -np.inf
        delta = BatchLast(rng.standard_normal((batch, 3, *window.output_size)))
        holes = np.where(rng.random(x.shape) < 0.1, np.nan, x)
        for relu in (False, True):
            for values in (x, holes):
                yield "max_pool", BatchLast(values), window, relu
                yield "max_pool_argmax", BatchLast(values), window, relu
            argmax = BatchLast(reference.max_pool_argmax(x, window, relu)[1])
            yield "max_pool_indices", argmax, window
            yield "max_pool_grad", argmax, delta, window
        finite = BatchLast(rng.standard_normal(x.shape))
        yield "padded", finite, window, -3.0
        yield "sum_pool", finite, window
        yield "sum_pool_grad", delta, window
        yield "global_sum_pool", finite


def _norms(batch: int) -> Iterator[Call]:
    rng = np.random.default_rng(0)
    for shape in ((batch, 3), (batch, 3, 7), (batch, 3, 4, 5), (batch, 3, 2, 3, 4)):
        x, delta = (BatchLast(array) for array in rng.standard_normal((2, *shape)))
        mean, inverse_std, scale, shift = rng.random((4, 3)) + 0.5
        if batch:
            yield "channel_moments", x
            norm = (x, mean, inverse_std, scale, delta)
            yield "batch_norm_grad", *norm
            yield "batch_norm_grad", *norm, BatchLast(np.maximum(delta.array[::-1], 0))
        yield "channel_sum", x
        yield "scale_shift", x, scale, shift
        yield "scale_shift", x, Gaps(scale), shift, True


def _elements(batch: int) -> Iterator[Call]:
    rng = np.random.default_rng(0)
    orders = BatchLast, np.asarray, Gaps
    for shape in ((batch, 3), (batch, 3, 4, 5), (batch, 3, 2, 3, 4)):
        x, delta = rng.standard_normal((2, *shape))
        for order in orders:
            for relu in (False, True):
                yield "add", order(x), order(delta), relu
            yield "relu", order(x)
            for other in orders:
                yield "relu_grad", order(np.maximum(x, 0)), other(delta)
            yield "dropout", order(x), 0.3, 5, 2
            yield "erf", order(3 * x)
    if batch == 1:
        yield "relu", np.asarray(-0.5)
        yield "relu_grad", np.asarray(0.5), np.asarray(2.0)
    x, weight, bias = (rng.standard_normal(shape) for shape in ((batch, 6), (4, 6), (4,)))
    delta = rng.standard_normal((batch, 4))
    for order in orders:
        for relu in (False, True):
            yield "dense", order(x), weight, bias, relu
        yield "dense", order(x), Gaps(weight), None
        yield "dense_input_grad", order(delta), weight
        yield "dense_weight_grad", order(x), order(delta)


def _losses(batch: int) -> Iterator[Call]:
    rng = np.random.default_rng(2)
    name = "softmax_cross_entropy"
    for classes, spatial in ((1, ()), (5, ()), (10, (2, 3)), (40, ())):
        logits = 3 * rng.standard_normal((batch, classes, *spatial))
        labels = rng.integers(0, classes, (batch, *spatial))
        weight = rng.random(classes) + 0.5
        for reduction in ("mean", "sum", "none"):
            for order in (BatchLast, np.asarray, Gaps):
                yield name, order(logits), labels, None, 0.0, None, reduction
            yield name, logits, labels, weight, 0.1, None, reduction
            yield name, logits, labels, weight, 0.0, 0, reduction


def _large() -> Iterator[Call]:
    """Sizes at which a backend cuts its work into tiles and chunks and shares it out."""
    rng = np.random.default_rng(0)
    for kernel, stride, padding, groups, channels, out, batch in (
        (3, 1, 1, 1, 16, 12, 24),
        (5, 2, 2, 1, 8, 40, 24),
        (1, 1, 0, 1, 24, 16, 24),
        ((3, 2), (2, 1), ((1, 0), (2, 1)), 2, 8, 12, 24),
        ((3, 2), 1, ((0, 2), (1, 0)), 1, 40, 48, 40),
        (3, 1, 1, 1, 24, 32, 90),
        ((2, 4), 1, 0, 1, 48, 32, 40),
        (5, 1, ((4, 0), (1, 3)), 1, 24, 32, 33),
    ):
        window = conv_window((24, 25), kernel, stride=stride, padding=padding)
        x = BatchLast(rng.standard_normal((batch, channels, 24, 25)))
        weight = rng.standard_normal((out, channels // groups, *window.kernel_size))
        delta = BatchLast(rng.standard_normal((batch, out, *window.output_size)))
        yield "convolution", x, weight, rng.standard_normal(out), window, groups, True
        yield "convolution_weight_grad", x, delta, weight.shape, window, groups
        yield "convolution_input_grad", delta, weight, window, groups
        yield "convolution_grads", x, delta, weight, window, groups
    x, delta = (BatchLast(array) for array in rng.standard_normal((2, 64, 8, 36, 36)))
    mean, inverse_std, scale, shift = rng.random((4, 8)) + 0.5
    output = BatchLast(np.maximum(delta.array[::-1], 0))
    yield "add", x, delta, True
    yield "relu", x
    yield "relu_grad", output, x
    yield "channel_moments", x
    yield "channel_sum", x
    yield "scale_shift", x, scale, shift, True
    yield "batch_norm_grad", x, mean, inverse_std, scale, delta
    yield "batch_norm_grad", x, mean, inverse_std, scale, delta, output
    yield "dropout", x, 0.3, 5, 2
    window = pool_window((36, 36), 2, stride=2)
    delta = BatchLast(rng.standard_normal((64, 8, *window.output_size)))
    rounded = np.round(x.array)
    for relu in (False, True):
        yield "max_pool", BatchLast(rounded), window, relu
        yield "max_pool_argmax", BatchLast(rounded), window, relu
    argmax = ReferenceBackend().max_pool_argmax(rounded, window)[1]
    yield "max_pool_grad", BatchLast(argmax), delta, window
    yield "sum_pool", x, window
    yield "sum_pool_grad", delta, window
