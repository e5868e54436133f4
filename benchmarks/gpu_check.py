"""Everything that only a GPU can prove, in one call: tests, sanitizer, equivalence, benchmarks.

    python benchmarks/gpu_check.py [--out DIR] [--only PART ...] [--quick]

Writes ``gpu_check.json`` and ``gpu_check.md`` into the output folder after every part, so that a
call that is cut short leaves what it has. The parts:

- tests: the whole test suite, on the device.
- sanitizer: ``compute-sanitizer`` (memcheck and racecheck) over the kernel tests.
- equivalence: the same training on cpu and cuda; the loss curves must agree within 1 %.
- convolutions: every product of a convolution at LeNet, ResNet-20 and ResNet-50 shapes, by the
  implicit GEMM, by im2col with cuBLAS and in TF32, beside PyTorch with cuDNN.
- steps: training steps per second, eager and captured, beside PyTorch eager, compiled and captured.
- memory: peak device memory of a training step.

``--quick`` takes tiny sizes: it tries the script itself, e.g. on the emulator in ``tests/``.
PyTorch is measured if it is installed with CUDA. Times are medians between device events.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOSS_TOLERANCE = 0.01  # relative, of the loss curves of whole trainings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="output folder")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))

    import arraycnn as ac

    try:
        backend = ac.get_backend("cuda")
    except ac.BackendUnavailableError as error:
        parser.exit(2, f"gpu_check.py: {error}\n")
    options.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": machine(backend), "quick": options.quick}
    failed = False
    for name in options.only:
        print(f"== {name}", flush=True)
        try:
            report[name] = PARTS[name](backend, options.quick)
        except Exception as error:  # the other parts are worth having all the same
            traceback.print_exc()
            report[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        failed = failed or not report[name].get("ok", True)
        write(report, options.out)
    print((options.out / "gpu_check.md").read_text(encoding="utf-8"))
    return int(failed)


def machine(backend: Any) -> dict[str, str]:
    versions = {"Python": platform.python_version(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    torch = cuda_torch()
    if torch is not None:
        versions["PyTorch"] = f"{torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    return {"device": backend.describe(), **versions}


def cuda_torch() -> Any:
    """PyTorch, if it is installed and finds a device."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


# ---- Tests ----


def run_tests(backend: Any, quick: bool) -> dict[str, Any]:
    chosen = ["tests/test_captured.py"] if quick else ["tests"]
    return pytest_result([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen])


def run_sanitizer(backend: Any, quick: bool) -> dict[str, Any]:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"ok": True, "skipped": "compute-sanitizer is not installed"}
    results = {}
    for check in ("memcheck", "racecheck"):
        command = [
            tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-m", "pytest", "-q",
            "-x", "-p", "no:cacheprovider", "tests/test_kernels.py",
        ]  # fmt: skip
        results[check] = pytest_result(command)
    return {"ok": all(result["ok"] for result in results.values()), **results}


def pytest_result(command: list[str]) -> dict[str, Any]:
    process = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False
    )
    lines = (process.stdout + process.stderr).strip().splitlines()
    return {"ok": process.returncode == 0, "exit": process.returncode, "end": lines[-15:]}


# ---- Equivalence ----


def run_equivalence(backend: Any, quick: bool) -> dict[str, Any]:
    """Losses of the same training on both backends, eager and captured."""
    import numpy as np

    curves = {
        "cpu": loss_curve("cpu", False, quick),
        "cuda": loss_curve("cuda", False, quick),
        "cuda graph": loss_curve("cuda", True, quick),
    }
    expected = np.array(curves["cpu"])
    worst = {
        name: float(np.max(np.abs(np.array(curve) - expected) / expected))
        for name, curve in curves.items()
        if name != "cpu"
    }
    return {
        "ok": all(difference <= LOSS_TOLERANCE for difference in worst.values()),
        "largest relative difference": worst,
        "tolerance": LOSS_TOLERANCE,
        "losses": curves,
    }


def loss_curve(backend: str, graph: bool, quick: bool) -> list[float]:
    import arraycnn as ac

    dataset = ac.datasets.digits()
    count = 256 if quick else len(dataset.train_images)
    images = ac.data.resize(dataset.train_images[:count], 16)
    model = ac.models.lenet5(image_size=16, seed=0, backend=backend)
    trainer = ac.Trainer(model, ac.SGD(model.parameters(), lr=0.02, momentum=0.9), graph=graph)
    loader = ac.DataLoader(images, dataset.train_labels[:count], 64, shuffle=True, seed=0)
    history = trainer.fit(loader, 2 if quick else 5)
    return [record["train_loss"] for record in history]


# ---- The parts, and what is written ----


def parts() -> dict[str, Callable[[Any, bool], dict[str, Any]]]:
    sys.path.insert(0, str(Path(__file__).parent))
    from gpu_convolutions import run_convolutions
    from gpu_steps import run_memory, run_steps

    return {
        "tests": run_tests,
        "sanitizer": run_sanitizer,
        "equivalence": run_equivalence,
        "convolutions": run_convolutions,
        "steps": run_steps,
        "memory": run_memory,
    }


PARTS = parts()


def write(report: dict[str, Any], folder: Path) -> None:
    (folder / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    lines = ["# GPU check", ""]
    lines += [f"- {key}: {value}" for key, value in report["machine"].items()]
    if report["quick"]:
        lines += ["", "Tiny sizes (`--quick`): the figures mean nothing."]
    for name in PARTS:
        if name not in report:
            continue
        result = report[name]
        verdict = "passed" if result.get("ok", True) else "FAILED"
        lines += ["", f"## {name}: {result.get('skipped', verdict)}", ""]
        lines += [f"    {line}" for line in result.get("end", [])]
        if "error" in result:
            lines.append(result["error"])
        for key, value in result.get("largest relative difference", {}).items():
            lines.append(f"- {key} against cpu: loss differs by at most {value:.2e} (relative)")
        lines += table(result.get("rows", []))
        lines += [f"- {note}" for note in result.get("notes", [])]
    (folder / "gpu_check.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of equal keys as a Markdown table."""
    if not rows:
        return []
    header = list(rows[0])
    body = [[shown(row.get(key)) for key in header] for row in rows]
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *body)]


def shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
