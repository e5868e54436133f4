"""Ctrl-C between any two calls: nothing is lost, swallowed or left locked."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl

import arraycnn as ac
from arraycnn.backends.cpu import threads as threads_module
from arraycnn.background import Worker
from arraycnn.interrupts import held_signals
from arraycnn.training import load_last

ROOT = Path(__file__).resolve().parent.parent


class Interrupt:
    """Raise a signal when the ``number``-th call of a C function returns, in this thread."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = 0

    def __enter__(self) -> "Interrupt":
        sys.setprofile(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        if event == "c_return":
            self.calls += 1
            if self.calls == self.number:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)


def interrupted_everywhere(work: Callable[[], Any]) -> Iterator[int]:
    """Run ``work`` once for each of its calls, interrupted there; each must be told of it."""
    with Interrupt(0) as counter:
        work()
    for number in range(1, counter.calls + 1):
        with Interrupt(number) as interrupt:
            try:
                work()
            except KeyboardInterrupt:
                pass
            else:  # garbage may have made more calls the first time; then nothing was raised
                assert interrupt.calls < number, f"the interrupt at call {number} was swallowed"
                return
        yield number


def network() -> ac.Sequential:
    return ac.Sequential(ac.Dense(3, 4), ac.BatchNorm(4), ac.Dropout(0.5), ac.Dense(4, 2), seed=0)


def trained() -> tuple[ac.Sequential, ac.Optimizer]:
    model = network()
    optimizer = ac.Adam(model.parameters(), 0.01)
    step(model, optimizer)
    return model, optimizer


def step(model: Any, optimizer: Any) -> None:
    y, backward = model.forward(np.ones((5, 3), "f"))
    backward(y)
    optimizer.step()


def threads() -> int:
    """How many threads this process has."""
    return len(os.listdir("/proc/self/task"))


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    before = threads()
    if request.function is test_a_step_of_ones_own:
        before += 2  # workers, who stay
    yield
    until = time.monotonic() + 10
    while threads() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threads() <= before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_saving(tmp_path: Path) -> None:
    """The file is the one before or the new one, whole, and nothing else is left."""
    model, optimizer = trained()
    path = tmp_path / "x.h5"
    ac.save_checkpoint(path, model, optimizer, step=0)
    number = 0

    def save() -> None:
        ac.save_checkpoint(path, model, optimizer, step=number + 1)

    old = 0
    for number in interrupted_everywhere(save):
        found = ac.read_checkpoint_info(path).step
        assert found in (old, number)
        old = found
    assert old > 0
    ac.save_checkpoint(path, model, optimizer)
    assert [file.name for file in tmp_path.iterdir()] == ["x.h5"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of pathlib.glob
@pytest.mark.parametrize("load", ["checkpoint", "model", "info", "last"])
def test_loading(load: str, tmp_path: Path) -> None:
    """The model is as before or as in the file, and the newest file is not passed over."""
    model, optimizer = trained()
    path = tmp_path / "step-000000001.h5"
    for number in (1, 2):
        path = tmp_path / f"step-{number:09d}.h5"
        ac.save_checkpoint(path, model, optimizer, step=number)
        stored = {name: array.copy() for name, array in model.state_dict().items()}
        step(model, optimizer)
    other = {name: array.copy() for name, array in model.state_dict().items()}
    trainer = ac.Trainer(model, optimizer)
    trainer.save(path)

    def work() -> None:
        if load == "checkpoint":
            ac.load_checkpoint(path, model, optimizer)
        elif load == "model":
            ac.load_model(path)
        elif load == "info":
            ac.read_checkpoint_info(path)
        else:
            found, _ = load_last(trainer, tmp_path)
            assert found == path

    whole = [flat(stored), flat(other)]
    for _ in interrupted_everywhere(work):
        now = flat(model.state_dict())
        assert any(np.array_equal(now, one) for one in whole)
        model.load_state_dict(other)


def flat(state: Any) -> Any:
    return np.concatenate([np.ravel(array) for array in state.values()])


def test_a_loop_over_data() -> None:
    images, labels = np.zeros((6, 1, 2, 2), "f"), np.zeros(6, int)
    loader = ac.DataLoader(images, labels, 2)
    for _ in interrupted_everywhere(lambda: list(loader)):
        pass
    assert len(list(loader)) == 3


def test_a_step_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the memory pool's lock nor that of the BLAS threads stays held, nor BLAS slowed."""
    backend: Any = ac.get_backend("cpu")
    monkeypatch.setattr(backend.workers, "count", 2)
    model = ac.Sequential(ac.Conv2d(16, 32, 3), ac.ReLU(), ac.MaxPool2d(2), seed=0)
    images = np.ones((64, 16, 16, 16), "f")
    grad = np.ones((64, 32, 7, 7), "f")
    expected = model(images)
    count = blas_threads()

    def work() -> None:
        y, backward = model.forward(images)
        backward(grad)
        del y, backward

    for _ in interrupted_everywhere(work):
        assert not backend.blocks._lock.locked()
        assert not threads_module._blas._lock.locked()
        assert not threads_module._blas._users
        assert blas_threads() == count
    np.testing.assert_array_equal(model(images), expected)


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpoolctl.threadpool_info()]


