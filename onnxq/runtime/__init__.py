"""Run models: sessions, taps, timing, and preparing. The only place that knows onnxruntime."""

from onnxq.runtime.binding import ort_package, ort_version
from onnxq.runtime.coverage import Coverage, int8_coverage
from onnxq.runtime.latency import Latency, measure_latency, measure_models
from onnxq.runtime.machine import cache_folder, default_target, environment
from onnxq.runtime.prepare import prepare, synthetic_feed
from onnxq.runtime.profile import Profile, profile_models
from onnxq.runtime.providers import (
    Device,
    devices,
    installed_providers,
    openvino_devices,
    require,
)
from onnxq.runtime.session import Session, told_fallback
from onnxq.runtime.state import StateLoop
from onnxq.runtime.taps import TappedSession

__all__ = [
    "Coverage",
    "Device",
    "Latency",
    "Profile",
    "Session",
    "StateLoop",
    "TappedSession",
    "cache_folder",
    "default_target",
    "devices",
    "environment",
    "installed_providers",
    "int8_coverage",
    "measure_latency",
    "measure_models",
    "openvino_devices",
    "ort_package",
    "ort_version",
    "prepare",
    "profile_models",
    "require",
    "synthetic_feed",
    "told_fallback",
]
