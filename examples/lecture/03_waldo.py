# %% [markdown]
# # 3. Finding Waldo by cross-correlation
#
# A template T slides over a picture I; where the response is largest, it should be. The plain
# cross-correlation (3) is largest where the picture is *bright*, whatever it shows. Normalised, it
# compares patterns only: with the mean t̄ of the template and ī of the picture under it,
#
# $$\gamma(i, j) = \frac{\sum_{m,n} (I(i + m, j + n) - \bar\imath)\,(T(m, n) - \bar t)}
#   {\sqrt{\sum_{m,n} (I(i + m, j + n) - \bar\imath)^2 \sum_{m,n} (T(m, n) - \bar t)^2}} \tag{6}$$
#
# lies between −1 and 1, and 1 means equal up to brightness and contrast (J. P. Lewis, "Fast
# normalized cross-correlation", 1995). Colour is treated as three channels with one sum.
#
# A template of 130×70 pixels has 9,100 taps. `F.conv2d` computes this one by Fourier transforms:
# the columns of im2col would take hundreds of gigabytes.

# %%
import argparse
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from arraycnn import functional as F

HEIGHT, WIDTH = 130, 70  # of a figure in the crowd, pixels


# %% [markdown]
# ## Plain and normalised response
#
# Both are convolutions. The numerator of (6) needs only the template to be free of its mean; the
# squares in the denominator are sums over a window, n·(mean of I² − (mean of I)²): convolutions
# with a kernel of ones.


# %%
def plain(picture: Any, template: Any, backend: Any) -> Any:
    """Cross-correlation (3) of (C, H, W) with (C, h, w): (H − h + 1, W − w + 1)."""
    x, kernel = backend.asarray(picture[None]), backend.asarray(template[None])
    return backend.to_numpy(F.conv2d(x, kernel))[0, 0]


def normalised(picture: Any, template: Any, backend: Any) -> Any:
    """Normalised cross-correlation (6) of (C, H, W) with (C, h, w); 0 where I is flat."""
    x = picture - picture.mean()  # less to cancel below
    centred = template - template.mean()
    n = template.size
    window = np.ones((1, *template.shape[1:]), x.dtype)
    total = plain(x.sum(axis=0, keepdims=True), window, backend)
    squares = plain((x * x).sum(axis=0, keepdims=True), window, backend)
    energy = squares - total * total / n  # Σ (I − ī)²
    flat = energy < 1e-4 * n  # no pattern, and mostly rounding errors
    response = plain(x, centred, backend)
    return np.where(flat, 0, response / np.sqrt(np.where(flat, 1, energy) * (centred**2).sum()))


def best(response: Any) -> tuple[int, int]:
    """Row and column of the largest response."""
    row, column = np.unravel_index(response.argmax(), response.shape)
    return int(row), int(column)


# %% [markdown]
# ## A crowd
#
# Hundreds of people in random clothes, in a place where the light is uneven. One of them wears
# Waldo's striped shirt, bobble hat and glasses.


# %%
RED, WHITE, SKIN, DENIM = (
    (0.80, 0.10, 0.15),
    (0.96, 0.96, 0.96),
    (0.90, 0.72, 0.58),
    (0.2, 0.3, 0.6),
)


