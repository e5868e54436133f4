"""Every stored PyTorch case, on every backend, in float64 and float32."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numerics import assert_close, put
from oracle.store import FAMILIES, FOLDER, StoredCase, load

from arraycnn import functional as F

CASES = [case for family in FAMILIES for case in load(family)]
INVALID = json.loads((FOLDER / "invalid.json").read_text())

Results = dict[str, Any]
Arrays = dict[str, Any]


def conv(op: str, a: Arrays, options: dict) -> Results:
    x, weight, bias, grad = a["x"], a["weight"], a.get("bias"), a["grad_output"]
    return {
        "output": getattr(F, op)(x, weight, bias, **options),
        "grad_x": getattr(F, f"{op}_input_grad")(x.shape, weight, grad, **options),
        "grad_weight": getattr(F, f"{op}_weight_grad")(x, weight.shape, grad, **options),
        "grad_bias": F.bias_grad(grad),
    }


def im2col(op: str, a: Arrays, options: dict) -> Results:
    x, kernel_size, rest = a["x"], options["kernel_size"], without(options, "kernel_size")
    return {
        "output": F.im2col(x, kernel_size, **rest),
        "grad_x": F.col2im(a["grad_output"], x.shape[2:], kernel_size, **rest),
    }


def col2im(op: str, a: Arrays, options: dict) -> Results:
    kernel_size, rest = options["kernel_size"], without(options, "kernel_size", "output_size")
    return {
        "output": F.col2im(a["columns"], options["output_size"], kernel_size, **rest),
        "grad_columns": F.im2col(a["grad_output"], kernel_size, **rest),
    }


def max_pool(op: str, a: Arrays, options: dict) -> Results:
    first = "output_size" if op.startswith("adaptive") else "kernel_size"
    rest = without(options, first)
    output, indices = getattr(F, op)(a["x"], options[first], return_indices=True, **rest)
    grad = getattr(F, f"{op}_grad")(a["x"], options[first], a["grad_output"], **rest)
    return {"output": output, "indices": indices, "grad_x": grad}


def avg_pool(op: str, a: Arrays, options: dict) -> Results:
    x, grad = a["x"], a["grad_output"]
    first = [options[name] for name in ("kernel_size", "output_size") if name in options]
    rest = without(options, "kernel_size", "output_size")
    return {
        "output": getattr(F, op)(x, *first, **rest),
        "grad_x": getattr(F, f"{op}_grad")(x.shape, *first, grad, **rest),
    }


def dense(op: str, a: Arrays, options: dict) -> Results:
    grads = F.dense_grad(a["x"], a["weight"], a["grad_output"])
    names = ("grad_x", "grad_weight", "grad_bias")
    return {
        "output": F.dense(a["x"], a["weight"], a.get("bias")),
        **dict(zip(names, grads, strict=True)),
    }


def elementwise(op: str, a: Arrays, options: dict) -> Results:
    return {
        "output": getattr(F, op)(a["x"], **options),
        "grad_x": getattr(F, f"{op}_grad")(a["x"], a["grad_output"], **options),
    }


def batch_norm(op: str, a: Arrays, options: dict) -> Results:
    x, mean, var, weight = a["x"], a.get("running_mean"), a.get("running_var"), a.get("weight")
    grads = F.batch_norm_grad(
        x, mean, var, weight, a["grad_output"], **without(options, "momentum")
    )
    output = F.batch_norm(x, mean, var, weight, a.get("bias"), **options)
    names = ("grad_x", "grad_weight", "grad_bias")
    running = {"running_mean": mean, "running_var": var}  # updated in place by training
    return {"output": output, **running, **dict(zip(names, grads, strict=True))}


def loss(op: str, a: Arrays, options: dict) -> Results:
    names = {
        "softmax_cross_entropy": ("logits", "labels"),
        "mse_loss": ("prediction", "target"),
        "binary_cross_entropy_with_logits": ("logits", "targets"),
    }[op]
    weights = {name: a[name] for name in ("weight", "pos_weight") if name in a}
    output, grad = getattr(F, op)(*(a[name] for name in names), **weights, **options)
    return {"output": output, f"grad_{names[0]}": grad}


def without(options: dict, *names: str) -> dict:
    return {key: value for key, value in options.items() if key not in names}


def runner(op: str) -> Callable[[str, Arrays, dict], Results]:
    table: dict[str, Callable] = {
        "conv": conv,
        "im2col": im2col,
        "col2im": col2im,
        "max_pool": max_pool,
        "adaptive_max": max_pool,
        "avg_pool": avg_pool,
        "adaptive_avg": avg_pool,
        "global_avg": avg_pool,
        "dense": dense,
        "batch_norm": batch_norm,
        "softmax_cross": loss,
        "mse": loss,
        "binary": loss,
    }
    return next((run for start, run in table.items() if op.startswith(start)), elementwise)


def narrowed(array: np.ndarray, precision: str) -> np.ndarray:
    """Floating-point arrays in the wanted precision; integers as they are."""
    if precision == "float64" or array.dtype.kind == "i":
        return array.copy()
    return array.astype(np.complex64 if array.dtype.kind == "c" else np.float32)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_agrees_with_pytorch(case: StoredCase, precision: str, backend) -> None:
    given = {name: narrowed(array, precision) for name, array in case.arrays.items()}
    arrays = {
        name: put(backend, array, None if name.startswith("running") else case.layout)
        for name, array in given.items()
    }
    results = runner(case.op)(case.op, arrays, case.options)
    for name, expected in case.expect.items():
        actual = backend.to_numpy(results[name])
        if name == "indices":
            assert actual.dtype == np.int64
            np.testing.assert_array_equal(actual, expected)
            continue
        assert actual.dtype == narrowed(expected, precision).dtype, name
        assert_close(actual, expected, 1e-10 if precision == "float64" else 1e-5, name)
    for name, array in given.items():
        if not name.startswith("running"):
            np.testing.assert_array_equal(backend.to_numpy(arrays[name]), array, err_msg=name)


@pytest.mark.parametrize("case", INVALID, ids=[case["id"] for case in INVALID])
def test_refuses(case: dict, backend) -> None:
    def argument(value: Any) -> Any:
        if isinstance(value, dict):
            values = value.get("values", np.zeros(value["shape"]))
            return backend.asarray(np.array(values, value["dtype"]))
        return tuple(value) if isinstance(value, list) else value

    arguments = [argument(value) for value in case["arguments"]]
    options = {key: argument(value) for key, value in case["options"].items()}
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(F, case["op"])(*arguments, **options)
    assert caught.type.__name__ == case["error"], caught.value
    missing = [word for word in case["match"] if word not in str(caught.value)]
    assert not missing, f"{missing} not in {str(caught.value)!r}"
