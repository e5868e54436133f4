"""Loss and accuracy over batches: each weighs by what its loss counted, whatever the batch size."""

import json
from functools import partial

import numpy as np
import pytest

import arraycnn as ac
from arraycnn import functional as F
from arraycnn.functional import LossValue
from arraycnn.training import Trainer

rng = np.random.default_rng(0)
X = rng.standard_normal((12, 3, 2, 2)).astype("f")
LABELS = {
    "all count": rng.integers(0, 3, 12),
    "some do not": np.array([0, 1, 2, -1, -1, -1, -1, 0, 1, 2, -1, 0]),
    "none of a batch": np.array([-1, -1, -1, -1, -1, -1, 0, 1, 2, 0, 1, 2]),
    "pixels": rng.integers(-1, 3, (12, 2, 2)),
}
WEIGHT = np.array([1, 10, 0.5], "f")


def make_trainer(loss, backend="cpu", labels=LABELS["all count"], rate=0.0, **arguments):
    layers = (ac.Conv2d(3, 3, 1),) if labels.ndim > 1 else (ac.Flatten(), ac.Dense(12, 3))
    model = ac.Sequential(*layers, seed=0, backend=backend)
    return Trainer(model, ac.SGD(model.parameters(), rate), loss=loss, **arguments)


def batches(labels, size):
    return [(X[i : i + size], labels[i : i + size]) for i in range(0, 12, size)]


def expected(logits, labels, weight=None):
    """Mean loss and accuracy in float64 of the labels that count."""
    logits = np.moveaxis(logits.astype(float), 1, -1).reshape(-1, 3)
    labels = labels.reshape(-1)
    counts = labels >= 0
    logits, labels = logits[counts], labels[counts]
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    weights = np.ones(3) if weight is None else weight.astype(float)
    loss = (losses * weights[labels]).sum() / weights[labels].sum()
    return loss, (logits.argmax(1) == labels).mean()


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("name", LABELS)
class TestOfTheLoss:
    def loss(self, backend, name, weight):
        weight = None if weight is None else backend.asarray(weight)
        ignore = None if name == "all count" else -1
        return lambda *a: F.softmax_cross_entropy(*a, weight=weight, ignore_index=ignore)

    def test_evaluation(self, name, weight, backend):
        labels = LABELS[name]
        trainer = make_trainer(self.loss(backend, name, weight), backend, labels)
        loss, accuracy = expected(backend.to_numpy(trainer.model(X)), labels, weight)
        for size in (1, 2, 5, 12):
            for data in ((X, labels), (X, backend.asarray(labels))):
                found = trainer.evaluate(data, batch_size=size)
                assert found["loss"] == pytest.approx(loss, rel=1e-5)
                assert found["accuracy"] == pytest.approx(accuracy)

    @pytest.mark.parametrize("check_every", [1, 3])
    def test_history(self, name, weight, check_every, backend):
        labels = LABELS[name]
        for size in (2, 6, 12):
            trainer = make_trainer(
                self.loss(backend, name, weight), backend, labels, check_every=check_every
            )
            loss, accuracy = expected(backend.to_numpy(trainer.model(X)), labels, weight)
            record = trainer.fit(batches(labels, size), 1, test=(X, labels))[0]
            for kind in ("train", "test"):
                assert record[f"{kind}_loss"] == pytest.approx(loss, rel=1e-5)
                assert record[f"{kind}_accuracy"] == pytest.approx(accuracy)

    def test_resume_in_the_middle(self, name, weight):
        class Stop(ac.Callback):
            def on_step(self, trainer):
                if trainer.step == 3:
                    trainer.stop()

        labels = LABELS[name]
        loss = self.loss(ac.get_backend("cpu"), name, weight)
        whole, first, second = (make_trainer(loss, labels=labels, rate=0.1) for _ in range(3))
        whole.fit(batches(labels, 2), 1)
        first.callbacks = [Stop()]
        first.fit(batches(labels, 2), 1)
        second.model.load_state_dict(first.model.state_dict())
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        second.fit(batches(labels, 2), 1)
        for figure in ("train_loss", "train_accuracy"):
            assert second.history[0][figure] == whole.history[0][figure]


class TestNothingCounts:
    def test_batches_of_only_ignored_labels_train_and_count_nothing(self):
        labels = np.full(12, -1)
        loss = partial(F.softmax_cross_entropy, ignore_index=-1)
        for check_every in (1, 5):
            trainer = make_trainer(loss, rate=0.1, check_every=check_every)
            before = [p.data.copy() for p in trainer.model.parameters()]
            record = trainer.fit(batches(labels, 6), 1)[0]
            assert (record["train_loss"], record["train_accuracy"]) == (None, None)
            for parameter, old in zip(trainer.model.parameters(), before, strict=True):
                np.testing.assert_array_equal(parameter.data, old)

    def test_class_of_weight_zero(self):
        weight = np.array([0, 1, 1], "f")
        trainer = make_trainer(partial(F.softmax_cross_entropy, weight=weight), rate=0.1)
        labels = np.repeat([0, 1], 6)
        record = trainer.fit(batches(labels, 6), 1)[0]
        assert record["train_loss"] > 0

    def test_evaluation_of_them_is_refused(self):
        loss = partial(F.softmax_cross_entropy, ignore_index=-1)
        with pytest.raises(ValueError, match="no label that counts"):
            make_trainer(loss).evaluate((X, np.full(12, -1)))

    def test_empty_batches_are_skipped(self):
        trainer, labels = make_trainer(F.softmax_cross_entropy), LABELS["all count"]
        whole = trainer.evaluate((X, labels))
        assert trainer.evaluate([(X, labels), (X[:0], labels[:0])]) == whole


