"""Results as text for people: pure renderers."""

from onnxq.report.text import census_table, plan_table, receipt_view

__all__ = ["census_table", "plan_table", "receipt_view"]
