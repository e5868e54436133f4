"""Convolution on the CPU: which algorithms there are, and which of them computes what."""

from arraycnn.backends.cpu import tuning
from arraycnn.backends.cpu.columns import Columns, SmallColumns
from arraycnn.backends.cpu.device import CpuDevice
from arraycnn.backends.cpu.winograd import Winograd, best_m
from arraycnn.backends.reference.algorithm import Algorithm, Problem, adjoint_problem
from arraycnn.backends.reference.convolution import ConvolutionPrimitives
from arraycnn.backends.reference.fourier import Fourier


class CpuConvolution(CpuDevice, ConvolutionPrimitives):
    """Tiled, threaded and with recycled memory."""

    def candidates(self, problem: Problem) -> list[Algorithm]:
        elements = problem.window.positions * problem.batch * problem.window.taps * problem.inputs
        if elements <= tuning.SMALL_COLUMN_ELEMENTS:
            return [SmallColumns(self, problem)]
        found: list[Algorithm] = [Fourier(self, problem)]
        m = best_m(problem, self.workspace_limit)
        if m is not None:
            found.append(Winograd(self, problem, m))
        return [*found, Columns(self, problem)]

    def adjoint(self, problem: Problem) -> Problem | None:
        # col2im has columns as wide as x, the convolution as wide as Δ: the narrower one is faster.
        return None if 2 * problem.inputs < problem.outputs else adjoint_problem(problem)
