"""Mistakes with layers: the message names argument, value and remedy, and nothing has changed."""

from typing import Any

import numpy as np
import pytest
from layer_cases import Case, build, every_layer

import arraycnn as ac
from arraycnn.backends import Backend, BackendUnavailableError
from arraycnn.layers import Layer

CONSTRUCTORS = [
    ("Conv2d(0, 1, 3)", ValueError, "in_channels must be at least 1, got 0"),
    ("Conv2d(1, -2, 3)", ValueError, "out_channels must be at least 1, got -2"),
    ("Conv2d(1.0, 2, 3)", TypeError, "in_channels must be an int, got 1.0"),
    ("Conv2d(1, True, 3)", TypeError, "out_channels must be an int, got True"),
    ("Conv2d(1, 1, 0)", ValueError, "kernel_size must be at least 1 .* got 0"),
    ("Conv2d(1, 1, (3, 3, 3))", ValueError, r"kernel_size must be an int or one int for each of 2"),
    ("Conv2d(1, 1, 2.5)", TypeError, "kernel_size must be an int .* got 2.5"),
    ("Conv2d(1, 1, 3, stride=0)", ValueError, "stride must be at least 1 .* got 0"),
    ("Conv2d(1, 1, 3, dilation=-1)", ValueError, "dilation must be at least 1 .* got -1"),
    ("Conv2d(1, 1, 3, padding=-1)", ValueError, "padding .* -1"),
    ("Conv2d(1, 1, 3, padding='some')", ValueError, "padding must be .*'same'.* got 'some'"),
    ("Conv2d(1, 1, 3, padding=(1, 2, 3))", ValueError, "padding must be .*got"),
    ("Conv2d(4, 6, 3, groups=4)", ValueError, "groups must divide out_channels: got groups=4 .*6;"),
    ("Conv2d(3, 4, 3, groups=2)", ValueError, "groups must divide in_channels: got groups=2 .*3;"),
    ("Conv2d(1, 1, 3, groups=0)", ValueError, "groups must be at least 1, got 0"),
    ("Conv2d(1, 1, 3, init='xavier')", ValueError, "init must be one of he_normal.* got 'xavier'"),
    ("Conv2d(1, 1, 3, dtype='int32')", TypeError, "dtype must be one of float16.* got 'int32'"),
    ("Conv2d(1, 1, 3, dtype='complex64')", TypeError, "dtype must be one of .* got 'complex64'"),
    ("Conv2d(1, 1, 3, dtype='floaty')", TypeError, "dtype must be one of .* got 'floaty'"),
    ("Conv2d(1, 1, 3, dtype=None)", TypeError, "dtype must be one of .* got None"),
    ("Conv2d(1, 1, 3, dtype='>f4')", TypeError, "dtype must be one of .* got '>f4'"),
    ("Conv2d(1, 1, 3, backend='gpu')", ValueError, "backend must be 'cpu', 'cuda'.* got 'gpu'"),
    ("Conv2d(1, 1, 3, backend=None)", TypeError, "backend must be a name .* got None"),
    ("Conv2d(1, 1, 3, seed=-1)", ValueError, "seed must be at least 0, got -1"),
    ("Conv2d(1, 1, 3, seed='a')", TypeError, "seed must be an int, got 'a'"),
    ("ConvTranspose2d(1, 1, 3, output_padding=-1)", ValueError, "output_padding .* got -1"),
    ("ConvTranspose2d(2, 3, 3, groups=2)", ValueError, "groups must divide out_channels"),
    ("Dense(0, 1)", ValueError, "in_features must be at least 1, got 0"),
    ("Dense(1, '2')", TypeError, "out_features must be an int, got '2'"),
    ("Dense(1, 1, init=None)", ValueError, "init must be one of .* got None"),
    ("BatchNorm(0)", ValueError, "num_features must be at least 1, got 0"),
    ("BatchNorm(1, eps=-1e-5)", ValueError, "eps must be a finite number of at least 0, got -1e"),
    ("BatchNorm(1, eps=float('nan'))", ValueError, "eps must be a finite number.* got nan"),
    ("BatchNorm(1, momentum=1.5)", ValueError, "momentum must be a probability .* got 1.5"),
    ("BatchNorm(1, momentum=None)", TypeError, "momentum must be a number, got None"),
    ("Dropout(-0.1)", ValueError, "p must be .* got -0.1"),
    ("Dropout(2)", ValueError, "p must be a probability between 0 and 1, got 2"),
    ("Dropout(float('nan'))", ValueError, "p must be .* got nan"),
    ("Dropout('half')", TypeError, "p must be a number, got 'half'"),
    ("Dropout(seed=-1)", ValueError, "seed must be at least 0, got -1"),
    ("MaxPool2d(0)", ValueError, "kernel_size must be at least 1 .* got 0"),
    ("MaxPool2d(2, stride=0)", ValueError, "stride must be at least 1 .* got 0"),
    ("MaxPool2d('2')", ValueError, "kernel_size must be an int .* got '2'"),
    ("AvgPool1d((2, 2))", ValueError, "kernel_size must be an int or one int for each of 1"),
    ("AvgPool2d(2, divisor_override=0)", ValueError, "divisor_override must be at least 1, got 0"),
    ("AdaptiveAvgPool2d(0)", ValueError, "output_size must be at least 1 .* got 0"),
    ("AdaptiveAvgPool2d((1, 2, 3))", ValueError, "output_size must be an int or one int for each"),
    ("LeakyReLU(float('inf'))", ValueError, "negative_slope must be a finite number.* got inf"),
    ("ELU('1')", TypeError, "alpha must be a number, got '1'"),
    ("GELU('fast')", ValueError, "approximate must be one of 'none', 'tanh', got 'fast'"),
    ("ConstantPad2d(1, 'white')", TypeError, "value must be a number, got 'white'"),
    ("ConstantPad2d(-1)", ValueError, "padding .*-1"),
    ("UnitBias(5)", ValueError, r"shape must be \(C, \*S\).* got 5"),
    ("UnitBias(())", ValueError, r"shape must be \(C, \*S\).* got \(\)"),
    ("UnitBias((2, -1))", ValueError, "shape must be at least 0, got -1"),
    ("PartialConv2d(2, 3, connections=[])", ValueError, r"connections must name.* 2 .*got \[\]"),
    ("PartialConv2d(2, 3, connections=[[], []])", ValueError, "connections must name"),
    ("PartialConv2d(2, 3, connections=[[0], [0, 1]])", ValueError, "equally many different"),
    ("PartialConv2d(2, 3, connections=[[0, 0]])", ValueError, "equally many different"),
    ("PartialConv2d(2, 3, connections=[[2]])", ValueError, "2 input channels"),
    ("PartialConv2d(2, 3, connections=[[-1]])", ValueError, "2 input channels"),
    ("PartialConv2d(2, 3, connections=[[0.5]])", ValueError, "connections must name"),
    ("PartialConv2d(2, 3, connections=3)", ValueError, "connections must name.* got 3"),
    ("Sequential()", ValueError, "Sequential needs at least one layer"),
    ("Sequential(ReLU)", TypeError, "Sequential takes layers.*ReLU.* position 0; .* instances"),
    ("Sequential([ReLU()])", TypeError, r"got \[ReLU\(\)\] at position 0; .*Sequential\(a, b"),
    ("Sequential(ReLU(), 'relu')", TypeError, "got 'relu' at position 1"),
    ("Sequential(ReLU(), backend='gpu')", ValueError, "backend must be .* got 'gpu'"),
    ("Sequential(ReLU(), seed=1.5)", TypeError, "seed must be an int, got 1.5"),
    ("Residual(None)", TypeError, "body must be a layer, got None"),
    ("Residual(ReLU(), 5)", TypeError, "shortcut must be a layer, got 5"),
    ("Residual(ReLU(), seed=-1)", ValueError, "seed must be at least 0, got -1"),
]

