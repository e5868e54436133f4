"""Write graphs.npz: the networks of tests/graph_networks.py in PyTorch, float64.

Run by hand with PyTorch installed: ``python tests/oracle/make_graph_oracle.py``. The test-suite
reads the file and does not need PyTorch.

Contents, for each network: ``state/<key>`` before and ``after/<key>`` after a training pass;
``x/<i>``; ``inference/<i>`` and ``training/<i>``: the outputs; ``grad_output/<i>``; ``grad_x/<i>``
and ``grad/<key>``: the gradients that these give in training.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from graph_networks import NETWORKS  # noqa: E402

MODULES = {
    "Conv2d": lambda c: nn.Conv2d(
        c["in_channels"], c["out_channels"], c["kernel_size"], c["stride"], c["padding"],
        bias=c["bias"],
    ),
    "ConvTranspose2d": lambda c: nn.ConvTranspose2d(
        c["in_channels"], c["out_channels"], c["kernel_size"], c["stride"]
    ),
    "BatchNorm": lambda c: nn.BatchNorm2d(c["num_features"]),
    "Dense": lambda c: nn.Linear(c["in_features"], c["out_features"]),
    "ReLU": lambda c: nn.ReLU(),
    "Sigmoid": lambda c: nn.Sigmoid(),
    "MaxPool2d": lambda c: nn.MaxPool2d(c["kernel_size"], c["stride"], c["padding"]),
}  # fmt: skip


def multiply(a, b):
    return a * (b if a.ndim == b.ndim else b[:, :, None, None])


FUNCTIONS = {
    "Concat": lambda *xs: torch.cat(xs, 1),
    "Add": lambda *xs: sum(xs[1:], xs[0]),
    "Multiply": multiply,
    "GlobalAvgPool": lambda x: x.flatten(2).mean(2),
}


class TorchGraph(nn.Module):
    """The same nodes with PyTorch's modules."""

    def __init__(self, graph):
        super().__init__()
        made = {}
        self.steps, self.names, self.results = [], graph.inputs, graph.outputs
        for name, layer, sources in graph.nodes:
            kind = type(layer).__name__
            if kind in MODULES and id(layer) not in made:
                made[id(layer)] = MODULES[kind](layer.config())
            function = made.get(id(layer)) or FUNCTIONS[kind]
            if isinstance(function, nn.Module):
                self.add_module(name, function)
            self.steps.append((name, function, sources))

    def forward(self, *xs):
        values = dict(zip(self.names, xs, strict=True))
        for name, function, sources in self.steps:
            values[name] = function(*(values[source] for source in sources))
        return [values[name] for name in self.results]


def main():
    rng = np.random.default_rng(0)
    stored = {"torch": np.array(torch.__version__)}
    for name, (make, shapes) in NETWORKS.items():
        network = TorchGraph(make()).double()
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(0.5 * rng.standard_normal(tensor.shape)))
        for key, tensor in network.state_dict().items():
            if key.endswith("running_var"):
                tensor.abs_().add_(0.5)
        state = {key: tensor.numpy().copy() for key, tensor in network.state_dict().items()}
        xs = [torch.from_numpy(rng.standard_normal(shape)).requires_grad_() for shape in shapes]
        inference = network.eval()(*xs)
        training = network.train()(*xs)
        grads = [torch.from_numpy(rng.standard_normal(y.shape)) for y in training]
        torch.autograd.backward(training, grads)
        after = network.state_dict()
        found = {
            **{f"state/{key}": array for key, array in state.items()},
            **{f"after/{key}": t.numpy() for key, t in after.items() if "running" in key},
            **{f"grad/{key}": p.grad.numpy() for key, p in network.named_parameters()},
        }
        grad_x = [x.grad for x in xs]
        for what, tensors in (
            ("x", xs),
            ("inference", inference),
            ("training", training),
            ("grad_output", grads),
            ("grad_x", grad_x),
        ):
            found |= {f"{what}/{i}": t.detach().numpy() for i, t in enumerate(tensors)}
        stored |= {f"{name}/{key}": array for key, array in found.items()}
    np.savez_compressed(Path(__file__).with_name("graphs.npz"), **stored)


if __name__ == "__main__":
    main()
