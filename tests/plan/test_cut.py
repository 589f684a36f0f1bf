"""The minimum cut, held against every assignment there is."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.graph import from_text
from onnxq.ops import classify
from onnxq.plan import Costs, cheapest
from onnxq.targets import get_target

# Two branches that meet, a clamp, a tensor that two nodes read, one float operator in the middle.
MODEL = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[1,4,4,4] x) => (float[1,4,4,4] y, float[1,4,4,4] z)
<float[4,4,1,1] w = {WEIGHTS}> {
  [a] a = Conv (x, w)
  [r] r = Relu (a)
  [b] b = Conv (r, w)
  [t] t = Tanh (b)
  [c] c = Conv (r, w)
  [s] s = Add (b, c)
  [d] z = Conv (s, w)
  [e] y = Conv (t, w)
}
""".replace("WEIGHTS", ",".join(["0.5"] * 16))
ABLE = ("a", "r", "b", "c", "s", "d", "e")
TENSORS = ("x", "a", "r", "b", "t", "c", "s", "z", "y")

prices = st.integers(0, 50)


@pytest.fixture(scope="module")
def graph():
    model = from_text(MODEL)
    return model.view(), classify(model.view(), get_target("cpu-x86"))


def subsets(names):
    return chain.from_iterable(combinations(names, n) for n in range(len(names) + 1))


def price(integers, floating, integer, cross):
    """The cost of one assignment, counted edge by edge from the text of the model."""
    readers = {"x": "a", "a": "r", "r": "bc", "b": "ts", "t": "e", "c": "s", "s": "d"}
    makers = dict(zip("arbtcsde", "arbtcszy", strict=True))
    makers = {tensor: node for node, tensor in makers.items()}
    total = sum(integer[n] if n in integers else floating[n] for n in "arbtcsde")
    for tensor in TENSORS:
        made = makers.get(tensor) in integers
        read = [reader in integers for reader in readers.get(tensor, "")]
        if tensor in "yz":
            read.append(False)  # who reads an output reads floats
        total += cross[tensor] * ((made and not all(read)) + (not made and any(read)))
    return total


@given(
    st.lists(prices, min_size=8, max_size=8),
    st.lists(prices, min_size=8, max_size=8),
    st.lists(prices, min_size=9, max_size=9),
)
@settings(max_examples=60, deadline=None)
def test_no_assignment_is_cheaper(graph, floating, integer, crossing):
    view, census = graph
    floats = dict(zip("arbtcsde", map(float, floating), strict=True))
    ints = dict(zip("arbtcsde", map(float, integer), strict=True))
    cross = dict(zip(TENSORS, map(float, crossing), strict=True))
    able = {n: ints[n] for n in ABLE}
    costs = Costs(floats, able, cross, cross)

    found = cheapest(view, census, costs)

    together = [set(c) for c in subsets(ABLE) if ("a" in c) == ("r" in c)]  # the clamp vanishes
    best = min(price(c, floats, ints, cross) for c in together)
    assert price(found, floats, ints, cross) == pytest.approx(best, abs=1e-2)  # 1/1000 us a node
    assert costs.of(view, found) == pytest.approx(price(found, floats, ints, cross))


def test_free_crossings_give_every_node_its_own_best(graph):
    view, census = graph
    fast = {"a": 1.0, "r": 0.0, "b": 9.0, "c": 1.0, "s": 9.0, "d": 1.0, "e": 9.0}
    costs = Costs(dict.fromkeys(fast, 5.0), fast)
    assert cheapest(view, census, costs) == {"a", "r", "c", "d"}


def test_dear_crossings_leave_all_on_one_side(graph):
    view, census = graph
    fast = dict.fromkeys(ABLE, 1.0)
    cross = dict.fromkeys(TENSORS, 1000.0)
    costs = Costs(dict.fromkeys(ABLE, 5.0), fast, cross, cross)
    assert cheapest(view, census, costs) == frozenset()


def test_nodes_may_be_called_as_the_sides_are():
    """The node "float" is the cheaper one on integers, and "integer" in float."""
    model = from_text(MODEL.replace("[c]", "[float]").replace("[b]", "[integer]"))
    view = model.view()
    census = classify(view, get_target("cpu-x86"))
    able = {"a": 9.0, "r": 9.0, "float": 1.0, "integer": 9.0, "s": 9.0, "d": 9.0, "e": 9.0}
    costs = Costs(dict.fromkeys(able, 5.0), able)
    assert cheapest(view, census, costs) == {"float"}


def test_thousands_of_nodes_are_cut_in_seconds():
    """A chain of 2,000 layers of random costs; what counts is that it ends."""
    nodes = " ".join(f"[n{i}] t{i + 1} = Conv (t{i}, w)" for i in range(2000))
    text = (
        '<ir_version: 10, opset_import: ["" : 17]> g (float[1,1,4,4] t0) => (float[1,1,4,4] t2000) '
        f"<float[1,1,1,1] w = {{1}}> {{ {nodes} }}"
    )
    view = from_text(text).view()
    census = classify(view, get_target("cpu-x86"))
    rng = np.random.default_rng(0)
    names = [node.name for node in view.nodes]
    integer, floating = (dict(zip(names, rng.uniform(0, 9, 2000), strict=True)) for _ in range(2))
    cross = {f"t{i}": 1.0 for i in range(2001)}
    costs = Costs(floating, integer, cross, cross)
    found = cheapest(view, census, costs)
    # a chain has an optimum that a pass from left to right finds: the independent oracle
    best = [0.0, 1.0]  # the graph's input is float
    for name in names:
        on_float = min(best[0], best[1] + 1.0) + floating[name]
        on_integers = min(best[1], best[0] + 1.0) + integer[name]
        best = [on_float, on_integers]
    assert costs.of(view, found) == pytest.approx(min(best[0], best[1] + 1.0), abs=2.0)
