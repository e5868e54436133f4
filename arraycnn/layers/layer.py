"""What a layer is: parameters and configuration, and a forward that returns its own backward."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar

import numpy as np

from arraycnn.arguments import (
    as_count,
    check_dtype,
    check_shape,
    dtypes_named,
    owner_of,
    to_backend,
)
from arraycnn.arrays import Array, Shape
from arraycnn.backends import Backend, BackendLike, backend_of, get_backend
from arraycnn.parameters import Parameter, Variable
from arraycnn.rng import child_seed

# backward(grad_y) → grad_x, one for each input; see also `skips_input_grad`.
Backward: TypeAlias = Callable[..., Any]
DTYPES = ("float16", "float32", "float64")
_PLAIN = int, tuple, type(None), str, float  # asking an abstract class takes ten times as long


F = TypeVar("F", bound=Callable[..., Any])


def skips_input_grad(forward: F) -> F:
    """Mark a ``forward`` whose backward takes ``input_grad=False`` and then returns None."""
    forward.skips_input_grad = True  # type: ignore[attr-defined]
    return forward


def backward_to_parameters(layer: "Layer", backward: Backward, grad: Any) -> None:
    """Call a backward of ``layer`` whose input gradients nobody needs."""
    if getattr(layer.forward, "skips_input_grad", False):
        backward(grad, input_grad=False)
    else:
        backward(grad)


class Layer(ABC):
    """Base of all layers.

    A layer holds parameters and configuration only. What backward needs lives in the closure that
    `forward` returns, so that a layer may be used twice in a network, or at once in two threads.

    Attributes:
        backend: where its arrays live; None for a layer without any, which follows its input.
    """

    backend: Backend | None = None

    @abstractmethod
    def forward(self, x: Array) -> tuple[Array, Backward]:
        """The training pass: returns y and ``backward``.

        ``backward(grad_y)`` returns grad_x and adds to the gradients of the parameters.
        """

    def __call__(self, x: Array) -> Array:
        """Inference: running statistics, no dropout, nothing kept for a backward pass."""
        return self.forward(x)[0]

    @abstractmethod
    def output_shape(self, input_shape: Shape) -> Shape:
        """The shape of y for an x of ``input_shape``, batch included; ValueError if none fits."""

    def multiply_adds(self, input_shape: Shape) -> int:
        """Multiply-adds of one forward pass; 0 for layers that only move or map elements."""
        return 0

    def workspace_bytes(self, input_shape: Shape) -> int:
        """Bytes of the column matrix that a forward pass makes; 0 for layers without one."""
        return 0

    def initialize(self, seed: int) -> None:
        """Draw the parameters anew from ``seed``, and reset buffers and random state."""
        for index, layer in enumerate(_unique(layer for _, layer in self.children())):
            layer.initialize(child_seed(seed, index))

    def children(self) -> Iterator[tuple[str, "Layer"]]:
        """The layers inside this one, by name."""
        for name, value in vars(self).items():
            if not isinstance(value, _PLAIN) and isinstance(value, Layer):
                yield name, value

    def leaves(self, input_shape: Shape) -> Iterator[tuple[str, "Layer", Shape]]:
        """(name, layer, input shape) of the innermost layers in order of computation."""
        yield "", self, tuple(input_shape)

    def named_layers(self, prefix: str = "") -> Iterator[tuple[str, "Layer"]]:
        """This layer and all inside it, depth first, by dotted name."""
        yield prefix, self
        for name, layer in self.children():
            yield from layer.named_layers(f"{prefix}.{name}" if prefix else name)

    def named_variables(self) -> Iterator[tuple[str, Variable]]:
        """Parameters and buffers by dotted name, PyTorch's names."""
        for path, layer in self.named_layers():
            for name, value in vars(layer).items():
                if isinstance(value, Variable):
                    yield (f"{path}.{name}" if path else name), value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(name, parameter), each parameter once."""
        seen: set[int] = set()
        for name, tensor in self.named_variables():
            if isinstance(tensor, Parameter) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def parameters(self) -> list[Parameter]:
        """The parameters, each once, in a fixed order."""
        return [parameter for _, parameter in self.named_parameters()]

    def state_dict(self) -> dict[str, Array]:
        """Parameters and buffers by name; the arrays themselves, not copies."""
        return {name: tensor.data for name, tensor in self.named_variables()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy arrays by name into the parameters and buffers, converting dtype and device.

        Anything that NumPy can read is accepted, so a PyTorch state dict of the same network is.
        Nothing changes unless everything fits.

        Raises:
            ValueError: names missing or unexpected (only if ``strict``), shapes that differ.
            TypeError: not a mapping, or something that does not hold real numbers.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"state must be a mapping of names to arrays, as state_dict() returns, got "
                f"{type(state).__name__}"
            )
        tensors = dict(self.named_variables())
        missing = [name for name in tensors if name not in state] if strict else []
        unexpected = [name for name in state if name not in tensors] if strict else []
        loaded = {name: _host_copy(name, state[name]) for name in tensors if name in state}
        problems = [f"missing: {', '.join(missing)}"] if missing else []
        problems += [f"unexpected: {', '.join(unexpected)}"] if unexpected else []
        problems += [
            f"{name} has shape {array.shape} instead of {tensors[name].shape}"
            for name, array in loaded.items()
            if array.shape != tensors[name].shape
        ]
        if problems:
            raise ValueError(
                f"state does not fit this {type(self).__name__}: {'; '.join(problems)}"
            )
        fresh = {
            name: backend_of(tensors[name].data).asarray(array, tensors[name].dtype)
            for name, array in loaded.items()
        }
        for name, array in fresh.items():
            tensors[name].data[...] = array

    def save_safetensors(self, path: str | PathLike[str]) -> None:
        """Write `state_dict` as a safetensors file; needs the package ``safetensors``.

        Raises:
            OSError: as `save_checkpoint`; a previous file is untouched then.
        """
        from arraycnn.checkpoint import safetensors

        safetensors.save_safetensors(self, path)

    def load_safetensors(self, path: str | PathLike[str], strict: bool = True) -> None:
        """`load_state_dict` from a safetensors file; needs the package ``safetensors``.

        Raises:
            CheckpointError: not such a file, or it does not fit. OSError: it cannot be opened.
        """
        from arraycnn.checkpoint import safetensors

        safetensors.load_safetensors(self, path, strict)

    def random_state(self) -> dict[str, dict[str, int]]:
        """Seed and counter of every layer that draws random numbers, by name; plain data."""
        return {
            name: {"seed": layer.seed, "counter": layer.counter}
            for name, layer in self.named_layers()
            if isinstance(layer, RandomLayer)
        }

    def load_random_state(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Restore what `random_state` returned.

        Nothing changes unless everything fits.

        Raises:
            ValueError: the names are not those of this network's random layers; an entry that is
                not a seed and a counter of at least 0. TypeError: one that is not an int.
        """
        layers = {n: layer for n, layer in self.named_layers() if isinstance(layer, RandomLayer)}
        if set(layers) != set(state):
            raise ValueError(
                f"random state is for the layers {sorted(state)}, but this network's random "
                f"layers are {sorted(layers)}"
            )
        streams = {name: _stream(name, state[name]) for name in layers}
        for name, layer in layers.items():
            layer.seed, layer.counter = streams[name]

    def to(self, backend: BackendLike | None = None, *, dtype: Any = None) -> Self:
        """Move to a backend, convert to a float dtype, or both; in place, returns self.

        The state of an optimizer of these parameters follows at its next step.
        """
        if dtype is not None:
            dtype = as_float_dtype(dtype)
        if backend is not None:
            backend = get_backend(backend)
            for _, layer in self.named_layers():
                layer.backend = backend
        for _, tensor in self.named_variables():
            target = backend or backend_of(tensor.data)
            kind = dtype if tensor.dtype.kind == "f" else None
            tensor.data = _moved(tensor.data, target, kind)
            if isinstance(tensor, Parameter) and tensor.grad is not None:
                tensor.grad = _moved(tensor.grad, target, kind)
        return self

    @property
    def dtype(self) -> Any:
        """The dtype of the parameters; None for a layer without any."""
        for value in reversed(vars(self).values()):  # tensors come last
            if isinstance(value, Variable) and value.data.dtype.kind == "f":
                return value.data.dtype
        for _, layer in self.children():
            if (dtype := layer.dtype) is not None:
                return dtype
        return None

    def config(self) -> dict[str, Any]:
        """The constructor's arguments that shape this layer: everything but seed and placement."""
        values = {name: _plain(getattr(self, name)) for name in _arguments(type(self))}
        if "bias" in values:
            values["bias"] = values["bias"] is not None
        return values

    def __repr__(self) -> str:
        arguments = _arguments(type(self))
        shown = []
        for name, value in self.config().items():
            argument = arguments[name]
            required = argument.default is argument.empty
            if required and argument.kind is not argument.KEYWORD_ONLY:
                shown.append(repr(value))
            elif required or value != argument.default:
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def receive(self, x: Array) -> tuple[Backend, Array]:
        """The door of `forward`: the backend to work on, and ``x`` on it, of the right dtype.

        A NumPy array is moved to the layer's backend.

        Raises:
            TypeError: not a float array, or not of the parameters' dtype.
            ValueError: an array of another device.
        """
        backend, dtype = self.backend, self.dtype
        accepted = (dtype,) if dtype else dtypes_named(DTYPES)
        if backend and backend.owns(x) and x.dtype in accepted:
            return backend, x  # as nearly always
        owner = owner_of("x", x)
        check_dtype("x", x.dtype, DTYPES)  # before it moves: CuPy would convert a byte order
        backend = backend or owner
        if owner is not backend:
            x = to_backend(backend, "x", x)
        if dtype is not None and x.dtype != dtype:
            raise TypeError(
                f"x must have the dtype of the parameters, {dtype}, got {x.dtype}; convert x with "
                f"x.astype('{dtype}') or the model with model.to(dtype='{x.dtype}')"
            )
        return backend, x


