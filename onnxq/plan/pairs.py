"""Who reads a tensor through its Q/DQ pair, and who reads the exact values."""

from __future__ import annotations

from onnxq.graph import GraphView, Use
from onnxq.plan.plan import QuantPlan
from onnxq.targets import Pairs, get_target


def pair_serves_all(view: GraphView, plan: QuantPlan, tensor: str) -> bool:
    """Whether every reader of a tensor reads its pair, the graph's output among them.

    So it is where an int8 node makes the tensor, because a second reader of the raw tensor would
    keep that node from fusing, unless the target wants pairs before int8 nodes alone.
    """
    producer = view.producer(tensor)
    around = get_target(plan.target).pairs is Pairs.AROUND
    return around and producer is not None and plan.is_static(producer.name)


def pair_readers(view: GraphView, plan: QuantPlan, tensor: str) -> list[Use]:
    """The uses that read a tensor through its pair; float readers of a float node's do not."""
    uses = view.uses(tensor)
    if pair_serves_all(view, plan, tensor):
        return uses
    return [use for use in uses if plan.is_static(use.node)]
