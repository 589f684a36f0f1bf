"""An observer's state as plain values, and back: for files, and on the way between processes."""

from __future__ import annotations

import base64
import math
import zlib
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError, UsageError

_PLAIN = (bool, int, float, str, type(None))
# Types of arrays that mean the same on every machine.
_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
_DTYPES = {"bool", "float16", "float32", "float64", *_INTEGERS}
# Bytes of one array: a few kilobytes in a file could expand to all memory.
LARGEST_ARRAY = 2**27
# Dictionaries with one of these as their only key stand for something else in JSON.
_MARKS = ("array", "float", "dict")
# What may follow what an attribute starts with.
_KINDS: tuple[tuple[type, ...], ...] = (
    (bool, np.bool_),
    (int, float, np.number),
    (str,),
    (list, tuple),
    (dict,),
    (np.ndarray,),
)


class PackedArray(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An array in JSON.

    Attributes:
        dtype: Type of the array.
        stored: Type of the bytes: for integers the smallest that holds them.
        shape: Shape of the array.
        zlib: The bytes in C order, little-endian, compressed, as base64.
    """

    dtype: str
    stored: str
    shape: tuple[int, ...]
    zlib: str


def state_of(observer: object) -> dict[str, Any]:
    """The attributes of an observer, those of its parts below their own names.

    Raises:
        UsageError: An attribute is neither a plain value, nor a list or dictionary of such, nor an
            array, nor an object of these.
    """
    return {name: _taken(value, observer, name) for name, value in sorted(vars(observer).items())}


def restore(observer: object, state: dict[str, Any]) -> None:
    """Give a new observer a state.

    Raises:
        DataError: The state is that of another kind of observer.
    """
    kind, parts = type(observer), dict(vars(observer))
    if not isinstance(state, dict) or set(state) != set(parts):
        found = ", ".join(map(str, state)) if isinstance(state, dict) else repr(state)[:40]
        raise DataError(
            f"a state of {found} does not fit {kind.__name__}, which has {', '.join(parts)}",
            "was it made by another version?",
        )
    own = kind.__module__.startswith("onnxq.")
    for name, part in parts.items():
        value = state[name]
        if _is_object(part):
            restore(part, value)
        elif _fits(part, value, own=own):
            setattr(observer, name, tuple(value) if isinstance(part, tuple) else value)
        else:
            raise DataError(
                f"{kind.__name__}.{name} starts as {_what(part)}, and its state is {_what(value)}"
            )


def _fits(part: object, value: object, *, own: bool) -> bool:
    """Whether a value is of the kind that the attribute starts with."""
    if own:  # onnxq's own attributes keep type and shape; a user's number may become a fraction
        return type(part) is type(value) and _array_type(part) == _array_type(value)
    kinds = (kind for kind in _KINDS if isinstance(part, kind))
    return isinstance(value, next(kinds, object))


def _array_type(value: object) -> object:
    return (value.dtype, value.shape) if isinstance(value, np.ndarray) else None


def _what(value: object) -> str:
    kind = f"a {type(value).__name__}"
    if isinstance(value, np.ndarray):
        return f"{kind} of {value.dtype} and shape {list(value.shape)}"
    return kind


def _is_object(value: object) -> bool:
    return hasattr(value, "__dict__") and not callable(value) and not isinstance(value, dict | list)


def _taken(value: Any, owner: object, name: str) -> Any:  # noqa: ANN401 - any attribute
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        if value.dtype.name not in _DTYPES:
            raise UsageError(f"{type(owner).__name__}.{name}: an array of {value.dtype}")
        if value.nbytes > LARGEST_ARRAY:
            raise UsageError(
                f"{type(owner).__name__}.{name}: an array of {value.nbytes} bytes",
                f"an observer's arrays take {LARGEST_ARRAY} bytes at most",
            )
        return value.copy()  # observers may add to theirs in place
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _taken(item, owner, name) for key, item in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [_taken(item, owner, name) for item in value]
    if _is_object(value):
        return state_of(value)
    raise UsageError(
        f"{type(owner).__name__}.{name} is a {type(value).__name__}, which cannot be saved",
        "an observer's attributes are numbers, strings, lists, NumPy arrays, and dictionaries "
        "whose keys are strings",
    )


def to_json(state: Any) -> Any:  # noqa: ANN401 - any state
    """Turn arrays and numbers that JSON lacks into JSON."""
    if isinstance(state, np.ndarray):
        return {"array": msgspec.to_builtins(_pack(state))}
    if isinstance(state, float) and not math.isfinite(state):
        return {"float": str(state)}
    if isinstance(state, dict):
        plain = {key: to_json(value) for key, value in state.items()}
        return {"dict": plain} if _is_mark(state) else plain
    if isinstance(state, list):
        return [to_json(value) for value in state]
    return state


def _is_mark(value: dict[str, Any]) -> bool:
    return len(value) == 1 and next(iter(value)) in _MARKS


def from_json(value: Any) -> Any:  # noqa: ANN401 - any state
    """The state that ``to_json`` wrote.

    Raises:
        DataError: An array or a number is damaged.
    """
    if isinstance(value, dict) and _is_mark(value):
        ((mark, content),) = value.items()
        try:
            if mark == "array":
                return _unpack(msgspec.convert(content, PackedArray))
            if mark == "float":
                return float(content)
        except (ValueError, TypeError) as error:
            raise DataError(f"{mark} of the state is damaged ({error})") from error
        value = content
        if not isinstance(value, dict):
            raise DataError(f"a dictionary of the state is {_what(value)}")
    if isinstance(value, dict):
        return {key: from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return value


def _pack(array: NDArray[Any]) -> PackedArray:
    stored = array
    if array.dtype.kind in "iu" and array.size:
        stored = array.astype(_smallest(int(array.min()), int(array.max())))
    little = stored.astype(stored.dtype.newbyteorder("<"), copy=False)
    packed = base64.b64encode(zlib.compress(little.tobytes(), 1)).decode()
    return PackedArray(array.dtype.name, stored.dtype.name, array.shape, packed)


def _smallest(low: int, high: int) -> str:
    """The smallest type that holds both."""
    infos = (np.iinfo(name) for name in _INTEGERS)
    return next(str(info.dtype) for info in infos if info.min <= low and high <= info.max)


def _unpack(packed: PackedArray) -> NDArray[Any]:
    try:
        if not {packed.stored, packed.dtype} <= _DTYPES:
            raise ValueError(f"{packed.stored} as {packed.dtype}")
        stored = np.dtype(packed.stored).newbyteorder("<")
        number = math.prod(packed.shape)
        size = stored.itemsize * number
        if max(size, number * np.dtype(packed.dtype).itemsize) > LARGEST_ARRAY:
            raise ValueError(f"{size} bytes, more than {LARGEST_ARRAY}")
        # one byte more than was announced at most, whatever the bytes expand to; its checksum,
        # which zlib compares behind the last byte, tells of damage
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(packed.zlib, validate=True), size + 1)
        if len(data) != size or not inflate.eof:
            raise ValueError(f"{len(data)} bytes of {size}")
        return np.frombuffer(data, stored).reshape(packed.shape).astype(packed.dtype)
    except (ValueError, OverflowError, MemoryError, zlib.error) as error:
        raise DataError(f"an array of the state is damaged ({error})") from error
