"""One training step, which leaves gradients in the parameters, and the same without learning."""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from arraycnn.backends import Backend
from arraycnn.functional.loss import LossValue
from arraycnn.layers.layer import Layer, backward_to_parameters
from arraycnn.registry import preferred
from arraycnn.training.arguments import Batches, check_batch
from arraycnn.training.totals import Totals, figures_of

# loss(outputs, targets) → (loss, grad_outputs), a `LossValue` where it says what it counted.
Loss: TypeAlias = Callable[[Any, Any], Any]


class Step(Protocol):
    """What a `Trainer` calls for each batch.

    Returns (loss, outputs), as a `LossValue` where the loss is no plain mean over the targets, and
    adds the gradients to those of the parameters. An attribute ``loss`` follows `Trainer.loss`.
    """

    def __call__(self, inputs: Any, targets: Any, /) -> tuple[Any, Any]: ...


class EagerStep:
    """Forward, loss and backward, one operation after the other.

    Args:
        model: the network; one with several inputs gets them as a tuple.
        loss: ``loss(outputs, targets) -> (loss, grad_outputs)``.
    """

    def __init__(self, model: Layer, loss: Loss) -> None:
        self.model = model
        self.loss = loss

    def __call__(self, inputs: Any, targets: Any) -> LossValue:
        with preferred(self.model.backend):
            outputs, backward = self.model.forward(*as_tuple(inputs))
            value = checked_loss(self.loss(outputs, targets))
            loss, grad = value
            backward_to_parameters(self.model, backward, grad)
        return value.paired(loss, outputs)


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


def as_tuple(inputs: Any) -> tuple[Any, ...]:
    """The arguments of a network for one input or a tuple of several."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def checked_loss(value: Any) -> LossValue:
    """What a loss, or a step, returned, as a `LossValue`.

    Raises:
        TypeError: not a pair. ValueError: not one number, or a sum.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        got = f"{len(value)} values" if isinstance(value, tuple | list) else type(value).__name__
        raise TypeError(
            f"loss must return (loss, grad), the mean over the batch and its gradient, got {got}; "
            "what the mean is over is said by functional.LossValue(loss, grad, denominator)"
        )
    result = value if isinstance(value, LossValue) else LossValue(*value)
    shape = getattr(result[0], "shape", ())
    if shape != () or result.reduction != "mean":
        got = f"an array of shape {tuple(shape)}" if shape else f"their {result.reduction}"
        raise ValueError(
            f"loss must return one number, the mean over the batch, got {got}; use reduction='mean'"
        )
    return result
