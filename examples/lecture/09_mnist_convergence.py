# %% [markdown]
# # 9. MNIST, mean convergence
#
# One training says little: weights and the order of the samples are random. Here the lecture's
# network, two convolutions with pooling and a dense classifier, and a dense network with one hidden
# layer are trained from several seeds each. What is shown is the mean over the seeds of
#
# - the training cost of each iteration (cross-entropy of its batch), and
# - the accuracy on the test images, measured during the training,
#
# with their standard deviations. Without options the images are the built-in digits of 8×8 pixels;
# `--data-dir` with MNIST's files gives the figures of the lecture.

# %%
import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import common
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import arraycnn as ac

NETWORKS: dict[str, Callable[..., ac.Sequential]] = {
    "two-layer CNN": lambda size, **where: ac.models.two_layer_cnn(image_size=size, **where),
    "dense network": lambda size, **where: ac.models.mlp(size * size, (128,), **where),
}
LR = {"two-layer CNN": 0.03, "dense network": 0.1}


# %% [markdown]
# ## A curve for every seed


# %%
@dataclass
class Curves:
    """One network trained from several seeds."""

    costs: Any  # (seeds, iterations)
    iterations: Any  # (measurements,)
    accuracies: Any  # (seeds, measurements)
    parameters: int

    @property
    def final(self) -> Any:
        """Test accuracy after training: (seeds,)."""
        return self.accuracies[:, -1]


def train(network: str, dataset: ac.data.Dataset, options: argparse.Namespace) -> Curves:
    """Train ``network`` once for each seed; the test accuracy is measured at even intervals."""
    updates = options.epochs * -(-len(dataset.train_images) // options.batch_size)
    iterations = np.unique(np.linspace(1, updates, options.measurements + 1).astype(int))
    costs, accuracies = [], []
    for seed in range(options.seed, options.seed + options.seeds):
        model = NETWORKS[network](
            dataset.train_images.shape[-1], seed=seed, backend=options.backend
        )
        run = common.training(
            model, dataset, epochs=options.epochs, lr=LR[network], seed=seed,
            batch=options.batch_size,
        )  # fmt: skip
        for iteration, cost in enumerate(run, start=1):
            costs.append(cost)
            if iteration in iterations:
                accuracies.append(common.accuracy(model, dataset.test_images, dataset.test_labels))
        print(f"{network}, seed {seed}: test accuracy {accuracies[-1]:.2%}", flush=True)
    return Curves(
        np.reshape(costs, (options.seeds, updates)),
        iterations,
        np.reshape(accuracies, (options.seeds, len(iterations))),
        sum(parameter.size for parameter in model.parameters()),
    )


# %% [markdown]
# ## Mean and standard deviation in one plot


# %%
def draw(curves: dict[str, Curves], title: str) -> Figure:
    figure = Figure(figsize=(7, 6))
    cost_axes, accuracy_axes = figure.subplots(2, 1, sharex=True)
    for (network, curve), colour, dashes in zip(
        curves.items(), (common.BLUE, common.VERMILION), ("-", "--"), strict=True
    ):
        every = np.arange(1, curve.costs.shape[1] + 1)
        for axes, x, y in (
            (cost_axes, every, smooth(curve.costs)),
            (accuracy_axes, curve.iterations, 1 - curve.accuracies),
        ):
            mean, deviation = y.mean(axis=0), y.std(axis=0)
            low = np.maximum(mean - deviation, y.min(axis=0))  # never below 0: the axis has no 0
            axes.fill_between(x, low, mean + deviation, color=colour, alpha=0.25, linewidth=0)
            axes.plot(x, mean, color=colour, linestyle=dashes, label=network)
    accuracy_axes.set(xlabel="iteration", ylabel="test error", yscale="log")
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(1))
    cost_axes.set(ylabel="training cost", yscale="log", title=title)
    for axes in (cost_axes, accuracy_axes):
        axes.grid(which="both")
        axes.legend(loc="upper right")
    return figure


def smooth(costs: Any, share: float = 0.01) -> Any:
    """Running mean over a share of the iterations, shorter at the start: (seeds, iterations)."""
    width = max(1, round(share * costs.shape[1]))
    sums = np.cumsum(np.pad(costs, ((0, 0), (1, 0))), axis=1)
    stop = np.arange(1, costs.shape[1] + 1)
    start = np.maximum(stop - width, 0)
    return (sums[:, stop] - sums[:, start]) / (stop - start)


def table(curves: dict[str, Curves]) -> str:
    """Final accuracies of all seeds, as Markdown."""
    lines = [
        "| network | parameters | mean | standard deviation | each seed |",
        "|---|---|---|---|---|",
    ]
    for network, curve in curves.items():
        each = ", ".join(f"{accuracy:.2%}" for accuracy in curve.final)
        lines.append(
            f"| {network} | {curve.parameters:,} | {curve.final.mean():.2%} | "
            f"{curve.final.std(ddof=len(curve.final) > 1):.2%} | {each} |"
        )
    return "\n".join(lines)


# %%
def main(options: argparse.Namespace) -> dict[str, Curves]:
    name, dataset = common.load_data(options)
    if options.epochs is None:
        options.epochs = 15 if name == "digits" else 3
    curves = {network: train(network, dataset, options) for network in NETWORKS}
    title = f"{name}: mean and standard deviation over {options.seeds} seeds"
    common.save(draw(curves, title), options.out / "mnist_convergence.png")
    print(table(curves))
    return curves


def parser() -> common.Parser:
    result = common.parser("Mean convergence of a CNN and a dense network", datasets=common.GREY)
    result.add_argument("--seeds", type=common.at_least(1), default=5, help="how many (default: 5)")
    result.add_argument(
        "--epochs", type=common.at_least(1), help="(default: 15 for the digits, else 3)"
    )
    result.add_argument("--batch-size", type=common.at_least(1), default=64)
    result.add_argument(
        "--measurements", type=common.at_least(1), default=12, help="of the test accuracy"
    )
    return result


if __name__ == "__main__":
    common.run(main, parser())
