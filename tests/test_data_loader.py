"""The DataLoader: its order, its position, its background thread and its refusals."""

import gc
import json
import subprocess
import sys
import threading
import traceback

import numpy as np
import pytest

from arraycnn.data import DataLoader


def numbered(count=10):
    """Images that say which they are: image i is filled with i and has label i."""
    labels = np.arange(count)
    images = np.broadcast_to(labels[:, None, None, None], (count, 1, 2, 2)).astype(np.float32)
    return images, labels


def add_noise(images, rng):
    return images + rng.random(images.shape, dtype=np.float32)


def drawn(loader):
    """Everything that one loop over the loader delivers."""
    return [(images.tolist(), labels.tolist()) for images, labels in loader]


def labels_of(loader):
    return [labels.tolist() for _, labels in loader]


def prefetch_threads():
    return [t for t in threading.enumerate() if t.name.startswith("arraycnn-prefetch")]


def wait_for_no_prefetch_thread():
    for thread in prefetch_threads():
        thread.join(timeout=5)
    assert not prefetch_threads()


# Batches


def test_batches_are_in_order_and_the_last_one_is_smaller():
    loader = DataLoader(*numbered(), batch_size=4)
    assert len(loader) == 3
    assert labels_of(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_drop_last_leaves_out_the_smaller_batch_only():
    assert labels_of(DataLoader(*numbered(), 4, drop_last=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(DataLoader(*numbered(8), 4, drop_last=True)) == 2


def test_shuffling_keeps_images_with_their_labels_and_delivers_each_once():
    seen = []
    for images, labels in DataLoader(*numbered(100), 7, shuffle=True, seed=3):
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
        seen += labels.tolist()
    assert sorted(seen) == list(range(100))
    assert seen != list(range(100))


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    first, same, other = (
        DataLoader(*numbered(50), 50, shuffle=True, seed=seed) for seed in (1, 1, 2)
    )
    epochs = [labels_of(first) for _ in range(3)]
    assert epochs == [labels_of(same) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != labels_of(other)


def test_the_transform_draws_other_numbers_than_the_shuffle_and_in_each_batch():
    draws = []

    def record(images, rng):
        draws.append(rng.permutation(20).tolist())
        return images

    loader = DataLoader(*numbered(20), 10, shuffle=True, transform=record)
    order = [label for batch in labels_of(loader) for label in batch]
    assert order not in draws
    assert draws[0] != draws[1]


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_are_the_same_with_and_without_prefetch(shuffle):
    with_, without = (
        DataLoader(*numbered(), 3, shuffle=shuffle, seed=5, transform=add_noise, prefetch=prefetch)
        for prefetch in (True, False)
    )
    for _ in range(2):
        assert drawn(with_) == drawn(without)


def test_batches_are_copies():
    images, labels = numbered()
    for batch, batch_labels in DataLoader(images, labels, 4):
        batch[:] = -1
        batch_labels[:] = -1
    np.testing.assert_array_equal(images, numbered()[0])
    np.testing.assert_array_equal(labels, numbered()[1])


# Position


def test_the_position_counts_batches_delivered_not_prefetched():
    loader = DataLoader(*numbered(), 4)
    positions = [(loader.state_dict()["epoch"], loader.state_dict()["batch"])]
    for _ in loader:
        state = loader.state_dict()
        positions.append((state["epoch"], state["batch"]))
    positions.append((loader.state_dict()["epoch"], loader.state_dict()["batch"]))
    assert positions == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]


@pytest.mark.parametrize("stop", range(9))
def test_a_restored_loader_continues_with_exactly_the_same_batches(stop):
    def make():
        return DataLoader(*numbered(), 4, shuffle=True, seed=7, transform=add_noise)

    uninterrupted, saved = [], None
    loader = make()
    for _ in range(3):
        for images, labels in loader:
            uninterrupted.append((images.tolist(), labels.tolist()))
            if len(uninterrupted) == stop:
                saved = json.loads(json.dumps(loader.state_dict()))
    saved = saved or make().state_dict()
    resumed = make()
    resumed.load_state_dict(saved)
    rest = []
    while len(rest) < len(uninterrupted) - stop:
        rest += drawn(resumed)
    assert rest == uninterrupted[stop:]


def test_a_state_saved_at_the_end_of_a_loop_resumes_at_the_end_of_that_epoch():
    loader = DataLoader(*numbered(), 5)
    for _ in loader:
        state = loader.state_dict()
    assert (state["epoch"], state["batch"]) == (0, 2)
    loader.load_state_dict(state)
    assert drawn(loader) == []
    assert loader.state_dict()["epoch"] == 1
    assert len(drawn(loader)) == 2


def test_a_loop_left_early_ends_its_epoch():
    loader, whole = (DataLoader(*numbered(), 4, shuffle=True) for _ in range(2))
    epochs = [labels_of(whole) for _ in range(2)]
    for _ in loader:
        break
    assert loader.state_dict()["batch"] == 1
    assert labels_of(loader) == epochs[1]


def test_after_a_break_the_saved_position_can_be_continued():
    loader, whole = (DataLoader(*numbered(), 4, shuffle=True) for _ in range(2))
    for _ in loader:
        break
    loader.load_state_dict(loader.state_dict())
    assert labels_of(loader) == labels_of(whole)[1:]


def test_nested_loops_are_epochs_of_their_own_and_the_last_one_has_the_position():
    loader = DataLoader(*numbered(), 5, shuffle=True)
    reference = DataLoader(*numbered(), 5, shuffle=True)
    epochs = [labels_of(reference) for _ in range(2)]
    outer = iter(loader)
    outer_labels = [next(outer)[1].tolist()]
    assert labels_of(loader) == epochs[1]
    outer_labels += [labels.tolist() for _, labels in outer]
    assert outer_labels == epochs[0]
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (2, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 11}, "length is 11 in the state and 10 here"),
        ({"batch_size": 5}, "batch_size is 5 in the state and 4 here"),
        ({"seed": 1, "shuffle": True}, "seed is 1 in the state and 0 here; shuffle is True"),
        ({"drop_last": True}, "drop_last is True in the state and False here"),
        ({"batch": 4}, r"state\['batch'\] must be at most 3.*got 4"),
        ({"batch": -1}, r"state\['batch'\] must be at least 0, got -1"),
        ({"epoch": -2}, r"state\['epoch'\] must be at least 0, got -2"),
    ],
)
def test_a_state_of_another_loader_is_refused_and_changes_nothing(change, message):
    loader = DataLoader(*numbered(), 4)
    next(iter(loader))
    before = loader.state_dict()
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict({**before, **change})
    assert loader.state_dict() == before


