"""onnxq: quantize ONNX models and prove what came out."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.api import (
        Checked,
        Draft,
        Job,
        LayerParameters,
        Origin,
        PlanSearch,
        PTQQuantizer,
        QATTrainer,
        Quantizer,
        Result,
        Trained,
        analyze_sensitivity,
        available_backends,
        bench_models,
        calibrate_model,
        check_model,
        compare_backends,
        compare_models,
        diff_receipts,
        draft,
        layer_figures,
        load,
        load_preset,
        load_ranges,
        make_job,
        merge_ranges,
        quantize,
        replay,
        run,
        save,
        save_ranges,
        search_plan,
        select_backend,
        train_model,
        with_data,
        with_metric,
        with_observer,
        with_test_data,
    )

__version__ = version("onnxq")
# The stages between load and save are functions of their packages: see examples/stages.py.
__all__ = [
    "Checked",
    "Draft",
    "Job",
    "LayerParameters",
    "Origin",
    "PTQQuantizer",
    "PlanSearch",
    "QATTrainer",
    "Quantizer",
    "Result",
    "Trained",
    "analyze_sensitivity",
    "available_backends",
    "bench_models",
    "calibrate_model",
    "check_model",
    "compare_backends",
    "compare_models",
    "diff_receipts",
    "draft",
    "layer_figures",
    "load",
    "load_preset",
    "load_ranges",
    "make_job",
    "merge_ranges",
    "quantize",
    "replay",
    "run",
    "save",
    "save_ranges",
    "search_plan",
    "select_backend",
    "train_model",
    "with_data",
    "with_metric",
    "with_observer",
    "with_test_data",
]


def __getattr__(name: str) -> object:
    """Load the library on first use, so that ``onnxq --help`` need not wait for it."""
    if name in __all__:
        return getattr(import_module("onnxq.api"), name)
    raise AttributeError(f"module 'onnxq' has no attribute '{name}'")
