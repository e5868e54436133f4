"""The engines that are compared, and the command line that benchmarks of the CPU share."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ENGINES = {  # and the package that each needs
    "arraycnn": "arraycnn",
    "arraycnn-fast": "numba",
    "torch": "torch",
    "torch-channels-last": "torch",
    "torch-compile": "torch",
    "jax": "jax",
    "dezero": "dezero",
}
TORCH: dict[str, dict[str, bool]] = {  # and how the network or operation is made
    "torch": {},
    "torch-channels-last": {"channels_last": True},
    "torch-compile": {"channels_last": True, "compiled": True},  # mostly quicker in this format
}
PEERS = {"jax": "jax_peer", "dezero": "dezero_peer"}  # modules here
EAGER = ("torch", "torch-channels-last")
QUICK = ("arraycnn", "arraycnn-fast", *EAGER)  # what starts without compiling for long


def command_line(description: str, rounds: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--engines",
        type=engine_names,
        default=QUICK,
        metavar="NAME,...",
        help=f"of {', '.join(ENGINES)}; or all; by default {', '.join(QUICK)}",
    )
    parser.add_argument(
        "--dezero", type=Path, metavar="FOLDER", help="measure DeZero too, from its source here"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="what has TEXT in its name")
    parser.add_argument("--rounds", type=positive, default=rounds, help=f"by default {rounds}")
    parser.add_argument(
        "--threads", type=positive, help="by default one for each processor of the process"
    )
    parser.add_argument(
        "--processor-time", action="store_true", help="of one thread, instead of wall time"
    )
    parser.add_argument(
        "--keep-freed", action="store_true", help="have glibc keep memory that is freed"
    )
    parser.add_argument("--memory", action="store_true", help="measure peak memory too (Linux)")
    parser.add_argument(
        "--check", action="store_true", help="compare the engines' results, measure nothing"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


def engine_names(text: str) -> tuple[str, ...]:
    names = tuple(ENGINES) if text == "all" else tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in ENGINES:
            raise argparse.ArgumentTypeError(
                f"{name!r} is no engine; there are {', '.join(ENGINES)}, and all"
            )
    return names


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with the engines that are at hand; limits this process and its children."""
    arguments = parser.parse_args()
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        parser.error(f"argument --json: there is no folder {arguments.json.absolute().parent}")
    if arguments.dezero:
        if not (arguments.dezero / "dezero" / "__init__.py").is_file():
            parser.error(f"argument --dezero: {arguments.dezero} does not hold the package dezero")
        sys.path.insert(0, str(arguments.dezero.absolute()))
        arguments.engines = tuple(dict.fromkeys([*arguments.engines, "dezero"]))
    missing = [name for name in arguments.engines if not find_spec(ENGINES[name])]
    for name in missing:
        note(f"{name} is left out: the package {ENGINES[name]} is not installed")
    arguments.engines = [name for name in arguments.engines if name not in missing]
    if not arguments.engines:
        parser.error("argument --engines: none of them is installed")
    arguments.clock = "perf_counter"
    if arguments.processor_time:
        arguments.clock, arguments.threads = "process_time", 1
    arguments.threads = limit_threads(arguments.threads)
    return arguments


def limit_threads(threads: int | None) -> int:
    """Keep every engine to so many threads, and to as many processors: JAX counts only these."""
    if hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        threads = threads or len(processors)
        os.sched_setaffinity(0, processors[:threads])
    threads = threads or os.cpu_count() or 1
    os.environ.update(OMP_NUM_THREADS=str(threads), ARRAYCNN_NUM_THREADS=str(threads))
    return threads


def chosen(parser: argparse.ArgumentParser, specs: Sequence[Any], text: str) -> list[Any]:
    """Those with ``text`` in their name."""
    found = [spec for spec in specs if text in spec.name]
    if not found:
        names = "; ".join(spec.name for spec in specs)
        parser.error(f"argument --only: {text!r} is in no name; there are: {names}")
    return found


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the figures are measured on, and how; printed, too."""
    import arraycnn

    packages = dict.fromkeys(["arraycnn", *(ENGINES[name] for name in arguments.engines)])
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "clock": arguments.clock,
        "rounds": arguments.rounds,
        "malloc": "keeps freed memory" if arguments.keep_freed else "as it is",
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        **{package: version_of(package) for package in packages},
        "backend": arraycnn.get_backend("cpu").describe(),
    }
    print(" · ".join(f"{key} {value}" for key, value in found.items()), flush=True)
    return found


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout
        return str(getattr(import_module(package), "__version__", "unknown"))


def cpu_model() -> str:
    """The processor's name and its widest vector instructions (Linux)."""
    if not os.path.exists("/proc/cpuinfo"):
        return platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as file:
        fields = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].split("\n"))
    values = {key.strip(): value.strip() for key, value in fields.items()}
    flags = values.get("flags", "").split()
    vectors = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "no AVX")
    family = f"family {values.get('cpu family')} model {values.get('model')}"
    return f"{values.get('model name', platform.machine())} ({family}, {vectors})"


def save(results: dict[str, Any], path: Path | None) -> None:
    """Write the figures, if somebody asked for it; once more after every row."""
    if path:
        path.write_text(json.dumps(results, indent=1))
