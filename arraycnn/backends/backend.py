"""The backend: owner of the arrays, and every operation on them.

Arrays come and go with the shape (N, C, *spatial) and, inside, live in a C-contiguous buffer
(C, *spatial, N): batch last (`memory_format`). A convolution is then one matrix product whose
result already is the next layer's input, and flattening is a reshape.

A backend of one's own is a subclass of `Backend` that defines the abstract methods of its device;
all the others work then. Each may be overridden to make it faster, never to change what is
computed: `arraycnn.testing.check_backend` compares every one with the reference. Signatures and
the mathematics stand in ``reference/``, in the file that a group below is named after.
"""

from arraycnn.backends.reference.convolution import ConvolutionPrimitives
from arraycnn.backends.reference.dense import DensePrimitives
from arraycnn.backends.reference.elementwise import ElementwisePrimitives
from arraycnn.backends.reference.loss import LossPrimitives
from arraycnn.backends.reference.normalization import NormalizationPrimitives
from arraycnn.backends.reference.pooling import PoolingPrimitives
from arraycnn.backends.reference.updates import UpdatePrimitives

# N batch, C channels, O outputs, G groups, S sizes in space, L positions, K kernel sizes, I inputs
PRIMITIVES: dict[str, dict[str, str]] = {
    # Whoever has arrays of their own defines these.
    "device": {
        "owns": "whether an object is an array of this device; abstract",
        "asarray": "anything array-like → an array here, not copied where it is one; abstract",
        "to_numpy": "an array → the same in host memory; abstract",
        "synchronize": "wait for the device; abstract",
        "describe": "device and libraries in a line; abstract",
        "select": "make the device the current one, where there is such a thing",
    },
    # Override to allocate elsewhere; the rest follows from `new_buffer`.
    "memory_format": {
        "new_buffer": "uninitialised memory of a shape (C, *S, N)",
        "empty": "an uninitialised batch-last array of a shape (N, C, *S)",
        "zeros": "a batch-last array of zeros",
        "batch_last": "x, or its copy, in batch-last memory",
        "padded": "x (N, C, *S) → its buffer with the window's padding (C, *padded, N)",
        "unpadded": "the inverse: (C, *padded, N) → (N, C, *S)",
        "patches": "x (N, C, *S) → a view of its patches (C, *K, *out, N)",
    },
    # Override `candidates` and `adjoint`, which say how: then the first five need no override.
    "convolution": {
        "convolution": "h = K v + b, or max(h, 0): x (N, C, *S), K (O, C/G, *K) → (N, O, *out)",
        "convolution_input_grad": "δx = col2im(Kᴴ Δ): Δ (N, O, *out), K → (N, C, *S)",
        "convolution_weight_grad": "δK = Δ vᴴ: x (N, C, *S), Δ (N, O, *out) → (O, C/G, *K)",
        "convolution_grads": "both gradients: x, Δ, K → δx, δK",
        "workspace_bytes": "what the columns of `convolution` take, for given sizes",
        "algorithms": "the algorithms to try for a problem, in this order",
        "candidates": "the algorithms that apply to a problem, the one that always does last",
        "adjoint": "the convolution that is to compute the input gradient, if any",
        "im2col": "x (N, C, *S) → columns (C·taps, L·N)",
        "col2im": "the adjoint: columns (C·taps, L·N) → (N, C, *S)",
    },
    # Memory bound: worth overriding where one pass can replace one per tap.
    "pooling": {
        "max_pool": "the largest of each window, or 0 if that is more: (N, C, *S) → (N, C, *out)",
        "max_pool_argmax": "the same, and which tap of its window that was: two (N, C, *out)",
        "max_pool_indices": "those taps → positions in the flat plane (N, C, *out)",
        "max_pool_grad": "taps, Δ (N, C, *out) → δx (N, C, *S)",
        "sum_pool": "the sum of each window: (N, C, *S) → (N, C, *out)",
        "sum_pool_grad": "the adjoint: Δ (N, C, *out) → δx (N, C, *S)",
        "global_sum_pool": "the sum over all positions: (N, C, *S) → (N, C)",
    },
    # Memory bound: worth overriding where sums and maps can share a pass.
    "normalization": {
        "channel_moments": "mean and variance of each channel: (N, C, *S) → two (C,)",
        "channel_sum": "the sum of each channel: (N, C, *S) → (C,)",
        "scale_shift": "scale·x + shift per channel, or max(…, 0): (N, C, *S), two (C,)",
        "batch_norm_grad": "gradients of batch normalisation: δx (N, C, *S), δscale, δshift (C,)",
    },
    # Matrix products: `xp.matmul` is seldom beaten.
    "dense": {
        "dense": "h = K v + b, or max(h, 0): x (N, I), K (O, I) → (N, O)",
        "dense_input_grad": "δv = Kᵀ Δ: Δ (N, O), K (O, I) → (N, I)",
        "dense_weight_grad": "δK = Δ vᵀ: x (N, I), Δ (N, O) → (O, I)",
    },
    # Memory bound, of any shape; worth overriding to save passes.
    "elementwise": {
        "add": "a + b, or max(a + b, 0)",
        "relu": "max(x, 0)",
        "relu_grad": "Δ where the output y is above 0, else 0",
        "dropout": "x with elements dropped by a counter's random numbers, bit for bit",
        "erf": "the error function",
    },
    # Override to keep everything on the device.
    "loss": {
        "softmax_cross_entropy": "logits (N, classes, *S), labels (N, *S) → loss, δlogits",
        "check_labels": "refuse labels that are no class",
    },
    # In place; override to apply a rule to all parameters in one go.
    "updates": {
        "update_parameters": "an optimizer's rule, applied to each (parameter, gradient, *slots)",
    },
}


class Backend(
    ConvolutionPrimitives,
    PoolingPrimitives,
    NormalizationPrimitives,
    DensePrimitives,
    ElementwisePrimitives,
    LossPrimitives,
    UpdatePrimitives,
):
    """Arrays of one device and the operations on them, which `PRIMITIVES` lists.

    Attributes:
        name: ``"cpu"``, ``"cuda:0"``, …
        xp: the array module, NumPy, CuPy or another one with their functions.
        workspace_limit: bytes that the column matrix of a convolution may take; may be assigned.
    """
