"""What an update changes, listed once for a whole `Trainer.fit`."""

from collections.abc import Callable

from arraycnn.backends import Backend
from arraycnn.layers.layer import Layer, RandomLayer
from arraycnn.optim import Optimizer
from arraycnn.parameters import Buffer


class Work:
    """Parameters, running statistics and random layers of a model in training.

    Attributes:
        backend: of the model. parameters: all of the model's. trained: the optimizer's.
    """

    def __init__(self, model: Layer, optimizer: Optimizer) -> None:
        self.parameters = model.parameters()
        self.trained = optimizer.parameters
        self.backend: Backend = model.backend or self.trained[0].backend
        variables = {id(variable): variable for _, variable in model.named_variables()}
        layers = {id(layer): layer for _, layer in model.named_layers()}
        self._buffers = [v for v in variables.values() if isinstance(v, Buffer)]
        self._random = [layer for layer in layers.values() if isinstance(layer, RandomLayer)]

    def drop_gradients(self) -> None:
        """Set the gradients of all parameters to None, also of those that are not trained."""
        for parameter in self.parameters:
            parameter.grad = None

    def undo_point(self, *, statistics: bool) -> Callable[[], None]:
        """A function that takes a forward pass back: random layers, and statistics if wanted."""
        buffers = [(b, b.data.copy()) for b in self._buffers] if statistics else []
        counters = [(layer, layer.counter) for layer in self._random]

        def undo() -> None:
            for buffer, data in buffers:
                buffer.data[...] = data  # where it lies, for captured graphs write there
            for layer, counter in counters:
                layer.counter = counter

        return undo
