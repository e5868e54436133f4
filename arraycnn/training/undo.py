"""Taking back a forward pass: what it changes beside gradients."""

from collections.abc import Callable

from arraycnn.layers.layer import Layer, RandomLayer
from arraycnn.parameters import Buffer


class Undo:
    """Remembers running statistics and the counters of random layers, to put them back."""

    def __init__(self, model: Layer) -> None:
        variables = {id(v): v for _, v in model.named_variables()}
        layers = {id(layer): layer for _, layer in model.named_layers()}
        self._buffers = [v for v in variables.values() if isinstance(v, Buffer)]
        self._random = [layer for layer in layers.values() if isinstance(layer, RandomLayer)]

    def point(self, *, statistics: bool) -> Callable[[], None]:
        """A function that puts everything back as it is now, the statistics only if wanted."""
        buffers = [(b, b.data.copy()) for b in self._buffers] if statistics else []
        counters = [(layer, layer.counter) for layer in self._random]

        def restore() -> None:
            for buffer, data in buffers:
                buffer.data[...] = data  # where it lies, for captured graphs write there
            for layer, counter in counters:
                layer.counter = counter

        return restore
