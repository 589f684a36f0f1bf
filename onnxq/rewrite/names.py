"""Names for what is added to a graph."""

from __future__ import annotations

from onnxq.graph import GraphView
from onnxq.types import QType


def zero_point_name(qtype: QType, value: int, count: int | None) -> str:
    """Of all zero points of one value and type: ``u8_128``, or ``i8_0_x64`` for 64 channels."""
    name = f"{qtype.value[0]}{qtype.bits}_{value}"
    return name if count is None else f"{name}_x{count}"


class Names:
    """Gives out names that a graph does not have yet, made of parts: ``x_q`` of ``x`` and ``q``.

    Where a name is taken already, underscores follow.
    """

    def __init__(self, view: GraphView) -> None:
        self._taken = set(view.names)
        self._given: dict[tuple[str, ...], str] = {}

    def new(self, *parts: str) -> str:
        """A name that nothing else has, whoever asks again."""
        name = "_".join(parts)
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def of(self, *parts: str) -> str:
        """The name of one thing: the same one whenever it is asked for."""
        if parts not in self._given:
            self._given[parts] = self.new(*parts)
        return self._given[parts]
