"""Training steps as CUDA graphs: what is replayed is what an eager step computes, to the bit."""

from functools import partial
from typing import Any

import numpy as np
import pytest

import arraycnn as ac
from arraycnn import functional as F
from arraycnn.backends import Backend, available_backends
from arraycnn.errors import GraphCaptureError
from arraycnn.training import Trainer
from arraycnn.training.captured import CapturedStep

pytestmark = pytest.mark.skipif(
    "cuda" not in available_backends(), reason="needs a CUDA device, or the emulator"
)


@pytest.fixture
def cuda() -> Backend:
    return ac.get_backend("cuda")


def network(seed: int = 0, dropout: float = 0.25) -> ac.Sequential:
    return ac.Sequential(
        ac.Conv2d(1, 4, 3, padding=1), ac.BatchNorm(4), ac.ReLU(), ac.MaxPool2d(2),
        ac.Conv2d(4, 6, 3, stride=2), ac.ReLU(), ac.Flatten(), ac.Dropout(dropout),
        ac.Dense(54, 10), seed=seed, backend="cuda",
    )  # fmt: skip


def data(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    images = rng.standard_normal((count, 1, 14, 14)).astype(np.float32)
    return images, rng.integers(0, 10, count)


def state(model: ac.Sequential) -> dict[str, np.ndarray]:
    return {name: ac.backend_of(a).to_numpy(a) for name, a in model.state_dict().items()}


def trained(graph: bool, epochs: int = 2, **options: Any) -> tuple[dict[str, Any], list[Any]]:
    model = network()
    optimizer = ac.Adam(model.parameters(), lr=0.01)
    schedule = ac.schedules.Cosine(0.01, 20)
    trainer = Trainer(model, optimizer, schedule=schedule, graph=graph, **options)
    loader = ac.DataLoader(*data(20), 8, shuffle=True, seed=1)  # the last batch is smaller
    history = trainer.fit(loader, epochs)
    assert not graph or trainer._step.captured
    return state(model), [record["train_loss"] for record in history]


def test_a_replayed_training_is_the_eager_one_to_the_bit(cuda: Backend) -> None:
    with cuda.own_products():
        expected, losses = trained(graph=False)
    found, replayed_losses = trained(graph=True)
    assert replayed_losses == losses
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_graph_is_close_to_the_default_step(cuda: Backend) -> None:
    losses, replayed = trained(graph=False)[1], trained(graph=True, check_every=4)[1]
    np.testing.assert_allclose(replayed, losses, rtol=1e-4)


def test_gradient_clipping_sees_replayed_gradients(cuda: Backend) -> None:
    with cuda.own_products():
        expected, _ = trained(graph=False, clip_norm=0.1)
    found, _ = trained(graph=True, clip_norm=0.1)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_every_replay_draws_the_next_mask(cuda: Backend) -> None:
    model = network(dropout=0.5)
    step = CapturedStep(model, F.softmax_cross_entropy)
    images, labels = data(4)
    losses = {float(step(images, labels)[0]) for _ in range(6)}
    assert step.captured
    assert len(losses) == 6
    (dropout,) = model.random_state().values()
    assert dropout["counter"] == 6


def test_other_batches_run_eagerly_and_leave_the_graph(cuda: Backend) -> None:
    model = network()
    step = CapturedStep(model, F.softmax_cross_entropy)
    images, labels = data(8)
    for count in (8, 8, 3, 8, 3, 8):
        loss, logits = step(images[:count], labels[:count])
        assert np.isfinite(float(loss))
        assert logits.shape == (count, 10)
    assert step.captured


def test_labels_that_are_no_class_are_refused_during_replay(cuda: Backend) -> None:
    step = CapturedStep(network(), F.softmax_cross_entropy)
    images, labels = data(4)
    for _ in range(3):
        step(images, labels)
    with pytest.raises(ValueError, match="labels must be in"):
        step(images, labels + 10)


def test_moved_parameters_are_captured_anew(cuda: Backend) -> None:
    model = network(dropout=0.0)
    step = CapturedStep(model, F.softmax_cross_entropy)
    images, labels = data(4)
    for _ in range(3):
        before = float(step(images, labels)[0])
    for parameter in model.parameters():
        parameter.data = parameter.data * 0
    after = [float(step(images, labels)[0]) for _ in range(3)]
    np.testing.assert_allclose(after, np.log(10), rtol=1e-6)
    assert before != after[0]


def test_a_loss_that_waits_for_the_device_is_explained(cuda: Backend) -> None:
    def waiting(logits: Any, labels: Any) -> tuple[Any, Any]:
        loss, grad = F.softmax_cross_entropy(logits, labels)
        return loss * (1 + 0 * float(loss)), grad

    model = network()
    step = CapturedStep(model, waiting)
    images, labels = data(4)
    step(images, labels)
    with pytest.raises(GraphCaptureError, match="graph=False"):
        step(images, labels)
    counters = [s["counter"] for s in model.random_state().values()]
    assert counters == [1]


def test_a_graph_needs_a_cuda_backend() -> None:
    model = ac.Sequential(ac.Dense(3, 2), backend="cpu")
    with pytest.raises(ValueError, match=r"model is on cpu; use model\.to\('cuda'\)"):
        Trainer(model, ac.SGD(model.parameters(), lr=0.1), graph=True)


def small(*layers: Any, seed: int = 0) -> ac.Sequential:
    first, last = ac.Dense(16, 8), ac.Dense(8, 2)
    return ac.Sequential(first, *layers, last, seed=seed, backend="cuda")


def rows(count: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, 16)).astype("f"), np.arange(count) % 2


