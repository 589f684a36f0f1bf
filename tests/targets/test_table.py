"""The table of targets: rows are whole, nobody else names them, machines find theirs."""

from __future__ import annotations

import ast
import platform
from pathlib import Path

import msgspec
import pytest

import onnxq
from onnxq.errors import UsageError
from onnxq.ops import classify
from onnxq.plan import Recipe, make_plan
from onnxq.rewrite import rewrite
from onnxq.runtime import default_target, machine
from onnxq.targets import TARGETS, Kernel, Pairs, Target, get_target
from onnxq.types import Precision, QType

PACKAGE = Path(onnxq.__file__).parent
DECIDING = ("ops", "plan", "rewrite")
MODEL = """g (float[1,4,8,8] x) => (float[1,4,8,8] y)
<float[4,4,3,3] w = seeded, float[4] b = seeded>
{ [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w, b) [relu] y = Relu (c) }"""


def test_every_way_to_run_a_model_has_its_row() -> None:
    processors = {"cpu-x86", "cpu-x86-amx", "cpu-x86-avx2", "cpu-arm"}
    assert set(TARGETS) == processors | {"openvino", "directml", "tensorrt", "cuda"}
    assert all(name == target.name for name, target in TARGETS.items())


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
class TestRow:
    def test_is_a_plain_value(self, target) -> None:
        again = msgspec.json.decode(msgspec.json.encode(target), type=Target)
        assert again == target
        with pytest.raises(AttributeError):
            target.name = "other"

    def test_says_where_it_comes_from(self, target) -> None:
        assert target.source
        assert target.provider.endswith("ExecutionProvider")

    def test_agrees_with_itself(self, target) -> None:
        assert (target.activation.bits, target.weight.bits, target.activation16.bits) == (8, 8, 16)
        # One sign for both widths: a model may hold tensors of either.
        assert (target.activation.qmin < 0) == (target.activation16.qmin < 0)
        assert target.weight is QType.INT8
        assert 1 <= target.weight_headroom <= 2
        if target.pairs is Pairs.BEFORE:
            # No pair stands behind a layer, so that nothing may need one there.
            kernels = {s.kernel for s in target.operators.values()}
            assert kernels <= {Kernel.FUSED, Kernel.RESIDUAL, Kernel.FLOAT}

    def test_tells_what_to_use_instead(self, target) -> None:
        assert all("use" in why for why in target.refuses.values())
        assert (Precision.INT8 in target.refuses) == (not target.operators)


def test_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown target 'tensort'; did you mean 'tensorrt'\?"):
        get_target("tensort")
    with pytest.raises(UsageError, match=r"known: cpu-x86, .*, cuda"):
        get_target("quantum")


def test_operator_that_no_row_knows_stays_float() -> None:
    found = get_target("openvino").support("Einsum")
    assert (found.kernel, found.why) == (Kernel.FLOAT, "openvino has no int8 kernel for it")


def names_in(source: str) -> set[str]:
    """Names of targets among the strings of a program."""
    strings = {n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant)}
    return strings & set(TARGETS)


def test_names_in_sees_a_name() -> None:
    assert names_in("if target.name == 'tensorrt': pass") == {"tensorrt"}


@pytest.mark.parametrize("floor", DECIDING)
def test_what_decides_reads_fields_and_not_names(floor) -> None:
    sources = [path.read_text(encoding="utf-8") for path in (PACKAGE / floor).rglob("*.py")]
    assert sources
    assert [names_in(source) for source in sources if names_in(source)] == []


# --- precisions that a target refuses -----------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_refused_precision_leaves_the_model_as_it_is(build, target) -> None:
    model = build(MODEL)
    census = classify(model.view(), target)
    for precision, why in target.refuses.items():
        plan = make_plan(model.view(), census, {}, Recipe(precision=precision.value), target)
        assert plan.empty
        assert {(n.reason.code, n.reason.sentence) for n in plan.nodes} == {
            ("target-refuses", f"stays float: {why}")
        }
        assert rewrite(model, plan).view().by_name.keys() == model.view().by_name.keys()


# --- this machine ---------------------------------------------------------------------------------

VNNI, AVX2 = "fpu avx2 avx512f avx512_vnni", "fpu sse avx2"


@pytest.mark.parametrize(
    ("processor", "flags", "expected"),
    [
        ("x86_64", VNNI, "cpu-x86"),
        ("x86_64", "fpu avx2 avx_vnni", "cpu-x86"),
        ("x86_64", f"{VNNI} amx_tile amx_int8", "cpu-x86-amx"),
        ("x86_64", f"{VNNI} amx_tile amx_bf16", "cpu-x86"),
        ("x86_64", AVX2, "cpu-x86-avx2"),
        ("AMD64", "", "cpu-x86"),  # Windows does not tell
        ("aarch64", "", "cpu-arm"),
        ("arm64", "", "cpu-arm"),
        ("ARM64", "", "cpu-arm"),  # Windows
    ],
)
def test_machine_finds_its_target(monkeypatch, tmp_path, processor, flags, expected) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if flags:
        cpuinfo.write_text(f"processor\t: 0\nmodel name\t: any\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    assert default_target() == expected
    assert get_target(default_target()).provider == "CPUExecutionProvider"
