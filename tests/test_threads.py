"""Threads: every part once, the same bits for any number, and the user's BLAS left as it was."""

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

import arraycnn as ac
from arraycnn import functional as F
from arraycnn.backends.compiled import CompiledBackend, numba_is_wanted
from arraycnn.backends.cpu import CpuBackend
from arraycnn.backends.cpu.threads import VARIABLE, Workers, _description

BUSY = 1.0  # a guess at the seconds of work: threads are worth it
KINDS = [CpuBackend, CompiledBackend] if numba_is_wanted() else [CpuBackend]


class TestWorkers:
    @pytest.mark.parametrize("count", [1, 2, 5])
    @pytest.mark.parametrize("seconds", [0, BUSY])
    @pytest.mark.parametrize("blas", [True, False])
    def test_run_every_part_once(self, count: int, seconds: float, blas: bool) -> None:
        workers = Workers()
        workers.count = count
        for parts in (0, 1, 2, 7, 100):
            done: list[int] = []
            workers.run(done.append, range(parts), seconds, blas)
            assert sorted(done) == list(range(parts))

    def test_use_several_threads_where_it_is_worth_it(self) -> None:
        workers = Workers()
        workers.count = 2
        both = threading.Barrier(2, timeout=30)
        workers.run(lambda index: both.wait() and None, range(2), BUSY)

    def test_small_work_stays_in_the_callers_thread(self) -> None:
        workers = Workers()
        workers.count = 4
        seen = set()
        workers.run(lambda index: seen.add(threading.get_ident()), range(50), 1e-6)
        assert seen == {threading.get_ident()}

    def test_an_error_in_a_part_reaches_the_caller(self) -> None:
        workers = Workers()
        workers.count = 3

        def fail(index: int) -> None:
            raise ArithmeticError(f"part {index}")

        with pytest.raises(ArithmeticError, match="part"):
            workers.run(fail, range(8), BUSY)
        done: list[int] = []
        workers.run(done.append, range(8), BUSY)
        assert len(done) == 8

    def test_an_error_in_the_other_thread_reaches_the_caller(self) -> None:
        workers = Workers()
        workers.count = 2
        both = threading.Barrier(2, timeout=30)
        caller = threading.get_ident()

        def fail_elsewhere(index: int) -> None:
            both.wait()
            if threading.get_ident() != caller:
                raise ArithmeticError("elsewhere")

        with pytest.raises(ArithmeticError, match="elsewhere"):
            workers.run(fail_elsewhere, range(2), BUSY)

    @pytest.mark.parametrize("count", [1, 2])
    def test_after_an_error_no_task_is_begun_and_every_thread_finishes(self, count: int) -> None:
        finished: list[int] = []
        workers = Workers(lambda: finished.append(threading.get_ident()))
        workers.count = count
        both = threading.Barrier(count, timeout=30)
        done: list[int] = []

        def fail_first(index: int) -> None:
            if index < count:  # each thread has one
                both.wait()
            if index == 0:
                raise ArithmeticError("first")
            time.sleep(0.05)
            done.append(index)

        with pytest.raises(ArithmeticError, match="first"):
            workers.run(fail_first, range(50), BUSY)
        assert len(done) < count
        assert len(finished) == len(set(finished)) == count

    def test_nothing_of_an_operation_is_kept(self) -> None:
        workers = Workers()
        workers.count = 2
        both = threading.Barrier(2, timeout=30)
        array = np.zeros(3)
        gone = weakref.ref(array)

        def use(index: int, array: np.ndarray = array) -> None:
            both.wait()
            array[index] = 1

        workers.run(use, range(2), BUSY)
        del use, array
        assert gone() is None

    @pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send to oneself")
    def test_an_interrupt_waits_for_the_other_thread(self) -> None:
        workers = Workers()
        workers.count = 2
        both = threading.Barrier(2, timeout=30)
        caller = threading.get_ident()
        finished: list[int] = []

        def part(index: int) -> None:
            both.wait()
            if threading.get_ident() != caller:
                time.sleep(0.2)
                os.kill(os.getpid(), signal.SIGINT)  # while the caller waits
                time.sleep(0.2)
                finished.append(index)

        with pytest.raises(KeyboardInterrupt):
            workers.run(part, range(2), BUSY)
        assert len(finished) == 1

    def test_may_be_used_inside_a_part(self) -> None:
        workers = Workers()
        workers.count = 2
        done: list[int] = []
        workers.run(lambda index: workers.run(done.append, range(3), BUSY), range(4), BUSY)
        assert sorted(done) == sorted(4 * [0, 1, 2])

    def test_may_be_used_from_several_threads_at_once(self) -> None:
        workers = Workers()
        workers.count = 2
        sums = np.zeros((6, 20))

        def add(row: int) -> None:
            for _ in range(20):
                workers.run(
                    lambda index: sums[row].__setitem__(index, sums[row, index] + 1), range(20), 1
                )

        threads = [threading.Thread(target=add, args=(row,)) for row in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (sums == 20).all()

    def test_nobody_waits_for_a_thread_that_is_busy_for_another(self) -> None:
        workers = Workers()
        workers.count = 2
        both, release = threading.Barrier(3, timeout=30), threading.Event()

        def hold(index: int) -> None:
            both.wait()
            release.wait(30)

        other = threading.Thread(target=workers.run, args=(hold, range(2), BUSY))
        other.start()
        both.wait()  # now both threads are in it
        done: list[int] = []
        workers.run(done.append, range(8), BUSY)
        assert sorted(done) == list(range(8))
        release.set()
        other.join()

    @pytest.mark.parametrize(
        ("count", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError)]
    )
    def test_the_number_must_be_a_positive_int(self, count: object, error: type[Exception]) -> None:
        backend = CpuBackend()
        with pytest.raises(error, match="num_threads must be"):
            backend.num_threads = count

    def test_the_environment_sets_the_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(VARIABLE, "3")
        assert CpuBackend().num_threads == 3
        assert "3 threads" in CpuBackend().describe()
        for wrong in ("0", "two", "-1", "1.5"):
            monkeypatch.setenv(VARIABLE, wrong)
            with pytest.raises(ValueError, match=f"{VARIABLE} must be a positive integer"):
                CpuBackend()


