"""Loss and accuracy of data that nothing is learned from."""

from arraycnn.backends import Backend
from arraycnn.layers.layer import Layer
from arraycnn.registry import preferred
from arraycnn.training.arguments import Batches, check_batch
from arraycnn.training.step import Loss, as_tuple, checked_loss
from arraycnn.training.totals import Totals, figures_of


def evaluation(
    model: Layer, loss: Loss, name: str, batches: Batches, *, backend: Backend, step: int
) -> Totals:
    """The figures of inference on all ``batches``, not looked at yet.

    Args:
        name: of the argument that the batches are. backend: of the model. step: updates done.
    """
    figures = []
    with preferred(model.backend):
        for batch in batches:
            inputs, targets = check_batch(name, batch)
            outputs = model(*as_tuple(inputs))
            value = checked_loss(loss(outputs, targets))
            value = value.paired(value[0], outputs)
            figures.append(figures_of(backend, step, value, targets, 0.0))
    return Totals(pending=tuple(figures))
