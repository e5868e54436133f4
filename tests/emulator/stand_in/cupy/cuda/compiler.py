"""Compiling kernels."""

from cupy._module import CompileException

__all__ = ["CompileException"]
