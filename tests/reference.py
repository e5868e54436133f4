"""The truth: every windowed operation as plain loops in float64 (or complex128).

Written from the definitions and sharing nothing with the package. Spatial rank is free; sizes per
axis are tuples and paddings are (before, after) pairs. Only the batch axis is ever vectorised.
"""

from collections.abc import Iterator
from math import ceil, exp, floor, log

import numpy as np

Sizes = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


def window_count(
    size: int, kernel: int, stride: int, pad: tuple[int, int], dilation: int, ceil_mode: bool
) -> int:
    """Place windows from the left, one after the other, and count those that are allowed.

    A window must end inside the padded input. With ``ceil_mode`` one more window, which sticks
    out, is allowed as long as the previous one left elements uncovered and the new one starts
    before the padding on the right.
    """
    padded = pad[0] + size + pad[1]
    reach = (kernel - 1) * dilation + 1
    count = 0
    while True:
        start = count * stride
        fits = start + reach <= padded
        previous_fell_short = count > 0 and start - stride + reach < padded
        sticks_out = ceil_mode and previous_fell_short and start < pad[0] + size
        if not (fits or sticks_out):
            return count
        count += 1


def output_size(
    size: Sizes, kernel: Sizes, stride: Sizes, pad: Pairs, dilation: Sizes, ceil_mode: bool = False
) -> Sizes:
    axes = zip(size, kernel, stride, pad, dilation, strict=True)
    return tuple(window_count(*axis, ceil_mode) for axis in axes)


