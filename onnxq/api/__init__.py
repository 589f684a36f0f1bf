"""The library's front door: ``quantize`` and ``calibrate_model``, and the stages that they run."""

from onnxq.api.backends import (
    available_backends,
    compare_backends,
    known_backends,
    select_backend,
)
from onnxq.api.bench import bench_models
from onnxq.api.check import Checked, baseline_path, check_job, check_model, run_check
from onnxq.api.compare import Comparing, compare_models, diff_receipts, run_comparison
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
from onnxq.api.layers import layer_figures
from onnxq.api.pipeline import Result, planned, quantize, receipt_path, run
from onnxq.api.plans import PlanSearch, search_plan
from onnxq.api.qat import QATTrainer, Trained, checkpoint_path, train_model
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
from onnxq.api.starter import starter_recipe
from onnxq.graph import load, save
from onnxq.plan import load_preset

__all__ = [
    "PRESET",
    "Analysis",
    "Checked",
    "Comparing",
    "Draft",
    "Job",
    "LayerParameters",
    "Origin",
    "PTQQuantizer",
    "PlanSearch",
    "Progress",
    "QATTrainer",
    "Quantizer",
    "Result",
    "Trained",
    "analyze_sensitivity",
    "available_backends",
    "baseline_path",
    "bench_models",
    "calibrate_model",
    "check_job",
    "check_model",
    "checkpoint_path",
    "compare_backends",
    "compare_models",
    "diff_receipts",
    "draft",
    "known_backends",
    "known_precision",
    "layer_figures",
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
    "run_check",
    "run_comparison",
    "run_sensitivity",
    "save",
    "save_ranges",
    "search_plan",
    "select_backend",
    "starter_recipe",
    "train_model",
    "usual_precision",
    "with_data",
    "with_metric",
    "with_observer",
    "with_test_data",
]
