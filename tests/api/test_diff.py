"""What changed from one receipt to another: receipts of real runs, and figures made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from rich.console import Console

import onnxq
from onnxq.errors import UnusableError
from onnxq.plan import NodePlan, QuantPlan, Recipe, VerifySettings
from onnxq.report import diff_view
from onnxq.report.checkwords import change_lines
from onnxq.types import Precision, QParams, QType, Reason, TensorRange
from onnxq.verify import Change, Changes, Figure, Moved, Receipt, changes_of

MODELS = Path(__file__).parents[2] / "models"
RECIPE = Recipe(
    precision="int8", objective="int8-everywhere", allow_slower=True, target="cpu-x86",
    verify=VerifySettings(seconds=0),
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Receipts of one model: all int8, and with one layer kept float."""
    folder, found = tmp_path_factory.mktemp("receipts"), []
    for name, recipe in (("a", RECIPE), ("b", replace(RECIPE, keep_float=("/fc2/Gemm",)))):
        onnxq.quantize(
            MODELS / "digits_cnn.onnx", data=MODELS / "digits_calibration.npz",
            recipe=recipe, output=folder / f"{name}.onnx",
        )  # fmt: skip
        found.append(folder / f"{name}.receipt.json")
    return found[0], found[1]


def test_one_layer_was_kept_float(files: tuple[Path, Path]) -> None:
    found = onnxq.diff_receipts(*files)
    before, after = (json.loads(path.read_bytes()) for path in files)
    (node,) = found.plan
    assert (node.kind, node.where, node.before) == ("precision", "/fc2/Gemm", "int8")
    assert node.after.startswith("float (")  # and why
    assert not (found.graph or found.ranges)
    assert found.setting == (Change("recipe", "keep_float", "", '["/fc2/Gemm"]'),)
    assert not found.none
    figures = {figure.name: figure for figure in found.figures}
    for name, read in {
        "SQNR of logits, dB": lambda r: r["measured"]["outputs"]["logits"]["sqnr_db"],
        "same top class in logits": lambda r: r["measured"]["outputs"]["logits"]["top1_agreement"],
        "size, by the source's": lambda r: r["measured"]["size_ratio"],
        "nodes that run as int8": lambda r: r["measured"]["int8_coverage"]["int8"],
        "bytes": lambda r: r["output"]["bytes"],
    }.items():
        assert (figures[name].before, figures[name].after) == (read(before), read(after))
    assert figures["nodes that run as int8"].improved is False
    assert figures["test samples"].improved is None


def test_the_same_receipt(files: tuple[Path, Path]) -> None:
    found = onnxq.diff_receipts(files[0], files[0])
    assert found.none
    assert not (found.plan or found.setting)
    assert all(figure.before == figure.after for figure in found.figures)


def test_plans_in_files(files: tuple[Path, Path], tmp_path: Path) -> None:
    """What `onnxq quantize --dry-run --json` prints is held against a receipt."""
    plan = tmp_path / "plan.json"
    plan.write_bytes(
        msgspec.json.encode(onnxq.diff_receipts.__globals__["load_receipt"](files[1]).plan)
    )
    found = onnxq.diff_receipts(files[0], plan)
    assert [(node.kind, node.where) for node in found.plan] == [("precision", "/fc2/Gemm")]
    assert found.figures == found.setting == found.ranges == ()


@pytest.mark.parametrize("content", [b"{}", b"no json", None])
def test_what_is_no_receipt(
    content: bytes | None, files: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnusableError, match="receipt"):
        onnxq.diff_receipts(path, files[0])


def plan(*nodes: NodePlan, **scales: tuple[float, ...]) -> QuantPlan:
    tensors = {
        name: QParams(QType.INT8, scale, (0,) * len(scale), None if len(scale) == 1 else 0)
        for name, scale in scales.items()
    }
    return QuantPlan("cpu-x86", nodes, tensors)