def same_padding(size: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Pairs:
    """The fewest zeros that give ceil(size / stride) outputs, an odd one at the end."""
    pairs = []
    for i, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        total = 0
        while window_count(i, k, s, (0, total), d, False) < ceil(i / s):
            total += 1
        pairs.append((total // 2, total - total // 2))
    return tuple(pairs)


def connections(
    size: Sizes, kernel: Sizes, out_size: Sizes, stride: Sizes, pad: Pairs, dilation: Sizes
) -> Iterator[tuple[Sizes, Sizes, Sizes]]:
    """(output position, kernel tap, input position) for every tap that lies inside the input."""
    for position in np.ndindex(*out_size):
        for tap in np.ndindex(*kernel):
            source = tuple(
                q * s - before + t * d
                for q, s, (before, _), t, d in zip(
                    position, stride, pad, tap, dilation, strict=True
                )
            )
            if all(0 <= at < limit for at, limit in zip(source, size, strict=True)):
                yield position, tap, source


def _channel_pairs(in_channels: int, out_channels: int, groups: int) -> Iterator[Sizes]:
    """(input channel, output channel, input channel within its group) that are connected."""
    for o in range(out_channels):
        group = o // (out_channels // groups)
        for c_in_group in range(in_channels // groups):
            yield group * (in_channels // groups) + c_in_group, o, c_in_group


def _wide(array: np.ndarray) -> type:
    return np.complex128 if np.iscomplexobj(array) else np.float64


def conv(x, weight, bias=None, *, stride, pad, dilation, groups=1):
    """y[n,o,q] = b[o] + sum over c and taps t of w[o,c,t] x[n,c,q*stride - before + t*dilation]."""
    size, kernel = x.shape[2:], weight.shape[2:]
    out_size = output_size(size, kernel, stride, pad, dilation)
    y = np.zeros((x.shape[0], weight.shape[0], *out_size), _wide(x))
    if bias is not None:
        y += bias.reshape(1, -1, *(1 for _ in size))
    for q, t, source in connections(size, kernel, out_size, stride, pad, dilation):
        for c, o, c_in_group in _channel_pairs(x.shape[1], weight.shape[0], groups):
            y[:, o, *q] += weight[o, c_in_group, *t] * x[:, c, *source]
    return y


def conv_input_grad(input_shape, weight, grad, *, stride, pad, dilation, groups=1):
    """The derivative of y with respect to x is w; a complex gradient takes its conjugate."""
    size, kernel = input_shape[2:], weight.shape[2:]
    grad_x = np.zeros(input_shape, _wide(grad))
    for q, t, source in connections(size, kernel, grad.shape[2:], stride, pad, dilation):
        for c, o, c_in_group in _channel_pairs(input_shape[1], weight.shape[0], groups):
            grad_x[:, c, *source] += np.conj(weight[o, c_in_group, *t]) * grad[:, o, *q]
    return grad_x


def conv_weight_grad(x, weight_shape, grad, *, stride, pad, dilation, groups=1):
    """The derivative of y with respect to w is x; a complex gradient takes its conjugate."""
    size, kernel = x.shape[2:], weight_shape[2:]
    grad_weight = np.zeros(weight_shape, _wide(grad))
    for q, t, source in connections(size, kernel, grad.shape[2:], stride, pad, dilation):
        for c, o, c_in_group in _channel_pairs(x.shape[1], weight_shape[0], groups):
            products = np.conj(x[:, c, *source]) * grad[:, o, *q]
            grad_weight[o, c_in_group, *t] += products.sum()
    return grad_weight


def conv_transpose(x, weight, bias=None, *, stride, pad, output_padding, dilation, groups=1):
    """Every input element stamps the kernel onto the output at i*stride - before + t*dilation."""
    size, kernel = x.shape[2:], weight.shape[2:]
    out_channels = weight.shape[1] * groups
    out_size = tuple(
        (i - 1) * s + (k - 1) * d + 1 + extra - before - after
        for i, s, k, d, extra, (before, after) in zip(
            size, stride, kernel, dilation, output_padding, pad, strict=True
        )
    )
    y = np.zeros((x.shape[0], out_channels, *out_size), _wide(x))
    if bias is not None:
        y += bias.reshape(1, -1, *(1 for _ in size))
    for i, t, target in connections(out_size, kernel, size, stride, pad, dilation):
        for o, c, o_in_group in _channel_pairs(out_channels, x.shape[1], groups):
            y[:, o, *target] += weight[c, o_in_group, *t] * x[:, c, *i]
    return y


def im2col(x, kernel, *, stride, pad, dilation):
    """Row (c, tap) and column (position) hold what the tap sees there; zero in the padding."""
    size = x.shape[2:]
    out_size = output_size(size, kernel, stride, pad, dilation)
    columns = np.zeros((*x.shape[:2], *kernel, *out_size), _wide(x))
    for q, t, source in connections(size, kernel, out_size, stride, pad, dilation):
        columns[:, :, *t, *q] = x[:, :, *source]
    return columns.reshape(x.shape[0], x.shape[1] * np.prod(kernel), np.prod(out_size))


def col2im(columns, size, kernel, *, stride, pad, dilation):
    """Every column entry is added to the input element that the tap sees there."""
    out_size = output_size(size, kernel, stride, pad, dilation)
    batch, channels = columns.shape[0], columns.shape[1] // int(np.prod(kernel))
    columns = columns.reshape(batch, channels, *kernel, *out_size)
    x = np.zeros((batch, channels, *size), _wide(columns))
    for q, t, source in connections(size, kernel, out_size, stride, pad, dilation):
        x[:, :, *source] += columns[:, :, *t, *q]
    return x


def max_pool(x, kernel, *, stride, pad, dilation, ceil_mode=False):
    """(maxima, flat indices in the unpadded plane): NaN wins, the first of equals wins."""
    size = x.shape[2:]
    out_size = output_size(size, kernel, stride, pad, dilation, ceil_mode)
    values = np.zeros((*x.shape[:2], *out_size))
    indices = np.full((*x.shape[:2], *out_size), -1, np.int64)
    for q, _, source in connections(size, kernel, out_size, stride, pad, dilation):
        for n, c in np.ndindex(*x.shape[:2]):
            candidate, best = x[n, c, *source], values[n, c, *q]
            first = indices[n, c, *q] == -1
            if first or candidate > best or (np.isnan(candidate) and not np.isnan(best)):
                values[n, c, *q] = candidate
                indices[n, c, *q] = np.ravel_multi_index(source, size)
    return values, indices


def scatter_indices(input_shape, indices, grad):
    """The gradient of any maximum: each output's gradient goes to the element it came from."""
    grad_x = np.zeros(input_shape)
    planes = grad_x.reshape(*input_shape[:2], int(np.prod(input_shape[2:])))
    for n, c, *q in np.ndindex(*grad.shape):
        planes[n, c, indices[n, c, *q]] += grad[n, c, *q]
    return grad_x


def _divisor(position, size, kernel, stride, pad, count_include_pad, divisor_override) -> int:
    if divisor_override is not None:
        return divisor_override
    count = 1
    for q, i, k, s, (before, after) in zip(position, size, kernel, stride, pad, strict=True):
        low, high = (-before, i + after) if count_include_pad else (0, i)
        count *= sum(low <= q * s - before + t < high for t in range(k))
    return count


def avg_pool(
    x, kernel, *, stride, pad, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """Sums over windows, divided by what the flags say."""
    size, dilation = x.shape[2:], (1,) * len(kernel)
    out_size = output_size(size, kernel, stride, pad, dilation, ceil_mode)
    y = np.zeros((*x.shape[:2], *out_size))
    for q, _, source in connections(size, kernel, out_size, stride, pad, dilation):
        y[:, :, *q] += x[:, :, *source]
    for q in np.ndindex(*out_size):
        y[:, :, *q] /= _divisor(q, size, kernel, stride, pad, count_include_pad, divisor_override)
    return y


def avg_pool_grad(
    input_shape, kernel, grad, *, stride, pad, count_include_pad=True, divisor_override=None
):
    size, dilation = input_shape[2:], (1,) * len(kernel)
    grad_x = np.zeros(input_shape)
    for q, _, source in connections(size, kernel, grad.shape[2:], stride, pad, dilation):
        grad_x[:, :, *source] += grad[:, :, *q] / _divisor(
            q, size, kernel, stride, pad, count_include_pad, divisor_override
        )
    return grad_x


def adaptive_windows(size: Sizes, out_size: Sizes) -> Iterator[tuple[Sizes, list[Sizes]]]:
    """(output position, input positions in row-major order): floor(q i/o) to ceil((q+1) i/o)."""
    for q in np.ndindex(*out_size):
        starts = [floor(a * i / o) for a, i, o in zip(q, size, out_size, strict=True)]
        stops = [ceil((a + 1) * i / o) for a, i, o in zip(q, size, out_size, strict=True)]
        extent = [stop - start for start, stop in zip(starts, stops, strict=True)]
        yield (
            q,
            [tuple(a + b for a, b in zip(starts, t, strict=True)) for t in np.ndindex(*extent)],
        )


def adaptive_avg_pool(x, out_size):
    y = np.zeros((*x.shape[:2], *out_size))
    for q, window in adaptive_windows(x.shape[2:], out_size):
        for source in window:
            y[:, :, *q] += x[:, :, *source] / len(window)
    return y


def adaptive_avg_pool_grad(input_shape, out_size, grad):
    grad_x = np.zeros(input_shape)
    for q, window in adaptive_windows(input_shape[2:], out_size):
        for source in window:
            grad_x[:, :, *source] += grad[:, :, *q] / len(window)
    return grad_x


def adaptive_max_pool(x, out_size):
    values = np.zeros((*x.shape[:2], *out_size))
    indices = np.zeros(values.shape, np.int64)
    for q, window in adaptive_windows(x.shape[2:], out_size):
        flat = [np.ravel_multi_index(source, x.shape[2:]) for source in window]
        for n, c in np.ndindex(*x.shape[:2]):
            seen = [x[n, c, *source] for source in window]
            winner = int(np.argmax(seen))  # the first maximum, or the first NaN
            values[n, c, *q], indices[n, c, *q] = seen[winner], flat[winner]
    return values, indices


def batch_norm(x, mean, var, weight, bias, eps):
    """y = weight (x - mean) / sqrt(var + eps) + bias with the given statistics per channel."""
    y = np.zeros(x.shape)
    for c in range(x.shape[1]):
        y[:, c] = weight[c] * (x[:, c] - mean[c]) / (var[c] + eps) ** 0.5 + bias[c]
    return y


def batch_statistics(x):
    """(mean, biased variance) of each channel over everything else."""
    channels = [x[:, c].ravel().tolist() for c in range(x.shape[1])]
    mean = [sum(values) / len(values) for values in channels]
    var = [
        sum((value - m) ** 2 for value in values) / len(values)
        for values, m in zip(channels, mean, strict=True)
    ]
    return np.array(mean), np.array(var)


def cross_entropy(logits, labels, *, weight=None, label_smoothing=0.0, ignore_index=None):
    """(loss per position, weight per position) of logits (N, classes) and labels (N,).

    The target distribution is (1 - smoothing) on the label plus smoothing / classes everywhere;
    class weights multiply each term of the sum; the normaliser counts the labels' weights.
    """
    batch, classes = logits.shape
    weight = np.ones(classes) if weight is None else weight
    loss, norm = np.zeros(batch), np.zeros(batch)
    for n in range(batch):
        if labels[n] == ignore_index:
            continue
        top = max(logits[n])
        log_sum = top + log(sum(exp(value - top) for value in logits[n]))
        for k in range(classes):
            target = label_smoothing / classes + (1 - label_smoothing) * (k == labels[n])
            if target:  # a class that is impossible (logit −∞) may be no one's target
                loss[n] -= weight[k] * target * (logits[n, k] - log_sum)
        norm[n] = weight[labels[n]]
    return loss, norm
