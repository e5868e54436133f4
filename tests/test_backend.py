"""Finding backends, and the contract: an override computes what the base class does."""

import copy
import importlib
import inspect
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import BACKENDS
from numerics import assert_close, put

import arraycnn as ac
from arraycnn.backends import Backend, BackendUnavailableError
from arraycnn.backends.backend import PRIMITIVES
from arraycnn.backends.compiled import CompiledBackend, numba_is_wanted
from arraycnn.backends.cpu import CpuBackend
from arraycnn.backends.reference.backend import ReferenceBackend
from arraycnn.geometry import conv_window
from arraycnn.testing import BackendContractError, check_backend
from arraycnn.testing.cases import cases


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
        assert backend.workspace_bytes(window, 5, weight.shape, 2, x.dtype) <= max(limit, 4 * 6 * 8)
        for one, two in zip(everything(), free, strict=True):
            assert_close(one, two, 1e-13)


KINDS = [CpuBackend, CompiledBackend] if numba_is_wanted() else [CpuBackend]
PRIMITIVE_NAMES = [name for names in PRIMITIVES.values() for name in names]


class TestTheListOfPrimitives:
    def test_has_every_public_method(self) -> None:
        members = {name for name, _ in inspect.getmembers(Backend, inspect.isfunction)}
        assert {name for name in members if not name.startswith("_")} == set(PRIMITIVE_NAMES)

    @pytest.mark.parametrize("room", [room for room in PRIMITIVES if room != "device"])
    def test_names_the_file_of_the_reference(self, room: str) -> None:
        package = "" if room == "memory_format" else "reference."
        module = importlib.import_module(f"arraycnn.backends.{package}{room}")
        owners = [one for _, one in inspect.getmembers(module, inspect.isclass)]
        for name in PRIMITIVES[room]:
            assert any(name in vars(one) for one in owners if one.__module__ == module.__name__), (
                name
            )

    def test_every_one_is_compared_with_the_reference(self) -> None:
        compared = set(cases())
        others = {*PRIMITIVES["device"], "workspace_bytes", "algorithms", "candidates", "adjoint"}
        assert set(PRIMITIVE_NAMES) - compared == others | {"check_labels"}


