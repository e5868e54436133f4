# %% [markdown]
# # 10. Depth, with and without convolutional structure
#
# More parameters do not make every network better. I. Goodfellow, Y. Bengio and A. Courville show
# it in "Deep learning" (figure 6.7, after Goodfellow et al., "Multi-digit number recognition from
# street view imagery", 2014): test accuracy against the number of parameters for networks with
# three layers, dense and convolutional, and with eleven convolutional layers. The dense one and the
# shallow one stop to profit early, the deep one goes on.
#
# Here the same picture for data that fit on a desk: SVHN's cropped digits when its files are given
# (`--dataset svhn --data-dir …`), MNIST with `--data-dir`, else the built-in digits of 8×8 pixels,
# for which even small networks are good enough: read the differences with the scatter in mind.

# %%
import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import common
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import arraycnn as ac

# %% [markdown]
# ## Three families of networks
#
# Each is made wider and wider. The numbers of layers count those with weights.


# %%
def dense(width: int, channels: int, size: int, **where: Any) -> ac.Sequential:
    """Three dense layers."""
    return ac.models.mlp(channels * size * size, (width, width), **where)


def shallow(width: int, channels: int, size: int, **where: Any) -> ac.Sequential:
    """Two convolutions of 5×5, pooling after each, and a dense layer."""
    layers: list[ac.Layer] = []
    for _ in range(2):
        layers += [ac.Conv2d(channels, width, 5, padding=2), ac.ReLU(), ac.MaxPool2d(2)]
        channels, size = width, size // 2
    return ac.Sequential(*layers, ac.Flatten(), ac.Dense(width * size * size, 10), **where)


def deep(width: int, channels: int, size: int, **where: Any) -> ac.Sequential:
    """Eight convolutions of 3×3, pooling after every fourth, and a dense layer."""
    layers: list[ac.Layer] = []
    for index in range(8):
        layers += [ac.Conv2d(channels, width, 3, padding=1), ac.ReLU()]
        channels = width
        if index % 4 == 3:
            layers.append(ac.MaxPool2d(2))
            size //= 2
    return ac.Sequential(*layers, ac.Flatten(), ac.Dense(width * size * size, 10), **where)


class Family(NamedTuple):
    make: Callable[..., ac.Sequential]
    widths: tuple[int, ...]
    lr: float
    style: dict[str, Any]


FAMILIES = {
    "9 layers, convolutional": Family(
        deep, (6, 9, 13, 18, 26), 0.02, {"color": common.BLUE, "marker": "o", "linestyle": "-"}
    ),
    "3 layers, convolutional": Family(
        shallow, (4, 8, 16, 32, 64), 0.03,
        {"color": common.ORANGE, "marker": "s", "linestyle": "--"},
    ),
    "3 layers, dense": Family(
        dense, (12, 24, 48, 96, 192), 0.05,
        {"color": common.VERMILION, "marker": "^", "linestyle": ":"},
    ),
}  # fmt: skip


# %% [markdown]
# ## One point for every network and seed


# %%
class Points(NamedTuple):
    """Networks of one family, from small to large."""

    parameters: Any  # (widths,)
    accuracies: Any  # (widths, seeds), of the test images


def measure(family: Family, dataset: ac.data.Dataset, options: argparse.Namespace) -> Points:
    _, channels, size, _ = dataset.train_images.shape
    parameters, accuracies = [], []
    for width in family.widths[: options.widths]:
        for seed in range(options.seed, options.seed + options.seeds):
            model = family.make(width, channels, size, seed=seed, backend=options.backend)
            for _ in common.training(
                model, dataset, epochs=options.epochs, lr=family.lr, seed=seed
            ):
                pass
            accuracies.append(common.accuracy(model, dataset.test_images, dataset.test_labels))
        parameters.append(sum(parameter.size for parameter in model.parameters()))
    return Points(np.array(parameters), np.reshape(accuracies, (len(parameters), -1)))


def draw(points: dict[str, Points], title: str) -> Figure:
    figure = Figure(figsize=(7, 4.6))
    axes = figure.subplots()
    for name, (parameters, accuracies) in points.items():
        style = FAMILIES[name].style
        axes.plot(parameters, accuracies.mean(axis=1), label=name, **style)
        axes.scatter(np.repeat(parameters, accuracies.shape[1]), accuracies.ravel(), s=14,
                     color=style["color"], alpha=0.45, linewidth=0)  # fmt: skip
    axes.set(xlabel="number of parameters", ylabel="test accuracy", xscale="log", title=title)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid()
    axes.legend(loc="lower right")
    return figure


# %%
def main(options: argparse.Namespace) -> dict[str, Points]:
    if options.dataset == "svhn" and options.data_dir is None:
        raise ValueError("--dataset svhn needs --data-dir, the folder with train_32x32.mat")
    name, dataset = common.load_data(options)
    points = {}
    print("| network | parameters | mean test accuracy | each seed |\n|---|---|---|---|")
    for family in FAMILIES:
        points[family] = measure(FAMILIES[family], dataset, options)
        for parameters, accuracies in zip(*points[family], strict=True):
            each = ", ".join(f"{accuracy:.2%}" for accuracy in accuracies)
            print(f"| {family} | {parameters:,} | {accuracies.mean():.2%} | {each} |", flush=True)
    title = f"{name}: {len(dataset.train_images):,} training images, {options.seeds} seed(s)"
    common.save(draw(points, title), options.out / "depth.png")
    return points


def parser() -> common.Parser:
    result = common.parser(
        "Test accuracy against number of parameters and depth", datasets=tuple(common.DATASETS)
    )
    result.add_argument("--seeds", type=common.at_least(1), default=3, help="how many (default: 3)")
    result.add_argument("--epochs", type=common.at_least(1), default=10, help="(default: 10)")
    result.add_argument(
        "--widths", type=common.at_least(1), default=5, help="sizes of each family (default: all)"
    )
    return result


if __name__ == "__main__":
    common.run(main, parser())
