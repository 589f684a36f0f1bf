"""Sessions on execution providers: what ONNX Runtime is asked for, and what it then tells.

No CUDA, DirectML or plugin is here: for these, what ONNX Runtime lists and answers is recorded. The
provider for Azure is in the usual build and takes no node of a model, so that its sessions show a
fallback for real.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnxq.errors import RuntimeFailure, UsageError
from onnxq.runtime import (
    Session,
    default_target,
    environment,
    installed_providers,
    measure_models,
    synthetic_feed,
)
from onnxq.runtime.providers import append, fallen_back, require
from onnxq.targets import CPU, Provider

CHAIN = "g (float[1,4] x) => (float[1,4] y) { [first] t = Relu (x) [second] y = Neg (t) }"
AZURE = "AzureExecutionProvider"
needs_azure = pytest.mark.skipif(
    AZURE not in onnxruntime.get_available_providers(), reason="this build has no such provider"
)
# What onnxruntime-gpu 1.24 and onnxruntime-directml 1.24 list.
GPU = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
DIRECTML = ("DmlExecutionProvider", "CPUExecutionProvider")


class Options:
    """Stands for ``SessionOptions``: keeps what is set."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.enable_mem_pattern = True
        self.devices: list[Any] = []
        self.settings: dict[str, str] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    def add_provider_for_devices(self, devices: list[Any], settings: dict[str, str]) -> None:
        self.devices, self.settings = devices, settings


def device(name: str, version: str = "") -> SimpleNamespace:
    """One entry of ``get_ep_devices``."""
    return SimpleNamespace(
        ep_name=name,
        ep_vendor="somebody",
        ep_metadata={"version": version} if version else {},
        device=SimpleNamespace(type="OrtHardwareDeviceType.GPU", vendor="NVIDIA"),
    )


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch):
    """What ONNX Runtime tells: providers, devices, and whether it tells the places of nodes."""

    def start(providers: tuple[str, ...], devices: list[Any] | None = None, *, places: bool = True):
        session = SimpleNamespace(get_provider_graph_assignment_info=None) if places else object()
        fake = SimpleNamespace(
            get_available_providers=lambda: list(providers),
            get_ep_devices=lambda: devices or [],
            InferenceSession=session,
        )
        monkeypatch.setattr("onnxq.runtime.providers.ort", fake)
        return fake

    return start


class TestWhatIsAskedFor:
    def test_cuda(self, recorded) -> None:
        recorded(GPU)
        options = Options()
        provider = Provider("cuda", {"device_id": "1"})
        assert append(options, provider, 4) == [("CUDAExecutionProvider", {"device_id": "1"})]
        assert options.entries == {"session.record_ep_graph_assignment_info": "1"}
        assert options.enable_mem_pattern

    def test_tensorrt_leaves_nodes_to_cuda_first(self, recorded) -> None:
        recorded(GPU)
        first, second = append(Options(), Provider("tensorrt"), 1)
        assert first == ("TensorrtExecutionProvider", {"trt_int8_enable": "1"})
        assert second == ("CUDAExecutionProvider", {})

    def test_directml_plans_no_memory(self, recorded) -> None:
        recorded(DIRECTML)
        options = Options()
        assert append(options, Provider("directml"), 1) == [("DmlExecutionProvider", {})]
        assert not options.enable_mem_pattern

    def test_openvino_gets_the_threads_and_what_was_said_wins(self, recorded) -> None:
        recorded(("OpenVINOExecutionProvider", "CPUExecutionProvider"))
        (found,) = append(Options(), Provider("openvino", {"device_type": "GPU.0"}), 3)
        assert found[1] == {"device_type": "GPU.0", "num_of_threads": "3"}

    def test_cpu_is_asked_for_nothing_else(self, recorded) -> None:
        recorded(GPU)
        options = Options()
        assert append(options, CPU, 2) == [("CPUExecutionProvider", {})]
        assert not options.entries

    def test_strict_before_places_were_told(self, recorded) -> None:
        recorded(GPU, places=False)
        options = Options()
        append(options, Provider("cuda", strict=True), 1)
        assert options.entries["session.disable_cpu_ep_fallback"] == "1"

    def test_a_plugin_goes_by_its_devices(self, recorded) -> None:
        mine = device("my_ep")
        recorded(("CPUExecutionProvider",), [device("CPUExecutionProvider"), mine])
        options = Options()
        assert append(options, Provider("my_ep", {"a": "b"}, library="/my.so"), 1) == []
        assert options.devices == [mine]
        assert options.settings == {"a": "b"}


