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
from emulator import launcher

from arraycnn import testing
from arraycnn.backends import Backend, get_backend
from arraycnn.geometry import conv_window
from arraycnn.testing import cases
from arraycnn.testing.cases import BatchLast, Case

pytestmark = pytest.mark.skipif(
    emulator.activate() is None, reason="needs a CUDA device, or a C++ compiler for the emulator"
)

LARGE = 100_000  # elements; convolutions of that size take sanitizers minutes and show nothing new


def size_of(case: Case) -> int:
    return max(np.size(getattr(argument, "array", argument)) for argument in case.arguments)


WITHOUT = ("new_buffer", "empty", "convolution_grads")  # the last is the two gradients again


def is_for_kernels(case: Case) -> bool:
    """Whether a case shows what the others do not: transforms and tight memory are CuPy's."""
    if case.limit or case.dtypes[0].startswith("complex"):
        return False
    if case.primitive.startswith("convolution") and case.arguments[-1] == "fft":
        return False
    return not (launcher.setting.sanitize and "conv" in case.primitive and size_of(case) > LARGE)


CASES = {
    name: [case for case in found if is_for_kernels(case)]
    for name, found in cases().items()
    if name not in ("update_parameters", *WITHOUT)
}
TF32_TOLERANCE = 3e-3  # factors rounded to 10 bits of mantissa

OF_CUPY = ("erf", "padded", "unpadded", "batch_last", "patches", "zeros")
CAPTURED = [name for name in CASES if name not in OF_CUPY]


@pytest.fixture(scope="module")
def cuda() -> Backend:
    return get_backend("cuda")


def is_empty(case: Case) -> bool:
    arrays = [getattr(argument, "array", argument) for argument in case.arguments]
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
    cuda: Any, case: Case, dtype: str, tolerance: float | None = None, graph: bool = False
) -> None:
    """The primitive on the device against the reference in float64."""
    arguments = testing.placed(cuda, case, dtype)
    if graph:
        primitive = getattr(cuda, case.primitive)
        found = captured(cuda, lambda: primitive(*arguments, **case.options))
    else:
        found, _ = testing.run(cuda, case, arguments)
    for one, truth in zip(found, testing.reference_results(case, dtype), strict=True):
        differences = list(testing.compare(one, truth, dtype, tolerance))
        assert not differences, f"{case} in {dtype}: {differences}"


@pytest.mark.parametrize("name", CASES)
def test_halves_are_stored_and_floats_computed(name: str, cuda: Backend) -> None:
    for case in CASES[name]:
        check(cuda, case, "float16")


def test_bias_and_relu_follow_cublas(cuda: Backend) -> None:
    for case in CASES["dense"]:
        check(cuda, case, "float32")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", CAPTURED)
def test_a_graph_computes_the_same(name: str, dtype: str, cuda: Backend) -> None:
    for case in CASES[name]:
        if not is_empty(case):  # no step of a training is
            check(cuda, case, dtype, graph=True)


# ---- Tiles of the implicit GEMM ----


def case(primitive: str, *arguments: Any) -> Case:
    return Case(primitive, arguments, {}, (), None)


def tile_cases() -> Iterator[Case]:
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
                yield case("convolution", x, weight, bias, window, groups, True)
                yield case("convolution_input_grad", delta, weight, window, groups)
                yield case("convolution_weight_grad", x, delta, weight.shape, window, groups)


TILE_CASES: dict[str, list[Case]] = {}
for _case in tile_cases():
    TILE_CASES.setdefault(_case.primitive, []).append(_case)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("processors", [1, 64])  # few take large tiles, many split the sum
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "tf32"])
@pytest.mark.parametrize("name", TILE_CASES)
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
    for one in TILE_CASES[name]:
        if dtype == "tf32":
            check(cuda, one, "float32", TF32_TOLERANCE, graph)
        else:
            check(cuda, one, dtype, graph=graph)


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
            one = case("softmax_cross_entropy", logits, labels, *options, reduction)
            check(cuda, one, dtype, graph=graph)


UPDATES = {
    f"{case.arguments[0].__name__} {number}": case
    for number, case in enumerate(cases()["update_parameters"])
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", UPDATES)
def test_updates_compute_the_same(name: str, dtype: str, cuda: Backend) -> None:
    rng = np.random.default_rng(0)
    shapes = [(3, 4), (), (0, 2), (5000,), *[(2,)] * 60]  # more than one launch holds
    rule, given = UPDATES[name].arguments
    arrays = [tuple(np.asarray(rng.random(shape) + 0.1) for _ in given[0]) for shape in shapes]
    check(cuda, UPDATES[name]._replace(arguments=(rule, arrays)), dtype)
