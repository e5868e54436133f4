"""The dense (fully connected) layer: h = K v + b without a window."""

from arraycnn.arguments import check_arrays, check_channel_vector
from arraycnn.arrays import Array


def dense(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """h = K v + b for every sample v: x (N, in_features) → (N, out_features).

    Args:
        x: (N, in_features). weight: (out_features, in_features). bias: (out_features,) or None.

    Raises:
        TypeError: not arrays, integer or differing dtypes. ValueError: shapes that do not fit.
    """
    backend = check_arrays(x=x, weight=weight, optional={"bias": bias})
    check_dense(x, weight)
    check_channel_vector("bias", bias, weight.shape[0], "the output")
    return backend.dense(x, weight, bias)


def dense_grad(x: Array, weight: Array, grad_output: Array) -> tuple[Array, Array, Array]:
    """Gradients of `dense`: δv = Kᵀ Δ, δK = Δ vᵀ and δb = Σ Δ, in the order x, weight, bias.

    Raises:
        TypeError, ValueError: as `dense`; ``grad_output`` not (N, out_features).
    """
    backend = check_arrays(x=x, weight=weight, grad_output=grad_output)
    check_dense(x, weight)
    if grad_output.shape != (x.shape[0], weight.shape[0]):
        raise ValueError(
            f"grad_output must have shape {(x.shape[0], weight.shape[0])} like the output of "
            f"dense, got {tuple(grad_output.shape)}"
        )
    return (
        backend.dense_input_grad(grad_output, weight),
        backend.dense_weight_grad(x, grad_output),
        backend.channel_sum(grad_output),
    )


def check_dense(x: Array, weight: Array) -> None:
    """Refuse x and weight that are not (N, in_features) and (out_features, in_features)."""
    if weight.ndim != 2:
        raise ValueError(
            f"weight must be (out_features, in_features), got shape {tuple(weight.shape)}"
        )
    if x.ndim != 2 or x.shape[1] != weight.shape[1]:
        remedy = "; flatten it first, e.g. x.reshape(len(x), -1)" if x.ndim > 2 else ""
        raise ValueError(
            f"x must be (N, {weight.shape[1]}) for weight of shape {tuple(weight.shape)}, got "
            f"{tuple(x.shape)}{remedy}"
        )
