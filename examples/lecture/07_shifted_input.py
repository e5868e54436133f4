# %% [markdown]
# # 7. The shifting input
#
# A convolution is equivariant: with $T_s$, the shift by s pixels,
#
# $$f(T_s\, x) = T_s\, f(x) \tag{15}$$
#
# Max pooling makes the result nearly *invariant*: a maximum stays the same until it leaves its
# window. What does that buy a classifier? Three networks learn digits in the middle of the image
# and are then tested on shifted ones.

# %%
import argparse
from typing import Any

import common
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import arraycnn as ac

MARGIN = 4  # pixels around each image, so that a shifted digit stays whole
SHIFTS = range(MARGIN + 1)
STYLES = {
    "MLP": {"color": common.VERMILION, "marker": "^", "linestyle": ":"},
    "CNN without pooling": {"color": common.ORANGE, "marker": "s", "linestyle": "--"},
    "CNN with pooling": {"color": common.BLUE, "marker": "o", "linestyle": "-"},
}

# %% [markdown]
# ## Three classifiers
#
# The convolutional ones differ in the pooling alone, and in what follows from it for the size of
# the dense classifier.


# %%
def networks(size: int, seed: int, backend: Any) -> dict[str, ac.Sequential]:
    """Untrained classifiers of images (N, 1, size, size)."""
    quarter = size // 4
    cnn = [ac.Conv2d(1, 16, 3, padding=1), ac.ReLU(), ac.Conv2d(16, 32, 3, padding=1), ac.ReLU()]
    pooled = [
        ac.Conv2d(1, 16, 3, padding=1), ac.ReLU(), ac.MaxPool2d(2),
        ac.Conv2d(16, 32, 3, padding=1), ac.ReLU(), ac.MaxPool2d(2),
    ]  # fmt: skip
    classifier = ac.Dense(32 * size * size, 10)
    pooled_classifier = ac.Dense(32 * quarter * quarter, 10)
    where: dict[str, Any] = {"seed": seed, "backend": backend}
    return {
        "MLP": ac.models.mlp(size * size, (128,), **where),
        "CNN without pooling": ac.Sequential(*cnn, ac.Flatten(), classifier, **where),
        "CNN with pooling": ac.Sequential(*pooled, ac.Flatten(), pooled_classifier, **where),
    }


def shifted(images: Any, shift: int) -> list[Any]:
    """The images moved by ``shift`` pixels to each of the four sides; the margin takes them up."""
    return [np.roll(images, sign * shift, axis=axis) for axis in (2, 3) for sign in (-1, 1)]


# %% [markdown]
# ## What a shift changes inside
#
# Two numbers for the first layers of the trained CNN. The error of (15) compares f(x), shifted,
# with f of the shifted x: it is rounding only. The change compares with f(x) itself, at the same
# place, before and after 2×2 max pooling.


# %%
def change(function: Any, images: Any, shift: int) -> float:
    """‖f(Tₛ x) − f(x)‖ / ‖f(x)‖ over all images and the four directions."""
    before = function(images)
    changes = [np.linalg.norm(function(moved) - before) for moved in shifted(images, shift)]
    return float(np.mean(changes) / np.linalg.norm(before))


def equivariance_error(function: Any, images: Any, shift: int) -> float:
    """The largest |f(Tₛ x) − Tₛ f(x)|, relative to the largest |f(x)|."""
    before = function(images)
    inner = (..., slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))  # away from the border
    pairs = zip(shifted(images, shift), shifted(before, shift), strict=True)
    errors = [np.abs(function(moved) - after)[inner].max() for moved, after in pairs]
    return float(max(errors) / np.abs(before).max())


def stages(cnn: ac.Sequential) -> dict[str, Any]:
    """The image, and the output of each stage of the CNN with pooling, as functions of images."""

    def upto(count: int) -> Any:
        part = cnn[:count]
        return lambda images: cnn.backend.to_numpy(part(images))

    return {
        "image": lambda images: images,
        "convolution, ReLU": upto(2),
        "… 2×2 max pooling": upto(3),
        "… convolution, ReLU": upto(5),
        "… 2×2 max pooling again": upto(6),
    }


# %% [markdown]
# ## The picture


# %%
def draw(accuracies: dict[str, Any], changes: dict[str, list[float]], title: str) -> Figure:
    figure = Figure(figsize=(9, 4.2))
    left, right = figure.subplots(1, 2)
    for name, values in accuracies.items():  # (seeds, shifts)
        left.plot(SHIFTS, values.mean(axis=0), label=name, **STYLES[name])
        low, high = values.min(axis=0), values.max(axis=0)
        left.fill_between(SHIFTS, low, high, color=STYLES[name]["color"], alpha=0.15, linewidth=0)
    left.set(xlabel="shift (pixels)", ylabel="test accuracy", title=title, ylim=(0, 1.02))
    left.yaxis.set_major_formatter(PercentFormatter(1))
    left.legend()
    colours = (common.BLACK, common.ORANGE, common.VERMILION, common.SKY, common.BLUE)
    for (name, values), colour, marker in zip(changes.items(), colours, "os^vD", strict=True):
        right.plot(SHIFTS, values, color=colour, marker=marker, label=name)
    right.set(xlabel="shift (pixels)", ylabel="relative change of the output",
              title="inside the CNN with pooling")  # fmt: skip
    right.legend()
    for axes in (left, right):
        axes.grid()
        axes.set_xticks(list(SHIFTS))
    return figure


# %%
def main(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, list[float]], float]:
    name, dataset = common.load_data(options)
    border = ((0, 0), (0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))
    dataset = dataset._replace(
        train_images=np.pad(dataset.train_images, border),
        test_images=np.pad(dataset.test_images, border),
    )
    size = dataset.train_images.shape[-1]
    rows: dict[str, list[list[float]]] = {network: [] for network in STYLES}
    for seed in range(options.seed, options.seed + options.seeds):
        for network, model in networks(size, seed, options.backend).items():
            for _ in common.training(model, dataset, epochs=options.epochs, lr=0.03, seed=seed):
                pass
            rows[network].append(
                [
                    np.mean([common.accuracy(model, moved, dataset.test_labels)
                             for moved in shifted(dataset.test_images, shift)])
                    for shift in SHIFTS
                ]
            )  # fmt: skip
    accuracies = {network: np.array(values) for network, values in rows.items()}

    functions, some = stages(model), dataset.test_images[:200]  # the last model has pooling
    changes = {
        stage: [change(function, some, shift) for shift in SHIFTS]
        for stage, function in functions.items()
    }
    error = max(equivariance_error(functions["convolution, ReLU"], some, shift) for shift in SHIFTS)
    title = f"{name}, {len(dataset.train_images):,} training images"
    common.save(draw(accuracies, changes, title), options.out / "shifted_input.png")
    print(f"equivariance error of the first convolution: {error:.1e}")
    print("| network | " + " | ".join(f"shift {shift}" for shift in SHIFTS) + " |")
    print("|---" * (1 + len(SHIFTS)) + "|")
    for network, values in accuracies.items():
        cells = " | ".join(f"{accuracy:.1%}" for accuracy in values.mean(axis=0))
        print(f"| {network} | {cells} |")
    return accuracies, changes, error


def parser() -> common.Parser:
    result = common.parser("Accuracy of classifiers on shifted images", datasets=common.GREY)
    result.add_argument("--seeds", type=common.at_least(1), default=3, help="how many (default: 3)")
    result.add_argument("--epochs", type=common.at_least(1), default=10, help="(default: 10)")
    return result


if __name__ == "__main__":
    common.run(main, parser())