class Eager(CapturedStep):
    """The same step, never captured."""

    def __call__(self, inputs: Any, targets: Any) -> Any:
        return self.run(inputs, targets)


def losses(step: CapturedStep, count: int, batch: Any = None) -> list[float]:
    found = []
    for _ in range(count):
        found.append(float(step(*(batch or rows()))[0]))
        for parameter in step.model.parameters():
            parameter.grad = None
    return found


def steps(make: Any, loss: Any = F.softmax_cross_entropy) -> list[CapturedStep]:
    """The captured step and the eager one of equal networks, the first with a graph."""
    result = [CapturedStep(make(), loss), Eager(make(), loss)]
    assert losses(result[0], 3) == losses(result[1], 3)
    assert result[0].captured
    return result


class TestWhatChangesAfterCapture:
    def test_a_shared_dropout_advances_as_in_an_eager_step(self, cuda: Backend) -> None:
        def make() -> ac.Sequential:
            dropout = ac.Dropout(0.5, seed=3)
            return small(dropout, ac.Dense(8, 8, seed=1), dropout)

        captured, eager = steps(make)
        assert losses(captured, 4) == losses(eager, 4)
        assert captured.model.random_state() == eager.model.random_state()

    def test_the_seed(self, cuda: Backend) -> None:
        captured, eager = steps(lambda: small(ac.Dropout(0.5)))
        for step in (captured, eager):
            step.model.load_random_state({"1": {"seed": 77, "counter": 10}})
        found = losses(captured, 4)
        assert found == losses(eager, 4)
        assert len(set(found)) == 4

    def test_seeds_that_were_one(self, cuda: Backend) -> None:
        def make() -> ac.Sequential:
            model = small(ac.Dropout(0.5), ac.Dense(8, 8, seed=1), ac.Dropout(0.5))
            same = {"seed": 5, "counter": 0}
            model.load_random_state({"1": same, "3": same})
            return model

        captured, eager = steps(make)
        for step in (captured, eager):
            step.model.load_random_state(
                {"1": {"seed": 5, "counter": 9}, "3": {"seed": 6, "counter": 2}}
            )
        assert losses(captured, 4) == losses(eager, 4)

    def test_hyper_parameters_of_layers(self, cuda: Backend) -> None:
        captured, eager = steps(lambda: small(ac.BatchNorm(8), ac.Dropout(0.5)))
        for step in (captured, eager):
            step.model.layers[2].p = 0.0
            step.model.layers[1].momentum = 0.0
        before = state(captured.model)["1.running_mean"]
        assert losses(captured, 3) == losses(eager, 3)
        assert captured.captured
        np.testing.assert_array_equal(state(captured.model)["1.running_mean"], before)

    def test_an_array_of_a_layer_of_ones_own(self, cuda: Backend) -> None:
        class Mask(ac.Layer):
            def __init__(self) -> None:
                self.mask = cuda.asarray(np.ones(8, "f"))

            def forward(self, x: Any) -> Any:
                mask = self.mask
                return x * mask, lambda grad: grad * mask

            def output_shape(self, input_shape: Any) -> Any:
                return input_shape

        captured, eager = steps(lambda: small(Mask()))
        for step in (captured, eager):
            step.model.layers[1].mask = cuda.asarray(np.arange(8, dtype="f"))
        assert losses(captured, 3) == losses(eager, 3)

    def test_the_loss_of_the_trainer(self, cuda: Backend) -> None:
        model, calls = small(), []

        def loss(logits: Any, labels: Any) -> Any:
            calls.append(1)
            return F.softmax_cross_entropy(logits, labels)

        trainer = Trainer(model, ac.SGD(model.parameters(), lr=0.1), graph=True)
        trainer.fit([rows()] * 4, 1)
        trainer.loss = loss
        trainer.fit([rows()] * 4, 2)
        assert len(calls) == 2  # eagerly, and for the graph

    def test_parameters_that_are_frozen(self, cuda: Backend) -> None:
        captured, _ = steps(small)
        captured.model.layers[0].weight.requires_grad = False
        losses(captured, 1)
        assert not captured.captured

    def test_a_model_that_leaves_cuda(self, cuda: Backend) -> None:
        captured, _ = steps(small)
        captured.model.to("cpu")
        with pytest.raises(ValueError, match=r"needs CUDA, but the model is on cpu; use model\.to"):
            captured(*rows())


