"""Choosing, announcing and doing without Numba; what it computes is tested with every backend."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import arraycnn as ac
from arraycnn.backends import compiled
from arraycnn.backends.compiled import VARIABLE, CompiledBackend, numba_is_wanted
from arraycnn.backends.cpu import CpuBackend

needs_numba = pytest.mark.skipif(not numba_is_wanted(), reason="Numba is not in use")
STEP = (
    "import numpy as np, arraycnn as ac\n"
    "model = ac.Sequential(ac.Conv2d(1, 2, 3), ac.ReLU(), seed=0)\n"
    "y, backward = model.forward(np.ones((16, 1, 8, 8), np.float32))\n"
    "backward(y)\n"
)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip


def test_the_environment_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    assert not numba_is_wanted()
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(ValueError, match=f"{VARIABLE} must be 0 or 1, got 'yes'"):
        numba_is_wanted()


def test_without_it_the_backend_is_numpys() -> None:
    code = "import arraycnn as ac, sys\nprint(ac.get_backend('cpu').describe())\n" + STEP
    done = python(code + "print('numba' in sys.modules)", **{VARIABLE: "0"})
    assert "no Numba" in done.stdout
    assert done.stdout.endswith("False\n")


@needs_numba
def test_is_imported_at_the_first_operation() -> None:
    code = (
        "import arraycnn as ac, sys\n"
        "backend = ac.get_backend('cpu')\n"
        "print('numba' in sys.modules)\n"
    ) + STEP
    assert python(code + "print('numba' in sys.modules)").stdout == "False\nTrue\n"


@needs_numba
def test_says_once_that_it_compiles_and_nothing_when_it_need_not(tmp_path: Path) -> None:
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert python(STEP, **cache).stderr.count("compiling") == 1
    assert python(STEP, **cache).stderr == ""


@needs_numba
def test_describes_its_version() -> None:
    import numba

    assert f"Numba {numba.__version__}" in ac.get_backend("cpu").describe()


def test_works_without_numba_where_that_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("arraycnn.backends.compiled.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(compiled, "kernels", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)  # its import fails
    backend = CompiledBackend()
    x = np.random.default_rng(0).standard_normal((4, 3, 6, 6), dtype=np.float32)
    found = ac.models.lenet5(in_channels=3, image_size=28, seed=0, backend=backend)
    expected = ac.models.lenet5(in_channels=3, image_size=28, seed=0, backend=CpuBackend())
    images = np.tile(x, (1, 1, 5, 5))[:, :, :28, :28].copy()
    np.testing.assert_array_equal(found(images), expected(images))
    assert "no Numba" in backend.describe()
    assert capsys.readouterr().err.count("Numba is not used, it says") == 1


@needs_numba
def test_read_only_arrays_are_read(rng: np.random.Generator) -> None:
    layer = ac.Conv2d(2, 3, 3, padding=1, seed=0)
    x = rng.standard_normal((2, 8, 8, 16), dtype=np.float32)
    x.flags.writeable = False
    expected = layer(x.transpose(3, 0, 1, 2).copy())
    np.testing.assert_array_equal(layer(x.transpose(3, 0, 1, 2)), expected)


@needs_numba
def test_an_element_is_the_same_wherever_its_batch_is_cut(rng: np.random.Generator) -> None:
    layer = ac.Sequential(ac.Conv2d(3, 13, 5, stride=2, padding=2, seed=0), ac.ReLU())
    x = rng.standard_normal((67, 3, 15, 15), dtype=np.float32)
    whole = layer(x)
    for part in (slice(0, 1), slice(0, 17), slice(5, 67)):
        np.testing.assert_array_equal(layer(x[part]), whole[part])


@needs_numba
def test_nan_and_infinity_stay_where_they_are(rng: np.random.Generator) -> None:
    x = rng.standard_normal((20, 2, 9, 9), dtype=np.float32)
    x[3, 1, 4, 4], x[5, 0, 0, 0] = np.nan, np.inf
    layer = ac.Sequential(ac.Conv2d(2, 3, 3, padding=1, seed=0), ac.ReLU())
    alone = ac.Sequential(ac.Conv2d(2, 3, 3, padding=1, seed=0), ac.ReLU(), backend=CpuBackend())
    np.testing.assert_allclose(layer(x), alone(x), rtol=1e-4, atol=1e-5)


@needs_numba
def test_parameters_of_any_strides_are_read(rng: np.random.Generator) -> None:
    backend = ac.get_backend("cpu")
    x = rng.standard_normal((20, 2, 9, 9), dtype=np.float32)
    weight = rng.standard_normal((3, 3, 2, 12), dtype=np.float32).transpose(3, 2, 1, 0)[::2]
    bias = rng.standard_normal(12, dtype=np.float32)[::2]
    found = ac.functional.conv2d(x, weight, bias)
    expected = ac.functional.conv2d(x, weight.copy(), bias.copy())
    np.testing.assert_array_equal(found, expected)
    y = backend.batch_last(found)
    scale = rng.standard_normal(12, dtype=np.float32)[::2]
    np.testing.assert_array_equal(
        backend.scale_shift(y, scale, bias), backend.scale_shift(y, scale.copy(), bias.copy())
    )