class TestWhatIsThere:
    def test_built_in_and_plugins(self, recorded) -> None:
        recorded(GPU, [device("CPUExecutionProvider"), device("my_ep")])
        assert installed_providers() == (*GPU, "my_ep")

    def test_versions_without_devices(self, recorded) -> None:
        del recorded(GPU).get_ep_devices
        assert installed_providers() == GPU

    @pytest.mark.parametrize(
        ("name", "install"),
        [
            ("cuda", "pip install 'onnxq[cuda]'"),
            ("directml", "pip install 'onnxq[directml]', on Windows"),
            ("tensorrt", "TensorRT 10"),
            ("coreml", "on macOS"),
            ("migraphx", "AMD's build"),
        ],
    )
    def test_what_is_missing_is_told_with_what_to_install(self, recorded, name, install) -> None:
        recorded(("AzureExecutionProvider", "CPUExecutionProvider"))
        with pytest.raises(RuntimeFailure, match=f"'{name}' is not in this ONNX Runtime") as raised:
            require(Provider(name))
        assert install in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_unknown_names_are_wrong_usage(self) -> None:
        with pytest.raises(UsageError, match="did you mean 'cuda'"):
            require(Provider("cuba"))

    def test_a_library_is_loaded_once(self, recorded, monkeypatch) -> None:
        loaded: list[tuple[str, str]] = []
        fake = recorded(("CPUExecutionProvider",), [device("my_ep")])
        fake.register_execution_provider_library = lambda *given: loaded.append(given)
        monkeypatch.setattr("onnxq.runtime.providers._loaded", {})
        require(Provider("my_ep", library="/my.so"))
        require(Provider("my_ep", library="/my.so"))
        assert loaded == [("my_ep", "/my.so")]

    def test_a_library_without_a_device(self, recorded, monkeypatch) -> None:
        fake = recorded(("CPUExecutionProvider",), [device("other_ep")])
        fake.register_execution_provider_library = lambda *_: None
        monkeypatch.setattr("onnxq.runtime.providers._loaded", {})
        with pytest.raises(RuntimeFailure, match=r"brings no .* 'my_ep' .*\(loaded: other_ep\)"):
            require(Provider("my_ep", library="/my.so"))

    def test_a_library_that_is_none(self, tmp_path) -> None:
        wrong = tmp_path / "wrong.so"
        wrong.write_bytes(b"no library")
        with pytest.raises(RuntimeFailure, match=r"cannot load plugin '.*wrong\.so'"):
            require(Provider("my_ep", library=str(wrong)))

    def test_versions_without_plugins(self, recorded, monkeypatch) -> None:
        recorded(GPU)
        monkeypatch.setattr("onnxq.runtime.providers._loaded", {})
        with pytest.raises(RuntimeFailure, match=r"loads no plugins; it takes version 1\.22"):
            require(Provider("my_ep", library="/my.so"))


