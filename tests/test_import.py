"""What importing the package brings along, and what it costs."""

import importlib.util
import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import arraycnn as ac

ROOT = Path(ac.__file__).parents[1]
NEED_NUMBA = tuple(
    f"arraycnn.backends.compiled.{name}"
    for name in ("kernels", "loops", "correlation", "llvm", "jit")
)
EXTRA_SECONDS = 0.060
ATTEMPTS = 25


def python(code: str, cache: Path) -> str:
    """What a fresh interpreter prints, byte code being kept in ``cache``."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONPYCACHEPREFIX": str(cache),
        "PYTHONDONTWRITEBYTECODE": "",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("module", ["arraycnn", "arraycnn.training"])
def test_imports_nothing_optional(module: str, tmp_path: Path) -> None:
    code = f"import {module}, sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = set(python(code, tmp_path).split())
    assert module.split(".")[0] in loaded
    optional = {"cupy", "cupy_backends", "matplotlib", "tqdm", "torch", "sklearn", "scipy"}
    optional |= {"pytest", "hypothesis", "numba", "mpi4py"}
    assert not loaded & optional


def test_costs_little_beyond_numpy_and_h5py(tmp_path: Path) -> None:
    """Processor time, the best of several runs: other work on the machine does not count."""
    code = (
        "import time, numpy, h5py\n"
        "start = time.process_time()\n"
        "import arraycnn\n"
        "print(time.process_time() - start)"
    )
    best = float("inf")
    for _ in range(ATTEMPTS):  # the first one also compiles
        best = min(best, float(python(code, tmp_path)))
        if best < EXTRA_SECONDS:
            return
    pytest.fail(f"import arraycnn takes {best * 1e3:.0f} ms more than NumPy and h5py")


def test_prints_nothing_and_starts_no_thread(tmp_path: Path) -> None:
    code = "import arraycnn, threading; print(threading.active_count())"
    assert python(code, tmp_path) == "1\n"


def test_all_names_exist() -> None:
    assert len(set(ac.__all__)) == len(ac.__all__)
    for name in ac.__all__:
        assert hasattr(ac, name), name
    for name in ac.layers.__all__:
        assert getattr(ac, name) is getattr(ac.layers, name)


def test_public_names_of_the_design_are_there() -> None:
    names = (
        "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d MaxPool1d "
        "MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool2d GlobalAvgPool "
        "Dense BatchNorm Dropout Flatten ReLU LeakyReLU ELU SELU GELU Sigmoid Tanh Softplus "
        "Softmax Sequential Residual SGD Adam AdamW RMSprop Adagrad clip_grad_norm "
        "clip_grad_value get_backend backend_of available_backends summary gradcheck "
        "functional models schedules datasets DataLoader"
    )
    assert [name for name in names.split() if name not in ac.__all__] == []


def test_public_names_are_documented() -> None:
    for name in ac.__all__:
        documented = getattr(ac, name)
        if inspect.isclass(documented) or inspect.isroutine(documented):
            assert documented.__doc__, name


def test_every_module_imports_and_says_what_it_is() -> None:
    modules = [info.name for info in pkgutil.walk_packages(ac.__path__, "arraycnn.")]
    assert "arraycnn.layers.layer" in modules
    if importlib.util.find_spec("numba") is None:
        modules = [name for name in modules if name not in NEED_NUMBA]
    for name in modules:
        assert importlib.import_module(name).__doc__, name


def test_typed_and_versioned() -> None:
    assert (Path(ac.__file__).parent / "py.typed").exists()
    assert ac.__version__.count(".") == 2
