# %% [markdown]
# # 6. Why convolution
#
# A convolution is a linear map, so a dense layer can compute it: with a matrix T for which
#
# $$\mathrm{vec}(h) = T\, \mathrm{vec}(x) \tag{14}$$
#
# The matrix shows three reasons to prefer the convolution (Goodfellow, Bengio, Courville, "Deep
# learning", section 9.2):
#
# - **sparse interactions**: an output depends on the few inputs that the kernel sees; the rest of
#   its row of T is zero;
# - **parameter sharing**: every row holds the same numbers, moved;
# - **equivariance**: what moves in the input moves in the output.

# %%
import argparse
from typing import Any, NamedTuple

import common
import numpy as np
from matplotlib.figure import Figure

import arraycnn as ac
from arraycnn import functional as F

# %% [markdown]
# ## The Toeplitz matrix
#
# Column a of T is the convolution's answer to an image with a single 1 at a. All columns at once
# are the convolution of the batch of all such images.


# %%
def toeplitz(kernel: Any, height: int, width: int, backend: Any) -> Any:
    """The matrix (outputs, inputs) of the convolution of height×width images with ``kernel``."""
    ones = np.eye(height * width, dtype=kernel.dtype).reshape(-1, 1, height, width)
    columns = F.conv2d(backend.asarray(ones), backend.asarray(kernel[None, None]))
    return backend.to_numpy(columns).reshape(height * width, -1).T


def draw_matrices(matrix: Any, rng: np.random.Generator) -> Figure:
    dense = rng.standard_normal(matrix.shape)
    figure = Figure(figsize=(8, 2.9))
    for axes, values, title in zip(
        figure.subplots(1, 2, sharey=True),
        (matrix, dense),
        (
            f"convolution: {len(np.unique(matrix[matrix != 0]))} different weights",
            f"dense layer: {dense.size:,} weights",
        ),
        strict=True,
    ):
        limit = np.abs(values).max()
        image = axes.imshow(values, cmap=common.SIGNED, vmin=-limit, vmax=limit)
        axes.set(title=title, xlabel="input pixel")
        figure.colorbar(image, ax=axes, label="weight", shrink=0.7)
    figure.axes[0].set_ylabel("output pixel")
    return figure


# %% [markdown]
# ## The price of doing without


# %%
class Cost(NamedTuple):
    """What a layer costs for one image."""

    map: str
    conv_parameters: int
    dense_parameters: int
    conv_multiply_adds: int
    dense_multiply_adds: int


def costs() -> list[Cost]:
    """Convolutions of the literature, and the dense layers that compute the same maps."""
    layers = {
        "LeNet-5, first layer": (ac.Conv2d(1, 6, 5, padding=2), (1, 1, 28, 28)),
        "LeNet-5, second layer": (ac.Conv2d(6, 16, 5), (1, 6, 14, 14)),
        "two-layer CNN, second layer": (ac.Conv2d(32, 64, 5, padding=2), (1, 32, 14, 14)),
        "edges: 320×280 image, kernel (−1, 1)": (
            ac.Conv2d(1, 1, (1, 2), bias=False), (1, 1, 280, 320),
        ),
    }  # fmt: skip
    result = []
    for name, (conv, shape) in layers.items():
        inputs, outputs = int(np.prod(shape)), int(np.prod(conv.output_shape(shape)))
        biases = 0 if conv.bias is None else outputs
        result.append(
            Cost(
                name,
                sum(parameter.size for parameter in conv.parameters()),
                inputs * outputs + biases,
                conv.multiply_adds(shape),
                inputs * outputs,
            )
        )
    return result


def table(rows: list[Cost]) -> str:
    lines = [
        "| map | parameters: convolution | dense | multiply-adds: convolution | dense |",
        "|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join([row[0], *(f"{n:,}" for n in row[1:])]) + " |" for row in rows]
    return "\n".join(lines)


# %% [markdown]
# ## Equivariance
#
# Shift, then convolve, or convolve, then shift: for all pixels that the border does not reach it is
# the same. A dense layer makes a difference as large as its outputs.


# %%
def equivariance_errors(backend: Any, shift: int = 3) -> dict[str, float]:
    """Largest |f(shift x) − shift f(x)| relative to the largest |f(x)|."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 1, 20, 20)).astype(np.float32)
    size = x.size
    dense = ac.Sequential(
        ac.Flatten(), ac.Dense(size, size, init="lecun_normal"), seed=0, backend=backend
    )
    maps = {
        "convolution": ac.Conv2d(1, 1, 3, padding=1, seed=0, backend=backend),
        "dense layer": lambda images: dense(images).reshape(images.shape),
    }
    errors = {}
    for name, function in maps.items():
        y = backend.to_numpy(function(x))
        moved = backend.to_numpy(function(np.roll(x, shift, axis=3)))
        inner = (..., slice(shift + 1, -shift - 1))  # np.roll brings the border in again
        difference = np.abs(moved[inner] - np.roll(y, shift, axis=3)[inner]).max()
        errors[name] = float(difference / np.abs(y).max())
    return errors


# %%
def main(options: argparse.Namespace) -> tuple[Any, list[Cost], dict[str, float]]:
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3)).astype(np.float32)
    matrix = toeplitz(kernel, 8, 8, options.backend)
    common.save(draw_matrices(matrix, rng), options.out / "toeplitz.png")
    print(f"T is {matrix.shape[0]}×{matrix.shape[1]} with {(matrix != 0).sum()} weights that are "
          f"not 0, {len(np.unique(matrix[matrix != 0]))} of them different")  # fmt: skip
    rows = costs()
    print(table(rows))
    errors = equivariance_errors(options.backend)
    for name, error in errors.items():
        print(f"equivariance error of a {name}: {error:.1e}")
    return matrix, rows, errors


def parser() -> common.Parser:
    return common.parser("Sparse interactions, parameter sharing and equivariance in numbers")


if __name__ == "__main__":
    common.run(main, parser())
