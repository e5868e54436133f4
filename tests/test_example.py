"""examples/train_mnist.py as a user runs it: in a process of its own, on the embedded digits."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest

import arraycnn as ac
from arraycnn.backends import available_backends

SCRIPT = Path(__file__).parents[1] / "examples" / "train_mnist.py"
PICTURES = ["confusion_matrix.png", "filters.png", "learning_curve.png"]


def command(*arguments, warnings="error"):
    return [sys.executable, "-W", warnings, str(SCRIPT), *map(str, arguments)]


def train(*arguments, cwd, warnings="error", path=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if path:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        command(*arguments, warnings=warnings),
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def history(out):
    return json.loads((out / "history.json").read_text())


def checkpoints(out):
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def weights(out):
    last = [name for name in checkpoints(out) if name != "best.h5"][-1]
    return ac.load_model(out / "checkpoints" / last).state_dict()


def assert_same_results(out, other):
    first, second = weights(out), weights(other)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    for one, two in zip(history(out), history(other), strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
    for name in PICTURES:
        assert (out / name).read_bytes() == (other / name).read_bytes()


def stop(out, number, *arguments):
    """Send a signal once the first epoch is done; returns the process and its output."""
    with subprocess.Popen(
        command("--no-plot", "--out", out, *arguments),
        cwd=out, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert any(line.startswith("epoch") for line in process.stdout)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    return process, output, errors


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two epochs with all defaults; returns the process and its folder."""
    folder = tmp_path_factory.mktemp("default")
    process = train("--epochs", 2, "--plot", cwd=folder)
    assert process.returncode == 0, process.stderr
    return process, folder / "runs" / "digits-lenet5"


