"""Networks and operations in DeZero, the framework of the book "Deep Learning from Scratch 3".

DeZero is older than NumPy 2. Two things are mended here: `np.int`, which it names, is put back; and
the Python numbers in its formulas become float32, without which all gradients would be float64.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from measure import Tasks
from operations import Operation
from peers import NETWORKS, initial_state
from workloads import Workload

vars(np).setdefault("int", int)

import dezero  # noqa: E402
from dezero import functions as F  # noqa: E402
from dezero import functions_conv  # noqa: E402

DECAY, EPS = 0.9, 1e-5


def as_array(x: Any, array_module: Any = np) -> Any:
    if type(x) in (int, float):
        return np.array(x, np.float32)
    return np.asarray(x) if np.isscalar(x) else x


dezero.core.as_array = as_array


class Net:
    """The layers of one pass, which take parameters and averages one after another."""

    def __init__(self, parameters: list[Any], averages: list[Any]) -> None:
        self.parameters, self.averages = iter(parameters), iter(averages)

    def conv(self, x: Any, stride: int = 1, padding: int = 0, bias: bool = True) -> Any:
        weight = next(self.parameters)
        return F.conv2d(x, weight, next(self.parameters) if bias else None, stride, padding)

    def norm(self, x: Any) -> Any:
        scale, shift = next(self.parameters), next(self.parameters)
        mean, var = next(self.averages), next(self.averages)  # updated in place
        return F.BatchNorm(mean, var, DECAY, EPS)(x, scale, shift)

    def relu(self, x: Any) -> Any:
        return F.relu(x)

    def max_pool(self, x: Any) -> Any:
        return F.pooling(x, 2, 2)

    def plane_mean(self, x: Any) -> Any:
        return F.flatten(F.average_pooling(x, x.shape[2:]))

    def flatten(self, x: Any) -> Any:
        return F.flatten(x)

    def dense(self, x: Any) -> Any:
        return F.linear(x, next(self.parameters), next(self.parameters))


def steps(workload: Workload) -> Tasks:
    """A training step and inference."""
    network = NETWORKS[workload.model]
    weights, averages = initial_state(workload)
    parameters = [dezero.Parameter(w.T.copy() if w.ndim == 2 else w) for w in weights]
    owner = dezero.Layer()
    for index, parameter in enumerate(parameters):
        setattr(owner, f"parameter{index}", parameter)
    optimizer = dezero.optimizers.MomentumSGD(lr=0.01, momentum=0.9).setup(owner)
    images, labels = workload.data()
    labels = labels.astype(np.uint8)  # as in MNIST; wider integers make gradients float64

    def train() -> float:
        loss = F.softmax_cross_entropy(network(Net(parameters, averages), images), labels)
        owner.cleargrads()
        loss.backward()
        optimizer.update()
        return float(loss.data)

    def infer() -> Any:
        with dezero.no_grad(), dezero.test_mode():
            return network(Net(parameters, averages), images).data

    return {"train": train, "infer": infer}


def tasks(operation: Operation) -> Tasks:
    """An operation and its gradients, these as its ``backward`` calls them."""
    x, weight, delta = map(dezero.Variable, operation.operands())
    size = operation.kernel
    calls: dict[str, Callable[[], Any]]
    if operation.kind == "conv":
        padding = size // 2
        function = functions_conv.Conv2d(1, padding)
        function(x, weight, None)
        calls = {
            "forward": lambda: F.conv2d(x, weight, None, 1, padding),
            "input grad": lambda: F.deconv2d(delta, weight, None, 1, padding, x.shape[2:]),
            "weight grad": lambda: functions_conv.Conv2DGradW(function)(x, delta),
        }
    elif operation.kind == "dense":
        across = dezero.Variable(weight.data.T.copy())  # (in, out), as DeZero has it
        calls = {
            "forward": lambda: F.linear(x, across),
            "input grad": lambda: F.matmul(delta, across.T),
            "weight grad": lambda: F.matmul(x.T, delta).T,
        }
    elif operation.kind == "batch_norm":
        zero, one = np.zeros_like(weight.data), np.ones_like(weight.data)
        function = F.BatchNorm(zero, one, DECAY, EPS)
        shift = dezero.Variable(zero.copy())
        calls = {
            "forward": lambda: function(x, weight, shift),
            "all grads": lambda: function.backward(delta),
        }
    else:
        function = F.ReLU() if operation.kind == "relu" else functions_conv.Pooling(size, size)
        calls = {"forward": lambda: function(x), "input grad": lambda: function.backward(delta)}
    calls["forward"]()  # what the gradients need
    return {name: partial(arrays, call) for name, call in calls.items()}


def arrays(call: Callable[[], Any]) -> Any:
    returned = call()
    return tuple(v.data for v in returned) if isinstance(returned, tuple) else returned.data
