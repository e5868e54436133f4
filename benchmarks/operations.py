"""Single operations and their gradients, in arraycnn and in PyTorch, on the same numbers."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from floors import taps_inside
from measure import Tasks


@dataclass(frozen=True)
class Operation:
    """A convolution ("same"), max pooling, batch norm, ReLU or dense layer, and its sizes."""

    kind: str
    in_channels: int
    out_channels: int
    kernel: int
    image: int
    batch: int

    @property
    def name(self) -> str:
        channels = f"{self.in_channels}→{self.out_channels}"
        size = f"{self.kernel}×{self.kernel}, {self.image}×{self.image}, N={self.batch}"
        return f"{self.kind} {channels} {size}"

    @property
    def tasks(self) -> tuple[str, ...]:
        if self.kind in ("conv", "dense"):
            return ("forward", "input grad", "weight grad")
        return ("forward", "all grads" if self.kind == "batch_norm" else "input grad")

    @property
    def window(self) -> Any:
        from arraycnn.geometry import conv_window, pool_window

        size = (self.image, self.image)
        if self.kind == "max_pool":
            return pool_window(size, self.kernel)
        return conv_window(size, self.kernel, padding=self.kernel // 2)

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Of the input, the weight and the output."""
        n, c, o, k = self.batch, self.in_channels, self.out_channels, self.kernel
        if self.kind == "dense":
            return (n, c), (o, c), (n, o)
        weight = (o, c, k, k) if self.kind == "conv" else (c,)
        return (n, c, self.image, self.image), weight, (n, o, *self.window.output_size)

    def operands(self) -> list[np.ndarray]:
        """Input, weight, and the gradient of the output."""
        rng = np.random.default_rng(0)
        return [rng.standard_normal(shape, np.float32) for shape in self.shapes]

    @property
    def multiply_adds(self) -> int:
        """Of the forward pass, and as many of each gradient; without those on padding."""
        if self.kind not in ("conv", "dense"):
            return 0
        return self.batch * self.in_channels * self.out_channels * taps_inside(self.window)

    @property
    def elements(self) -> int:
        """Numbers that any direction reads or writes at least."""
        return sum(map(np.prod, self.shapes))


def arraycnn_tasks(operation: Operation) -> Tasks:
    """An operation's forward pass and gradients, on batch-last arrays."""
    from arraycnn import get_backend

    backend = get_backend("cpu")
    x, weight, delta = operation.operands()
    x, delta, window = backend.batch_last(x), backend.batch_last(delta), operation.window
    if operation.kind == "conv":
        return {
            "forward": lambda: backend.convolution(x, weight, None, window, 1),
            "input grad": lambda: backend.convolution_input_grad(delta, weight, window, 1),
            "weight grad": lambda: backend.convolution_weight_grad(
                x, delta, weight.shape, window, 1
            ),
        }
    if operation.kind == "dense":
        return {
            "forward": lambda: backend.dense(x, weight, None),
            "input grad": lambda: backend.dense_input_grad(delta, weight),
            "weight grad": lambda: backend.dense_weight_grad(x, delta),
        }
    if operation.kind == "max_pool":
        _, argmax = backend.max_pool_argmax(x, window)
        return {
            "forward": lambda: backend.max_pool(x, window),
            "input grad": lambda: backend.max_pool_grad(argmax, delta, window),
        }
    if operation.kind == "relu":
        y = backend.relu(x)
        return {
            "forward": lambda: backend.relu(x),
            "input grad": lambda: backend.relu_grad(y, delta),
        }

    def statistics() -> tuple[Any, Any]:
        mean, var = backend.channel_moments(x)
        return mean, 1 / np.sqrt(var + 1e-5)

    def normalise() -> Any:
        mean, inverse_std = statistics()
        return backend.scale_shift(x, weight * inverse_std, -mean * weight * inverse_std)

    mean, inverse_std = statistics()
    return {
        "forward": normalise,
        "all grads": lambda: backend.batch_norm_grad(x, mean, inverse_std, weight, delta),
    }


def torch_tasks(
    operation: Operation, *, channels_last: bool = False, compiled: bool = False
) -> Tasks:
    """The same in PyTorch, the gradients as its autograd calls them."""
    import torch
    from torch.nn import functional as F

    aten = torch.ops.aten
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, weight, delta = (
        torch.from_numpy(a).contiguous(memory_format=layout) if a.ndim == 4 else torch.from_numpy(a)
        for a in operation.operands()
    )
    size = operation.kernel
    if operation.kind == "conv":
        back = partial(
            aten.convolution_backward, delta, x, weight, None, [1, 1], [size // 2] * 2, [1, 1],
            False, [0, 0], 1,
        )  # fmt: skip
        tasks = {
            "forward": lambda: F.conv2d(x, weight, padding=size // 2),
            "input grad": lambda: back((True, False, False))[0],
            "weight grad": lambda: back((False, True, False))[1],
        }
    elif operation.kind == "dense":
        tasks = {
            "forward": lambda: F.linear(x, weight),
            "input grad": lambda: delta @ weight,
            "weight grad": lambda: delta.T @ x,
        }
    elif operation.kind == "max_pool":
        pool_back, stride = aten.max_pool2d_with_indices_backward, [size, size]
        _, indices = F.max_pool2d(x, size, return_indices=True)
        tasks = {
            "forward": lambda: F.max_pool2d(x, size),
            "input grad": lambda: pool_back(
                delta, x, stride, stride, [0, 0], [1, 1], False, indices
            ),
        }
    elif operation.kind == "relu":
        y = F.relu(x)
        tasks = {
            "forward": lambda: F.relu(x),
            "input grad": lambda: aten.threshold_backward(delta, y, 0),
        }
    else:
        zero, eps, norm_back = torch.zeros_like(weight), 1e-5, aten.native_batch_norm_backward
        _, mean, inverse_std = torch.native_batch_norm(x, weight, zero, None, None, True, 0.1, eps)
        tasks = {
            "forward": lambda: F.batch_norm(x, None, None, weight, zero, training=True, eps=eps),
            "all grads": lambda: norm_back(
                delta, x, weight, None, None, mean, inverse_std, True, eps, [True] * 3
            ),
        }
    if compiled:
        return {name: torch.compile(task, dynamic=False) for name, task in tasks.items()}
    return tasks
