"""The contract of a backend, for those who write one: every primitive computes what the reference
does, whatever the dtype, the memory order and the sizes.

    >>> import arraycnn as ac
    >>> from arraycnn.testing import check_backend
    >>> check_backend(ac.get_backend("cpu"), primitives=["relu"])
"""

import copy
import inspect
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.backend import PRIMITIVES, Backend
from arraycnn.backends.memory_format import buffer_of
from arraycnn.backends.reference.backend import ReferenceBackend
from arraycnn.geometry import Window
from arraycnn.testing.cases import COMPLEX, DTYPE, BatchLast, Case, Gaps, cases

TOLERANCES = {  # |difference| to the largest magnitude of a result, or to 1
    "float16": 1e-2,
    "float32": 1e-5,
    "float64": 1e-13,
    "complex64": 1e-5,
    "complex128": 1e-13,
}
SHOWN = 20  # failures in an error's text

# Their first result is what the next layer gets: it must be in batch-last memory.
BATCH_LAST = {
    "empty", "zeros", "batch_last", "unpadded", "convolution", "convolution_input_grad",
    "convolution_grads", "col2im", "max_pool", "max_pool_argmax", "max_pool_grad", "sum_pool",
    "sum_pool_grad", "global_sum_pool", "scale_shift", "batch_norm_grad", "dense",
    "dense_input_grad",
}  # fmt: skip


class BackendContractError(AssertionError):
    """A backend does not compute what the reference does; ``failures`` has a line for each case."""

    def __init__(self, backend: Backend, failures: Sequence[str]) -> None:
        self.failures = list(failures)
        lines = self.failures[:SHOWN]
        if len(self.failures) > SHOWN:
            lines.append(f"… and {len(self.failures) - SHOWN} more, see the error's `failures`")
        text = "\n".join(f"- {line}" for line in lines)
        super().__init__(f"{backend!r} differs from the reference:\n{text}")


def check_backend(backend: Backend, *, primitives: Collection[str] | None = None) -> None:
    """Compare every primitive of a backend with the reference: signature, results, memory order.

    Args:
        backend: registered or not; its arrays may be of any type.
        primitives: the names of those to check, see `arraycnn.backends.backend.PRIMITIVES`; None
            for all. What the backend says about its device is always checked.

    Raises:
        BackendContractError: names each primitive and case that differ. ValueError: there is no
            primitive of that name.
    """
    known = [name for names in PRIMITIVES.values() for name in names]
    unknown = sorted(set(primitives or ()) - set(known))
    if unknown:
        raise ValueError(f"primitives must be names in backends.backend.PRIMITIVES, got {unknown}")
    failures = list(_device_failures(backend))
    for name in known if primitives is None else primitives:
        found, expected = (_parameters(getattr(kind, name)) for kind in (type(backend), Backend))
        if found != expected:
            failures.append(f"{name}: takes {found}, the reference {expected}")
            continue
        if name == "check_labels":
            failures += _label_failures(backend)
        for case in cases().get(name, []):
            failures += _case_failures(backend, case)
    if failures:
        raise BackendContractError(backend, failures)


def _parameters(function: Any) -> str:
    signature = inspect.signature(function)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(bare))


def _device_failures(backend: Backend) -> Iterator[str]:
    """What is wrong with the methods that every backend defines for itself."""
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    try:
        x = backend.asarray(host)
        if not backend.owns(x) or backend.owns("x") or backend.owns(None):
            yield "owns: must be true of arrays that asarray returns, and of nothing else"
        if backend.asarray(x) is not x:
            yield "asarray: copies an array that is there already"
        if backend.asarray(host, "float64").dtype != np.float64:
            yield "asarray: does not convert to the dtype that it is given"
        back = backend.to_numpy(x)
        if type(back) is not np.ndarray or not np.array_equal(back, host):
            yield "to_numpy: does not bring back what asarray was given"
        if not backend.name or backend.name not in backend.describe():
            yield "describe: does not name the backend"
        if copy.deepcopy(backend) is not backend:
            yield "deepcopy: a copy of a network must share its backend"
        backend.select()
        backend.synchronize()
    except Exception as error:
        yield f"a method of the device raises {type(error).__name__}: {error}"


def _label_failures(backend: Backend) -> Iterator[str]:
    """What is wrong with `check_labels`, which returns nothing to compare."""
    for labels, ignored, wrong in (([0, 2], None, False), ([0, -1], -1, False), ([3], None, True)):
        try:
            backend.check_labels(backend.asarray(np.array(labels)), 3, ignored)
        except ValueError:
            if not wrong:
                yield f"check_labels: refuses {labels} for 3 classes with ignore_index={ignored}"
        else:
            if wrong:
                yield f"check_labels: accepts {labels} for 3 classes"


def _case_failures(backend: Backend, case: Case) -> Iterator[str]:
    """A line for each dtype in which a case differs."""
    truths: dict[str, list[Array]] = {}  # float32 and float64 share theirs
    for dtype in case.dtypes:
        stored = {"float32": "float64", "complex64": "complex128"}.get(dtype, dtype)
        if stored not in truths:
            truths[stored] = reference_results(case, stored)
        try:
            differences = list(_differences(backend, case, dtype, truths[stored]))
        except Exception as error:
            differences = [f"raises {type(error).__name__}: {error}"]
        for difference in differences:
            yield f"{case} in {dtype} {difference}"