_PLACEMENT = ("seed", "backend", "dtype")


def _plain(value: Any) -> Any:
    """Equal sizes in every dimension as the one int that they were given as."""
    if isinstance(value, tuple) and value and all(item == value[0] for item in value):
        return _plain(value[0]) if isinstance(value[0], int) else value
    return value


def _arguments(layer_class: type[Layer]) -> dict[str, inspect.Parameter]:
    """The constructor's arguments but for seed and placement."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter
        for name, parameter in inspect.signature(layer_class).parameters.items()
        if parameter.kind in named and name not in _PLACEMENT
    }


class RectifiedLayer(Layer):
    """A layer that a `ReLU` after it can be part of, which saves a pass and what it would keep."""

    @abstractmethod
    def forward(self, x: Array, *, relu: bool = False) -> tuple[Array, Backward]:
        """As `Layer.forward`; with ``relu``, of max(y, 0)."""

    def __call__(self, x: Array, *, relu: bool = False) -> Array:
        return (self.forward(x, relu=True) if relu else self.forward(x))[0]


class RandomLayer(Layer):
    """A layer that draws random numbers: call number ``counter`` of the stream ``seed``."""

    seed: int
    counter: int


def _stream(name: str, entry: Any) -> tuple[int, int]:
    """Seed and counter of one layer's entry in a random state."""
    if not isinstance(entry, Mapping) or set(entry) != {"seed", "counter"}:
        raise ValueError(
            f"the random state of layer {name!r} must be a seed and a counter, as random_state() "
            f"returns, got {entry!r}"
        )
    seed, counter = (
        as_count(f"{key} of layer {name!r}", entry[key], minimum=0) for key in ("seed", "counter")
    )
    return seed, counter


