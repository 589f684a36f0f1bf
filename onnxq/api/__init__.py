"""The library's front door: ``quantize`` and ``calibrate_model``, and the stages that they run."""

from onnxq.api.bench import bench_models
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
from onnxq.api.pipeline import Result, planned, quantize, receipt_path, run
from onnxq.api.plans import PlanSearch, search_plan
from onnxq.api.quantizer import LayerParameters, PTQQuantizer, Quantizer
from onnxq.api.ranges import (
    calibrate_model,
    load_ranges,
    merge_ranges,
    run_calibration,
    save_ranges,
)
from onnxq.api.replay import load_receipt, replay
from onnxq.api.sensitivity import Analysis, analyze_sensitivity, known_precision, run_sensitivity
from onnxq.api.stages import Draft, draft, usual_precision
from onnxq.graph import load, save
from onnxq.plan import load_preset

__all__ = [
    "PRESET",
    "Analysis",
    "Draft",
    "Job",
    "LayerParameters",
    "Origin",
    "PTQQuantizer",
    "PlanSearch",
    "Progress",
    "Quantizer",
    "Result",
    "analyze_sensitivity",
    "bench_models",
    "calibrate_model",
    "draft",
    "known_precision",
    "load",
    "load_preset",
    "load_ranges",
    "load_receipt",
    "make_job",
    "merge_ranges",
    "planned",
    "quantize",
    "receipt_path",
    "replay",
    "run",
    "run_calibration",
    "run_sensitivity",
    "save",
    "save_ranges",
    "search_plan",
    "usual_precision",
    "with_data",
    "with_metric",
    "with_observer",
    "with_test_data",
]
