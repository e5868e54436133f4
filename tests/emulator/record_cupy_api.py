"""Record what CuPy has under NumPy's names: ``cupy_api.json``, for the stand-in to offer no more.

Run with the real CuPy installed; no GPU is needed: ``python tests/emulator/record_cupy_api.py``.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import cupy
import numpy as np

FILE = Path(__file__).with_name("cupy_api.json")


def parameters(function: Any) -> list[str] | None:
    """Parameter names in order, ``*`` before keyword-only ones; None where they are not known."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    names: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            names.append("*args" if parameter.kind is parameter.VAR_POSITIONAL else "**kwargs")
        else:
            if parameter.kind is parameter.KEYWORD_ONLY and not {"*", "*args"} & set(names):
                names.append("*")
            names.append(parameter.name)
    return names


def api() -> dict[str, Any]:
    functions, ufuncs, same = {}, [], []
    for name in sorted(set(dir(cupy)) & set(dir(np))):
        ours, theirs = getattr(cupy, name), getattr(np, name)
        if name.startswith("_") or inspect.ismodule(ours):
            continue
        if ours is theirs or (not callable(ours) and ours == theirs):
            same.append(name)
        elif isinstance(ours, cupy.ufunc):
            ufuncs.append(name)
        elif callable(ours) and not isinstance(ours, type):
            functions[name] = parameters(ours)
    return {
        "cupy": cupy.__version__,
        "functions": functions,
        "ufuncs": ufuncs,
        "same": same,
        "methods": sorted(name for name in dir(cupy.ndarray) if not name.startswith("_")),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(api(), indent=1, sort_keys=True) + "\n")
