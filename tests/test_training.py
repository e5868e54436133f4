"""The trainer: what it computes, that it is deterministic and resumes exactly, how it stops."""

import json
import math
import os
import signal
import threading

import numpy as np
import pytest

import arraycnn as ac
from arraycnn import functional as F
from arraycnn.interrupts import interrupt_calls
from arraycnn.optim import SGD, Adam
from arraycnn.schedules import Cosine
from arraycnn.training import Callback, Trainer, TrainingDivergedError

COUNT, CLASSES = 22, 3


def make_data(count=COUNT):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, CLASSES, count)
    images = rng.standard_normal((count, 1, 6, 6)).astype(np.float32)
    images += 2 * labels[:, None, None, None].astype(np.float32)
    return images, labels


def make_model(backend="cpu"):
    return ac.Sequential(
        ac.Conv2d(1, 4, 3), ac.BatchNorm(4), ac.ReLU(), ac.MaxPool2d(2), ac.Dropout(0.3),
        ac.Flatten(), ac.Dense(16, CLASSES), seed=0, backend=backend,
    )  # fmt: skip


def make_loader():
    return ac.DataLoader(
        *make_data(), 8, shuffle=True, seed=3, transform=ac.data.RandomShift(1), prefetch=False
    )


def make_trainer(backend="cpu", **arguments):
    model = make_model(backend)
    optimizer = Adam(model.parameters(), 0.01)
    return Trainer(model, optimizer, schedule=Cosine(0.01, 9), **arguments)


def everything(trainer):
    """All that the rest of a training depends on, as after a trip through a file."""
    optimizer = trainer.optimizer.state_dict()
    slots = optimizer.pop("slots")
    plain = json.loads(json.dumps([trainer.state_dict(), optimizer, trainer.model.random_state()]))
    weights = {
        name: np.array(ac.backend_of(array).to_numpy(array))
        for name, array in trainer.model.state_dict().items()
    }
    return plain, slots, weights


def restore(trainer, state):
    (position, optimizer, random), slots, weights = state
    trainer.load_state_dict(position)
    trainer.optimizer.load_state_dict({**optimizer, "slots": slots})
    trainer.model.load_random_state(random)
    trainer.model.load_state_dict(weights)


