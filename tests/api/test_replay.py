"""``replay``: the plan of a receipt makes the same bytes again, without data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace as with_fields

import onnxq
from onnxq.api import load_receipt, receipt_path, replay
from onnxq.errors import OutputError, UnusableError, UsageError
from onnxq.graph import Model, save
from onnxq.plan import Budgets, Recipe, VerifySettings
from onnxq.runtime import Session
from onnxq.types import Precision
from onnxq.verify import Receipt

MODELS = Path(__file__).parents[2] / "models"
DIGITS = MODELS / "digits_cnn.onnx"
TEST_DATA = MODELS / "digits_test.npz"


def made(folder: Path, name: str = "digits_cnn", **fields: object) -> Receipt:
    """Quantize a shipped model as it is told, without budgets and timing, into ``made.onnx``."""
    model = MODELS / f"{name}.onnx"
    job = onnxq.make_job(model, None)
    quick = with_fields(job.recipe.verify, seconds=0.0)
    fields = {"precision": "int8", "verify": quick, "budgets": Budgets()} | fields
    if name != "digits_cnn":  # those that need no data: their data sets are large
        fields["data"] = with_fields(job.recipe.data, calibration=None, test=None)
    job = replace(job, recipe=with_fields(job.recipe, **fields))
    return onnxq.run(model, job, output=folder / "made.onnx", force=True).receipt


@pytest.fixture
def receipt(tmp_path: Path) -> Receipt:
    """Of the digits model in int8."""
    return made(tmp_path)


def edited(receipt: Receipt, precision: Precision, *names: str) -> Receipt:
    """The receipt with another precision for some nodes."""
    nodes = tuple(
        with_fields(node, precision=precision) if node.name in names else node
        for node in receipt.plan.nodes
    )
    return with_fields(receipt, plan=with_fields(receipt.plan, nodes=nodes))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("digits_cnn", {}),
        ("digits_cnn", {"format": "qoperator"}),
        ("digits_cnn", {"target": "tensorrt"}),
        ("digits_cnn", {"precision": "int16"}),
        ("digits_cnn", {"precision": "fp16"}),
        ("digits_cnn", {"precision": "float"}),
        ("digits_cnn", {"float_type": "fp16", "keep_float": ("/fc2/*",)}),
        ("mnist_transformer", {"precision": "int8-dynamic"}),
        ("mnist_transformer", {"precision": "int4-weights", "format": "qoperator"}),
        ("mnist_lstm", {"precision": "int8-dynamic"}),
        ("mnist_gru", {"precision": "int8-weights"}),
        ("cifar10_mobilenet", {"precision": "int8-weights"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_same_bytes(tmp_path: Path, name: str, fields: dict[str, object]) -> None:
    receipt = made(tmp_path, name, **fields)
    model, beside = MODELS / f"{name}.onnx", receipt_path(tmp_path / "made.onnx")
    found = replay(model, beside, output=tmp_path / "again.onnx").receipt
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "made.onnx").read_bytes()
    assert found.output.sha256 == receipt.output.sha256
    assert found.plan == receipt.plan
    assert found.ranges == receipt.ranges
    assert found.data == {k: v for k, v in receipt.data.items() if k != "test"}
    # which can be applied again in turn
    third = replay(model, receipt_path(tmp_path / "again.onnx"), output=tmp_path / "third.onnx")
    assert third.receipt.output.sha256 == receipt.output.sha256


def test_same_bytes_without_preparing(tmp_path: Path, build: Callable[[str], Model]) -> None:
    text = """
    net (float[N,8] x) => (float[N,8] y) <float[8,8] w = seeded, float[8] z = {0,0,0,0,0,0,0,0}>
    { [mul] p = MatMul (x, w) [add] y = Add (p, z) }
    """
    save(build(text), tmp_path / "net.onnx")
    feed = {"x": np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)}
    recipe = Recipe(verify=VerifySettings(seconds=0))
    job = replace(onnxq.make_job(None, recipe), prepare=False, data=feed)
    onnxq.run(tmp_path / "net.onnx", job, output=tmp_path / "made.onnx")
    replay(tmp_path / "net.onnx", tmp_path / "made.receipt.json", output=tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "made.onnx").read_bytes()


class TestVerifying:
    def test_without_data_no_budget_of_accuracy_counts(self, receipt: Receipt) -> None:
        budgets = Budgets(max_drop=0.005, min_sqnr=30, max_size_ratio=0.35, min_int8=0.9)
        known = with_fields(receipt, recipe=with_fields(receipt.recipe, budgets=budgets))
        found = replay(DIGITS, known).receipt
        assert [gate.name for gate in found.gates] == ["max_size_ratio", "min_int8"]
        assert found.passed
        assert found.measured.outputs == {}
        assert "nor budget max_drop, min_sqnr checked" in found.measured.notes[-1]
        assert found.recipe == known.recipe

    def test_with_data_it_is_judged_as_before(self, receipt: Receipt) -> None:
        found = replay(DIGITS, receipt, test_data=TEST_DATA).receipt
        assert found.measured.outputs == receipt.measured.outputs
        assert found.measured.metric == receipt.measured.metric
        assert found.data == receipt.data

    def test_with_data_all_budgets_count(self, receipt: Receipt) -> None:
        budgets = Budgets(max_drop=0.005, min_sqnr=30)
        known = with_fields(receipt, recipe=with_fields(receipt.recipe, budgets=budgets))
        drop, sqnr = replay(DIGITS, known, test_data=TEST_DATA).receipt.gates
        assert (drop.name, drop.passed, sqnr.passed) == ("max_drop", True, True)
        assert drop.bound == pytest.approx(0.0045, abs=1e-4)  # 2.7 of 597
        assert 30 < sqnr.bound < sqnr.value

    def test_metric_of_a_receipt_may_not_be_code(self, receipt: Receipt) -> None:
        settings = with_fields(receipt.recipe.verify, metric="os:getcwd")
        known = with_fields(receipt, recipe=with_fields(receipt.recipe, verify=settings))
        assert replay(DIGITS, known).receipt.measured.metric is None
        with pytest.raises(UsageError, match="metric 'os:getcwd' is Python code"):
            replay(DIGITS, known, test_data=TEST_DATA)
        found = replay(DIGITS, known, test_data=TEST_DATA, metric="top1").receipt
        assert found.measured.metric is not None

    def test_other_versions_are_told(self, receipt: Receipt) -> None:
        known = with_fields(receipt, environment=receipt.environment | {"onnxruntime": "1.0"})
        assert "made with onnxruntime 1.0 (here " in replay(DIGITS, known).receipt.measured.notes[0]


class TestEditedPlans:
    """What a user changes by hand."""

    @pytest.mark.parametrize("target", ["cpu-x86", "tensorrt"])
    @pytest.mark.parametrize("name", ["/conv1/Conv", "/conv2/Conv", "/fc1/Gemm", "/fc2/Gemm"])
    def test_a_layer_becomes_float(self, tmp_path: Path, name: str, target: str) -> None:
        receipt = made(tmp_path, target=target)
        known = edited(receipt, Precision.FLOAT, name)
        found = replay(DIGITS, known, test_data=TEST_DATA, output=tmp_path / "again.onnx")
        before = receipt.measured.outputs["logits"].sqnr_db
        # less noise, or as little: some layers make next to none
        assert found.receipt.measured.outputs["logits"].sqnr_db > before - 0.1
        # its weight is stored as the source has it
        weight = onnxq.load(DIGITS).view().by_name[name].inputs[1]
        view = onnxq.load(tmp_path / "again.onnx").view()
        assert view.dtype(weight) == "float32"

    def test_the_last_layer_loses_the_pair_behind_it(self, receipt: Receipt) -> None:
        found = replay(DIGITS, edited(receipt, Precision.FLOAT, "/fc2/Gemm"))
        (maker,) = [n for n in found.model.view().nodes if "logits" in n.outputs]
        assert maker.op == "Gemm"

    def test_every_node_becomes_float(self, receipt: Receipt) -> None:
        known = edited(receipt, Precision.FLOAT, *(node.name for node in receipt.plan.nodes))
        found = replay(DIGITS, known)
        feed = {"image": np.ones((2, 1, 8, 8), np.float32)}
        source = Session(onnxq.load(DIGITS)).run(feed)
        assert (Session(found.model).run(feed)["logits"] == source["logits"]).all()

    def test_integers_without_scales(self, tmp_path: Path) -> None:
        receipt = made(tmp_path, keep_float=("/conv1/Conv",))
        with pytest.raises(UnusableError, match=r"cannot be applied: .* set nodes to float"):
            replay(DIGITS, edited(receipt, Precision.INT8, "/conv1/Conv"))

    def test_nodes_of_another_model(self, receipt: Receipt) -> None:
        nodes = (with_fields(receipt.plan.nodes[0], name="stem"), *receipt.plan.nodes[1:])
        known = with_fields(receipt, plan=with_fields(receipt.plan, nodes=nodes))
        with pytest.raises(UnusableError, match="only one of them has node '/conv1/Conv'"):
            replay(DIGITS, known)

    def test_tensors_of_another_model(self, receipt: Receipt) -> None:
        params = next(iter(receipt.plan.tensors.values()))
        plan = with_fields(receipt.plan, tensors=receipt.plan.tensors | {"nothing": params})
        with pytest.raises(UnusableError, match="is of tensor 'nothing', which is not there"):
            replay(DIGITS, with_fields(receipt, plan=plan))

    def test_unknown_target(self, receipt: Receipt) -> None:
        plan = with_fields(receipt.plan, target="abacus")
        with pytest.raises(UnusableError, match="for target 'abacus', which is not known"):
            replay(DIGITS, with_fields(receipt, plan=plan))


class TestRefusals:
    def test_another_model(self, receipt: Receipt) -> None:
        with pytest.raises(UsageError, match="is another model") as caught:
            replay(MODELS / "mnist_cnn.onnx", receipt)
        assert "digits_cnn.onnx" in str(caught.value)
        assert "mnist_cnn.onnx" in str(caught.value)
        assert receipt.source.sha256[:12] in str(caught.value)

    def test_nothing_that_is_read_is_written_over(self, receipt: Receipt, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="one of the files that are read"):
            replay(
                DIGITS, tmp_path / "made.receipt.json", output=tmp_path / "made.onnx", force=True
            )
        (tmp_path / "other.onnx").touch()
        with pytest.raises(OutputError, match="exists already"):
            replay(DIGITS, receipt, output=tmp_path / "other.onnx")

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda text: b"", "Input data was truncated"),
            (lambda text: b"\xff\xfe\x00", "is no receipt"),
            (lambda text: b"[" * 100_000, "is no receipt"),
            (lambda text: b'{"model": 1}', "missing required field `schema`"),
            (lambda text: text[: len(text) // 2], "is no receipt"),
            (lambda text: text.replace(b'"precision": "int8"', b'"precision": "int9"'), "int9"),
            (lambda text: text.replace(b'"schema": 1', b'"schema": 2', 1), "of schema 2"),
            (lambda text: text.replace(b'"zero_point": [', b'"zero_point": [1, '), "zero points"),
        ],
    )
    def test_garbage(
        self, receipt: Receipt, tmp_path: Path, change: Callable[[bytes], bytes], told: str
    ) -> None:
        text = (tmp_path / "made.receipt.json").read_bytes()
        assert json.loads(text)["schema"] == 1
        (tmp_path / "garbage.json").write_bytes(change(text))
        with pytest.raises(UnusableError, match=told) as caught:
            load_receipt(tmp_path / "garbage.json")
        assert "garbage.json" in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("path", [".", "missing.json"])
    def test_no_file(self, path: str) -> None:
        with pytest.raises(UnusableError, match="cannot read receipt"):
            load_receipt(path)
