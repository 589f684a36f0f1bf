"""Results as pages of HTML, one module for each command (extra ``report``)."""

from onnxq.report.pages.bench import bench_page
from onnxq.report.pages.check import check_page
from onnxq.report.pages.compare import models_page
from onnxq.report.pages.quantize import quantize_page
from onnxq.report.pages.sensitivity import sensitivity_page

__all__ = ["bench_page", "check_page", "models_page", "quantize_page", "sensitivity_page"]
