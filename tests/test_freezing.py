"""What is left out of the optimizer stays as it is: no gradients, and layers as in inference."""

from contextlib import suppress

import numpy as np
import pytest

import arraycnn as ac
from arraycnn.training import Callback, Trainer
from arraycnn.training.freezing import frozen

rng = np.random.default_rng(0)
X, Y = rng.random((32, 1, 8, 8), "f"), np.arange(32) % 2


class Watch(Callback):
    def __init__(self):
        self.seen = []

    def on_step(self, trainer):
        self.seen.append([p.requires_grad for p in trainer.model.parameters()])


def make():
    body = ac.Sequential(
        ac.Conv2d(1, 4, kernel_size=3), ac.BatchNorm(4), ac.ReLU(), ac.GlobalAvgPool(), seed=0
    )
    head = ac.Sequential(ac.Dense(4, 8), ac.BatchNorm(8), ac.Dropout(0.5), ac.Dense(8, 2), seed=1)
    return ac.Sequential(body, head), body, head


class TestParameters:
    def test_get_no_gradient_within_fit_and_are_as_before_afterwards(self):
        model, body, head = make()
        head.layers[0].bias.requires_grad = False
        before = [p.requires_grad for p in model.parameters()]
        watch = Watch()
        trainer = Trainer(model, ac.SGD(head.parameters(), 0.1), callbacks=[watch])
        weights = [p.data.copy() for p in body.parameters()]
        trainer.fit(ac.DataLoader(X, Y, 16), 1)
        assert watch.seen[0] == [False] * 4 + [True, False] + [True] * 4
        assert [p.requires_grad for p in model.parameters()] == before
        for parameter, old in zip(body.parameters(), weights, strict=True):
            np.testing.assert_array_equal(parameter.data, old)

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_are_as_before_after_an_error(self, error):
        class Fail(Callback):
            def on_step(self, trainer):
                raise error

        model, _, head = make()
        trainer = Trainer(model, ac.SGD(head.parameters(), 0.1), callbacks=[Fail()])
        with suppress(RuntimeError):
            trainer.fit(ac.DataLoader(X, Y, 16), 1)
        assert all(p.requires_grad for p in model.parameters())

    def test_training_all_freezes_nothing(self):
        model, *_ = make()
        with frozen(model, model.parameters()):
            assert all(p.requires_grad for p in model.parameters())
            assert not any(getattr(layer, "frozen", False) for _, layer in model.named_layers())


class TestTransfer:
    """A body that is left out of the optimizer comes out as it was."""

    def state(self, layer):
        return {name: np.array(array) for name, array in layer.state_dict().items()}

    def test_batch_norm(self):
        model, body, head = make()
        before, outputs = self.state(body), body(X)
        Trainer(model, ac.SGD(head.parameters(), 0.1)).fit(ac.DataLoader(X, Y, 16), 2)
        for name, array in self.state(body).items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        np.testing.assert_array_equal(body(X), outputs)
        assert np.any(head.layers[1].running_mean.data)  # what is trained has moved

    def test_dropout(self):
        """The head sees what the body gives in inference, so both train alike."""
        heads = []
        for dropout in (0.0, 0.5):
            body = ac.Sequential(
                ac.Conv2d(1, 4, 3), ac.BatchNorm(4), ac.Dropout(dropout), ac.Flatten(), seed=0
            )
            head = ac.Dense(144, 2, seed=1)
            model = ac.Sequential(body, head)
            Trainer(model, ac.SGD(head.parameters(), 0.1)).fit([(X, Y)] * 3, 1)
            heads.append(head.weight.data)
            assert model.random_state()["0.2"]["counter"] == 0
        np.testing.assert_array_equal(*heads)

    def test_is_that_of_training_the_head_on_what_the_body_gives(self):
        model, body, head = make()
        alone = make()[2]
        features = body(X)
        Trainer(model, ac.SGD(head.parameters(), 0.1)).fit([(X, Y)] * 3, 1)
        Trainer(alone, ac.SGD(alone.parameters(), 0.1)).fit([(features, Y)] * 3, 1)
        for name, array in self.state(alone).items():
            np.testing.assert_allclose(array, self.state(head)[name], rtol=1e-4, atol=1e-6)

    def test_is_not_saved_as_frozen(self, tmp_path):
        model, _, head = make()
        callbacks = [ac.Checkpoints(tmp_path, every=1)]
        Trainer(model, ac.SGD(head.parameters(), 0.1), callbacks=callbacks).fit([(X, Y)] * 3, 1)
        for path in tmp_path.iterdir():
            assert repr(ac.load_model(path)) == repr(model)

    def test_what_was_frozen_before_stays_so(self):
        model, body, head = make()
        model.freeze("0.*")
        before = self.state(body)
        Trainer(model, ac.SGD(model.parameters(), 0.1)).fit([(X, Y)] * 2, 1)
        for name, array in self.state(body).items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        assert body.layers[1].frozen
        assert not head.layers[1].frozen


class Resting(ac.Layer):
    """Has the switch, and nothing else."""

    def __init__(self, inner=None):
        self.frozen, self.inner = False, inner

    def forward(self, x):
        return x, lambda grad: grad

    def output_shape(self, input_shape):
        return input_shape


class TestLayers:
    def test_rest_when_none_of_their_parameters_is_trained(self):
        """And those without any, when that is so of the layer around them."""
        kinds = [Resting(ac.Dense(2, 2)) for _ in range(3)] + [Resting() for _ in range(4)]
        own, partly, trained, inside, deeper, outside, shared = kinds
        part = ac.Sequential(own, ac.Sequential(ac.ReLU(), deeper), inside, shared)
        model = ac.Sequential(part, partly, trained, outside, shared)
        with frozen(model, [partly.inner.weight, *trained.inner.parameters()]):
            assert [layer.frozen for layer in kinds] == [
                True, False, False, True, True, False, False,
            ]  # fmt: skip
        assert not any(layer.frozen for layer in kinds)

    def test_that_were_frozen_stay_so(self):
        layer = Resting(ac.Dense(2, 2))
        layer.frozen = True
        model = ac.Sequential(layer, ac.Dense(2, 2))
        with frozen(model, model.layers[1].parameters()):
            assert layer.frozen
        assert layer.frozen

    def test_parameters_that_require_no_gradient_count_as_left_out(self):
        layer = Resting(ac.Dense(2, 2))
        for parameter in layer.parameters():
            parameter.requires_grad = False
        model = ac.Sequential(layer, ac.Dense(2, 2))
        with frozen(model, model.parameters()):
            assert layer.frozen
        assert not layer.frozen
        assert not any(p.requires_grad for p in layer.parameters())
