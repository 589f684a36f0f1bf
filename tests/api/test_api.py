"""The library's front door: ``quantize``, the stages by hand, and the receipt."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.api import receipt_path
from onnxq.calibrate import Setup, calibrate
from onnxq.data import open_data
from onnxq.errors import DataError, ModelError, OutputError, RecipeError, SelfCheckError, UsageError
from onnxq.graph import Model, compact, files_of, load, save, serialize, sha256
from onnxq.ops import classify
from onnxq.plan import DataSettings, Recipe, VerifySettings, make_plan, tensors_to_observe
from onnxq.rewrite import rewrite
from onnxq.runtime import Session, default_target, prepare
from onnxq.targets import get_target
from onnxq.types import Precision
from onnxq.verify import Receipt

MODELS = Path(__file__).parents[2] / "models"
QUICK = VerifySettings(seconds=0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The digits model without its recipe, and a few samples."""
    shutil.copy(MODELS / "digits_cnn.onnx", tmp_path / "net.onnx")
    with np.load(MODELS / "digits_calibration.npz") as arrays:
        np.savez(tmp_path / "few.npz", image=arrays["image"][:20])
    return tmp_path


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """Three matrices, of 17 MB, 1 MB and 2 KB, in a file beside the model; and samples."""
    rng = np.random.RandomState(0)
    path = tmp_path / "net.onnx"
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        net (float[N,2048] x) => (float[N,4] y)
        { [first] a = MatMul (x, u) [second] b = MatMul (a, v) [third] y = MatMul (b, w) }""")
    for name, shape in (("u", (2048, 2048)), ("v", (2048, 128)), ("w", (128, 4))):
        values = rng.normal(0, shape[0] ** -0.5, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    proto = onnx.shape_inference.infer_shapes(proto)  # it is quantized as it is, too
    onnx.save(proto, path, save_as_external_data=True, location="net.bin", size_threshold=1024)
    np.savez(tmp_path / "x.npz", x=rng.normal(0, 1, (20, 2048)).astype(np.float32))
    return path


@pytest.fixture
def recipe(folder: Path) -> Recipe:
    return Recipe(data=DataSettings(calibration=str(folder / "few.npz")), verify=QUICK)


class TestQuantize:
    def test_path(self, folder: Path, recipe: Recipe) -> None:
        output = folder / "made.onnx"
        result = onnxq.quantize(folder / "net.onnx", recipe=recipe, output=output)
        assert result.path == output
        assert result.plan.count(Precision.INT8) == len(result.plan.nodes) == 12
        written = load(output)
        assert written.operators() == result.model.operators()
        assert sha256(written) == result.receipt.output.sha256
        assert output.stat().st_size == result.receipt.output.bytes
        assert receipt_path(output).read_bytes() == result.receipt.to_json()

    def test_attributes_need_not_be_said(self, folder: Path, recipe: Recipe) -> None:
        """A model that leaves defaults out is planned and rewritten as one that says them."""
        whole = load(folder / "net.onnx")
        short = compact(whole, whole)
        said = [sum(len(n.attrs) for n in model.view().nodes) for model in (whole, short)]
        assert said[0] > said[1]
        save(short, folder / "short.onnx")
        expected, found = (
            onnxq.quantize(folder / name, recipe=recipe) for name in ("net.onnx", "short.onnx")
        )
        assert found.plan == expected.plan
        assert serialize(found.model.with_metadata(expected.model.metadata)) == serialize(
            expected.model
        )

    def test_string_paths(self, folder: Path) -> None:
        (folder / "quick.toml").write_text("[verify]\nseconds = 0\n")
        result = onnxq.quantize(
            str(folder / "net.onnx"),
            data=str(folder / "few.npz"),
            recipe=str(folder / "quick.toml"),
            output=str(folder / "made.onnx"),
        )
        assert result.path == folder / "made.onnx"
        assert result.receipt.recipe.precision == "int8"
        assert result.receipt.measured.latency is None

    def test_model_value(self, folder: Path, recipe: Recipe) -> None:
        """A loaded model gives what its path gives."""
        by_path = onnxq.quantize(folder / "net.onnx", recipe=recipe)
        by_value = onnxq.quantize(load(folder / "net.onnx"), recipe=recipe)
        assert by_value.plan == by_path.plan
        assert by_value.receipt.source == by_path.receipt.source
        assert sha256(by_value.model) == sha256(by_path.model)

    def test_model_made_in_memory(self, build: Callable[[str], Model]) -> None:
        text = "net (float[N,8] x) => (float[N,40] y) <float[8,40] w = seeded>"
        result = onnxq.quantize(build(f"{text} {{ [mul] y = MatMul (x, w) }}"))
        assert result.plan.precision() == {"mul": Precision.INT8_WEIGHTS}
        assert result.receipt.source.path == ""

    @pytest.mark.parametrize("one_protobuf", [10**9, 10**6])
    @pytest.mark.parametrize("prepared", [True, False])
    def test_external_data(
        self, external: Path, monkeypatch: pytest.MonkeyPatch, one_protobuf: int, prepared: bool
    ) -> None:
        """One file comes out when all fits into one, as it does here at first."""
        monkeypatch.setattr("onnxq.graph.model.ONE_PROTOBUF", one_protobuf)
        output = external.with_name("made.onnx")
        settings = DataSettings(calibration=str(external.with_name("x.npz")))
        recipe = Recipe(data=settings, verify=QUICK, keep_float=("third",))
        job = dataclasses.replace(onnxq.make_job(None, recipe), prepare=prepared)
        result = onnxq.run(external, job, output=output)
        assert result.plan.count(Precision.INT8) == 2
        written = load(output)
        assert written.has_external_data is (one_protobuf < written.weight_bytes)
        assert output.with_name("made.onnx.data").exists() is written.has_external_data
        assert result.receipt.output.bytes == sum(f.stat().st_size for f in files_of(written))
        # 18 MB of float32 became 4.5 MB of int8, beside a float matrix of 2 KB
        assert 0.25 < result.receipt.measured.size_ratio < 0.26
        assert result.receipt.measured.outputs["y"].sqnr_db > 25

    def test_without_output_nothing_is_written(self, folder: Path, recipe: Recipe) -> None:
        before = sorted(folder.rglob("*"))
        result = onnxq.quantize(folder / "net.onnx", recipe=recipe)
        assert result.path is None
        assert result.receipt.output.path == result.receipt.output.sha256 == ""
        assert result.receipt.output.bytes > 0
        assert sorted(folder.rglob("*")) == before

    def test_source_is_not_changed(self, folder: Path, recipe: Recipe) -> None:
        source = load(folder / "net.onnx")
        operators = source.operators()
        onnxq.quantize(source, recipe=recipe)
        assert source.operators() == operators
        assert not source.metadata

    def test_data_wins_over_the_recipe(self, folder: Path, recipe: Recipe) -> None:
        other = folder / "other.npz"
        np.savez(other, image=np.ones((10, 1, 8, 8), np.float32))
        result = onnxq.quantize(folder / "net.onnx", recipe=recipe, data=str(other))
        assert result.receipt.recipe.data.calibration == str(other)
        assert result.receipt.ranges["image"].max == 1

    def test_progress(self, folder: Path, recipe: Recipe) -> None:
        seen: list[tuple[str, int, int]] = []

        def note(stage: str, done: int, total: int) -> None:
            seen.append((stage, done, total))

        onnxq.quantize(folder / "net.onnx", recipe=recipe, progress=note)
        # a fifth of the samples is held back; batches are of 8
        assert seen == [
            ("calibrate", 8, 16),
            ("calibrate", 15, 16),
            ("calibrate", 16, 16),
            ("search", 1, 0),
            ("verify", 4, 4),
        ]

    def test_force(self, folder: Path, recipe: Recipe) -> None:
        output = folder / "made.onnx"
        output.write_text("old")
        with pytest.raises(OutputError, match="exists already"):
            onnxq.quantize(folder / "net.onnx", recipe=recipe, output=output)
        assert output.read_text() == "old"
        onnxq.quantize(folder / "net.onnx", recipe=recipe, output=output, force=True)
        assert load(output).metadata["onnxq.version"] == onnxq.__version__


class TestErrors:
    def test_model(self, folder: Path) -> None:
        with pytest.raises(ModelError, match="does not exist"):
            onnxq.quantize(folder / "missing.onnx")

    def test_data(self, folder: Path) -> None:
        with pytest.raises(DataError, match="no such file or folder"):
            onnxq.quantize(folder / "net.onnx", data="missing.npz")

    def test_recipe_file(self, folder: Path) -> None:
        (folder / "bad.toml").write_text("speed = 3")
        with pytest.raises(RecipeError, match="unknown key 'speed'"):
            onnxq.quantize(folder / "net.onnx", recipe=folder / "bad.toml")

    def test_metric_fails_before_the_data_are_read(self, folder: Path) -> None:
        recipe = Recipe(
            data=DataSettings(calibration="missing.npz"), verify=VerifySettings(metric="top5")
        )
        with pytest.raises(UsageError, match="unknown metric 'top5'"):
            onnxq.quantize(folder / "net.onnx", recipe=recipe)

    def test_output_that_the_runtime_refuses(
        self,
        folder: Path,
        recipe: Recipe,
        build: Callable[[str], Model],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A broken output is onnxq's fault, and says so."""
        broken = build("net (float[1] x) => (float[1] y) { y = NoSuchOperator (x) }")
        monkeypatch.setattr("onnxq.api.pipeline.apply_plan", lambda _draft: broken)
        with pytest.raises(SelfCheckError, match=r"NoSuchOperator.*a bug in onnxq"):
            onnxq.quantize(folder / "net.onnx", recipe=recipe, output=folder / "made.onnx")
        assert not (folder / "made.onnx").exists()


