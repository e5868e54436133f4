# %% [markdown]
# # 1. Convolution and cross-correlation
#
# The convolution of a signal x with a kernel w weighs the past with w:
#
# $$(x * w)(t) = \sum_a x(a)\, w(t - a) \tag{1}$$
#
# and for an image I and a kernel K of two dimensions
#
# $$(I * K)(i, j) = \sum_m \sum_n I(m, n)\, K(i - m, j - n) \tag{2}$$
#
# Networks compute the cross-correlation, which does not flip the kernel, and call it convolution:
#
# $$(I \star K)(i, j) = \sum_m \sum_n I(i + m, j + n)\, K(m, n) \tag{3}$$
#
# For learnt kernels it makes no difference: the network learns the flipped one.

# %%
import argparse
from typing import Any

import common
import numpy as np
from matplotlib.figure import Figure

from arraycnn import functional as F

try:
    from scipy import signal as scipy_signal
except ImportError:  # the comparison with SciPy is left out then
    scipy_signal = None


# %% [markdown]
# ## By the definition
#
# Both functions add up every product of an element of x with an element of w that the formula
# names. They keep every place where the two overlap, so the result has size + kernel − 1 elements.


# %%
def convolution(x: Any, w: Any) -> Any:
    """(x ∗ w)(t) = Σ x(a) w(t − a), for any number of dimensions."""
    y = np.zeros(np.add(x.shape, w.shape) - 1)
    for a in np.ndindex(x.shape):
        for b in np.ndindex(w.shape):  # b = t − a
            y[tuple(np.add(a, b))] += x[a] * w[b]
    return y


def cross_correlation(x: Any, w: Any) -> Any:
    """(x ⋆ w)(t) = Σ x(t + b) w(b), beginning at the first t where the two overlap."""
    y = np.zeros(np.add(x.shape, w.shape) - 1)
    for a in np.ndindex(x.shape):
        for b in np.ndindex(w.shape):  # t = a − b, and the first t is 1 − size of w
            y[tuple(np.subtract(a, b) + w.shape - 1)] += x[a] * w[b]
    return y


# %% [markdown]
# ## By arraycnn
#
# `F.conv1d` and `F.conv2d` are the cross-correlation (3). Flipping the kernel first gives (1), (2).


# %%
def conv(x: Any, w: Any, backend: Any) -> Any:
    """The cross-correlation of two arrays of one or two dimensions, by F.conv1d or F.conv2d."""
    function = F.conv1d if x.ndim == 1 else F.conv2d
    batch, kernels = backend.asarray(x[None, None]), backend.asarray(w[None, None])
    return backend.to_numpy(function(batch, kernels, padding="full"))[0, 0]


def compare(backend: Any) -> dict[str, float]:
    """Largest differences between the definition and the libraries on random arrays."""
    rng = np.random.default_rng(0)
    differences = {}
    for ndim, shape, size in ((1, (20,), (5,)), (2, (12, 9), (4, 3))):
        x, w = rng.standard_normal(shape), rng.standard_normal(size)
        others = {f"F.conv{ndim}d": (conv(x, np.flip(w), backend), conv(x, w, backend))}
        if scipy_signal is not None:
            scipy_results = scipy_signal.convolve(x, w), scipy_signal.correlate(x, w)
            others[f"SciPy, {ndim}-d"] = scipy_results
        for name, (convolved, correlated) in others.items():
            for operation, result, truth in (
                ("convolution", convolved, convolution(x, w)),
                ("cross-correlation", correlated, cross_correlation(x, w)),
            ):
                differences[f"{operation} by {name}"] = np.abs(result - truth).max()
    return differences


# %% [markdown]
# ## What flipping changes
#
# In one dimension, three claps are heard with their echo. Convolution puts the echo where it
# belongs, after the clap; cross-correlation before. In two dimensions, a convolution stamps the
# kernel on every bright point, a cross-correlation stamps it turned by 180°.


# %%
def draw_echo(backend: Any) -> Figure:
    claps = np.zeros(40)
    claps[[5, 18, 24]] = 1.0, 0.6, 0.9
    echo = 0.8 ** np.arange(8.0)
    figure = Figure(figsize=(7, 5.2))
    rows = figure.subplots(4, 1, sharex=True, sharey=True)
    late = conv(claps, np.flip(echo), backend)  # starts at t = 0
    early = conv(claps, echo, backend)  # starts at t = 1 − len(echo)
    for axes, y, start, title, colour in (
        (rows[0], claps, 0, "signal x: three claps", common.BLACK),
        (rows[1], echo, 0, "kernel w: an echo that decays", common.BLACK),
        (rows[2], late, 0, "convolution x ∗ w (1): the echo follows the clap", common.BLUE),
        (rows[3], early, 1 - len(echo),
         "cross-correlation x ⋆ w (3): the echo comes first", common.VERMILION),
    ):  # fmt: skip
        axes.bar(np.arange(len(y)) + start, y, width=0.7, color=colour)
        axes.set_title(title, loc="left")
        axes.set_ylabel("value")
    rows[-1].set(xlabel="time t", xlim=(1 - len(echo) - 1, len(claps)))
    return figure


def draw_stamps(backend: Any) -> Figure:
    points = np.zeros((14, 16))
    for row, column in ((1, 2), (4, 10), (9, 4)):
        points[row, column] = 1
    letter = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]], float)
    rows, columns = letter.shape
    stamped = conv(points, np.flip(letter), backend)
    turned = conv(points, letter, backend)
    # Both start where the overlap begins: there (0, 0) of the image is at (rows − 1, columns − 1).
    turned = np.pad(turned, ((0, rows - 1), (0, columns - 1)))
    stamped = np.pad(stamped, ((rows - 1, 0), (columns - 1, 0)))
    points = np.pad(points, ((rows - 1, rows - 1), (columns - 1, columns - 1)))
    figure = Figure(figsize=(8, 3.4))
    kernel, *others = figure.subplots(1, 4, width_ratios=[1, 3, 3, 3])
    kernel.imshow(letter, cmap="cividis")
    kernel.set_title("kernel K")
    kernel.set(xticks=range(columns), yticks=range(rows), xlabel="n", ylabel="m")
    for axes, image, title in zip(
        others,
        (points, stamped, turned),
        ("image I", "convolution\nI ∗ K (2)", "cross-correlation\nI ⋆ K (3)"),
        strict=True,
    ):
        height, width = image.shape
        axes.imshow(
            image,
            cmap="cividis",
            extent=(0.5 - columns, width - columns + 0.5, height - rows + 0.5, 0.5 - rows),
        )
        for row, column in ((1, 2), (4, 10), (9, 4)):
            axes.plot(column, row, "o", color=common.VERMILION, markersize=4)
        axes.set(title=title, xlabel="column j")
    others[0].set_ylabel("row i")
    return figure


# %%
def main(options: argparse.Namespace) -> dict[str, float]:
    differences = compare(options.backend)
    print("largest difference from the definition")
    for name, difference in differences.items():
        print(f"  {name:32} {difference:.1e}")
    if scipy_signal is None:
        print("  (SciPy is not installed)")
    common.save(draw_echo(options.backend), options.out / "convolution_1d.png")
    common.save(draw_stamps(options.backend), options.out / "convolution_2d.png")
    return differences


def parser() -> common.Parser:
    return common.parser("Convolution and cross-correlation by definition, arraycnn and SciPy")


if __name__ == "__main__":
    common.run(main, parser())
