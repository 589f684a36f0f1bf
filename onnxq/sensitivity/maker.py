"""``Maker``: makes models of plans, for a search to try."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import msgspec
from msgspec.structs import replace as with_fields

from onnxq.graph import GraphView, Model
from onnxq.plan import Choice, Choices, QuantPlan, make_plan, pinned
from onnxq.rewrite import rewrite
from onnxq.sensitivity.plans import Subject
from onnxq.types import Form, Precision


@dataclass(frozen=True)
class Maker:
    """A prepared float model, and all that plans for it are made of.

    Attributes:
        model: The model.
        subject: Its graph, what its nodes are, and what the user wants of them.
    """

    model: Model
    subject: Subject

    @property
    def view(self) -> GraphView:
        """The graph of the float model."""
        return self.subject.view

    @cached_property
    def pins(self) -> frozenset[str]:
        """Nodes whose precision the recipe says: a search never changes it."""
        return pinned(self.subject.census, self.subject.recipe)

    def whole(self, precision: Precision) -> QuantPlan:
        """The plan in which every node has a precision that can."""
        nodes = self.subject.census.nodes
        return self._plan({node.name: Choice(precision) for node in nodes})

    def plan(self, choices: Choices) -> QuantPlan:
        """The plan in which nodes have the precisions that were chosen, and all others float."""
        nodes = self.subject.census.nodes
        able = (node.name for node in nodes if node.quantizable or node.stored)
        return self._plan({name: Choice(Precision.FLOAT) for name in able} | dict(choices))

    def _plan(self, choices: Choices) -> QuantPlan:
        subject, ranges = self.subject, dict(self.subject.ranges)
        free = {name: choice for name, choice in choices.items() if name not in self.pins}
        recipe = with_fields(subject.recipe, precision=subject.recipe.usual.value)
        return make_plan(self.view, subject.census, ranges, recipe, subject.target, free)

    def build(self, plan: QuantPlan) -> Model:
        """The model that a plan makes."""
        if plan.empty:
            return self.model
        return rewrite(self.model, plan, Form(self.subject.recipe.format))


def chosen(precisions: Mapping[str, Precision]) -> dict[str, Choice]:
    """Plain precisions as choices."""
    return {name: Choice(precision) for name, precision in precisions.items()}


def key_of(plan: QuantPlan) -> str:
    """What tells plans apart that make different models: all but their reasons."""
    plain = [(node.name, node.precision) for node in plan.nodes]
    said = msgspec.json.encode((plain, plan.tensors, plan.groups, plan.blocks), order="sorted")
    return hashlib.sha256(said).hexdigest()[:16]
