"""What machine this is, and which target suits it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import platformdirs

from onnxq.runtime.binding import ort_version
from onnxq.targets import CPU, PROVIDERS, Provider

_CPUINFO = Path("/proc/cpuinfo")


def _cpuinfo(key: str) -> str:
    if not _CPUINFO.is_file():
        return ""
    for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return ""


def default_target(provider: Provider = CPU) -> str:
    """The target of a provider, or of this machine's processor where it has none.

    ``cpu-arm`` on Arm; on x86 ``cpu-x86-amx`` where the processor multiplies matrices of integers,
    ``cpu-x86`` where it adds uint8 x int8 products without saturating (VNNI), and where that cannot
    be told, and ``cpu-x86-avx2`` where it is known not to. Other providers are never taken by
    themselves: the model may be meant for another machine.
    """
    facts = PROVIDERS.get(provider.name)
    if facts is not None and facts.target is not None and not provider.is_cpu:
        return facts.target
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "cpu-arm"
    flags = _cpuinfo("flags").split()
    if "amx_int8" in flags:
        return "cpu-x86-amx"
    has_vnni = "avx512_vnni" in flags or "avx_vnni" in flags
    return "cpu-x86-avx2" if flags and not has_vnni else "cpu-x86"


def environment(provider: Provider = CPU) -> dict[str, str]:
    """What a figure depends on: versions, execution provider, processor, operating system."""
    options = [f"{key}={value}" for key, value in sorted(provider.options.items())]
    return {
        "onnxq": version("onnxq"),
        "onnxruntime": ort_version(),
        "provider": " ".join([provider.runtime_name, *options]),
        "onnx": version("onnx"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": str(os.cpu_count() or 1),
    }


def cache_folder() -> Path:
    """Where long runs keep what they found, to go on from: ``ONNXQ_CACHE``, or the user's cache.

    That is ``~/.cache/onnxq`` on Linux; other systems have a place of their own.
    """
    named = os.environ.get("ONNXQ_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("onnxq", appauthor=False)
