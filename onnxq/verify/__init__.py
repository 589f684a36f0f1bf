"""Measure what was made: accuracy, size, latency, and what really runs as int8."""

from onnxq.verify.bootstrap import CONFIDENCE
from onnxq.verify.changes import Change, Changes, RangeMove, changes_of
from onnxq.verify.compare import Comparison, scores_outputs
from onnxq.verify.diff import Changed, Figure, Moved, NodeChange, ReceiptDiff, diff
from onnxq.verify.fingerprint import GraphFacts, NodeFacts, graph_facts
from onnxq.verify.gates import check_gates
from onnxq.verify.judge import Judging
from onnxq.verify.layers import Run, compare_layers
from onnxq.verify.metric import Metric, MetricChoice, load_metric
from onnxq.verify.models import (
    MOST_NOISE,
    MUCH_NOISE,
    ROUNDING_DB,
    Growth,
    LayerError,
    ModelComparison,
    Speed,
)
from onnxq.verify.receipt import (
    Candidate,
    FileFacts,
    Gate,
    Int8Share,
    LatencyFacts,
    Measured,
    MetricFacts,
    OutputFacts,
    PreparedFacts,
    Receipt,
    RunFacts,
    Training,
    receipt_schema,
)
from onnxq.verify.regress import Check, CheckGate, other_machine, regressions
from onnxq.verify.verify import Demands, Subjects, measure_speed, verify

__all__ = [
    "CONFIDENCE",
    "MOST_NOISE",
    "MUCH_NOISE",
    "ROUNDING_DB",
    "Candidate",
    "Change",
    "Changed",
    "Changes",
    "Check",
    "CheckGate",
    "Comparison",
    "Demands",
    "Figure",
    "FileFacts",
    "Gate",
    "GraphFacts",
    "Growth",
    "Int8Share",
    "Judging",
    "LatencyFacts",
    "LayerError",
    "Measured",
    "Metric",
    "MetricChoice",
    "MetricFacts",
    "ModelComparison",
    "Moved",
    "NodeChange",
    "NodeFacts",
    "OutputFacts",
    "PreparedFacts",
    "RangeMove",
    "Receipt",
    "ReceiptDiff",
    "Run",
    "RunFacts",
    "Speed",
    "Subjects",
    "Training",
    "changes_of",
    "check_gates",
    "compare_layers",
    "diff",
    "graph_facts",
    "load_metric",
    "measure_speed",
    "other_machine",
    "receipt_schema",
    "regressions",
    "scores_outputs",
    "verify",
]