def test_held_signals_come_when_asked_or_at_the_end() -> None:
    seen = []

    def work(ask: bool) -> None:
        with held_signals() as handle:
            signal.raise_signal(signal.SIGINT)
            seen.append("raised")
            if ask:
                handle()
                seen.append("after it was asked for")

    for ask in (True, False):
        with pytest.raises(KeyboardInterrupt):
            work(ask)
    assert seen == ["raised", "raised"]


def test_worker_keeps_order_raises_and_waits() -> None:
    done: list[int] = []
    with Worker() as worker:
        for number in range(3):
            worker.submit(done.append, number)
        worker.submit(int, "x")
        worker.submit(int, "5")
        assert [worker.result() for _ in range(3)] == [None] * 3
        with pytest.raises(ValueError, match="invalid literal"):
            worker.result()
        assert worker.result() == 5
    assert done == [0, 1, 2]


def run(code: str, folder: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    start = f"""
        import atexit, os, sys, threading, time
        import numpy as np
        import arraycnn as ac
        sys.path.insert(0, {str(ROOT / "tests")!r})
        from test_interrupts import network, step, trained
        X, Y = np.zeros((64, 3), "f"), np.zeros(64, int)
    """
    text = textwrap.dedent(start) + textwrap.dedent(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", text],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


USE = """
def use():
    model, optimizer = trained()
    ac.save_checkpoint("last.h5", model, optimizer, step=7)
    ac.load_checkpoint("last.h5", model, optimizer)
    for images, labels in ac.DataLoader(X, Y, 8):
        step(model, optimizer)
    ac.Trainer(model, optimizer).fit(ac.DataLoader(X, Y, 8), 2)
    ac.save_checkpoint("last.h5", ac.load_model("last.h5"), step=8)
    print("done", flush=True)
"""


@pytest.mark.parametrize(
    "when",
    [
        "atexit.register(use)",
        "threading.Thread(target=lambda: (time.sleep(0.3), use())).start()",
        "use()\nif os.fork() == 0: use()\nelse: sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))",
    ],
    ids=["at exit", "in a thread that outlives the main one", "in a forked child"],
)
def test_exit_and_fork(when: str, tmp_path: Path) -> None:
    process = run(f"{USE}\n{when}\n", tmp_path)
    assert "done" in process.stdout
    assert process.stderr == ""
    assert process.returncode == 0
    assert ac.read_checkpoint_info(tmp_path / "last.h5").step == 8


def test_a_forked_child_goes_on_with_its_parent_s_loop(tmp_path: Path) -> None:
    code = """
        loop = iter(ac.DataLoader(np.arange(64.0)[:, None], Y, 8))
        next(loop)
        child = os.fork()
        rest = [float(images[0, 0]) for images, _ in loop]
        assert rest == [8.0 * i for i in range(1, 8)], rest
        if child:
            sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
    """
    process = run(code, tmp_path)
    assert process.returncode == 0, process.stderr
