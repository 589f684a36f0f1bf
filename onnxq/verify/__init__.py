"""Measure what was made: accuracy, size, latency, and what really runs as int8."""

from onnxq.verify.bootstrap import CONFIDENCE
from onnxq.verify.compare import Comparison, scores_outputs
from onnxq.verify.gates import check_gates
from onnxq.verify.judge import Judging
from onnxq.verify.metric import Metric, MetricChoice, load_metric
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
    receipt_schema,
)
from onnxq.verify.verify import Demands, Subjects, verify

__all__ = [
    "CONFIDENCE",
    "Candidate",
    "Comparison",
    "Demands",
    "FileFacts",
    "Gate",
    "Int8Share",
    "Judging",
    "LatencyFacts",
    "Measured",
    "Metric",
    "MetricChoice",
    "MetricFacts",
    "OutputFacts",
    "PreparedFacts",
    "Receipt",
    "RunFacts",
    "Subjects",
    "check_gates",
    "load_metric",
    "receipt_schema",
    "scores_outputs",
    "verify",
]
