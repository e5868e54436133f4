"""What a network carries: names, loading, moving, random state, and weights from a seed."""

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from layer_cases import CASES, build
from numerics import put

import arraycnn as ac
from arraycnn import rng
from arraycnn.backends import Backend
from arraycnn.layers import Buffer, Layer, Parameter

NETWORK = (
    "Sequential(Conv2d(1, 2, 3), BatchNorm(2), ReLU(), Dropout(p=0.5), Flatten(), "
    "Residual(Dense(8, 8), shortcut=Dropout(p=0.25)), Dense(8, 3, bias=False))"
)
SHAPES = {
    "0.weight": (2, 1, 3, 3),
    "0.bias": (2,),
    "1.weight": (2,),
    "1.bias": (2,),
    "1.running_mean": (2,),
    "1.running_var": (2,),
    "1.num_batches_tracked": (),
    "5.body.weight": (8, 8),
    "5.body.bias": (8,),
    "6.weight": (3, 8),
}


def network(backend: Backend, seed: int = 0) -> ac.Sequential:
    return ac.Sequential(*build(NETWORK), seed=seed, backend=backend)


def host(backend: Backend, layer: Layer) -> dict[str, np.ndarray]:
    """A copy of its state."""
    return {name: backend.to_numpy(a).copy() for name, a in layer.state_dict().items()}


def assert_state(backend: Backend, layer: Layer, expected: dict[str, np.ndarray]) -> None:
    for name, array in host(backend, layer).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


class TestNames:
    def test_state_dict_names_parameters_and_buffers_in_order(self, backend: Backend) -> None:
        model = network(backend)
        assert {name: a.shape for name, a in model.state_dict().items()} == SHAPES
        assert list(model.state_dict()) == list(SHAPES)

    def test_named_parameters_leave_buffers_out(self, backend: Backend) -> None:
        model = network(backend)
        names = [name for name, _ in model.named_parameters()]
        assert names == [n for n in SHAPES if "running" not in n and "tracked" not in n]
        assert model.parameters() == [parameter for _, parameter in model.named_parameters()]
        assert all(type(parameter) is Parameter for parameter in model.parameters())
        assert type(model[1].running_mean) is Buffer

    def test_a_shared_layer_appears_under_each_name_but_trains_once(self) -> None:
        shared = ac.Dense(2, 2, bias=False)
        model = ac.Sequential(shared, ac.ReLU(), shared)
        assert list(model.state_dict()) == ["0.weight", "2.weight"]
        assert [name for name, _ in model.named_parameters()] == ["0.weight"]

    def test_a_parameter_describes_itself(self) -> None:
        parameter = ac.Dense(3, 2).weight
        assert parameter.shape == (2, 3)
        assert parameter.size == 6
        assert parameter.dtype == np.float32
        assert parameter.grad is None
        assert repr(parameter) == "Parameter(shape=(2, 3), dtype=float32)"


