"""What changed from one receipt to another: receipts of real runs, and figures made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

import onnxq
from onnxq.errors import UnusableError
from onnxq.plan import NodePlan, QuantPlan, Recipe, VerifySettings
from onnxq.types import Precision, QParams, QType, Reason, TensorRange
from onnxq.verify import Changed, Figure, Moved, NodeChange, Receipt, diff

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
    (node,) = found.nodes
    assert (node.name, node.before, node.after) == ("/fc2/Gemm", "int8", "float")
    assert (node.why_before, bool(node.why_after)) == ("", True)
    assert not (found.only_before or found.only_after or found.ranges or found.versions)
    assert found.recipe == (Changed("keep_float", "[]", '["/fc2/Gemm"]'),)
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
    assert found.notes == ()


def test_the_same_receipt(files: tuple[Path, Path]) -> None:
    found = onnxq.diff_receipts(files[0], files[0])
    assert found.empty
    assert all(figure.before == figure.after for figure in found.figures)


def test_plans_in_files(files: tuple[Path, Path], tmp_path: Path) -> None:
    """What `onnxq quantize --dry-run --json` prints is held against a receipt."""
    plan = tmp_path / "plan.json"
    plan.write_bytes(
        msgspec.json.encode(onnxq.diff_receipts.__globals__["load_receipt"](files[1]).plan)
    )
    found = onnxq.diff_receipts(files[0], plan)
    assert [node.name for node in found.nodes] == ["/fc2/Gemm"]
    assert found.figures == found.recipe == ()


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
    found = diff(one, other)
    assert found.only_before == (NodeChange("a", "Conv", Precision.INT8, None),)
    assert found.only_after == (NodeChange("b", "Gemm", None, Precision.FP16),)
    assert found.nodes == (  # the precision is the same, and the reason is new
        NodeChange("c", "Add", Precision.INT8, Precision.INT8, "", "kept float"),
    )


def test_scales() -> None:
    one = plan(same=(0.1,), up=(0.1, 0.2), down=(0.4,), split=(0.1,), gone=(1.0,))
    other = plan(same=(0.1 + 1e-9,), up=(0.1, 0.25), down=(0.2,), split=(0.1, 0.2))
    assert diff(one, other).scales == (
        Moved("split", (0.1, 0.1), (0.1, 0.2), None),
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
    found = diff(one, other)
    assert found.ranges == (
        Moved("c", (0, 0), (0, 1), None),  # by how much of no width at all, nobody can say
        Moved("b", (-1, 1), (-1.5, 3), 1.0),
        Moved("a", (0, 4), (-1, 4), 0.25),
    )
    versions = receipt.environment["onnxruntime"]
    assert found.versions == (Changed("onnxruntime", versions, "9.9"),)
    assert [note.split(":")[0] for note in found.notes] == [
        "the receipts are of different models",
        "accuracy was measured on different test samples",
        "they were calibrated on different samples",
    ]


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
