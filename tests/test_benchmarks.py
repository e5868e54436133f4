"""The benchmarks of the CPU run from end to end, in their smallest sizes and without peers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, f"benchmarks/{script}.py", "--engines", "arraycnn", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "name", "tasks"),
    [
        ("train_step", "lenet5-1", ["train", "infer"]),
        ("conv_ops", "dense", ["forward", "input grad", "weight grad"]),
    ],
)
def test_a_row_for_every_task(tmp_path: Path, script: str, name: str, tasks: list[str]) -> None:
    path = tmp_path / "figures.json"
    process = run(script, "--only", name, "--rounds", "1", "--json", str(path))
    assert process.returncode == 0, process.stdout + process.stderr
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [row["task"] for row in rows] == tasks
    assert all(row["engines"]["arraycnn"]["floors"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_step", "conv_ops"])
def test_every_network_and_operation_runs(script: str) -> None:
    process = run(script, "--check")
    assert process.returncode == 0, process.stdout + process.stderr
    assert not process.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--engines", "tensorflow"), ("--rounds", "0"), ("--only", "vgg"), ("--dezero", "nowhere")],
)
def test_a_wrong_option_is_one_line(option: str, value: str) -> None:
    process = run("train_step", option, value)
    assert process.returncode == 2
    last = process.stderr.splitlines()[-1]
    assert f"argument {option}" in last
    assert value in last
