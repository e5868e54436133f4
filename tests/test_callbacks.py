"""Checkpoints during training: which are kept, and that training goes on from them exactly."""

import os
from pathlib import Path

import numpy as np
import pytest

import arraycnn as ac
from arraycnn.data import RandomShift
from arraycnn.schedules import Cosine
from arraycnn.training import Callback, Trainer, TrainingDivergedError
from arraycnn.training.callbacks import Checkpoints, checkpoints_in, load_last

BATCHES = 4


def make_data():
    rng = np.random.default_rng(1)
    return rng.standard_normal((32, 1, 8, 8)).astype(np.float32), rng.integers(0, 3, 32)


def make_loader(**arguments):
    return ac.DataLoader(
        *make_data(), 8, shuffle=True, seed=3, transform=RandomShift(1), **arguments
    )


def make_trainer(backend="cpu", optimizer=ac.Adam, **arguments):
    model = ac.Sequential(
        ac.Conv2d(1, 3, 3), ac.BatchNorm(3), ac.ReLU(), ac.Dropout(0.3), ac.Flatten(),
        ac.Dense(108, 3), seed=0, backend=backend,
    )  # fmt: skip
    return Trainer(
        model, optimizer(model.parameters(), 0.01), schedule=Cosine(0.01, 12), **arguments
    )


def assert_same(trainer, other):
    to_numpy = trainer.model.layers[0].backend.to_numpy
    state = other.model.state_dict()
    for name, array in trainer.model.state_dict().items():
        np.testing.assert_array_equal(to_numpy(array), to_numpy(state[name]), strict=True)
    assert without_time(trainer) == without_time(other)


def without_time(trainer):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in trainer.history]


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        if trainer.step == self.step:
            trainer.stop()


class Crash(StopAt):
    def on_step(self, trainer):
        if trainer.step == self.step:
            raise RuntimeError("crash")


class TestExactResume:
    @pytest.mark.parametrize("step", [1, 3, 4, 6, 8])
    @pytest.mark.parametrize("check_every", [1, 3])
    def test_stopped_anywhere(self, step, check_every, backend, tmp_path):
        whole = make_trainer(backend)
        whole.fit(make_loader(), 3, test=make_data())
        path = tmp_path / "state.h5"
        first = make_trainer(backend, callbacks=[StopAt(step)], check_every=check_every)
        first.fit(make_loader(), 3, test=make_data())
        first.save(path)
        second = make_trainer(backend)
        second.model.initialize(99)
        assert second.load(path).step == step
        second.fit(make_loader(), 3, test=make_data())
        assert_same(second, whole)

    @pytest.mark.parametrize("make", [ac.SGD, ac.AdamW, ac.RMSprop, ac.Adagrad])
    def test_every_optimizer(self, make, tmp_path):
        whole = make_trainer(optimizer=make)
        whole.fit(make_loader(), 2)
        first = make_trainer(optimizer=make, callbacks=[StopAt(5)])
        first.fit(make_loader(), 2)
        first.save(tmp_path / "state.h5")
        second = make_trainer(optimizer=make)
        second.load(tmp_path / "state.h5")
        second.fit(make_loader(prefetch=False), 2)
        assert_same(second, whole)

    def test_from_one_backend_to_the_other_and_back(self, backend, tmp_path):
        first = make_trainer("cpu", callbacks=[StopAt(5)])
        first.fit(make_loader(), 3)
        first.save(tmp_path / "a.h5")
        there = make_trainer(backend)
        there.load(tmp_path / "a.h5")
        there.save(tmp_path / "b.h5")
        back = make_trainer("cpu")
        back.load(tmp_path / "b.h5")
        assert_same(back, first)
        back.save(tmp_path / "c.h5")
        assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "c.h5").read_bytes()


def test_a_training_saved_by_the_first_version_goes_on():
    """``first_version.h5`` was written by 46e5774, after 5 of 7 updates of its first epoch."""
    rng = np.random.default_rng(0)
    images, labels = rng.random((50, 1, 8, 8)).astype("f"), rng.integers(0, 3, 50)
    model = ac.Sequential(
        ac.Conv2d(1, 4, 3), ac.BatchNorm(4), ac.ReLU(), ac.Dropout(0.3), ac.Flatten(),
        ac.Dense(144, 3), seed=0,
    )  # fmt: skip
    trainer = Trainer(model, ac.Adam(model.parameters(), 0.01), schedule=Cosine(0.01, 20))
    path = Path(__file__).parent / "oracle" / "first_version.h5"
    info = trainer.load(path)
    assert (info.step, trainer.step, trainer.batch) == (5, 5, 5)
    assert trainer.optimizer.state_dict()["steps"] == [5] * 6
    trainer.fit(ac.DataLoader(images, labels, 8, shuffle=True, seed=4), 2)
    found = [record["train_loss"] for record in trainer.history]
    np.testing.assert_allclose(found, [1.3286137, 1.1310743], rtol=1e-3)


