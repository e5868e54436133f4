# %% [markdown]
# # 8. LeNet
#
# Two networks of Yann LeCun's: the first convolutional network trained by backpropagation (LeCun et
# al., "Backpropagation applied to handwritten zip code recognition", Neural Computation 1, 1989),
# here `lenet1`, and LeNet-5 (LeCun et al., "Gradient-based learning applied to document
# recognition", Proc. IEEE 86, 1998), here with today's parts.
#
# `lenet1` is trained as in 1989, as far as the paper tells: images of 16×16 pixels in [−1, 1],
# 1.7159·tanh(2x/3), the squared error against targets of −1 and 1, 23 passes, an update for every
# sample. The paper's updates were scaled by a diagonal estimate of the Hessian; here one learning
# rate serves all weights. Its data, zip codes of the U.S. Postal Service, are not public in that
# form: the numbers beside the paper's are for other digits.

# %%
import argparse
from collections.abc import Iterator
from typing import Any

import common
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import arraycnn as ac
from arraycnn import functional as F

PASSES = 23
SIZE = 16  # pixels of lenet1's images


# %% [markdown]
# ## Training as in 1989


# %%
def squared_error(outputs: Any, labels: Any) -> tuple[Any, Any]:
    """Half the squared error, added up over the classes, and its gradient: (N, classes) for N."""
    targets = np.where(np.arange(outputs.shape[1]) == labels[:, None], 1, -1)
    loss, grad = F.mse_loss(outputs, targets.astype(np.float32), reduction="sum")
    return loss / 2, grad / 2


def train_by_sample(
    model: ac.Sequential, dataset: ac.data.Dataset, *, passes: int, lr: float, seed: int
) -> Iterator[int]:
    """Stochastic gradient descent, one sample at a time; yields after each pass."""
    optimizer = ac.SGD(model.parameters(), lr)
    samples = ac.DataLoader(
        dataset.train_images, dataset.train_labels, 1, shuffle=True, seed=seed, prefetch=False
    )
    for number in range(1, passes + 1):
        for image, label in samples:
            outputs, backward = model.forward(image)
            _, grad = squared_error(model.backend.to_numpy(outputs), label)
            backward(grad, input_grad=False)
            optimizer.step()
            optimizer.zero_grad()
        yield number


def evaluate(model: ac.Sequential, images: Any, labels: Any) -> tuple[float, float]:
    """Mean squared error of an output, and the share of images that are not recognised."""
    outputs = model.backend.to_numpy(model(images))
    loss, _ = squared_error(outputs, labels)
    return float(loss) * 2 / outputs.size, float((outputs.argmax(axis=1) != labels).mean())


# The paper, section 5.1, after 23 passes over 7,291 samples, tested on 2,007.
PAPER = {"training": (2.5e-3, 0.0014), "test": (1.8e-2, 0.050)}


def table(ours: dict[str, tuple[float, float]], name: str) -> str:
    lines = [
        f"| part | squared error, 1989 | errors, 1989 | squared error, {name} | errors, {name} |",
        "|---|---|---|---|---|",
    ]
    for part, (their_loss, their_errors) in PAPER.items():
        loss, errors = ours[part]
        lines.append(f"| {part} | {their_loss:.1e} | {their_errors:.2%} | {loss:.1e} | "
                     f"{errors:.2%} |")  # fmt: skip
    return "\n".join(lines)


# %% [markdown]
# ## The architecture, drawn from the model
#
# `leaves` goes through the layers of a model in order of computation, with the shape of what
# arrives at each; a change of shape makes a new stack of planes.


