"""Finding backends, and the contract: an override computes what the base class does."""

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import BACKENDS
from numerics import assert_close, put

import arraycnn as ac
from arraycnn.backends import Backend, BackendUnavailableError
from arraycnn.backends.cpu import CpuBackend
from arraycnn.backends.reference import updates
from arraycnn.geometry import Window, conv_window, pool_window


class ReferenceBackend(Backend):
    """The base class on NumPy, nothing overridden."""

    def __init__(self) -> None:
        super().__init__("reference", np, workspace_limit=1 << 30)

    def owns(self, x: Any) -> bool:
        return isinstance(x, np.ndarray)

    def asarray(self, x: Any, dtype: Any = None) -> np.ndarray:
        return np.asarray(x, dtype)

    def to_numpy(self, x: Any) -> np.ndarray:
        return np.asarray(x)

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def describe(self) -> str:
        return "reference"


class TestFinding:
    def test_the_same_name_gives_the_same_object(self, backend: Backend) -> None:
        assert ac.get_backend(backend.name) is backend
        assert ac.get_backend(backend) is backend

    def test_auto_is_the_first_available(self) -> None:
        names = ac.available_backends()
        assert "cpu" in names
        assert len(set(names)) == len(names)
        assert ac.get_backend("auto") is ac.get_backend(names[0])
        assert ac.get_backend() is ac.get_backend("auto")
        assert all(ac.get_backend(name) for name in names)

    def test_another_backend_object_is_accepted_where_a_name_is(self) -> None:
        reference = ReferenceBackend()
        assert ac.get_backend(reference) is reference
        network = ac.models.lenet5(seed=0, backend=reference)
        assert network.backend is reference
        assert network(np.ones((2, 1, 28, 28), np.float32)).shape == (2, 10)

    @pytest.mark.parametrize("name", ["gpu", "CPU", "", "cpu:0", "cudax", "numpy"])
    def test_an_unknown_name(self, name: str) -> None:
        with pytest.raises(
            ValueError, match=rf"backend must be 'cpu', .*'cuda'.*'auto', got '{name}'"
        ):
            ac.get_backend(name)

    @pytest.mark.parametrize("name", [None, 0, np, ["cpu"]])
    def test_no_name(self, name: object) -> None:
        with pytest.raises(TypeError, match="backend must be a name such as 'cpu' or a Backend"):
            ac.get_backend(name)

    def test_a_backend_that_cannot_run_here(self) -> None:
        assert issubclass(BackendUnavailableError, RuntimeError)
        if "cuda" not in ac.available_backends():
            with pytest.raises(BackendUnavailableError, match="cuda"):
                ac.get_backend("cuda")

    def test_arrays_tell_their_backend(self, backend: Backend) -> None:
        x = put(backend, np.ones(2))
        assert ac.backend_of(x) is backend
        assert ac.backend_of(x, x[:1], backend.xp.zeros(())) is backend
        assert backend.owns(x)

    @pytest.mark.parametrize("x", [[1.0], 1.0, None, "cpu", np.float32(1), memoryview(b"a")])
    def test_what_is_no_array(self, x: object, backend: Backend) -> None:
        assert not backend.owns(x)
        with pytest.raises(TypeError, match=r"expected a NumPy or CuPy array, got .*; convert it"):
            ac.backend_of(put(backend, np.ones(2)), x)

    def test_no_arrays(self) -> None:
        with pytest.raises(TypeError, match="at least one array"):
            ac.backend_of()


class TestArrays:
    def test_asarray_does_not_copy_what_is_there(self, backend: Backend) -> None:
        x = backend.asarray(np.ones((2, 3), np.float32))
        assert backend.owns(x)
        assert backend.asarray(x) is x
        assert backend.asarray(x, "float32") is x
        assert backend.asarray(x, "float64").dtype == np.float64

    def test_asarray_takes_nested_sequences(self, backend: Backend) -> None:
        x = backend.asarray([[1, 2], [3, 4]], "float32")
        np.testing.assert_array_equal(backend.to_numpy(x), [[1, 2], [3, 4]])
        assert x.dtype == np.float32

    def test_to_numpy_comes_back(self, backend: Backend) -> None:
        x = np.random.default_rng(0).standard_normal((2, 3, 4))
        y = backend.to_numpy(put(backend, x, "batch_last"))
        assert isinstance(y, np.ndarray)
        np.testing.assert_array_equal(y, x)

    def test_the_cpu_refuses_arrays_of_a_device(self) -> None:
        class OnDevice:
            __cuda_array_interface__ = {"shape": (1,), "typestr": "<f4", "version": 3}  # noqa: RUF012

        with pytest.raises(TypeError, match="CUDA device; copy it to the host first"):
            ac.get_backend("cpu").asarray(OnDevice())

    def test_describes_itself_in_a_line(self, backend: Backend) -> None:
        assert backend.name in backend.describe()
        assert "\n" not in backend.describe()
        assert repr(backend) == f"<arraycnn backend {backend.name!r}>"
        assert backend.synchronize() is None


