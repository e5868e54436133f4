"""What a layer is: parameters and configuration, and a forward that returns its own backward."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

from arraycnn.arguments import (
    FLOATS,
    as_float_dtype,
    check_dtype,
    check_forward,
    dtypes_named,
    owner_of,
    to_backend,
)
from arraycnn.arrays import Array, Shape
from arraycnn.backends import Backend, BackendLike, get_backend
from arraycnn.interchange.safetensors import read_safetensors, write_safetensors
from arraycnn.layers.config import config_of, is_ours, no_arguments, repr_of
from arraycnn.layers.state import (
    fitting,
    joined,
    layers_in,
    moved,
    parts,
    set_frozen,
    set_streams,
    unique,
    write,
)
from arraycnn.parameters import Parameter, Variable
from arraycnn.rng import child_seed

# backward(grad_y) → grad_x, one for each input; see also `skips_input_grad`.
Backward: TypeAlias = Callable[..., Any]

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
    A layer of your own keeps its parameters, buffers and inner layers in attributes, or in lists,
    tuples and dicts; they are found there to be trained, moved, saved and loaded.

    Attributes:
        backend: where its arrays live; None for a layer without any, which follows its input.

    Example:
        >>> import numpy as np, arraycnn as ac
        >>> class Scale(ac.Layer):
        ...     def __init__(self, channels):
        ...         self.channels = channels
        ...         self.factor = ac.Parameter(np.ones((channels, 1, 1), "float32"))
        ...     def forward(self, x):
        ...         def backward(grad_y):
        ...             self.factor.add_grad((grad_y * x).sum(axis=(0, 2, 3))[:, None, None])
        ...             return grad_y * self.factor.data
        ...         return x * self.factor.data, backward
        ...     def output_shape(self, input_shape):
        ...         return input_shape
        >>> network = ac.Sequential(ac.Conv2d(1, 4, kernel_size=3), Scale(4), ac.ReLU(), seed=0)
        >>> list(network.state_dict())
        ['0.weight', '0.bias', '1.factor']
    """

    backend: Backend | None = None
    differs_in_inference: ClassVar[bool] = False  # whether a call computes what forward does not
    __slots__ = ("__dict__", "__weakref__", "_given")  # the last for `config`
    _given: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        layer = super().__new__(cls)
        layer._given = args, kwargs
        return layer

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = vars(cls)
        if getattr(cls.__init__, "without_arguments", cls.__init__ is object.__init__):
            setattr(cls, "__init__", no_arguments(cls.__name__))  # noqa: B010 (for mypy)
        if "__call__" in own:
            if "differs_in_inference" not in own:
                cls.differs_in_inference = True
        elif "forward" in own:  # inference is what this forward computes, not the base's
            cls.__call__ = Layer.__call__  # type: ignore[method-assign]

    # To type checkers (*Any, **Any) says that a layer may name its inputs as it likes.

    @abstractmethod
    def forward(self, *xs: Any, **_: Any) -> tuple[Any, Backward]:
        """Compute y for training: returns y and ``backward``.

        ``backward(grad_y)`` returns grad_x, of several inputs a tuple, and adds to the gradients of
        the parameters. Inputs and outputs must stay unchanged until then.
        """

    def __call__(self, *xs: Any, **_: Any) -> Any:
        """Infer y: running statistics, no dropout, nothing kept for a backward pass.

        Raises:
            TypeError: what inference is cannot be known, because the layer or one inside of it
                does something else in training.
        """
        self._check_inference()
        return check_forward(type(self).__name__, self.forward(*xs))[0]

    @abstractmethod
    def output_shape(self, *input_shapes: Any, **_: Any) -> Any:
        """The shape of y for inputs of these shapes, batch included; ValueError if none fits."""

    def multiply_adds(self, *input_shapes: Any, **_: Any) -> int | None:
        """Multiply-adds of one forward pass.

        0 for layers that only move or map elements; None where it is not known, as of a layer of
        your own that is made of layers.
        """
        return None if any(True for _ in self.children()) else 0

    def workspace_bytes(self, *input_shapes: Any, **_: Any) -> int:
        """Bytes of the column matrix that a forward pass makes; 0 for layers without one."""
        return 0

    def initialize(self, seed: int) -> None:
        """Draw the parameters anew from ``seed``, and reset buffers and random state."""
        for index, (_, layer) in enumerate(unique(self.children())):
            layer.initialize(child_seed(seed, index))

    def children(self) -> Iterator[tuple[str, "Layer"]]:
        """The layers inside this one, by path: in attributes, and in lists, tuples and dicts."""
        return parts(self, Layer)

    def walk(self, *input_shapes: Shape) -> Iterator[tuple[str, "Layer", tuple[Shape, ...]]]:
        """(name, layer, input shapes) of the innermost layers in order of computation."""
        yield "", self, tuple(map(tuple, input_shapes))

    def named_layers(self, *, remove_duplicate: bool = False) -> Iterator[tuple[str, "Layer"]]:
        """This layer and all inside it, depth first, by dotted name.

        Args:
            remove_duplicate: yield a layer that stands at several places under its first name only.
        """
        return layers_in(self, remove_duplicate)

    def own_variables(self) -> Iterator[tuple[str, Variable]]:
        """Parameters and buffers of this layer, not of those inside it, by path."""
        return parts(self, Variable)

    def named_variables(self, *, remove_duplicate: bool = False) -> Iterator[tuple[str, Variable]]:
        """Parameters and buffers by dotted name, PyTorch's names; see `named_layers`."""
        found = (
            (joined(path, name), variable)
            for path, layer in self.named_layers(remove_duplicate=remove_duplicate)
            for name, variable in layer.own_variables()
        )
        return unique(found) if remove_duplicate else found

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(name, parameter), each parameter once."""
        for name, variable in self.named_variables(remove_duplicate=True):
            if isinstance(variable, Parameter):
                yield name, variable

    def parameters(self) -> list[Parameter]:
        """The parameters, each once, in a fixed order."""
        return [parameter for _, parameter in self.named_parameters()]

    def freeze(self, pattern: str = "*") -> Self:
        """Keep a part as it is: its parameters get no gradients, its layers act as in inference.

        Args:
            pattern: which parameters and layers, by name, as file names are matched:
                ``"features.*"``.

        Raises:
            ValueError: nothing has such a name.
        """
        set_frozen(self, pattern, True)
        return self

    def unfreeze(self, pattern: str = "*") -> Self:
        """Undo `freeze`."""
        set_frozen(self, pattern, False)
        return self

    def state_dict(self) -> dict[str, Array]:
        """Parameters and buffers by name; the arrays themselves, not copies."""
        return {name: variable.data for name, variable in self.named_variables()}

    def load_state_dict(
        self, state: Mapping[str, Any], strict: bool = True
    ) -> tuple[list[str], list[str]]:
        """Copy arrays by name into the parameters and buffers, converting dtype and device.

        Anything that NumPy can read is accepted, so a PyTorch state dict of the same network is.
        Nothing changes unless everything fits.

        Returns:
            The names missing and unexpected in ``state``; both empty if ``strict``.

        Raises:
            ValueError: names missing or unexpected (only if ``strict``), shapes that differ, values
                that the dtype cannot hold, two different arrays for one parameter, or an array of
                this network that is read-only. TypeError: not a mapping, or no real numbers.
        """
        variables = dict(self.named_variables())
        copies, missing, unexpected = fitting(type(self).__name__, variables, state, strict)
        write(copies)
        return missing, unexpected

    def save_safetensors(self, path: str | PathLike[str]) -> None:
        """Write `state_dict` as a safetensors file; needs the package ``safetensors``.

        Raises:
            OSError: as `save_checkpoint`; a previous file is untouched then.
        """
        variables = self.named_variables()
        arrays = {name: one.backend.to_numpy(one.data) for name, one in variables}
        write_safetensors(path, arrays)

    def load_safetensors(
        self, path: str | PathLike[str], strict: bool = True
    ) -> tuple[list[str], list[str]]:
        """`load_state_dict` from a safetensors file; needs the package ``safetensors``.

        Raises:
            CheckpointError: not such a file, or it does not fit. OSError: it cannot be opened.
        """
        with read_safetensors(path) as state:
            return self.load_state_dict(state, strict)

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
        set_streams(layers, state)

    def to(self, backend: BackendLike | None = None, *, dtype: Any = None) -> Self:
        """Move to a backend, convert to a float dtype, or both; in place, returns self.

        The state of an optimizer of these parameters follows at its next step. Nothing changes
        unless all can be moved.
        """
        if dtype is not None:
            dtype = as_float_dtype(dtype)
        target = None if backend is None else get_backend(backend)
        ready: list[tuple[Variable, str, Any]] = []
        for _, variable in self.named_variables(remove_duplicate=True):
            source = variable.backend
            goal, kind = target or source, dtype if variable.dtype.kind == "f" else None
            ready.append((variable, "data", moved(variable.data, source, goal, kind)))
            if isinstance(variable, Parameter) and variable.grad is not None:
                ready.append((variable, "grad", moved(variable.grad, source, goal, kind)))
            if target is not None:
                ready.append((variable, "_backend", target))
        layers = [layer for _, layer in self.named_layers(remove_duplicate=True)]
        for variable, name, value in ready:  # from here on nothing can fail
            setattr(variable, name, value)
        if target is not None:
            for layer in layers:
                layer.backend = target
        return self

    @property
    def dtype(self) -> Any:
        """The dtype of the parameters; None for a layer without any."""
        for _, variable in self.named_variables():
            if variable.dtype.kind == "f":
                return variable.dtype
        return None

    def config(self) -> dict[str, Any]:
        """The constructor's arguments that shape this layer: everything but seed and placement."""
        return config_of(self)

    def __repr__(self) -> str:
        return repr_of(self)

    def __getstate__(self) -> Any:
        return vars(self), {} if is_ours(self) else {"_given": self._given}

    def __setstate__(self, state: Any) -> None:
        attributes, slots = state
        vars(self).update(attributes)
        for name, value in slots.items():
            setattr(self, name, value)

    def check_input(self, x: Array) -> tuple[Backend, Array]:
        """The door of `forward`: the backend to work on, and ``x`` on it, of the right dtype.

        A NumPy array is moved to the layer's backend.

        Raises:
            TypeError: not a float array, or not of the parameters' dtype.
            ValueError: an array of another device.
        """
        backend, dtype = self.backend, self.dtype
        if backend is not None and backend.owns(x):  # as nearly always
            if x.dtype == dtype or (dtype is None and x.dtype in _FLOATS):
                return backend, x
        elif backend is None:
            backend = owner_of("x", x)
        else:
            owner_of("x", x)
        check_dtype("x", x.dtype, FLOATS)  # before it moves: CuPy would convert a byte order
        x = to_backend(backend, "x", x)
        if dtype is not None and x.dtype != dtype:
            raise TypeError(
                f"x must have the dtype of the parameters, {dtype}, got {x.dtype}; convert x with "
                f"x.astype('{dtype}') or the model with model.to(dtype='{x.dtype}')"
            )
        return backend, x

    def _check_inference(self) -> None:
        """Refuse to take for inference what forward computes where that is training."""
        if self.differs_in_inference and type(self).__call__ is Layer.__call__:
            raise TypeError(
                f"{type(self).__name__} has a forward of its own and inherits inference from a "
                "layer that does something else in training; define __call__(self, x) too"
            )
        for name, layer in self.named_layers(remove_duplicate=True):
            if layer is not self and layer.differs_in_inference:
                raise TypeError(
                    f"{type(self).__name__} is made of layers, and {name}, a "
                    f"{type(layer).__name__}, does something else in training than in inference; "
                    "define __call__(self, x), which calls the layers instead of their forward, "
                    "or build the network as a Graph or Sequential"
                )


_FLOATS = dtypes_named(FLOATS)


class LayerWithoutParameters(Layer):
    """A layer without parameters, buffers and inner layers."""

    @property
    def dtype(self) -> Any:
        return None


class RandomLayer(LayerWithoutParameters):
    """A layer that draws random numbers: call number ``counter`` of the stream ``seed``."""

    seed: int
    counter: int


class LayerWithRelu(Layer):
    """A layer that can do a `ReLU` behind it as well, which saves a pass and what it would keep."""

    @abstractmethod
    def _forward(self, *xs: Any, **_: Any) -> tuple[Array, Backward]:
        """As `Layer.forward`; with ``relu``, of max(y, 0)."""

    def _infer(self, *xs: Any, **relu: Any) -> Array:
        """As a call; with ``relu``, of max(y, 0)."""
        return self._forward(*xs, **relu)[0]

    @skips_input_grad
    def forward(self, x: Array) -> tuple[Array, Backward]:
        return self._forward(x, relu=False)

    def __call__(self, x: Array) -> Array:
        return self._infer(x, relu=False)

    differs_in_inference = False
