"""Shared set-up: the backends to test on, a header that names them, deterministic Hypothesis."""

import platform
import signal
from collections.abc import Iterator

import emulator
import hypothesis
import numpy as np
import pytest

import arraycnn
from arraycnn import registry
from arraycnn.backends import Backend, available_backends, get_backend

hypothesis.settings.register_profile(
    "deterministic", derandomize=True, deadline=None, max_examples=200
)
hypothesis.settings.load_profile("deterministic")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs behind it
    signal.signal(signal.SIGINT, signal.default_int_handler)

CUDA = emulator.activate()  # before anything asks for CuPy
BACKENDS = [name for name in ("cpu", "cuda") if name in available_backends()]


def pytest_report_header() -> list[str]:
    python = platform.python_version()
    versions = f"arraycnn {arraycnn.__version__}, NumPy {np.__version__}, Python {python}"
    cuda = f"CUDA: {CUDA or 'not tested, there is neither a device nor a C++ compiler'}"
    return [versions, cuda, *(f"backend {n}: {get_backend(n).describe()}" for n in BACKENDS)]


@pytest.fixture(params=BACKENDS, scope="session")
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every backend that can be used here, one after the other."""
    return get_backend(request.param)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Forget backends that a test has registered."""
    entries = dict(registry._entries)
    yield
    registry._entries.clear()
    registry._entries.update(entries)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