def test_gradients_add_up(cuda: Backend) -> None:
    sums = []
    for kind in (CapturedStep, Eager):
        step = kind(small(), F.softmax_cross_entropy)
        weight = step.model.layers[0].weight
        sums.append([])
        for _ in range(5):
            step(*rows())
            sums[-1].append(cuda.to_numpy(weight.grad))
    np.testing.assert_array_equal(*sums)
    np.testing.assert_allclose(sums[0][4], 5 * sums[0][0], rtol=1e-6)


def test_labels_that_are_ignored_are_replayed_and_left_out(cuda: Backend) -> None:
    inputs, labels = rows(6)
    ignored = np.where(np.arange(6) < 4, -1, labels)
    histories = []
    for kind in (CapturedStep, Eager):
        model = small()
        step = kind(model, partial(F.softmax_cross_entropy, ignore_index=-1))
        trainer = Trainer(model, ac.SGD(model.parameters(), lr=0.1), step=step)
        histories.append(trainer.fit([(inputs, labels)] * 3 + [(inputs, ignored)] * 3, 1)[0])
        assert not isinstance(step, Eager) or not step.captured
    for figure in ("train_loss", "train_accuracy"):
        assert histories[0][figure] == histories[1][figure]


def test_random_numbers_of_no_random_layer_are_refused(cuda: Backend) -> None:
    class Noise(ac.Layer):
        calls = 0

        def forward(self, x: Any) -> Any:
            type(self).calls += 1
            return cuda.dropout(x, 0.5, 1, self.calls), lambda grad: grad

        def output_shape(self, input_shape: Any) -> Any:
            return input_shape

    step = CapturedStep(small(Noise()), F.softmax_cross_entropy)
    step(*rows())
    with pytest.raises(GraphCaptureError, match="no RandomLayer"):
        step(*rows())
