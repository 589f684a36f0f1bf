"""States as plain values: nothing is lost on the way, and damage is told."""

from __future__ import annotations

import base64
import json
import math
import tracemalloc
import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.calibrate import OBSERVERS, MinMaxObserver, Stratum, Tap
from onnxq.calibrate.state import from_json, restore, state_of, to_json
from onnxq.errors import DataError, UsageError


class Part:
    def __init__(self) -> None:
        self.level = 3


class Mine:
    """An observer of a user's, with every kind of attribute."""

    def __init__(self) -> None:
        self.number, self.share, self.name, self.on = 0, 0.0, "a", False
        self.values = np.zeros(0)
        self.single = np.float32(0)
        self.pair = (0.0, 1)
        self.items: list = []
        self.table: dict = {}
        self.part = Part()
        self.later = None


def full() -> Mine:
    mine = Mine()
    mine.number, mine.share, mine.name, mine.on = 2**70, -math.inf, "ü\n", True
    mine.values = np.arange(6, dtype=np.int64).reshape(2, 3) - 300
    mine.single = np.float32(0.1)
    mine.pair = (2.5, 7)
    mine.items = [1, [2.5, {"a": np.array([True, False])}]]
    mine.table = {"b": {"float": "x"}, "a": {"array": [1]}, "c": {"dict": {"dict": 1}}}
    mine.part.level = 9
    mine.later = [math.nan]
    return mine


def same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and one == other


def through_json(state):
    return from_json(msgspec.json.decode(msgspec.json.encode(to_json(state))))


def test_every_kind_of_attribute_comes_back() -> None:
    state = state_of(full())
    again = Mine()
    restore(again, through_json(state))
    assert same(state_of(again), state)
    assert isinstance(again.pair, tuple)
    assert isinstance(again.part, Part)
    assert again.part.level == 9


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
DTYPES = [
    *("bool", "float16", "float32", "float64"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
]


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        LEAVES,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["array", "float", "dict", "a"]), inner, max_size=3)
        ),
        max_leaves=12,
    )
)
def test_any_plain_state_comes_back(value) -> None:
    assert same(through_json(value), value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (7,), (2, 3, 4)])
def test_any_array_comes_back(dtype, shape) -> None:
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    low, high = (info.min, info.max) if info else (0, 1)
    values = np.resize(np.array([low, high, 0, 1], dtype), shape)
    big_endian = values.astype(values.dtype.newbyteorder(">"))
    for array in (values, big_endian, values.T):
        again = through_json(array)
        assert again.dtype == values.dtype
        assert again.shape == array.shape
        np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_states_of_observers_come_back(observer) -> None:
    values = np.random.RandomState(0).standard_normal((20, 9)).astype(np.float32)
    one, other = OBSERVERS[observer](), OBSERVERS[observer]()
    lows, highs = values.min(axis=1), values.max(axis=1)
    one.observe(Tap("data", 3, lows, highs, (Stratum(values.ravel(), 2),)))
    restore(other, through_json(state_of(one)))
    assert same(state_of(other), state_of(one))


def test_a_state_is_a_copy() -> None:
    mine = full()
    state = state_of(mine)
    mine.values += 1
    mine.items.append(3)
    assert same(state, state_of(full()))


@pytest.mark.parametrize(
    "value",
    [{1, 2}, object(), {1: 2}, {"a": {2: 3}}, np.array(["a"]), np.array([None]), 1j, len, b"x",
     np.zeros(1, np.complex64), [np.zeros(1, "M8[s]")]],
)  # fmt: skip
def test_what_cannot_be_saved(value) -> None:
    mine = Mine()
    mine.later = value
    with pytest.raises(UsageError, match=r"^Mine\.later") as caught:
        state_of(mine)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("number", "3"), ("number", None), ("number", [1]), ("share", "x"), ("name", 3), ("on", 1),
     ("values", [1.0]), ("values", 3), ("items", {}), ("items", 3), ("table", []), ("part", 3),
     ("part", {"level": 3, "more": 1}), ("part", []), ("part", {"level": "x"}), ("pair", 3),
     ("single", "x")],
)  # fmt: skip
def test_a_state_of_another_type_is_refused(name, value) -> None:
    state = state_of(full())
    state[name] = value
    with pytest.raises(DataError) as caught:
        restore(Mine(), state)
    assert "\n" not in str(caught.value)


