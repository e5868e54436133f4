"""Batch normalisation per channel (Ioffe & Szegedy, 2015), forward and backward."""

from arraycnn.arrays import Array
from arraycnn.backends.memory_format import batch_view, buffer_of
from arraycnn.backends.reference.elementwise import ElementwisePrimitives


class NormalizationPrimitives(ElementwisePrimitives):
    """Per-channel statistics and affine maps; arrays are (N, C, *S) in batch-last memory."""

    def channel_moments(self, x: Array) -> tuple[Array, Array]:
        """Mean and (biased) variance of each channel: two arrays (C,)."""
        rows = rows_of(x)  # (C, N·L)
        mean = rows.mean(axis=1)
        return mean, self.xp.square(rows - mean[:, None]).mean(axis=1)

    def scale_shift(self, x: Array, scale: Array, shift: Array, relu: bool = False) -> Array:
        """y = scale·x + shift, both (C,); with ``relu``, max(y, 0)."""
        buffer = buffer_of(x)
        per_channel = (-1,) + (1,) * (buffer.ndim - 1)
        y = buffer * scale.reshape(per_channel)
        y += shift.reshape(per_channel)
        if relu:
            self.xp.maximum(y, 0, out=y)
        return batch_view(y)

    def channel_sum(self, x: Array) -> Array:
        """The sum of each channel: (C,)."""
        return rows_of(x).sum(axis=1)

    def batch_norm_grad(
        self, x: Array, mean: Array, inverse_std: Array, scale: Array, grad_output: Array,
        y: Array | None = None,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """Gradients of h = scale·x̂ + shift, x̂ = (x − mean)·inverse_std, through the statistics.

        ``grad_output`` is that of h; where ``y`` is given, that of y = max(h, 0).
        δscale = Σ Δ·x̂, δshift = Σ Δ, δx = scale·inverse_std·(Δ − mean(Δ) − x̂·mean(Δ·x̂)).
        """
        if y is not None:
            grad_output = self.relu_grad(y, grad_output)
        delta = rows_of(grad_output)  # (C, N·L)
        normalised = (rows_of(x) - mean[:, None]) * inverse_std[:, None]
        grad_scale = (delta * normalised).sum(axis=1)
        grad_shift = delta.sum(axis=1)
        count = max(1, delta.shape[1])
        grad = delta - (grad_shift / count)[:, None] - normalised * (grad_scale / count)[:, None]
        grad *= (scale * inverse_std)[:, None]
        return batch_view(grad.reshape(buffer_of(x).shape)), grad_scale, grad_shift


def rows_of(x: Array) -> Array:
    """The buffer of x as one row per channel: (C, N·L)."""
    buffer = buffer_of(x)
    return buffer.reshape(buffer.shape[0], x.size // max(1, buffer.shape[0]))
