"""``python -m arraycnn.checkpoint FILE``: verify checkpoints and print what is in them."""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from arraycnn.checkpoint.info import CheckpointInfo, read_checkpoint_info
from arraycnn.errors import CheckpointError

MOST = 200  # characters of a value in the file


def main(arguments: Sequence[str] | None = None) -> int:
    """Print each file's contents; the exit status is 1 if one is not intact or cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m arraycnn.checkpoint",
        description="Verify checkpoints and print what is in them. No array is loaded.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    status = 0
    for file in parser.parse_args(arguments).files:
        try:
            info = read_checkpoint_info(file)
        except (CheckpointError, OSError) as error:
            print(shown(str(error)), file=sys.stderr)
            status = 1
        else:
            for line in _lines(info):
                print(shown(line))
    return status


def _lines(info: CheckpointInfo) -> Iterator[str]:
    yield f"{info.path}: intact, {info.size:,} bytes, format {info.version}, by {info.library}"
    yield f"  epoch {info.epoch}, step {info.step}, {info.dtype}"
    if info.optimizer is not None:
        settings = ", ".join(f"{k}={v!r}" for k, v in info.optimizer["hyperparameters"].items())
        slots = ", ".join(info.optimizer["slots"]) or "none"
        yield f"  optimizer {info.optimizer['kind']}({settings}), slots: {slots}"
    if info.schedule is not None:
        yield f"  schedule {info.schedule!r}"
    if info.loader is not None:
        yield f"  loader {json.dumps(info.loader)}"
    if "problem" in info.model:
        yield f"  network without configuration: {info.model['problem']}"
    size = sum(math.prod(s) * np.dtype(d).itemsize for d, s in info.tensors.values())
    yield f"  {info.model.get('class', 'network')} of {len(info.tensors)} arrays, {size:,} bytes"
    for name, (dtype, shape) in info.tensors.items():
        yield f"    {name:<32} {dtype:<8} {shape}"
    for name, value in info.extra.items():
        text = json.dumps(value)
        yield f"  extra {name}: {text if len(text) <= MOST else f'{len(text):,} characters'}"


def shown(line: str) -> str:
    """A line for a terminal: cut, and without control characters, whatever the file says."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line[: 2 * MOST])
    return text if len(line) <= 2 * MOST else f"{text} … ({len(line):,} characters)"


if __name__ == "__main__":
    sys.exit(main())
