"""Taps: reduce tensors to their ends and a bounded sample inside the graph, while it runs.

Copying every activation out of the session costs several times an inference; two numbers and a
strided sample cost little (docs/architecture.md, "Cost of calibration").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import Editor, GraphView, Model
from onnxq.runtime.session import Session
from onnxq.types import Feed

# Values per sample and tensor: what a percentile of 99.99 needs after some ten images.
SAMPLE_SIZE = 4096
_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class TapReading:
    """What one run tells of one tensor: its ends, and some of its values (none if not asked)."""

    tensor: str
    min: float
    max: float
    values: NDArray[np.float32]


class TappedSession:
    """A session that returns readings of inner tensors instead of the model's outputs.

    Args:
        model: The model.
        tensors: Names of the float32 tensors to tap.
        sample: Whether readings hold a sample of the values.
        threads: Threads inside an operator.

    Raises:
        RuntimeFailure: ONNX Runtime refuses the instrumented model.
    """

    def __init__(
        self, model: Model, tensors: Sequence[str], *, sample: bool, threads: int = 1
    ) -> None:
        self._tensors, self._sample = tuple(tensors), sample
        editor = Editor(model)
        rows = _row_axes(model.view())
        for tensor in tensors:
            _add_ends(editor, tensor)
            if sample:
                _add_sample(editor, model.view(), tensor, rows)
        # Higher levels change layouts, which puts all readings behind the last layer; and some of
        # their fusions (Gelu, in 1.31) lose an inner tensor that is also read elsewhere.
        self._session = Session(editor.finish(), threads=threads, level="basic", frugal=True)

    def read(self, feed: Feed) -> Iterator[TapReading]:
        """Run once, and tell what every tapped tensor held.

        Raises:
            RuntimeFailure: ONNX Runtime failed on this feed.
        """
        kinds = ("min", "max", "sample") if self._sample else ("min", "max")
        names = [f"{tensor}/{kind}" for tensor in self._tensors for kind in kinds]
        values = self._session.run(feed, names)
        none = np.empty(0, np.float32)
        for tensor in self._tensors:
            yield TapReading(
                tensor,
                float(values[f"{tensor}/min"]),
                float(values[f"{tensor}/max"]),
                values[f"{tensor}/sample"].ravel().astype(np.float32) if self._sample else none,
            )


def _add_ends(editor: Editor, tensor: str) -> None:
    for op, kind in (("ReduceMin", "min"), ("ReduceMax", "max")):
        name = f"{tensor}/{kind}"
        editor.add_node(op, [tensor], [name], name=name, attrs={"keepdims": 0})
        editor.add_output(name)


def _row_axes(view: GraphView) -> set[int | str]:
    """First axes of the inputs: a tensor that starts with one holds one sample per row."""
    return {spec.shape[0] for spec in view.inputs if spec.shape and spec.shape[0] is not None}


def _add_sample(editor: Editor, view: GraphView, tensor: str, rows: set[int | str]) -> None:
    """Every k-th value of each sample, so that the cut into batches does not matter.

    A tensor whose first axis is not the batch is sampled as a whole.
    """
    shape = view.shape(tensor)
    by_row = bool(shape) and len(shape or ()) > 1 and (shape or (None,))[0] in rows
    flat, step = f"{tensor}/flat", f"{tensor}/step"
    target = editor.add_constant(
        "onnxq/rows" if by_row else "onnxq/whole", np.array([0, -1] if by_row else [1, -1])
    )
    editor.add_node("Reshape", [tensor, target], [flat], name=flat)
    # step = max(1, columns / SAMPLE_SIZE), computed in the graph: shapes may vary from run to run
    one = editor.add_constant("onnxq/one", np.array([1]))
    size = editor.add_constant("onnxq/sample_size", np.array([SAMPLE_SIZE]))
    end = editor.add_constant("onnxq/end", np.array([_END]))
    zero = editor.add_constant("onnxq/zero", np.array([0]))
    editor.add_node("Shape", [flat], [f"{flat}/shape"], name=f"{flat}/shape")
    editor.add_node("Gather", [f"{flat}/shape", one], [f"{flat}/columns"], name=f"{flat}/columns")
    editor.add_node("Div", [f"{flat}/columns", size], [f"{step}/div"], name=f"{step}/div")
    editor.add_node("Max", [f"{step}/div", one], [step], name=step)
    editor.add_node(
        "Slice", [flat, zero, end, one, step], [f"{tensor}/sample"], name=f"{tensor}/sample"
    )
    editor.add_output(f"{tensor}/sample")
