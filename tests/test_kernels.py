"""Every instance of every CUDA kernel gives what the base class computes in float64.

``test_backend.py`` runs the primitives as they are called; here they run in float16, in TF32, with
every size of tile, and captured into a graph, where cuBLAS is not to be had. ``sanitized_kernels``
and ``gpu_check`` run this file again, under sanitizers and on devices.
"""

from collections.abc import Callable, Iterator
from typing import Any

import emulator
import numpy as np
import pytest
import test_backend
from emulator import launcher
from numerics import assert_close, put
from test_backend import BatchLast, ReferenceBackend

from arraycnn.backends import Backend, get_backend
from arraycnn.geometry import conv_window

pytestmark = pytest.mark.skipif(
    emulator.activate() is None, reason="needs a CUDA device, or a C++ compiler for the emulator"
)

LARGE = 100_000  # elements; convolutions of that size take sanitizers minutes and show nothing new


def size_of(arguments: tuple[Any, ...]) -> int:
    return max(np.size(getattr(argument, "array", argument)) for argument in arguments)


CALLS = {
    name: [
        arguments
        for arguments in calls
        if not (launcher.setting.sanitize and "conv" in name and size_of(arguments) > LARGE)
    ]
    for name, calls in test_backend.CALLS.items()
}
TOLERANCE = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-13}
TF32_TOLERANCE = 3e-3  # factors rounded to 10 bits of mantissa

CAPTURED = [name for name in CALLS if name not in ("erf", "padded", "unpadded", "batch_last")]


@pytest.fixture(scope="module")
def cuda() -> Backend:
    return get_backend("cuda")


def rounded(argument: Any, dtype: str) -> Any:
    """An array as it is once it has been stored in ``dtype``, in float64."""
    if isinstance(argument, BatchLast):
        return BatchLast(rounded(argument.array, dtype))
    if isinstance(argument, np.ndarray) and argument.dtype.kind == "f":
        return argument.astype(dtype).astype(np.float64)
    return argument


def is_empty(arguments: tuple[Any, ...]) -> bool:
    arrays = [getattr(argument, "array", argument) for argument in arguments]
    return any(isinstance(array, np.ndarray) and not array.size for array in arrays)


def captured(cuda: Any, work: Callable[[], Any]) -> Any:
    """What ``work`` returns, after it has run as a graph."""
    cupy = cuda.xp
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    with stream:
        with cupy.cuda.using_allocator(pool.malloc):
            stream.begin_capture()
            try:
                results = work()
            finally:
                graph = stream.end_capture()
        graph.launch()
        stream.synchronize()
        results = results if isinstance(results, tuple) else (results,)
        return [cuda.to_numpy(result) for result in results]


def check(
    cuda: Any,
    name: str,
    arguments: tuple[Any, ...],
    dtype: str,
    tolerance: float | None = None,
    graph: bool = False,
) -> None:
    """The primitive on the device against the base class in float64."""
    arguments = tuple(rounded(argument, dtype) for argument in arguments)
    expected = test_backend.run(ReferenceBackend(), name, arguments, "float64")

    def placed(argument: Any) -> Any:
        layout = "batch_last" if isinstance(argument, BatchLast) else None
        array = argument.array if isinstance(argument, BatchLast) else argument
        if not isinstance(array, np.ndarray):
            return array
        return put(cuda, array.astype(dtype) if array.dtype.kind == "f" else array, layout)

    if graph:
        given = [placed(argument) for argument in arguments]
        found = captured(cuda, lambda: getattr(cuda, name)(*given))
    else:
        found = test_backend.run(cuda, name, arguments, dtype)
    for one, truth in zip(found, expected, strict=True):
        assert one.dtype == (dtype if truth.dtype.kind == "f" else truth.dtype)
        assert_close(one, truth, tolerance or TOLERANCE[dtype], name)


@pytest.mark.parametrize("name", CALLS)
def test_halves_are_stored_and_floats_computed(name: str, cuda: Backend) -> None:
    for arguments in CALLS[name]:
        check(cuda, name, arguments, "float16")


