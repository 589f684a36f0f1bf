"""Facts about a model that a receipt keeps."""

import weakref

import numpy as np

from onnxq.graph import GraphView
from onnxq.verify.fingerprint import graph_facts


def test_constants_are_looked_at_one_after_another(build, monkeypatch) -> None:
    """What is mapped stays in memory as long as its array lives: no more than two at a time."""
    text = "".join(f"x{i + 1} = Add (x{i}, w{i}) " for i in range(8))
    given = ", ".join(f"float[4] w{i} = seeded" for i in range(8))
    model = build(f"g (float[1,4] x0) => (float[1,4] x8) <{given}> {{ {text} }}")
    constant, alive, most = GraphView.constant, weakref.WeakSet(), []

    class Watched(np.ndarray):
        __hash__ = object.__hash__

    def watched(view: GraphView, name: str):
        array = constant(view, name).copy().view(Watched) if view.is_constant(name) else None
        if array is not None:
            alive.add(array)
            most.append(len(alive))
        return array

    monkeypatch.setattr(GraphView, "constant", watched)
    facts = graph_facts(model, model)
    assert len({node.weights for node in facts.nodes}) == len(most) == 8
    assert max(most) <= 2
