"""``test_kernels.py`` once more: in other orders of blocks and threads, and under sanitizers."""

import subprocess
import sys
from pathlib import Path

import emulator
import pytest
from emulator import launcher

from arraycnn.backends.cuda import kernels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        emulator.activate() is None or emulator.device_exists(), reason="needs the emulator"
    ),
]
KERNELS = Path(__file__).with_name("test_kernels.py")


def run_again(*environments: dict[str, str]) -> None:
    """Run the file once for each environment, all at the same time."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(KERNELS)]
    started = [
        subprocess.Popen(
            [*command, "-k", environment.pop("SELECTED", "")],
            env=emulator.environment() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for environment in environments
    ]
    outputs = [process.communicate()[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]


def test_kernels_give_the_same_in_every_order() -> None:
    run_again(*({"EMULATOR_ORDER": str(order)} for order in launcher.ORDERS[1:]))


def test_no_kernel_leaves_its_arrays_or_does_what_is_undefined(tmp_path: Path) -> None:
    sanitizers = launcher.sanitizer_environment()
    if sanitizers is None:
        pytest.skip("g++ has no address sanitizer here")
    halves = {"tile": tmp_path / "tile", "not tile": tmp_path / "others"}
    run_again(
        *(
            sanitizers | {"SELECTED": selected, "EMULATOR_LAUNCHED": str(names)}
            for selected, names in halves.items()
        )
    )
    launched = {name for names in halves.values() for name in names.read_text().splitlines()}
    instances = {name for found in kernels.instantiations().values() for name in found}
    assert instances <= launched, sorted(instances - launched)  # nothing has been left out
