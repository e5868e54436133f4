"""Dense products on CUDA: cuBLAS, or a convolution at a single position where it is avoided."""

from arraycnn.arrays import Array
from arraycnn.backends.cuda.convolution import CudaConvolution
from arraycnn.backends.reference.dense import DensePrimitives
from arraycnn.geometry import conv_window

POINT = conv_window(1, 1)


class CudaDense(CudaConvolution, DensePrimitives):
    """See the base class for what is computed."""

    def dense(self, x: Array, weight: Array, bias: Array | None, relu: bool = False) -> Array:
        if self.element(x, weight) is None:
            return super().dense(x, weight, bias, relu)
        if self.avoids_cublas():
            point, kernels = self.batch_last(x)[:, :, None], weight[:, :, None]
            return self.convolution(point, kernels, bias, POINT, 1, relu)[:, :, 0]
        h = self.xp.matmul(weight, x.T)  # (O, N)
        self.add_bias(h, bias, relu)
        return h.T

    def dense_input_grad(self, grad_output: Array, weight: Array) -> Array:
        if not self.avoids_cublas():
            return super().dense_input_grad(grad_output, weight)
        delta = self.batch_last(grad_output)[:, :, None]
        return self.convolution_input_grad(delta, weight[:, :, None], POINT, 1)[:, :, 0]

    def dense_weight_grad(self, x: Array, grad_output: Array) -> Array:
        if not self.avoids_cublas():
            return super().dense_weight_grad(x, grad_output)
        x, delta = self.batch_last(x)[:, :, None], self.batch_last(grad_output)[:, :, None]
        shape = (delta.shape[1], x.shape[1], 1)
        return self.convolution_weight_grad(x, delta, shape, POINT, 1)[:, :, 0]
