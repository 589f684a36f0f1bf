"""The library's front door: ``quantize`` and ``calibrate_model``, and the stages that they run."""

from onnxq.api.job import (
    PRESET,
    Job,
    Origin,
    Progress,
    make_job,
    with_data,
    with_metric,
    with_observer,
    with_test_data,
)
from onnxq.api.pipeline import Result, quantize, receipt_path, run
from onnxq.api.quantizer import LayerParameters, PTQQuantizer, Quantizer
from onnxq.api.ranges import (
    calibrate_model,
    load_ranges,
    merge_ranges,
    run_calibration,
    save_ranges,
)
from onnxq.api.stages import Draft, draft, usual_precision
from onnxq.graph import load, save
from onnxq.plan import load_preset

__all__ = [
    "PRESET",
    "Draft",
    "Job",
    "LayerParameters",
    "Origin",
    "PTQQuantizer",
    "Progress",
    "Quantizer",
    "Result",
    "calibrate_model",
    "draft",
    "load",
    "load_preset",
    "load_ranges",
    "make_job",
    "merge_ranges",
    "quantize",
    "receipt_path",
    "run",
    "run_calibration",
    "save",
    "save_ranges",
    "usual_precision",
    "with_data",
    "with_metric",
    "with_observer",
    "with_test_data",
]
