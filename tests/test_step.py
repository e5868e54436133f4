"""Training steps that are exchanged, networks with several inputs, and data of every form."""

import numpy as np
import pytest

import arraycnn as ac
from arraycnn import functional as F
from arraycnn.backends.cpu import CpuBackend
from arraycnn.functional import LossValue
from arraycnn.layers.layer import Layer
from arraycnn.training import EagerStep, Trainer

rng = np.random.default_rng(0)
X, Y = rng.standard_normal((12, 6)).astype("f"), np.arange(12) % 2
MASK = rng.standard_normal((12, 4)).astype("f")


def net(seed=0):
    return ac.Sequential(ac.Dense(6, 4), ac.ReLU(), ac.Dense(4, 2), seed=seed)


def sgd(model, **arguments):
    return ac.SGD(model.parameters(), 0.1, **arguments)


def weights(model):
    return [parameter.data.copy() for parameter in model.parameters()]


class TestSteps:
    def test_leave_gradients_and_return_loss_and_outputs(self, backend):
        model = net().to(backend)
        loss, outputs = EagerStep(model, F.softmax_cross_entropy)(X, Y)
        logits, backward = model.forward(X)
        expected, grad = F.softmax_cross_entropy(logits, Y)
        once = [p.grad.copy() for p in model.parameters()]
        backward(grad)
        assert float(loss) == float(expected)
        np.testing.assert_array_equal(backend.to_numpy(outputs), backend.to_numpy(logits))
        for parameter, before in zip(model.parameters(), once, strict=True):
            added = backend.to_numpy(parameter.grad)
            np.testing.assert_array_equal(added, 2 * backend.to_numpy(before))

    def test_of_ones_own(self):
        """Two half batches instead of a whole one."""

        class Halves:
            def __init__(self, step):
                self.step = step

            def __call__(self, inputs, targets):
                parts = [self.step(inputs[i::2], targets[i::2]) for i in range(2)]
                for parameter in self.step.model.parameters():
                    parameter.grad = parameter.grad / 2
                outputs = np.empty((len(inputs), 2), "f")
                outputs[::2], outputs[1::2] = parts[0][1], parts[1][1]
                return (parts[0][0] + parts[1][0]) / 2, outputs

        model, other = net(), net()
        step = Halves(EagerStep(model, F.softmax_cross_entropy))
        ours = Trainer(model, sgd(model), step=step).fit([(X, Y)] * 3, 1, test=(X, Y))[0]
        theirs = Trainer(other, sgd(other)).fit([(X, Y)] * 3, 1, test=(X, Y))[0]
        for a, b in zip(weights(model), weights(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        assert ours["train_accuracy"] == theirs["train_accuracy"]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-6)

    def test_may_say_what_their_loss_counted(self):
        model = net()
        eager = EagerStep(model, F.softmax_cross_entropy)

        def step(inputs, targets):
            _, outputs = eager(inputs, targets)
            return LossValue(float(len(inputs)), outputs, 1 if len(inputs) == 8 else 3)

        record = Trainer(model, sgd(model), step=step).fit([(X[:8], Y[:8]), (X[8:], Y[8:])], 1)[0]
        assert record["train_loss"] == (8 + 3 * 4) / 4

    def test_what_they_return_is_checked(self):
        model = net()
        trainer = Trainer(model, sgd(model), step=lambda inputs, targets: 0.5)
        with pytest.raises(TypeError, match=r"must return \(loss, grad\).* got float"):
            trainer.fit([(X, Y)], 1)

    def test_a_loss_that_is_assigned_is_used(self):
        """Also by a step that was given."""
        for given in (False, True):
            model, calls = net(), []
            step = EagerStep(model, F.softmax_cross_entropy) if given else None
            trainer = Trainer(model, sgd(model), step=step)
            trainer.fit([(X, Y)], 1)

            def loss(outputs, targets, calls=calls):
                calls.append(len(outputs))
                return F.softmax_cross_entropy(outputs, targets)

            trainer.loss = loss
            trainer.fit([(X, Y)], 2, test=(X[:5], Y[:5]))
            assert calls == [12, 5]
            with pytest.raises(TypeError, match="loss must be a function"):
                trainer.loss = "mse"

    def test_the_loss_of_a_given_step_evaluates(self):
        model = ac.Sequential(ac.Dense(6, 2), seed=0)
        trainer = Trainer(model, sgd(model), step=EagerStep(model, F.mse_loss))
        target = np.zeros((12, 2), "f")
        expected = float(F.mse_loss(model(X), target)[0])
        assert trainer.evaluate((X, target))["loss"] == pytest.approx(expected)

    def test_everything_runs_on_the_backend_of_the_model(self):
        class Counting(CpuBackend):
            def __init__(self):
                super().__init__()
                self.calls = []

            def softmax_cross_entropy(self, *arguments):
                self.calls.append("loss")
                return super().softmax_cross_entropy(*arguments)

            def update_parameters(self, *arguments, **options):
                self.calls.append("update")
                super().update_parameters(*arguments, **options)

        backend = Counting()
        model = ac.Sequential(ac.Dense(6, 2), seed=0, backend=backend)
        Trainer(model, sgd(model)).fit([(X, Y)], 1, test=(X, Y))
        assert backend.calls == ["loss", "update", "loss"]

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ({"step": 3}, TypeError, r"step must be a function of \(inputs, targets\)"),
            ({"step": EagerStep(None, None), "graph": True}, ValueError, "leave it out, or step"),
        ],
    )
    def test_wrong_arguments(self, arguments, error, match):
        model = net()
        with pytest.raises(error, match=match):
            Trainer(model, sgd(model), **arguments)


