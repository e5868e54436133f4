"""Batches that must not be learned from: everything stays as before, and no file is spoiled."""

import math
from functools import partial

import numpy as np
import pytest

import arraycnn as ac
from arraycnn import functional as F
from arraycnn.training import Callback, Checkpoints, Trainer, TrainingDivergedError, load_last

rng = np.random.default_rng(0)
X, Y = rng.standard_normal((12, 3, 4, 4)).astype("f"), np.arange(12) % 2


def make_model(backend="cpu"):
    return ac.Sequential(
        ac.BatchNorm(3), ac.Flatten(), ac.Dropout(0.5), ac.Dense(48, 2), seed=1, backend=backend
    )


def make_trainer(backend="cpu", **arguments):
    model = make_model(backend)
    optimizer = ac.Adam(model.parameters(), 0.01)
    return Trainer(model, optimizer, schedule=lambda step: 0.01 / (1 + step), **arguments)


def batches(*images):
    return [(x, Y) for x in images]


def bad_gradient(outputs, targets, value=math.nan):
    """A finite loss whose gradient is not, as that of a root at 0."""
    loss, grad = F.softmax_cross_entropy(outputs, targets)
    grad[0, 0] = value
    return loss, grad


def everything(trainer):
    to_numpy = trainer.model.backend.to_numpy
    optimizer = trainer.optimizer.state_dict()
    return (
        {name: to_numpy(array).tolist() for name, array in trainer.model.state_dict().items()},
        trainer.model.random_state(),
        optimizer.pop("slots")["first_moment"].keys(),
        optimizer,
        {k: v for k, v in trainer.state_dict().items() if k != "seconds"},
    )


def assert_nothing_changes(trainer, loader, error=TrainingDivergedError, match=""):
    before = everything(trainer)
    with pytest.raises(error, match=match) as caught:
        trainer.fit(loader, trainer.epoch + 1)
    assert everything(trainer) == before
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    return caught.value


class TestBeforeTheUpdate:
    @pytest.mark.parametrize("trained", [0, 1])
    def test_nan_in_the_images(self, trained, backend):
        trainer = make_trainer(backend)
        trainer.fit(batches(X), trained) if trained else None
        bad = X.copy()
        bad[0, 0, 0, 0] = math.nan
        error = assert_nothing_changes(trainer, batches(bad), match="training loss became nan")
        assert (error.epoch, error.step) == (trained + 1, trained + 1)

    @pytest.mark.parametrize("clip_norm", [None, 1.0])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
    def test_gradient_that_is_not_finite(self, clip_norm, value, backend):
        trainer = make_trainer(backend, clip_norm=clip_norm)
        trainer.fit(batches(X), 1)
        trainer.loss = partial(bad_gradient, value=value)
        error = assert_nothing_changes(trainer, batches(X), match="gradients became infinite or N")
        assert math.isfinite(error.loss)

    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    @pytest.mark.parametrize("check_every", [1, 2])
    def test_large_gradient_is_stepped(self, dtype, check_every):
        """Whose squares overflow."""
        model = ac.Dense(2, 2, dtype=dtype)
        size = {"float16": 3e4, "float32": 1e30}[dtype]
        trainer = Trainer(
            model, ac.SGD(model.parameters(), 0.0), check_every=check_every,
            loss=lambda outputs, targets: (1.0, np.full_like(outputs, size)),
        )  # fmt: skip
        trainer.fit([(np.ones((2, 2), dtype), np.array([0, 1]))] * 3, 1)
        assert trainer.step == 3

    def test_error_of_a_later_layer(self):
        class Fails(ac.Dense):
            def forward(self, x, **options):
                if len(x) == 3:
                    raise RuntimeError("no")
                return super().forward(x, **options)

        model = ac.Sequential(ac.BatchNorm(48), ac.Dropout(0.5), Fails(48, 2), seed=0)
        trainer = Trainer(model, ac.Adam(model.parameters()))
        flat = X.reshape(12, 48)
        trainer.fit(batches(flat), 1)
        assert_nothing_changes(trainer, [(flat[:3], Y[:3])], RuntimeError, "no")

    def test_labels_that_are_no_class(self, backend):
        trainer = make_trainer(backend)
        assert_nothing_changes(trainer, [(X, Y + 1)], ValueError, "labels must be in")

    def test_schedule_that_gives_nan(self):
        trainer = make_trainer()
        trainer.schedule = lambda step: math.nan
        assert_nothing_changes(trainer, batches(X), ValueError, "lr must be a finite")

    def test_parameter_that_cannot_be_written(self):
        trainer = make_trainer()
        trainer.model.layers[3].bias.data.flags.writeable = False
        assert_nothing_changes(trainer, batches(X), ValueError, "parameter 3 is read-only")

    def test_training_goes_on_as_if_it_had_not_been(self):
        whole, interrupted = make_trainer(), make_trainer()
        whole.fit(batches(X, X), 1)
        with pytest.raises(TrainingDivergedError):
            interrupted.fit(batches(X, X * np.float32(math.nan)), 1)
        interrupted.fit(batches(X, X), 1)
        assert everything(interrupted)[:2] == everything(whole)[:2]


class TestTestLoss:
    def test_is_not_taken_for_the_training(self):
        trainer = make_trainer()
        with pytest.raises(TrainingDivergedError, match="test loss became nan in epoch 1 after up"):
            trainer.fit(batches(X), 1, test=(X * np.float32(math.nan), Y))
        assert (trainer.epoch, trainer.step) == (0, 1)
        history = trainer.fit(batches(X), 1, test=(X, Y))
        assert (trainer.step, len(history)) == (1, 1)