# %%
def shapes(model: ac.Sequential, input_shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """The shapes (C, H, W) or (features,) that occur, each with the layers that make it."""
    result: list[tuple[str, tuple[int, ...]]] = [("input", input_shape[1:])]
    pending = []
    for _, layer, (shape,) in model.walk(input_shape):
        output = layer.output_shape(shape)[1:]
        name = type(layer).__name__.removesuffix("2d")
        if name in ("ConstantPad", "Flatten"):  # they only prepare what the next layer sees
            pending = [name]
        elif output == result[-1][1]:
            result[-1] = (f"{result[-1][0]}\n{name}", output)
        else:
            result.append(("\n".join([*pending, name]), output))
            pending = []
    return result


def draw_architectures(models: dict[str, tuple[ac.Sequential, int]]) -> Figure:
    figure = Figure(figsize=(9, 2.7 * len(models)))
    for axes, (name, (model, size)) in zip(
        figure.subplots(len(models), 1), models.items(), strict=True
    ):
        stages = shapes(model, (1, 1, size, size))
        for place, (layers, shape) in enumerate(stages):
            x = 10 * place
            if len(shape) == 3:
                planes, height = min(shape[0], 8), 6 * (shape[1] / size) ** 0.5
                for plane in range(planes):
                    at = (x + 0.35 * plane, -height / 2 - 0.25 * plane)
                    axes.add_patch(Rectangle(at, height, height, fc="#CDE7F7", ec=common.BLUE))
                label = f"{shape[0]} × {shape[1]}×{shape[2]}"
            else:
                height = shape[0] ** 0.4
                at = (x + 2.5, -height / 2)
                axes.add_patch(Rectangle(at, 1.2, height, fc="#F7DDA6", ec=common.VERMILION))
                label = f"{shape[0]}"
            axes.text(x + 3.5, 5.2, label, ha="center", va="center", fontsize=11)
            axes.text(x + 3.5, 6.4, layers, ha="center", va="top", fontsize=9, color="0.25")
        parameters = sum(parameter.size for parameter in model.parameters())
        axes.set(
            xlim=(-1, 10 * 8), ylim=(11.5, -5), aspect="equal",
        )  # fmt: skip
        axes.set_title(f"{name}: {parameters:,} parameters", loc="left")
        axes.set_axis_off()
    return figure


# %% [markdown]
# ## Filters and feature maps


# %%
def rows_of_pictures(model: ac.Sequential, image: Any) -> dict[str, Any]:
    """The first layer's filters, the image, and the output of each convolution's activation."""
    weight = next(parameter for parameter in model.parameters() if len(parameter.shape) == 4)
    rows = {"filters": model.backend.to_numpy(weight.data)[:, 0], "input": image[0]}
    for index, layer in enumerate(model):
        if isinstance(layer, ac.ReLU | ac.ScaledTanh):
            maps = model.backend.to_numpy(model[: index + 1](image))
            if maps.ndim == 4:
                rows[f"maps {len(rows) - 1}"] = maps[0]
    return rows


def draw_features(pictures: dict[str, dict[str, Any]]) -> Figure:
    """One line of small pictures for each model and row; of many planes the first 12."""
    lines = [(name, row, planes[:12]) for name, rows in pictures.items()
             for row, planes in rows.items()]  # fmt: skip
    figure = Figure(figsize=(9, 0.86 * len(lines) + 0.6))
    figure.suptitle(
        "purple negative, white 0, orange positive; without negative values dark 0, yellow most",
        fontsize=10,
    )
    grid = figure.subplots(len(lines), 12)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (name, row, planes) in zip(grid, lines, strict=True):
        signed = row == "filters" or planes.min() < 0
        limit = np.abs(planes).max()
        scale = {"cmap": common.SIGNED, "vmin": -limit, "vmax": limit} if signed else {}
        for axes, plane in zip(line, planes, strict=False):
            axes.imshow(plane, **scale)
        line[0].text(-0.35, 0.5, f"{name}\n{row}", ha="right", va="center",
                     transform=line[0].transAxes)  # fmt: skip
    return figure


# %%
def main(options: argparse.Namespace) -> dict[str, Any]:
    name, small = common.load_data(options, size=SIZE)
    small = small._replace(
        train_images=2 * small.train_images - 1, test_images=2 * small.test_images - 1
    )
    lenet1 = ac.models.lenet1(seed=options.seed, backend=options.backend)
    parts = {
        "training": (small.train_images, small.train_labels),
        "test": (small.test_images, small.test_labels),
    }
    ours = {}
    for number in train_by_sample(
        lenet1, small, passes=options.passes, lr=options.lr, seed=options.seed
    ):
        ours = {part: evaluate(lenet1, *data) for part, data in parts.items()}
        print(f"lenet1, pass {number:2}: squared error {ours['training'][0]:.1e}, "
              f"test errors {ours['test'][1]:.2%}", flush=True)  # fmt: skip
    print(table(ours, name))

    _, large = common.load_data(options, size=SIZE if name == "digits" else None)
    size = large.train_images.shape[-1]
    lenet5 = ac.models.lenet5(image_size=size, seed=options.seed, backend=options.backend)
    for _ in common.training(lenet5, large, epochs=options.epochs, lr=0.03, seed=options.seed):
        pass
    accuracy = common.accuracy(lenet5, large.test_images, large.test_labels)
    print(f"lenet5: {accuracy:.2%} of the test images recognised, {1 - accuracy:.2%} errors")

    models = {"lenet1": (lenet1, SIZE), "lenet5": (lenet5, size)}
    common.save(draw_architectures(models), options.out / "lenet_architecture.png")
    pictures = {
        "lenet1": rows_of_pictures(lenet1, small.test_images[:1]),
        "lenet5": rows_of_pictures(lenet5, large.test_images[:1]),
    }
    common.save(draw_features(pictures), options.out / "lenet_features.png")
    return {"lenet1": ours, "lenet5": accuracy}


def parser() -> common.Parser:
    result = common.parser("LeNet of 1989, trained as then, and LeNet-5", datasets=common.GREY)
    result.add_argument(
        "--passes", type=common.at_least(1), default=PASSES, help="of lenet1 (default: 23)"
    )
    result.add_argument("--lr", type=float, default=0.01, help="of lenet1 (default: 0.01)")
    result.add_argument(
        "--epochs", type=common.at_least(1), default=10, help="of lenet5 (default: 10)"
    )
    return result


if __name__ == "__main__":
    common.run(main, parser())
