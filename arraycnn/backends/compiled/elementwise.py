"""ReLU in compiled loops, see `kernels.TABLE`."""

from arraycnn.arrays import Array
from arraycnn.backends.compiled.device import CompiledDevice
from arraycnn.backends.cpu.elementwise import CpuElementwise, in_rows


class CompiledElementwise(CompiledDevice, CpuElementwise):
    """See the base class for what is computed."""

    def relu(self, x: Array, out: Array | None = None) -> Array:
        y = self._empty_like(x) if out is None else out
        rows = in_rows(x, y)
        if not rows or not self.takes(*rows):
            return super().relu(x, y)
        self.run("relu", *rows)
        return y

    def relu_grad(self, y: Array, grad_output: Array) -> Array:
        grad = self._empty_like(y)
        rows = in_rows(y, grad_output, grad)
        if not rows or not self.takes(*rows):
            return super().relu_grad(y, grad_output)
        self.run("relu_grad", *rows)
        return grad
