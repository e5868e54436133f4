"""Write networks.npz: small PyTorch networks in float64, in training and in inference.

Run by hand with PyTorch installed: ``python tests/oracle/make_network_oracle.py``. The test-suite
reads the file and does not need PyTorch.

Contents, for each network: ``<name>/keys``: the keys of its state dict in order; ``state/<key>``
before and ``after/<key>`` after the training step; ``x``; ``inference``: the output in eval mode;
``training``: the output in training mode; ``grad_output``; ``grad_x`` and ``grad/<key>``: the
gradients that it gives in training mode. ``torch``: the version.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn


class Residual(nn.Module):
    def __init__(self, body, shortcut=None):
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x):
        return self.body(x) + self.shortcut(x)


class GlobalAvgPool(nn.Module):
    def forward(self, x):
        return x.flatten(2).mean(2)


NETWORKS = {
    "images": (
        (4, 2, 8, 8),
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
            nn.BatchNorm2d(6, eps=1e-3, momentum=0.3),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 3, 3, stride=2, padding=1, output_padding=1),
            nn.LeakyReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 5),
        ),
    ),
    "signals": (
        (5, 2, 13),
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, dilation=2, padding=2),
            nn.BatchNorm1d(4),
            nn.ELU(),
            nn.MaxPool1d(3, stride=2, padding=1),
            nn.ConvTranspose1d(4, 3, 2, stride=2),
            nn.Tanh(),
            nn.Conv1d(3, 4, 3),
            nn.SELU(),
            nn.AvgPool1d(2),
            nn.Flatten(),
            nn.Linear(24, 6),
            nn.BatchNorm1d(6),
            nn.GELU(),
            nn.Linear(6, 3, bias=False),
            nn.Softplus(),
        ),
    ),
    "volumes": (
        (3, 1, 6, 5, 6),
        lambda: nn.Sequential(
            nn.Conv3d(1, 3, 3, padding=(1, 0, 1)),
            nn.BatchNorm3d(3),
            nn.Sigmoid(),
            nn.MaxPool3d(2, ceil_mode=True),
            nn.ConvTranspose3d(3, 2, 2, stride=2),
            nn.GELU(approximate="tanh"),
            nn.AvgPool3d(2),
            nn.Flatten(),
            nn.Linear(36, 4),
            nn.Softmax(dim=1),
        ),
    ),
    "residual": (
        (4, 3, 7, 7),
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))),
            nn.ReLU(),
            Residual(
                nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)),
                nn.Sequential(nn.Conv2d(4, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6)),
            ),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(3),
            GlobalAvgPool(),
            nn.Linear(6, 3),
        ),
    ),
}


def record(name, shape, network):
    generator = np.random.default_rng(0)
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            values = generator.standard_normal(tensor.shape) * 0.5
            tensor.copy_(
                torch.from_numpy(np.asarray(abs(values) + 0.5 if "var" in key else values))
            )
    arrays = {"keys": np.array(list(network.state_dict()))}
    arrays |= {f"state/{key}": t.numpy().copy() for key, t in network.state_dict().items()}
    x = torch.from_numpy(generator.standard_normal(shape)).requires_grad_()
    arrays["x"] = x.detach().numpy()
    arrays["inference"] = network.eval()(x).detach().numpy()
    y = network.train()(x)
    arrays["training"] = y.detach().numpy()
    grad_output = torch.from_numpy(generator.standard_normal(tuple(y.shape)))
    arrays["grad_output"] = grad_output.numpy()
    y.backward(grad_output)
    arrays["grad_x"] = x.grad.numpy()
    arrays |= {f"grad/{key}": p.grad.numpy() for key, p in network.named_parameters()}
    arrays |= {f"after/{key}": t.numpy() for key, t in network.state_dict().items()}
    return {f"{name}/{key}": array for key, array in arrays.items()}


def main():
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    arrays = {"torch": np.array(torch.__version__)}
    for name, (shape, make) in NETWORKS.items():
        arrays |= record(name, shape, make())
    np.savez_compressed(Path(__file__).with_name("networks.npz"), **arrays)


if __name__ == "__main__":
    main()