def test_a_state_without_its_entries_is_refused():
    loader = DataLoader(*numbered(), 4)
    with pytest.raises(ValueError, match="lacks batch, length, batch_size"):
        loader.load_state_dict({"epoch": 0})
    with pytest.raises(TypeError, match=r"state\['epoch'\] must be an int, got '0'"):
        loader.load_state_dict({**loader.state_dict(), "epoch": "0"})


# The background thread


def test_the_next_batch_is_prepared_while_the_current_one_is_used():
    prepared = threading.Semaphore(0)

    def announce(images, rng):
        prepared.release()
        return images

    batches = iter(DataLoader(*numbered(), 5, transform=announce))
    next(batches)
    assert prepared.acquire(timeout=5)
    assert prepared.acquire(timeout=5)  # the second batch, which nobody has asked for yet
    batches.close()


@pytest.mark.parametrize("prefetch", [True, False])
def test_an_error_in_the_transform_arrives_with_its_traceback(prefetch):
    def fail_on_the_second(images, rng):
        if images[0, 0, 0, 0] == 5:
            raise ZeroDivisionError("in the transform")
        return images

    loader = DataLoader(*numbered(), 5, transform=fail_on_the_second, prefetch=prefetch)
    batches = iter(loader)
    assert next(batches)[1][0] == 0
    with pytest.raises(ZeroDivisionError, match="in the transform") as caught:
        next(batches)
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-1] == "fail_on_the_second"
    assert loader.state_dict()["batch"] == 1


def test_no_thread_is_left_when_a_loop_ends_or_is_abandoned():
    loader = DataLoader(*numbered(), 2)
    drawn(loader)
    wait_for_no_prefetch_thread()
    for _ in loader:
        break
    wait_for_no_prefetch_thread()
    abandoned = iter(loader)
    next(abandoned)
    del abandoned
    gc.collect()
    wait_for_no_prefetch_thread()


def test_an_abandoned_loop_does_not_keep_the_interpreter_from_ending():
    program = (
        "import numpy as np; from arraycnn.data import DataLoader\n"
        "batches = iter(DataLoader(np.zeros((9, 1)), np.arange(9), 2))\n"
        "next(batches); print('end')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert (done.stdout, done.stderr) == ("end\n", "")


# Refusals


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": [[1.0]]}, TypeError, "images must be a NumPy array, got list"),
        ({"labels": list(range(10))}, TypeError, "labels must be a NumPy array, got list"),
        ({"images": np.array(1.0)}, ValueError, "images must have a first axis"),
        ({"labels": np.zeros(10)}, TypeError, "labels must be integers, got float64"),
        ({"labels": np.zeros(10, bool)}, TypeError, "labels must be integers, got bool"),
        ({"labels": np.arange(9)}, ValueError, "got 10 images and 9 labels"),
        (
            {"images": np.zeros((0, 1, 2, 2)), "labels": np.arange(0)},
            ValueError,
            "images must not be empty",
        ),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, r"batch_size must be an int, got 2\.0"),
        ({"batch_size": True}, TypeError, "batch_size must be an int, got True"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": None}, TypeError, "seed must be an int, got None"),
        ({"transform": 3}, TypeError, "transform must be callable"),
        (
            {"batch_size": 11, "drop_last": True},
            ValueError,
            "batch_size=11 with drop_last=True leaves no batch of 10 images; lower batch_size",
        ),
    ],
)
def test_bad_arguments_are_named(changes, error, message):
    images, labels = numbered()
    arguments = {"images": images, "labels": labels, "batch_size": 4, **changes}
    with pytest.raises(error, match=message):
        DataLoader(**arguments)


@pytest.mark.parametrize("result", [None, [1, 2], np.zeros((3, 1))])
def test_a_transform_that_returns_something_else_is_refused(result):
    loader = DataLoader(*numbered(), 4, transform=lambda images, rng: result)
    with pytest.raises(ValueError, match="transform must return a NumPy array of 4 images"):
        next(iter(loader))
