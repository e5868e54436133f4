"""Each layer on its own: values, gradients, shapes, repr, dtypes, and what it leaves alone."""

import gc
import weakref

import numpy as np
import pytest
from layer_cases import CASES, Case, build, every_layer, every_trained_layer
from layouts import LAYOUTS
from numerics import assert_close, put

import arraycnn as ac
from arraycnn import functional as F
from arraycnn.backends import Backend
from arraycnn.layers import BatchNorm, Dropout, Layer


def test_the_cases_cover_every_layer() -> None:
    layers = {
        name
        for name, value in vars(ac).items()
        if isinstance(value, type) and issubclass(value, Layer)
    }
    tried = {case.text.split("(")[0] for case in CASES}
    networks = {"Graph", "Residual", "Sequential", "Recompute"}
    of_several_inputs = {"Add", "Concat", "Multiply"}
    assert tried == layers - networks - of_several_inputs - {"Layer"}


@every_layer
def test_forward_computes_the_functional_operation(case: Case, backend: Backend) -> None:
    layer, x = case.make(backend), put(backend, case.input())
    expected = case.expected(layer, x)
    y, _ = layer.forward(x)
    assert backend.owns(y)
    assert_close(backend.to_numpy(y), backend.to_numpy(expected), 1e-13)
    if not isinstance(layer, BatchNorm | Dropout):
        np.testing.assert_array_equal(backend.to_numpy(layer(x)), backend.to_numpy(y))


@every_layer
def test_gradients_agree_with_finite_differences(case: Case, backend: Backend) -> None:
    ac.gradcheck(case.make(backend), put(backend, case.input()))


@every_layer
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_output_shape_is_the_shape_of_the_output(case: Case, backend: Backend, batch: int) -> None:
    layer, x = case.make(backend, "float32"), case.input(batch=batch).astype(np.float32)
    x = put(backend, x)
    assert layer(x).shape == layer.output_shape(x.shape)
    assert layer.output_shape(list(x.shape)) == layer.output_shape(x.shape)
    assert isinstance(layer.output_shape(list(x.shape)), tuple)
    if isinstance(layer, BatchNorm) and x.size < 2 * layer.num_features:
        return  # has no variance: refused
    y, backward = layer.forward(x)
    assert y.shape == layer.output_shape(x.shape)
    grad = backward(backend.xp.ones_like(y))
    assert grad.shape == x.shape
    for name, parameter in layer.named_parameters():
        assert parameter.grad.shape == parameter.shape, name
        if batch == 0:
            assert not backend.to_numpy(parameter.grad).any(), name


@every_layer
def test_repr_reconstructs_the_layer(case: Case) -> None:
    layer = build(case.text)
    assert repr(layer) == case.text
    assert build(repr(layer)).config() == layer.config()
    assert type(layer)(**layer.config()).config() == layer.config()


@every_layer
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dtype_stays(case: Case, backend: Backend, dtype: str) -> None:
    layer = case.make(backend, dtype)
    x = put(backend, case.input().astype(dtype))
    y, backward = layer.forward(x)
    arrays = [layer(x), y, backward(backend.xp.ones_like(y)), *layer.state_dict().values()]
    arrays += [parameter.grad for parameter in layer.parameters()]
    assert {str(array.dtype) for array in arrays} <= {dtype, "int64"}


@every_layer
def test_neither_input_nor_grad_output_is_changed(case: Case, backend: Backend) -> None:
    layer = case.make(backend)
    for layout in (None, "batch_last"):
        x = put(backend, case.input(), layout)
        y, backward = layer.forward(x)
        kept = backend.to_numpy(y).copy()
        grad_y = np.random.default_rng(2).standard_normal(y.shape)
        given = put(backend, grad_y, layout)
        backward(given)
        np.testing.assert_array_equal(backend.to_numpy(x), case.input())
        np.testing.assert_array_equal(backend.to_numpy(given), grad_y)
        np.testing.assert_array_equal(backend.to_numpy(y), kept)


@every_layer
def test_backward_twice_gives_the_same_and_adds_up(case: Case, backend: Backend) -> None:
    layer = case.make(backend)
    y, backward = layer.forward(put(backend, case.input()))
    grad_y = put(backend, np.random.default_rng(2).standard_normal(y.shape))
    first = backend.to_numpy(backward(grad_y)).copy()
    once = [backend.to_numpy(parameter.grad).copy() for parameter in layer.parameters()]
    np.testing.assert_array_equal(backend.to_numpy(backward(grad_y)), first)
    for parameter, grad in zip(layer.parameters(), once, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(parameter.grad), 2 * grad)


@every_layer
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_give_the_same_numbers(case: Case, backend: Backend, layout: str) -> None:
    plain, other = case.make(backend), case.make(backend)
    if isinstance(plain, Dropout):
        other.load_random_state(plain.random_state())
    y, backward = plain.forward(put(backend, case.input()))
    grad_y = np.random.default_rng(2).standard_normal(y.shape)
    grad = backward(put(backend, grad_y))
    z, backward = other.forward(put(backend, case.input(), layout))
    assert_close(backend.to_numpy(z), backend.to_numpy(y), 1e-14)
    assert_close(
        backend.to_numpy(backward(put(backend, grad_y, layout))), backend.to_numpy(grad), 1e-14
    )
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        assert_close(backend.to_numpy(two.grad), backend.to_numpy(one.grad), 1e-14)


