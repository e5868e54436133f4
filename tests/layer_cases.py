"""Every layer: an expression that makes it, an input shape, and what it should compute."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import arraycnn as ac
from arraycnn import functional as F
from arraycnn.backends import Backend
from arraycnn.layers import Layer

RING = "((0, 1), (1, 2), (2, 0), (2, 1))"
PARTIAL = f"PartialConv2d(3, 2, connections={RING}, stride=(1, 2))"


@dataclass(frozen=True)
class Case:
    """``text`` is the layer's repr; ``expected(layer, x)`` its training output from functions."""

    text: str
    shape: tuple[int, ...]
    expected: Callable[[Any, Any], Any]

    def make(self, backend: Backend, dtype: str = "float64") -> Layer:
        """The layer on the backend, all its parameters drawn at random."""
        layer = build(self.text).to(backend, dtype=dtype)
        randomize(layer)
        return layer

    def input(self, seed: int = 1, batch: int | None = None) -> np.ndarray:
        shape = self.shape if batch is None else (batch, *self.shape[1:])
        return np.random.default_rng(seed).standard_normal(shape)


def build(text: str) -> Layer:
    layer = eval(text, vars(ac).copy())
    assert isinstance(layer, Layer)
    return layer


def randomize(layer: Layer, seed: int = 0) -> None:
    """Draw every parameter from a normal distribution, zeros and ones included."""
    rng = np.random.default_rng(seed)
    for parameter in layer.parameters():
        parameter.data[...] = ac.backend_of(parameter.data).asarray(
            rng.standard_normal(parameter.shape), parameter.dtype
        )


def _conv(n: int, **options: Any) -> Callable[[Any, Any], Any]:
    function = getattr(F, f"conv{n}d")
    return lambda layer, x: function(
        x, layer.weight.data, layer.bias and layer.bias.data, **options
    )


def _transposed(n: int, **options: Any) -> Callable[[Any, Any], Any]:
    function = getattr(F, f"conv_transpose{n}d")
    return lambda layer, x: function(
        x, layer.weight.data, layer.bias and layer.bias.data, **options
    )


def _function(name: str, *args: Any, **options: Any) -> Callable[[Any, Any], Any]:
    function = getattr(F, name)
    return lambda layer, x: function(x, *args, **options)


def _batch_norm(layer: Any, x: Any) -> Any:
    return F.batch_norm(x, weight=layer.weight.data, bias=layer.bias.data, training=True)


def _dropout(layer: Any, x: Any) -> Any:
    state = layer.random_state()[""]
    return F.dropout(x, 0.4, seed=state["seed"], counter=0)


def _bordered(layer: Any, x: Any) -> Any:
    y = ac.backend_of(x).xp.full((*x.shape[:2], x.shape[2] + 3, x.shape[3] + 1), -1.0, x.dtype)
    y[:, :, 1 : 1 + x.shape[2], : x.shape[3]] = x
    return y


def _partial(layer: Any, x: Any) -> Any:
    """A full convolution whose missing connections are zeros."""
    weight = np.zeros((4, 3, 2, 2))
    stored = ac.backend_of(x).to_numpy(layer.weight.data)
    for out, sources in enumerate(eval(RING)):
        for place, source in enumerate(sources):
            weight[out, source] = stored[out, place]
    return F.conv2d(x, ac.backend_of(x).asarray(weight, x.dtype), stride=(1, 2))


def _scaled_tanh(layer: Any, x: Any) -> Any:
    return 1.7159 * ac.backend_of(x).xp.tanh(2 / 3 * x)


def _convolution_cases() -> list[Case]:
    cases = []
    for n, size in ((1, (7,)), (2, (5, 6)), (3, (3, 4, 3))):
        cases += [
            Case(f"Conv{n}d(2, 3, 2)", (2, 2, *size), _conv(n)),
            Case(
                f"Conv{n}d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2, bias=False)",
                (2, 2, *size), _conv(n, stride=2, padding=2, dilation=2, groups=2),
            ),
            Case(f"Conv{n}d(1, 2, 1)", (2, 1, *size), _conv(n)),
            Case(f"ConvTranspose{n}d(2, 3, 2)", (2, 2, *size), _transposed(n)),
            Case(
                f"ConvTranspose{n}d(2, 2, 3, stride=2, padding=1, output_padding=1, groups=2, "
                "bias=False)",
                (2, 2, *(2 for _ in size)),
                _transposed(n, stride=2, padding=1, output_padding=1, groups=2),
            ),
        ]  # fmt: skip
    return cases