class TestLoading:
    def test_copies_into_the_arrays_that_are_there(self, backend: Backend) -> None:
        model, other = network(backend), network(backend, seed=1)
        arrays = [parameter.data for parameter in model.parameters()]
        model.load_state_dict(other.state_dict())
        assert_state(backend, model, host(backend, other))
        after = [parameter.data for parameter in model.parameters()]
        assert all(a is b for a, b in zip(arrays, after, strict=True))
        model[0].weight.data[...] = 0
        assert backend.to_numpy(other[0].weight.data).any()

    def test_converts_dtype_and_takes_what_numpy_reads(self, backend: Backend) -> None:
        layer = ac.Dense(2, 1, backend=backend)
        layer.load_state_dict({"weight": [[1, 2]], "bias": np.array([0.5])})
        np.testing.assert_array_equal(backend.to_numpy(layer.weight.data), [[1, 2]])
        assert layer.weight.data.dtype == np.float32

    def test_takes_tensors_that_must_be_detached(self, backend: Backend) -> None:
        class Tensor:
            """As PyTorch's: refuses NumPy until it is detached."""

            def __init__(self, array: np.ndarray, detached: bool = False) -> None:
                self.array, self.detached = array, detached

            def detach(self) -> "Tensor":
                return Tensor(self.array, True)

            def cpu(self) -> "Tensor":
                return self

            def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
                if not self.detached:
                    raise RuntimeError("call detach() first")
                return self.array

        layer = ac.Dense(2, 1, bias=False, backend=backend)
        layer.load_state_dict({"weight": Tensor(np.array([[3.0, 4.0]]))})
        np.testing.assert_array_equal(backend.to_numpy(layer.weight.data), [[3, 4]])

    def test_lists_everything_that_does_not_fit_and_changes_nothing(self, backend: Backend) -> None:
        model = network(backend)
        state = {name: array + 1 for name, array in host(backend, model).items()}
        before = host(backend, model)
        del state["0.bias"]
        state["1.weight"] = np.zeros(3)
        state["6.weight"] = state["6.weight"].T
        state["extra"] = np.zeros(1)
        with pytest.raises(ValueError, match="does not fit this Sequential") as error:
            model.load_state_dict(state)
        for part in ("missing: 0.bias", "unexpected: extra", "1.weight has shape (3,) instead of "
                     "(2,)", "6.weight has shape (8, 3) instead of (3, 8)"):  # fmt: skip
            assert part in str(error.value)
        assert_state(backend, model, before)

    def test_unstrict_loads_what_fits_by_name(self, backend: Backend) -> None:
        model = network(backend)
        before = host(backend, model)
        model.load_state_dict({"0.bias": np.ones(2), "extra": np.zeros(1)}, strict=False)
        assert_state(backend, model, before | {"0.bias": np.ones(2)})

    def test_unstrict_still_refuses_a_wrong_shape(self, backend: Backend) -> None:
        model = network(backend)
        before = host(backend, model)
        with pytest.raises(ValueError, match=r"0\.weight has shape"):
            model.load_state_dict({"0.bias": np.ones(2), "0.weight": np.ones(2)}, strict=False)
        assert_state(backend, model, before)

    @pytest.mark.parametrize(
        "bad", [np.array(["a", "b"]), np.ones(2, complex), np.array([1, None]), b"ab"]
    )
    def test_refuses_what_is_not_a_real_number_and_changes_nothing(
        self, backend: Backend, bad: object
    ) -> None:
        model = network(backend)
        before = host(backend, model)
        state = {name: array + 1 for name, array in before.items()} | {"1.bias": bad}
        with pytest.raises((TypeError, ValueError), match=r"1\.bias"):
            model.load_state_dict(state)
        assert_state(backend, model, before)

    def test_refuses_a_state_that_is_no_mapping(self, backend: Backend) -> None:
        with pytest.raises(TypeError, match="state must be a mapping"):
            network(backend).load_state_dict([("0.weight", 1)])

    def test_may_exchange_arrays_of_the_same_network(self, backend: Backend) -> None:
        model = ac.Sequential(ac.Dense(2, 2, bias=False), ac.Dense(2, 2, bias=False), seed=0,
                              backend=backend)  # fmt: skip
        first, second = host(backend, model).values()
        state = model.state_dict()
        model.load_state_dict({"0.weight": state["1.weight"], "1.weight": state["0.weight"]})
        assert_state(backend, model, {"0.weight": second, "1.weight": first})


class TestMoving:
    def test_to_dtype_converts_floats_and_gradients_in_place(self, backend: Backend) -> None:
        model = network(backend)
        before = host(backend, model)
        x = np.random.default_rng(0).standard_normal((4, 1, 4, 4))
        y, backward = model.forward(put(backend, x.astype(np.float32)))
        backward(y)
        assert model.to(dtype="float64") is model
        assert model.dtype == np.float64
        dtypes = {name: str(array.dtype) for name, array in model.state_dict().items()}
        assert dtypes.pop("1.num_batches_tracked") == "int64"
        assert set(dtypes.values()) == {"float64"}
        assert {str(parameter.grad.dtype) for parameter in model.parameters()} == {"float64"}
        for name, parameter in model.named_parameters():
            np.testing.assert_array_equal(backend.to_numpy(parameter.data), before[name])
        assert model(put(backend, x)).dtype == np.float64

    def test_to_backend_reaches_every_layer(self, backend: Backend) -> None:
        model = build(NETWORK).to(backend)
        assert all(layer.backend is backend for _, layer in model.named_layers())
        assert all(backend.owns(array) for array in model.state_dict().values())
        assert model.to(backend.name).backend is backend

    def test_a_container_brings_its_layers_along(self, backend: Backend) -> None:
        relu = ac.ReLU()
        model = ac.Sequential(ac.Dense(2, 2, backend=backend), relu)
        assert model.backend is relu.backend is backend

    def test_layers_without_arrays_follow_their_input(self, backend: Backend) -> None:
        model = ac.Sequential(ac.ReLU(), ac.Flatten())
        assert model.backend is None
        assert model.dtype is None
        assert backend.owns(model(put(backend, np.ones((2, 3, 4)))))

    @pytest.mark.parametrize("dtype", ["int32", "complex64", "longdouble", ">f4", "nonsense", str])
    def test_refuses_other_dtypes_and_changes_nothing(
        self, backend: Backend, dtype: object
    ) -> None:
        model = network(backend)
        before = host(backend, model)
        with pytest.raises(TypeError, match="dtype must be one of float16, float32, float64, got"):
            model.to("cpu", dtype=dtype)
        assert model.backend is backend
        assert model.dtype == np.float32
        assert_state(backend, model, before)


