"""What every node costs in time: ONNX Runtime's profiler, told by the nodes of the source graph."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from onnxq.graph import GraphView, Model, NodeView, load
from onnxq.runtime.latency import WARMED_SPAN
from onnxq.runtime.session import Session
from onnxq.types import Feed

# Rounds in which every model runs: twice, and the second run counts, where caches matter.
LEAST_ROUNDS, MOST_ROUNDS, WARM_UP = 5, 60, 2
_PAIR = ("QuantizeLinear", "DequantizeLinear")
# Kernels that only change the type or the layout of their input.
_CONVERSIONS = (*_PAIR, "ReorderInput", "ReorderOutput", "Cast")
# Operators with a graph inside, whose kernels have times of their own.
_BODIES = ("If", "Loop", "Scan")
# What ONNX Runtime and its quantizer add to names of nodes and tensors.
_ADDED = re.compile(
    r"^fused |(_token_\d+|_nchwc|_nhwc|/\w+Fusion/?|_pre_q|_q_to_dq|_(de)?quantized|_quant)$"
)
_KERNEL = "_kernel_time"


class Profile(msgspec.Struct, frozen=True):
    """Microseconds that one run of a model spends, by the nodes of its source graph.

    A kernel that several nodes were fused into counts for the one that it is named after: a
    Conv with its Relu for the Conv.

    Attributes:
        nodes: By node of the source graph; nodes without a kernel of their own are missing.
        conversions: In kernels that only change types or layouts, all together.
        kernels: Names of the kernels that each of ``nodes`` became.
    """

    nodes: dict[str, float]
    conversions: float
    kernels: dict[str, str]

    @property
    def total(self) -> float:
        """All kernels together."""
        return sum(self.nodes.values()) + self.conversions


def profile_models(
    models: Sequence[Model],
    source: GraphView,
    feed: Feed,
    *,
    threads: int = 1,
    seconds: float = 1.0,
) -> list[Profile]:
    """Profile forms of one model, interleaved, so that what disturbs the machine disturbs all.

    Args:
        models: Forms of one model: prepared, quantized in one way or another.
        source: The graph whose nodes the times are told by.
        feed: What all of them are fed.
        threads: Threads inside an operator.
        seconds: About how long to measure all of them.

    Returns:
        One profile per model: medians over the rounds.

    Raises:
        RuntimeFailure: A model cannot be loaded, or fails on the feed.
    """
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        runs = [_Run(model, Path(folder) / str(i), threads) for i, model in enumerate(models)]
        for run in runs:
            run.warm_up(feed)
        started = time.perf_counter()
        for done in range(MOST_ROUNDS):
            spent = time.perf_counter() - started
            if done >= LEAST_ROUNDS and spent > seconds:
                break
            for run in runs if done % 2 else reversed(runs):
                run.take_turn(feed)
        return [run.profile(source) for run in runs]


class _Run:
    """One model under the profiler."""

    def __init__(self, model: Model, folder: Path, threads: int) -> None:
        folder.mkdir()
        written = folder / "optimized.onnx"
        self._session = Session(
            model, threads=threads, write_optimized=written, profile=folder / "p"
        )
        self._view, self._written = model.view(), load(written).view()
        self._turn = 1

    def warm_up(self, feed: Feed) -> None:
        """Run, and see whether a turn takes two runs, of which the first fills the caches."""
        for _ in range(WARM_UP):
            started = time.perf_counter()
            self._session.run(feed)
        self._turn = 2 if time.perf_counter() - started < WARMED_SPAN else 1

    def take_turn(self, feed: Feed) -> None:
        """Run, the last time counts."""
        for _ in range(self._turn):
            self._session.run(feed)

    def profile(self, source: GraphView) -> Profile:
        """The medians of what was run so far."""
        times = _kernel_times(self._session.end_profiling(), self._turn)
        spent: defaultdict[str, float] = defaultdict(float)
        kernels: dict[str, str] = {}
        conversions = 0.0
        names = _Names(source, self._view)
        for kernel in self._written.nodes:
            if kernel.name not in times:
                continue
            own = names.source(kernel)
            node = own or self._reader(kernel, names)
            if node is None:
                conversions += times[kernel.name]
                continue
            spent[node] += times[kernel.name]
            if own is not None:
                kernels.setdefault(own, kernel.op)
        return Profile(dict(spent), conversions, kernels)

    def _reader(self, kernel: NodeView, names: _Names) -> str | None:
        """The node that a kernel quantizes for while the model runs."""
        if kernel.op != "DynamicQuantizeLinear":
            return None
        uses = self._written.uses(kernel.outputs[0])
        readers = [self._written.by_name[use.node] for use in uses]
        return next((found for reader in readers if (found := names.source(reader))), None)


def _kernel_times(file: Path, turn: int) -> dict[str, float]:
    """Median microseconds by kernel of the main graph, over the last run of every turn."""
    events = [
        event
        for event in json.loads(file.read_text(encoding="utf-8"))
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL)
    ]
    found: defaultdict[str, list[float]] = defaultdict(list)
    end = 0
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        if event["ts"] < end:  # in a body, where names of the main graph may come again
            continue
        found[event["name"].removesuffix(_KERNEL)].append(float(event["dur"]))
        if event["args"]["op_name"] in _BODIES:
            end = event["ts"] + event["dur"]
    return {
        name: float(np.median(times[WARM_UP + turn - 1 :: turn] or times))
        for name, times in found.items()
    }


class _Names:
    """Finds the node of the source graph that a kernel was made from.

    Args:
        source: The graph.
        model: A form of it, whose nodes have the names of the source's; the pairs behind them have
            names of their own.
    """

    def __init__(self, source: GraphView, model: GraphView) -> None:
        self._source = source
        made = {tensor: node for node in source.nodes for tensor in node.outputs if tensor}
        for node in model.nodes:
            behind = made.get(node.inputs[0]) if node.op in _PAIR else None
            found = source.by_name.get(node.name, behind)
            if found is not None:
                for tensor in filter(None, node.outputs):
                    made.setdefault(tensor, found)
        self._known = made | source.by_name

    def source(self, kernel: NodeView) -> str | None:
        """Name of that node; None for a kernel that only converts."""
        if kernel.op in _CONVERSIONS and kernel.name not in self._source.by_name:
            return None
        for name in (kernel.name, *kernel.outputs):
            found = self._found(name)
            if found is not None:
                return self._anchor(found, kernel.op).name
        return None

    def _found(self, name: str) -> NodeView | None:
        while name not in self._known and (plain := _ADDED.sub("", name, count=1)) != name:
            name = plain
        return self._known.get(name)

    def _anchor(self, node: NodeView, kernel: str) -> NodeView:
        """The node that gave a fused kernel its operator: of Conv and Relu the Conv."""
        found = node
        while found.op not in kernel:
            before = self._source.producer(found.inputs[0]) if found.inputs else None
            if before is None or len(self._source.uses(found.inputs[0])) != 1:
                return node
            found = before
        return found
