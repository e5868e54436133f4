"""Weights that Keras 3 saved (``.weights.h5``), in our layout and order."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.errors import CheckpointError
from arraycnn.files import PathLike
from arraycnn.interchange.hdf5 import foreign_file, members, numbers
from arraycnn.layers import (
    BatchNorm,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Dense,
    Flatten,
    Layer,
)

# Our layers by the name that Keras gives to the first of the kind; the next ones are <name>_1, …
_KERAS_NAMES: dict[type[Layer], str] = {
    Conv1d: "conv1d",
    Conv2d: "conv2d",
    Conv3d: "conv3d",
    ConvTranspose1d: "conv1d_transpose",
    ConvTranspose2d: "conv2d_transpose",
    ConvTranspose3d: "conv3d_transpose",
    Dense: "dense",
    BatchNorm: "batch_normalization",
}
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
_MAX_VARIABLES = 4


def load_keras_weights(model: Layer, path: PathLike, input_shape: Shape) -> None:
    """Load the weights that Keras 3 saved of the same network with ``save_weights``.

    The k-th convolution, dense layer and so on of ``model`` takes the k-th of that kind there.
    Kernels are transposed, and the rows of a dense layer behind `Flatten` put in our order:
    Keras flattens (H, W, C), we flatten (C, H, W). Layers without weights do not matter. What
    a weights file does not say must agree by itself: Keras' batch normalisation has
    ``epsilon=1e-3``, and its "same" padding is ours.

    Args:
        model: may hold convolutions, transposed ones, dense layers and batch normalisation.
        path: a ``.weights.h5`` file of a model with ``data_format="channels_last"``.
        input_shape: (N, C, *S) of the images, ours.

    Raises:
        CheckpointError: layers or shapes differ, or the file is no such file; the model is
            unchanged. OSError: the file cannot be opened. ImportError: pyfive is not installed.
    """
    plan = list(_keras_plan(model, input_shape))
    with foreign_file(path) as root:
        stored = _keras_layers(root)
        wanted = _numbered([_KERAS_NAMES[type(layer)] for _, layer, _ in plan])
        if sorted(wanted) != sorted(stored):
            raise CheckpointError(
                f"the layers with weights are {sorted(stored)} in the file and {sorted(wanted)} in "
                "the model"
            )
        state = {
            f"{name}.{key}" if name else key: array
            for keras_name, (name, layer, order) in zip(wanted, plan, strict=True)
            for key, array in _from_keras(root, stored[keras_name], layer, order)
        }
    model.load_state_dict(state, strict=False)


def _keras_plan(model: Layer, input_shape: Shape) -> Iterator[tuple[str, Layer, Any]]:
    """(name, layer, order of its features in Keras or None) of the layers with weights."""
    order = None
    seen: set[int] = set()
    for name, layer, shapes in model.walk(tuple(input_shape)):
        if isinstance(layer, Flatten):
            channels, *sizes = shapes[0][1:]
            positions = np.arange(int(np.prod(sizes)) * channels)
            order = positions.reshape(-1, channels).T.reshape(-1)  # ours (C, L), theirs (L, C)
        if id(layer) in seen or not any(True for _ in layer.named_variables()):
            continue
        seen.add(id(layer))
        if type(layer) not in _KERAS_NAMES:
            raise CheckpointError(
                f"{name} is a {type(layer).__name__}, which Keras does not have; known are "
                f"{', '.join(cls.__name__ for cls in _KERAS_NAMES)}"
            )
        yield name, layer, order
        if isinstance(layer, Dense):
            order = None


def _numbered(kinds: list[str]) -> list[str]:
    """Keras' names: the kind, with a number from the second one on."""
    counts: dict[str, int] = {}
    names = []
    for kind in kinds:
        number = counts[kind] = counts.get(kind, -1) + 1
        names.append(f"{kind}_{number}" if number else kind)
    return names


def _keras_layers(root: Any) -> dict[str, list[str]]:
    """Paths of the variables of each layer that has any."""
    found = {}
    for name in members(root, "layers"):
        count = len(members(root, f"layers/{name}/vars"))
        if count > _MAX_VARIABLES:
            raise CheckpointError(
                f"layers/{name} has {count} variables, at most {_MAX_VARIABLES} are known"
            )
        if count:
            found[name] = [f"layers/{name}/vars/{index}" for index in range(count)]
    return found


def _from_keras(
    root: Any, paths: list[str], layer: Layer, order: Any
) -> Iterator[tuple[str, Array]]:
    """(our name, array in our layout) of one layer."""
    if isinstance(layer, BatchNorm):
        names: tuple[str, ...] = _BATCH_NORM
        shapes = [layer.running_mean.shape] * 4
    else:
        weight, bias = layer.weight, layer.bias  # type: ignore[attr-defined]
        # (O, I, *K) → (*K, I, O), and (I, O, *K) → (*K, O, I) of a transposed convolution
        kernel = (*weight.shape[2:], weight.shape[1], weight.shape[0])
        names, shapes = ("weight", "bias"), [kernel, *([bias.shape] if bias is not None else [])]
    if len(paths) != len(shapes):
        raise CheckpointError(
            f"{paths[0].rsplit('/', 1)[0]} must have {len(shapes)} variables, got {len(paths)}; "
            "bias, scale and center must be used, or not, as in the model"
        )
    for name, path, shape in zip(names, paths, shapes, strict=False):
        array = numbers(root, path, shape)
        if order is not None and (array.ndim > 1 or isinstance(layer, BatchNorm)):
            array = array[order]  # rows of a dense kernel, or features
        yield name, np.moveaxis(array, (-1, -2), (0, 1)) if array.ndim > 1 else array