def test_stages_by_hand(folder: Path, recipe: Recipe) -> None:
    """The stages, one after the other, plan and make what ``quantize`` does."""
    target = get_target(default_target())
    source = load(folder / "net.onnx")
    reader, _ = open_data(recipe.data.calibration, source.view().inputs).split(recipe.data.holdout)
    model = prepare(source)
    census = classify(model.view(), target)
    taps = tensors_to_observe(model.view(), census, recipe)
    observer = recipe.calibration.observer()
    seen = calibrate(model, reader, Setup.of(model.view(), taps, observer))
    ranges = seen.ranges(target.activation_grid)
    plan = make_plan(model.view(), census, ranges.tensors, recipe, target)
    made = rewrite(model, plan)

    result = onnxq.quantize(folder / "net.onnx", recipe=recipe)
    assert plan == result.plan
    assert ranges.tensors == result.receipt.ranges
    assert made.operators() == result.model.operators()
    feed = next(reader.batches(8)).feed
    expected, found = Session(result.model).run(feed), Session(made).run(feed)
    np.testing.assert_array_equal(found["logits"], expected["logits"])


def test_draft_then_run(folder: Path, recipe: Recipe) -> None:
    job = onnxq.Job(recipe)
    drafted = onnxq.draft(folder / "net.onnx", job)
    assert drafted.plan == onnxq.run(folder / "net.onnx", job).plan
    assert drafted.calibration is not None
    assert drafted.calibration.size == 16


