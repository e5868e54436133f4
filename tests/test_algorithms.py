"""Algorithms of convolution: whatever is chosen agrees with the reference, within its limits."""

import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from numerics import assert_close

from arraycnn.backends.compiled import CompiledBackend, numba_is_wanted
from arraycnn.backends.cpu import CpuBackend
from arraycnn.backends.cpu.columns import Columns
from arraycnn.backends.reference.algorithm import Algorithm, Problem
from arraycnn.backends.reference.backend import ReferenceBackend
from arraycnn.geometry import conv_window

KINDS = [CpuBackend, CompiledBackend] if numba_is_wanted() else [CpuBackend]
FILTERED = [hypothesis.HealthCheck.filter_too_much]  # sizes whose product is too large
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Convolutions of all sizes at which another algorithm may be best."""
    ndim = draw(st.integers(1, 3))
    sizes = [draw(st.integers(1, (300, 40, 9)[ndim - 1])) for _ in range(ndim)]
    kernel = [draw(st.integers(1, 7)) for _ in range(ndim)]
    stride, dilation = (
        [draw(st.sampled_from((1, 1, 1, 2, 3))) for _ in range(ndim)] for _ in range(2)
    )
    pads = [(draw(st.integers(0, k)), draw(st.integers(0, k))) for k in kernel]
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    pads = [
        (before, after + max(0, span - size - before - after))
        for (before, after), span, size in zip(pads, spans, sizes, strict=True)
    ]
    groups = draw(st.sampled_from((1, 1, 1, 2, 4)))
    inputs, outputs = (groups * draw(st.sampled_from((1, 2, 3, 8, 24, 32))) for _ in range(2))
    batch = draw(st.sampled_from((1, 2, 7, 16, 33)))
    hypothesis.assume(math.prod(sizes) * inputs * outputs * math.prod(kernel) * batch < 3e8)
    window = conv_window(
        tuple(sizes), tuple(kernel), stride=tuple(stride), padding=tuple(pads),
        dilation=tuple(dilation),
    )  # fmt: skip
    return Problem(window, batch, inputs, outputs, groups, np.dtype(np.float32))


def arrays(problem: Problem) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    window = problem.window
    x = rng.standard_normal((problem.batch, problem.inputs, *window.input_size))
    delta = rng.standard_normal((problem.batch, problem.outputs, *window.output_size))
    return x, delta, rng.standard_normal(problem.weight_shape), rng.standard_normal(problem.outputs)


def results(backend: Any, problem: Problem, dtype: str) -> list[np.ndarray]:
    x, delta, weight, bias = (array.astype(dtype) for array in arrays(problem))
    x, delta = backend.batch_last(x), backend.batch_last(delta)
    window, groups = problem.window, problem.groups
    return [
        backend.convolution(x, weight, bias, window, groups, True),
        backend.convolution_input_grad(delta, weight, window, groups),
        backend.convolution_weight_grad(x, delta, weight.shape, window, groups),
        *backend.convolution_grads(x, delta, weight, window, groups),
    ]


@every_kind
@hypothesis.settings(
    max_examples=120, suppress_health_check=[hypothesis.HealthCheck.filter_too_much]
)
@hypothesis.given(problem=problems(), limit=st.sampled_from((1, 20_000, 1 << 20, 64 << 20)))
def test_whatever_is_chosen_agrees_within_the_limit(
    kind: type[CpuBackend], problem: Problem, limit: int
) -> None:
    backend = kind()
    backend.workspace_limit = limit
    window, batch, _, _, groups, dtype = problem
    taken = backend.workspace_bytes(window, batch, problem.weight_shape, groups, dtype)
    assert taken <= max(limit, problem.column_bytes)
    for found, truth in zip(
        results(backend, problem, "float32"), results(ReferenceBackend(), problem, "float64"),
        strict=True,
    ):  # fmt: skip
        assert_close(found, truth, 1e-5)


@every_kind
@hypothesis.settings(
    max_examples=60, suppress_health_check=[hypothesis.HealthCheck.filter_too_much]
)
@hypothesis.given(problem=problems(), limit=st.sampled_from((1, 20_000, 1 << 20, 64 << 20)))
def test_tiles_cover_the_output_once_with_the_columns_that_they_say(
    kind: type[CpuBackend], problem: Problem, limit: int
) -> None:
    backend = kind()
    backend.workspace_limit = limit
    size = (problem.outputs, *problem.window.output_size, problem.batch)
    x = backend.batch_last(arrays(problem)[0].astype(np.float32))
    buffer = x.transpose(*range(1, x.ndim), 0)
    for algorithm in backend.algorithms(problem):
        if isinstance(algorithm, Columns):
            times = np.zeros(size, int)
            for tile in algorithm.tiles:
                times[(slice(None), *tile.region)] += 1
                columns = algorithm.columns(buffer, tile)
                first, end = np.lib.array_utils.byte_bounds(columns)
                taken = max(algorithm.workspace_bytes, problem.column_bytes)
                assert problem.window.is_pointwise or end - first <= taken
            assert (times == 1).all()


class GivesUp(Algorithm):
    """Is always best, and never has a result."""

    seconds = -1.0
    workspace_bytes = 0

    def forward(self, *_: Any) -> None:
        return None

    input_grad = weight_grad = forward


class Hesitant(CpuBackend):
    def candidates(self, problem: Problem) -> list[Algorithm]:
        return [GivesUp(self, problem), *super().candidates(problem)]


def test_what_an_algorithm_leaves_is_done_by_the_next() -> None:
    window = conv_window((9, 8), 3, padding=1)
    problem = Problem(window, 5, 4, 6, 1, np.dtype(np.float32))
    assert isinstance(Hesitant().algorithms(problem)[0], GivesUp)
    for one, two in zip(
        results(Hesitant(), problem, "float32"), results(CpuBackend(), problem, "float32"),
        strict=True,
    ):  # fmt: skip
        assert_close(one, two, 1e-5)


def test_a_backend_without_a_result_says_so() -> None:
    class Lost(CpuBackend):
        def candidates(self, problem: Problem) -> list[Algorithm]:
            return [GivesUp(self, problem)]

    problem = Problem(conv_window((9, 8), 3), 5, 4, 6, 1, np.dtype(np.float32))
    with pytest.raises(RuntimeError, match="no algorithm of this backend computes Problem"):
        results(Lost(), problem, "float32")
