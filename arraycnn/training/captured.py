"""A training step as a CUDA graph: recorded once, then launched as a whole.

A step of a small network is some dozens of kernels of a few microseconds each, and Python needs
longer to launch them than the device to run them. A graph of the forward pass, the loss and the
backward pass is one launch. The update that follows is one launch too, of all parameters at once;
it stays outside so that learning-rate schedules, Adam's count of steps and gradient clipping need
no special form.
"""

from contextlib import suppress
from typing import Any

import numpy as np

from arraycnn.arrays import Array
from arraycnn.errors import GraphCaptureError
from arraycnn.functional.loss import LossValue
from arraycnn.layers.layer import Layer, RandomLayer
from arraycnn.rng import stream_key
from arraycnn.training.step import EagerStep, Loss, as_tuple


class CapturedStep(EagerStep):
    """Forward, loss and backward for batches of one shape, captured at the second of them.

    The first batch of a shape runs eagerly, which compiles every kernel. While there is a graph,
    batches of other shapes run eagerly, such as the last, smaller one of an epoch. CuPy refuses
    cuBLAS during capture, so all products are those of our own kernels, in eager steps too: what a
    step computes does not depend on whether it is replayed. When the network or the loss changes,
    it is captured anew: arrays that have moved, other layers, an assigned ``dropout.p``.

    Args:
        model: on a CUDA backend. loss: ``loss(outputs, targets) -> (loss, grad_outputs)``.

    Raises:
        ValueError: the model is not on a CUDA backend.
    """

    def __init__(self, model: Layer, loss: Loss) -> None:
        super().__init__(model, loss)
        self._seen: Any = None  # the last batch that ran eagerly
        self._recording: _Recording | None = None
        self.backend()

    @property
    def captured(self) -> bool:
        """Whether there is a graph."""
        return self._recording is not None

    def backend(self) -> Any:
        """The model's `CudaBackend`, whose module is not imported for this."""
        name = self.model.backend.name if self.model.backend else "no backend"
        if not name.startswith("cuda"):
            raise ValueError(
                f"a captured step needs CUDA, but the model is on {name}; use model.to('cuda'), or "
                "train without graph=True"
            )
        return self.model.backend

    def __call__(self, inputs: Any, targets: Any) -> LossValue:
        """Returns (loss, outputs) and adds the gradients to those of the parameters.

        The outputs of a replayed step are overwritten by the next one, and gradients that were
        None before it as well.

        Raises:
            GraphCaptureError: the step does something that a graph cannot hold, such as waiting
                for a number from the device. ValueError: the model has left CUDA.
        """
        kind = [_kind(array) for array in (*as_tuple(inputs), *as_tuple(targets))], self._state()
        if self._recording is not None and self._recording.kind[1] != kind[1]:
            self._recording = None
        if self._recording is None and self._seen == kind:
            self._recording = _Recording(self, kind, inputs, targets)
        if self._recording is None or not self._recording.takes(kind, targets):
            self._seen = kind
            return self.run(inputs, targets)
        return self._recording.replay(inputs, targets)

    def run(self, inputs: Any, targets: Any) -> LossValue:
        """The step itself, eagerly, or into the graph that the current stream captures."""
        with self.backend().own_products():
            return super().__call__(inputs, targets)

    def _state(self) -> list[Any]:
        """What a graph has built in beside the shapes: where arrays lie, and how to compute."""
        backend = self.backend()
        variables = [variable for _, variable in self.model.named_variables()]
        return [
            backend,
            backend.tf32,
            backend.workspace_limit,
            self.loss,
            [variable.data.data.ptr for variable in variables],
            [getattr(variable, "requires_grad", None) for variable in variables],
            [_configuration(layer) for _, layer in self.model.named_layers()],
        ]