class Outline(NamedTuple):
    """What is left of an output whose elements no backward pass needs."""

    shape: Shape
    dtype: Any


def kept(y: Array, relu: bool = False) -> Any:
    """What backward must know of the output y: all of it only for the mask of a ReLU."""
    return y if relu else Outline(y.shape, y.dtype)


def receive_grad(backend: Backend, grad: Array, y: Any, *, relu: bool = False) -> Array:
    """The door of ``backward``: ``grad`` on the backend, shaped and typed like the output.

    ``y`` is the output or, without ``relu``, its outline. With ``relu``, y is max(h, 0) and the
    gradient with respect to h is returned.
    """
    grad = to_backend(backend, "grad_output", grad)
    check_shape("grad_output", grad.shape, y.shape, "like the layer's output")
    if grad.dtype != y.dtype:
        raise TypeError(
            f"grad_output must have the dtype of the layer's output, {y.dtype}, got {grad.dtype}; "
            f"convert it with grad_output.astype('{y.dtype}')"
        )
    return backend.relu_grad(y, grad) if relu else grad


def as_float_dtype(dtype: Any) -> Any:
    """``dtype`` as a NumPy dtype that layers compute in."""
    try:
        result = None if dtype is None else np.dtype(dtype)  # None would mean float64 to NumPy
    except TypeError:
        result = None
    if str(result) not in DTYPES:  # the name of one in foreign byte order is another
        raise TypeError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return result


def _moved(array: Array, backend: Backend, dtype: Any) -> Array:
    if not backend.owns(array):
        array = backend.asarray(backend_of(array).to_numpy(array))
    return array if dtype is None else backend.asarray(array, dtype)


def _host_copy(name: str, array: Any) -> Array:
    """A copy in host memory of our array or anything that NumPy can read, of real numbers."""
    if hasattr(array, "detach"):  # a PyTorch tensor that requires a gradient refuses NumPy
        array = array.detach().cpu()
    array = array.get() if hasattr(array, "get") else np.array(array)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"{name} must hold real numbers, got dtype {array.dtype}; convert it first, e.g. to "
            "float32"
        )
    return array


def _unique(layers: Iterator[Layer]) -> Iterator[Layer]:
    seen: set[int] = set()
    for layer in layers:
        if id(layer) not in seen:
            seen.add(id(layer))
            yield layer
