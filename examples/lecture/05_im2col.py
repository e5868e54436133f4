# %% [markdown]
# # 5. Image to column
#
# A convolution is a matrix product. Each output position becomes a column of v with everything that
# it sees, each kernel a row of K:
#
# $$v = \mathrm{im2col}(x) \tag{8}$$
# $$h = K v + b \tag{9}$$
#
# and with $\Delta$, the gradient of the loss with respect to h, the backward pass is
#
# $$\delta K = \Delta v^T \tag{10}$$
# $$\delta b = \textstyle\sum_j \Delta_{\cdot j} \tag{11}$$
# $$\delta v = K^T \Delta \tag{12}$$
# $$\delta x = \mathrm{col2im}(\delta v) \tag{13}$$
#
# where col2im adds every element of δv to the element of x that it came from. (K. Chellapilla,
# S. Puri, P. Simard, "High performance convolutional neural networks for document processing",
# 2006.)

# %%
import argparse
from typing import Any

import common
import numpy as np

import arraycnn as ac

# %% [markdown]
# ## Any convolution that is small enough to print
#
# `ac.explain(conv, x)` returns these matrices; it prints them, and draws them.


# %%
def whole_numbers(conv: Any, seed: int) -> Any:
    """The layer with weights and biases that are easy to follow."""
    rng = np.random.default_rng(seed)
    for parameter in conv.parameters():
        values = rng.integers(-1, 3, parameter.shape)
        parameter.data[...] = conv.backend.asarray(values, parameter.dtype)
    return conv


def examples(backend: Any) -> dict[str, ac.Explanation]:
    """A 2×2 kernel on a 3×3 image; then stride and padding; then two channels and two kernels."""
    rng = np.random.default_rng(0)  # of the gradients
    convolutions = {
        "im2col": (ac.Conv2d(1, 1, 2, backend=backend), (1, 3, 3)),
        "im2col_stride": (ac.Conv2d(1, 1, 3, stride=2, padding=1, backend=backend), (1, 4, 4)),
        "im2col_channels": (ac.Conv2d(2, 2, 2, backend=backend), (2, 3, 3)),
    }
    explanations = {}
    for seed, (name, (conv, shape)) in enumerate(convolutions.items(), start=4):
        x = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(1, *shape)
        delta = rng.integers(-1, 3, conv.output_shape(x.shape)).astype(np.float32)
        explanations[name] = ac.explain(whole_numbers(conv, seed), x, delta)
    return explanations


# %%
def main(options: argparse.Namespace) -> dict[str, ac.Explanation]:
    explanations = examples(options.backend)
    for name, explanation in explanations.items():
        print(explanation, end="\n\n")
        common.save(explanation.draw(), options.out / f"{name}.png")
    return explanations


def parser() -> common.Parser:
    return common.parser("Convolution as a matrix product, forward and backward, with all numbers")


if __name__ == "__main__":
    common.run(main, parser())