class TestWorkspaceLimit:
    def test_can_be_set(self, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        assert backend.workspace_limit >= 64 << 20
        monkeypatch.setattr(backend, "workspace_limit", np.int64(1 << 20))
        assert backend.workspace_limit == 1 << 20
        assert type(backend.workspace_limit) is int

    @pytest.mark.parametrize(
        ("limit", "error"),
        [(0, ValueError), (-1, ValueError), (1.5, TypeError), (None, TypeError), ("1", TypeError)],
    )
    def test_must_be_a_positive_int(
        self, backend: Backend, limit: object, error: type[Exception]
    ) -> None:
        before = backend.workspace_limit
        with pytest.raises(error, match="workspace_limit must be"):
            backend.workspace_limit = limit
        assert backend.workspace_limit == before

    @pytest.mark.parametrize("limit", [1, 3_000, 20_000])
    def test_does_not_change_what_is_computed(
        self, backend: Backend, limit: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        window = conv_window((9, 8), (3, 2), stride=(2, 1), padding=1)
        rng = np.random.default_rng(0)
        x, weight, delta = (
            put(backend, rng.standard_normal(shape), "batch_last")
            for shape in ((5, 4, 9, 8), (6, 2, 3, 2), (5, 6, *window.output_size))
        )

        def everything() -> list[np.ndarray]:
            return [
                backend.to_numpy(array)
                for array in (
                    backend.convolution(x, weight, None, window, 2),
                    backend.convolution_weight_grad(x, delta, weight.shape, window, 2),
                    backend.convolution_input_grad(delta, weight, window, 2),
                )
            ]

        free = everything()
        monkeypatch.setattr(backend, "workspace_limit", limit)
        assert backend.workspace_bytes(window, 5, 4, x.dtype) <= max(limit, 4 * 6 * 8)
        for one, two in zip(everything(), free, strict=True):
            assert_close(one, two, 1e-13)


class BatchLast:
    """An argument that the primitive gets in batch-last memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array


CONVOLUTIONS = [
    ({"input_size": (9,), "kernel_size": 3}, 1),
    ({"input_size": (12,), "kernel_size": 4, "stride": 3, "padding": 2, "dilation": 2}, 1),
    ({"input_size": (6, 7), "kernel_size": (3, 2)}, 1),
    ({"input_size": (6, 7), "kernel_size": 1}, 2),
    ({"input_size": (6, 7), "kernel_size": 1, "stride": 2}, 1),
    ({"input_size": (6, 7), "kernel_size": 3, "padding": 1}, 1),
    ({"input_size": (6, 7), "kernel_size": 3, "padding": "full"}, 2),
    ({"input_size": (6, 7), "kernel_size": (5, 3), "stride": 2, "padding": "same"}, 1),
    ({"input_size": (6, 7), "kernel_size": 2, "padding": ((0, 1), (2, 0))}, 4),
    ({"input_size": (6, 7), "kernel_size": 2, "padding": 3, "dilation": 2}, 1),
    ({"input_size": (4, 3, 5), "kernel_size": (2, 3, 2), "padding": 1}, 2),
    ({"input_size": (5, 4, 5), "kernel_size": 2, "stride": (2, 1, 2)}, 1),
]  # fmt: skip
POOLS = [
    {"input_size": (9,), "kernel_size": 2, "stride": 2},
    {"input_size": (6, 7), "kernel_size": 2, "stride": 2},
    {"input_size": (6, 7), "kernel_size": 2, "stride": 2, "ceil_mode": True},
    {"input_size": (6, 7), "kernel_size": 3, "stride": 2, "padding": 1},
    {"input_size": (6, 7), "kernel_size": (2, 3), "stride": 1, "dilation": (2, 1)},
    {"input_size": (4, 5, 4), "kernel_size": 2, "stride": (2, 1, 2), "padding": 1},
    {"input_size": (18, 20), "kernel_size": (17, 16), "stride": 1, "padding": 1},  # 272 taps
]


def conv_calls(window: Window, groups: int, batch: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Convolution primitives with their arguments, for 4 channels in and 8, or 2, out."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, 4, *window.input_size))
    for out in (8, 2) if groups < 4 else (8,):
        weight = rng.standard_normal((out, 4 // groups, *window.kernel_size))
        bias = rng.standard_normal(out)
        delta = rng.standard_normal((batch, out, *window.output_size))
        for relu in (False, True):
            yield "convolution", (BatchLast(x), weight, bias, window, groups, relu)
        yield "convolution", (BatchLast(x), weight, None, window, groups)
        yield (
            "convolution_weight_grad",
            (BatchLast(x), BatchLast(delta), weight.shape, window, groups),
        )
        yield "convolution_input_grad", (BatchLast(delta), weight, window, groups)
        yield (
            "convolution_grads",
            (BatchLast(x), BatchLast(delta), weight, window, groups),
        )
    yield "im2col", (BatchLast(x), window)
    columns = rng.standard_normal((4 * window.taps, window.positions * batch))
    yield "col2im", (columns, window, batch)
    yield "padded", (BatchLast(x), window)
    yield "padded", (BatchLast(x), window, -3.0)
    yield "unpadded", (rng.standard_normal((4, *window.padded_size, batch)), window)


def pool_calls(window: Window, batch: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Pooling primitives; the input has ties, infinities and, for the maximum itself, NaN."""
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (batch, 3, *window.input_size)).astype(float)
    x[:, 1] = rng.standard_normal(x[:, 1].shape)
    x[:, 2] = -np.inf
    delta = rng.standard_normal((batch, 3, *window.output_size))
    holes = np.where(rng.random(x.shape) < 0.1, np.nan, x)
    for values in (x, holes):
        for relu in (False, True):
            yield "max_pool", (BatchLast(values), window, relu)
            yield "max_pool_winners", (BatchLast(values), window, relu)
    winners = BatchLast(ReferenceBackend().max_pool_winners(x, window)[1])
    yield "max_pool_indices", (winners, window)
    yield "max_pool_grad", (winners, BatchLast(delta), window)
    winners = BatchLast(ReferenceBackend().max_pool_winners(x, window, True)[1])
    yield "max_pool_grad", (winners, BatchLast(delta), window)
    finite = rng.standard_normal(x.shape)
    yield "sum_pool", (BatchLast(finite), window)
    yield "sum_pool_grad", (BatchLast(delta), window)
    yield "plane_sum", (BatchLast(finite),)


def other_calls(batch: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Normalisation, pointwise and dense primitives on any layout, and the updates."""
    rng = np.random.default_rng(0)
    for shape in ((batch, 3), (batch, 3, 7), (batch, 3, 4, 5), (batch, 3, 2, 3, 4)):
        x, delta = rng.standard_normal((2, *shape))
        mean, inverse_std, scale, shift = rng.random((4, 3)) + 0.5
        if batch:
            yield "channel_moments", (BatchLast(x),)
            norm = (BatchLast(x), mean, inverse_std, scale, BatchLast(delta))
            yield "batch_norm_grad", norm
            yield "batch_norm_grad", (*norm, BatchLast(np.maximum(delta[::-1], 0)))
        yield "channel_sum", (BatchLast(x),)
        yield "scale_shift", (BatchLast(x), scale, shift)
        yield "scale_shift", (BatchLast(x), scale, shift, True)
        for lay in (BatchLast, np.asarray):
            yield "add", (lay(x), lay(delta))
            yield "add", (lay(x), lay(delta), True)
            yield "relu", (lay(x),)
            yield "relu_grad", (lay(np.maximum(x, 0)), lay(delta))
            yield "dropout", (lay(x), 0.3, 5, 2)
            yield "erf", (lay(3 * x),)
    x, weight, bias = (rng.standard_normal(shape) for shape in ((batch, 6), (4, 6), (4,)))
    delta = rng.standard_normal((batch, 4))
    for lay in (BatchLast, np.asarray):
        for relu in (False, True):
            yield "dense", (lay(x), weight, bias, relu)
        yield "dense", (lay(x), weight, None)
        yield "dense_input_grad", (lay(delta), weight)
        yield "dense_weight_grad", (lay(x), lay(delta))
        yield "batch_last", (lay(x),)
    yield "batch_last", (rng.standard_normal((batch, 3, 4, 5)),)


def loss_calls(batch: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    rng = np.random.default_rng(2)
    for classes, spatial in ((1, ()), (5, ()), (10, (2, 3)), (40, ())):
        logits = 3 * rng.standard_normal((batch, classes, *spatial))
        labels = rng.integers(0, classes, (batch, *spatial))
        weight = rng.random(classes) + 0.5
        for reduction in ("mean", "sum", "none"):
            for lay in (BatchLast, np.asarray):
                yield "softmax_cross_entropy", (lay(logits), labels, None, 0.0, None, reduction)
            yield "softmax_cross_entropy", (logits, labels, weight, 0.1, None, reduction)
            yield "softmax_cross_entropy", (logits, labels, weight, 0.0, 0, reduction)


def large_calls() -> Iterator[tuple[str, tuple[Any, ...]]]:
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
        yield "convolution", (x, weight, rng.standard_normal(out), window, groups, True)
        yield "convolution_weight_grad", (x, delta, weight.shape, window, groups)
        yield "convolution_input_grad", (delta, weight, window, groups)
        yield "convolution_grads", (x, delta, weight, window, groups)
    x, delta = rng.standard_normal((2, 64, 8, 36, 36))
    mean, inverse_std, scale, shift = rng.random((4, 8)) + 0.5
    yield "relu", (BatchLast(x),)
    yield "relu_grad", (BatchLast(np.maximum(x, 0)), BatchLast(delta))
    yield "channel_moments", (BatchLast(x),)
    yield "channel_sum", (BatchLast(x),)
    yield "scale_shift", (BatchLast(x), scale, shift, True)
    norm = (BatchLast(x), mean, inverse_std, scale, BatchLast(delta))
    yield "batch_norm_grad", norm
    yield "batch_norm_grad", (*norm, BatchLast(np.maximum(delta[::-1], 0)))
    yield "dropout", (BatchLast(x), 0.3, 5, 2)
    window = pool_window((36, 36), 2, stride=2)
    delta = BatchLast(rng.standard_normal((64, 8, *window.output_size)))
    rounded = np.round(x)
    winners = BatchLast(ReferenceBackend().max_pool_winners(rounded, window)[1])
    for relu in (False, True):
        yield "max_pool", (BatchLast(rounded), window, relu)
        yield "max_pool_winners", (BatchLast(rounded), window, relu)
    yield "max_pool_grad", (winners, delta, window)
    yield "sum_pool", (BatchLast(x), window)
    yield "sum_pool_grad", (delta, window)


DECAYS = {"lr": 0.1, "weight_decay": 0.01}
ADAM = {"betas": (0.9, 0.99), "eps": 1e-8}
# Rules, their numbers of slots, and options.
UPDATES = {
    "sgd": (updates.sgd, 0, {**DECAYS, "momentum": 0.0, "nesterov": False}),
    "momentum": (updates.sgd, 1, {**DECAYS, "momentum": 0.9, "nesterov": False}),
    "nesterov": (updates.sgd, 1, {**DECAYS, "momentum": 0.9, "nesterov": True}),
    "adam": (updates.adam, 2, {**DECAYS, **ADAM}),
    "adamw": (updates.adamw, 2, {**DECAYS, **ADAM}),
    "rmsprop": (updates.rmsprop, 2, {**DECAYS, "alpha": 0.9, "eps": 1e-8, "momentum": 0.9}),
    "adagrad": (updates.adagrad, 1, {**DECAYS, "lr_decay": 0.1, "eps": 1e-8}),
}


def all_calls() -> Iterator[tuple[str, tuple[Any, ...]]]:
    for batch in (0, 1, 5, 19):  # a vector holds 4 to 16 samples
        for options, groups in CONVOLUTIONS:
            sizes = [options["input_size"], options["kernel_size"]]
            rest = {key: value for key, value in options.items() if "_size" not in key}
            ndim = len(sizes[0])
            kernel = sizes[1] if isinstance(sizes[1], tuple) else (sizes[1],) * ndim
            yield from conv_calls(conv_window(sizes[0], kernel, **rest), groups, batch)
        for options in POOLS:
            rest = {key: value for key, value in options.items() if "_size" not in key}
            window = pool_window(options["input_size"], options["kernel_size"], **rest)
            yield from pool_calls(window, batch)
        yield from other_calls(batch)
        yield from loss_calls(batch)


CALLS: dict[str, list[tuple[Any, ...]]] = {}
for _name, _arguments in (*all_calls(), *large_calls()):
    CALLS.setdefault(_name, []).append(_arguments)

# Every backend has its own of these; the tests above are theirs.
OF_THE_DEVICE = {
    "__init__", "owns", "asarray", "to_numpy", "select", "synchronize", "describe",
    "check_labels",
}  # fmt: skip


def overrides(backend: Backend) -> dict[str, Any]:
    """The methods of the base class that the backend's own classes define anew, by name."""
    own: dict[str, Any] = {}
    for one in type(backend).__mro__:
        if one is Backend:
            break
        own = {name: member for name, member in vars(one).items() if callable(member)} | own
    return {
        name: member
        for name, member in own.items()
        if hasattr(Backend, name) and inspect.unwrap(member) is not getattr(Backend, name)
    }


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    signature = inspect.signature(function)
    return [(p.name, p.kind, p.default) for p in signature.parameters.values()]


def run(backend: Backend, name: str, arguments: tuple[Any, ...], dtype: str) -> list[np.ndarray]:
    """The primitive's results on the host; it must leave its arguments as they are."""

    def typed(array: np.ndarray) -> np.ndarray:
        return array.astype(dtype) if array.dtype.kind == "f" else array

    def placed(argument: Any) -> Any:
        if isinstance(argument, BatchLast):
            return put(backend, typed(argument.array), "batch_last")
        return put(backend, typed(argument)) if isinstance(argument, np.ndarray) else argument

    given = [placed(argument) for argument in arguments]
    with np.errstate(all="ignore"):  # differing NaN and infinities are caught by comparing
        results = getattr(backend, name)(*given)
    for now, argument in zip(given, arguments, strict=True):
        before = argument.array if isinstance(argument, BatchLast) else argument
        if isinstance(before, np.ndarray):
            np.testing.assert_array_equal(backend.to_numpy(now), typed(before))
    results = results if isinstance(results, tuple) else (results,)
    return [backend.to_numpy(result) for result in results]


@pytest.fixture(params=[*BACKENDS, "cpu without Numba"], scope="module")
def overrider(request: pytest.FixtureRequest) -> Backend:
    """Every backend, and NumPy alone where `get_backend` gives what Numba compiles."""
    if request.param in BACKENDS:
        return ac.get_backend(request.param)
    if type(ac.get_backend("cpu")) is CpuBackend:
        pytest.skip("Numba is not in use: this is the backend 'cpu'")
    return CpuBackend()


def test_overrides_have_the_signature_of_the_base(overrider: Backend) -> None:
    for name, member in overrides(overrider).items():
        if name != "__init__":
            assert parameters(member) == parameters(getattr(Backend, name)), name


def test_every_override_is_compared_with_the_base(overrider: Backend) -> None:
    public = {name for name in overrides(overrider) if not name.startswith("_")}
    assert public - OF_THE_DEVICE <= set(CALLS) | {
        "new_buffer", "update_parameters", "workspace_bytes",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_of_the_base(name: str, dtype: str, overrider: Backend) -> None:
    reference = ReferenceBackend()
    tolerance = {"float32": 1e-5, "float64": 1e-13}[dtype]
    for arguments in CALLS[name]:
        expected = run(reference, name, arguments, "float64")
        for found, truth in zip(run(overrider, name, arguments, dtype), expected, strict=True):
            assert found.dtype == (dtype if truth.dtype.kind == "f" else truth.dtype)
            assert_close(found, truth, tolerance, name)


@pytest.mark.parametrize("name", UPDATES)
def test_updates_are_those_of_the_base(name: str, overrider: Backend) -> None:
    rule, slots, options = UPDATES[name]
    shapes = [(3, 4), (5,), (), (0, 2), (2, 3, 2, 2), (300, 500)]

    def updated(owner: Backend, dtype: str) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        lists = [
            [put(owner, np.asarray(rng.random(shape) + 0.1, dtype)) for shape in shapes]
            for _ in range(2 + slots)
        ]
        kept = [list(arrays) for arrays in lists]
        arrays = list(zip(*lists, strict=True))
        owner.update_parameters(rule, arrays, step=3, **options)
        for arrays, before in zip(lists, kept, strict=True):
            assert all(a is b for a, b in zip(arrays, before, strict=True))
        return [owner.to_numpy(array) for arrays in lists for array in arrays]

    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-13)):
        for found, truth in zip(
            updated(overrider, dtype), updated(ReferenceBackend(), "float64"), strict=True
        ):
            assert found.dtype == dtype
            assert_close(found, truth, tolerance, name)
