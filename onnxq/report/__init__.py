"""Results as text for people: pure renderers."""

from onnxq.report.backends import backends_view, comparison_view
from onnxq.report.bench import bench_view
from onnxq.report.calibration import calibration_table, calibration_verdict, sparkline
from onnxq.report.check import check_view
from onnxq.report.checkwords import sentence, verdict
from onnxq.report.compare import models_markdown, models_view
from onnxq.report.diff import diff_view
from onnxq.report.github import to_annotations
from onnxq.report.html import load_extra
from onnxq.report.junit import to_junit
from onnxq.report.layers import LayerFigures, ModelFigures
from onnxq.report.markdown import check_markdown
from onnxq.report.pages import (
    bench_page,
    check_page,
    models_page,
    quantize_page,
    sensitivity_page,
)
from onnxq.report.qat import activations_table, better, epoch_line, epochs_head, training_view
from onnxq.report.sensitivity import sensitivity_view, to_csv, to_markdown
from onnxq.report.text import census_table, plan_table, receipt_view

__all__ = [
    "LayerFigures",
    "ModelFigures",
    "activations_table",
    "backends_view",
    "bench_page",
    "bench_view",
    "better",
    "calibration_table",
    "calibration_verdict",
    "census_table",
    "check_markdown",
    "check_page",
    "check_view",
    "comparison_view",
    "diff_view",
    "epoch_line",
    "epochs_head",
    "load_extra",
    "models_markdown",
    "models_page",
    "models_view",
    "plan_table",
    "quantize_page",
    "receipt_view",
    "sensitivity_page",
    "sensitivity_view",
    "sentence",
    "sparkline",
    "to_annotations",
    "to_csv",
    "to_junit",
    "to_markdown",
    "training_view",
    "verdict",
]
