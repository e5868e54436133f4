"""The two truths agree: the naive loops give the stored PyTorch numbers."""

from typing import Any

import numpy as np
import pytest
import reference
from oracle.store import StoredCase, load


def each(value: Any, ndim: int) -> tuple:
    return value if isinstance(value, tuple) else (value,) * ndim


def sliding(options: dict, size: tuple[int, ...], kernel: tuple[int, ...]) -> dict:
    """stride, pad and dilation as the reference takes them."""
    ndim = len(size)
    stride = each(options.get("stride") or (kernel if "ceil_mode" in options else 1), ndim)
    dilation = each(options.get("dilation", 1), ndim)
    match options.get("padding", 0):
        case "same":
            pad = reference.same_padding(size, kernel, stride, dilation)
        case "full":
            pad = tuple(((k - 1) * d,) * 2 for k, d in zip(kernel, dilation, strict=True))
        case "valid":
            pad = ((0, 0),) * ndim
        case padding:
            pad = tuple(each(p, 2) for p in each(padding, ndim))
    return {"stride": stride, "pad": pad, "dilation": dilation}


def chosen(family: str, start: str) -> Any:
    cases = [case for case in load(family) if case.op.startswith(start)]
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


def agree(expected: np.ndarray, actual: np.ndarray) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


@chosen("conv", "conv")
def test_convolution(case: StoredCase) -> None:
    x, weight, grad = case.arrays["x"], case.arrays["weight"], case.arrays["grad_output"]
    options = sliding(case.options, x.shape[2:], weight.shape[2:])
    options["groups"] = case.options.get("groups", 1)
    agree(case.expect["output"], reference.conv(x, weight, case.arrays.get("bias"), **options))
    agree(case.expect["grad_x"], reference.conv_input_grad(x.shape, weight, grad, **options))
    agree(case.expect["grad_weight"], reference.conv_weight_grad(x, weight.shape, grad, **options))


@chosen("conv_complex", "conv")
def test_complex_convolution(case: StoredCase) -> None:
    if case.op.startswith("conv_transpose"):
        test_transposed_convolution(case)
    else:
        test_convolution(case)


@chosen("conv_transpose", "conv")
def test_transposed_convolution(case: StoredCase) -> None:
    x, weight = case.arrays["x"], case.arrays["weight"]
    ndim = x.ndim - 2
    options = sliding(case.options, x.shape[2:], weight.shape[2:])
    options["groups"] = case.options.get("groups", 1)
    extra = each(case.options.get("output_padding", 0), ndim)
    y = reference.conv_transpose(
        x, weight, case.arrays.get("bias"), output_padding=extra, **options
    )
    agree(case.expect["output"], y)


@chosen("columns", "im2col")
def test_columns(case: StoredCase) -> None:
    x = case.arrays["x"]
    kernel = each(case.options["kernel_size"], x.ndim - 2)
    options = sliding(case.options, x.shape[2:], kernel)
    agree(case.expect["output"], reference.im2col(x, kernel, **options))
    grad = reference.col2im(case.arrays["grad_output"], x.shape[2:], kernel, **options)
    agree(case.expect["grad_x"], grad)


@chosen("pooling", "max_pool")
def test_max_pooling(case: StoredCase) -> None:
    x = case.arrays["x"]
    kernel = each(case.options["kernel_size"], x.ndim - 2)
    case.options.setdefault("ceil_mode", False)
    options = sliding(case.options, x.shape[2:], kernel)
    values, indices = reference.max_pool(x, kernel, ceil_mode=case.options["ceil_mode"], **options)
    agree(case.expect["output"], values)
    np.testing.assert_array_equal(indices, case.expect["indices"])
    grad = reference.scatter_indices(x.shape, indices, case.arrays["grad_output"])
    agree(case.expect["grad_x"], grad)


@chosen("pooling", "avg_pool")
def test_average_pooling(case: StoredCase) -> None:
    x = case.arrays["x"]
    kernel = each(case.options["kernel_size"], x.ndim - 2)
    case.options.setdefault("ceil_mode", False)
    options = sliding(case.options, x.shape[2:], kernel)
    del options["dilation"]
    names = ("count_include_pad", "divisor_override")
    flags = {name: case.options[name] for name in names if name in case.options}
    y = reference.avg_pool(x, kernel, ceil_mode=case.options["ceil_mode"], **options, **flags)
    agree(case.expect["output"], y)
    grad = reference.avg_pool_grad(x.shape, kernel, case.arrays["grad_output"], **options, **flags)
    agree(case.expect["grad_x"], grad)


@chosen("pooling_adaptive", "adaptive")
def test_adaptive_pooling(case: StoredCase) -> None:
    x, grad = case.arrays["x"], case.arrays["grad_output"]
    out_size = each(case.options["output_size"], 2)
    if case.op == "adaptive_avg_pool2d":
        agree(case.expect["output"], reference.adaptive_avg_pool(x, out_size))
        agree(case.expect["grad_x"], reference.adaptive_avg_pool_grad(x.shape, out_size, grad))
    else:
        values, indices = reference.adaptive_max_pool(x, out_size)
        agree(case.expect["output"], values)
        agree(case.expect["grad_x"], reference.scatter_indices(x.shape, indices, grad))


@chosen("normalization", "batch_norm")
def test_batch_normalisation(case: StoredCase) -> None:
    x = case.arrays["x"]
    mean, var = case.arrays.get("running_mean"), case.arrays.get("running_var")
    if case.options["training"]:
        mean, var = reference.batch_statistics(x)
    weight = case.arrays.get("weight", np.ones(x.shape[1]))
    bias = case.arrays.get("bias", np.zeros(x.shape[1]))
    y = reference.batch_norm(x, mean, var, weight, bias, case.options.get("eps", 1e-5))
    agree(case.expect["output"], y)


@chosen("loss", "softmax_cross_entropy")
def test_cross_entropy(case: StoredCase) -> None:
    logits, labels = case.arrays["logits"], case.arrays["labels"]
    options = dict(case.options)
    reduction = options.pop("reduction", "mean")
    rows = np.moveaxis(logits, 1, -1).reshape(-1, logits.shape[1])
    loss, norm = reference.cross_entropy(
        rows, labels.ravel(), weight=case.arrays.get("weight"), **options
    )
    reduced = {
        "none": loss.reshape(labels.shape),
        "sum": loss.sum(),
        "mean": loss.sum() / norm.sum() if norm.any() else np.nan,
    }[reduction]
    agree(case.expect["output"], np.asarray(reduced))
