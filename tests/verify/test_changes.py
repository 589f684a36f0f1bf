"""What changed between two receipts: graphs, plans, ranges and settings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace

from onnxq.graph import Model
from onnxq.types import TensorRange
from onnxq.verify import Change, GraphFacts, NodeFacts, fingerprint, graph_facts
from onnxq.verify.changes import graph_changes, range_moves

TEXT = """net (float[N,2,8,8] x) => (float[N,2,8,8] y)
<float[2,2,3,3] w = seeded, float[2] b = {0.5, 1.0}>
{ [conv] a = Conv <pads = [1,1,1,1]> (x, w, b) [relu] y = Relu (a) }"""


def changed(build: Callable[[str], Model], before: str, after: str) -> list[Change]:
    old, new = (graph_facts(model, model) for model in (build(before), build(after)))
    return list(graph_changes(old, new))


def test_same_graph(build: Callable[[str], Model]) -> None:
    assert changed(build, TEXT, TEXT) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("Relu (a)", "Tanh (a)", [Change("operator", "relu", "Relu", "Tanh")]),
        ("[relu]", "[clamp]",
         [Change("removed", "relu", "Relu"), Change("added", "clamp", "", "Relu")]),
        ("pads = [1,1,1,1]", "pads = [2,2,0,0]",
         [Change("attribute", "conv pads", "1, 1, 1, 1", "2, 2, 0, 0")]),
        # what an attribute is anyway may be written out
        ("pads = [1,1,1,1]", "pads = [1,1,1,1], group = 1", []),
        ("pads = [1,1,1,1]", 'pads = [1,1,1,1], auto_pad = "NOTSET"', []),
        ("net (float[N,", "net (float[M,",
         [Change("input", "x", "float32[N,2,8,8]", "float32[M,2,8,8]"),
          Change("shape", "conv", "float32[N,2,8,8]", "float32[M,2,8,8]")]),
    ],
)  # fmt: skip
def test_one_change(build: Callable[[str], Model], old: str, new: str, told: list[Change]) -> None:
    assert old in TEXT
    assert changed(build, TEXT, TEXT.replace(old, new)) == told


def test_weights_are_told_by_the_nodes_that_read_them(build: Callable[[str], Model]) -> None:
    (found,) = changed(build, TEXT, TEXT.replace("{0.5, 1.0}", "{0.5, 1.5}"))
    assert (found.kind, found.where) == ("weights", "conv")
    assert found.before != found.after


def test_opset_and_producer(build: Callable[[str], Model]) -> None:
    model = build(TEXT)
    facts = graph_facts(model, model)
    newer = replace(facts, opset=18, producer="pytorch 3.0")
    assert graph_changes(facts, newer) == (
        Change("opset", "", "17", "18"), Change("producer", "", "", "pytorch 3.0"),
    )  # fmt: skip


def test_shape_and_long_attributes() -> None:
    """Attributes too long for a line are told apart by their digests."""
    old = NodeFacts("n", "Resize", {"scales": "#1"}, ("float32[1,8]",))
    facts = graph_facts_of(old)
    new = graph_facts_of(replace(old, attributes={"scales": "#2"}, shapes=("float32[1,9]",)))
    assert graph_changes(facts, new) == (
        Change("attribute", "n scales", "#1", "#2"),
        Change("shape", "n", "float32[1,8]", "float32[1,9]"),
    )


def graph_facts_of(*nodes: NodeFacts) -> GraphFacts:
    return GraphFacts(17, "", {}, {}, nodes)


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ((0, 2), (0, 3), 0.5),  # half of its width wider
        ((-1, 1), (-0.5, 1), 0.25),
        ((0, 1), (0, 255), 254),
        ((-1, 1), (0, 2), 0.5),  # the same width elsewhere
        ((0, 0), (0, 4), 1),  # of the new width, where there was none
    ],
)
def test_range_moves(old: tuple[float, float], new: tuple[float, float], change: float) -> None:
    before, after = ({"t": TensorRange(*ends, *ends)} for ends in (old, new))
    (move,) = range_moves(before, after)
    assert move.change == pytest.approx(change, rel=1e-12)  # quotients of small whole numbers
    assert (move.before, move.after) == (old, new)


def test_most_moved_comes_first_and_what_stays_is_not_told() -> None:
    still, some, far = TensorRange(0, 1, 0, 1), TensorRange(0, 2, 0, 2), TensorRange(0, 9, 0, 9)
    before = {"a": still, "b": still, "c": still, "gone": still}
    moves = range_moves(before, {"a": still, "b": some, "c": far, "new": far})
    assert [move.tensor for move in moves] == ["c", "b"]


def test_strings_have_a_digest_too(build: Callable[[str], Model]) -> None:
    """Of an array of strings, not of where it lies in memory."""
    text = "net (int64[N] x) => (string[N] y) <string[2] s = {{{}}}> {{ [g] y = Gather (s, x) }}"
    first, same, other = ('"a", "b"', '"a", "b"', '"a", "c"')
    assert changed(build, text.format(first), text.format(same)) == []
    assert len(changed(build, text.format(first), text.format(other))) == 1


def test_digest_is_of_type_shape_and_values(build: Callable[[str], Model]) -> None:
    assert np.float32(1).tobytes() == np.int32(0x3F800000).tobytes()
    text = "net ({0}[1] x) => ({0}[1] y) <{0}[1] c = {{{1}}}> {{ [n] y = Add (x, c) }}"
    old, new = text.format("float", "1.0"), text.format("int32", str(0x3F800000))
    assert ("weights", "n") in {(c.kind, c.where) for c in changed(build, old, new)}


def test_a_shared_constant_is_digested_once(
    build: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(values: np.ndarray) -> bytes:
        read.append(values.size)
        return values.tobytes()

    monkeypatch.setattr(fingerprint, "_bytes", counted)
    model = build("""net (float[N,2] x) => (float[N,2] y) <float[2] c = {1.0, 2.0}, float o = {3.0}>
    { [one] a = Add (x, c) [two] b = Add (a, c) [three] d = Add (b, c) [four] y = Add (d, o) }""")
    nodes = graph_facts(model, model).nodes
    assert sorted(read) == [1, 2]
    one, two, three, four = (node.weights for node in nodes)
    assert one == two == three != four
