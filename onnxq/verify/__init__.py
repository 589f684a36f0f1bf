"""Measure what was made: accuracy, size, latency, and what really runs as int8."""

from onnxq.verify.bootstrap import CONFIDENCE
from onnxq.verify.changes import ASIDE, Change, Changes, Figure, Moved, changes_of
from onnxq.verify.compare import Comparison, scores_outputs
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
from onnxq.verify.verify import Demands, Subjects, measure_speed, placement_notes, verify

__all__ = [
    "ASIDE",
    "CONFIDENCE",
    "MOST_NOISE",
    "MUCH_NOISE",
    "ROUNDING_DB",
    "Candidate",
    "Change",
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
    "NodeFacts",
    "OutputFacts",
    "PreparedFacts",
    "Receipt",
    "Run",
    "RunFacts",
    "Speed",
    "Subjects",
    "Training",
    "changes_of",
    "check_gates",
    "compare_layers",
    "graph_facts",
    "load_metric",
    "measure_speed",
    "other_machine",
    "placement_notes",
    "receipt_schema",
    "regressions",
    "scores_outputs",
    "verify",
]