SHAPES = [
    ("Conv2d(1, 1, 3)", (1, 5, 5), r"4 dimensions .* got shape \(1, 5, 5\); add the missing"),
    ("Conv2d(1, 1, 3)", (5, 5), r"got shape \(5, 5\); add batch and channel dimensions"),
    ("Conv2d(1, 1, 3)", (1, 1, 5, 5, 5), r"got shape .*; reshape it, or use the 3d"),
    ("Conv1d(1, 1, 3)", (2, 5), r"x must have 3 dimensions \(batch, channels, length\)"),
    ("Conv3d(1, 1, 3)", (2, 1, 5, 5), r"x must have 5 dimensions \(batch, channels, depth"),
    ("Conv2d(2, 1, 3)", (1, 3, 5, 5), r"x has 3 channels, but .* expects 2; pass x as"),
    ("Conv2d(2, 4, 3, groups=2)", (1, 4, 5, 5), "x has 4 channels, but .* groups=2 expects 2"),
    ("Conv2d(1, 1, 6)", (1, 1, 5, 5), r"kernel_size \(6, 6\) .* spans 6 .* input has 5 .*use a"),
    ("Conv2d(1, 1, 3, dilation=3)", (1, 1, 5, 5), "kernel_size .* spans 7 positions"),
    ("ConvTranspose2d(2, 1, 3)", (1, 3, 5, 5), "x has 3 channels, but .* expects 2"),
    ("ConvTranspose2d(1, 1, 3, padding=9)", (1, 1, 2, 2), "padding"),
    ("ConvTranspose2d(1, 1, 3, output_padding=1)", (1, 1, 2, 2), "output_padding"),
    ("MaxPool2d(3)", (1, 1, 2, 2), r"kernel_size \(3, 3\) .* input has 2"),
    ("MaxPool2d(2)", (1, 2, 2), "x must have 4 dimensions"),
    ("MaxPool2d(2, padding=2)", (1, 1, 4, 4), "padding"),
    ("AvgPool1d(2)", (1, 1, 4, 4), "x must have 3 dimensions"),
    ("AdaptiveAvgPool2d(2)", (1, 4, 4), "x must have 4 dimensions"),
    ("GlobalAvgPool()", (2, 3), r"\(N, C, \*.*got shape \(2, 3\)"),
    ("Dense(3, 2)", (4, 5), r"\(N, 3\).* got.* \(4, 5\)"),
    ("Dense(3, 2)", (4, 3, 1, 1), r"\(N, 3\).* got.* \(4, 3, 1, 1\).*flatten"),
    ("BatchNorm(3)", (4, 2, 5), r"BatchNorm\(3\) expects \(N, 3, ...\), got shape \(4, 2, 5\)"),
    ("BatchNorm(3)", (3,), r"expects \(N, 3, ...\), got shape \(3,\)"),
    ("Flatten()", (3,), r"Flatten expects \(N, C, ...\), got shape \(3,\)"),
    ("ConstantPad2d(1)", (2, 4, 4), "x must have 4 dimensions"),
    ("UnitBias((2, 3))", (1, 2, 4), r"x must have shape \(2, 3\) behind the batch, got \(2, 4\)"),
    ("PartialConv2d(2, 3, connections=[[0]])", (1, 3, 5, 5), "x has 3 channels"),
    ("PartialConv2d(2, 3, connections=[[0]])", (1, 2, 2, 5), "kernel_size"),
    ("Residual(Conv2d(1, 2, 3))", (1, 1, 5, 5), r"give \(1, 2, 3, 3\) and \(1, 1, 5, 5\); .*1×1"),
    ("Residual(ReLU(), Flatten())", (1, 1, 5, 5), "Residual adds body and shortcut"),
    ("Sequential(Flatten(), Dense(9, 2))", (1, 1, 4, 4), r"\(N, 9\).*\(1, 16\)"),
]