def without_time(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def assert_same(trainer, other):
    assert without_time(trainer.history) == without_time(other.history)
    theirs = other.model.state_dict()
    for name, array in trainer.model.state_dict().items():
        backend = ac.backend_of(array)
        np.testing.assert_array_equal(backend.to_numpy(array), backend.to_numpy(theirs[name]))


class StopAt(Callback):
    def __init__(self, step, action=Trainer.stop):
        self.step = step
        self.action = action

    def on_step(self, trainer):
        if trainer.step == self.step:
            self.action(trainer)


class TestFit:
    def test_learns(self, backend):
        trainer = make_trainer(backend)
        trainer.schedule = None
        history = trainer.fit(make_loader(), 20, test=make_data())
        assert history[-1]["train_loss"] < history[0]["train_loss"]
        assert history[-1]["test_accuracy"] > 0.8

    def test_history_is_plain_data(self):
        trainer = make_trainer()
        history = trainer.fit(make_loader(), 2, test=make_data())
        assert json.loads(json.dumps(history)) == history
        assert list(history[0]) == [
            "epoch", "step", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
            "seconds",
        ]  # fmt: skip
        assert [(r["epoch"], r["step"]) for r in history] == [(1, 3), (2, 6)]
        assert [r["lr"] for r in history] == [Cosine(0.01, 9)(2), Cosine(0.01, 9)(5)]
        assert all(r["seconds"] > 0 for r in history)

    def test_training_figures_are_those_of_the_batches(self):
        images, labels = make_data()
        model = ac.Sequential(ac.Flatten(), ac.Dense(36, CLASSES), seed=0)
        optimizer = SGD(model.parameters(), 0.0)
        record = Trainer(model, optimizer).fit(make_batches(), 1, test=(images, labels))[0]
        logits = model(images)
        loss = float(F.softmax_cross_entropy(logits, labels)[0])
        assert record["train_loss"] == pytest.approx(loss, rel=1e-6)
        assert record["test_loss"] == pytest.approx(loss, rel=1e-6)
        expected = ac.accuracy(logits, labels)
        assert record["train_accuracy"] == record["test_accuracy"] == pytest.approx(expected)

    def test_one_update_is_the_hand_written_one(self):
        images, labels = make_data()
        trainer = make_trainer()
        trainer.fit([(images, labels)], 1)

        model = make_model()
        optimizer = Adam(model.parameters(), 0.01)
        logits, backward = model.forward(images)
        _, grad = F.softmax_cross_entropy(logits, labels)
        backward(grad)
        optimizer.step()
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(trainer.model.state_dict()[name], array)

    def test_looking_at_losses_later_gives_the_same(self, backend):
        every, rarely = make_trainer(backend), make_trainer(backend, check_every=100)
        every.fit(make_loader(), 3, test=make_data())
        rarely.fit(make_loader(), 3, test=make_data())
        assert_same(every, rarely)

    def test_clip_norm_limits_the_update(self):
        images, labels = make_data()
        model = ac.Sequential(ac.Flatten(), ac.Dense(36, CLASSES), seed=0)
        before = [p.data.copy() for p in model.parameters()]
        Trainer(model, SGD(model.parameters(), 1.0), clip_norm=0.01).fit([(images, labels)], 1)
        moved = [p.data - old for p, old in zip(model.parameters(), before, strict=True)]
        assert math.sqrt(sum(float((m * m).sum()) for m in moved)) == pytest.approx(0.01, rel=1e-4)

    def test_parameters_outside_of_the_optimizer_are_frozen(self):
        trainer = make_trainer()
        frozen = trainer.model.parameters()[:2]
        before = [p.data.copy() for p in frozen]
        trainer.optimizer = SGD(trainer.model.parameters()[2:], 0.1)
        trainer.fit(make_loader(), 1)
        for parameter, old in zip(frozen, before, strict=True):
            np.testing.assert_array_equal(parameter.data, old)
            assert parameter.grad is None

    def test_targets_that_are_no_classes(self):
        images = make_data()[0]
        model = ac.Sequential(ac.Flatten(), ac.Dense(36, 36), seed=0)
        trainer = Trainer(model, SGD(model.parameters(), 0.01), loss=F.mse_loss)
        record = trainer.fit([(images, images.reshape(COUNT, 36))], 1)[0]
        assert record["train_accuracy"] is None
        assert record["train_loss"] > 0
        assert record["test_loss"] is None

    def test_labels_for_every_pixel(self):
        images = make_data()[0]
        labels = (images[:, 0] > 0).astype(np.int64)
        model = ac.Sequential(ac.Conv2d(1, 2, 3, padding=1), seed=0)
        record = Trainer(model, SGD(model.parameters(), 0.0)).fit([(images, labels)], 1)[0]
        assert record["train_accuracy"] == pytest.approx(ac.accuracy(model(images), labels))

    def test_epochs_count_in_all(self):
        trainer, whole = make_trainer(), make_trainer()
        loader = make_loader()
        trainer.fit(loader, 1)
        trainer.fit(loader, 1)
        trainer.fit(loader, 3)
        whole.fit(make_loader(), 3)
        assert_same(trainer, whole)

    def test_another_loader_at_the_end_of_an_epoch(self):
        trainer = make_trainer()
        trainer.fit(make_loader(), 1)
        trainer.fit(ac.DataLoader(*make_data(), 5), 2)
        assert trainer.step == 3 + 5


def make_batches():
    images, labels = make_data()
    return [(images[i : i + 8], labels[i : i + 8]) for i in range(0, COUNT, 8)]


@pytest.fixture(scope="module")
def whole():
    """A training that nothing interrupted."""
    trainer = make_trainer()
    trainer.fit(make_loader(), 3, test=make_data())
    return trainer


class TestResume:
    def test_is_deterministic(self, whole):
        again = make_trainer()
        again.fit(make_loader(), 3, test=make_data())
        assert_same(again, whole)

    @pytest.mark.parametrize("step", range(1, 10))
    @pytest.mark.parametrize("check_every", [1, 2])
    def test_after_any_update_in_a_new_process(self, whole, step, check_every):
        first = make_trainer(callbacks=[StopAt(step)], check_every=check_every)
        first.fit(make_loader(), 3, test=make_data())
        assert first.step == step
        assert not first.interrupted
        second = make_trainer()
        restore(second, everything(first))
        second.fit(make_loader(), 3, test=make_data())
        assert_same(second, whole)

    @pytest.mark.parametrize("step", [1, 3, 4])
    def test_state_saved_by_a_callback(self, whole, step):
        saved = []
        saver = StopAt(step, lambda trainer: saved.append(everything(trainer)))
        make_trainer(callbacks=[saver]).fit(make_loader(), 2, test=make_data())
        resumed = make_trainer()
        restore(resumed, saved[0])
        resumed.fit(make_loader(), 3, test=make_data())
        assert_same(resumed, whole)

    def test_state_saved_at_the_end_of_an_epoch(self, whole):
        class Save(Callback):
            def on_epoch(self, trainer):
                saved.append(everything(trainer))

        saved = []
        make_trainer(callbacks=[Save()]).fit(make_loader(), 2, test=make_data())
        for state in saved:
            resumed = make_trainer()
            restore(resumed, state)
            resumed.fit(make_loader(), 3, test=make_data())
            assert_same(resumed, whole)

    @pytest.mark.parametrize("step", [2, 3, 5])
    def test_in_the_same_process(self, whole, step):
        trainer = make_trainer(callbacks=[StopAt(step)])
        loader = make_loader()
        trainer.fit(loader, 3, test=make_data())
        trainer.fit(loader, 3, test=make_data())
        assert_same(trainer, whole)

    def test_loader_without_a_position(self):
        whole, parts = make_trainer(), make_trainer(callbacks=[StopAt(5)])
        whole.fit(make_batches(), 3)
        parts.fit(make_batches(), 3)
        parts.fit(make_batches(), 3)
        assert_same(parts, whole)

    def test_state_is_a_snapshot(self):
        trainer = make_trainer(callbacks=[StopAt(4)])
        loader = make_loader()
        trainer.fit(loader, 3)
        state = trainer.state_dict()
        saved = json.loads(json.dumps(state))
        trainer.fit(loader, 3)
        assert state == saved

    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            ({"epoch": -1}, ValueError, "epoch"),
            ({"step": 1.5}, TypeError, "step"),
            ({"history": []}, ValueError, "record for each of 1 epochs, got"),
            ({"totals": {"labels": 1}}, ValueError, "totals must have the entries"),
        ],
    )
    def test_bad_state_changes_nothing(self, change, error, match):
        trainer = make_trainer(callbacks=[StopAt(4)])
        trainer.fit(make_loader(), 3)
        before = trainer.state_dict()
        with pytest.raises(error, match=match):
            trainer.load_state_dict({**before, **change})
        assert trainer.state_dict() == before

    def test_incomplete_state(self):
        with pytest.raises(ValueError, match=r"lacks \['step', 'batch'"):
            make_trainer().load_state_dict({"epoch": 0})


