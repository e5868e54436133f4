"""Batch normalisation (Ioffe & Szegedy, "Batch normalization", ICML 2015) and dropout."""

from arraycnn.arguments import (
    as_count,
    as_probability,
    as_real,
    check_arrays,
    check_channel_vector,
    check_shape,
)
from arraycnn.arrays import Array
from arraycnn.backends import Backend


def batch_norm(
    x: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Array:
    """y = weight·(x − mean) / √(var + eps) + bias per channel, x (N, C, ...).

    In training, mean and (biased) variance are those of the batch, and the running arrays, where
    given, move towards them in place: r ← (1 − momentum)·r + momentum·batch, the variance unbiased.
    Otherwise the running arrays are used. All arrays but x are (C,).

    Raises:
        TypeError: integer or differing dtypes. ValueError: shapes that do not fit; no running
            statistics outside training; one value per channel, or none, in training.
    """
    backend = _enter(x, running_mean, running_var, weight, bias)
    momentum, eps = as_probability("momentum", momentum), as_real("eps", eps)
    x = backend.batch_last(x)
    if training:
        check_batch(x)
        mean, var = backend.channel_moments(x)
        update_running(running_mean, running_var, mean, var, x.size // x.shape[1], momentum)
    else:
        mean, var = _running(running_mean, running_var)
    scale = 1 / backend.xp.sqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return backend.scale_shift(x, scale, shift)


def batch_norm_grad(
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None,
    grad_output: Array,
    *,
    training: bool = False,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """Gradients of `batch_norm` with respect to x, weight and bias.

    In training they pass through the batch's statistics too.

    Raises:
        TypeError, ValueError: as `batch_norm`; ``grad_output`` not of the shape of x.
    """
    backend = _enter(x, running_mean, running_var, weight, None)
    check_arrays(x=x, grad_output=grad_output)
    check_shape("grad_output", grad_output.shape, x.shape, "like x")
    eps = as_real("eps", eps)
    x, grad_output = backend.batch_last(x), backend.batch_last(grad_output)
    if training:
        check_batch(x)
        mean, var = backend.channel_moments(x)
    else:
        mean, var = _running(running_mean, running_var)
    inverse_std = 1 / backend.xp.sqrt(var + eps)
    scale = backend.xp.ones_like(inverse_std) if weight is None else weight
    if training:
        return backend.batch_norm_grad(x, mean, inverse_std, scale, grad_output)
    normalised = backend.scale_shift(x, inverse_std, -mean * inverse_std)
    return (
        grad_output * (scale * inverse_std).reshape(-1, *(1,) * (x.ndim - 2)),
        backend.channel_sum(grad_output * normalised),
        backend.channel_sum(grad_output),
    )


def update_running(
    running_mean: Array | None, running_var: Array | None, mean: Array, var: Array, count: int,
    momentum: float,
) -> None:  # fmt: skip
    """Move running statistics towards a batch's, of ``count`` values per channel, in place."""
    if running_mean is not None:
        running_mean += momentum * (mean - running_mean)
    if running_var is not None:
        running_var += momentum * (var * (count / (count - 1)) - running_var)


def check_batch(x: Array) -> None:
    """Refuse a batch with no variance: fewer than two values per channel."""
    if x.size < 2 * x.shape[1]:
        raise ValueError(
            f"x must have at least 2 values per channel to normalise over in training, got shape "
            f"{tuple(x.shape)}; use a larger batch (drop_last=True drops a last batch of one)"
        )


def dropout(x: Array, p: float = 0.5, *, seed: int, counter: int = 0) -> Array:
    """Zero each element with probability ``p`` and scale the others by 1 / (1 − p).

    Srivastava et al., "Dropout", JMLR 2014, in the inverted form. The mask is a function of
    (seed, counter) and the element's place in (C, *S, N) order alone: the same on every backend.

    Raises:
        TypeError: integer arrays, numbers of wrong type. ValueError: p outside [0, 1], negative
            seed or counter.
    """
    backend = check_arrays(x=x)
    return backend.dropout(x, *_mask(p, seed, counter))


def dropout_grad(grad_output: Array, p: float = 0.5, *, seed: int, counter: int = 0) -> Array:
    """Gradient of `dropout` with respect to x: the same mask and scale."""
    backend = check_arrays(grad_output=grad_output)
    return backend.dropout(grad_output, *_mask(p, seed, counter))


def _mask(p: float, seed: int, counter: int) -> tuple[float, int, int]:
    return (
        as_probability("p", p),
        as_count("seed", seed, minimum=0, maximum=None),
        as_count("counter", counter, minimum=0, maximum=None),
    )


def _enter(
    x: Array, mean: Array | None, var: Array | None, weight: Array | None, bias: Array | None
) -> Backend:
    vectors = {"running_mean": mean, "running_var": var, "weight": weight, "bias": bias}
    backend: Backend = check_arrays(x=x, optional=vectors)
    if x.ndim < 2:
        raise ValueError(f"x must be (N, channels, ...), got shape {tuple(x.shape)}")
    for name, array in vectors.items():
        check_channel_vector(name, array, x.shape[1], "x")
    return backend


def _running(mean: Array | None, var: Array | None) -> tuple[Array, Array]:
    if mean is None or var is None:
        raise ValueError(
            "running_mean and running_var must be given when training=False; pass both, or "
            "training=True to use the batch's own statistics"
        )
    return mean, var
