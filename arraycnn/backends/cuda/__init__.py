"""The CUDA backend: CuPy arrays, and kernels of our own where plain CuPy would be slow.

What is not overridden here runs as `reference` writes it, through CuPy. A device is CuPy's
business: everything is launched on the current stream of the current device.
"""

from arraycnn.backends.backend import PRIMITIVES, Backend
from arraycnn.backends.cuda.dense import CudaDense
from arraycnn.backends.cuda.device import guard
from arraycnn.backends.cuda.elementwise import CudaElementwise
from arraycnn.backends.cuda.loss import CudaLoss
from arraycnn.backends.cuda.pooling import CudaPooling
from arraycnn.backends.cuda.updates import CudaUpdates


class CudaBackend(CudaDense, CudaPooling, CudaLoss, CudaElementwise, CudaUpdates, Backend):
    """CuPy arrays on one CUDA device.

    Args:
        device: its index.

    Attributes:
        tf32: whether float32 convolutions are computed by tensor cores, which round the factors to
            10 bits of mantissa; False unless assigned.

    Raises:
        BackendUnavailableError: CuPy, a driver or a device is missing.
    """


guard(CudaBackend, ["asarray"])
for _room, _names in PRIMITIVES.items():
    if _room != "device":
        guard(CudaBackend, _names)