class TestEvaluate:
    def test_arrays_and_batches_agree(self):
        trainer, (images, labels) = make_trainer(), make_data()
        logits = trainer.model(images)
        loss = float(F.softmax_cross_entropy(logits, labels)[0])
        accuracy = ac.accuracy(logits, labels)
        for data in ((images, labels), make_batches(), make_loader_in_order()):
            result = trainer.evaluate(data)
            assert result["loss"] == pytest.approx(loss, rel=1e-5)
            assert result["accuracy"] == accuracy
        assert trainer.evaluate((images, labels), batch_size=5)["accuracy"] == accuracy

    def test_changes_nothing(self):
        trainer = make_trainer()
        before = everything(trainer)
        trainer.evaluate(make_data())
        plain, slots, weights = everything(trainer)
        assert (plain, slots) == before[:2]
        for name, array in weights.items():
            np.testing.assert_array_equal(array, before[2][name])

    @pytest.mark.parametrize(
        ("data", "match"),
        [
            ((make_data()[0][:0], make_data()[1][:0]), "no images to evaluate"),
            ([], "no images to evaluate"),
            ((make_data()[0], make_data()[1][:3]), r"equal lengths.*\[22, 3\]"),
            ((make_data()[0],), "tuple of lengths"),
        ],
    )
    def test_bad_data(self, data, match):
        with pytest.raises(ValueError, match=match):
            make_trainer().evaluate(data)

    def test_bad_batch_size(self):
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            make_trainer().evaluate(make_data(), batch_size=0)


