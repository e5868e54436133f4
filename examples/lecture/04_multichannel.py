# %% [markdown]
# # 4. Multichannel convolution
#
# An input with C channels needs kernels with C channels each. Every channel of the input is
# correlated with its channel of the kernel, the results are added up, and each kernel makes one
# channel of the output:
#
# $$h_o(i, j) = b_o + \sum_c \sum_{m,n} x_c(i + m, j + n)\, K_{o,c}(m, n) \tag{7}$$
#
# Here with all numbers: a kernel of 3×2×3×3 on an input of 2×5×5 gives an output of 3×3×3.

# %%
import argparse
from typing import Any, NamedTuple

import common
import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from arraycnn import functional as F
from arraycnn.explain import draw_matrix

# %% [markdown]
# ## One channel at a time


# %%
class Parts(NamedTuple):
    """A multichannel convolution and what it is made of."""

    x: Any  # (C, H, W)
    kernels: Any  # (O, C, KH, KW)
    per_channel: Any  # (O, C, OH, OW), each channel of x with its channel of the kernel
    sums: Any  # (O, OH, OW), those added up
    stacked: Any  # (O, OH, OW), by F.conv2d at once


def compute(backend: Any, seed: int = 1) -> Parts:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, (2, 5, 5)).astype(np.float32)
    kernels = rng.integers(-1, 3, (3, 2, 3, 3)).astype(np.float32)

    def conv(images: Any, weight: Any) -> Any:
        batch = backend.asarray(images[None])
        return backend.to_numpy(F.conv2d(batch, backend.asarray(weight)))[0]

    per_channel = np.stack(
        [[conv(x[[c]], kernel[None, [c]])[0] for c in range(len(x))] for kernel in kernels]
    )
    return Parts(x, kernels, per_channel, per_channel.sum(axis=1), conv(x, kernels))


# %% [markdown]
# ## The figure


# %%
TINTS = [(*to_rgba(colour)[:3], 0.35) for colour in (common.SKY, common.ORANGE, common.GREEN)]
GREY = to_rgba("0.92")


def draw(parts: Parts) -> Figure:
    figure = Figure()
    figure.set_layout_engine("none")  # the axes fill it
    axes = figure.add_axes((0, 0, 1, 1))
    sign = {"ha": "center", "va": "center", "fontsize": 15}

    def matrix(values: Any, at: tuple[float, float], title: str, tint: Any = GREY) -> None:
        colour = np.broadcast_to(tint, (*values.shape, 4))
        draw_matrix(axes, values, at, title, colour=colour)

    for c, plane in enumerate(parts.x):
        matrix(plane, (0, 3.5 + 9 * c), f"input x, channel {c}")
    for o, tint in enumerate(TINTS):
        top = 1.0 + 8.4 * o
        for c in range(2):
            y = top + 3.8 * c
            axes.text(5.9, y + 1.5, f"x{'₀₁'[c]} ⋆", **sign)
            matrix(parts.kernels[o, c], (6.8, y), f"kernel {o}, channel {c}", tint)
            axes.text(10.3, y + 1.5, "=", **sign)
            matrix(parts.per_channel[o, c], (10.8, y), "", tint)
        axes.text(12.3, top + 3.4, "+", **sign)
        axes.text(14.5, top + 3.4, "=", **sign)
        matrix(parts.sums[o], (15.2, top + 1.9), f"sum {o}", tint)
    for o in reversed(range(3)):
        at = (19.6 + 0.9 * o, 11.9 - 1.0 * o)
        opaque = (*(0.35 * np.array(TINTS[o][:3]) + 0.65), 1.0)
        matrix(parts.stacked[o], at, "", opaque)
    axes.text(22.0, 9.4, "output h\n3 channels", ha="center", va="bottom", fontsize=11)
    axes.set(xlim=(-0.3, 24.8), ylim=(26.2, -0.2))
    axes.set_axis_off()
    figure.set_size_inches(0.4 * 25.1, 0.4 * 26.4)
    return figure


# %%
def main(options: argparse.Namespace) -> Parts:
    parts = compute(options.backend)
    common.save(draw(parts), options.out / "multichannel.png")
    print(f"input {parts.x.shape}, kernels {parts.kernels.shape}, output {parts.stacked.shape}")
    difference = np.abs(parts.sums - parts.stacked).max()
    print(f"largest difference of the sums from F.conv2d: {difference:g}")
    return parts


def parser() -> common.Parser:
    return common.parser("A convolution of two channels with three kernels, with all numbers")


if __name__ == "__main__":
    common.run(main, parser())