class TestFallback:
    def test_recorded_places(self, recorded) -> None:
        """As ONNX Runtime's ``OrtEpAssignedSubgraph`` tells them."""
        recorded(GPU)

        def part(provider: str, *nodes: tuple[str, str]) -> SimpleNamespace:
            found = [SimpleNamespace(name=name, op_type=op) for name, op in nodes]
            return SimpleNamespace(ep_name=provider, get_nodes=lambda: found)

        parts = [
            part("CUDAExecutionProvider", ("conv", "Conv"), ("relu", "Relu")),
            part("CPUExecutionProvider", ("shape", "Shape")),
            part("CPUExecutionProvider", ("", "NonZero")),
        ]
        session = SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)
        assert fallen_back(session) == ("shape", "NonZero")

    def test_versions_that_do_not_tell(self, recorded) -> None:
        recorded(GPU, places=False)
        assert fallen_back(object()) is None

    @needs_azure
    def test_for_real(self, build) -> None:
        model = build(CHAIN)
        feed = synthetic_feed(model.view().inputs)
        with Session(model, provider=Provider(AZURE)) as session, Session(model) as cpu:
            assert session.fallback == ("first", "second")
            assert cpu.fallback == ()
            np.testing.assert_array_equal(session.run(feed)["y"], cpu.run(feed)["y"])

    @needs_azure
    def test_strict_is_an_error_that_names_nodes(self, build) -> None:
        with pytest.raises(RuntimeFailure, match=r"2 nodes \('first', 'second'\) run on the CPU"):
            Session(build(CHAIN), provider=Provider(AZURE, strict=True))

    def test_strict_does_not_concern_the_cpu_provider(self, build) -> None:
        Session(build(CHAIN), provider=Provider(strict=True)).close()

    @needs_azure
    def test_pairs_that_do_not_fuse_run_on_the_cpu_provider(self, build) -> None:
        with Session(build(CHAIN), provider=Provider(AZURE), fuse_pairs=False) as session:
            assert session.provider == CPU


def test_a_provider_that_cannot_start_is_no_silent_cpu_session(build, monkeypatch) -> None:
    """ONNX Runtime logs that CUDA's libraries are missing, and opens the session without it."""

    class Silent:
        """What ``InferenceSession`` is then."""

        def __init__(self, *_args: object, providers: object, enable_fallback: int) -> None:
            assert providers == [("CUDAExecutionProvider", {})]
            assert not enable_fallback

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    for module in ("providers", "session"):
        name = f"onnxq.runtime.{module}.ort"
        monkeypatch.setattr(f"{name}.get_available_providers", lambda: list(GPU))
        monkeypatch.setattr(f"{name}.InferenceSession", Silent)
    with pytest.raises(RuntimeFailure, match="'cuda' is installed, and cannot start here"):
        Session(build(CHAIN), provider=Provider("cuda"))


class TestClosing:
    def test_a_closed_session_runs_no_more(self, build) -> None:
        model = build(CHAIN)
        feed = synthetic_feed(model.view().inputs)
        with Session(model) as session:
            session.run(feed)
        with pytest.raises(RuntimeFailure, match="is closed; open another one"):
            session.run(feed)
        session.close()

    def test_closing_frees_onnx_runtimes_session(self, build, monkeypatch) -> None:
        import gc
        import weakref

        session = Session(build(CHAIN))
        inner = weakref.ref(session._session)
        session.close()
        gc.collect()
        assert inner() is None


def test_models_on_several_providers_take_turns(build, monkeypatch) -> None:
    opened: list[str] = []

    class Watched(Session):
        def __init__(self, model: Any, *, provider: Provider, threads: int) -> None:
            opened.append(provider.options["number"])
            super().__init__(model, threads=threads)

    monkeypatch.setattr("onnxq.runtime.latency.Session", Watched)
    model = build(CHAIN)
    feed = synthetic_feed(model.view().inputs)
    providers = [Provider(options={"number": str(number)}) for number in range(2)]
    found = measure_models([model, model], feed, provider=providers, seconds=0.01)
    assert sorted(opened) == ["0", "0", "0", "1", "1", "1"]  # three openings
    assert len(found.ms) == 2


@pytest.mark.parametrize("name", ["openvino", "cuda", "tensorrt", "directml"])
def test_the_target_follows_the_provider(name: str) -> None:
    assert default_target(Provider(name)) == name


@pytest.mark.parametrize("name", ["cpu", "coreml", "my_ep"])
def test_others_have_the_processors(name: str) -> None:
    assert default_target(Provider(name)) == default_target()
    assert default_target().startswith("cpu-")


def test_the_environment_says_what_ran() -> None:
    found = environment(Provider("openvino", {"device_type": "GPU", "b": "1"}))
    assert found["provider"] == "OpenVINOExecutionProvider b=1 device_type=GPU"
    assert environment()["provider"] == "CPUExecutionProvider"
