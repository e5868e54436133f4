"""Where CuPy's binding of NVRTC lives."""

from cupy.cuda.nvrtc import NVRTCError, getVersion

__all__ = ["NVRTCError", "getVersion"]