def ones(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.ones(shape, dtype)


def everything(backend: Backend, layer: Layer) -> list[Any]:
    """Configuration, arrays, gradients, placement and random state, to compare."""
    arrays = [backend.to_numpy(array).tolist() for array in layer.state_dict().values()]
    grads = [parameter.grad for parameter in layer.parameters()]
    return [repr(layer), arrays, grads, layer.backend, layer.dtype, layer.random_state()]


@pytest.mark.parametrize(("text", "error", "message"), CONSTRUCTORS, ids=lambda value: str(value))
def test_constructor_arguments(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(text)


@pytest.mark.parametrize(("text", "shape", "message"), SHAPES, ids=lambda value: str(value))
def test_input_shapes(text: str, shape: tuple[int, ...], message: str, backend: Backend) -> None:
    layer = build(text).to(backend)
    before = everything(backend, layer)
    x = backend.asarray(ones(*shape))
    for use in (layer.forward, layer, lambda x: layer.output_shape(x.shape)):
        with pytest.raises(ValueError, match=message):
            use(x)
    with pytest.raises(ValueError, match=message):
        ac.summary(layer, shape)
    assert everything(backend, layer) == before


@every_layer
@pytest.mark.parametrize(
    ("convert", "error", "message"),
    [
        (lambda x: x.astype("uint8"), TypeError, r"x must be one of .*uint8; .*float32'\) / 255"),
        (lambda x: x.astype("int64"), TypeError, r"x must be one of .*int64; convert it"),
        (lambda x: x.astype(bool), TypeError, r"x must be one of .*bool; convert it"),
        (lambda x: x.astype("complex64"), TypeError, r"x must be one of .*complex64; convert it"),
        (lambda x: x.astype(">f4"), TypeError, r"x must be one of .*>f4; convert it"),
        (lambda x: x.tolist(), TypeError, r"x must be a NumPy .* got list; convert it"),
        (lambda x: None, TypeError, r"x must be a NumPy .* got NoneType"),
        (lambda x: 1.0, TypeError, r"x must be a NumPy .* got float"),
    ],
)
def test_inputs_that_are_no_float_arrays(
    case: Case, convert: Any, error: type[Exception], message: str, backend: Backend
) -> None:
    layer = case.make(backend, "float32")
    before = everything(backend, layer)
    for use in (layer.forward, layer):
        with pytest.raises(error, match=message):
            use(convert(case.input()))
    assert everything(backend, layer) == before


@every_layer
def test_dtypes_that_differ_from_the_parameters(case: Case, backend: Backend) -> None:
    layer = case.make(backend, "float32")
    if layer.dtype is None:
        return  # follows its input
    before = everything(backend, layer)
    x = backend.asarray(case.input())
    for use in (layer.forward, layer):
        with pytest.raises(
            TypeError,
            match=r"x must have the dtype of the parameters, float32, got float64; .*"
            r"x\.astype\('float32'\) or .*model\.to\(dtype='float64'\)",
        ):
            use(x)
    assert everything(backend, layer) == before


@every_layer
def test_output_gradients_that_do_not_fit(case: Case, backend: Backend) -> None:
    layer = case.make(backend, "float32")
    y, backward = layer.forward(backend.asarray(case.input().astype("float32")))
    before = everything(backend, layer)
    with pytest.raises(ValueError, match=r"grad_output must have shape .* got"):
        backward(y[:-1])
    with pytest.raises(ValueError, match=r"grad_output must have shape .* got \(\)"):
        backward(backend.xp.zeros((), "float32"))
    with pytest.raises(TypeError, match=r"grad_output must have the dtype .*float32, got float64"):
        backward(y.astype("float64"))
    with pytest.raises(TypeError, match=r"grad_output must have the dtype .*float32, got int64"):
        backward(y.astype("int64"))
    for nothing in (None, 1.0, backend.to_numpy(y).tolist()):
        with pytest.raises(TypeError, match=r"grad_output must be a NumPy or CuPy array, got"):
            backward(nothing)
    assert everything(backend, layer) == before


def test_training_a_batch_norm_on_one_value(backend: Backend) -> None:
    layer = ac.BatchNorm(2, backend=backend)
    before = everything(backend, layer)
    for shape in ((1, 2), (1, 2, 1, 1), (0, 2, 3)):
        with pytest.raises(ValueError, match=r"at least 2 values per channel .* larger batch"):
            layer.forward(backend.asarray(ones(*shape)))
    assert everything(backend, layer) == before


def test_a_backend_that_is_not_there() -> None:
    missing = next(name for name in ("cuda:99", "cuda") if name not in ac.available_backends())
    layer = ac.Conv2d(1, 1, 1)
    before = everything(layer.backend, layer)
    for use in (
        lambda: ac.Conv2d(1, 1, 1, backend=missing),
        lambda: layer.to(missing),
        lambda: ac.Sequential(layer, backend=missing),
    ):
        with pytest.raises((BackendUnavailableError, ValueError), match=rf"{missing}.*"):
            use()
    assert everything(layer.backend, layer) == before


class TestContainers:
    def test_a_refused_container_leaves_its_layers_alone(self, backend: Backend) -> None:
        layer = ac.Dense(2, 2, backend=backend)
        relu = ac.ReLU()
        before = everything(backend, layer)
        for options in ({"backend": "gpu"}, {"seed": -1}, {"seed": "a"}):
            with pytest.raises((TypeError, ValueError)):
                ac.Sequential(layer, relu, **options)
        with pytest.raises(TypeError):
            ac.Sequential(layer, relu, None)
        assert everything(backend, layer) == before

    def test_an_error_in_the_middle_changes_nothing_behind_it(self, backend: Backend) -> None:
        network = ac.Sequential(
            ac.Conv2d(1, 2, 3), ac.Flatten(), ac.Dense(17, 2), ac.BatchNorm(2), ac.Dropout(),
            seed=0, backend=backend,
        )  # fmt: skip
        before = everything(backend, network)
        with pytest.raises(ValueError, match=r"\(N, 17\).*\(4, 18\)"):
            network.forward(ones(4, 1, 5, 5))
        assert everything(backend, network) == before

    def test_layers_of_different_dtypes(self, backend: Backend) -> None:
        network = ac.Sequential(ac.Dense(2, 2), ac.Dense(2, 2, dtype="float64"), backend=backend)
        with pytest.raises(TypeError, match=r"x must have the dtype .*float64, got float32"):
            network(backend.asarray(ones(3, 2)))

    def test_indices_beyond_the_end(self) -> None:
        network = ac.Sequential(ac.ReLU(), ac.Tanh())
        with pytest.raises(IndexError):
            network[2]
        with pytest.raises(ValueError, match="at least one layer"):
            network[2:]