def make_loader_in_order():
    return ac.DataLoader(*make_data(), 4)


class TestDivergence:
    def diverging(self, **arguments):
        trainer = make_trainer(**arguments)
        batches = make_batches()
        images, labels = batches[1]
        batches[1] = (np.full_like(images, math.nan), labels)
        return trainer, batches

    def test_names_epoch_step_and_remedy_and_leaves_the_parameters(self):
        trainer, batches = self.diverging()
        trainer.fit(make_batches(), 2)
        kept = []
        trainer.callbacks = [StopAt(7, lambda t: kept.extend(everything(t)[2].items()))]
        with pytest.raises(TrainingDivergedError, match=r"epoch 3 at update 8.*learning") as e:
            trainer.fit(batches, 4)
        assert (e.value.epoch, e.value.step) == (3, 8)
        assert math.isnan(e.value.loss)
        assert math.isfinite(e.value.last_loss)
        assert len(trainer.history) == 2
        assert trainer.step == 7
        kept = dict(kept)
        for name, parameter in trainer.model.named_parameters():
            np.testing.assert_array_equal(parameter.data, kept[name])
            assert parameter.grad is None

    def test_goes_on_with_better_data(self):
        trainer, batches = self.diverging()
        with pytest.raises(TrainingDivergedError):
            trainer.fit(batches, 1)
        history = trainer.fit(make_batches(), 1)
        assert (trainer.step, len(history)) == (3, 1)

    def test_noticed_later_but_named_exactly(self):
        trainer, batches = self.diverging(check_every=3)
        with pytest.raises(TrainingDivergedError, match="epoch 1 at update 2"):
            trainer.fit(batches, 1)

    def test_first_update(self):
        trainer, batches = self.diverging()
        with pytest.raises(TrainingDivergedError, match="last finite training loss None"):
            trainer.fit(batches[1:], 1)

    def test_test_loss(self):
        trainer = make_trainer()
        images, labels = make_data()
        images[0] = math.nan
        with pytest.raises(TrainingDivergedError, match="test loss became nan in epoch 1"):
            trainer.fit(make_loader(), 1, test=(images, labels))