class TestCheckpoints:
    def test_after_each_epoch(self, tmp_path):
        trainer = make_trainer(callbacks=[Checkpoints(tmp_path / "new" / "folder", keep=2)])
        trainer.fit(make_loader(), 4, test=make_data())
        names = [path.name for path in checkpoints_in(tmp_path / "new" / "folder")]
        assert names == ["step-000000016.h5", "step-000000012.h5"]

    def test_every_few_updates_and_at_the_end(self, tmp_path):
        trainer = make_trainer(callbacks=[Checkpoints(tmp_path, every=3, keep=10)])
        trainer.fit(make_loader(), 2)
        steps = [int(path.stem[5:]) for path in checkpoints_in(tmp_path)]
        assert steps == [8, 6, 3]

    def test_the_best(self, tmp_path):
        trainer = make_trainer(callbacks=[Checkpoints(tmp_path)])
        history = trainer.fit(make_loader(), 4, test=make_data())
        best = min(history, key=lambda r: (-r["test_accuracy"], r["test_loss"]))
        assert ac.read_checkpoint_info(tmp_path / "best.h5").epoch == best["epoch"]

    def test_the_best_without_test_data(self, tmp_path):
        trainer = make_trainer(callbacks=[Checkpoints(tmp_path, every=100)])
        history = trainer.fit(make_loader(), 3)
        best = min(history, key=lambda r: r["train_loss"])
        assert ac.read_checkpoint_info(tmp_path / "best.h5").epoch == best["epoch"]

    def test_other_files_are_left_alone(self, tmp_path):
        for name in ("step-1.txt", "step-x.h5", "mine.h5"):
            (tmp_path / name).write_text("mine")
        make_trainer(callbacks=[Checkpoints(tmp_path, every=1, keep=1)]).fit(make_loader(), 1)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "best.h5", "mine.h5", "step-000000004.h5", "step-1.txt", "step-x.h5",
        ]  # fmt: skip

    def test_going_on_from_an_earlier_one_keeps_what_it_writes(self, tmp_path):
        make_trainer(callbacks=[Checkpoints(tmp_path, keep=3)]).fit(make_loader(), 3)
        trainer = make_trainer(callbacks=[Checkpoints(tmp_path, keep=1)])
        trainer.load(tmp_path / "step-000000004.h5")
        trainer.fit(make_loader(), 2)
        assert [path.name for path in checkpoints_in(tmp_path)] == ["step-000000008.h5"]

    def test_nothing_is_saved_when_the_loss_is_not_finite(self, tmp_path):
        images, labels = make_data()
        images[0] = np.nan
        trainer = make_trainer(callbacks=[Checkpoints(tmp_path, every=1)], check_every=5)
        with pytest.raises(TrainingDivergedError):
            trainer.fit(ac.DataLoader(images, labels, 8), 1)
        assert checkpoints_in(tmp_path) == []

    @pytest.mark.parametrize(("arguments", "error"), [
        ({"every": 0}, ValueError), ({"keep": 0}, ValueError), ({"every": 1.5}, TypeError),
    ])  # fmt: skip
    def test_wrong_arguments(self, arguments, error, tmp_path):
        with pytest.raises(error, match=next(iter(arguments))):
            Checkpoints(tmp_path, **arguments)


class TestLoadLast:
    def test_after_a_crash(self, tmp_path):
        whole = make_trainer()
        whole.fit(make_loader(), 2)
        crashing = make_trainer(callbacks=[Checkpoints(tmp_path, every=2), Crash(7)])
        with pytest.raises(RuntimeError, match="crash"):
            crashing.fit(make_loader(), 2)
        resumed = make_trainer()
        path, info = load_last(resumed, tmp_path)
        assert (path.name, info.step) == ("step-000000006.h5", 6)
        resumed.fit(make_loader(), 2)
        assert_same(resumed, whole)

    def test_falls_back_to_the_last_intact_one(self, tmp_path):
        make_trainer(callbacks=[Checkpoints(tmp_path, every=2)]).fit(make_loader(), 2)
        os.truncate(checkpoints_in(tmp_path)[0], 1000)
        path, _ = load_last(make_trainer(), tmp_path)
        assert path.name == "step-000000006.h5"

    def test_none_is_intact(self, tmp_path):
        (tmp_path / "step-1.h5").write_text("x")
        with pytest.raises(ac.CheckpointDamagedError, match=r"step-1\.h5"):
            load_last(make_trainer(), tmp_path)

    def test_none_is_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
            load_last(make_trainer(), tmp_path)

    def test_state_of_another_loader(self, tmp_path):
        make_trainer(callbacks=[Checkpoints(tmp_path)]).fit(make_loader(), 1)
        trainer = make_trainer()
        load_last(trainer, tmp_path)
        with pytest.raises(ValueError, match="batch_size is 8 in the state and 4 here"):
            trainer.fit(ac.DataLoader(*make_data(), 4, shuffle=True, seed=3), 2)

    @pytest.mark.parametrize("entry", ["epoch", "batch", "seconds", "totals", "history"])
    def test_state_that_is_no_state(self, entry, tmp_path):
        trainer = make_trainer()
        trainer.fit(make_loader(), 1)
        state = trainer.state_dict()

        class Forged:
            def state_dict(self):
                return {**state, entry: "x"}

        ac.save_checkpoint(tmp_path / "x.h5", trainer.model, trainer.optimizer, loader=Forged(),
                           schedule=trainer.schedule)  # fmt: skip
        other = make_trainer()
        before = {name: array.copy() for name, array in other.model.state_dict().items()}
        with pytest.raises(ac.CheckpointError):
            other.load(tmp_path / "x.h5")
        assert (other.epoch, other.step, other.history) == (0, 0, [])
        for name, array in other.model.state_dict().items():
            np.testing.assert_array_equal(array, before[name])
