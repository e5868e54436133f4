"""What must be refused: the message names argument, value and remedy, and nothing has changed.

The stored invalid cases in ``oracle/invalid.json`` cover shapes and options of each operation;
here are the rules that hold for all of them.
"""

from typing import Any

import numpy as np
import pytest
from numerics import put

import arraycnn as ac
from arraycnn import functional as F
from arraycnn.backends import Backend, backend_of, get_backend


def image(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.ones(shape, dtype)


# operation: its array arguments by name, the arguments between and after them, keyword arguments.
# A name that is None holds a plain argument.
OPERATIONS: dict[str, tuple[list[tuple[str | None, Any]], dict[str, Any]]] = {
    "conv1d": ([("x", image(2, 3, 8)), ("weight", image(4, 3, 3)), ("bias", image(4))], {}),
    "conv2d": ([("x", image(2, 3, 6, 7)), ("weight", image(4, 3, 3, 3)), ("bias", image(4))], {}),
    "conv3d": ([("x", image(2, 3, 4, 4, 4)), ("weight", image(4, 3, 3, 3, 3))], {}),
    "conv2d_input_grad": (
        [
            (None, (2, 3, 6, 7)),
            ("weight", image(4, 3, 3, 3)),
            ("grad_output", image(2, 4, 4, 5)),
        ],
        {},
    ),
    "conv2d_weight_grad": (
        [("x", image(2, 3, 6, 7)), (None, (4, 3, 3, 3)), ("grad_output", image(2, 4, 4, 5))],
        {},
    ),
    "conv_transpose2d": (
        [("x", image(2, 4, 3, 3)), ("weight", image(4, 3, 3, 3)), ("bias", image(3))],
        {},
    ),
    "conv_transpose2d_input_grad": (
        [
            (None, (2, 4, 3, 3)),
            ("weight", image(4, 3, 3, 3)),
            ("grad_output", image(2, 3, 5, 5)),
        ],
        {},
    ),
    "conv_transpose2d_weight_grad": (
        [("x", image(2, 4, 3, 3)), (None, (4, 3, 3, 3)), ("grad_output", image(2, 3, 5, 5))],
        {},
    ),
    "bias_grad": ([("grad_output", image(2, 4, 4, 5))], {}),
    "im2col": ([("x", image(2, 3, 6, 7)), (None, 3)], {}),
    "col2im": ([("columns", image(2, 27, 20)), (None, (6, 7)), (None, (3, 3))], {}),
    "max_pool1d": ([("x", image(2, 3, 8)), (None, 2)], {}),
    "max_pool2d": ([("x", image(2, 3, 6, 8)), (None, 2)], {}),
    "max_pool3d": ([("x", image(2, 3, 4, 4, 4)), (None, 2)], {}),
    "max_pool2d_grad": (
        [("x", image(2, 3, 6, 8)), (None, 2), ("grad_output", image(2, 3, 3, 4))],
        {},
    ),
    "avg_pool1d": ([("x", image(2, 3, 8)), (None, 2)], {}),
    "avg_pool2d": ([("x", image(2, 3, 6, 8)), (None, 2)], {}),
    "avg_pool3d": ([("x", image(2, 3, 4, 4, 4)), (None, 2)], {}),
    "avg_pool2d_grad": (
        [(None, (2, 3, 6, 8)), (None, 2), ("grad_output", image(2, 3, 3, 4))],
        {},
    ),
    "adaptive_avg_pool2d": ([("x", image(2, 3, 6, 8)), (None, 2)], {}),
    "adaptive_avg_pool2d_grad": (
        [(None, (2, 3, 6, 8)), (None, 2), ("grad_output", image(2, 3, 2, 2))],
        {},
    ),
    "adaptive_max_pool2d": ([("x", image(2, 3, 6, 8)), (None, 2)], {}),
    "adaptive_max_pool2d_grad": (
        [("x", image(2, 3, 6, 8)), (None, 2), ("grad_output", image(2, 3, 2, 2))],
        {},
    ),
    "global_avg_pool": ([("x", image(2, 3, 6, 8))], {}),
    "global_avg_pool_grad": ([(None, (2, 3, 6, 8)), ("grad_output", image(2, 3))], {}),
    "dense": ([("x", image(5, 3)), ("weight", image(2, 3)), ("bias", image(2))], {}),
    "dense_grad": (
        [("x", image(5, 3)), ("weight", image(2, 3)), ("grad_output", image(5, 2))],
        {},
    ),
    "batch_norm": (
        [
            ("x", image(5, 3)),
            ("running_mean", image(3)),
            ("running_var", image(3)),
            ("weight", image(3)),
            ("bias", image(3)),
        ],
        {},
    ),
    "batch_norm_grad": (
        [
            ("x", image(5, 3)),
            ("running_mean", image(3)),
            ("running_var", image(3)),
            ("weight", image(3)),
            ("grad_output", image(5, 3)),
        ],
        {},
    ),
    "dropout": ([("x", image(5, 3)), (None, 0.5)], {"seed": 0}),
    "dropout_grad": ([("grad_output", image(5, 3)), (None, 0.5)], {"seed": 0}),
    "softmax_cross_entropy": ([("logits", image(5, 3)), (None, np.zeros(5, "int64"))], {}),
    "mse_loss": ([("prediction", image(5, 3)), ("target", image(5, 3))], {}),
    "binary_cross_entropy_with_logits": (
        [("logits", image(5, 3)), ("targets", image(5, 3))],
        {},
    ),
}
for _name in ("relu", "leaky_relu", "elu", "selu", "gelu", "sigmoid", "tanh", "softplus",
              "softmax", "log_softmax"):  # fmt: skip
    OPERATIONS[_name] = ([("x", image(4, 3))], {})
    OPERATIONS[f"{_name}_grad"] = ([("x", image(4, 3)), ("grad_output", image(4, 3))], {})

ARRAYS = [
    (operation, name)
    for operation, (arguments, _) in OPERATIONS.items()
    for name, _ in arguments
    if name is not None
]
each_array = pytest.mark.parametrize(
    ("operation", "name"), ARRAYS, ids=[f"{operation}-{name}" for operation, name in ARRAYS]
)


def call(backend: Backend, operation: str, **replaced: Any) -> Any:
    """The operation on its valid arguments, with some of its arrays replaced."""
    arguments, options = OPERATIONS[operation]
    values = []
    for name, value in arguments:
        value = replaced.get(name, value)
        values.append(put(backend, value) if isinstance(value, np.ndarray) else value)
    return getattr(F, operation)(*values, **options)


def valid(operation: str, name: str) -> np.ndarray:
    return dict(OPERATIONS[operation][0])[name]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_table_is_valid(operation: str, backend) -> None:
    call(backend, operation)


def test_every_operation_is_in_the_table() -> None:
    """Those of another rank are the same function with another number."""
    public = {name for name in F.__all__ if name[0].islower()}
    ranks = {name.replace("1d", "2d").replace("3d", "2d") for name in public}
    assert ranks <= set(OPERATIONS), ranks - set(OPERATIONS)


# Types of arrays


@each_array
def test_integer_arrays(operation: str, name: str, backend) -> None:
    with pytest.raises(TypeError, match=rf"{name}\b.*uint8.*astype"):
        call(backend, operation, **{name: valid(operation, name).astype("uint8")})


@each_array
@pytest.mark.parametrize("dtype", ["bool", "int64", "object", "U1"])
def test_arrays_of_no_number(operation: str, name: str, dtype: str, backend) -> None:
    if backend.name != "cpu" and dtype in ("object", "U1"):
        pytest.skip("a CUDA array cannot hold them")
    with pytest.raises(TypeError, match=name):
        call(backend, operation, **{name: valid(operation, name).astype(dtype)})


@each_array
def test_lists_instead_of_arrays(operation: str, name: str, backend) -> None:
    with pytest.raises(TypeError, match=rf"{name}\b.*list.*asarray"):
        call(backend, operation, **{name: valid(operation, name).tolist()})


@each_array
@pytest.mark.parametrize("value", [1.0, "image", np.float32(1)], ids=["float", "str", "scalar"])
def test_scalars_and_text_instead_of_arrays(operation, name, value, backend) -> None:
    with pytest.raises(TypeError, match=name):
        call(backend, operation, **{name: value})


@pytest.mark.parametrize(
    ("operation", "name"),
    [(o, n) for o, n in ARRAYS if n not in ("bias", "weight", "running_mean", "running_var")],
)
def test_missing_arrays(operation: str, name: str, backend) -> None:
    with pytest.raises(TypeError, match=name):
        call(backend, operation, **{name: None})


@each_array
def test_mixed_dtypes(operation: str, name: str, backend) -> None:
    others = [n for o, n in ARRAYS if o == operation and n != name]
    if not others:
        pytest.skip("a single array")
    with pytest.raises(TypeError, match=r"float32.*float64|float64.*float32") as caught:
        call(backend, operation, **{name: valid(operation, name).astype("float64")})
    assert "astype" in str(caught.value)
    assert any(n in str(caught.value) for n in (name, *others))


@pytest.mark.parametrize(
    "operation",
    [o for o in OPERATIONS if not o.startswith(("conv", "im2col", "col2im", "bias_grad"))],
)
def test_complex_arrays_only_in_convolutions(operation: str, backend) -> None:
    names = [n for o, n in ARRAYS if o == operation]
    replaced = {name: valid(operation, name).astype("complex64") for name in names}
    with pytest.raises(TypeError, match=rf"{names[0]}.*complex64"):
        call(backend, operation, **replaced)


@each_array
def test_one_dimension_too_few(operation: str, name: str, backend) -> None:
    arrays = [n for o, n in ARRAYS if o == operation]
    any_shape = len(arrays) == 1 and "pool" not in operation and "softmax" not in operation
    if (any_shape and operation != "col2im") or operation == "global_avg_pool":
        pytest.skip("takes arrays of any rank")
    with pytest.raises(ValueError, match=r"got|but") as caught:
        call(backend, operation, **{name: np.asarray(valid(operation, name)[0])})
    assert any(n in str(caught.value) for n in (*arrays, "axis")), caught.value


@pytest.mark.parametrize("name", ["im2col", "global_avg_pool", "bias_grad", "batch_norm"])
def test_no_spatial_dimension_or_channels(name: str, backend) -> None:
    x = put(backend, image(4) if name in ("bias_grad", "batch_norm") else image(4, 3))
    with pytest.raises(ValueError, match=r"(x|grad_output) must"):
        getattr(F, name)(x, *([3] if name == "im2col" else []))


@each_array
def test_a_size_that_does_not_match(operation: str, name: str, backend) -> None:
    """One element more along the last axis than the other arrays allow."""
    arrays = [n for o, n in ARRAYS if o == operation]
    array = valid(operation, name)
    if len(arrays) == 1 and not operation.endswith("_grad"):
        pytest.skip("nothing to match")
    if operation in ("dropout_grad", "bias_grad") or (name in ("x", "weight") and array.ndim > 2):
        pytest.skip("fits, or is a larger image or kernel")
    longer = np.concatenate([array, array[..., :1]], axis=-1)
    with pytest.raises(ValueError, match=r"got|but") as caught:
        call(backend, operation, **{name: longer})
    assert any(n in str(caught.value) for n in arrays), caught.value


# Integers


WINDOWED = [
    ("conv2d", ["stride", "dilation", "padding", "groups"]),
    ("conv_transpose2d", ["stride", "dilation", "padding", "output_padding", "groups"]),
    ("im2col", ["stride", "dilation", "padding"]),
    ("max_pool2d", ["stride", "dilation", "padding"]),
    ("avg_pool2d", ["stride", "padding", "divisor_override"]),
]
SIZES = [(operation, option) for operation, options in WINDOWED for option in options]


@pytest.mark.parametrize(("operation", "option"), SIZES)
@pytest.mark.parametrize("value", [True, 1.0, 0.5, "1", 1j], ids=str)
def test_what_is_no_integer(operation: str, option: str, value: Any, backend) -> None:
    arguments, _ = OPERATIONS[operation]
    values = [put(backend, a) if isinstance(a, np.ndarray) else a for _, a in arguments]
    with pytest.raises((TypeError, ValueError), match=option) as caught:
        getattr(F, operation)(*values, **{option: value})
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(("operation", "option"), SIZES)
def test_negative_integers(operation: str, option: str, backend) -> None:
    arguments, _ = OPERATIONS[operation]
    values = [put(backend, a) if isinstance(a, np.ndarray) else a for _, a in arguments]
    with pytest.raises(ValueError, match=rf"{option}.*-1"):
        getattr(F, operation)(*values, **{option: -1})


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d", "im2col", "adaptive_avg_pool2d"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True, "2", (2,), (2, 2, 2), None])
def test_sizes_as_positional_arguments(name: str, value: Any, backend) -> None:
    with pytest.raises((TypeError, ValueError), match=r"kernel_size|output_size") as caught:
        getattr(F, name)(put(backend, image(2, 3, 6, 8)), value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize("name", ["conv2d", "max_pool2d", "avg_pool2d", "im2col"])
@pytest.mark.parametrize("padding", ["reflect", "SAME", "", "half"])
def test_unknown_padding_names(name: str, padding: str, backend) -> None:
    second = put(backend, image(4, 3, 3, 3)) if name == "conv2d" else 3
    with pytest.raises(ValueError, match="padding") as caught:
        getattr(F, name)(put(backend, image(2, 3, 6, 8)), second, padding=padding)
    assert all(word in str(caught.value) for word in (repr(padding), "valid", "same", "full"))


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_windows_wholly_in_the_padding(name: str, backend) -> None:
    """PyTorch 2.13 accepts one with dilation, returns −∞ and crashes in backward."""
    for options in ({"padding": 3}, {"padding": ((0, 2), (0, 0))}):
        with pytest.raises(ValueError, match="padding") as caught:
            getattr(F, name)(put(backend, image(2, 3, 6, 8)), 2, **options)
        assert all(word in str(caught.value) for word in ("window", "reduce"))
    with pytest.raises(ValueError, match=r"padding.*dilation"):
        F.max_pool2d(put(backend, image(1, 1, 1, 1)), 2, padding=1, dilation=2)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv2d_input_grad", (2, 3, 6)),
        ("conv2d_input_grad", (2, 3, 6, -7)),
        ("conv2d_input_grad", (2, 3, 6.0, 7)),
        ("avg_pool2d_grad", (2, 3, 6)),
        ("global_avg_pool_grad", (2, 3)),
    ],
)
def test_input_shapes(name: str, shape: tuple, backend) -> None:
    arrays = {
        "conv2d_input_grad": [image(4, 3, 3, 3), image(2, 4, 4, 5)],
        "avg_pool2d_grad": [2, image(2, 3, 3, 4)],
        "global_avg_pool_grad": [image(2, 3)],
    }[name]
    arguments = [put(backend, a) if isinstance(a, np.ndarray) else a for a in arrays]
    with pytest.raises((TypeError, ValueError), match="input_shape"):
        getattr(F, name)(shape, *arguments)