class _Recording:
    """A captured graph with its memory: inputs, results, and the keys of dropout masks."""

    def __init__(self, step: CapturedStep, kind: Any, inputs: Any, targets: Any) -> None:
        self.kind = kind
        self._backend = backend = step.backend()
        layers = {id(layer): layer for _, layer in step.model.named_layers()}
        random = [layer for layer in layers.values() if isinstance(layer, RandomLayer)]
        first = [layer.counter for layer in random]
        parameters = step.model.parameters()
        before = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        cupy = backend.xp
        self._pool = cupy.cuda.MemoryPool()  # nothing else may use what the graph writes to
        stream = cupy.cuda.Stream(non_blocking=True)
        try:
            with stream, cupy.cuda.using_allocator(self._pool.malloc):
                self._inputs, self._targets = _empty_like(cupy, inputs), _empty_like(cupy, targets)
                stream.begin_capture()
                try:
                    with backend.captured_keys() as keys:
                        self._value = step.run(self._inputs, self._targets)
                    self._graph = stream.end_capture()
                except BaseException as error:
                    with suppress(RuntimeError):
                        stream.end_capture()
                    if isinstance(error, RuntimeError):
                        raise GraphCaptureError(
                            f"this training step cannot be captured as a CUDA graph ({error}): a "
                            "layer or the loss waits for the device or copies from the host; use "
                            "graph=False"
                        ) from error
                    raise
            self._gradients = [(p, p.grad) for p in parameters if p.grad is not None]
            self._draws = [
                (layer, layer.counter - n) for layer, n in zip(random, first, strict=True)
            ]
        finally:  # nothing has been computed or drawn
            for parameter, gradient in zip(parameters, before, strict=True):
                parameter.grad = gradient
            for layer, counter in zip(random, first, strict=True):
                layer.counter = counter
        self._keys = [(key, self._users(*draw)) for draw, key in keys.items()]

    def _users(self, seed: int, counter: int) -> list[tuple[RandomLayer, int]]:
        """The layers that share a key of dropout masks, and which of their draws it is for."""
        users = [
            (layer, counter - layer.counter)
            for layer, draws in self._draws
            if layer.seed == seed and 0 <= counter - layer.counter < draws
        ]
        if not users:
            raise GraphCaptureError(
                "this training step cannot be captured as a CUDA graph: something draws random "
                "numbers that is no RandomLayer, whose next numbers are not known; use graph=False"
            )
        return users

    def takes(self, kind: Any, targets: Any) -> bool:
        """Whether the batch may be replayed.

        Labels that are no class are left to the loss, which can only look at them in an eager step.
        """
        if kind != self.kind:
            return False
        if any(len({_key(*user) for user in users}) > 1 for _, users in self._keys):
            return False  # layers that had the same seed and counter have them no more
        outputs = self._value[1]
        if not isinstance(targets, np.ndarray) or targets.dtype.kind not in "iu":
            return True
        if not hasattr(outputs, "shape") or targets.shape != (len(outputs), *outputs.shape[2:]):
            return True
        known = (targets >= 0) & (targets < max(outputs.shape[1], 2))
        return bool(np.all(known | (targets == self._value.ignore_index)))

    def replay(self, inputs: Any, targets: Any) -> LossValue:
        """Run the graph on a batch."""
        for array, value in zip(
            (*as_tuple(self._inputs), *as_tuple(self._targets)),
            (*as_tuple(inputs), *as_tuple(targets)),
            strict=True,
        ):
            self._fill(array, value)
        for key, users in self._keys:
            self._fill(key, np.array([_key(*users[0])], np.uint64))
        for layer, draws in self._draws:
            layer.counter += draws
        # A gradient of the replay before is in the memory that this one writes to.
        before = [p.grad.copy() if p.grad is g else p.grad for p, g in self._gradients]
        self._graph.launch()
        for (parameter, gradient), old in zip(self._gradients, before, strict=True):
            parameter.grad = gradient if old is None else old + gradient
        loss, outputs = self._value
        return self._value.paired(loss.copy(), outputs)

    def _fill(self, array: Array, value: Array) -> None:
        if isinstance(value, np.ndarray):
            stream = self._backend.xp.cuda.get_current_stream()
            array.set(np.ascontiguousarray(value), stream=stream)
        else:
            array[...] = value


def _kind(array: Array) -> tuple[Any, ...]:
    return tuple(array.shape), str(array.dtype)


def _configuration(layer: Layer) -> dict[str, Any]:
    """All that a layer holds but where its stream of random numbers is."""
    moving = ("seed", "counter") if isinstance(layer, RandomLayer) else ()
    return {
        name: _Same(value) if hasattr(value, "dtype") else value
        for name, value in vars(layer).items()
        if name not in moving
    }


class _Same:
    """Equal to what holds the same array, whose elements are not looked at."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._array is other._array


def _empty_like(cupy: Any, arrays: Any) -> Any:
    """Device memory for an array, or for each of a tuple."""
    if isinstance(arrays, tuple):
        return tuple(_empty_like(cupy, array) for array in arrays)
    return cupy.empty(arrays.shape, arrays.dtype)


def _key(layer: RandomLayer, offset: int) -> int:
    return stream_key(layer.seed, layer.counter + offset)
