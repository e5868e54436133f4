"""Recycled memory: reused when nobody refers to it, never before."""

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest

from arraycnn.backends.cpu import CpuBackend
from arraycnn.backends.cpu.memory import ALIGNMENT, BlockPool, Scratch
from arraycnn.backends.cpu.tuning import (
    BLOCK_BYTES,
    FIRST_SEGMENT_BYTES,
    RECYCLED_BYTES,
    SEGMENT_BYTES,
)
from arraycnn.geometry import pool_window

LARGE = RECYCLED_BYTES  # bytes from which on memory is recycled


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def unused(pool: BlockPool) -> int:
    return sum(stop - start for segment in pool.segments() for start, stop in segment.gaps)


def lent(array: np.ndarray) -> int:
    """Bytes of the block that an array takes."""
    return -(-array.nbytes // BLOCK_BYTES) * BLOCK_BYTES


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(SEGMENT_BYTES)


class TestBlocks:
    def test_are_arrays_like_those_of_numpy(self, pool: BlockPool) -> None:
        for shape, dtype in (((3, 5), "float32"), ((300, 500), "float64"), ((LARGE,), bool)):
            array = pool.empty(shape, dtype)
            assert type(array) is np.ndarray
            assert array.shape == shape
            assert array.dtype == dtype
            assert array.flags.c_contiguous
            assert array.flags.writeable

    def test_without_elements(self, pool: BlockPool) -> None:
        assert pool.empty((0, 7), np.float32).shape == (0, 7)
        assert pool.empty((), np.float32).shape == ()

    def test_large_ones_are_aligned_to_cache_lines(self, pool: BlockPool) -> None:
        assert address(pool.empty((LARGE,), np.uint8)) % ALIGNMENT == 0

    def test_memory_comes_back_when_the_array_is_dropped(self, pool: BlockPool) -> None:
        first = pool.empty((LARGE // 4,), np.float32)
        place = address(first)
        del first
        assert address(pool.empty((1, LARGE // 8), np.float64)) == place

    def test_sizes_within_a_grain_share_blocks(self, pool: BlockPool) -> None:
        place = address(pool.empty((LARGE + 1,), np.uint8))
        assert address(pool.empty((LARGE + BLOCK_BYTES,), np.uint8)) == place

    def test_two_that_live_are_apart(self, pool: BlockPool) -> None:
        first, second = (pool.empty((LARGE,), np.uint8) for _ in range(2))
        assert not np.shares_memory(first, second)

    def test_what_returns_grows_together(self, pool: BlockPool) -> None:
        order = np.random.default_rng(0).permutation(8)
        blocks = {number: pool.empty((LARGE,), np.uint8) for number in range(8)}
        start = address(blocks[0])
        for number in order:
            del blocks[number]
        assert address(pool.empty((8 * LARGE,), np.uint8)) == start
        assert len(pool.segments()) == 1

    def test_a_gap_serves_what_fits_and_keeps_the_rest(self, pool: BlockPool) -> None:
        first, second, third = (pool.empty((2 * LARGE,), np.uint8) for _ in range(3))
        place = address(second)
        del second
        small = [pool.empty((LARGE,), np.uint8) for _ in range(2)]
        assert [address(one) for one in small] == [place, place + LARGE]
        assert not any(np.shares_memory(one, other) for one in small for other in (first, third))

    def test_no_more_than_the_capacity_is_kept(self) -> None:
        pool = BlockPool(2 * SEGMENT_BYTES)
        blocks = [pool.empty((SEGMENT_BYTES,), np.uint8) for _ in range(5)]
        del blocks
        assert unused(pool) == 2 * SEGMENT_BYTES


VIEWS = {
    "slice": lambda x: x[100:200],
    "reversed": lambda x: x[::-3],
    "reshaped": lambda x: x.reshape(2, -1).T,
    "other dtype": lambda x: x.view(np.int32),
    "view of a view": lambda x: x[10:].reshape(2, -1)[1, 5:],
    "ndarray from its memoryview": lambda x: np.asarray(memoryview(x)),
    "frombuffer": lambda x: np.frombuffer(x, np.float32, 100, 64),
    "asarray of its interface": lambda x: np.asarray(x.view(np.recarray)),
    "broadcast": lambda x: np.broadcast_to(x, (2, x.size)),
    "strided": lambda x: np.lib.stride_tricks.sliding_window_view(x, 5),
}


class TestWhatIsStillReferredTo:
    @pytest.mark.parametrize("name", VIEWS)
    def test_keeps_its_contents(self, name: str, pool: BlockPool) -> None:
        array = pool.empty((LARGE // 4,), np.float32)
        array[...] = np.arange(array.size)
        view = VIEWS[name](array)
        before = view.copy()
        del array
        for _ in range(3):
            pool.empty((LARGE // 4,), np.float32)[...] = -1
        np.testing.assert_array_equal(view, before)

    def test_a_memoryview_keeps_its_contents(self, pool: BlockPool) -> None:
        array = pool.empty((LARGE,), np.uint8)
        array[...] = 7
        view = memoryview(array)
        del array
        pool.empty((LARGE,), np.uint8)[...] = 1
        assert set(view[:1000]) == {7}

    def test_a_cycle_gives_its_memory_back_when_it_is_collected(self, pool: BlockPool) -> None:
        cycle: list[object] = [pool.empty((LARGE,), np.uint8)]
        cycle.append(cycle)
        del cycle
        before = unused(pool)
        gc.collect()
        assert unused(pool) == before + LARGE

    def test_collecting_garbage_while_giving_back_does_not_wait_for_itself(
        self, pool: BlockPool
    ) -> None:
        block = pool.empty((LARGE,), np.uint8)
        done = threading.Event()

        def drop() -> None:
            nonlocal block
            with pool._lock:  # as if the collector had run in the middle of giving back
                block = None
            done.set()

        threading.Thread(target=drop, daemon=True).start()
        assert done.wait(10)
        place = pool.empty((LARGE,), np.uint8)  # puts back what had to wait
        assert unused(pool) + LARGE == FIRST_SEGMENT_BYTES
        del place


def test_threads_never_get_the_same_block(pool: BlockPool) -> None:
    wrong = []

    def work(number: int) -> None:
        for _ in range(300):
            array = pool.empty((LARGE // 4,), np.float32)
            array[::1000] = number
            if (array[::1000] != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class TestScratch:
    @pytest.fixture
    def scratch(self, pool: BlockPool) -> Scratch:
        return Scratch(pool)

    def test_is_the_same_memory_for_the_same_name(self, scratch: Scratch) -> None:
        first = scratch("a", (100,), np.float32)
        assert address(scratch("a", (5, 10), np.float64)) == address(first)
        assert not np.shares_memory(first, scratch("b", (100,), np.float32))

    def test_grows(self, scratch: Scratch) -> None:
        scratch("a", (10,), np.float32)
        assert scratch("a", (1000,), np.float32).shape == (1000,)

    def test_is_the_pools_again_between_operations(self, pool: BlockPool) -> None:
        scratch = Scratch(pool)
        held = scratch("a", (LARGE,), np.uint8)
        place = address(held)
        scratch.give_back()
        assert address(pool.empty((LARGE,), np.uint8)) != place  # somebody still holds it
        del held
        assert address(pool.empty((LARGE,), np.uint8)) == place

    def test_an_operation_leaves_none_behind(self) -> None:
        backend = CpuBackend()
        x = np.ones((64, 16, 32, 32), np.float32)
        y, argmax = backend.max_pool_argmax(x, pool_window((32, 32), (2, 2)))
        total = sum(segment.memory.size for segment in backend.blocks.segments())
        assert unused(backend.blocks) + lent(y) + lent(argmax) == total

    def test_belongs_to_one_thread(self, scratch: Scratch) -> None:
        mine = scratch("a", (100,), np.float32)
        others = []
        thread = threading.Thread(target=lambda: others.append(scratch("a", (100,), np.float32)))
        thread.start()
        thread.join()
        assert not np.shares_memory(mine, others[0])


def test_arrays_may_outlive_the_interpreter() -> None:
    code = (
        "import numpy as np, arraycnn as ac\n"
        "model = ac.models.lenet5(seed=0)\n"
        "kept = model.forward(np.ones((256, 1, 28, 28), np.float32))\n"
        "class Late:\n"
        "    def __init__(self): self.kept = kept; self.me = self\n"
        "late = Late()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Error" not in done.stderr
