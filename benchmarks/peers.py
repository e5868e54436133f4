"""The networks of `workloads` once more, for engines that offer functions rather than layers.

``net`` has the layers of one pass (`jax_peer.Net`, `dezero_peer.Net`). Each takes the next of its
parameters, which are arraycnn's initial ones, so that all engines start from the same weights.
"""

from typing import Any

import numpy as np
from workloads import Workload, arraycnn_model


def lenet5(net: Any, x: Any) -> Any:
    x = net.max_pool(net.relu(net.conv(x, padding=2)))
    x = net.flatten(net.max_pool(net.relu(net.conv(x))))
    return net.dense(net.relu(net.dense(net.relu(net.dense(x)))))


def two_layer_cnn(net: Any, x: Any) -> Any:
    x = net.max_pool(net.relu(net.conv(x, padding=2)))
    x = net.max_pool(net.relu(net.conv(x, padding=2)))
    return net.dense(net.flatten(x))


def resnet(net: Any, x: Any) -> Any:
    x = net.relu(net.norm(net.conv(x, padding=1, bias=False)))
    for stage in range(3):
        for block in range(3):
            stride = 2 if stage and not block else 1
            y = net.relu(net.norm(net.conv(x, stride, padding=1, bias=False)))
            y = net.norm(net.conv(y, padding=1, bias=False))
            if stride > 1:
                x = net.norm(net.conv(x, stride, bias=False))
            x = net.relu(y + x)
    return net.dense(net.plane_mean(x))


NETWORKS = {"lenet5": lenet5, "two_layer_cnn": two_layer_cnn, "resnet": resnet}


def initial_state(workload: Workload) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Parameters; and batch norm's running means and variances in turn; as PyTorch has them."""
    model = arraycnn_model(workload)
    parameters = [np.ascontiguousarray(parameter.data) for parameter in model.parameters()]
    return parameters, [a for name, a in model.state_dict().items() if "running_" in name]
