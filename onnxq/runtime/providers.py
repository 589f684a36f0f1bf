"""Execution providers: what this ONNX Runtime has, and how sessions are opened on one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from onnxq.errors import RuntimeFailure
from onnxq.runtime.binding import ORT_ERRORS, first_line, ort, ort_package, ort_version
from onnxq.targets import PROVIDERS, Provider, get_provider

# ONNX Runtime adds it to every session, for what others leave.
CPU_PROVIDER = "CPUExecutionProvider"
# What is logged where ONNX Runtime cannot start a provider, and goes on without it.
_SILENT, _WARNING = 4, 2


class Device(msgspec.Struct, frozen=True):
    """A device that a provider can use, as ONNX Runtime tells it.

    Attributes:
        provider: ONNX Runtime's name of the provider.
        kind: ``cpu``, ``gpu`` or ``npu``.
        vendor: Who made it.
        version: Of the provider; empty where it does not tell.
    """

    provider: str
    kind: str
    vendor: str
    version: str


def installed_providers() -> tuple[str, ...]:
    """ONNX Runtime's names of the providers in it, and of plugins that were loaded."""
    built_in = tuple(ort.get_available_providers())
    plugins = (device.provider for device in devices())
    return tuple(dict.fromkeys([*built_in, *plugins]))


def devices() -> tuple[Device, ...]:
    """Devices and their providers; older versions than 1.22 tell of none."""
    return tuple(
        Device(
            found.ep_name,
            str(found.device.type).rpartition(".")[2].lower(),
            str(found.device.vendor or found.ep_vendor),
            dict(found.ep_metadata).get("version", ""),
        )
        for found in _ep_devices()
    )


def openvino_devices() -> tuple[str, ...]:
    """What OpenVINO finds on this machine, such as ``CPU`` and ``GPU.0``."""
    ask = getattr(ort.capi.onnxruntime_pybind11_state, "get_available_openvino_device_ids", None)
    return tuple(ask()) if ask is not None else ()


def require(provider: Provider) -> None:
    """Load a plugin's library, and check that the provider is there.

    Raises:
        UsageError: There is no provider of this name.
        RuntimeFailure: It is not in this ONNX Runtime, or its library cannot be loaded.
    """
    if provider.library is not None:
        _load(provider)
    known = installed_providers()
    if provider.runtime_name in known:
        return
    if provider.library is not None:
        loaded = ", ".join(sorted(set(known) - set(ort.get_available_providers()))) or "none"
        raise RuntimeFailure(
            f"'{provider.library}' brings no execution provider '{provider.name}' that finds a "
            f"device here (loaded: {loaded})"
        )
    install = get_provider(provider.name).install
    raise RuntimeFailure(
        f"execution provider '{provider.name}' is not in this ONNX Runtime ({ort_package()})",
        f"it comes with: {install}; one build of ONNX Runtime per environment",
    )


def append(options: Any, provider: Provider, threads: int) -> list[tuple[str, dict[str, str]]]:  # noqa: ANN401 - onnxruntime is untyped
    """Prepare a session's options for a provider.

    Args:
        options: ONNX Runtime's ``SessionOptions``; they are changed.
        provider: Where the session is to run; one that ``require`` accepts.
        threads: Threads inside an operator.

    Returns:
        What ``InferenceSession`` takes as its providers; empty where the options say it all. The
        CPU provider is left out, because ONNX Runtime adds it by itself.
    """
    facts = PROVIDERS.get(provider.name)
    settings = dict(facts.options) if facts is not None else {}
    if facts is not None and facts.threads_option:
        settings[facts.threads_option] = str(threads)
    settings |= provider.options
    if facts is not None and not facts.memory_pattern:
        options.enable_mem_pattern = False
    name = provider.runtime_name
    if not provider.is_cpu:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if provider.strict and not tells_placement():
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    built_in = ort.get_available_providers()
    if name not in built_in:
        options.add_provider_for_devices([d for d in _ep_devices() if d.ep_name == name], settings)
        return []
    beside = facts.beside if facts is not None else ()
    return [(name, settings), *((other, {}) for other in beside if other in built_in)]


def tells_placement() -> bool:
    """Whether ONNX Runtime tells which provider runs a node: since 1.24."""
    return hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")


def fallen_back(session: Any) -> tuple[str, ...] | None:  # noqa: ANN401 - onnxruntime is untyped
    """Names of the nodes that the CPU provider runs in another provider's session.

    Nodes are those of the graph as ONNX Runtime partitions it: after its basic optimisations, and
    before others fuse them. One without a name is told by its operator.

    Returns:
        None where ONNX Runtime does not tell.
    """
    if not tells_placement():
        return None
    return tuple(
        node.name or node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == CPU_PROVIDER
        for node in part.get_nodes()
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep ONNX Runtime from logging why a provider does not start: an error tells that it did."""
    ort.set_default_logger_severity(_SILENT)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)


def _ep_devices() -> list[Any]:
    ask = getattr(ort, "get_ep_devices", None)
    return list(ask()) if ask is not None else []


# Libraries that this process loaded, by the names that they were registered with.
_loaded: dict[str, str] = {}


def _load(provider: Provider) -> None:
    library = provider.library
    assert library is not None
    if _loaded.get(provider.name) == library:
        return
    register = getattr(ort, "register_execution_provider_library", None)
    if register is None:
        raise RuntimeFailure(
            f"ONNX Runtime {ort_version()} loads no plugins", "it takes version 1.22 or later"
        )
    try:
        register(provider.name, library)
    except ORT_ERRORS as error:
        raise RuntimeFailure(f"cannot load plugin '{library}': {first_line(error)}") from error
    _loaded[provider.name] = library