class TestCopying:
    @pytest.mark.parametrize(
        "duplicate",
        [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
        ids=["deepcopy", "pickle"],
    )
    def test_a_copy_is_independent_and_on_the_same_backend(
        self, duplicate: Callable[[Layer], Layer], backend: Backend
    ) -> None:
        model = network(backend)
        other = duplicate(model)
        assert other.backend is backend
        assert repr(other) == repr(model)
        assert_state(backend, other, host(backend, model))
        other[0].weight.data[...] = 0
        assert backend.to_numpy(model[0].weight.data).any()


class TestRandomState:
    def test_restores_the_masks(self, backend: Backend) -> None:
        model = network(backend, seed=4)
        x = put(backend, np.random.default_rng(0).random((8, 1, 4, 4), np.float32))
        model.forward(x)
        state = model.random_state()
        assert list(state) == ["3", "5.shortcut"]
        assert {entry["counter"] for entry in state.values()} == {1}
        first = backend.to_numpy(model.forward(x)[0])
        assert not np.array_equal(backend.to_numpy(model.forward(x)[0]), first)
        model.load_random_state(state)
        np.testing.assert_array_equal(backend.to_numpy(model.forward(x)[0]), first)
        other = network(backend, seed=5)
        other.load_state_dict(model.state_dict())
        other.load_random_state(state)
        np.testing.assert_array_equal(backend.to_numpy(other.forward(x)[0]), first)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"5.shortcut": None}, "5.shortcut"),
            ({"5.shortcut": {"seed": 1}}, "5.shortcut"),
            ({"5.shortcut": {"seed": 1, "counter": -1}}, "counter"),
            ({"5.shortcut": {"seed": 1.5, "counter": 0}}, "seed"),
            ({"other": {"seed": 1, "counter": 0}}, "random layers are"),
        ],
    )
    def test_refuses_another_state_and_changes_nothing(
        self, backend: Backend, change: dict, message: str
    ) -> None:
        model = network(backend)
        before = model.random_state()
        state = {name: {"seed": 9, "counter": 9} for name in before} | change
        with pytest.raises((TypeError, ValueError), match=message):
            model.load_random_state(state)
        assert model.random_state() == before


class TestSeeds:
    def test_the_same_seed_gives_the_same_network(self, backend: Backend) -> None:
        one, two = network(backend, seed=3), network(backend, seed=3)
        assert_state(backend, one, host(backend, two))
        assert one.random_state() == two.random_state()

    def test_another_seed_gives_other_weights_and_masks(self, backend: Backend) -> None:
        one, two = host(backend, network(backend, 1)), host(backend, network(backend, 2))
        for name in ("0.weight", "5.body.weight", "6.weight"):
            assert not np.isin(one[name], two[name]).any()
        assert network(backend, 1).random_state() != network(backend, 2).random_state()

    def test_layers_of_the_same_shape_differ(self, backend: Backend) -> None:
        model = ac.Sequential(
            *(ac.Dense(4, 4) for _ in range(3)), ac.Residual(ac.Dense(4, 4), ac.Dense(4, 4)),
            ac.Dropout(), ac.Dropout(), seed=0, backend=backend,
        )  # fmt: skip
        weights = [a for name, a in host(backend, model).items() if name.endswith("weight")]
        values = np.concatenate([weight.ravel() for weight in weights])
        assert len(np.unique(values)) == 5 * 16
        seeds = {state["seed"] for state in model.random_state().values()}
        assert len(seeds) == 2

    def test_weights_do_not_depend_on_the_backend(self, backend: Backend) -> None:
        there, here = network(backend, 7), network(ac.get_backend("cpu"), 7)
        assert_state(backend, there, host(ac.get_backend("cpu"), here))
        layer = ac.Conv2d(2, 3, 3, seed=7, backend=backend)
        np.testing.assert_array_equal(
            backend.to_numpy(layer.weight.data), ac.Conv2d(2, 3, 3, seed=7).weight.data
        )

    def test_streams_are_splitmix64(self) -> None:
        """The first numbers of the published generator for the seed 1234567."""
        expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
        mask = (1 << 64) - 1
        numbers = [rng.mix((1234567 + i * rng.GAMMA) & mask) for i in (1, 2, 3)]
        assert numbers == expected
        assert all(0 <= rng.child_seed(2**70, i) < 2**63 for i in range(9))

    def test_float64_weights_round_to_the_float32_ones(self) -> None:
        fine = ac.Dense(4, 3, seed=1, dtype="float64").weight.data
        coarse = ac.Dense(4, 3, seed=1).weight.data
        np.testing.assert_array_equal(fine.astype(np.float32), coarse)

    def test_without_a_seed_weights_are_fresh_and_containers_leave_them(self) -> None:
        one, two = ac.Dense(4, 3), ac.Dense(4, 3)
        assert not np.isin(one.weight.data, two.weight.data).any()
        kept = one.weight.data.copy()
        ac.Sequential(one, ac.ReLU())
        np.testing.assert_array_equal(one.weight.data, kept)

    @pytest.mark.parametrize("case", [case for case in CASES if build(case.text).parameters()],
                             ids=lambda case: case.text)  # fmt: skip
    def test_initialize_resets_everything(self, case) -> None:
        layer = build(case.text)
        layer.initialize(5)
        first = {name: array.copy() for name, array in layer.state_dict().items()}
        for array in layer.state_dict().values():
            array[...] = 7
        layer.initialize(5)
        for name, array in layer.state_dict().items():
            np.testing.assert_array_equal(array, first[name], err_msg=name)
            if name == "bias":
                assert not array.any()
