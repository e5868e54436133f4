"""Parameters that are not trained, and the layers that rest with them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from arraycnn.layers.layer import Layer
from arraycnn.parameters import Parameter


@contextmanager
def frozen(model: Layer, trained: Iterable[Parameter]) -> Iterator[Callable[[bool], None]]:
    """Within the block leave everything of ``model`` as it is but for the ``trained`` parameters.

    No gradient is computed for the others, and a layer that can be `frozen` and has none that is
    trained acts as in inference: one with parameters, or one that lies inside such a layer, as
    dropout does.

    Yields a function that undoes this (False) for a while, and does it again (True).
    """
    kept = {id(parameter) for parameter in trained if parameter.requires_grad}
    resting = [p for p in model.parameters() if id(p) not in kept and p.requires_grad]
    layers = _resting_layers(model, kept)

    def rest(wanted: bool) -> None:
        for parameter in resting:
            parameter.requires_grad = not wanted
        for layer in layers:
            layer.frozen = wanted  # type: ignore[attr-defined]

    rest(True)
    try:
        yield rest
    finally:
        rest(False)


def _resting_layers(model: Layer, kept: set[int]) -> list[Layer]:
    """The layers that are not frozen but should be, each once."""
    rests: dict[str, bool] = {}  # whether a layer rests, by path, those around it first
    found: dict[int, tuple[Layer, bool]] = {}
    for path, layer in model.named_layers():
        parameters = layer.parameters()
        around = path
        while around and around not in rests:
            around = around.rpartition(".")[0]
        rest = (
            all(id(p) not in kept for p in parameters) if parameters else rests.get(around, False)
        )
        rests[path] = rest
        _, everywhere = found.get(id(layer), (layer, True))
        found[id(layer)] = layer, everywhere and rest  # what is shared may be trained elsewhere
    return [
        layer for layer, rest in found.values() if rest and getattr(layer, "frozen", None) is False
    ]
