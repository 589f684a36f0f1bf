"""``StateLoop``: what goes from one run to the next."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import UsageError
from onnxq.runtime import StateLoop
from onnxq.types import TensorSpec

INPUTS = (
    TensorSpec("x", "float32", ("N", 4)),
    TensorSpec("h", "float32", (1, "B", 3)),
    TensorSpec("count", "int64", ()),
)
OUTPUTS = ("y", "h_out", "count_out")
STATE = {"h_out": "h", "count_out": "count"}


def test_a_sequence_starts_with_zeros() -> None:
    feed = StateLoop(STATE, INPUTS, OUTPUTS).complete({"x": np.ones((1, 4), np.float32)})
    assert set(feed) == {"x", "h", "count"}
    assert (feed["h"].shape, feed["h"].dtype, feed["h"].any()) == ((1, 1, 3), np.float32, False)
    assert (feed["count"].shape, feed["count"].dtype, feed["count"]) == ((), np.int64, 0)


def test_it_goes_on_with_what_the_run_left() -> None:
    loop = StateLoop(STATE, INPUTS, OUTPUTS)
    h = np.full((1, 5, 3), 2, np.float32)
    loop.keep({"y": np.zeros(1), "h_out": h, "count_out": np.array(7)})
    feed = loop.complete({})
    assert feed["h"] is h
    assert feed["count"] == 7


def test_a_feed_that_holds_the_state_wins() -> None:
    loop = StateLoop(STATE, INPUTS, OUTPUTS)
    loop.keep({"h_out": np.ones((1, 1, 3)), "count_out": np.array(7)})
    feed = loop.complete({"count": np.array(1)})
    assert feed["count"] == 1
    assert feed["h"].all()


def test_the_feed_is_not_changed() -> None:
    feed = {"x": np.ones((1, 4), np.float32)}
    StateLoop(STATE, INPUTS, OUTPUTS).complete(feed)
    assert list(feed) == ["x"]


def test_restarted_leaves_the_other_alone() -> None:
    loop = StateLoop(STATE, INPUTS, OUTPUTS)
    loop.keep({"h_out": np.ones((1, 1, 3)), "count_out": np.array(7)})
    other = loop.restarted()
    assert other.complete({})["count"] == 0
    other.keep({"h_out": np.ones((1, 1, 3)), "count_out": np.array(9)})
    assert loop.complete({})["count"] == 7


def test_no_states() -> None:
    loop = StateLoop({}, INPUTS, OUTPUTS)
    assert loop.outputs == ()
    loop.keep({"y": np.zeros(1)})
    assert loop.complete({}) == {}


def test_outputs_are_those_that_are_fed_back() -> None:
    assert StateLoop(STATE, INPUTS, OUTPUTS).outputs == ("h_out", "count_out")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"nothing": "h"}, "the model has no output 'nothing'; known: count_out, h_out, y"),
        ({"h_out": "nothing"}, "the model has no input 'nothing'; known: x, h, count"),
        ({"h_out": "h", "y": "h"}, "input 'h' is to get both 'h_out' and 'y'"),
    ],
)
def test_refusals_are_one_line(state, message) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        StateLoop(state, INPUTS, OUTPUTS)
    assert "\n" not in str(caught.value)


def test_a_state_of_unknown_rank_must_be_in_the_first_feed() -> None:
    inputs = (TensorSpec("h", "float32", None),)
    loop = StateLoop({"h_out": "h"}, inputs, ["h_out"])
    with pytest.raises(UsageError, match="not even the rank of input 'h'"):
        loop.complete({})
    h = np.ones((2, 2), np.float32)
    assert loop.complete({"h": h})["h"] is h
    loop.keep({"h_out": 2 * h})
    assert (loop.complete({})["h"] == 2).all()