class Product(Layer):
    """Dense(x) * mask, and the sum of both, as two outputs of two inputs."""

    def __init__(self, seed=0):
        self.dense = ac.Dense(6, 4, seed=seed)

    def forward(self, x, mask):
        y, backward = self.dense.forward(x)

        def backward_both(grads):
            product, total = grads
            return backward(product * mask + total), product * y + total

        return (y * mask, y + mask), backward_both

    def __call__(self, x, mask):
        return self.forward(x, mask)[0]

    def output_shape(self, *shapes):
        return shapes[1], shapes[1]


def both(outputs, targets):
    (first, grad), (second, other) = map(F.mse_loss, outputs, targets)
    return float(first + second), (grad, other)


class TestSeveralInputs:
    data = (X, MASK), (MASK, MASK * MASK)

    def test_and_outputs(self):
        model = Product()
        trainer = Trainer(model, sgd(model), loss=both)
        before = both(model(X, MASK), self.data[1])[0]
        inputs, targets = self.data
        loader = [
            (tuple(a[i : i + 4] for a in inputs), tuple(a[i : i + 4] for a in targets))
            for i in range(0, 12, 4)
        ]
        record = trainer.fit(loader, 30, test=self.data)[-1]
        assert record["test_loss"] < before / 2
        assert record["train_accuracy"] is record["test_accuracy"] is None
        found = [trainer.evaluate(self.data, batch_size=n)["loss"] for n in (1, 5, 12)]
        assert found == pytest.approx([found[0]] * 3, rel=1e-5)

    def test_of_a_graph(self):
        def make():
            return ac.Graph(
                {
                    "a": (ac.Dense(6, 4), "x"), "b": (ac.Dense(4, 4), "z"),
                    "both": (ac.Add(), "a", "b"), "y": (ac.Dense(4, 2), "both"),
                },
                inputs=("x", "z"), seed=0,
            )  # fmt: skip

        model, other = make(), make()
        loader = [((X[i : i + 4], MASK[i : i + 4]), Y[i : i + 4]) for i in range(0, 12, 4)]
        trainer = Trainer(model, sgd(model))
        record = trainer.fit(loader, 1, test=((X, MASK), Y))[0]
        optimizer = sgd(other)
        for inputs, labels in loader:
            logits, backward = other.forward(*inputs)
            backward(F.softmax_cross_entropy(logits, labels)[1])
            optimizer.step()
            optimizer.zero_grad()
        for a, b in zip(weights(model), weights(other), strict=True):
            np.testing.assert_array_equal(a, b)
        assert record["test_accuracy"] == (model(X, MASK).argmax(1) == Y).mean()

    def test_of_unequal_lengths(self):
        model = Product()
        with pytest.raises(ValueError, match=r"equal lengths .* \[12, 11, 12, 12\]"):
            Trainer(model, sgd(model), loss=both).evaluate(((X, MASK[:11]), self.data[1]))


class TestForms:
    @pytest.mark.parametrize(
        ("train_loader", "match"),
        [
            ([(X, Y, Y)], r"train_loader must give batches \(inputs, targets\), got a tuple of 3"),
            ([{"image": X, "label": Y}], "train_loader must give batches .* got dict"),
            ([X, Y], r"train_loader must give batches .* one array of shape \(12, 6\)"),
            (X, r"train_loader must give batches .* one array of shape \(6,\)"),
            ({"image": X}, "train_loader must give batches .* got dict; use DataLoader"),
            (3, "train_loader must give batches .* got int"),
            ((X, Y), "train_loader must give batches .* got tuple; use DataLoader"),
        ],
    )
    def test_of_training_data(self, train_loader, match):
        model = net()
        trainer = Trainer(model, sgd(model))
        with pytest.raises(TypeError, match=match):
            trainer.fit(train_loader, 1)
        assert trainer.step == 0

    def test_of_test_data(self):
        model = net()
        trainer = Trainer(model, sgd(model))
        with pytest.raises(TypeError, match=r"test must give batches .* got int"):
            trainer.fit([(X, Y)], 1, test=3)
        with pytest.raises(TypeError, match=r"data must give batches .*, got one array of shape"):
            trainer.evaluate([X, Y])
        assert trainer.step == 0

    def test_pairs_may_be_lists(self):
        model = net()
        assert len(Trainer(model, sgd(model)).fit([[X, Y]], 1, test=[[X, Y]])) == 1


class TestOptimizer:
    def test_of_parameters_that_the_model_does_not_have(self):
        model, other = net(), net(1)
        optimizer = ac.SGD(model.parameters() + other.parameters(), 0.1)
        with pytest.raises(ValueError, match=r"model does not have \(numbers \[4, 5, 6, 7\]\)"):
            Trainer(model, optimizer)
        trainer = Trainer(model, sgd(model))
        trainer.optimizer = optimizer
        with pytest.raises(ValueError, match="model does not have"):
            trainer.fit([(X, Y)], 1)

    def test_groups_are_trained_and_resumed(self, tmp_path):
        def make():
            model = net()
            groups = ac.optim.decay_groups(model.parameters())
            groups[1]["lr"] = 0.5
            schedule = ac.schedules.Cosine(0.1, 6)
            optimizer = ac.SGD(groups, 0.1, momentum=0.9, weight_decay=0.1)
            return Trainer(model, optimizer, schedule=schedule)

        whole, first, second = make(), make(), make()
        whole.fit([(X, Y)] * 2, 3)
        first.fit([(X, Y)] * 2, 2)
        first.save(tmp_path / "x.h5")
        second.load(tmp_path / "x.h5")
        second.fit([(X, Y)] * 2, 3)
        for a, b in zip(weights(whole.model), weights(second.model), strict=True):
            np.testing.assert_array_equal(a, b)
        assert whole.optimizer.groups[1]["lr"] == 5 * whole.optimizer.lr