@every_layer
def test_dropping_the_closure_frees_the_memory(case: Case, backend: Backend) -> None:
    layer, x = case.make(backend), put(backend, case.input())
    gc.disable()  # counting references must be enough: no cycles
    try:
        y, backward = layer.forward(x)
        grad = backward(backend.xp.ones_like(y))
        held = [weakref.ref(one) for one in (x, y, backward, grad)]
        del x, y, backward, grad
        assert [ref() for ref in held] == [None] * 4
    finally:
        gc.enable()


@every_trained_layer
def test_skipping_the_input_gradient_leaves_the_others(case: Case, backend: Backend) -> None:
    layer = case.make(backend)
    y, backward = layer.forward(put(backend, case.input()))
    grad_y = put(backend, np.random.default_rng(2).standard_normal(y.shape))
    backward(grad_y)
    full = [backend.to_numpy(parameter.grad) for parameter in layer.parameters()]
    for parameter in layer.parameters():
        parameter.grad = None
    assert backward(grad_y, input_grad=False) is None
    for parameter, grad in zip(layer.parameters(), full, strict=True):
        assert_close(backend.to_numpy(parameter.grad), grad, 1e-13)


def test_numpy_arrays_are_moved_to_the_backend(backend: Backend) -> None:
    layer = ac.Conv2d(1, 2, 3, backend=backend)
    y, backward = layer.forward(np.ones((2, 1, 4, 4), np.float32))
    assert backend.owns(y)
    assert backend.owns(backward(np.ones(y.shape, np.float32)))


class TestBatchNorm:
    def test_training_moves_the_running_statistics_as_torch_does(self, backend: Backend) -> None:
        layer = ac.BatchNorm(2, momentum=0.25, backend=backend, dtype="float64")
        x = np.random.default_rng(0).standard_normal((4, 2, 3))
        layer.forward(put(backend, x))
        state = {name: backend.to_numpy(array) for name, array in layer.state_dict().items()}
        np.testing.assert_allclose(state["running_mean"], 0.25 * x.mean(axis=(0, 2)))
        np.testing.assert_allclose(
            state["running_var"], 0.75 + 0.25 * x.var(axis=(0, 2), ddof=1), rtol=1e-12
        )
        assert state["num_batches_tracked"] == 1

    def test_inference_uses_the_running_statistics_and_changes_nothing(
        self, backend: Backend
    ) -> None:
        layer = ac.BatchNorm(2, eps=1e-3, backend=backend, dtype="float64")
        layer.running_mean.data[...] = 3
        layer.running_var.data[...] = 4
        layer.weight.data[...] = 2
        layer.bias.data[...] = -1
        before = {name: backend.to_numpy(a).copy() for name, a in layer.state_dict().items()}
        x = np.random.default_rng(0).standard_normal((4, 2, 3))
        y = backend.to_numpy(layer(put(backend, x)))
        np.testing.assert_allclose(y, 2 * (x - 3) / np.sqrt(4 + 1e-3) - 1, rtol=1e-12)
        for name, array in layer.state_dict().items():
            np.testing.assert_array_equal(backend.to_numpy(array), before[name])

    def test_inference_takes_a_single_value_per_channel(self, backend: Backend) -> None:
        layer = ac.BatchNorm(2, backend=backend)
        assert layer(put(backend, np.ones((1, 2), np.float32))).shape == (1, 2)


class TestDropout:
    def test_inference_is_the_identity_and_draws_nothing(self, backend: Backend) -> None:
        layer = ac.Dropout(0.5, seed=3)
        x = np.random.default_rng(0).standard_normal((4, 5))
        np.testing.assert_array_equal(backend.to_numpy(layer(put(backend, x))), x)
        assert layer.random_state() == {"": {"seed": 3, "counter": 0}}

    def test_each_forward_uses_the_next_mask(self, backend: Backend) -> None:
        layer = ac.Dropout(0.5, seed=3)
        x = put(backend, np.ones((8, 16)))
        masks = [backend.to_numpy(layer.forward(x)[0]) for _ in range(3)]
        for counter, mask in enumerate(masks):
            expected = backend.to_numpy(F.dropout(x, 0.5, seed=3, counter=counter))
            np.testing.assert_array_equal(mask, expected)
        assert not np.array_equal(masks[0], masks[1])
        assert set(np.unique(masks)) == {0, 2}

    def test_backward_uses_the_mask_of_its_forward(self, backend: Backend) -> None:
        layer = ac.Dropout(0.5, seed=3)
        ones = put(backend, np.ones((8, 16)))
        y, backward = layer.forward(ones)
        layer.forward(ones)
        np.testing.assert_array_equal(backend.to_numpy(backward(ones)), backend.to_numpy(y))

    @pytest.mark.parametrize(("p", "total"), [(0.0, 128), (1.0, 0)])
    def test_extreme_probabilities(self, backend: Backend, p: float, total: int) -> None:
        y, _ = ac.Dropout(p, seed=1).forward(put(backend, np.ones((8, 16))))
        assert float(y.sum()) == total
