"""Networks and operations in JAX, compiled as a whole.

Images are (N, H, W, C) and kernels (KH, KW, C, O), which XLA is quicker with on a CPU.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from measure import Tasks
from operations import Operation
from peers import NETWORKS, initial_state
from workloads import Workload

EPS = 1e-5


class Net:
    """The layers of one pass, which take parameters and averages one after another."""

    def __init__(
        self, parameters: Sequence[Any], averages: Sequence[Any], training: bool = False
    ) -> None:
        self.parameters, self.averages = iter(parameters), iter(averages)
        self.training = training
        self.new_averages: list[Any] = []

    def conv(self, x: Any, stride: int = 1, padding: int = 0, bias: bool = True) -> Any:
        y = convolution(x, next(self.parameters), stride, padding)
        return y + next(self.parameters) if bias else y

    def norm(self, x: Any) -> Any:
        scale, shift = next(self.parameters), next(self.parameters)
        mean, var = next(self.averages), next(self.averages)
        if self.training:
            averages = mean, var
            mean, var = moments(x)
            count = x.size // x.shape[-1]
            for average, new in zip(averages, (mean, var * count / (count - 1)), strict=True):
                self.new_averages.append(0.9 * average + 0.1 * new)
        return normalise(x, mean, var, scale, shift)

    def relu(self, x: Any) -> Any:
        return jax.nn.relu(x)

    def max_pool(self, x: Any) -> Any:
        return max_pool(x, 2)

    def plane_mean(self, x: Any) -> Any:
        return x.mean((1, 2))

    def flatten(self, x: Any) -> Any:
        return x.reshape(len(x), -1)

    def dense(self, x: Any) -> Any:
        return x @ next(self.parameters) + next(self.parameters)


def convolution(x: Any, kernel: Any, stride: int, padding: int) -> Any:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def max_pool(x: Any, size: int) -> Any:
    window = (1, size, size, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


def moments(x: Any) -> tuple[Any, Any]:
    """Mean and variance of the channels in one pass over x, as JAX's layer libraries do it."""
    mean = x.mean((0, 1, 2))
    return mean, (x * x).mean((0, 1, 2)) - mean**2


def normalise(x: Any, mean: Any, var: Any, scale: Any, shift: Any) -> Any:
    return (x - mean) * (lax.rsqrt(var + EPS) * scale) + shift


def steps(workload: Workload) -> Tasks:
    """A training step, the update included, and inference."""
    network = NETWORKS[workload.model]
    weights, averages = initial_state(workload)
    parameters = channels_last(weights)
    state = jax.device_put((parameters, [np.zeros_like(p) for p in parameters], averages))
    images, labels = workload.data()
    images, labels = jax.device_put((images.transpose(0, 2, 3, 1), labels.astype(np.int32)))

    def update(state: Any, images: Any, labels: Any) -> Any:
        parameters, velocities, averages = state

        def loss_of(parameters: Any) -> Any:
            net = Net(parameters, averages, training=True)
            log_probabilities = jax.nn.log_softmax(network(net, images))
            loss = -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()
            return loss, net.new_averages

        (loss, averages), grads = jax.value_and_grad(loss_of, has_aux=True)(parameters)
        velocities = [0.9 * v + g for v, g in zip(velocities, grads, strict=True)]
        parameters = [p - 0.01 * v for p, v in zip(parameters, velocities, strict=True)]
        return loss, (parameters, velocities, averages)

    compiled = jax.jit(update, donate_argnums=0)
    infer = jax.jit(lambda state, images: network(Net(state[0], state[2]), images))

    def train() -> float:
        nonlocal state
        loss, state = compiled(state, images, labels)
        return float(loss)

    return {"train": train, "infer": lambda: infer(state, images).block_until_ready()}


def channels_last(weights: Sequence[np.ndarray]) -> list[np.ndarray]:
    """PyTorch's parameters: kernels as HWIO; dense weights as (in, out), for rows (H, W, C)."""
    converted, channels = [], 0
    for weight in weights:
        if weight.ndim == 4:
            channels = len(weight)
            weight = weight.transpose(2, 3, 1, 0)
        elif weight.ndim == 2:
            planes = weight.reshape(len(weight), channels, -1)  # (O, C, H*W)
            channels = len(weight)
            weight = planes.transpose(2, 1, 0).reshape(-1, channels)
        converted.append(weight)
    return converted


def tasks(operation: Operation) -> Tasks:
    """An operation and its gradients, the gradients from what a forward pass keeps for them."""
    x, weight, delta = operation.operands()
    if x.ndim == 4:
        x, delta = x.transpose(0, 2, 3, 1), delta.transpose(0, 2, 3, 1)
    if weight.ndim == 4:
        weight = weight.transpose(2, 3, 1, 0)
    x, weight, delta = jax.device_put((x, weight, delta))
    size = operation.kernel
    if operation.kind in ("conv", "dense"):

        def product(x: Any, w: Any) -> Any:
            return convolution(x, w, 1, size // 2) if operation.kind == "conv" else x @ w.T

        return {
            "forward": forward(product, x, weight),
            "input grad": gradient(lambda x: product(x, weight), delta, x),
            "weight grad": gradient(lambda w: product(x, w), delta, weight),
        }
    if operation.kind == "batch_norm":

        def norm(x: Any, scale: Any, shift: Any) -> Any:
            return normalise(x, *moments(x), scale, shift)

        zero = jnp.zeros_like(weight)
        return {
            "forward": forward(norm, x, weight, zero),
            "all grads": gradient(norm, delta, x, weight, zero),
        }
    function = jax.nn.relu if operation.kind == "relu" else partial(max_pool, size=size)
    return {"forward": forward(function, x), "input grad": gradient(function, delta, x)}


def forward(function: Callable[..., Any], *inputs: Any) -> Callable[[], Any]:
    compiled = jax.jit(function)
    return lambda: compiled(*inputs).block_until_ready()


def gradient(function: Callable[..., Any], delta: Any, *inputs: Any) -> Callable[[], Any]:
    _, backward = jax.vjp(function, *inputs)
    compiled = jax.jit(lambda backward, delta: backward(delta))  # kept arrays are arguments
    return lambda: jax.block_until_ready(compiled(backward, delta))
