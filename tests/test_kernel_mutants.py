"""Kernels broken on purpose: the checks of the suite must notice every one of them.

A mutant is the text of a kernel with one mistake of the kinds that are made: a barrier left out, a
bound off by one, a wrong stride, a case forgotten. If a mutant passes, it is the checks that are
broken.
"""

import faulthandler
import os
import signal
from dataclasses import dataclass
from typing import Any

import emulator
import pytest
import test_kernels
from emulator import launcher

from arraycnn.backends.cuda import kernels

DEADLINE = 40  # seconds, several times what the slowest one takes
NOTICED = 3

pytestmark = [
    pytest.mark.skipif(
        emulator.activate() is None or emulator.device_exists(),
        reason="mutants write out of bounds, so they run in the emulator only",
    ),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # the child only computes
]


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in the text of ``file``, and the check of ``primitive`` fails."""

    name: str
    file: str
    primitive: str
    old: str
    new: str


MUTANTS = [
    # Barriers
    Mutant("block sum is read before it is written", "normalization.cu", "channel_sum",
           "  __syncthreads();\n  A total = parts[0];", "  A total = parts[0];"),
    Mutant("block sum is written before the last one is read", "normalization.cu",
           "channel_moments", "__syncthreads();  // a sum before", "// a sum before"),
    Mutant("slice is multiplied before it is there", "convolution.cu", "convolution",
           "  b.put(b_slices[0]);\n  __syncthreads();", "  b.put(b_slices[0]);"),
    Mutant("next slice is multiplied before it is there", "convolution.cu",
           "convolution_weight_grad", "    }\n    __syncthreads();\n  }\n}", "    }\n  }\n}"),
    Mutant("slice is overwritten while it is read", "convolution.cu", "convolution",
           "a.put(a_slices[1 - now]);", "a.put(a_slices[now]);"),
    Mutant("fold is read before it is written", "loss.cu", "softmax_cross_entropy",
           "= value;\n  __syncthreads();\n  A result", "= value;\n  A result"),
    # Bounds
    Mutant("a column too many", "columns.cu", "im2col", "if (j >= count)", "if (j > count)"),
    Mutant("an input position too many", "columns.cu", "col2im", "if (q >= plane)",
           "if (q > plane)"),
    Mutant("a padded column counts as input", "columns.cu", "im2col",
           "x >= 0 && x < w.input[2] ? row", "x >= 0 && x <= w.input[2] ? row"),
    Mutant("a row too many is stored", "convolution.cu", "convolution", "if (m >= rows ||",
           "if (m > rows ||"),
    Mutant("a padded row counts as input", "convolution.cu", "convolution",
           "return position < w.input[axis]", "return position <= w.input[axis]"),
    Mutant("a term too many is summed", "convolution.cu", "convolution_input_grad",
           "m < rows && k < depth", "m < rows && k <= depth"),
    Mutant("an output channel too many sees", "convolution.cu", "convolution_input_grad",
           "k.digit[0] < channels && z", "k.digit[0] <= channels && z"),
    Mutant("a chunk beyond its tensor", "updates.cu", "update_parameters",
           "part.begin + UPDATE_CHUNK < count ?", "part.begin < count ?"),
    Mutant("a chunk beyond its row", "pointwise.cu", "scale_shift",
           "begin + ROW_CHUNK < length ?", "begin < length ?"),
    Mutant("the last chunk counts elements that are not there", "normalization.cu",
           "channel_moments", "count ? held[k] - mean : 0", "REDUCE_CHUNK ? held[k] - mean : 0"),
    Mutant("the rest of a split sum is lost", "convolution.cu", "convolution_weight_grad",
           "each = (all + parts - 1) / parts", "each = all / parts"),
    # Strides
    Mutant("stride is forgotten", "convolution.cu", "convolution",
           "place.at[axis] * w.stride[axis] - w.before[axis]", "place.at[axis] - w.before[axis]"),
    Mutant("dilation is forgotten", "convolution.cu", "convolution",
           "origin[axis] + tap * w.dilation[axis]", "origin[axis] + tap"),
    Mutant("positions between strides see too", "columns.cu", "col2im",
           "o * w.stride[axis] == distance && ", ""),
    Mutant("columns are read with another stride", "columns.cu", "col2im",
           "column[tap * count + j]", "column[tap * (count - 1) + j]"),
    Mutant("planes are read with another stride", "pooling.cu", "max_pool",
           "const T* seen = x + c * plane", "const T* seen = x + c * out"),
    Mutant("parts are read with another stride", "convolution.cu", "convolution_weight_grad",
           "workspace[part * size + i]", "workspace[part * (size - 1) + i]"),
    Mutant("groups share their weights", "convolution.cu", "convolution",
           "a(weight + group * outputs * depth,", "a(weight,"),
    # Cases
    Mutant("the last of equals wins", "pooling.cu", "max_pool_argmax", "!(v > best)",
           "!(v >= best)"),
    Mutant("a NaN does not win", "pooling.cu", "max_pool", " && !first_nan", ""),
    Mutant("a maximum below 0 wins", "pooling.cu", "max_pool_argmax",
           "best_tap = volume32(w.kernel);", ""),
    Mutant("every tap gets the gradient", "pooling.cu", "max_pool_grad",
           "if (int(argmax[p]) == tap)", ""),
    Mutant("another number of the stream", "pointwise.cu", "dropout", "z >> 30", "z >> 31"),
    Mutant("the bias of another channel", "pointwise.cu", "dense", "Acc<T>(bias[row])",
           "Acc<T>(bias[0])"),
]  # fmt: skip


class Broken:
    """A CUDA backend whose kernels are mutants."""

    def __init__(self, mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
        from arraycnn.backends.cuda import CudaBackend

        original = kernels.source
        assert mutant.old in original(mutant.file), "the kernel has changed; change the mutant too"

        def source(file: str) -> str:
            text = original(file)
            return text.replace(mutant.old, mutant.new) if file == mutant.file else text

        monkeypatch.setattr(kernels, "source", source)
        self.backend: Any = CudaBackend(0)
        self.monkeypatch = monkeypatch

    def survives(self, primitive: str) -> bool:
        """Whether the checks pass in spite of it, in every order of blocks and threads.

        They run in a process of their own, which the mutant may well bring down.
        """
        child = os.fork()
        if not child:
            faulthandler.disable()
            signal.alarm(DEADLINE)  # a mutant that overwrites malloc's lists may never come back
            noticed = True
            try:
                for order in launcher.ORDERS:
                    launcher.configure(order=order)
                    self._check(primitive)
                noticed = False
            except (AssertionError, launcher.LaunchError):
                pass
            finally:
                os._exit(0 if not noticed else NOTICED)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, NOTICED) or status < 0, status
        return status == 0

    def _check(self, primitive: str) -> None:
        if primitive == "softmax_cross_entropy":
            test_kernels.test_losses_compute_the_same("mean", "float32", False, self.backend)
        elif primitive == "update_parameters":
            for name in test_kernels.UPDATES:
                test_kernels.test_updates_compute_the_same(name, "float32", self.backend)
        else:
            for case in test_kernels.CASES[primitive]:
                test_kernels.check(self.backend, case, "float32")
            if primitive in test_kernels.TILE_CASES:
                test_kernels.test_every_tile_computes_the_same(
                    primitive, "float32", 64, False, self.backend, self.monkeypatch
                )


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutants_are_noticed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Broken(mutant, monkeypatch).survives(mutant.primitive)


def test_without_a_mistake_there_is_nothing_to_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = Mutant("comment", "columns.cu", "im2col", "// im2col", "// IM2COL")
    assert Broken(changed, monkeypatch).survives("im2col")
