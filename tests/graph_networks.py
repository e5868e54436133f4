"""Networks with branches: made here once, by arraycnn for tests and by PyTorch for the oracle."""

from typing import Any

import arraycnn as ac


def _double(name: str, inputs: int, outputs: int, source: str) -> dict[str, Any]:
    """Two convolutions, each with batch norm and ReLU."""
    return {
        f"{name}_conv1": (ac.Conv2d(inputs, outputs, 3, padding=1, bias=False), source),
        f"{name}_norm1": (ac.BatchNorm(outputs), f"{name}_conv1"),
        f"{name}_relu1": (ac.ReLU(), f"{name}_norm1"),
        f"{name}_conv2": (ac.Conv2d(outputs, outputs, 3, padding=1, bias=False), f"{name}_relu1"),
        f"{name}_norm2": (ac.BatchNorm(outputs), f"{name}_conv2"),
        name: (ac.ReLU(), f"{name}_norm2"),
    }


def unet(widths: tuple[int, ...] = (3, 4, 5, 6), image_channels: int = 1) -> ac.Graph:
    """A U-Net (Ronneberger et al., 2015) with one level for each width."""
    nodes: dict[str, Any] = {}
    below, source = image_channels, "x"
    for level, width in enumerate(widths):
        if level:
            nodes[f"pool{level}"] = (ac.MaxPool2d(2), source)
            source = f"pool{level}"
        nodes |= _double(f"down{level}", below, width, source)
        below, source = width, f"down{level}"
    for level, width in reversed([*enumerate(widths[:-1])]):
        nodes[f"rise{level}"] = (ac.ConvTranspose2d(below, width, 2, stride=2), source)
        nodes[f"join{level}"] = (ac.Concat(), f"down{level}", f"rise{level}")
        nodes |= _double(f"up{level}", 2 * width, width, f"join{level}")
        below, source = width, f"up{level}"
    nodes["mask"] = (ac.Conv2d(below, 2, 1), source)
    return ac.Graph(nodes)


def dense_block() -> ac.Graph:
    """DenseNet's (Huang et al., 2017): each layer sees all before it."""
    nodes: dict[str, Any] = {}
    seen, channels = ["x"], 4
    for index in range(3):
        source = seen[0]
        if len(seen) > 1:
            source = f"join{index}"
            nodes[source] = (ac.Concat(), *seen)
        nodes[f"norm{index}"] = (ac.BatchNorm(channels), source)
        nodes[f"relu{index}"] = (ac.ReLU(), f"norm{index}")
        nodes[f"conv{index}"] = (ac.Conv2d(channels, 3, 3, padding=1), f"relu{index}")
        seen.append(f"conv{index}")
        channels += 3
    nodes["all"] = (ac.Concat(), *seen)
    return ac.Graph(nodes)


def inception() -> ac.Graph:
    """GoogLeNet's (Szegedy et al., 2015): kernels of several sizes side by side."""
    return ac.Graph(
        {
            "one": (ac.Conv2d(4, 2, 1), "x"),
            "three_in": (ac.Conv2d(4, 3, 1), "x"),
            "three_relu": (ac.ReLU(), "three_in"),
            "three": (ac.Conv2d(3, 4, 3, padding=1), "three_relu"),
            "five_in": (ac.Conv2d(4, 2, 1), "x"),
            "five_relu": (ac.ReLU(), "five_in"),
            "five": (ac.Conv2d(2, 3, 5, padding=2), "five_relu"),
            "pool": (ac.MaxPool2d(3, stride=1, padding=1), "x"),
            "pooled": (ac.Conv2d(4, 2, 1), "pool"),
            "join": (ac.Concat(), "one", "three", "five", "pooled"),
            "y": (ac.ReLU(), "join"),
        }
    )


def squeeze_excitation() -> ac.Graph:
    """Channels scaled by what they hold on the whole (Hu et al., 2018)."""
    return ac.Graph(
        {
            "conv": (ac.Conv2d(3, 6, 3, padding=1), "x"),
            "mean": (ac.GlobalAvgPool(), "conv"),
            "squeeze": (ac.Dense(6, 2), "mean"),
            "relu": (ac.ReLU(), "squeeze"),
            "excite": (ac.Dense(2, 6), "relu"),
            "gate": (ac.Sigmoid(), "excite"),
            "scaled": (ac.Multiply(), "conv", "gate"),
            "y": (ac.Add(), "scaled", "conv"),
        }
    )


def two_by_two() -> ac.Graph:
    """Two inputs, two outputs, and a convolution that both pass."""
    shared = ac.Conv2d(2, 2, 3, padding=1)
    return ac.Graph(
        {
            "score": (ac.Dense(4, 3), "mean"),
            "a2": (ac.Conv2d(3, 2, 1), "a"),
            "a3": (shared, "a2"),
            "b3": (shared, "b"),
            "sum": (ac.Add(), "a3", "b3", "b"),
            "relu": (ac.ReLU(), "sum"),
            "join": (ac.Concat(), "relu", "b3"),
            "mean": (ac.GlobalAvgPool(), "join"),
            "mask": (ac.Conv2d(4, 1, 3), "join"),
        },
        inputs=("a", "b"),
        outputs=("mask", "score"),
    )


NETWORKS = {
    "unet": (unet, ((2, 1, 16, 24),)),
    "dense_block": (dense_block, ((3, 4, 5, 6),)),
    "inception": (inception, ((2, 4, 6, 5),)),
    "squeeze_excitation": (squeeze_excitation, ((3, 3, 5, 4),)),
    "two_by_two": (two_by_two, ((2, 3, 6, 5), (2, 2, 6, 5))),
}
