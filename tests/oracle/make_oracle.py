"""Write the stored PyTorch cases: python tests/oracle/make_oracle.py (needs torch, run by hand).

Each family becomes ``<family>.json``, one case a line, and ``<family>.npz``, the numbers of its
arrays end to end. Inputs are multiples of 1/32, hence exact in float32 and float16 as well; every
case draws from a generator seeded with its own id, so adding a case leaves the others alone.
``store.py`` reads the files.
"""

import itertools
import json
import math
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as T

sys.path.insert(0, str(Path(__file__).parent.parent))
from oracle.invalid_cases import INVALID
from oracle.store import FAMILIES, FOLDER, Writer

LAYOUTS = ("batch_last", "channels_last", "reversed", "strided", "fortran", "read_only")


class Case:
    """One configuration: its inputs, drawn by name, and what PyTorch makes of them."""

    def __init__(self, op: str, name: str, layout: str | None = None, **options: object) -> None:
        self.id = f"{op}-{name}" + (f"-{layout}" if layout else "")
        self.op, self.options, self.layout = op, options, layout
        self.rng = np.random.default_rng(zlib.crc32(self.id.encode()))
        self.arrays: dict[str, np.ndarray] = {}
        self.expect: dict[str, np.ndarray] = {}
        self.leaves: dict[str, torch.Tensor] = {}

    def draw(self, name: str, shape: Iterable[int], *, complex_: bool = False) -> torch.Tensor:
        """An input with random multiples of 1/32 in [-3, 3]."""
        shape = tuple(shape)
        values = self.rng.integers(-96, 97, shape) / 32
        if complex_:
            values = values + 1j * self.rng.integers(-96, 97, shape) / 32
        return self.give(name, values)

    def give(self, name: str, values: np.ndarray, *, leaf: bool = True) -> torch.Tensor:
        self.arrays[name] = np.array(values)
        tensor = torch.tensor(self.arrays[name])
        if leaf:
            self.leaves[name] = tensor.requires_grad_()
        return tensor

    def finish(self, output: torch.Tensor) -> "Case":
        """Draw an output gradient and let PyTorch derive every input's."""
        self.expect["output"] = output.detach().numpy()
        shape = tuple(output.shape)
        grad = self.rng.integers(-64, 65, shape) / 32
        if output.is_complex():
            grad = grad + 1j * self.rng.integers(-64, 65, shape) / 32
        self.arrays["grad_output"] = grad
        return self.differentiate(output, torch.tensor(grad))

    def finish_loss(self, loss: torch.Tensor) -> "Case":
        """A loss gives its own gradient; unreduced, each element's own."""
        self.expect["output"] = loss.detach().numpy()
        return self.differentiate(loss.sum())

    def differentiate(self, output: torch.Tensor, grad: torch.Tensor | None = None) -> "Case":
        grads = torch.autograd.grad(output, list(self.leaves.values()), grad)
        for name, value in zip(self.leaves, grads, strict=True):
            self.expect[f"grad_{name}"] = value.resolve_conj().numpy()
        return self


def thinned(configurations: Iterable[dict], count: int) -> list[dict]:
    """A fixed pseudo-random choice of the valid configurations."""
    ranked = sorted(configurations, key=lambda c: zlib.crc32(repr(c).encode()))
    assert len(ranked) >= count, (len(ranked), count)
    return ranked[:count]


def grid(**choices: Iterable) -> list[dict]:
    return [dict(zip(choices, row, strict=True)) for row in itertools.product(*choices.values())]


def label(**options: object) -> str:
    """A short readable name: k3x2-s1-psame-g2."""

    def show(value: object) -> str:
        if isinstance(value, tuple):
            return "x".join(show(item) for item in value)
        return {"True": "yes", "False": "no"}.get(str(value), str(value).lower())

    return "-".join(f"{key}{show(value)}" for key, value in options.items())


def each(value: object, ndim: int) -> tuple:
    return tuple(value) if isinstance(value, tuple) else (value,) * ndim