class TestInterrupt:
    """Ctrl-C is a SIGINT to this process, sent by a callback in the middle of training."""

    def press(self, trainer):
        os.kill(os.getpid(), signal.SIGINT)

    def test_ends_after_the_update_and_can_go_on(self, whole):
        trainer = make_trainer(callbacks=[StopAt(5, self.press)])
        loader = make_loader()
        history = trainer.fit(loader, 3, test=make_data())
        assert trainer.interrupted
        assert trainer.step == 5
        assert len(history) == 1
        trainer.fit(loader, 3, test=make_data())
        assert not trainer.interrupted
        assert_same(trainer, whole)

    def test_sigterm_does_the_same(self, whole):
        trainer = make_trainer(
            callbacks=[StopAt(5, lambda trainer: os.kill(os.getpid(), signal.SIGTERM))]
        )
        trainer.fit(make_loader(), 3, test=make_data())
        assert trainer.interrupted
        assert trainer.signal is signal.SIGTERM
        trainer.fit(make_loader(), 3, test=make_data())
        assert trainer.signal is None
        assert_same(trainer, whole)

    def test_a_second_one_does_not_wait(self):
        def press_twice(trainer):
            self.press(trainer)
            self.press(trainer)
            raise AssertionError("not reached")

        trainer = make_trainer(callbacks=[StopAt(5, press_twice)])
        trainer.fit(make_loader(), 3)
        assert trainer.interrupted
        assert trainer.step == 5

    def test_keyboard_interrupt_by_another_way(self):
        def interrupt(trainer):
            raise KeyboardInterrupt

        trainer = make_trainer(callbacks=[StopAt(5, interrupt)])
        assert len(trainer.fit(make_loader(), 3)) == 1
        assert trainer.interrupted

    def test_handlers_are_restored(self):
        before = signal.getsignal(signal.SIGINT)
        make_trainer().fit(make_loader(), 1)
        assert signal.getsignal(signal.SIGINT) is before

    def test_a_programs_own_handler_is_left_alone(self):
        pressed = []
        before = signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
        try:
            trainer = make_trainer(callbacks=[StopAt(2, self.press)])
            trainer.fit(make_loader(), 1)
        finally:
            signal.signal(signal.SIGINT, before)
        assert pressed == [1]
        assert not trainer.interrupted

    def test_outside_of_the_main_thread(self):
        trainer = make_trainer()
        thread = threading.Thread(target=trainer.fit, args=(make_loader(), 1))
        thread.start()
        thread.join()
        assert trainer.epoch == 1

    def test_block_that_fails(self):
        with pytest.raises(ZeroDivisionError), interrupt_calls(lambda number: None):
            1 / 0  # noqa: B018
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class TestCallbacks:
    def test_order_and_what_they_see(self):
        class Log(Callback):
            def on_step(self, trainer):
                seen.append((trainer.step, trainer.batch, math.isfinite(trainer.train_loss)))

            def on_epoch(self, trainer):
                seen.append(trainer.history[-1]["epoch"])

        seen = []
        make_trainer(callbacks=[Log()]).fit(make_loader(), 2)
        assert seen == [
            (1, 1, True), (2, 2, True), (3, 3, True), 1,
            (4, 1, True), (5, 2, True), (6, 3, True), 2,
        ]  # fmt: skip

    def test_early_stop_at_an_epoch(self):
        class Early(Callback):
            def on_epoch(self, trainer):
                trainer.stop()

        trainer = make_trainer(callbacks=[Early()])
        trainer.fit(make_loader(), 5, test=make_data())
        assert (trainer.epoch, trainer.batch) == (1, 0)

    def test_an_error_in_one_is_passed_on(self):
        def fail(trainer):
            raise OSError("disk full")

        trainer = make_trainer(callbacks=[StopAt(4, fail)])
        with pytest.raises(OSError, match="disk full"):
            trainer.fit(make_loader(), 2)
        assert len(trainer.history) == 1
        assert trainer.step == 4


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ({"model": "lenet"}, TypeError, "model must be a layer"),
            ({"optimizer": 0.1}, TypeError, "optimizer must be an optimizer"),
            ({"loss": "mse"}, TypeError, "loss must be a function"),
            ({"schedule": 0.1}, TypeError, "schedule must be a function of the step"),
            ({"clip_norm": math.nan}, ValueError, "clip_norm"),
            ({"check_every": 0}, ValueError, "check_every must be at least 1"),
        ],
    )
    def test_constructor(self, arguments, error, match):
        model = make_model()
        defaults = {"model": model, "optimizer": SGD(model.parameters(), 0.1)}
        with pytest.raises(error, match=match):
            Trainer(**{**defaults, **arguments})

    def test_optimizer_of_another_model(self):
        with pytest.raises(ValueError, match="none of the parameters of model"):
            Trainer(make_model(), SGD(make_model().parameters(), 0.1))

    @pytest.mark.parametrize(
        ("loader", "epochs", "error", "match"),
        [
            (make_data(), 1, TypeError, r"DataLoader\(images, labels, batch_size"),
            ([], 1, ValueError, "gave no batches"),
            (make_batches(), 0, ValueError, "epochs must be at least 1"),
            (make_batches(), 1.5, TypeError, "epochs must be an int"),
        ],
    )
    def test_fit(self, loader, epochs, error, match):
        trainer = make_trainer()
        with pytest.raises(error, match=match):
            trainer.fit(loader, epochs)
        assert trainer.step == 0

    def test_loss_that_is_no_mean(self):
        trainer = make_trainer(
            loss=lambda logits, labels: F.softmax_cross_entropy(logits, labels, reduction="none")
        )
        with pytest.raises(ValueError, match=r"loss must return one number.*reduction='mean'"):
            trainer.fit(make_loader(), 1)

    def test_labels_out_of_range(self):
        images, labels = make_data()
        trainer = make_trainer()
        with pytest.raises(ValueError, match=r"labels must be in \[0, 3\)"):
            trainer.fit([(images, labels + 1)], 1)
        assert trainer.step == 0

    def test_schedule_that_gives_nan(self):
        trainer = make_trainer()
        trainer.schedule = lambda step: math.nan
        with pytest.raises(ValueError, match="lr must be a finite number"):
            trainer.fit(make_loader(), 1)