def test_a_users_number_may_become_a_fraction_and_an_array_may_grow() -> None:
    mine = Mine()
    state = state_of(mine) | {"number": 2.5, "single": 0.5, "values": np.zeros((2, 2), np.int8)}
    restore(mine, state)
    assert (mine.number, mine.values.shape) == (2.5, (2, 2))


@pytest.mark.parametrize("state", [{}, {"min": 0.0}, [], ["min", "max"], 3, None, "min"])
def test_a_state_of_another_class_is_refused(state) -> None:
    with pytest.raises(DataError, match="does not fit MinMaxObserver"):
        restore(MinMaxObserver(), state)


@pytest.mark.parametrize(
    ("name", "value"),
    [("counts", np.zeros((2, 5), np.int64)), ("counts", np.zeros((2, 16384))), ("top", 1.5),
     ("zeros", True)],
)  # fmt: skip
def test_onnxqs_own_attributes_keep_type_and_shape(name, value) -> None:
    observer = OBSERVERS["mse"]()
    state = state_of(observer)
    state["histogram"][name] = value
    with pytest.raises(DataError, match=f"Histogram.{name}"):
        restore(observer, state)


def packed(**changes) -> dict:
    return to_json(np.arange(100))["array"] | changes


def zipped(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


GOOD = packed()["zlib"]
WRONG_CHECKSUM = base64.b64encode(base64.b64decode(GOOD)[:-1] + b"!").decode()
CUT_CHECKSUM = base64.b64encode(base64.b64decode(GOOD)[:-2]).decode()


@pytest.mark.parametrize(
    "array",
    [
        3,
        {},
        packed(more=1),
        packed(dtype="object"),
        packed(dtype="U1000000"),
        packed(dtype="1,,"),
        packed(dtype="float128"),
        packed(stored="V1000000000"),
        packed(stored="f8,f8"),
        packed(stored="int64"),
        packed(shape=[99]),
        packed(shape=[101]),
        packed(shape=[-10, -10]),
        packed(shape=[-1]),
        packed(shape=[-1, -100]),
        packed(shape=[0, -1]),
        packed(shape=[0]),
        packed(shape=[10**30]),
        packed(shape=[2**62]),
        packed(shape=[1.5]),
        packed(shape=None),
        packed(zlib=""),
        packed(zlib="%%%"),
        packed(zlib="ü"),
        packed(zlib=GOOD[:-8]),
        packed(zlib=zipped(b"")),
        packed(zlib=WRONG_CHECKSUM),
        packed(zlib=CUT_CHECKSUM),
    ],
)
def test_damaged_arrays(array) -> None:
    with pytest.raises(DataError) as caught:
        from_json({"array": array})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [[0], [10], [3, 0]])
def test_an_array_does_not_expand_beyond_its_shape(shape) -> None:
    bomb = packed(shape=shape, zlib=zipped(bytes(50_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            from_json({"array": bomb})
        assert tracemalloc.get_traced_memory()[1] < 1_000_000  # several times those of JSON
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [{"float": "x"}, {"float": None}, {"float": {}}, {"dict": 3}])
def test_damaged_numbers_and_dictionaries(value) -> None:
    with pytest.raises(DataError):
        from_json(value)


def test_integers_take_the_smallest_type() -> None:
    assert to_json(np.array([0, 255]))["array"]["stored"] == "uint8"
    assert to_json(np.array([-1, 255]))["array"]["stored"] == "int16"
    assert to_json(np.zeros(10**6, np.int64))["array"]["shape"] == (10**6,)
    assert len(json.dumps(to_json(np.zeros(10**6, np.int64)))) < 10_000


def test_an_array_does_not_take_all_memory() -> None:
    """Five megabytes of a file could expand to four gigabytes."""
    packed = base64.b64encode(zlib.compress(bytes(2**20))).decode()
    for stored, dtype, shape in (("uint8", "uint8", 2**27 + 1), ("uint8", "int64", 2**24 + 1)):
        array = {"dtype": dtype, "stored": stored, "shape": [shape], "zlib": packed}
        with pytest.raises(DataError, match="more than 134217728"):
            from_json({"array": array})
    with pytest.raises(UsageError, match=r"Wide\.counts: an array of 134217729 bytes"):
        state_of(type("Wide", (), {"__init__": lambda self: setattr(
            self, "counts", np.zeros(2**27 + 1, np.uint8))})())  # fmt: skip
