"""Batches of images and labels, in an order that is a function of the seed and the epoch alone."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from arraycnn.arguments import as_count
from arraycnn.arrays import Array
from arraycnn.background import Worker
from arraycnn.data.augment import Transform


class DataLoader:
    """Iterate over (images, labels) in batches of ``batch_size``, as NumPy arrays.

    Each ``for`` over the loader is one epoch. One that is left early ends its epoch too: the next
    ``for`` begins the following epoch, with all its batches. Only after ``load_state_dict`` does a
    ``for`` begin in the middle, at the batch after the last one delivered when the state was
    saved. A state saved after the last batch, but inside the loop, therefore gives an empty
    ``for`` first: what a program does at the end of an epoch is still to come. If loops over the
    same loader are nested, the position is that of the one begun last.

    Args:
        images, labels: NumPy arrays of equal, non-zero length; labels are integers. The batches
            are copies.
        shuffle: a new order in each epoch, the permutation drawn by
            ``default_rng(SeedSequence(seed, spawn_key=(epoch,)))``.
        drop_last: leave out the last batch of an epoch if it is smaller than the others.
        transform: ``transform(images, rng) -> images``, applied to each batch with a generator of
            its own, ``default_rng(SeedSequence(seed, spawn_key=(epoch, batch index)))``. It runs
            in another thread and must change nothing but its own arrays.
        prefetch: prepare the next batch in a background thread while the current one is used. The
            batches are the same without.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    def __init__(
        self,
        images: Array,
        labels: Array,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        transform: Transform | None = None,
        prefetch: bool = True,
    ) -> None:
        _check_arrays(images, labels)
        if transform is not None and not callable(transform):
            raise TypeError(
                f"transform must be callable as transform(images, rng) or None, got {transform!r}"
            )
        self.images = images
        self.labels = labels
        self.batch_size = as_count("batch_size", batch_size)
        self.shuffle = bool(shuffle)
        self.seed = as_count("seed", seed, minimum=0)
        self.drop_last = bool(drop_last)
        self.transform = transform
        self.prefetch = bool(prefetch)
        if len(self) == 0:
            raise ValueError(
                f"batch_size={batch_size} with drop_last=True leaves no batch of {len(images)} "
                f"images; lower batch_size to at most {len(images)} or set drop_last=False"
            )
        self._epoch = 0
        self._delivered = 0  # batches of this epoch
        self._fresh = True  # the next loop begins at this position, not at the next epoch
        self._loop: object = None  # identifies the loop that moves the position

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        if not self._fresh:
            self._epoch += 1
            self._delivered = 0
        self._fresh = False
        self._loop = loop = object()
        first = self._delivered
        for index, batch in enumerate(self._batches(self._epoch, first), start=first):
            if self._loop is loop:
                self._delivered = index + 1
            yield batch
        if self._loop is loop:
            self._epoch += 1
            self._delivered = 0
            self._fresh = True

    def state_dict(self) -> dict[str, Any]:
        """The position (epoch and number of its batches delivered) and what it depends on.

        Plain integers and booleans, fit for JSON.
        """
        return {"epoch": self._epoch, "batch": self._delivered, **self._fingerprint()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position saved by :meth:`state_dict`, with exactly the same batches.

        Raises:
            TypeError, ValueError: the state lacks an entry, does not come from a loader with the
                same number of images, batch size, seed, shuffle and drop_last, or is no position
                in an epoch. Nothing is changed then.
        """
        fingerprint = self._fingerprint()
        missing = [key for key in ("epoch", "batch", *fingerprint) if key not in state]
        if missing:
            raise ValueError(
                f"state must come from DataLoader.state_dict(), but it lacks {', '.join(missing)}"
            )
        differences = [
            f"{key} is {state[key]!r} in the state and {here!r} here"
            for key, here in fingerprint.items()
            if state[key] != here
        ]
        if differences:
            raise ValueError(
                f"state belongs to another DataLoader: {'; '.join(differences)}. Make the loader "
                "with the arguments it was saved with"
            )
        epoch = as_count("state['epoch']", state["epoch"], minimum=0)
        delivered = as_count("state['batch']", state["batch"], minimum=0)
        if delivered > len(self):
            raise ValueError(
                f"state['batch'] must be at most {len(self)}, the batches of an epoch, "
                f"got {delivered}"
            )
        self._epoch = epoch
        self._delivered = delivered
        self._fresh = True
        self._loop = None

    def __repr__(self) -> str:
        return (
            f"<DataLoader of {len(self.images)} images {self.images.shape[1:]}: {len(self)} "
            f"batches of {self.batch_size}, shuffle={self.shuffle}, seed={self.seed}>"
        )

    def _fingerprint(self) -> dict[str, int | bool]:
        return {
            "length": len(self.images),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def _rng(self, *key: int) -> np.random.Generator:
        # Not default_rng([seed, *key]): that pads with zeros, so (epoch,) and (epoch, 0) would be
        # the same generator and the shuffle would repeat itself in the first batch's transform.
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Array, Array]]:
        """The batches of an epoch from the ``first`` one on."""
        count = len(self.images)
        order = self._rng(epoch).permutation(count) if self.shuffle else np.arange(count)
        if not self.prefetch or first == len(self):
            for index in range(first, len(self)):
                yield self._batch(order, epoch, index)
            return
        worker = Worker()
        try:
            worker.submit(self._batch, order, epoch, first)
            for index in range(first, len(self)):
                batch = worker.result()
                if index + 1 < len(self):
                    worker.submit(self._batch, order, epoch, index + 1)
                yield batch
        finally:
            # Also when the loop was left early. Not waiting: the garbage collector may run this
            # in the worker itself, and the worker ends with the batch it is at.
            worker.close()

    def _batch(self, order: Array, epoch: int, index: int) -> tuple[Array, Array]:
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
        images = self.images[chosen]
        labels = self.labels[chosen]
        if self.transform is not None:
            images = self.transform(images, self._rng(epoch, index))
            if not isinstance(images, np.ndarray) or len(images) != len(labels):
                found = f"shape {images.shape}" if hasattr(images, "shape") else repr(images)
                raise ValueError(
                    f"transform must return a NumPy array of {len(labels)} images, got {found} "
                    f"({type(images).__name__})"
                )
        return images, labels


def _check_arrays(images: Any, labels: Any) -> None:
    for name, array in (("images", images), ("labels", labels)):
        if not isinstance(array, np.ndarray):
            raise TypeError(
                f"{name} must be a NumPy array, got {type(array).__name__}; convert it with "
                "numpy.asarray, or with the backend's to_numpy if it is on a GPU"
            )
        if array.ndim == 0:
            raise ValueError(f"{name} must have a first axis that counts the images, got a scalar")
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"labels must be integers, got {labels.dtype}; convert them with "
            "labels.astype(numpy.int64), one-hot labels with labels.argmax(axis=1)"
        )
    if len(images) != len(labels):
        raise ValueError(
            f"images and labels must have the same length, got {len(images)} images and "
            f"{len(labels)} labels"
        )
    if len(images) == 0:
        raise ValueError("images must not be empty, got a data set of length 0")
