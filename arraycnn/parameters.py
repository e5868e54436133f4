"""What a layer trains and keeps: arrays in boxes, shared by layers, optimizers and files."""

import threading
from typing import Any

import numpy as np

from arraycnn.arguments import owner_of
from arraycnn.arrays import Array, Shape
from arraycnn.backends import Backend

_adding = threading.Lock()  # one for all gradients; held for an addition only


class Variable:
    """An array that belongs to a layer's state.

    Attributes:
        data: the array; may be replaced by another one of the same shape.
    """

    __slots__ = ("_backend", "data")

    def __init__(self, data: Array, backend: Backend | None = None) -> None:
        self.data = data
        self._backend = backend

    @property
    def backend(self) -> Backend:
        """The backend that computes with ``data``: the layer's, else the owner of the array."""
        if self._backend is not None and self._backend.owns(self.data):
            return self._backend
        owner: Backend = owner_of("data", self.data)
        return owner

    @property
    def shape(self) -> Shape:
        return tuple(self.data.shape)

    @property
    def size(self) -> int:
        return int(self.data.size)

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"


class Buffer(Variable):
    """State that is saved but not trained."""

    __slots__ = ()


class Parameter(Variable):
    """A trained array and the gradient that backward has added up, None before.

    Attributes:
        grad: replaced, never changed in place.
        requires_grad: False freezes the parameter: backward need not compute its gradient, and an
            optimizer leaves it alone.

    Example:
        >>> import numpy as np, arraycnn as ac
        >>> scale = ac.Parameter(np.ones(3, "float32"))
        >>> scale.add_grad(np.full(3, 2, "float32"))
        >>> scale.grad
        array([2., 2., 2.], dtype=float32)
    """

    __slots__ = ("grad", "requires_grad")

    def __init__(self, data: Array, backend: Backend | None = None) -> None:
        super().__init__(data, backend)
        self.grad: Array | None = None
        self.requires_grad = True

    def add_grad(self, grad: Array, *, copy: bool = True) -> None:
        """Add to the gradient; threads may do so at once.

        Args:
            grad: of the parameter's shape. It stays the caller's, who may change it afterwards,
                unless ``copy`` is False.

        Raises:
            ValueError: another shape. TypeError: not an array or a number.
        """
        if isinstance(grad, np.number) or not hasattr(grad, "dtype"):
            grad, copy = self.backend.asarray(grad, self.dtype), False
        if grad.shape != self.data.shape:
            raise ValueError(
                f"grad must have the shape of its parameter, {self.shape}, got {tuple(grad.shape)}"
            )
        with _adding:
            if self.grad is None:
                self.grad = grad.copy() if copy else grad
            else:
                total = self.grad + grad
                self.grad = total if total.shape else self.backend.asarray(total)
