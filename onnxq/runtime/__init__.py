"""Run models: sessions, taps, timing, and preparing. The only place that knows onnxruntime."""

from onnxq.runtime.coverage import Coverage, int8_coverage
from onnxq.runtime.latency import Latency, measure_latency, measure_models
from onnxq.runtime.machine import cache_folder, default_target, environment
from onnxq.runtime.prepare import prepare, synthetic_feed
from onnxq.runtime.profile import Profile, profile_models
from onnxq.runtime.session import Session
from onnxq.runtime.state import StateLoop
from onnxq.runtime.taps import TappedSession

__all__ = [
    "Coverage",
    "Latency",
    "Profile",
    "Session",
    "StateLoop",
    "TappedSession",
    "cache_folder",
    "default_target",
    "environment",
    "int8_coverage",
    "measure_latency",
    "measure_models",
    "prepare",
    "profile_models",
    "synthetic_feed",
]
