"""Which backends there are: found by name, or from the arrays that they own."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias

BackendLike: TypeAlias = Any  # a name such as "cpu", or a `Backend`


class _Entry(NamedTuple):
    factory: Callable[..., Any]
    owns: Callable[[Any], bool | str]
    available: Callable[[], bool]
    devices: bool


_entries: dict[str, _Entry] = {}  # backend_of asks in this order
_made: dict[str, Any] = {}
_preferred: ContextVar[Any] = ContextVar("preferred", default=None)


def register(
    name: str,
    factory: Callable[..., Any],
    owns: Callable[[Any], bool | str] = lambda x: False,
    *,
    devices: bool = False,
    available: Callable[[], bool] = lambda: True,
) -> None:
    """Make a backend known, so that names, arrays, checkpoints and pickles lead to it.

    A name that is registered again gets the new factory.

    Args:
        name: without a colon; becomes the `Backend.name`.
        factory: returns the backend, once: ``factory()``; with ``devices`` also
            ``factory(device)``, for the name ``"<name>:<device>"``.
        owns: whether an array belongs to the backend; of a backend with several devices, to which,
            e.g. ``"0"``. Where several own one, the first registered of them gets it.
        devices: whether there is a backend for each of several devices.
        available: whether the backend can run here.

    Example:
        >>> import arraycnn as ac
        >>> from arraycnn.backends.cpu import CpuBackend
        >>> class Counting(CpuBackend):
        ...     calls = 0
        ...     def convolution(self, *args, **options):
        ...         self.calls += 1
        ...         return super().convolution(*args, **options)
        >>> ac.register("counting", Counting)
        >>> layer = ac.Conv2d(1, 2, kernel_size=3, backend="counting")

    Raises:
        ValueError: ``name`` is empty, "auto" or has a colon. TypeError: not as described.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {name!r}")
    if not name or name == "auto" or ":" in name:
        raise ValueError(f"name must be a word other than 'auto' without a colon, got {name!r}")
    for argument, value in (("factory", factory), ("owns", owns), ("available", available)):
        if not callable(value):
            raise TypeError(f"{argument} must be callable, got {value!r}")
    _entries[name] = _Entry(factory, owns, available, devices)
    for made in [made for made in _made if made.partition(":")[0] == name]:
        del _made[made]


def available_backends() -> list[str]:
    """Names of the backends that can run here, the preferred one first."""
    return [name for name, entry in _entries.items() if entry.available()]


def get_backend(name: BackendLike = "auto") -> Any:
    """The backend of that name, always the same object; a backend is returned as it is.

    Args:
        name: ``"cpu"`` (NumPy), ``"cuda"`` (CuPy's current device), ``"cuda:<index>"`` (that
            device, which becomes CuPy's current one), ``"auto"`` (the first of
            `available_backends`), or what was given to `register`.

    Raises:
        BackendUnavailableError: the backend exists but cannot run here; says what to install.
        ValueError: there is no backend or device of that name. TypeError: not a name.
    """
    if not isinstance(name, str):
        if isinstance(name, type) or not hasattr(name, "owns"):
            raise TypeError(f"backend must be a name such as 'cpu' or a Backend, got {name!r}")
        return name
    if name == "auto":
        name = available_backends()[0]
    backend = _made.get(name)
    if backend is None:
        kind, colon, device = name.partition(":")
        if kind not in _entries or (colon and not _entries[kind].devices):
            raise ValueError(f"backend must be {_names()}, got {name!r}")
        factory = _entries[kind].factory
        backend = factory(device) if colon else factory()
        if backend.name.partition(":")[0] != kind:
            backend.name = name
        backend = _made.setdefault(backend.name, backend)
    backend.select()
    return backend


def backend_of(*arrays: Any) -> Any:
    """The one backend that all ``arrays`` belong to.

    Raises:
        TypeError: one is no array of any backend. ValueError: they belong to different ones.
    """
    if not arrays:
        raise TypeError("backend_of needs at least one array")
    backend = _owner(arrays[0])
    for array in arrays[1:]:
        other = _owner(array)
        if other is not backend:
            raise ValueError(
                f"arrays are on different backends, {backend.name} and {other.name}; move them to "
                f"one, e.g. with get_backend({other.name!r}).asarray(x), or to_numpy to come back"
            )
    return backend


class preferred:
    """Within the block, let `backend_of` return ``backend`` for the arrays that it owns.

    Two backends may own the same kind of array. A network and a training step say so which of them
    they run on.
    """

    __slots__ = ("_backend", "_token")

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __enter__(self) -> None:
        self._token = _preferred.set(self._backend)

    def __exit__(self, *_: object) -> None:
        _preferred.reset(self._token)


def _names() -> str:
    """The names that `get_backend` takes, for people."""
    devices = [f"{name}:<device>" for name, entry in _entries.items() if entry.devices]
    return f"{', '.join(map(repr, sorted([*_entries, *devices])))} or 'auto'"


def _owner(array: Any) -> Any:
    first = _preferred.get()
    if first is not None and first.owns(array):
        return first
    for name, entry in _entries.items():
        owned = entry.owns(array)
        if owned:
            full = f"{name}:{owned}" if isinstance(owned, str) else name
            return _made.get(full) or get_backend(full)
    raise TypeError(
        f"expected a NumPy or CuPy array, got {type(array).__module__}."
        f"{type(array).__qualname__}; convert it first, e.g. with numpy.asarray(x)"
    )
