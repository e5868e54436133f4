"""Where training batches come from, and going back there."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from arraycnn.data import DataLoader
from arraycnn.training.arguments import Batch, check_batch, check_loader


class Source:
    """A loader of batches (inputs, targets), with a position if it can say it and be put there.

    One without ``state_dict`` and ``load_state_dict`` is taken to give the same batches again.

    Raises:
        TypeError: it does not give batches.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = check_loader("train_loader", loader)
        self._has_position = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
        self._start: Any = None

    def position(self) -> Any:
        """Where the loader is, None if it has no position."""
        return self._loader.state_dict() if self._has_position else None  # type: ignore[attr-defined]

    def move(self, position: Any) -> None:
        """Put the loader to a position that it had."""
        if self._has_position:
            self._loader.load_state_dict(position)  # type: ignore[attr-defined]

    def rest(self, done: int) -> Iterator[tuple[Batch, Any]]:
        """The batches of an epoch of which ``done`` have been, with the position after each."""
        self._start = self.position()
        for batch in islice(self._loader, 0 if self._has_position else done, None):
            yield check_batch("train_loader", batch), self.position()

    def begin_again(self) -> None:
        """Put the loader to where the epoch began."""
        start = self._start
        if isinstance(self._loader, DataLoader):
            now = self._loader.state_dict()
            if now["epoch"] != start["epoch"]:  # it had left an epoch early, and began another
                start = {**now, "batch": 0}
        self.move(start)
