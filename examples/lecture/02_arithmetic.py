# %% [markdown]
# # 2. Convolution arithmetic
#
# How large is the result? For an input of size i, a kernel of size k, stride s, padding p on both
# sides and dilation d,
#
# $$o = \left\lfloor \frac{i + 2p - d (k - 1) - 1}{s} \right\rfloor + 1 \tag{4}$$
#
# and the transposed convolution, which undoes this change of size, gives
#
# $$o' = s (i' - 1) + d (k - 1) + 1 - 2p + a \tag{5}$$
#
# where a, smaller than s, chooses among the sizes that (4) rounds to the same one. The cases and
# their names follow V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning"
# (arXiv:1603.07285).

# %%
import argparse
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import common
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from arraycnn import functional as F
from arraycnn.geometry import conv_output_size, conv_transpose_output_size, pool_window

# %% [markdown]
# ## The sliding window
#
# A transposed convolution is drawn as what it equals: a convolution with unit stride over the input
# with s − 1 zeros between its elements, and with padding k − 1 − p.


# %%
@dataclass(frozen=True)
class Case:
    """A convolution of a square input of size i with a square kernel of size k."""

    title: str
    i: int
    k: int
    p: int = 0
    s: int = 1
    d: int = 1
    transposed: bool = False
    a: int = 0

    @property
    def name(self) -> str:
        return "_".join(re.findall(r"\w+", self.title))

    @property
    def settings(self) -> str:
        shown = [f"i={self.i}", f"k={self.k}", f"p={self.p}", f"s={self.s}"]
        shown += [f"d={self.d}"] if self.d > 1 else []
        shown += [f"a={self.a}"] if self.a else []
        return ", ".join(shown)


CASES = (
    Case("no padding, unit stride", i=4, k=3),
    Case("arbitrary padding", i=5, k=4, p=2),
    Case("half padding (same)", i=5, k=3, p=1),
    Case("full padding", i=5, k=3, p=2),
    Case("stride two", i=5, k=3, s=2),
    Case("stride two, padding", i=5, k=3, s=2, p=1),
    Case("dilation", i=7, k=3, d=2),
    Case("transposed: no padding, unit stride", i=2, k=3, transposed=True),
    Case("transposed: arbitrary padding", i=6, k=4, p=2, transposed=True),
    Case("transposed: half padding", i=5, k=3, p=1, transposed=True),
    Case("transposed: full padding", i=7, k=3, p=2, transposed=True),
    Case("transposed: stride two", i=2, k=3, s=2, transposed=True),
    Case("transposed: stride two, padding", i=3, k=3, s=2, p=1, transposed=True),
    Case("transposed: stride two, odd", i=3, k=3, s=2, p=1, a=1, transposed=True),
)


@dataclass(frozen=True)
class Slide:
    """A case as a window that slides over a padded image: everything that is drawn."""

    case: Case
    image: Any  # (padded, padded), NaN where there is padding or an inserted zero
    kernel: Any  # (k, k)
    result: Any  # (o, o)
    stride: int
    dilation: int


def slide(case: Case, backend: Any) -> Slide:
    """Compute a case with arraycnn and lay out what its window slides over."""
    rng = np.random.default_rng(case.i)
    x = rng.integers(0, 4, (case.i, case.i)).astype(np.float32)
    kernel = np.array([[0, 1, 2, 0], [2, 2, 0, 1], [0, 1, 2, 1], [1, 0, 1, 0]], np.float32)
    kernel = kernel[: case.k, : case.k]
    batch, weight = backend.asarray(x[None, None]), backend.asarray(kernel[None, None])
    if not case.transposed:
        y = F.conv2d(batch, weight, stride=case.s, padding=case.p, dilation=case.d)
        image = np.pad(x, case.p, constant_values=np.nan)
        return Slide(case, image, kernel, backend.to_numpy(y)[0, 0], case.s, case.d)
    y = F.conv_transpose2d(batch, weight, stride=case.s, padding=case.p, output_padding=case.a)
    stretched = np.full(((case.i - 1) * case.s + 1,) * 2, np.nan, np.float32)
    stretched[:: case.s, :: case.s] = x
    before = case.k - 1 - case.p
    image = np.pad(stretched, (before, before + case.a), constant_values=np.nan)
    flipped = kernel[::-1, ::-1]  # the transposed convolution runs the window backwards
    return Slide(case, image, flipped, backend.to_numpy(y)[0, 0], stride=1, dilation=1)


# %% [markdown]
# ## Its picture at one position
#
# Blue cells are the input, dashed ones are zeros; orange ones are seen by the kernel, whose weights
# stand small in their corners; the result is green, as far as it is computed.