def _pooling_cases() -> list[Case]:
    cases = []
    for n, size in ((1, (7,)), (2, (5, 6)), (3, (3, 4, 5))):
        cases += [
            Case(f"MaxPool{n}d(2)", (2, 2, *size), _function(f"max_pool{n}d", 2)),
            Case(
                f"MaxPool{n}d(3, stride=2, padding=1, ceil_mode=True)", (2, 1, *size),
                _function(f"max_pool{n}d", 3, stride=2, padding=1, ceil_mode=True),
            ),
            Case(f"AvgPool{n}d(2)", (2, 2, *size), _function(f"avg_pool{n}d", 2)),
            Case(
                f"AvgPool{n}d(3, stride=2, padding=1, count_include_pad=False)", (2, 1, *size),
                _function(f"avg_pool{n}d", 3, stride=2, padding=1, count_include_pad=False),
            ),
            Case(
                f"AvgPool{n}d(2, ceil_mode=True, divisor_override=3)", (2, 1, *size),
                _function(f"avg_pool{n}d", 2, ceil_mode=True, divisor_override=3),
            ),
        ]  # fmt: skip
    return cases


CASES = [
    *_convolution_cases(),
    *_pooling_cases(),
    Case(
        "Conv2d(2, 3, (3, 2), stride=(1, 2), padding='same')",
        (2, 2, 4, 5),
        _conv(2, stride=(1, 2), padding="same"),
    ),
    Case(
        "Conv2d(1, 2, 3, padding=((0, 1), (2, 0)))",
        (2, 1, 4, 3),
        _conv(2, padding=((0, 1), (2, 0))),
    ),
    Case("MaxPool2d((2, 1), dilation=(2, 1))", (2, 2, 5, 3),
         _function("max_pool2d", (2, 1), dilation=(2, 1))),
    Case("AdaptiveAvgPool2d((2, 3))", (2, 2, 5, 4), _function("adaptive_avg_pool2d", (2, 3))),
    Case("GlobalAvgPool()", (3, 2, 3, 2), _function("global_avg_pool")),
    Case("Dense(4, 3)", (5, 4), lambda layer, x: F.dense(x, layer.weight.data, layer.bias.data)),
    Case("Dense(4, 3, bias=False)", (5, 4), lambda layer, x: F.dense(x, layer.weight.data)),
    Case("Identity()", (3, 2, 4), lambda layer, x: x),
    Case("Flatten()", (3, 2, 2, 3), lambda layer, x: x.reshape(len(x), math.prod(x.shape[1:]))),
    Case("BatchNorm(3)", (4, 3, 2, 3), _batch_norm),
    Case("BatchNorm(3)", (6, 3), _batch_norm),
    Case("BatchNorm(2)", (3, 2, 2, 1, 2), _batch_norm),
    Case("Dropout(p=0.4)", (4, 3, 2, 3), _dropout),
    Case("ReLU()", (3, 2, 4), _function("relu")),
    Case("LeakyReLU(negative_slope=0.2)", (3, 2, 4), _function("leaky_relu", 0.2)),
    Case("ELU(alpha=0.7)", (3, 2, 4), _function("elu", 0.7)),
    Case("SELU()", (3, 2, 4), _function("selu")),
    Case("GELU()", (3, 2, 4), _function("gelu")),
    Case("GELU(approximate='tanh')", (3, 2, 4), _function("gelu", "tanh")),
    Case("Sigmoid()", (3, 2, 4), _function("sigmoid")),
    Case("Tanh()", (3, 2, 4), _function("tanh")),
    Case("Softplus()", (3, 2, 4), _function("softplus")),
    Case("Softmax()", (3, 4, 2), _function("softmax")),
    Case("ScaledTanh()", (3, 2, 4), _scaled_tanh),
    Case("ConstantPad2d(((1, 2), (0, 1)), value=-1.0)", (2, 2, 3, 2), _bordered),
    Case("UnitBias((2, 3))", (4, 2, 3), lambda layer, x: x + layer.bias.data),
    Case(PARTIAL, (2, 3, 3, 5), _partial),
]  # fmt: skip


def _parametrize(cases: list[Case]) -> pytest.MarkDecorator:
    named = [pytest.param(case, id=f"{case.text}-{len(case.shape)}d") for case in cases]
    return pytest.mark.parametrize("case", named)


every_layer = _parametrize(CASES)
every_trained_layer = _parametrize([case for case in CASES if build(case.text).parameters()])
