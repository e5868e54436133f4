"""The three products of a convolution on a GPU, beside PyTorch's: which algorithm, and how near to
what the device can do."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from gpu_timing import ceilings, cupy_milliseconds, torch_milliseconds

PRODUCTS = ("forward", "input grad", "weight grad")


@dataclass(frozen=True)
class Shape:
    """A convolution of square images, with "same" padding but for LeNet's second."""

    name: str
    batch: int
    channels: int
    outputs: int
    size: int
    kernel: int
    stride: int
    padding: int


SHAPES = [
    Shape("LeNet-5 conv1", 64, 1, 6, 28, 5, 1, 2),
    Shape("LeNet-5 conv2", 64, 6, 16, 14, 5, 1, 0),
    Shape("ResNet-20 stage 1", 128, 16, 16, 32, 3, 1, 1),
    Shape("ResNet-20 stage 2", 128, 32, 32, 16, 3, 1, 1),
    Shape("ResNet-20 stage 3", 128, 64, 64, 8, 3, 1, 1),
    Shape("ResNet-20 downsampling", 128, 16, 32, 32, 3, 2, 1),
    Shape("ResNet-50 stem", 64, 3, 64, 224, 7, 2, 3),
    Shape("ResNet-50 conv2 3×3", 64, 64, 64, 56, 3, 1, 1),
    Shape("ResNet-50 conv3 3×3", 64, 128, 128, 28, 3, 1, 1),
    Shape("ResNet-50 conv4 3×3", 64, 256, 256, 14, 3, 1, 1),
    Shape("ResNet-50 conv5 3×3", 64, 512, 512, 7, 3, 1, 1),
    Shape("ResNet-50 conv3 downsampling", 64, 128, 128, 56, 3, 2, 1),
    Shape("ResNet-50 conv2 1×1", 64, 64, 256, 56, 1, 1, 0),
]
QUICK = [Shape("tiny", 4, 3, 5, 6, 3, 1, 1), Shape("tiny strided", 4, 4, 8, 7, 3, 2, 1)]


def run_convolutions(backend: Any, quick: bool) -> dict[str, Any]:
    """A row for each shape and product: milliseconds of every algorithm and of PyTorch."""
    limits = ceilings(backend, quick)
    rows, right = [], True
    for shape in QUICK if quick else SHAPES:
        ours = our_products(backend, shape)
        theirs = torch_products(shape)
        for product in PRODUCTS:
            row, exact = measured(backend, shape, product, ours, theirs, limits, quick)
            rows.append(row)
            right = right and exact
    notes = [
        f"ceilings: {limits['bytes per second'] / 1e9:.0f} GB/s copied, "
        f"{limits['operations per second'] / 1e12:.2f} TFLOP/s of a cuBLAS float32 product",
        "floor: the larger of bytes (every array once) and operations over their ceiling",
        "of roofline: floor over the time of what the backend chooses",
        "of cuDNN: PyTorch's time over ours, both fp32",
    ]
    return {"ok": right, "ceilings": limits, "rows": rows, "notes": notes}


def measured(
    backend: Any, shape: Shape, product: str, ours: Any, theirs: Any, limits: Any, quick: bool
) -> tuple[dict[str, Any], bool]:
    rounds, work = 3 if quick else 30, ours[product]
    times: dict[str, float | None] = {}
    results: dict[str, Any] = {}
    for name, algorithm in ALGORITHMS.items():
        if name == "tf32" and int(backend.device.compute_capability) < 80:
            times[name] = None
            continue
        with algorithm(backend):
            results[name] = backend.to_numpy(work())
            times[name] = cupy_milliseconds(backend, work, rounds)
    scale = float(np.abs(results["im2col"]).max())
    errors = {name: float(np.abs(r - results["im2col"]).max()) for name, r in results.items()}
    exact = errors["implicit"] <= 1e-4 * scale and errors.get("tf32", 0) <= 2e-2 * scale
    cudnn = cudnn_tf32 = None
    if theirs is not None:
        torch, products = theirs
        for tf32 in (False, True):
            torch.backends.cudnn.allow_tf32 = tf32
            time = torch_milliseconds(torch, products[product], rounds)
            cudnn, cudnn_tf32 = (cudnn, time) if tf32 else (time, cudnn_tf32)
    operations, traffic = cost(shape)
    floor = 1e3 * max(
        operations / limits["operations per second"], traffic / limits["bytes per second"]
    )
    chosen = times["chosen"] or float("nan")
    row = {
        "shape": shape.name,
        "product": product,
        "GFLOP": operations / 1e9,
        "MB": traffic / 1e6,
        "floor ms": floor,
        **{f"{name} ms": time for name, time in times.items()},
        "cuDNN ms": cudnn,
        "cuDNN tf32 ms": cudnn_tf32,
        "of roofline": floor / chosen,
        "of cuDNN": None if cudnn is None else cudnn / chosen,
    }
    return row, exact