# Real numbers


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), float("inf"), "0.5", None, True, [0.5]])
def test_dropout_probability(p: Any, backend) -> None:
    for function in (F.dropout, F.dropout_grad):
        with pytest.raises((TypeError, ValueError), match=r"\bp\b") as caught:
            function(put(backend, image(4, 3)), p, seed=0)
        assert str(p) in str(caught.value)


@pytest.mark.parametrize("option", ["seed", "counter"])
@pytest.mark.parametrize("value", [-1, 1.5, "0", True, None])
def test_dropout_stream(option: str, value: Any, backend) -> None:
    """No seed would mean another mask in the gradient than in the forward pass."""
    for function in (F.dropout, F.dropout_grad):
        with pytest.raises((TypeError, ValueError), match=option) as caught:
            function(put(backend, image(4, 3)), **({"seed": 0} | {option: value}))
        assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("operation", "option"),
    [
        ("leaky_relu", "negative_slope"),
        ("elu", "alpha"),
        ("batch_norm", "eps"),
        ("batch_norm", "momentum"),
        ("softmax_cross_entropy", "label_smoothing"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.1", None, True, 1j], ids=str)
def test_real_options(operation: str, option: str, value: Any, backend) -> None:
    arguments, _ = OPERATIONS[operation]
    values = [put(backend, a) if isinstance(a, np.ndarray) else a for _, a in arguments]
    with pytest.raises((TypeError, ValueError), match=option) as caught:
        getattr(F, operation)(*values, **{option: value})
    assert str(value) in str(caught.value)


@pytest.mark.parametrize("value", [1.5, "1", True, [1]])
def test_ignore_index(value: Any, backend) -> None:
    logits, labels = put(backend, image(3, 4)), put(backend, np.zeros(3, "int64"))
    with pytest.raises(TypeError, match="ignore_index") as caught:
        F.softmax_cross_entropy(logits, labels, ignore_index=value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize("value", [1.0, "1", True, None])
def test_softmax_axis(value: Any, backend) -> None:
    for function in (F.softmax, F.log_softmax):
        with pytest.raises(TypeError, match="axis"):
            function(put(backend, image(3, 4)), axis=value)


@pytest.mark.parametrize("axis", [2, -3])
def test_softmax_axis_beyond_the_array(axis: int, backend) -> None:
    x = put(backend, image(3, 4))
    for name in ("softmax", "log_softmax"):
        with pytest.raises(ValueError, match=rf"axis.*{axis}"):
            getattr(F, name)(x, axis=axis)
        with pytest.raises(ValueError, match=rf"axis.*{axis}"):
            getattr(F, f"{name}_grad")(x, x, axis=axis)


# Labels


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (np.array([0, 1, 4]), ValueError, ["labels", "4", "classes"]),
        (np.array([0, 1, -1]), ValueError, ["labels", "-1", "ignore_index"]),
        (np.array([0, 1, 2.0]), TypeError, ["labels", "float64", "astype"]),
        (np.array([True, False, True]), TypeError, ["labels", "bool"]),
        (np.eye(4, dtype="int64")[:3], ValueError, ["labels", "(3,)", "(3, 4)"]),
        (np.eye(4, dtype="float32")[:3], TypeError, ["labels", "argmax"]),
        (np.array([0, 1]), ValueError, ["labels", "(3,)", "(2,)"]),
        (np.array(1), ValueError, ["labels", "(3,)", "()"]),
        ([0, 1, 2], TypeError, ["labels", "list"]),
        (None, TypeError, ["labels", "NoneType"]),
    ],
)
def test_labels(labels: Any, error: type[Exception], words: list[str], backend) -> None:
    if isinstance(labels, np.ndarray):
        labels = put(backend, labels)
    with pytest.raises(error) as caught:
        F.softmax_cross_entropy(put(backend, image(3, 4)), labels)
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


@pytest.mark.parametrize(
    "name", ["softmax_cross_entropy", "mse_loss", "binary_cross_entropy_with_logits"]
)
@pytest.mark.parametrize("reduction", ["average", "Mean", "", None, 0])
def test_unknown_reductions(name: str, reduction: Any, backend) -> None:
    arguments, _ = OPERATIONS[name]
    with pytest.raises(ValueError, match="reduction") as caught:
        getattr(F, name)(*(put(backend, a) for _, a in arguments), reduction=reduction)
    assert all(word in str(caught.value) for word in (repr(reduction), "mean", "sum", "none"))


# Backends


@pytest.mark.parametrize("name", ["gpu", "CPU", "cpu:1", "", "numpy", "cuda:", "cuda:x", "cuda:-1"])
def test_unknown_backend_names(name: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=repr(name)) as caught:
        get_backend(name)
    assert "cpu" in str(caught.value)


@pytest.mark.parametrize("name", [None, 0, np, b"cpu", ["cpu"]])
def test_what_is_no_backend(name: Any) -> None:
    with pytest.raises(TypeError, match="backend"):
        get_backend(name)


def test_a_backend_is_accepted_where_its_name_is(backend) -> None:
    assert get_backend(backend) is backend
    assert get_backend(backend.name) is backend
    assert ac.get_backend is get_backend


@pytest.mark.parametrize("limit", [0, -1, 1.5, "64 MiB", True, None])
def test_workspace_limit(limit: Any, backend) -> None:
    before = backend.workspace_limit
    with pytest.raises((TypeError, ValueError), match="workspace_limit"):
        backend.workspace_limit = limit
    assert backend.workspace_limit == before


def test_arrays_of_no_backend(backend) -> None:
    with pytest.raises(TypeError, match=r"list.*asarray"):
        backend_of([1.0, 2.0])
    with pytest.raises(TypeError, match="array"):
        backend_of()
    assert backend_of(put(backend, image(2))) is backend


@pytest.mark.skipif("cuda" not in ac.available_backends(), reason="needs a second backend")
def test_arrays_of_two_backends(backend) -> None:
    other = get_backend("cpu" if backend.name != "cpu" else "cuda")
    x, weight = put(backend, image(2, 3, 6, 7)), put(other, image(4, 3, 3, 3))
    with pytest.raises((TypeError, ValueError), match=r"cpu.*cuda|cuda.*cpu"):
        F.conv2d(x, weight)


class DeviceArray:
    """What an array on a GPU shows of itself to a library that does not know it."""

    def __init__(self) -> None:
        self.shape, self.dtype, self.ndim = (2, 3), np.dtype("float32"), 2
        self.__cuda_array_interface__ = {
            "shape": self.shape, "typestr": "<f4", "data": (0, True), "version": 3
        }  # fmt: skip


def test_arrays_of_an_unknown_device() -> None:
    with pytest.raises((TypeError, ValueError), match=r"DeviceArray|cuda|CUDA"):
        F.relu(DeviceArray())
    with pytest.raises((TypeError, ValueError), match=r"cuda|CUDA"):
        get_backend("cpu").asarray(DeviceArray())