class TestRun:
    def test_says_where_it_runs_and_how_it_goes(self, run):
        lines = run[0].stdout.splitlines()
        assert lines[0].startswith("backend: ")
        assert lines[1] == "data: digits, 1437 training and 360 test images of 16×16 pixels"
        assert lines[2].startswith("model: lenet5, ")
        assert [line.split("  ")[0] for line in lines[3:-1]] == ["epoch 1/2", "epoch 2/2"]
        assert lines[-1].startswith("test accuracy ")
        assert run[0].stderr == ""

    def test_writes_history_weights_and_pictures(self, run):
        out = run[1]
        assert sorted(path.name for path in out.iterdir()) == sorted(
            [*PICTURES, "checkpoints", "history.json"]
        )
        assert checkpoints(out) == ["best.h5", "step-000000023.h5", "step-000000046.h5"]
        assert [record["epoch"] for record in history(out)] == [1, 2]
        assert history(out)[1]["train_loss"] < history(out)[0]["train_loss"]
        assert weights(out)["0.weight"].shape == (6, 1, 5, 5)
        for name in PICTURES:
            assert (out / name).read_bytes().startswith(b"\x89PNG")

    def test_again_gives_the_same(self, run, tmp_path):
        assert train("--epochs", 2, "--plot", "--out", tmp_path, cwd=tmp_path).returncode == 0
        assert_same_results(run[1], tmp_path)

    def test_another_seed_gives_something_else(self, run, tmp_path):
        assert train("--epochs", 2, "--seed", 1, "--out", ".", cwd=tmp_path).returncode == 0
        assert history(tmp_path)[1]["test_loss"] != history(run[1])[1]["test_loss"]

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_stopped_and_resumed_gives_the_same(self, number, tmp_path):
        options = ["--epochs", 4, "--save-every", 5, "--optimizer", "adam"]
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        parts.mkdir()
        assert train(*options, "--plot", "--out", whole, cwd=tmp_path).returncode == 0
        process, _, errors = stop(parts, number, *options)
        assert process.returncode == 128 + number
        assert "go on with --resume" in errors
        again = train(*options, "--plot", "--out", parts, "--resume", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert "resumed: " in again.stdout
        assert_same_results(whole, parts)

    @pytest.mark.slow
    def test_killed_and_resumed_gives_the_same(self, run, tmp_path):
        process, _, _ = stop(tmp_path, signal.SIGKILL, "--epochs", 2, "--save-every", 1)
        assert process.returncode == -signal.SIGKILL
        options = ["--epochs", 2, "--save-every", 1, "--plot", "--out", "."]
        assert train(*options, "--resume", "last", cwd=tmp_path).returncode == 0
        assert_same_results(run[1], tmp_path)

    def test_keeps_the_last_ones_and_the_best(self, tmp_path):
        options = ["--epochs", 2, "--save-every", 10, "--keep", 2, "--no-plot", "--out", "."]
        assert train(*options, cwd=tmp_path).returncode == 0
        assert checkpoints(tmp_path) == ["best.h5", "step-000000040.h5", "step-000000046.h5"]

    def test_resume_from_a_file(self, tmp_path):
        options = ["--epochs", 2, "--no-plot", "--out", "."]
        assert train(*options, cwd=tmp_path).returncode == 0
        before = history(tmp_path)
        first = tmp_path / "checkpoints" / "step-000000023.h5"
        process = train(*options, "--resume", first, cwd=tmp_path)
        assert process.returncode == 0
        assert f"resumed: {first}, epoch 2, update 23" in process.stdout
        assert history(tmp_path)[1]["test_loss"] == before[1]["test_loss"]

    @pytest.mark.parametrize("model", ["lenet1", "two-layer-cnn", "mlp", "resnet"])
    def test_every_model(self, model, tmp_path):
        process = train("--model", model, "--epochs", 1, "--plot", "--out", ".", cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        assert len(history(tmp_path)) == 1
        assert all((tmp_path / name).is_file() for name in PICTURES)

    @pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "adagrad"])
    def test_every_optimizer_learns(self, optimizer, tmp_path):
        options = ["--optimizer", optimizer, "--epochs", 5, "--no-plot", "--out", "."]
        assert train(*options, cwd=tmp_path).returncode == 0
        assert history(tmp_path)[-1]["test_accuracy"] > 0.8

    def test_without_matplotlib_and_tqdm(self, tmp_path):
        for name in ("matplotlib", "tqdm"):
            (tmp_path / f"{name}.py").write_text("raise ImportError\n")
        options = ["--epochs", 1, "--out", "."]
        process = train(*options, cwd=tmp_path, path=tmp_path)
        assert process.returncode == 0, process.stderr
        assert not list(tmp_path.glob("*.png"))
        process = train(*options, "--plot", cwd=tmp_path, path=tmp_path)
        assert process.returncode == 2
        assert "--plot needs matplotlib" in process.stderr

    @pytest.mark.parametrize(("extra", "bar"), [([], True), (["--no-progress"], False)])
    def test_on_a_terminal(self, extra, bar, tmp_path):
        terminal, side = pty.openpty()
        termios.tcsetwinsize(side, (24, 120))
        arguments = command("--epochs", 2, "--no-plot", "--out", ".", *extra)
        with subprocess.Popen(arguments, cwd=tmp_path, stdout=side, stderr=side) as process:
            os.close(side)
            shown = b""
            try:
                while part := os.read(terminal, 65536):
                    shown += part
            except OSError:  # Linux's way to say that the other side was closed
                pass
        os.close(terminal)
        assert process.returncode == 0
        assert b"epoch 2/2" in shown
        assert (b"batch/s" in shown) == bar

    def test_ctrl_c_keeps_what_was_learnt(self, tmp_path):
        process, output, errors = stop(tmp_path, signal.SIGINT, "--epochs", 10000)
        assert process.returncode == 130
        assert errors.startswith("interrupted in epoch ")
        assert output.splitlines()[-1].startswith("test accuracy ")
        assert history(tmp_path)
        assert weights(tmp_path)

    def test_divergence_names_the_update(self, tmp_path):
        options = ["--lr", 1e9, "--epochs", 2, "--no-plot", "--out", "."]
        process = train(*options, cwd=tmp_path, warnings="ignore")
        assert process.returncode == 1
        assert "in epoch 1 at update" in process.stderr
        assert len(process.stderr.splitlines()) == 1

    @pytest.mark.slow
    def test_defaults_reach_97_percent(self, tmp_path):
        process = train(cwd=tmp_path)
        assert process.returncode == 0
        assert history(tmp_path / "runs" / "digits-lenet5")[-1]["test_accuracy"] >= 0.97

    @pytest.mark.slow
    def test_lenet1_learns_too(self, tmp_path):
        assert train("--model", "lenet1", "--no-plot", "--out", ".", cwd=tmp_path).returncode == 0
        assert history(tmp_path)[-1]["test_accuracy"] >= 0.97