# %%
def draw_position(axes: Any, slide: Slide, row: int, column: int, *, inches: float) -> None:
    """The window, the image below it and the result, at output position (row, column).

    In a picture with fewer than 4 inches of width the weights are left out.
    """
    axes.clear()
    size, outputs = len(slide.image), len(slide.result)
    font = min(9, 36 * inches / (size + outputs + 2))
    weights = inches > 4
    taps = slide.dilation * np.arange(len(slide.kernel))
    seen = {
        (row * slide.stride + taps[m], column * slide.stride + taps[n]): weight
        for (m, n), weight in np.ndenumerate(slide.kernel)
    }
    for (y, x), value in np.ndenumerate(slide.image):
        zero, weight = np.isnan(value), seen.get((y, x))
        colour = ("white" if zero else common.SKY) if weight is None else (
            "#F7DDA6" if zero else common.ORANGE
        )  # fmt: skip
        shift = 0 if weight is None or not weights else -0.16  # makes room for the weight
        draw_cell(axes, x, y, "" if zero else f"{value:g}", colour, font, shift, dashed=bool(zero))
        if weight is not None and weights:
            axes.text(x + 0.93, y + 0.95, f"{weight:g}", ha="right", va="bottom", fontsize=7)
    left, top = size + 1.5, (size - outputs) / 2
    for (y, x), value in np.ndenumerate(slide.result):
        done, current = (y, x) <= (row, column), (y, x) == (row, column)
        colour = common.GREEN if current else "#A6DBC9" if done else "white"
        draw_cell(axes, left + x, top + y, f"{value:g}" if done else "", colour, font)
    axes.text(size + 0.75, size / 2, "→", ha="center", va="center", fontsize=14)
    axes.set(
        xlim=(-0.2, left + outputs + 0.2),
        ylim=(max(size, top + outputs) + 0.2, min(0.0, top) - 0.2),
        aspect="equal",
    )
    axes.set_axis_off()
    axes.set_title(f"{slide.case.title}\n{slide.case.settings} → o={outputs}", fontsize=10)


def draw_cell(
    axes: Any, x: float, y: float, text: str, colour: str, font: float, shift: float = 0,
    dashed: bool = False,
) -> None:  # fmt: skip
    style = (0, (2, 2)) if dashed else "-"
    axes.add_patch(
        Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="0.4", linewidth=0.7, linestyle=style)
    )
    if text:
        axes.text(x + 0.5 + shift, y + 0.5 + shift, text, ha="center", va="center", fontsize=font)


