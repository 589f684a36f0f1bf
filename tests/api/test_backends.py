"""Which execution providers run here, and which one a job takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
from msgspec.structs import replace as with_fields

import onnxq
from onnxq.api import backends as module
from onnxq.api import known_backends
from onnxq.api.backends import settled
from onnxq.api.job import Job
from onnxq.errors import RuntimeFailure, UsageError
from onnxq.graph import load
from onnxq.plan import Recipe, VerifySettings
from onnxq.runtime import Latency, Session, default_target
from onnxq.runtime.backends import Backend, BackendReport, BackendTime
from onnxq.targets import CPU, PROVIDERS, Provider

MODELS = Path(__file__).parents[2] / "models"
FLOAT = MODELS / "digits_cnn.onnx"
AZURE = "AzureExecutionProvider"
needs_azure = pytest.mark.skipif(
    AZURE not in onnxruntime.get_available_providers(), reason="this build has no such provider"
)


def backend(name: str, *, runs: bool = True) -> Backend:
    return Backend(name, name, runs, "" if runs else "no", "", "", "", None, None, None, "")


def test_the_cpu_provider_is_always_here() -> None:
    cpu = onnxq.available_backends()[-1]
    assert (cpu.name, cpu.provider, cpu.runs) == ("cpu", "CPUExecutionProvider", True)
    assert onnxruntime.__version__ in cpu.version
    assert cpu.int8
    assert not cpu.fp16


def test_all_are_told_and_those_that_run_come_first() -> None:
    found = known_backends()
    assert set(PROVIDERS) <= {one.name for one in found}
    runs = [one.runs for one in found]
    assert runs == sorted(runs, reverse=True)
    assert all(one.install and one.why_not for one in found if not one.runs and one.name != AZURE)


@needs_azure
def test_a_provider_that_takes_no_node_does_not_run_models() -> None:
    (found,) = (one for one in known_backends() if one.name == AZURE)
    assert not found.runs
    assert found.why_not == "it leaves even a Relu to the CPU provider"


def test_the_one_that_is_there_is_taken_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_backends", lambda: (backend("cpu"),))
    monkeypatch.setattr(module, "compare_backends", None)
    assert onnxq.select_backend(FLOAT) == CPU


def test_without_a_model_the_preferred_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_backends", lambda: (backend("cuda"), backend("cpu")))
    assert onnxq.select_backend() == Provider("cuda")


class TestComparison:
    """Two providers, of which one is the CPU provider under another name."""

    @pytest.fixture
    def measured(self, monkeypatch: pytest.MonkeyPatch):
        """Compare with made-up times: milliseconds of cpu and of openvino."""

        def start(cpu: float, other: float, fallback: tuple[str, ...] = ()) -> BackendReport:
            class Opened(Session):
                def __init__(self, model, *, provider: Provider, threads: int = 1) -> None:
                    super().__init__(model, threads=threads)
                    self.fallback = () if provider.is_cpu else fallback

            def latency(models, _feed, *, provider, **_options) -> Latency:
                assert [one.name for one in provider] == ["cpu", "openvino"]
                assert len(models) == 2
                return Latency((cpu, other), 4, ((cpu,) * 4, (other,) * 4))

            monkeypatch.setattr(module, "Session", Opened)
            monkeypatch.setattr(module, "measure_models", latency)
            here = (backend("openvino"), backend("cpu"))
            monkeypatch.setattr(module, "available_backends", lambda: here)
            return onnxq.compare_backends(FLOAT)

        return start

    def test_the_faster_one_is_best(self, measured) -> None:
        found = measured(4.0, 2.0, ("a", "b"))
        assert found.best == "openvino"
        assert found.backends[0] == BackendTime("openvino", 2.0, 0.0, 2.0, ("a", "b"))
        assert found.backends[1] == BackendTime("cpu", 1.0, None, 4.0, ())
        assert found.nodes == len(load(FLOAT).view().nodes)
        assert not found.too_noisy

    def test_that_may_be_the_cpu_provider(self, measured) -> None:
        assert measured(2.0, 4.0).best == "cpu"
        assert onnxq.select_backend(FLOAT) == CPU

    def test_select_measures(self, measured) -> None:
        measured(4.0, 2.0)
        assert onnxq.select_backend(FLOAT) == Provider("openvino")


def test_one_that_does_not_run_the_model_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    here = (backend("cuda"), backend("cpu"))
    monkeypatch.setattr(module, "available_backends", lambda: here)
    found = onnxq.compare_backends(FLOAT, seconds=0.05)
    assert found.best == "cpu"
    (cuda,) = (one for one in found.backends if one.name == "cuda")
    assert cuda.ms is None
    assert "'cuda' is not in this ONNX Runtime" in cuda.why_not


@pytest.mark.parametrize(
    ("best", "second", "noise", "told"),
    [(2.0, 1.0, 0.5, False), (1.3, 1.0, 0.5, True), (1.02, 1.0, 0.05, False)],
)
def test_noise_counts_where_it_hides_the_best(best, second, noise, told) -> None:
    times = (
        BackendTime("a", best, noise, 1.0, ()),
        BackendTime("cpu", second, None, 1.0, ()),
    )
    assert BackendReport("m", "a", times, 1, 1, 9, True, 3, {}).too_noisy == told


class TestJobs:
    def test_the_target_follows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "require", lambda _provider: None)
        job = settled(Job(Recipe(provider=Provider("openvino"))), load(FLOAT))
        assert job.recipe.target == "openvino"
        said = settled(Job(Recipe(provider=Provider("openvino"), target="cpu-arm")), load(FLOAT))
        assert said.recipe.target == "cpu-arm"

    def test_the_usual_one(self) -> None:
        recipe = settled(Job(), load(FLOAT)).recipe
        assert (recipe.provider, recipe.target) == (CPU, default_target())

    def test_auto_is_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "require", lambda _provider: None)
        monkeypatch.setattr(module, "select_backend", lambda *_, **__: Provider("directml"))
        job = settled(Job(Recipe(provider=Provider("auto", strict=True))), load(FLOAT))
        assert job.recipe.provider == Provider("directml", strict=True)
        assert job.recipe.target == "directml"

    def test_what_is_missing_fails_before_the_work(self) -> None:
        recipe = Recipe(provider=Provider("directml"))
        with pytest.raises(RuntimeFailure, match=r"pip install 'onnxq\[directml\]', on Windows"):
            onnxq.quantize(FLOAT, recipe=recipe)
        with pytest.raises(UsageError, match="unknown execution provider"):
            onnxq.quantize(FLOAT, recipe=with_fields(recipe, provider=Provider("no")))

    @needs_azure
    def test_a_fallback_is_a_note_of_the_receipt(self) -> None:
        """The provider takes no node, so that figures are those of the CPU provider."""
        recipe = Recipe(provider=Provider(AZURE), verify=VerifySettings(seconds=0.05))
        data = {"data": MODELS / "digits_calibration.npz", "test_data": MODELS / "digits_test.npz"}
        receipt = onnxq.quantize(FLOAT, recipe=recipe, **data).receipt
        notes = " ".join(receipt.measured.notes)
        assert "of the source, 12 nodes ('/conv1/Conv', '/Relu', '/conv2/Conv' and 9 more)" in notes
        assert f"planned for {default_target()}, and run on the {AZURE} provider" in notes
        assert receipt.measured.latency.provider == AZURE
        assert receipt.environment["provider"] == AZURE
        assert receipt.recipe.provider == Provider(AZURE)
        assert receipt.measured.int8_coverage is None  # of a provider that it was not planned for
        strict = with_fields(recipe, provider=Provider(AZURE, strict=True))
        with pytest.raises(RuntimeFailure, match="run on the CPU provider, and not on"):
            onnxq.quantize(FLOAT, recipe=strict, **data)

    @needs_azure
    def test_every_session_of_an_analysis_runs_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """But for those that look at the model's shapes, and those that round pairs apart."""
        seen: list[Provider] = []
        opened = Session.__init__

        def watch(self: Session, *args, **options) -> None:
            opened(self, *args, **options)
            seen.append(self.provider)

        monkeypatch.setattr(Session, "__init__", watch)
        recipe = Recipe(provider=Provider(AZURE))
        found = onnxq.analyze_sensitivity(
            FLOAT, MODELS / "digits_calibration.npz", recipe=recipe, samples=8
        )
        assert Provider(AZURE) in seen
        assert found.environment["provider"] == AZURE
        assert any("times are not known" in note for note in found.notes)


def test_a_job_is_a_value() -> None:
    job = Job(Recipe(provider=Provider("cpu")))
    assert settled(job, load(FLOAT)) is not job
    assert replace(job) == job
