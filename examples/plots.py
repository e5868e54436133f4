"""The pictures of a training: learning curve, confusion matrix, first layer's filters.

The colours are told apart with any kind of colour vision: Okabe and Ito's blue and vermilion, one
hue for counts, purple to orange for signed values. Markers and numbers say the same without them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

STYLES: dict[str, dict[str, Any]] = {
    "train": {
        "color": "#D55E00",
        "marker": "o",
        "markersize": 4,
        "linestyle": "--",
        "label": "training, shifted",
    },
    "test": {"color": "#0072B2", "marker": "s", "markersize": 4, "linestyle": "-", "label": "test"},
}
LEAST_ERROR = 1e-4  # where no error is drawn, since a logarithmic axis has no 0
MOST_FILTERS = 32  # a dense layer has more; its first ones are shown


def learning_curve(history: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Loss and error rate on training and test images by epoch, both logarithmic."""
    epochs = [record["epoch"] for record in history]
    figure = Figure(figsize=(9, 4), layout="constrained")
    loss_axes, error_axes = figure.subplots(1, 2)
    for part, style in STYLES.items():
        errors = [1 - record[f"{part}_accuracy"] for record in history]
        label = f"{style['label']}: {errors[-1]:.2%} at the end"
        loss_axes.plot(epochs, [record[f"{part}_loss"] for record in history], **style)
        error_axes.plot(epochs, np.maximum(errors, LEAST_ERROR), **{**style, "label": label})
    loss_axes.set(ylabel="loss")
    error_axes.set(ylabel="error rate (1 - accuracy)")
    for axes, number in ((loss_axes, "{:g}"), (error_axes, "{:g}%")):
        factor = 1 if axes is loss_axes else 100
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda y, _, n=number, f=factor: n.format(f * y))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", xlim=(0.5, epochs[-1] + 0.5))
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def confusion(matrix: Any, class_names: Sequence[str], title: str, path: Path) -> None:
    """Counts of (label, prediction) pairs; the colour is logarithmic so that single errors show."""
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    axes = figure.subplots()
    most = max(int(matrix.max()), 2)
    axes.imshow(np.ma.masked_equal(matrix, 0), cmap="Blues", norm=LogNorm(1, most))
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if count > most**0.6 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
    places = np.arange(len(class_names))
    long_names = max(map(len, class_names)) > 3
    axes.set_xticks(places, class_names, rotation=45 if long_names else 0,
                    ha="right" if long_names else "center")  # fmt: skip
    axes.set_yticks(places, class_names)
    axes.set_xticks(places[1:] - 0.5, minor=True)
    axes.set_yticks(places[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="0.9")
    axes.tick_params(which="both", length=0)
    axes.set(xlabel="predicted class", ylabel="true class")
    errors = int(matrix.sum() - np.trace(matrix))
    axes.set_title(f"{title}: {errors} errors in {int(matrix.sum()):,} test images", fontsize=11)
    figure.savefig(path, dpi=150)


def filters(weights: Any, title: str, path: Path) -> None:
    """Filters (count, height, width) on one scale: purple negative, white 0, orange positive."""
    shown = weights[:MOST_FILTERS]
    columns = min(len(shown), 8)
    rows = -(-len(shown) // columns)
    limit = float(np.abs(shown).max()) or 1.0
    figure = Figure(figsize=(columns + 1.5, rows + 1), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for index, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if index < len(shown):
            image = axes.imshow(shown[index], cmap="PuOr_r", vmin=-limit, vmax=limit)
            axes.set_title(str(index), fontsize=8, pad=2)
    figure.colorbar(image, ax=grid, label="weight", aspect=10 + 5 * rows)
    which = "" if len(shown) == len(weights) else f" ({len(shown)} of {len(weights)})"
    figure.suptitle(f"{title}: filters of the first layer{which}", fontsize=11)
    figure.savefig(path, dpi=150)
