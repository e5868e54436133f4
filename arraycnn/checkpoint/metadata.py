"""The JSON text of a checkpoint: plain data in, plain data out, with limits on both ways."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arraycnn.errors import CheckpointError

MAX_BYTES = 16 << 20
MAX_VALUES = 250_000  # and keys: what reading them costs is up to 200 bytes and 2 µs each
MAX_DEPTH = 100

# Also what is never closed, so that no text takes more than one pass.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_OTHERS = bytes(code for code in range(256) if code not in b"[]{},:")
_LEVELS = bytes.maketrans(b"[]{},:", bytes((1, 255, 1, 255, 0, 0)))  # steps of depth, as int8


def plain(value: Any, where: str) -> Any:
    """``value`` as JSON can hold it exactly; a copy, tuples as lists.

    Raises:
        TypeError: something that is not None, bool, int, float, str, list or dict with str keys.
        ValueError: NaN, infinity, or half a surrogate pair in a str.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} must be finite for JSON, got {value}")
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} must have str keys, got {key!r}")
        return {
            _text(key, f"a key of {where}"): plain(item, f"{where}[{key!r}]")
            for key, item in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(
        f"{where} must be plain data (None, bool, int, float, str, list, dict), got "
        f"{type(value).__name__}; convert it, e.g. with .item() or .tolist()"
    )


def encode(data: Mapping[str, Any]) -> bytes:
    """UTF-8 text of ``data``, the same for equal data.

    Raises:
        ValueError: larger or deeper than `decode` accepts, or not text.
    """
    text = json.dumps(data, sort_keys=True, allow_nan=False, ensure_ascii=True).encode()
    problem = _problem(text)
    if problem:
        raise ValueError(f"the metadata cannot be saved: {problem}; put less into extra")
    return text


def decode(text: bytes) -> dict[str, Any]:
    """The object that ``text`` describes.

    Raises:
        CheckpointError: too large, too deep, not JSON, not an object, a key twice, NaN, infinity.
    """
    problem = _problem(text)
    if problem:
        raise CheckpointError(f"meta: {problem}")
    try:
        data = json.loads(
            text.decode(),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
        )
    except CheckpointError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"meta: not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"meta: must be a JSON object, got {type(data).__name__}")
    return data


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} must be valid Unicode, got {value!r:.80}") from None
    return str(value)


def _problem(text: bytes) -> str | None:
    if len(text) > MAX_BYTES:
        return f"{len(text)} bytes of JSON are more than the {MAX_BYTES} allowed"
    strings = (text.count(b'"') - text.count(b'\\"')) // 2  # at least; a cheap look first
    values = strings
    if strings <= MAX_VALUES:
        marks = _STRING.sub(b"", text).translate(None, _OTHERS)
        values = len(marks) - marks.count(b"]") - marks.count(b"}")
    if values > MAX_VALUES:
        return f"{values} values are more than the {MAX_VALUES} allowed"
    codes = np.frombuffer(marks.translate(_LEVELS), np.int8)
    depth = int(np.max(np.cumsum(codes), initial=0))
    return f"nested {depth} deep, {MAX_DEPTH} are allowed" if depth > MAX_DEPTH else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        twice, _ = (Counter(key for key, _ in pairs) - Counter(data.keys())).popitem()
        raise CheckpointError(f"meta: the key {twice!r} appears twice in an object")
    return data


def _constant(name: str) -> Any:
    raise CheckpointError(f"meta: {name} is not allowed, numbers must be finite")


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise CheckpointError(f"meta: {digits} is not allowed, numbers must be finite")
    return number