def person(
    shirt: Any, trousers: Any, hat: Any, *, stripes: Any = None, upright: bool = False,
    glasses: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """One figure (3, HEIGHT, WIDTH), and where it covers what is behind it (HEIGHT, WIDTH)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    x = x - WIDTH / 2
    head = (x / 13) ** 2 + ((y - 32) / 16) ** 2 < 1
    cap = ((x / 14) ** 2 + ((y - 22) / 12) ** 2 < 1) & (y < 24)
    bobble = x**2 + (y - 8) ** 2 < 20
    body = (abs(x) < 20 + (y - 48) / 10) & (y >= 48) & (y < 92)
    arms = (abs(x) < 30) & (abs(x) >= 20) & (y >= 50) & (y < 84)
    legs = (abs(x) < 20) & (abs(x) > 2) & (y >= 92) & (y < 126)
    image = np.zeros((3, HEIGHT, WIDTH), np.float32)

    def paint(part: Any, colour: Any) -> None:
        image[:, part] = np.reshape(colour, (3, 1))

    paint(legs, trousers)
    paint(body | arms, shirt)
    if stripes is not None:
        band = (x if upright else y) // 6 % 2 == 0
        paint((body | arms) & band, stripes)
    paint(head, SKIN)
    paint(cap | bobble, hat)
    paint(cap & (y > 18), WHITE)
    if glasses:
        for eye in (-6, 6):
            ring = (x - eye) ** 2 + (y - 31) ** 2
            paint((ring < 26) & (ring > 10), (0.05, 0.05, 0.05))
    return image, head | cap | bobble | body | arms | legs


def waldo() -> tuple[Any, Any]:
    return person(RED, DENIM, RED, stripes=WHITE, glasses=True)


def crowd(seed: int, height: int = 2000, width: int = 3000) -> tuple[Any, tuple[int, int]]:
    """A picture (3, height, width) with values in [0, 1], and Waldo's row and column in it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    ground = 0.55 + 0.1 * np.sin(x / 90) * np.sin(y / 70)
    picture = np.stack([ground, ground * 0.95, ground * 0.75]).astype(np.float32)
    rows, columns = (height - HEIGHT) // 110, (width - WIDTH) // 85
    places = [
        (int(110 * row + rng.integers(20)), int(85 * column + rng.integers(15)))
        for row in range(rows) for column in range(columns)
    ]  # fmt: skip
    ours = int(rng.integers(len(places)))
    for index, (top, left) in enumerate(places):
        if index == ours:
            image, covers = waldo()
        else:
            shirt, trousers, hat, second = rng.random((4, 3))
            stripes = (None, second, WHITE)[rng.integers(3)]
            image, covers = person(
                RED if rng.random() < 0.2 else shirt, trousers, hat, stripes=stripes,
                upright=bool(rng.integers(2)), glasses=bool(rng.integers(2)),
            )  # fmt: skip
        place = picture[:, top : top + HEIGHT, left : left + WIDTH]
        place[:, covers] = image[:, covers]
    light = 0.65 + 0.35 * np.sin(x / width * 4 + rng.uniform(0, 6)) * np.cos(y / height * 3)
    noise = rng.normal(0, 0.04, picture.shape).astype(np.float32)
    return np.clip(picture * light + noise, 0, 1), places[ours]


def template() -> Any:
    """Waldo on grey, as he is looked for."""
    image, covers = waldo()
    return np.where(covers, image, np.float32(0.5))


# %% [markdown]
# ## Your own picture
#
# `--image` and `--template` take any two files that Pillow reads.


# %%
def load(path: Path) -> Any:
    """A picture file as (3, H, W) in [0, 1]."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("reading a picture needs Pillow; pip install pillow") from None
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def check_sizes(picture: Any, sought: Any) -> None:
    """Refuse a template that is larger than the picture, or has no pattern."""
    (height, width), (rows, columns) = picture.shape[1:], sought.shape[1:]
    if rows > height or columns > width:
        raise ValueError(
            f"the template has {columns}×{rows} pixels and the picture only {width}×{height}; "
            "cut the template out of the picture at the same scale"
        )
    if sought.std() < 0.01:
        raise ValueError("the template is of one colour: there is no pattern to look for")


# %% [markdown]
# ## Side by side
#
# A peak is one pixel wide: of each 8×8 pixels of the response the largest is shown.


# %%
def draw(picture: Any, sought: Any, responses: dict[str, Any]) -> Figure:
    (height, width), (rows, columns) = picture.shape[1:], sought.shape[1:]
    figure = Figure(figsize=(9, 1.6 + 8.6 * height / width))
    axes = figure.subplot_mosaic("SSSSST;SSSSSF;PPPNNN;PPPNNN", height_ratios=[6, 6, 5, 5])
    scene = axes["S"]
    scene.imshow(picture.transpose(1, 2, 0), interpolation="antialiased")
    scene.set(xlabel="column", ylabel="row")
    axes["T"].imshow(sought.transpose(1, 2, 0))
    axes["T"].set(ylabel="template", xticks=[], yticks=[])
    marks = ((common.VERMILION, "--"), (common.BLUE, "-"))
    for (name, response), key, (colour, dashes) in zip(responses.items(), "PN", marks, strict=True):
        row, column = best(response)
        outline = {"fill": False, "edgecolor": colour, "linestyle": dashes, "linewidth": 2.5}
        margin = 0.01 * width
        corner, size = (column - margin, row - margin), (columns + 2 * margin, rows + 2 * margin)
        scene.add_patch(Rectangle(corner, *size, **outline, label=f"found by {name}"))
        shrink = min(8, *response.shape)
        peaks = F.max_pool2d(np.ascontiguousarray(response[None, None]), shrink)[0, 0]
        extent = (0, peaks.shape[1] * shrink, peaks.shape[0] * shrink, 0)
        image = axes[key].imshow(peaks, extent=extent)
        for rim, thickness in (("white", 4), (colour, 2)):
            axes[key].plot(column, row, "o", markersize=16, fillstyle="none", color=rim,
                           markeredgewidth=thickness)  # fmt: skip
        axes[key].set(title=name, xlabel="column", ylabel="row")
        figure.colorbar(image, ax=axes[key], location="bottom", label="response", shrink=0.8)
    hit = picture[:, row : row + rows, column : column + columns]  # of the normalised one
    axes["F"].imshow(hit.transpose(1, 2, 0))
    axes["F"].set(ylabel="found", xticks=[], yticks=[])
    scene.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure


# %%
def main(options: argparse.Namespace) -> tuple[tuple[int, int], tuple[int, int] | None]:
    if (options.image is None) != (options.template is None):
        raise ValueError("--image and --template belong together: give both or neither")
    place = None
    if options.image is None:
        picture, place = crowd(options.seed)
        sought = template()
    else:
        picture, sought = load(options.image), load(options.template)
    check_sizes(picture, sought)
    start = time.perf_counter()
    responses = {
        "plain cross-correlation (3)": plain(picture, sought, options.backend),
        "normalised cross-correlation (6)": normalised(picture, sought, options.backend),
    }
    seconds = time.perf_counter() - start
    common.save(draw(picture, sought, responses), options.out / "waldo.png")
    for name, response in responses.items():
        print(f"{name}: row {best(response)[0]}, column {best(response)[1]}")
    print(f"in {seconds:.1f} s" + ("" if place is None else f"; he is at {place}"))
    return best(responses["normalised cross-correlation (6)"]), place


def parser() -> common.Parser:
    result = common.parser("Find a template in a picture, or Waldo in a crowd drawn for him")
    result.add_argument("--image", type=Path, help="picture to search in")
    result.add_argument("--template", type=Path, help="what to look for")
    result.add_argument("--seed", type=common.at_least(0), default=0, help="of the crowd")
    return result


if __name__ == "__main__":
    common.run(main, parser())