@pytest.mark.parametrize("name", PRIMITIVE_NAMES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_our_backends_keep_the_contract(kind: type[Backend], name: str) -> None:
    check_backend(kind(), primitives=[name])


@pytest.mark.skipif("cuda" not in BACKENDS, reason="needs a CUDA device, or the emulator")
@pytest.mark.parametrize("name", PRIMITIVE_NAMES)
def test_the_cuda_backend_keeps_the_contract(name: str) -> None:
    check_backend(ac.get_backend("cuda"), primitives=[name])


# ---- Backends that outsiders might write ----


class Counting(CpuBackend):
    """Counts the calls of some primitives."""

    counted = (
        "convolution",
        "global_sum_pool",
        "sum_pool",
        "softmax_cross_entropy",
        "update_parameters",
    )

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        if name in Counting.counted:
            self.calls[name] += 1
        return super().__getattribute__(name)


@pytest.fixture
def counting() -> Backend:
    ac.register("counting", Counting)
    return ac.get_backend("counting")


class TestABackendThatCounts:
    def test_keeps_the_contract(self, counting: Counting) -> None:
        check_backend(counting, primitives=Counting.counted)

    def test_is_the_one_that_computes(self, counting: Counting) -> None:
        model = ac.Sequential(
            ac.Conv2d(3, 2, 2), ac.AdaptiveAvgPool2d(2), ac.GlobalAvgPool(), ac.Dense(2, 2),
            seed=0, backend="counting",
        )  # fmt: skip
        trainer = ac.Trainer(model, ac.SGD(model.parameters(), lr=0.1))
        images, labels = np.ones((4, 3, 7, 7), np.float32), np.array([0, 1, 0, 1])
        trainer.fit([(images, labels)], 1)
        assert set(counting.calls) == set(Counting.counted)

    def test_is_copied_and_pickled_with_its_network(self, counting: Counting) -> None:
        layer = ac.Conv2d(1, 2, 3, backend="counting")
        for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert copied.backend is counting


class Arr:
    """The array of a small array library, with the methods of NumPy's."""

    __array_ufunc__ = None  # NumPy leaves operators to us

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __getattr__(self, name: str) -> Any:
        return wrapped(getattr(self.array, name))

    def __getitem__(self, index: Any) -> Any:
        return wrapped(self.array[unwrapped(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.array[unwrapped(index)] = unwrapped(value)

    def __float__(self) -> float:
        return float(self.array)

    def __int__(self) -> int:
        return int(self.array)

    def __bool__(self) -> bool:
        return bool(self.array)


def operator_of(name: str) -> Callable[..., Any]:
    return lambda self, *others: wrapped(getattr(self.array, name)(*unwrapped(others)))


BINARY = "add sub mul truediv floordiv mod pow matmul and or xor rshift lshift"
OTHERS = "lt le gt ge eq ne neg invert abs"
for _name in BINARY.split():
    for _kind in (f"__{_name}__", f"__r{_name}__"):
        setattr(Arr, _kind, operator_of(_kind))
    _inplace = operator_of(f"__i{_name}__")
    setattr(Arr, f"__i{_name}__", lambda self, other, _f=_inplace: (_f(self, other), self)[1])
for _name in OTHERS.split():
    setattr(Arr, f"__{_name}__", operator_of(f"__{_name}__"))


def wrapped(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return Arr(np.asarray(value))
    if isinstance(value, tuple):
        return tuple(map(wrapped, value))
    if callable(value) and not isinstance(value, type | np.dtype):
        return lambda *args, **options: wrapped(value(*unwrapped(args), **unwrapped(options)))
    return value


def unwrapped(value: Any) -> Any:
    if isinstance(value, Arr):
        return value.array
    if isinstance(value, tuple | list):
        return type(value)(map(unwrapped, value))
    if isinstance(value, dict):
        return {key: unwrapped(item) for key, item in value.items()}
    return value


class Library:
    """A namespace of NumPy's functions on `Arr`."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return Library(found) if inspect.ismodule(found) else wrapped(found)


class LibraryBackend(Backend):
    """A backend over that library: the methods of its device, and nothing else."""

    def __init__(self) -> None:
        super().__init__("library", Library(np), workspace_limit=16 << 20)

    def owns(self, x: Any) -> bool:
        return isinstance(x, Arr)

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        if self.owns(x) and dtype in (None, x.dtype):
            return x
        return Arr(np.asarray(unwrapped(x), dtype))

    def to_numpy(self, x: Any) -> np.ndarray:
        return x.array

    def synchronize(self) -> None:
        pass

    def describe(self) -> str:
        return "library: arrays of the tests' own"


class TestABackendOverAnotherLibrary:
    @pytest.mark.parametrize("name", PRIMITIVE_NAMES)
    def test_keeps_the_contract(self, name: str) -> None:
        check_backend(LibraryBackend(), primitives=[name])

    def test_layers_move_there_and_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ac.register("library", LibraryBackend, lambda x: isinstance(x, Arr))
        images = np.random.default_rng(0).standard_normal((2, 1, 28, 28), dtype=np.float32)
        model = ac.models.lenet5(seed=0)
        expected = model(images)
        model.to("library")
        found = model(images)
        assert isinstance(found, Arr)
        assert_close(found.array, expected, 1e-5)
        np.testing.assert_array_equal(model.to("cpu")(images), expected)


class WrongValue(CpuBackend):
    def sum_pool(self, x: Any, window: Any) -> Any:
        return 1.001 * super().sum_pool(x, window)


class WrongSignature(CpuBackend):
    def dense(self, x: Any, weight: Any, bias: Any, rectify: bool = False) -> Any:
        return super().dense(x, weight, bias, rectify)


class Raises(CpuBackend):
    def erf(self, x: Any) -> Any:
        raise ArithmeticError("too hard")


class WrongOrder(CpuBackend):
    def scale_shift(self, x: Any, scale: Any, shift: Any, relu: bool = False) -> Any:
        return super().scale_shift(x, scale, shift, relu).copy()


class ChangesItsArguments(CpuBackend):
    def add(self, a: Any, b: Any, relu: bool = False) -> Any:
        a += b
        return np.maximum(a, 0) if relu else a


class WrongType(CpuBackend):
    def channel_sum(self, x: Any) -> Any:
        return super().channel_sum(x).astype(np.float64)


class ForgetsTheFallback(CpuBackend):
    def max_pool_argmax(self, x: Any, window: Any, relu: bool = False) -> Any:
        y, argmax = super().max_pool_argmax(x, window, relu)
        return y, np.where(np.isnan(y), 0, argmax).astype(argmax.dtype)


class OwnsEverything(CpuBackend):
    def owns(self, x: Any) -> bool:
        return True


BROKEN = [
    (WrongValue, "sum_pool", r"differs at \(0, .* instead of"),
    (WrongSignature, "dense", "takes .*rectify.* the reference .*relu"),
    (Raises, "erf", "raises ArithmeticError: too hard"),
    (WrongOrder, "scale_shift", "not in batch-last memory"),
    (ChangesItsArguments, "add", "changes its arguments"),
    (WrongType, "channel_sum", r"returns float64 \(3,\), the reference float32"),
    (ForgetsTheFallback, "max_pool_argmax", "window .* differs"),
    (OwnsEverything, "owns", "must be true of arrays that asarray returns"),
]


class TestBrokenBackends:
    @pytest.mark.parametrize(("kind", "name", "message"), BROKEN)
    def test_are_told_which_primitive_differs_and_where(
        self, kind: type[Backend], name: str, message: str
    ) -> None:
        with pytest.raises(AssertionError, match=message) as caught:
            check_backend(kind(), primitives=[name])
        assert isinstance(caught.value, BackendContractError)
        assert {failure.partition("(")[0].partition(":")[0] for failure in caught.value.failures}
        assert all(failure.startswith(name) for failure in caught.value.failures)

    def test_all_failures_are_collected(self) -> None:
        class Two(WrongType, Raises):
            pass

        with pytest.raises(BackendContractError) as caught:
            check_backend(Two(), primitives=["channel_sum", "relu", "erf"])
        names = {failure.partition("(")[0] for failure in caught.value.failures}
        assert names == {"channel_sum", "erf"}
        assert len(str(caught.value).splitlines()) < len(caught.value.failures)

    def test_a_name_that_is_no_primitive(self) -> None:
        with pytest.raises(ValueError, match=r"PRIMITIVES, got \['convolve'\]"):
            check_backend(CpuBackend(), primitives=["convolve"])
