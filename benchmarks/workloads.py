"""The networks that are compared, once in arraycnn and once in PyTorch, with the same work."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from measure import Tasks


@dataclass(frozen=True)
class Workload:
    """A network, its input and the batch it is measured with."""

    tasks = ("train", "infer")
    name: str
    model: str
    batch: int
    image: tuple[int, int, int]

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        images = rng.standard_normal((self.batch, *self.image), dtype=np.float32)
        return images, rng.integers(0, 10, self.batch)


WORKLOADS = [
    Workload("lenet5-64", "lenet5", 64, (1, 28, 28)),
    Workload("lenet5-256", "lenet5", 256, (1, 28, 28)),
    Workload("two-layer-cnn-128", "two_layer_cnn", 128, (1, 28, 28)),
    Workload("resnet20-128", "resnet", 128, (3, 32, 32)),
    Workload("lenet5-1", "lenet5", 1, (1, 28, 28)),
]


def arraycnn_model(workload: Workload, backend: str = "cpu") -> Any:
    import arraycnn as ac

    build = {"lenet5": ac.models.lenet5, "two_layer_cnn": ac.models.two_layer_cnn,
             "resnet": ac.models.resnet}[workload.model]  # fmt: skip
    return build(seed=0, backend=backend)


def arraycnn_steps(workload: Workload, backend: str = "cpu") -> Tasks:
    """A training step, which returns the loss, and inference, through the public API."""
    import arraycnn as ac
    from arraycnn import functional as F

    model = arraycnn_model(workload, backend)
    optimizer = ac.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = workload.data()

    def train() -> float:
        logits, backward = model.forward(images)
        loss, grad_logits = F.softmax_cross_entropy(logits, labels)
        backward(grad_logits, input_grad=False)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    def infer() -> Any:
        logits = model(images)
        ac.get_backend(backend).synchronize()
        return logits

    return {"train": train, "infer": infer}


def torch_network(workload: Workload) -> Any:
    """The same network as a torch module."""
    from torch import nn

    class Residual(nn.Module):
        def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
                nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )
            self.shortcut = nn.Identity()
            if stride > 1 or in_channels != out_channels:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                    nn.BatchNorm2d(out_channels),
                )
            self.relu = nn.ReLU()

        def forward(self, x: Any) -> Any:
            return self.relu(self.body(x) + self.shortcut(x))

    if workload.model == "lenet5":
        return nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
        )  # fmt: skip
    if workload.model == "two_layer_cnn":
        return nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(3136, 10),
        )  # fmt: skip
    layers: list[Any] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for stage in range(3):
        for block in range(3):
            layers.append(Residual(channels, 16 << stage, 2 if stage and not block else 1))
            channels = 16 << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def torch_steps(
    workload: Workload, *, channels_last: bool = False, compiled: bool = False
) -> Tasks:
    """The same in PyTorch, from the same weights."""
    import torch

    network = torch_network(workload)
    weights = arraycnn_model(workload).parameters()
    with torch.no_grad():
        for parameter, weight in zip(network.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(weight.data))
    images, labels = map(torch.from_numpy, workload.data())
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    run = torch.compile(network, dynamic=False) if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    loss_function = torch.nn.CrossEntropyLoss()

    def train() -> float:
        network.train()
        optimizer.zero_grad()
        loss = loss_function(run(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    def infer() -> Any:
        network.eval()
        with torch.inference_mode():
            return run(images)

    return {"train": train, "infer": infer}
