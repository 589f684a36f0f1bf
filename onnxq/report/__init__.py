"""Results as text for people: pure renderers."""

from onnxq.report.bench import bench_view
from onnxq.report.calibration import calibration_table, calibration_verdict, sparkline
from onnxq.report.html import load_extra, sensitivity_page
from onnxq.report.sensitivity import sensitivity_view, to_csv, to_markdown
from onnxq.report.text import census_table, plan_table, receipt_view

__all__ = [
    "bench_view",
    "calibration_table",
    "calibration_verdict",
    "census_table",
    "load_extra",
    "plan_table",
    "receipt_view",
    "sensitivity_page",
    "sensitivity_view",
    "sparkline",
    "to_csv",
    "to_markdown",
]