WRONG = [
    (["--dataset", "cifar"], "invalid choice: 'cifar'"),
    (["--model", "vgg"], "invalid choice: 'vgg'"),
    (["--optimizer", "magic"], "invalid choice: 'magic'"),
    (["--backend", "tpu"], "invalid choice: 'tpu'"),
    (["--lr", "nan"], "--lr must be a finite number above 0, got nan"),
    (["--lr", "-0.1"], "--lr must be a finite number above 0, got -0.1"),
    (["--lr", "inf"], "--lr must be a finite number above 0, got inf"),
    (["--lr", "fast"], "invalid float value: 'fast'"),
    (["--epochs", "0"], "--epochs must be at least 1, got 0"),
    (["--batch-size", "-3"], "--batch-size must be at least 1, got -3"),
    (["--seed", "-1"], "--seed must be at least 0, got -1"),
    (["--dataset", "mnist", "--data-dir", "nowhere"], "--data-dir nowhere is no folder"),
    (["--out", "blocked/out"], "blocked"),
    (["--save-every", "0"], "--save-every must be at least 1, got 0"),
    (["--keep", "0"], "--keep must be at least 1, got 0"),
    (["--resume"], "there is no checkpoint in runs/digits-lenet5/checkpoints"),
    (["--resume", "nothing.h5"], "nothing.h5"),
    (["--resume", "blocked"], "no arraycnn checkpoint"),
    (["--unknown"], "unrecognized arguments: --unknown"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_arguments(arguments, message, tmp_path):
    (tmp_path / "blocked").write_text("a file where a folder should be")
    process = train(*arguments, cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.startswith("train_mnist.py: error: ")
    assert message in process.stderr
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.skipif("cuda" in available_backends(), reason="there is a GPU")
def test_cuda_where_there_is_none(tmp_path):
    process = train("--backend", "cuda", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.startswith("train_mnist.py: error: ")
    assert len(process.stderr.splitlines()) == 1


def test_data_files_that_are_damaged(tmp_path):
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte").write_bytes(b"no IDX file")
    process = train("--dataset", "mnist", "--data-dir", ".", cwd=tmp_path)
    assert process.returncode == 2
    assert "train-images-idx3-ubyte" in process.stderr
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.parametrize("change", [["--epochs", 2], ["--batch-size", 32], ["--seed", 1]])
def test_resume_of_another_training(change, tmp_path):
    options = ["--epochs", 1, "--no-plot", "--out", "."]
    assert train(*options, cwd=tmp_path).returncode == 0
    process = train(*options, *change, "--resume", cwd=tmp_path)
    assert process.returncode == 2
    assert "the schedule is" in process.stderr or "another DataLoader" in process.stderr
    assert len(process.stderr.splitlines()) == 1


def test_resume_of_another_model(tmp_path):
    options = ["--epochs", 1, "--no-plot", "--out", "."]
    assert train(*options, "--model", "mlp", cwd=tmp_path).returncode == 0
    process = train(*options, "--resume", cwd=tmp_path)
    assert process.returncode == 2
    assert "missing" in process.stderr
    assert len(process.stderr.splitlines()) == 1