class TestReceipt:
    def test_round_trip(self, folder: Path, recipe: Recipe) -> None:
        receipt = onnxq.quantize(folder / "net.onnx", recipe=recipe).receipt
        again = Receipt.from_json(receipt.to_json())
        assert again == receipt
        assert again.to_json() == receipt.to_json()

    def test_complete_recipe(self, folder: Path, recipe: Recipe) -> None:
        """What the recipe left open is filled in, so that the receipt tells all."""
        receipt = onnxq.quantize(folder / "net.onnx", recipe=recipe).receipt
        assert recipe.precision is recipe.target is None
        assert receipt.recipe.precision == "int8"
        assert receipt.recipe.target == receipt.plan.target == default_target()

    def test_hashes(self, folder: Path, recipe: Recipe) -> None:
        receipt = onnxq.quantize(folder / "net.onnx", recipe=recipe).receipt
        assert receipt.source.sha256 == sha256(load(folder / "net.onnx"))
        assert set(receipt.data) == {"calibration", "test"}
        assert receipt.data["calibration"] != receipt.data["test"]
        assert receipt.environment["onnxq"] == receipt.onnxq == onnxq.__version__


class TestMetadata:
    def test_says_what_made_it(self, folder: Path, recipe: Recipe) -> None:
        output = folder / "made.onnx"
        result = onnxq.quantize(folder / "net.onnx", recipe=recipe, output=output)
        assert load(output).metadata == {
            "onnxq.version": onnxq.__version__,
            "onnxq.recipe": result.receipt.recipe.digest(),
            "onnxq.source": result.receipt.source.sha256,
        }

    def test_keeps_the_original(self, folder: Path, recipe: Recipe) -> None:
        source = load(folder / "net.onnx").with_metadata({"author": "Ada", "classes": "0-9"})
        save(source, folder / "signed.onnx")
        output = folder / "made.onnx"
        onnxq.quantize(folder / "signed.onnx", recipe=recipe, output=output)
        found = load(output).metadata
        assert (found["author"], found["classes"]) == ("Ada", "0-9")
        assert "onnxq.version" in found

    def test_keeps_names_and_shapes(self, folder: Path, recipe: Recipe) -> None:
        output = folder / "made.onnx"
        onnxq.quantize(folder / "net.onnx", recipe=recipe, output=output)
        source, made = load(folder / "net.onnx").view(), load(output).view()
        assert made.inputs == source.inputs
        assert made.outputs == source.outputs
        assert {node.name for node in source.nodes} <= {node.name for node in made.nodes}