def trained(backend: CpuBackend) -> list[np.ndarray]:
    """The parameters of a network after two steps on batches that several threads share."""
    model = ac.Sequential(
        ac.Conv2d(3, 8, 3, padding=1), ac.BatchNorm(8), ac.ReLU(),
        ac.Residual(ac.Sequential(ac.Conv2d(8, 8, 3, padding=1, bias=False), ac.BatchNorm(8))),
        ac.ReLU(), ac.Conv2d(8, 16, 5, stride=2, padding=2), ac.ReLU(), ac.MaxPool2d(2),
        ac.MaxPool2d(3, stride=2, padding=1), ac.Dropout(0.2, seed=3), ac.Flatten(),
        ac.Dense(256, 100), ac.ReLU(), ac.Dense(100, 10), seed=1, backend=backend,
    )  # fmt: skip
    optimizer = ac.Adam(model.parameters(), lr=0.01)
    rng = np.random.default_rng(2)
    for _ in range(2):
        images = rng.standard_normal((70, 3, 32, 32), dtype=np.float32)
        logits, backward = model.forward(images)
        _, grad = F.softmax_cross_entropy(logits, rng.integers(0, 10, 70))
        backward(grad)
        optimizer.step()
        optimizer.zero_grad()
    return [np.array(array) for array in model.state_dict().values()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_the_same_for_any_number_of_threads(kind: type[CpuBackend]) -> None:
    results = []
    for count in (1, 2, 3):
        backend = kind()
        backend.num_threads = count
        results.append(trained(backend))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one.tobytes() == two.tobytes()


def blas_threads() -> list[int]:
    """Of the BLAS that comes with NumPy; another library may have brought its own."""
    controller = ThreadpoolController().select(user_api="blas")
    libraries = [one for one in controller.lib_controllers if "numpy" in one.filepath]
    return [library.get_num_threads() for library in libraries]


class TestTheUsersBlas:
    @pytest.fixture(autouse=True)
    def two_threads(self) -> Iterator[None]:
        with threadpool_limits(2, user_api="blas"):
            yield

    @pytest.mark.parametrize("kind", KINDS)
    def test_has_its_threads_back_after_a_step(self, kind: type[CpuBackend]) -> None:
        before = blas_threads()
        trained(kind())
        assert blas_threads() == before

    def test_has_its_threads_back_after_an_error(self) -> None:
        before = blas_threads()
        with pytest.raises(ZeroDivisionError):
            Workers().run(lambda index: 1 / 0, range(3), 0)
        assert blas_threads() == before

    def test_has_one_thread_inside(self) -> None:
        if set(blas_threads()) != {2}:
            pytest.skip("this BLAS has one thread")
        inside: list[int] = []
        Workers().run(lambda index: inside.extend(blas_threads()), range(1), 0)
        assert set(inside) == {1}

    def test_has_one_thread_inside_whoever_told_it_last(self) -> None:
        """threadpoolctl 3.8 lets one Python thread tell OpenBLAS, until that thread ends."""
        if set(blas_threads()) != {2}:
            pytest.skip("this BLAS has one thread")
        Workers().run(lambda index: None, range(1), 0)
        inside: list[int] = []

        def elsewhere() -> None:
            Workers().run(lambda index: inside.extend(blas_threads()), range(1), 0)

        other = threading.Thread(target=elsewhere)
        other.start()
        other.join()
        assert set(inside) == {1}
        assert set(blas_threads()) == {2}

    def test_has_its_threads_back_when_the_last_of_two_callers_ends(self) -> None:
        before = blas_threads()
        inside, outside = threading.Event(), threading.Event()

        def first() -> None:
            Workers().run(lambda index: inside.wait(30) and None, range(1), 0)
            outside.set()

        other = threading.Thread(target=first)
        other.start()

        def second(index: int) -> None:
            inside.set()
            outside.wait(30)

        Workers().run(second, range(1), 0)
        other.join()
        assert blas_threads() == before

    def test_may_have_another_number_next_time(self) -> None:
        Workers().run(lambda index: None, range(1), 0)
        with threadpool_limits(1, user_api="blas"):
            Workers().run(lambda index: None, range(1), 0)
            assert set(blas_threads()) == {1}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_computes_too() -> None:
    code = (
        "import os, numpy as np, arraycnn as ac\n"
        "backend = ac.get_backend('cpu'); backend.num_threads = 2\n"
        "model = ac.models.lenet5(seed=0)\n"
        "x = np.random.default_rng(0).random((256, 1, 28, 28), np.float32)\n"
        "expected = model(x)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit(0 if np.array_equal(model(x), expected) else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert np.array_equal(model(x), expected)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("kernels", "found", "advised"),
    [("Haswell", "X86_V4", True), ("Zen", "AVX512_SKX", True), ("Haswell", "X86_V3", False),
     ("SkylakeX", "X86_V4", False)],
)  # fmt: skip
def test_a_blas_without_the_processors_vectors_is_told_what_to_do(
    kernels: str, found: str, advised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    simd = {"SIMD Extensions": {"found": ["X86_V2", found]}}
    monkeypatch.setattr(np, "show_config", lambda mode: simd)
    library = {"internal_api": "openblas", "version": "0.3.31", "architecture": kernels}
    description = _description(library)
    assert description.startswith(f"openblas 0.3.31 {kernels}")
    assert ("OPENBLAS_CORETYPE=SkylakeX" in description) == advised