def resolve(padding, size, kernel, stride, dilation) -> list[tuple[int, int]]:
    """(before, after) per axis; "same" as in ONNX SAME_UPPER, "full" as in Dumoulin & Visin."""
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if padding == "valid":
        return [(0, 0)] * len(size)
    if padding == "full":
        return [(r - 1, r - 1) for r in reach]
    if padding == "same":
        totals = [
            max((math.ceil(i / s) - 1) * s + r - i, 0)
            for i, s, r in zip(size, stride, reach, strict=True)
        ]
        return [(total // 2, total - total // 2) for total in totals]
    return [each(p, 2) for p in each(padding, len(size))]


def pad(x: torch.Tensor, pairs: list[tuple[int, int]]) -> torch.Tensor:
    return T.pad(x, [side for pair in reversed(pairs) for side in pair])


# Convolutions

SIZES = {1: (9,), 2: (6, 7), 3: (4, 5, 4)}


def torch_conv(x, weight, bias, *, stride=1, padding=0, dilation=1, groups=1):
    ndim = x.ndim - 2
    stride, dilation = each(stride, ndim), each(dilation, ndim)
    pairs = resolve(padding, x.shape[2:], weight.shape[2:], stride, dilation)
    operation = (T.conv1d, T.conv2d, T.conv3d)[ndim - 1]
    return operation(pad(x, pairs), weight, bias, stride, 0, dilation, groups)


def conv_case(
    name, size, kernel, *, channels=(3, 4), batch=2, bias=True, complex_=False, layout=None, **kw
):
    ndim = len(size)
    case = Case(f"conv{ndim}d", name, layout, **kw)
    c_in, c_out = channels
    x = case.draw("x", (batch, c_in, *size), complex_=complex_)
    weight = case.draw("weight", (c_out, c_in // kw.get("groups", 1), *kernel), complex_=complex_)
    b = case.draw("bias", (c_out,), complex_=complex_) if bias else None
    return case.finish(torch_conv(x, weight, b, **kw))


def fits(size, kernel, stride=1, padding=0, dilation=1) -> bool:
    ndim = len(size)
    stride, dilation = each(stride, ndim), each(dilation, ndim)
    pairs = resolve(padding, size, kernel, stride, dilation)
    return all(
        (k - 1) * d + 1 <= i + sum(p)
        for i, k, d, p in zip(size, kernel, dilation, pairs, strict=True)
    )


def convolutions():
    channels = {1: (3, 4), 2: (4, 6), 3: (3, 6)}  # groups 3: depthwise, two filters a channel
    choices = {
        1: grid(
            k=[(1,), (2,), (3,), (5,)],
            s=[1, 2, 3, 4],
            p=[0, 1, 2, ((1, 2),), ((3, 0),), "same", "full", "valid"],
            d=[1, 2, 3],
            g=[1, 2, 3],
        ),
        2: grid(
            k=[(1, 1), (3, 3), (2, 3), (5, 5), (1, 4), (3, 2)],
            s=[1, 2, (2, 1), (1, 3), 3],
            p=[0, 1, 2, (0, 2), ((1, 0), (0, 1)), ((2, 1), (0, 3)), "same", "full", "valid"],
            d=[1, 2, (1, 2), (3, 1)],
            g=[1, 2, 3],
        ),
        3: grid(
            k=[(1, 1, 1), (2, 2, 2), (3, 3, 3), (2, 3, 1)],
            s=[1, 2, (1, 2, 1)],
            p=[0, 1, (0, 1, 2), ((1, 0), (0, 1), (2, 1)), "same", "full"],
            d=[1, 2, (1, 2, 1)],
            g=[1, 2, 3],
        ),
    }
    for ndim, count in ((1, 50), (2, 110), (3, 30)):
        size = SIZES[ndim]
        valid = [c for c in choices[ndim] if fits(size, c["k"], c["s"], c["p"], c["d"])]
        for c in thinned(valid, count):
            kw = {"stride": c["s"], "padding": c["p"], "dilation": c["d"], "groups": c["g"]}
            yield conv_case(label(**c), size, c["k"], channels=channels[c["g"]], **kw)
    for ndim in (1, 2, 3):
        size, kernel = SIZES[ndim], (3,) * ndim
        yield conv_case("defaults", size, kernel)
        yield conv_case("no_bias", size, kernel, bias=False, padding=1)
        yield conv_case("empty_batch", size, kernel, batch=0, padding=1)
        yield conv_case("batch_of_one", size, kernel, batch=1, stride=2, padding=1)
        yield conv_case("kernel_is_input", size, size)
        yield conv_case("kernel_is_padded_input", size, tuple(i + 2 for i in size), padding=1)
        yield conv_case("one_channel", size, kernel, channels=(1, 1), padding="same")
        yield conv_case("depthwise", size, kernel, channels=(4, 4), groups=4, padding=1)
        yield conv_case("pointwise", size, (1,) * ndim, channels=(5, 3))
        yield conv_case("pointwise_stride", size, (1,) * ndim, channels=(5, 3), stride=2)
        yield conv_case("stride_beyond_kernel", size, (1,) * ndim, stride=3, padding=1)
    yield conv_case("one_pixel", (1, 1), (3, 3), padding=1)
    yield conv_case("wide_batch", (3, 3), (2, 2), batch=17, channels=(2, 2))
    yield conv_case("many_channels", (3, 3), (3, 3), channels=(16, 20), padding=1)
    for layout in LAYOUTS:
        yield conv_case("layout", (5, 6), (3, 2), layout=layout, stride=(2, 1), padding=1)
        yield conv_case("layout_groups", (4, 5), (3, 3), layout=layout, groups=3, padding="same",
                        channels=(3, 6))  # fmt: skip
    for ndim in (1, 3):
        for layout in ("batch_last", "reversed"):
            yield conv_case("layout", SIZES[ndim], (2,) * ndim, layout=layout, padding=1)


def complex_convolutions():
    for ndim in (1, 2, 3):
        size, kernel = SIZES[ndim], (2,) * ndim
        for name, kw in (
            ("plain", {}),
            ("stride", {"stride": 2, "padding": 1}),
            ("dilation", {"dilation": 2, "padding": "same"}),
            ("groups", {"groups": 3, "padding": "full"}),
        ):
            channels = (3, 3)
            yield conv_case(f"complex-{name}", size, kernel, channels=channels, complex_=True, **kw)
        for name, kw in (
            ("plain", {}),
            ("stride", {"stride": 2, "padding": 1, "output_padding": 1}),
            ("groups", {"groups": 3, "dilation": 2}),
        ):
            yield transpose_case(
                f"complex-{name}", (3,) * ndim, kernel, channels=(3, 3), complex_=True, **kw
            )
    yield conv_case("complex-empty_batch", (4, 4), (3, 3), batch=0, complex_=True)
    yield conv_case("complex-layout", (4, 5), (3, 3), layout="batch_last", complex_=True)


def transpose_case(
    name, size, kernel, *, channels=(4, 3), batch=2, bias=True, complex_=False, layout=None, **kw
):
    ndim = len(size)
    case = Case(f"conv_transpose{ndim}d", name, layout, **kw)
    c_in, c_out = channels
    x = case.draw("x", (batch, c_in, *size), complex_=complex_)
    weight = case.draw("weight", (c_in, c_out // kw.get("groups", 1), *kernel), complex_=complex_)
    b = case.draw("bias", (c_out,), complex_=complex_) if bias else None
    operation = (T.conv_transpose1d, T.conv_transpose2d, T.conv_transpose3d)[ndim - 1]
    return case.finish(operation(x, weight, b, **kw))


def transpose_is_valid(size, c) -> bool:
    ndim = len(size)
    axes = zip(*(each(v, ndim) for v in (size, c["k"], c["s"], c["p"], c["op"], c["d"])),
               strict=True)  # fmt: skip
    return all(
        op < max(s, d) and (i - 1) * s + (k - 1) * d + 1 + op - 2 * p > 0
        for i, k, s, p, op, d in axes
    )


def transposed_convolutions():
    channels = {1: (4, 3), 2: (4, 6), 3: (3, 6)}
    sizes = {1: (5,), 2: (3, 4), 3: (2, 3, 2)}
    choices = {
        1: grid(k=[(1,), (2,), (3,), (5,)], s=[1, 2, 3], p=[0, 1, 2], op=[0, 1, 2], d=[1, 2],
                g=[1, 2, 3]),
        2: grid(k=[(1, 1), (3, 3), (2, 3), (4, 4)], s=[1, 2, (2, 1), (1, 3)], p=[0, 1, (1, 0)],
                op=[0, 1, (1, 0), (0, 2)], d=[1, 2, (1, 2)], g=[1, 2, 3]),
        3: grid(k=[(2, 2, 2), (3, 3, 3), (1, 2, 3)], s=[1, 2, (1, 2, 1)], p=[0, 1, (0, 1, 0)],
                op=[0, 1, (0, 1, 0)], d=[1, 2], g=[1, 2, 3]),
    }  # fmt: skip
    for ndim, count in ((1, 25), (2, 45), (3, 15)):
        size = sizes[ndim]
        valid = [c for c in choices[ndim] if transpose_is_valid(size, c)]
        for c in thinned(valid, count):
            kw = {
                "stride": c["s"],
                "padding": c["p"],
                "output_padding": c["op"],
                "dilation": c["d"],
                "groups": c["g"],
            }
            yield transpose_case(label(**c), size, c["k"], channels=channels[c["g"]], **kw)
        yield transpose_case("defaults", size, (3,) * ndim)
        yield transpose_case("no_bias", size, (3,) * ndim, bias=False, stride=2)
        yield transpose_case("empty_batch", size, (3,) * ndim, batch=0, stride=2)
        yield transpose_case("batch_of_one", size, (3,) * ndim, batch=1, padding=1)
    for layout in LAYOUTS:
        yield transpose_case("layout", (3, 4), (3, 2), layout=layout, stride=2, padding=1)


# Columns


def columns_of(x, kernel, stride, padding, dilation):
    """T.unfold for any rank: one slice of the padded input for each tap."""
    ndim = x.ndim - 2
    kernel, stride = each(kernel, ndim), each(stride, ndim)
    dilation, padding = each(dilation, ndim), each(padding, ndim)
    if ndim == 2 and all(isinstance(p, int) for p in padding):
        return T.unfold(x, kernel, dilation, padding, stride)
    padded = pad(x, resolve(padding, x.shape[2:], kernel, stride, dilation))
    windows = padded
    for axis in range(ndim):
        windows = windows.unfold(2 + axis, (kernel[axis] - 1) * dilation[axis] + 1, stride[axis])
    windows = windows[(..., *(slice(None, None, d) for d in dilation))]  # (N, C, *O, *K)
    order = (0, 1, *range(2 + ndim, 2 + 2 * ndim), *range(2, 2 + ndim))
    windows = windows.permute(order)  # (N, C, *K, *O)
    return windows.reshape(x.shape[0], x.shape[1] * math.prod(kernel), math.prod(
        windows.shape[2 + ndim:]))  # fmt: skip


def image_of(columns, size, kernel, stride, padding, dilation):
    """T.fold for any rank: the adjoint of columns_of, by automatic differentiation."""
    if len(size) == 2 and all(isinstance(p, int) for p in each(padding, 2)):
        return T.fold(columns, size, kernel, dilation, padding, stride)
    channels = columns.shape[1] // math.prod(each(kernel, len(size)))
    x = torch.zeros(columns.shape[0], channels, *size, dtype=columns.dtype, requires_grad=True)
    unfolded = columns_of(x, kernel, stride, padding, dilation)
    return torch.autograd.grad(unfolded, x, columns, create_graph=True)[0]


def columns_cases():
    choices = {
        1: grid(k=[2, (3,)], s=[1, 2], p=[0, 1, ((0, 2),)], d=[1, 2]),
        2: grid(k=[1, 2, 3, (2, 3), (4, 1)], s=[1, 2, (1, 2), 3],
                p=[0, 1, (0, 2), ((1, 0), (0, 2))], d=[1, 2, (2, 1)]),
        3: grid(k=[2, (1, 2, 3)], s=[1, 2], p=[0, 1], d=[1, (2, 1, 1)]),
    }  # fmt: skip
    sizes = {1: (7,), 2: (5, 6), 3: (3, 4, 4)}
    for ndim, count in ((1, 6), (2, 24), (3, 5)):
        size = sizes[ndim]
        valid = [c for c in choices[ndim] if fits(size, each(c["k"], ndim), c["s"], c["p"], c["d"])]
        for c in thinned(valid, count):
            kw = {"stride": c["s"], "padding": c["p"], "dilation": c["d"]}
            yield im2col_case(f"{ndim}d-{label(**c)}", (2, 2, *size), c["k"], **kw)
            yield col2im_case(f"{ndim}d-{label(**c)}", (2, 2, *size), c["k"], **kw)
    plain = {"stride": 1, "padding": 0, "dilation": 1}
    for layout in (*LAYOUTS, "transposed"):
        yield im2col_case("layout", (2, 3, 4, 5), (2, 3), layout, **plain)
        yield col2im_case("layout", (2, 3, 4, 5), (2, 3), layout, **plain)
    for batch in (0, 1):
        yield im2col_case(f"batch{batch}", (batch, 2, 4, 4), 3, **plain)
        yield col2im_case(f"batch{batch}", (batch, 2, 4, 4), 3, **plain)
    yield im2col_case("complex", (2, 2, 4, 4), 3, complex_=True, **plain)
    yield col2im_case("complex", (2, 2, 4, 4), 3, complex_=True, **plain)


def im2col_case(name, shape, kernel, layout=None, complex_=False, **kw):
    case = Case("im2col", name, layout, kernel_size=kernel, **kw)
    x = case.draw("x", shape, complex_=complex_)
    return case.finish(columns_of(x, kernel, **kw))


def col2im_case(name, shape, kernel, layout=None, complex_=False, **kw):
    size = shape[2:]
    like = columns_of(torch.zeros(max(shape[0], 1), *shape[1:]), kernel, **kw)
    case = Case("col2im", name, layout, output_size=size, kernel_size=kernel, **kw)
    columns = case.draw("columns", (shape[0], *like.shape[1:]), complex_=complex_)
    return case.finish(image_of(columns, size, kernel, **kw))


# Pooling


def max_pool_case(name, size, kernel, *, batch=2, layout=None, values=None, **kw):
    ndim = len(size)
    case = Case(f"max_pool{ndim}d", name, layout, kernel_size=kernel, **kw)
    shape = (batch, 2, *size)
    x = case.draw("x", shape) if values is None else case.give("x", values(case.rng, shape))
    operation = (T.max_pool1d, T.max_pool2d, T.max_pool3d)[ndim - 1]
    output, indices = operation(x, kernel, return_indices=True, **kw)
    case.expect["indices"] = indices.numpy()
    return case.finish(output)


def avg_pool_case(name, size, kernel, *, batch=2, layout=None, **kw):
    ndim = len(size)
    case = Case(f"avg_pool{ndim}d", name, layout, kernel_size=kernel, **kw)
    x = case.draw("x", (batch, 2, *size))
    if ndim == 1:  # T.avg_pool1d has no divisor_override: pool a plane of one row
        flat = {key: (value, 0)[::-1] if key == "padding" else value for key, value in kw.items()}
        if "stride" in flat:
            flat["stride"] = (1, flat["stride"])
        output = T.avg_pool2d(x[:, :, None], (1, kernel), **flat)[:, :, 0]
    else:
        output = (T.avg_pool2d, T.avg_pool3d)[ndim - 2](x, kernel, **kw)
    return case.finish(output)


def pool_is_valid(size, c) -> bool:
    """PyTorch's limit on padding, and no window wholly in the padding."""
    ndim = len(size)
    kernel, padding = each(c["k"], ndim), each(c["p"], ndim)
    stride, dilation = each(c["s"] or c["k"], ndim), each(c.get("d", 1), ndim)
    for i, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        reach = (k - 1) * d + 1
        if p > k // 2 or reach > i + 2 * p:
            return False
        rounding = s - 1 if c["ceil"] else 0
        starts = [q * s - p for q in range((i + 2 * p - reach + rounding) // s + 1)]
        starts = [start for start in starts if start < i or not c["ceil"]]
        if not all(any(0 <= start + t * d < i for t in range(k)) for start in starts):
            return False
    return True


def with_ties(rng, shape):
    return rng.integers(0, 2, shape) / 1.0


def with_nan(rng, shape):
    """Sparse NaNs, never two in one window of 2 (which of two NaNs is first is not PyTorch's)."""
    values = rng.integers(-96, 97, shape) / 32
    values[..., ::3] = np.where(rng.random(values[..., ::3].shape) < 0.5, np.nan, 1.0)
    for axis in range(2, len(shape) - 1):
        spread = np.moveaxis(values, axis, 0)
        spread[1::2] = np.where(np.isnan(spread[1::2]), 2.0, spread[1::2])
    return values


def with_infinities(rng, shape):
    return np.where(
        rng.random(shape) < 0.7, -np.inf, np.where(rng.random(shape) < 0.5, 1.0, np.inf)
    )


def pooling():
    choices = {
        1: grid(k=[2, 3, 4], s=[None, 1, 2, 3], p=[0, 1, 2], d=[1, 2], ceil=[False, True]),
        2: grid(k=[2, 3, (2, 3), (3, 1)], s=[None, 1, 2, (2, 1), 3], p=[0, 1, (1, 0)],
                d=[1, 2, (1, 2)], ceil=[False, True]),
        3: grid(k=[2, 3, (1, 2, 3)], s=[None, 1, 2, (1, 2, 1)], p=[0, 1, (0, 1, 1)],
                d=[1, 2], ceil=[False, True]),
    }  # fmt: skip
    sizes = {1: (11,), 2: (6, 7), 3: (4, 5, 5)}
    for ndim, count in ((1, 18), (2, 40), (3, 14)):
        size = sizes[ndim]
        for c in thinned([c for c in choices[ndim] if pool_is_valid(size, c)], count):
            kw = {"stride": c["s"], "padding": c["p"], "dilation": c["d"], "ceil_mode": c["ceil"]}
            yield max_pool_case(label(**c), size, c["k"], **kw)
        yield max_pool_case("defaults", size, 2)
        for values in (with_ties, with_nan, with_infinities):
            yield max_pool_case(values.__name__, size, 2, stride=1, values=values)
        yield max_pool_case("overlapping_ties", size, 3, stride=2, padding=1, values=with_ties)
        yield max_pool_case("empty_batch", size, 2, batch=0)
        yield max_pool_case("batch_of_one", size, 3, batch=1, stride=2, padding=1)
    yield max_pool_case("window_is_input", (6, 7), (6, 7))
    yield max_pool_case("global_size_one", (1, 1), 1)
    for layout in LAYOUTS:
        yield max_pool_case("layout", (5, 6), 2, layout=layout, stride=1)
        yield max_pool_case("layout_blocks", (4, 6), 2, layout=layout)

    extra = {"ceil": [False, True], "pad_counts": [True, False], "div": [None, 3]}
    choices = {
        1: grid(k=[2, 3, 4], s=[None, 1, 2, 3], p=[0, 1], **extra),
        2: grid(k=[2, 3, (2, 3), (3, 1)], s=[None, 1, 2, (2, 1), 3], p=[0, 1, (1, 0)], **extra),
        3: grid(k=[2, 3, (1, 2, 3)], s=[None, 1, 2, (1, 2, 1)], p=[0, 1, (0, 1, 1)], **extra),
    }
    for ndim, count in ((1, 18), (2, 40), (3, 14)):
        size = sizes[ndim]
        for c in thinned([c for c in choices[ndim] if pool_is_valid(size, c)], count):
            kw = {"padding": c["p"], "ceil_mode": c["ceil"], "count_include_pad": c["pad_counts"],
                      "divisor_override": c["div"]}  # fmt: skip
            kw |= {"stride": c["s"]} if c["s"] else {}
            yield avg_pool_case(label(**c), size, c["k"], **kw)
        yield avg_pool_case("defaults", size, 2)
        yield avg_pool_case("empty_batch", size, 2, batch=0)
        yield avg_pool_case("batch_of_one", size, 3, batch=1, stride=2, padding=1)
    for layout in LAYOUTS:
        yield avg_pool_case("layout", (5, 6), 2, layout=layout, stride=1)


def adaptive_pooling():
    targets = [1, 2, 3, 5, (1, 3), (2, 5), (6, 7), (4, 4), (7, 9), (5, 1)]
    for target in targets:
        for size in ((6, 7), (5, 3)):
            name = f"{label(i=size, o=target)}"
            case = Case("adaptive_avg_pool2d", name, output_size=target)
            yield case.finish(T.adaptive_avg_pool2d(case.draw("x", (2, 2, *size)), target))
            case = Case("adaptive_max_pool2d", name, output_size=target)
            x = case.draw("x", (2, 2, *size))
            output, indices = T.adaptive_max_pool2d(x, target, return_indices=True)
            case.expect["indices"] = indices.numpy()
            yield case.finish(output)
    for batch in (0, 1):
        case = Case("adaptive_avg_pool2d", f"batch{batch}", output_size=3)
        yield case.finish(T.adaptive_avg_pool2d(case.draw("x", (batch, 2, 5, 5)), 3))
        case = Case("adaptive_max_pool2d", f"batch{batch}", output_size=3)
        yield case.finish(T.adaptive_max_pool2d(case.draw("x", (batch, 2, 5, 5)), 3))
    case = Case("adaptive_max_pool2d", "with_ties", output_size=(3, 4))
    yield case.finish(
        T.adaptive_max_pool2d(case.give("x", with_ties(case.rng, (2, 2, 7, 6))), (3, 4))
    )
    for layout in ("batch_last", "reversed"):
        case = Case("adaptive_avg_pool2d", "layout", layout, output_size=(2, 3))
        yield case.finish(T.adaptive_avg_pool2d(case.draw("x", (2, 3, 5, 4)), (2, 3)))
        case = Case("adaptive_max_pool2d", "layout", layout, output_size=(2, 3))
        yield case.finish(T.adaptive_max_pool2d(case.draw("x", (2, 3, 5, 4)), (2, 3)))
    for shape in ((2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4), (0, 3, 4, 4), (1, 1, 1, 1)):
        case = Case("global_avg_pool", label(x=shape))
        x = case.draw("x", shape)
        yield case.finish(x.mean(dim=tuple(range(2, len(shape)))))
    for layout in ("batch_last", "channels_last"):
        case = Case("global_avg_pool", "layout", layout)
        yield case.finish(case.draw("x", (3, 2, 4, 5)).mean(dim=(2, 3)))


# Everything that is not windowed


def dense():
    for n, f_in, f_out in ((2, 3, 4), (1, 5, 2), (0, 3, 2), (7, 1, 1), (16, 20, 12), (3, 9, 1)):
        for bias in (True, False):
            for layout in (None, "batch_last") if n == 7 or n == 16 else (None,):
                case = Case("dense", label(n=n, i=f_in, o=f_out, bias=bias), layout)
                x, weight = case.draw("x", (n, f_in)), case.draw("weight", (f_out, f_in))
                yield case.finish(
                    T.linear(x, weight, case.draw("bias", (f_out,)) if bias else None)
                )


EXTREMES = np.array([[-1e4, -700.0, -100.0, -20.0, -1.0], [-1 / 32, 1 / 32, 1.0, 20.0, 100.0]])


def activations():
    simple: dict[str, tuple[Callable, list[dict]]] = {
        "relu": (T.relu, [{}]),
        "leaky_relu": (T.leaky_relu, [{}, {"negative_slope": 0.25}, {"negative_slope": 0.0}]),
        "elu": (T.elu, [{}, {"alpha": 0.5}, {"alpha": 2.0}]),
        "selu": (T.selu, [{}]),
        "gelu": (T.gelu, [{}, {"approximate": "none"}, {"approximate": "tanh"}]),
        "sigmoid": (torch.sigmoid, [{}]),
        "tanh": (torch.tanh, [{}]),
        "softplus": (T.softplus, [{}]),
    }
    for op, (function, variants) in simple.items():
        for kw in variants:
            name = label(**kw) or "plain"
            case = Case(op, f"{name}-4d", **kw)
            yield case.finish(function(case.draw("x", (2, 3, 4, 3)), **kw))
            case = Case(op, f"{name}-extremes", **kw)
            yield case.finish(function(case.give("x", EXTREMES), **kw))
        for shape in ((4, 5), (0, 3), (1,)):
            case = Case(op, label(x=shape))
            yield case.finish(function(case.draw("x", shape)))
        for layout in ("batch_last", "reversed"):
            case = Case(op, "layout", layout)
            yield case.finish(function(case.draw("x", (3, 2, 4, 5))))
    for op, function in (("softmax", torch.softmax), ("log_softmax", torch.log_softmax)):
        for shape, axis in (
            ((4, 5), 1), ((4, 5), 0), ((4, 5), -1), ((2, 3, 4, 5), 1), ((2, 3, 4, 5), 3),
            ((2, 3, 4), -2), ((0, 4), 1), ((3, 1), 1), ((2, 3, 2, 2, 2), 1),
        ):  # fmt: skip
            case = Case(op, label(x=shape, axis=axis), axis=axis)
            yield case.finish(function(case.draw("x", shape), dim=axis))
        case = Case(op, "default_axis")
        yield case.finish(function(case.draw("x", (3, 4, 2)), dim=1))
        for layout in ("batch_last", "reversed"):
            case = Case(op, "layout", layout)
            yield case.finish(function(case.draw("x", (3, 4, 2, 3)), dim=1))
        case = Case(op, "extremes")
        yield case.finish(function(case.give("x", EXTREMES), dim=1))


def normalization():
    shapes = ((4, 3), (5, 2, 6), (3, 2, 4, 3), (2, 2, 3, 2, 3), (1, 3, 4, 4), (6, 1, 1, 1))
    for shape, training, affine in itertools.product(shapes, (True, False), (True, False)):
        yield batch_norm_case(
            label(x=shape, train=training, affine=affine), shape, training, affine
        )
    base = (3, 2, 4, 3)
    for options in ({"eps": 0.1}, {"eps": 1e-3, "momentum": 0.5}, {"momentum": 1.0}):
        for training in (True, False):
            name = label(**options, train=training)
            yield batch_norm_case(name, base, training, True, **options)
    yield batch_norm_case("no_running", base, True, True, running=False)
    yield batch_norm_case("empty_batch", (0, 2, 3, 3), False, True)
    yield batch_norm_case("far_from_zero", base, True, True, shift=16.0)
    yield batch_norm_case("constant_channel", base, True, True, constant=True)
    for layout in LAYOUTS:
        for training in (True, False):
            yield batch_norm_case(label(layout=0, train=training), base, training, True, layout)


def batch_norm_case(
    name, shape, training, affine, layout=None, *, running=True, shift=0.0, constant=False, **kw
):
    case = Case("batch_norm", name, layout, training=training, **kw)
    values = case.rng.integers(-96, 97, shape) / 32 + shift
    if constant:
        values[:, 0] = 1.5
    x = case.give("x", values)
    channels = (shape[1],)
    mean = var = weight = bias = None
    if running:
        mean = case.give("running_mean", case.rng.integers(-32, 33, channels) / 32, leaf=False)
        var = case.give("running_var", case.rng.integers(16, 65, channels) / 32, leaf=False)
    if affine:
        weight, bias = case.draw("weight", channels), case.draw("bias", channels)
    output = T.batch_norm(x, mean, var, weight, bias, training=training, **kw)
    if running:
        case.expect["running_mean"], case.expect["running_var"] = mean.numpy(), var.numpy()
    return case.finish(output)


def losses():
    for spatial, smoothing, ignore, weighted, reduction in itertools.product(
        ((), (2, 3)), (0.0, 0.1), (None, -100, 2), (False, True), ("mean", "sum", "none")
    ):
        shape = (5, 4, *spatial)
        options = {"label_smoothing": smoothing, "reduction": reduction}
        name = label(x=shape, smooth=smoothing, ignore=ignore, weighted=weighted) + f"-{reduction}"
        if ignore is not None:
            options["ignore_index"] = ignore
        yield cross_entropy_case(name, shape, weighted, **options)
    yield cross_entropy_case("defaults", (6, 10))
    yield cross_entropy_case("batch_of_one", (1, 3))
    yield cross_entropy_case("one_class", (3, 1))
    yield cross_entropy_case("smoothing_one", (4, 3), label_smoothing=1.0)
    yield cross_entropy_case("far_apart", (4, 3), scale=300.0)
    yield cross_entropy_case("volume", (2, 3, 2, 1, 2), reduction="none")
    yield cross_entropy_case("impossible_class", (4, 3), impossible=True)
    for reduction in ("mean", "sum", "none"):
        yield cross_entropy_case(f"empty_batch-{reduction}", (0, 3), reduction=reduction)
        yield cross_entropy_case(
            f"all_ignored-{reduction}", (1, 3, 2), ignore_index=-100, reduction=reduction
        )
    for layout in ("batch_last", "reversed"):
        yield cross_entropy_case("layout", (5, 4, 2, 3), layout=layout)
    for shape, reduction in itertools.product(
        ((6,), (3, 4), (2, 3, 2, 2)), ("mean", "sum", "none")
    ):
        case = Case("mse_loss", f"{label(x=shape)}-{reduction}", reduction=reduction)
        prediction, target = case.draw("prediction", shape), case.rng.integers(-96, 97, shape) / 32
        loss = T.mse_loss(prediction, case.give("target", target, leaf=False), reduction=reduction)
        yield case.finish_loss(loss)
    for shape, weight, pos_weight, reduction in itertools.product(
        ((3, 4), (2, 3, 2, 2)), (None, "row", "full"), (False, True), ("mean", "sum", "none")
    ):
        name = label(x=shape, weight=weight, pos=pos_weight) + f"-{reduction}"
        yield binary_case(name, shape, weight, pos_weight, reduction)
    yield binary_case("extremes-none", EXTREMES.shape, None, False, "none", values=EXTREMES * 10)
    yield binary_case("empty_batch-sum", (0, 4), None, True, "sum")


def cross_entropy_case(
    name, shape, weighted=False, *, layout=None, scale=1.0, impossible=False, **kw
):
    case = Case("softmax_cross_entropy", name, layout, **kw)
    values = scale * case.rng.integers(-96, 97, shape) / 32
    labels = case.rng.integers(0, shape[1], (shape[0], *shape[2:]))
    if impossible:
        values[labels != 1, 1] = -np.inf
    logits = case.give("logits", values)
    ignore = kw.get("ignore_index")
    if name.startswith("all_ignored"):
        labels[...] = ignore
    elif ignore == -100:
        labels.reshape(-1)[::3] = ignore
    elif ignore is not None:
        labels.reshape(-1)[0], labels.reshape(-1)[1] = ignore, (ignore + 1) % shape[1]
    target = case.give("labels", labels, leaf=False)
    weight = None
    if weighted:
        weight = case.give("weight", case.rng.integers(8, 65, shape[1]) / 32, leaf=False)
    return case.finish_loss(T.cross_entropy(logits, target, weight, **kw))


def binary_case(name, shape, weight, pos_weight, reduction, values=None):
    case = Case("binary_cross_entropy_with_logits", name, reduction=reduction)
    logits = case.draw("logits", shape) if values is None else case.give("logits", values)
    targets = case.give("targets", case.rng.integers(0, 9, shape) / 8, leaf=False)
    if weight:
        weight_shape = shape if weight == "full" else shape[-1:]
        weight = case.give("weight", case.rng.integers(1, 65, weight_shape) / 32, leaf=False)
    positive = None
    if pos_weight:
        positive = case.give("pos_weight", case.rng.integers(8, 97, shape[-1:]) / 32, leaf=False)
    loss = T.binary_cross_entropy_with_logits(
        logits, targets, weight, reduction=reduction, pos_weight=positive
    )
    return case.finish_loss(loss)


# Configurations that must be refused


TORCH_NAMES = {
    "dense": "linear",
    "softmax_cross_entropy": "cross_entropy",
    "im2col": "unfold",
    "col2im": "fold",
}


def torch_refuses(case: dict) -> bool | None:
    """Whether PyTorch refuses it too; None where it has no such function or argument."""
    operation = getattr(T, TORCH_NAMES.get(case["op"], case["op"]), None)
    if operation is None or not isinstance(case["options"].get("padding", 0), int):
        return None

    def tensor(value: object) -> object:
        if isinstance(value, dict):
            values = value.get("values", np.zeros(value["shape"]))
            return torch.tensor(values, dtype=getattr(torch, value["dtype"]))
        return value

    kw = {key: tensor(value) for key, value in case["options"].items() if key != "seed"}
    if "axis" in kw:
        kw["dim"] = kw.pop("axis")
    try:
        with warnings.catch_warnings(action="ignore"):
            operation(*map(tensor, case["arguments"]), **kw)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return True
    return False


def main() -> None:
    makers = (
        convolutions,
        complex_convolutions,
        transposed_convolutions,
        columns_cases,
        pooling,
        adaptive_pooling,
        dense,
        activations,
        normalization,
        losses,
    )
    torch.set_num_threads(1)
    ids: set[str] = set()
    for family, cases in zip(FAMILIES, makers, strict=True):
        writer = Writer()
        for case in cases():
            if case.id in ids:
                raise ValueError(f"two cases are called {case.id}")
            ids.add(case.id)
            writer.add(case)
        writer.save(family)
        print(f"{family:18} {len(writer.lines):4} cases")
    lines = [json.dumps({**case, "torch_refuses": torch_refuses(case)}) for case in INVALID]
    (FOLDER / "invalid.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{len(ids)} valid and {len(lines)} invalid cases")


if __name__ == "__main__":
    main()
