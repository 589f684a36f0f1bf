"""Where a graph can be cut in two, and what flows over a cut."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnxq.graph import GraphView, Model, extract


@dataclass(frozen=True)
class Steps:
    """The nodes of a graph as a sequence of steps; some nodes are one step together.

    Attributes:
        place: Step of every node.
        count: How many steps there are.
    """

    place: Mapping[str, int]
    count: int

    @classmethod
    def of(cls, view: GraphView, followers: Mapping[str, str]) -> Steps:
        """Steps in the graph's order.

        Args:
            view: The graph, its nodes sorted.
            followers: Nodes that belong to the step of an earlier one, which alone they read.
        """
        place: dict[str, int] = {}
        count = 0
        for node in view.nodes:
            leader = followers.get(node.name)
            place[node.name] = place[leader] if leader is not None else count
            count += leader is None
        return cls(place, count)

    def around(self, nodes: Collection[str]) -> tuple[int, int]:
        """The first step with one of these nodes, and the first one behind them all."""
        found = [self.place[name] for name in nodes]
        return min(found), max(found) + 1


class Cuts:
    """The tensors that flow over the cut before each step.

    Cut 0 is crossed by the inputs. An output that is made before a cut crosses it as well.

    Args:
        model: The model.
        steps: Its nodes as steps.
        outputs: The outputs that count.
    """

    def __init__(self, model: Model, steps: Steps, outputs: Iterable[str]) -> None:
        self._model, self.steps = model, steps
        view = model.view()
        self._made = {t: steps.place[n.name] for n in view.nodes for t in n.outputs if t}
        self._made |= {spec.name: -1 for spec in view.inputs}
        self._last = dict.fromkeys(self._made, -1)
        self._read: list[dict[str, None]] = [{} for _ in range(steps.count)]
        for node in view.nodes:
            step = steps.place[node.name]
            for tensor in (*node.inputs, *node.captures):
                if tensor in self._made:
                    self._last[tensor] = max(self._last[tensor], step)
                    self._read[step][tensor] = None
        for tensor in outputs:
            if tensor in self._made:
                self._last[tensor] = steps.count

    def crossing(self, cut: int) -> tuple[str, ...]:
        """The tensors that are made before a cut and needed behind it."""
        return tuple(t for t, made in self._made.items() if made < cut <= self._last[t])

    def stops(self, wanted: Iterable[int], sizes: Mapping[str, int], budget: int) -> list[int]:
        """Cut 0, and those of some others that can be kept, in order.

        Args:
            wanted: The cuts.
            sizes: Bytes of each tensor that can be kept.
            budget: The most bytes that may be kept.
        """
        found = [0]
        for cut in sorted({*wanted} - {0}):
            crossing = self.crossing(cut)
            known = all(tensor in sizes for tensor in crossing)
            if known and sum(sizes[tensor] for tensor in crossing) <= budget:
                found.append(cut)
        return found

    def between(self, start: int, stop: int) -> Model | None:
        """The part between two cuts: from what crosses one to what it adds to the other.

        Returns:
            None when it adds nothing.
        """
        made = self._made
        outputs = [t for t in self.crossing(stop) if made[t] >= start]
        if not outputs:
            return None
        read = dict.fromkeys(t for step in self._read[start:stop] for t in step if made[t] < start)
        return extract(self._model, list(read), outputs)


def fitting(cut: int, stops: Sequence[int]) -> int:
    """The last of some cuts that is not behind a given one."""
    return max(stop for stop in stops if stop <= cut)
