"""A training step as a CUDA graph: recorded once, then launched as a whole.

A step of a small network is some dozens of kernels of a few microseconds each, and Python needs
longer to launch them than the device to run them. A graph of the forward pass, the loss and the
backward pass is one launch. The update that follows is one launch too, of all parameters at once;
it stays outside so that learning-rate schedules, Adam's count of steps and gradient clipping need
no special form.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np

from arraycnn.arrays import Array
from arraycnn.errors import GraphCaptureError
from arraycnn.layers.layer import Layer, RandomLayer, backward_to_parameters
from arraycnn.rng import stream_key

Loss: TypeAlias = Callable[[Array, Array], tuple[Array, Array]]


class CapturedStep:
    """Forward, loss and backward for batches of one shape, captured at the second of them.

    The first batch of a shape runs eagerly, which compiles every kernel. While there is a graph,
    batches of other shapes run eagerly, such as the last, smaller one of an epoch. CuPy refuses
    cuBLAS during capture, so all products are those of our own kernels, in eager steps too: what a
    step computes does not depend on whether it is replayed.

    Args:
        model: on a CUDA backend. loss: ``loss(logits, labels) -> (loss, grad_logits)``.

    Raises:
        ValueError: the model is not on a CUDA backend.
    """

    def __init__(self, model: Layer, loss: Loss) -> None:
        name = model.backend.name if model.backend else "no backend"
        if not name.startswith("cuda"):
            raise ValueError(
                f"graph=True captures CUDA kernels, but the model is on {name}; use "
                "model.to('cuda'), or graph=False"
            )
        self.model = model
        self.loss = loss
        self._backend: Any = model.backend  # a CudaBackend, whose module is not imported for this
        self._seen: Any = None  # the last batch that ran eagerly
        self._recording: _Recording | None = None

    @property
    def captured(self) -> bool:
        """Whether there is a graph."""
        return self._recording is not None

    def __call__(self, images: Array, labels: Array) -> tuple[Array, Array]:
        """Returns (loss, logits) and leaves the gradients in the parameters.

        The logits and gradients of a replayed step are overwritten by the next one.

        Raises:
            GraphCaptureError: the step does something that a graph cannot hold, such as waiting
                for a number from the device.
        """
        batch = _kind(images), _kind(labels)
        kind = batch, self._placement()
        if self._recording is not None and self._recording.kind[1] != kind[1]:
            self._recording = None  # parameters have moved
        if self._recording is None and self._seen == kind:
            self._recording = _Recording(self, kind, images, labels)
        if self._recording is None or not self._recording.takes(kind, labels):
            self._seen = kind
            return self.run(images, labels)
        return self._recording.replay(images, labels)

    def run(self, images: Array, labels: Array) -> tuple[Array, Array]:
        """The step itself, eagerly, or into the graph that the current stream captures."""
        with self._backend.own_products():
            logits, backward = self.model.forward(images)
            loss, grad = self.loss(logits, labels)
            backward_to_parameters(self.model, backward, grad)
        return loss, logits

    def _placement(self) -> tuple[Any, ...]:
        """What a graph has built in beside the shapes: where the state lies, and how to compute."""
        pointers = [tensor.data.data.ptr for _, tensor in self.model.named_variables()]
        return *pointers, self._backend.tf32, self._backend.workspace_limit


class _Recording:
    """A captured graph with its memory: inputs, results, and the keys of dropout masks."""

    def __init__(self, step: CapturedStep, kind: Any, images: Array, labels: Array) -> None:
        self.kind = kind
        self._backend = backend = step._backend
        self._random = [
            (layer, layer.counter)
            for _, layer in step.model.named_layers()
            if isinstance(layer, RandomLayer)
        ]
        parameters = step.model.parameters()
        for parameter in parameters:
            parameter.grad = None
        cupy = backend.xp
        self._pool = cupy.cuda.MemoryPool()  # nothing else may use what the graph writes to
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream, cupy.cuda.using_allocator(self._pool.malloc):
            self._images = cupy.empty(images.shape, images.dtype)
            self._labels = cupy.empty(labels.shape, labels.dtype)
            stream.begin_capture()
            try:
                with backend.captured_keys() as self._keys:
                    self._loss, self._logits = step.run(self._images, self._labels)
                self._graph = stream.end_capture()
            except BaseException as error:
                with suppress(RuntimeError):
                    stream.end_capture()
                self._rewind()
                if isinstance(error, RuntimeError):
                    raise GraphCaptureError(
                        f"this training step cannot be captured as a CUDA graph ({error}): a layer "
                        "or the loss waits for the device or copies from the host; use graph=False"
                    ) from error
                raise
        self._gradients = [(parameter, parameter.grad) for parameter in parameters]
        self._draws = [layer.counter - before for layer, before in self._random]
        self._rewind()

    def takes(self, kind: Any, labels: Array) -> bool:
        """Whether the batch may be replayed. Labels that are no class are left to the loss, which
        can only look at them in an eager step."""
        if kind != self.kind:
            return False
        if labels.dtype.kind not in "iu" or not isinstance(labels, np.ndarray) or not labels.size:
            return True
        return bool(labels.min() >= 0 and labels.max() < self._logits.shape[1])

    def replay(self, images: Array, labels: Array) -> tuple[Array, Array]:
        """Run the graph on a batch."""
        self._fill(self._images, images)
        self._fill(self._labels, labels)
        for (layer, before), draws in zip(self._random, self._draws, strict=True):
            for (seed, counter), key in self._keys.items():
                if seed == layer.seed and before <= counter < before + draws:
                    current = stream_key(seed, layer.counter + counter - before)
                    self._fill(key, np.array([current], np.uint64))
            layer.counter += draws
        self._graph.launch()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._loss.copy(), self._logits

    def _fill(self, array: Array, value: Array) -> None:
        if isinstance(value, np.ndarray):
            stream = self._backend.xp.cuda.get_current_stream()
            array.set(np.ascontiguousarray(value), stream=stream)
        else:
            array[...] = value

    def _rewind(self) -> None:
        """Capturing has counted draws, but nothing has been drawn."""
        for layer, before in self._random:
            layer.counter = before


def _kind(array: Array) -> tuple[Any, ...]:
    return tuple(array.shape), str(array.dtype)
