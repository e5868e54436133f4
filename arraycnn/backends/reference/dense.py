"""Dense products: the lecture's h = K v + b with samples as columns, and its gradients."""

from arraycnn.arrays import Array
from arraycnn.backends.memory_format import MemoryFormat


class DensePrimitives(MemoryFormat):
    """Matrix products; arrays of any memory order."""

    def dense(self, x: Array, weight: Array, bias: Array | None, relu: bool = False) -> Array:
        """h = K v + b with samples as columns: x (N, I), weight (O, I) → (N, O), batch last.

        With ``relu``, max(h, 0).
        """
        h = weight @ x.T  # (O, N)
        if bias is not None:
            h += bias[:, None]
        if relu:
            self.xp.maximum(h, 0, out=h)
        return h.T

    def dense_input_grad(self, grad_output: Array, weight: Array) -> Array:
        """δv = Kᵀ Δ: grad_output (N, O) → (N, I), batch last."""
        return (weight.T @ grad_output.T).T

    def dense_weight_grad(self, x: Array, grad_output: Array) -> Array:
        """δK = Δ vᵀ: x (N, I), grad_output (N, O) → (O, I)."""
        return grad_output.T @ x