def _differences(backend: Backend, case: Case, dtype: str, expected: list[Array]) -> Iterator[str]:
    arguments = placed(backend, case, dtype)
    before = backend.workspace_limit
    backend.workspace_limit = case.limit or before
    try:
        found, arrays = run(backend, case, arguments)
        if case.limit and case.primitive == "convolution":
            yield from _workspace_failures(backend, case.limit, *arguments)
    finally:
        backend.workspace_limit = before
    for now, then in zip(arguments, placed(backend, case, dtype), strict=True):
        if backend.owns(now) and not _are_equal(backend, now, then):
            yield "changes its arguments"
    if len(found) != len(expected):
        yield f"returns {len(found)} results, the reference {len(expected)}"
        return
    if case.primitive in BATCH_LAST and not buffer_of(arrays[0]).flags.c_contiguous:
        yield "returns an array that is not in batch-last memory"
    for result, truth in zip(found, expected, strict=True):
        if case.primitive in ("new_buffer", "empty"):
            result, truth = np.zeros_like(result), np.zeros_like(truth)  # any elements will do
        yield from compare(result, truth, dtype)


def _workspace_failures(
    backend: Backend, limit: int, x: Any, weight: Any, bias: Any, window: Window, groups: int,
    *_: Any,
) -> Iterator[str]:  # fmt: skip
    taken = backend.workspace_bytes(window, x.shape[0], weight.shape, groups, x.dtype)
    column = x.shape[1] * window.taps * x.dtype.itemsize
    if taken > max(limit, column):
        yield f"takes {taken} bytes of workspace"


def _are_equal(backend: Backend, a: Any, b: Any) -> bool:
    one, two = backend.to_numpy(a), backend.to_numpy(b)
    return np.array_equal(one, two, equal_nan=one.dtype.kind in "fc")


def compare(
    found: Array, truth: Array, dtype: str, tolerance: float | None = None
) -> Iterator[str]:
    """How a result in ``dtype`` differs from the truth."""
    kind = dtype if truth.dtype.kind in "fc" else truth.dtype
    if found.shape != truth.shape or found.dtype != kind:
        yield f"returns {found.dtype} {found.shape}, the reference {kind} {truth.shape}"
        return
    finite = np.isfinite(truth)
    if not np.array_equal(found[~finite], truth[~finite], equal_nan=found.dtype.kind in "fc"):
        yield "has other NaNs or infinities than the reference"
        return
    difference = np.abs(np.where(finite, found, 0).astype(truth.dtype) - np.where(finite, truth, 0))
    difference = np.where(np.isnan(difference), np.inf, difference)
    scale = max(float(np.abs(truth[finite]).max(initial=0)), 1.0)
    if difference.max(initial=0) > (tolerance or TOLERANCES[dtype]) * scale:
        place = tuple(map(int, np.unravel_index(np.argmax(difference), difference.shape)))
        yield f"differs at {place}: {found[place]} instead of {truth[place]}"


def reference_results(case: Case, dtype: str) -> list[Array]:
    """What the reference computes, in double precision, from the arguments in ``dtype``."""
    wide = "complex128" if dtype in COMPLEX else "float64"
    return run(ReferenceBackend(), case, placed(ReferenceBackend(), case, dtype, wide))[0]


def placed(backend: Backend, case: Case, dtype: str, computed_in: str | None = None) -> list[Any]:
    """The arguments of a case on a backend.

    They have numbers of ``dtype``, of float32 where that has more digits, so that the results in
    both can be compared with the same.
    """

    def place(argument: Any) -> Any:
        if isinstance(argument, list):
            return [tuple(map(place, arrays)) for arrays in argument]
        if argument is DTYPE:
            return np.dtype(computed_in or dtype)
        if not isinstance(argument, np.ndarray | BatchLast | Gaps):
            return argument
        array = argument if isinstance(argument, np.ndarray) else argument.array
        if array.dtype.kind == "f":
            if dtype in COMPLEX:
                array = array + 1j * np.roll(array, 1)
            array = array.astype("complex64" if dtype in COMPLEX else "float32")
            array = array.astype(dtype).astype(computed_in or dtype)
        else:
            array = array.copy()
        if isinstance(argument, BatchLast):
            return in_batch_last(backend, array)
        return with_gaps(backend, array) if isinstance(argument, Gaps) else backend.asarray(array)

    return [place(argument) for argument in case.arguments]


def run(backend: Backend, case: Case, arguments: list[Any]) -> tuple[list[Array], list[Any]]:
    """The results of a case in host memory, and as they are; of an update, its arrays."""
    with np.errstate(all="ignore"):  # differing NaN and infinities are found by comparing
        results = getattr(backend, case.primitive)(*arguments, **case.options)
    if case.primitive == "update_parameters":
        results = tuple(array for arrays in arguments[1] for array in arrays)
    results = results if isinstance(results, tuple) else (results,)
    host = [backend.to_numpy(r) if backend.owns(r) else np.asarray(r) for r in results]
    return host, list(results)


def in_batch_last(backend: Backend, array: Array) -> Any:
    """A host array on the backend, in batch-last memory."""
    order = (*range(1, array.ndim), 0)
    buffer = backend.asarray(np.ascontiguousarray(array.transpose(order)))
    return buffer.transpose((array.ndim - 1, *range(array.ndim - 1)))


def with_gaps(backend: Backend, array: Array) -> Any:
    """A host array on the backend, every other element of a wider one."""
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return backend.asarray(wide)[..., ::2]
