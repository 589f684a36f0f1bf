"""Measure what was made: accuracy, size, latency, and what really runs as int8."""

from onnxq.verify.gates import check_gates
from onnxq.verify.metric import Metric, MetricChoice, load_metric
from onnxq.verify.receipt import (
    Candidate,
    FileFacts,
    Gate,
    LatencyFacts,
    Measured,
    MetricFacts,
    OutputFacts,
    PreparedFacts,
    Receipt,
    RunFacts,
    receipt_schema,
)
from onnxq.verify.verify import Subjects, verify

__all__ = [
    "Candidate",
    "FileFacts",
    "Gate",
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
    "verify",
]