def test_nodes_of_one_alone() -> None:
    why = Reason("kept", "kept float", "c")
    one = plan(NodePlan("a", "Conv", Precision.INT8), NodePlan("c", "Add", Precision.INT8))
    other = plan(NodePlan("b", "Gemm", Precision.FP16), NodePlan("c", "Add", Precision.INT8, why))
    found = changes_of(one, other)
    assert found.graph == (Change("removed", "a", "Conv"), Change("added", "b", "", "Gemm"))
    # the precision is the same, and the reason is new
    assert found.plan == (Change("reason", "c", "int8", "int8 (kept float)"),)
    assert not found.none
    assert changes_of(plan(*one.nodes[1:]), plan(*other.nodes[1:])).none


def test_scales() -> None:
    one = plan(same=(0.1,), up=(0.1, 0.2), down=(0.4,), split=(0.1,), gone=(1.0,))
    other = plan(same=(0.1 + 1e-9,), up=(0.1, 0.25), down=(0.2,), split=(0.1, 0.2))
    assert changes_of(one, other).scales == (
        Moved("split", (0.1, 0.1), (0.1, 0.2), 1.0),  # the farther channel is at twice the scale
        Moved("down", (0.4, 0.4), (0.2, 0.2), 0.5),
        Moved("up", (0.1, 0.2), (0.1, 0.25), pytest.approx(0.25)),
    )


def test_ranges_data_and_models(files: tuple[Path, Path]) -> None:
    receipt = Receipt.from_json(files[0].read_bytes())
    ranges = {"a": (0, 4), "b": (-1, 1), "c": (0, 0), "d": (0, 9)}
    one = replace(receipt, ranges={t: TensorRange(*ends, *ends) for t, ends in ranges.items()})
    moved = ranges | {"a": (-1, 4), "b": (-1.5, 3), "c": (0, 1)}
    other = replace(
        one,
        ranges={t: TensorRange(*ends, *ends) for t, ends in moved.items()},
        source=replace(receipt.source, sha256="f" * 64),
        data={"test": "e" * 64, "calibration": "d" * 64},
        environment=receipt.environment | {"onnxruntime": "9.9"},
    )
    found = changes_of(one, other)
    assert found.ranges == (
        Moved("b", (-1, 1), (-1.5, 3), 1.0),
        Moved("c", (0, 0), (0, 1), 1.0),  # of the new width, where there was none
        Moved("a", (0, 4), (-1, 4), 0.25),
    )
    path, short = receipt.source.path, receipt.source.sha256[:12]
    assert found.setting == (
        Change("source", "", f"{path} ({short})", f"{path} ({'f' * 12})"),
        Change("data", "calibration", receipt.data["calibration"][:12], "d" * 12),
        Change("data", "test", receipt.data["test"][:12], "e" * 12),
        Change("version", "onnxruntime", receipt.environment["onnxruntime"], "9.9"),
    )
    shown = text_of(found)
    for note in (
        "the receipts are of different models",
        "accuracy was measured on different test samples",
        "they were calibrated on different samples",
    ):
        assert f"note: {note}\n" in shown


def test_how_it_is_judged_is_aside(files: tuple[Path, Path]) -> None:
    """`onnxq check` says nothing of it: neither limits nor paths make another model."""
    receipt = Receipt.from_json(files[0].read_bytes())
    recipe = replace(receipt.recipe, budgets=replace(receipt.recipe.budgets, min_sqnr=30.0))
    source = replace(receipt.source, sha256="f" * 64)
    found = changes_of(receipt, replace(receipt, recipe=recipe, source=source))
    assert [change.kind for change in found.setting] == ["source", "judging"]
    assert found.none
    assert change_lines(found.setting) == []
    assert "budgets.min_sqnr" in text_of(found)


def text_of(found: Changes) -> str:
    console = Console(width=200)
    with console.capture() as shown:
        console.print(diff_view(found))
    return "\n".join(line.rstrip() for line in shown.get().splitlines()) + "\n"


@pytest.mark.parametrize(
    ("figure", "improved"),
    [
        (Figure("a", 1, 2, "higher"), True),
        (Figure("a", 1, 2, "lower"), False),
        (Figure("a", 2, 1, "lower"), True),
        (Figure("a", 1, 2, "none"), None),
        (Figure("a", 1, 1, "lower"), None),
        (Figure("a", None, 1, "lower"), None),
    ],
)
def test_which_way_is_better(figure: Figure, improved: bool | None) -> None:
    assert figure.improved is improved