def cost(shape: Shape) -> tuple[int, int]:
    """Operations, and bytes if every array is read or written once."""
    out = output_size(shape)
    columns = shape.channels * shape.kernel**2
    operations = 2 * shape.outputs * columns * out**2 * shape.batch
    images = shape.batch * (shape.channels * shape.size**2 + shape.outputs * out**2)
    return operations, 4 * (images + shape.outputs * columns)


def output_size(shape: Shape) -> int:
    return (shape.size + 2 * shape.padding - shape.kernel) // shape.stride + 1


def arrays(shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng, out = np.random.default_rng(0), output_size(shape)
    x = (shape.batch, shape.channels, shape.size, shape.size)
    weight = (shape.outputs, shape.channels, shape.kernel, shape.kernel)
    delta = (shape.batch, shape.outputs, out, out)
    made = [rng.standard_normal(one, dtype=np.float32) for one in (x, weight, delta)]
    return made[0], made[1], made[2]


def our_products(backend: Any, shape: Shape) -> dict[str, Callable[[], Any]]:
    from arraycnn.geometry import conv_window

    size = (shape.size, shape.size)
    kernel = (shape.kernel, shape.kernel)
    window = conv_window(size, kernel, stride=shape.stride, padding=shape.padding)
    x, weight, delta = map(backend.asarray, arrays(shape))
    x, delta = backend.batch_last(x), backend.batch_last(delta)
    return {
        "forward": lambda: backend.convolution(x, weight, None, window, 1),
        "input grad": lambda: backend.convolution_input_grad(delta, weight, window, 1),
        "weight grad": lambda: backend.convolution_weight_grad(x, delta, weight.shape, window, 1),
    }


def torch_products(shape: Shape) -> tuple[Any, dict[str, Callable[[], Any]]] | None:
    from gpu_check import cuda_torch

    torch = cuda_torch()
    if torch is None:
        return None
    torch.backends.cudnn.benchmark = True
    x, weight, delta = (torch.from_numpy(array).cuda() for array in arrays(shape))
    options = {"stride": shape.stride, "padding": shape.padding}
    gradient = torch.nn.grad
    return torch, {
        "forward": lambda: torch.nn.functional.conv2d(x, weight, **options),
        "input grad": lambda: gradient.conv2d_input(x.shape, weight, delta, **options),
        "weight grad": lambda: gradient.conv2d_weight(x, weight.shape, delta, **options),
    }


@contextlib.contextmanager
def as_chosen(backend: Any) -> Iterator[None]:
    yield


@contextlib.contextmanager
def by_columns(backend: Any) -> Iterator[None]:
    from arraycnn.backends.cuda.columns import CudaColumns

    def algorithms(problem: Any, method: str = "auto") -> tuple[Any, ...]:
        return (CudaColumns(backend, problem),)

    with mock.patch.object(backend, "algorithms", algorithms):
        yield


@contextlib.contextmanager
def in_tf32(backend: Any) -> Iterator[None]:
    backend.tf32 = True
    try:
        yield
    finally:
        backend.tf32 = False


ALGORITHMS: dict[str, Callable[[Any], contextlib.AbstractContextManager[None]]] = {
    "im2col": by_columns,
    "implicit": lambda backend: backend.own_products(),
    "chosen": as_chosen,
    "tf32": in_tf32,
}
