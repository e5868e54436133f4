"""Exceptions of our own."""


class BackendUnavailableError(RuntimeError):
    """A backend was asked for that cannot run here; the message says what is missing."""


class DeviceMemoryError(MemoryError):
    """A device has too little memory; the message names the bytes needed and what to lower.

    Attributes:
        reason: what the allocator said.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class GraphCaptureError(RuntimeError):
    """A training step does something that a CUDA graph cannot hold."""


class CheckpointError(ValueError):
    """A file is no checkpoint that can be trusted, or not one of this network.

    The message says which entry, what was found and what was expected.
    """


class CheckpointDamagedError(CheckpointError):
    """The file is not what a writer wrote: truncated, altered or no checkpoint at all."""
