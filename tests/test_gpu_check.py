"""The script for machines with a GPU runs from end to end on the emulator, in tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import emulator
import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("equivalence", "convolutions", "steps", "memory")


@pytest.mark.slow
@pytest.mark.skipif(emulator.activate() is None, reason="needs the emulator or a CUDA device")
def test_the_check_runs_and_reports(tmp_path: Path) -> None:
    folders = [ROOT, *([] if emulator.device_exists() else [emulator.STAND_IN, ROOT / "tests"])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "benchmarks/gpu_check.py", "--quick", "--out", str(tmp_path)]
    process = subprocess.run(
        [*command, "--only", *PARTS], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
    report = json.loads((tmp_path / "gpu_check.json").read_text(encoding="utf-8"))
    assert set(PARTS) < set(report)
    assert len(report["convolutions"]["rows"]) == 6
    text = (tmp_path / "gpu_check.md").read_text(encoding="utf-8")
    assert "## equivalence: passed" in text
    assert text.count("| tiny") == 8


def test_without_a_device_it_says_so(tmp_path: Path) -> None:
    if emulator.device_exists():
        pytest.skip("there is a device")
    command = [sys.executable, "benchmarks/gpu_check.py", "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 2
    assert "backend 'cuda'" in process.stderr
    assert not list(tmp_path.iterdir())