class TestAccuracy:
    def test_of_a_single_logit_is_by_its_sign(self, backend):
        x = rng.standard_normal((200, 2)).astype("f")
        labels = (x[:, 0] > -0.5).astype(int)
        model = ac.Sequential(ac.Dense(2, 1), seed=0, backend=backend)
        trainer = Trainer(
            model, ac.SGD(model.parameters(), 1.0),
            loss=lambda logits, t: F.binary_cross_entropy_with_logits(
                logits, model.backend.asarray(t)[:, None].astype("f")
            ),
        )  # fmt: skip
        loader = ac.DataLoader(x, labels, 20, shuffle=True)
        record = trainer.fit(loader, 20, test=(x, backend.asarray(labels)))[-1]
        right = (backend.to_numpy(model(x))[:, 0] > 0) == labels
        assert record["test_accuracy"] == right.mean() > 0.95

    @pytest.mark.parametrize("place", ["host", "device"])
    def test_there_is_none_of_numbers(self, place, backend):
        """Integers that a single output is to be near are no classes of it."""
        model = ac.Sequential(ac.Flatten(), ac.Dense(12, 1), seed=0, backend=backend)
        trainer = Trainer(
            model, ac.SGD(model.parameters(), 0.0),
            loss=lambda y, t: F.mse_loss(y, model.backend.asarray(t)[:, None].astype("f")),
        )  # fmt: skip
        labels = np.arange(12)
        given = backend.asarray(labels) if place == "device" else labels
        assert trainer.evaluate((X, given), batch_size=2)["accuracy"] is None

    def test_labels_that_the_loss_leaves_out_itself(self):
        def loss(logits, labels):
            counts = labels < 3
            value, grad = F.softmax_cross_entropy(logits, np.where(counts, labels, 0))
            return LossValue(value, grad, int(counts.sum()))

        trainer, labels = make_trainer(loss), np.where(LABELS["some do not"] < 0, 255, 1)
        logits = trainer.model(X)
        right = (logits.argmax(1) == labels)[labels < 3].mean()
        assert trainer.evaluate((X, labels))["accuracy"] == pytest.approx(right)


class TestLossesOfOnesOwn:
    def test_a_plain_pair_is_a_mean_over_the_targets(self):
        def loss(logits, labels):
            value, grad = F.softmax_cross_entropy(logits, labels)
            return value, grad

        trainer = make_trainer(loss)
        found = [trainer.evaluate((X, LABELS["all count"]), batch_size=n)["loss"] for n in (5, 12)]
        assert found[0] == pytest.approx(found[1], rel=1e-6)

    def test_a_denominator_may_be_said(self):
        def loss(outputs, targets):
            counts = targets > 0
            error = (outputs[:, 0] - 1) * counts
            grad, divisor = np.zeros_like(outputs), max(counts.sum(), 1)
            grad[:, 0] = 2 * error / divisor
            return LossValue((error**2).sum() / divisor, grad, counts.sum())

        trainer = make_trainer(loss)
        labels = np.array([1, 0, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1])
        found = [trainer.evaluate((X, labels), batch_size=n)["loss"] for n in (2, 6, 12)]
        np.testing.assert_allclose(found, found[-1], rtol=1e-6)

    def test_a_python_number(self):
        trainer = make_trainer(lambda outputs, targets: (0.5, np.zeros_like(outputs)))
        assert trainer.fit(batches(LABELS["all count"], 5), 1)[0]["train_loss"] == 0.5

    @pytest.mark.parametrize(
        ("loss", "error", "match"),
        [
            (
                lambda y, t: F.softmax_cross_entropy(y, t)[0],
                TypeError,
                r"\(loss, grad\).*got float32",
            ),
            (lambda y, t: (0.0, y, 3), TypeError, r"return \(loss, grad\), .*got 3 values"),
            (partial(F.softmax_cross_entropy, reduction="sum"), ValueError, "the mean .*their sum"),
            (partial(F.softmax_cross_entropy, reduction="none"), ValueError, r"of shape \(12,\)"),
            (lambda y, t: (np.zeros(3), y), ValueError, r"an array of shape \(3,\)"),
        ],
    )
    def test_that_are_no_mean(self, loss, error, match):
        for attempt in (Trainer.evaluate, lambda t, data: t.fit([data], 1)):
            with pytest.raises(error, match=match):
                attempt(make_trainer(loss), (X, LABELS["all count"]))


class TestLossValue:
    def test_is_a_pair(self):
        value = F.mse_loss(np.ones((2, 3)), np.zeros((2, 3)))
        loss, grad = value
        assert (float(loss), grad.shape, len(value)) == (1.0, (2, 3), 2)
        assert (value.denominator, value.reduction, value.ignore_index) == (6, "mean", None)

    def test_denominators(self, backend):
        logits, labels = backend.asarray(np.zeros((4, 3), "f")), np.array([0, 1, 1, 2])
        weight = backend.asarray(WEIGHT)
        loss = partial(F.softmax_cross_entropy, logits, labels)
        assert loss().denominator == 4
        assert int(loss(ignore_index=1).denominator) == 2
        assert float(loss(weight=weight).denominator) == 21.5
        assert float(loss(weight=weight, ignore_index=0).denominator) == 20.5
        bce = F.binary_cross_entropy_with_logits(logits, logits, reduction="sum")
        assert (bce.reduction, bce.denominator) == ("sum", 12)

    def test_labels_of_another_library(self):
        class Tensor:
            dtype, shape = object(), (4,)

        with pytest.raises(
            TypeError, match=r"labels must be .* got Tensor; convert .*numpy.asarray"
        ):
            F.softmax_cross_entropy(np.zeros((4, 3), "f"), Tensor())