class TestNoticedLater:
    def late(self, **arguments):
        trainer = make_trainer(check_every=10, **arguments)
        trainer.fit(batches(X, X), 1)
        trainer.loss = bad_gradient
        return trainer

    def test_at_the_end_of_the_epoch(self):
        trainer = self.late()
        with pytest.raises(TrainingDivergedError, match="epoch 2 at update 3"):
            trainer.fit(batches(X, X), 2)
        assert len(trainer.history) == 1

    def test_a_known_norm_is_not_waited_with(self):
        trainer = self.late(clip_norm=1.0)
        with pytest.raises(TrainingDivergedError, match="at update 3"):
            trainer.fit(batches(X, X), 2)
        assert trainer.step == 2

    def test_nothing_is_saved_until_it_is_loaded_or_goes_on(self, tmp_path):
        trainer = self.late()
        trainer.loss = F.softmax_cross_entropy
        trainer.save(tmp_path / "good.h5")
        trainer.loss = bad_gradient
        with pytest.raises(TrainingDivergedError):
            trainer.fit(batches(X, X), 2)
        for _ in range(2):
            with pytest.raises(TrainingDivergedError):
                trainer.save(tmp_path / "bad.h5")
        assert not (tmp_path / "bad.h5").exists()
        trainer.load(tmp_path / "good.h5")
        trainer.loss = F.softmax_cross_entropy
        assert len(trainer.fit(batches(X, X), 2)) == 2

    def test_fit_again_looks_at_what_comes(self):
        trainer = self.late()
        with pytest.raises(TrainingDivergedError):
            trainer.fit(batches(X, X), 2)
        trainer.model.initialize(1)
        trainer.loss = F.softmax_cross_entropy
        assert len(trainer.fit(batches(X, X, X), 2)) == 2


class TestFiles:
    @pytest.mark.parametrize("clip_norm", [None, 1.0])
    @pytest.mark.parametrize("check_every", [1, 7])
    @pytest.mark.parametrize("every", [None, 1])
    def test_the_good_ones_are_kept(self, clip_norm, check_every, every, tmp_path):
        trainer = make_trainer(
            clip_norm=clip_norm,
            check_every=check_every,
            callbacks=[Checkpoints(tmp_path, keep=1, every=every)],
        )
        trainer.fit(batches(X), 1)
        weights = trainer.model.layers[3].weight.data.copy()
        trainer.loss = bad_gradient
        with pytest.raises(TrainingDivergedError):
            trainer.fit(batches(X), 2)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["best.h5", "step-000000001.h5"]
        for name in names:
            resumed = make_trainer()
            load_last(resumed, tmp_path) if "step" in name else resumed.load(tmp_path / name)
            np.testing.assert_array_equal(resumed.model.layers[3].weight.data, weights)

    def test_stopped_before_anybody_looked(self, tmp_path):
        class Stop(Callback):
            def on_step(self, trainer):
                trainer.stop()

        trainer = make_trainer(
            check_every=7, loss=bad_gradient, callbacks=[Stop(), Checkpoints(tmp_path)]
        )
        with pytest.raises(TrainingDivergedError):
            trainer.fit(batches(X, X), 1)
        assert list(tmp_path.iterdir()) == []


class TestFirstBatch:
    """An error in an epoch's first batch: the next fit begins the same epoch again."""

    def run(self, fail, peek=False, loader=None):
        seen, calls = [], []

        def loss(outputs, targets):
            calls.append(1)
            if len(calls) == fail:
                raise RuntimeError("boom")
            seen.append([int(target) for target in targets])
            return F.softmax_cross_entropy(outputs, targets % 2)

        model = ac.Sequential(ac.Flatten(), ac.Dense(48, 2), seed=0)
        trainer = Trainer(model, ac.SGD(model.parameters(), 0.1), loss=loss)
        loader = loader or ac.DataLoader(X, np.arange(12), 4, shuffle=True)
        if peek:
            next(iter(loader))
        try:
            trainer.fit(loader, 2)
        except RuntimeError:
            trainer.fit(loader, 2)
        return seen

    @pytest.mark.parametrize("peek", [False, True])
    @pytest.mark.parametrize("fail", [1, 2, 3, 4, 5])
    def test_of_our_loader(self, fail, peek):
        assert self.run(fail, peek) == self.run(0, peek)

    def test_of_our_loader_in_the_middle_of_an_epoch(self):
        """Where it was put by hand."""

        def loader():
            result = ac.DataLoader(X, np.arange(12), 4, shuffle=True)
            result.load_state_dict({**result.state_dict(), "batch": 2})
            return result

        assert self.run(1, loader=loader()) == self.run(0, loader=loader())

    @pytest.mark.parametrize("fail", [1, 2, 3, 4])
    def test_of_a_loader_of_ones_own(self, fail):
        class Counting:
            position = 0

            def __iter__(self):
                while self.position % 2 == 0 or self.position == 1:
                    start = self.position % 4 * 3
                    self.position += 1
                    yield X[start : start + 3], np.arange(start, start + 3)
                    if self.position % 2 == 0:
                        return

            def state_dict(self):
                return {"position": self.position}

            def load_state_dict(self, state):
                self.position = state["position"]

        assert self.run(fail, loader=Counting()) == self.run(0, loader=Counting())

    def test_loader_that_only_tells_its_position(self):
        class Tells:
            def __iter__(self):
                return iter([(X[:6], Y[:6]), (X[6:], Y[6:])])

            def state_dict(self):
                return {}

        class Stop(Callback):
            def on_step(self, trainer):
                if trainer.step == 1:
                    trainer.stop()

        trainer = make_trainer(callbacks=[Stop()])
        trainer.fit(Tells(), 1)
        trainer.fit(Tells(), 1)
        assert (trainer.epoch, trainer.step) == (1, 2)