def overview(slides: list[Slide]) -> Figure:
    """Every case at one position in the middle."""
    columns = 3
    figure = Figure(figsize=(9, 2.5 * -(-len(slides) // columns)))
    grid = figure.subplots(-(-len(slides) // columns), columns).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, each in zip(grid, slides, strict=False):
        middle = (len(each.result) - 1) // 2
        draw_position(axes, each, middle, middle, inches=3)
    return figure


def animation(slide: Slide) -> FuncAnimation:
    """The window at every position, in order."""
    figure = Figure(figsize=(5, 3.1))
    figure.set_layout_engine("none")  # laying out every frame would take long
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.82))
    positions = list(np.ndindex(slide.result.shape))
    return FuncAnimation(figure, lambda at: draw_position(axes, slide, *at, inches=5), positions)


# %% [markdown]
# ## The fifteen relationships
#
# Each is checked for all sizes up to a limit for which it is stated, against `arraycnn.geometry`.


# %%
@dataclass(frozen=True)
class Relationship:
    """One of the guide's statements: the formula, and the same by arraycnn's geometry."""

    title: str
    formula: str
    claimed: Callable[..., int]
    computed: Callable[..., tuple[int, ...]]
    ranges: tuple[str, ...]  # the arguments that it is about
    holds: Callable[..., bool] = lambda **sizes: True  # the condition under which it is stated


LIMITS = {"i": range(1, 10), "k": range(1, 6), "p": range(5), "s": range(1, 5), "d": range(1, 4),
          "a": range(4)}  # fmt: skip
conv, transposed = conv_output_size, conv_transpose_output_size


def odd(k: int, **_: int) -> bool:
    return k % 2 == 1


RELATIONSHIPS = (
    Relationship("no padding, unit stride", "o = (i − k) + 1",
                 lambda i, k: i - k + 1, lambda i, k: conv(i, k), ("i", "k")),
    Relationship("padding, unit stride", "o = (i − k) + 2p + 1",
                 lambda i, k, p: i - k + 2 * p + 1, lambda i, k, p: conv(i, k, padding=p),
                 ("i", "k", "p")),
    Relationship("half padding, k odd", "o = i",
                 lambda i, k: i, lambda i, k: conv(i, k, padding="same"), ("i", "k"), odd),
    Relationship("full padding", "o = i + (k − 1)",
                 lambda i, k: i + k - 1, lambda i, k: conv(i, k, padding="full"), ("i", "k")),
    Relationship("no padding, stride", "o = ⌊(i − k) / s⌋ + 1",
                 lambda i, k, s: (i - k) // s + 1, lambda i, k, s: conv(i, k, stride=s),
                 ("i", "k", "s")),
    Relationship("padding, stride", "o = ⌊(i + 2p − k) / s⌋ + 1",
                 lambda i, k, p, s: (i + 2 * p - k) // s + 1,
                 lambda i, k, p, s: conv(i, k, padding=p, stride=s), ("i", "k", "p", "s")),
    Relationship("pooling", "o = ⌊(i − k) / s⌋ + 1",
                 lambda i, k, s: (i - k) // s + 1,
                 lambda i, k, s: pool_window(i, k, stride=s).output_size, ("i", "k", "s")),
    Relationship("transposed, no padding, unit stride", "o' = i' + (k − 1)",
                 lambda i, k: i + k - 1, lambda i, k: transposed(i, k), ("i", "k")),
    Relationship("transposed, padding, unit stride", "o' = i' + (k − 1) − 2p",
                 lambda i, k, p: i + k - 1 - 2 * p,
                 lambda i, k, p: transposed(i, k, padding=p), ("i", "k", "p")),
    Relationship("transposed, half padding, k odd", "o' = i'",
                 lambda i, k: i, lambda i, k: transposed(i, k, padding=k // 2), ("i", "k"), odd),
    Relationship("transposed, full padding", "o' = i' − (k − 1)",
                 lambda i, k: i - k + 1, lambda i, k: transposed(i, k, padding=k - 1), ("i", "k")),
    Relationship("transposed, no padding, stride", "o' = s(i' − 1) + k",
                 lambda i, k, s: s * (i - 1) + k,
                 lambda i, k, s: transposed(i, k, stride=s), ("i", "k", "s")),
    Relationship("transposed, padding, stride", "o' = s(i' − 1) + k − 2p",
                 lambda i, k, p, s: s * (i - 1) + k - 2 * p,
                 lambda i, k, p, s: transposed(i, k, padding=p, stride=s), ("i", "k", "p", "s")),
    Relationship("transposed, padding, stride, odd", "o' = s(i' − 1) + a + k − 2p",
                 lambda i, k, p, s, a: s * (i - 1) + a + k - 2 * p,
                 lambda i, k, p, s, a: transposed(i, k, padding=p, stride=s, output_padding=a),
                 ("i", "k", "p", "s", "a"), lambda s, a, **_: a < s),
    Relationship("dilation", "o = ⌊(i + 2p − k − (k − 1)(d − 1)) / s⌋ + 1",
                 lambda i, k, p, s, d: (i + 2 * p - k - (k - 1) * (d - 1)) // s + 1,
                 lambda i, k, p, s, d: conv(i, k, padding=p, stride=s, dilation=d),
                 ("i", "k", "p", "s", "d")),
)  # fmt: skip


def sizes(relationship: Relationship) -> Iterator[dict[str, int]]:
    """All arguments for which a relationship is stated: those with a result."""
    for values in product(*(LIMITS[name] for name in relationship.ranges)):
        arguments = dict(zip(relationship.ranges, values, strict=True))
        if relationship.holds(**arguments) and relationship.claimed(**arguments) > 0:
            yield arguments


def check(relationship: Relationship) -> int:
    """The number of cases in which the relationship holds; ValueError for one where it does not."""
    count = 0
    for arguments in sizes(relationship):
        claimed, computed = relationship.claimed(**arguments), relationship.computed(**arguments)
        if (claimed,) != computed:
            raise ValueError(f"{relationship.formula}: {claimed} != {computed} for {arguments}")
        count += 1
    return count


# %%
def main(options: argparse.Namespace) -> dict[str, int]:
    counts = {}
    print("| | relationship | size | cases checked |\n|---|---|---|---|")
    for number, relationship in enumerate(RELATIONSHIPS, start=1):
        counts[relationship.title] = check(relationship)
        print(f"| {number} | {relationship.title} | {relationship.formula} | "
              f"{counts[relationship.title]} |")  # fmt: skip
    slides = [slide(case, options.backend) for case in CASES]
    common.save(overview(slides), options.out / "arithmetic.png")
    for each in slides[: options.animations]:
        path = options.out / f"arithmetic_{each.case.name}.gif"
        animation(each).save(path, PillowWriter(fps=3), dpi=100)
        print(f"wrote {path}")
    return counts


def parser() -> common.Parser:
    result = common.parser("Pictures and relationships of convolution arithmetic")
    result.add_argument(
        "--animations", type=common.at_least(0), default=len(CASES), help="how many (default: all)"
    )
    return result


if __name__ == "__main__":
    common.run(main, parser())
