"""Results as text for people: pure renderers."""

from onnxq.report.calibration import calibration_table, calibration_verdict, sparkline
from onnxq.report.text import census_table, plan_table, receipt_view

__all__ = [
    "calibration_table",
    "calibration_verdict",
    "census_table",
    "plan_table",
    "receipt_view",
    "sparkline",
]
