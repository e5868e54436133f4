"""The NumPy backend: cache-sized tiles on several threads, in memory that is used again."""

from arraycnn.backends.backend import Backend
from arraycnn.backends.cpu.convolution import CpuConvolution
from arraycnn.backends.cpu.dense import CpuDense
from arraycnn.backends.cpu.elementwise import CpuElementwise
from arraycnn.backends.cpu.normalization import CpuNormalization
from arraycnn.backends.cpu.pooling import CpuPooling
from arraycnn.backends.cpu.updates import CpuUpdates


class CpuBackend(
    CpuConvolution, CpuPooling, CpuNormalization, CpuDense, CpuElementwise, CpuUpdates, Backend
):
    """NumPy arrays in host memory.

    Attributes:
        num_threads: threads that an operation may use; by default ``$ARRAYCNN_NUM_THREADS``, else
            the processors of this process. May be assigned; results do not depend on it.
    """