def test_bias_and_relu_follow_cublas(cuda: Backend) -> None:
    for arguments in CALLS["dense"]:
        check(cuda, "dense", arguments, "float32")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", CAPTURED)
def test_a_graph_computes_the_same(name: str, dtype: str, cuda: Backend) -> None:
    for arguments in CALLS[name]:
        if not is_empty(arguments):  # no step of a training is
            check(cuda, name, arguments, dtype, graph=True)


# ---- Tiles of the implicit GEMM ----


def tile_calls() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Convolutions for each size of tile, with loads of four and of one element."""
    rng = np.random.default_rng(0)
    for batch in (4, 5):
        for channels, outputs, groups in ((3, 10, 1), (40, 40, 1), (70, 72, 1), (6, 6, 2)):
            for stride, dilation in ((1, 1), (2, 1), (1, 2)):
                window = conv_window((5, 6), 3, stride=stride, padding=1, dilation=dilation)
                x = BatchLast(rng.standard_normal((batch, channels, 5, 6)))
                weight = rng.standard_normal((outputs, channels // groups, 3, 3))
                bias = rng.standard_normal(outputs)
                delta = BatchLast(rng.standard_normal((batch, outputs, *window.output_size)))
                yield "convolution", (x, weight, bias, window, groups, True)
                yield "convolution_input_grad", (delta, weight, window, groups)
                yield "convolution_weight_grad", (x, delta, weight.shape, window, groups)


TILE_CALLS: dict[str, list[tuple[Any, ...]]] = {}
for _name, _arguments in tile_calls():
    TILE_CALLS.setdefault(_name, []).append(_arguments)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("processors", [1, 64])  # few take large tiles, many split the sum
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "tf32"])
@pytest.mark.parametrize("name", TILE_CALLS)
def test_every_tile_computes_the_same(
    name: str,
    dtype: str,
    processors: int,
    graph: bool,
    cuda: Backend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda, "processors", processors)
    if dtype == "tf32":
        if int(str(cuda.device.compute_capability)) < 80:
            pytest.skip("TF32 needs compute capability 8.0")
        monkeypatch.setattr(cuda, "tf32", True)
    for arguments in TILE_CALLS[name]:
        if dtype == "tf32":
            check(cuda, name, arguments, "float32", TF32_TOLERANCE, graph)
        else:
            check(cuda, name, arguments, dtype, graph=graph)


# ---- Losses and updates ----


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_compute_the_same(reduction: str, dtype: str, graph: bool, cuda: Backend) -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 2), (7, 10), (40, 3, 5), (3, 33, 2, 2)):
        logits = BatchLast(3 * rng.standard_normal(shape))
        labels = rng.integers(0, shape[1], (shape[0], *shape[2:]))
        weight = rng.random(shape[1]) + 0.5
        for options in ((None, 0.0, None), (weight, 0.1, 1), (None, 0.2, 0), (weight, 0.0, None)):
            arguments = (logits, labels, *options, reduction)
            check(cuda, "softmax_cross_entropy", arguments, dtype, graph=graph)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "adamw"])
def test_updates_compute_the_same(name: str, dtype: str, cuda: Backend) -> None:
    rule, slots, options = test_backend.UPDATES[name]
    rng = np.random.default_rng(0)
    shapes = [(3, 4), (), (0, 2), (5000,), *[(2,)] * 60]  # more than one launch holds
    given = [
        [rounded(np.asarray(rng.random(shape) + 0.1), dtype) for shape in shapes]
        for _ in range(2 + slots)
    ]
    expected = [[array.copy() for array in arrays] for arrays in given]
    arrays = list(zip(*expected, strict=True))
    ReferenceBackend().update_parameters(rule, arrays, step=3, **options)
    found = [[put(cuda, array.astype(dtype)) for array in arrays] for arrays in given]
    cuda.update_parameters(rule, list(zip(*found, strict=True)), step=3, **options)
    for ours, theirs in zip(found, expected, strict=True):
        for one, truth in zip(ours, theirs, strict=True):
            assert_close(cuda.to_numpy(one), truth, TOLERANCE[dtype], name)
