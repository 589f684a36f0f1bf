"""``onnxq calibrate``: what it writes, shows, continues and merges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MODEL, DATA, RANGES = "digits_cnn.onnx", "digits_calibration.npz", "digits_cnn.ranges.json"
OBSERVER = """
class Wide:
    def __init__(self, factor=2.0):
        self.factor, self.low, self.high = factor, 0.0, 0.0

    def observe(self, tap):
        self.low = min(self.low, float(tap.lows.min()))
        self.high = max(self.high, float(tap.highs.max()))

    def merge(self, other):
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def range(self, grid):
        return self.low * self.factor, self.high * self.factor
"""

Cli = Callable[..., Any]


@pytest.fixture
def halves(digits: Path) -> tuple[str, str]:
    """The calibration images in two files."""
    with np.load(DATA) as arrays:
        images = arrays["image"]
    for name, part in (("a.npy", images[:100]), ("b.npy", images[100:])):
        np.save(name, part)
    return "a.npy", "b.npy"


def test_writes_ranges_and_no_journal(onnxq: Cli, digits: Path, files_in) -> None:
    before = files_in(digits)
    run = onnxq("calibrate", MODEL, "--data", DATA)
    assert run.code == 0, run.err
    assert set(files_in(digits)) - set(before) == {RANGES}
    assert f"wrote {RANGES}" in run.out
    said = " ".join(run.out.split())
    assert "200 samples, 9 tensors; over the last tenth of the samples, ranges moved by" in said
    saved = json.loads(Path(RANGES).read_bytes())
    assert saved["samples"] == 200
    assert saved["observer"]["name"] == "auto"


def test_show_has_a_line_for_every_tensor(onnxq: Cli, digits: Path) -> None:
    run = onnxq("calibrate", MODEL, "--data", DATA, "--show")
    shown = [line for line in run.out.splitlines() if "%" in line and "…" in line]
    assert len(shown) == 9
    assert any(line.split()[0] == "logits" for line in shown)
    again = onnxq("calibrate", "show", RANGES)
    assert again.code == 0
    assert again.out.splitlines()[:12] == run.out.splitlines()[:12]


def test_json(onnxq: Cli, digits: Path) -> None:
    told = onnxq("calibrate", MODEL, "--data", DATA, "--json", "--bits", "4", "--symmetric").json
    assert told["grid"] == {"bits": 4, "symmetric": True}
    logits = told["tensors"]["logits"]
    assert logits["min"] <= logits["lo"] < logits["hi"] <= logits["max"]
    assert sum(logits["picture"]) == pytest.approx(1)
    assert 5 < logits["sqnr_db"] < 25  # 4 bits: some 6 dB per bit, less what clipping leaves


def test_other_methods_read_the_same_file(onnxq: Cli, digits: Path) -> None:
    onnxq("calibrate", MODEL, "--data", DATA, "--calibrator", "minmax")
    ranges = {}
    for name in ("minmax", "mse", "percentile", "entropy", "sigma"):
        told = onnxq("calibrate", "show", RANGES, "--calibrator", name, "--json").json
        assert told["observer"] == name
        ranges[name] = told["tensors"]["/Relu_2_output_0"]["hi"]
    assert ranges["minmax"] == max(ranges.values())
    assert len(set(ranges.values())) >= 4
    fresh = onnxq(
        "calibrate", MODEL, "--data", DATA, "--calibrator", "entropy", "--json", "--force"
    )
    assert fresh.json["tensors"]["/Relu_2_output_0"]["hi"] == ranges["entropy"]


def test_quantize_takes_ranges(onnxq: Cli, digits: Path) -> None:
    options = ("--seed", "3", "--samples", "150")
    onnxq("calibrate", MODEL, "--data", DATA, *options)
    whole = ("quantize", MODEL, "--json", "--force")
    found = onnxq(*whole, "--ranges", RANGES, "--calibrator", "mse").json
    assert onnxq(*whole, "--ranges", RANGES).json["ranges"] == found["ranges"]
    other = onnxq(*whole, "--ranges", RANGES, "--calibrator", "minmax").json
    assert other["ranges"] != found["ranges"]
    assert found["measured"]["metric"]["output"] > 0.98


def test_ranges_do_not_need_data(onnxq: Cli, digits: Path) -> None:
    onnxq("calibrate", MODEL, "--data", DATA)
    Path("digits_cnn.onnxq.toml").write_text("[verify]\nseconds = 0\n")
    found = onnxq("quantize", MODEL, "--ranges", RANGES, "--json").json
    assert any(node["precision"] == "int8" for node in found["plan"]["nodes"])
    assert found["data"].keys() == {"calibration"}


def test_merge_in_any_order_and_resume(onnxq: Cli, digits: Path, halves) -> None:
    for number, data in enumerate(halves):
        onnxq("calibrate", MODEL, "--data", data, "-o", f"{number}.json", "--calibrator", "mse")
    for name, files in (("ab.json", ("0.json", "1.json")), ("ba.json", ("1.json", "0.json"))):
        run = onnxq("calibrate", "merge", *files, "-o", name)
        assert run.code == 0, run.err
    whole = Path("ab.json").read_bytes()
    assert Path("ba.json").read_bytes() == whole
    resumed = onnxq("calibrate", MODEL, "--data", halves[1], "--resume", "0.json", "-o", "c.json")
    assert resumed.code == 0, resumed.err
    assert Path("c.json").read_bytes() == whole
    again = onnxq("calibrate", "merge", "ab.json", "0.json", "-o", "twice.json")
    assert again.code == 2
    assert "samples 0 to 99 of the same data" in again.err
    assert not Path("twice.json").exists()


def test_resume_in_place(onnxq: Cli, digits: Path, halves) -> None:
    onnxq("calibrate", MODEL, "--data", halves[0], "-o", "r.json")
    run = onnxq("calibrate", MODEL, "--data", halves[1], "--resume", "r.json", "-o", "r.json")
    assert run.code == 0, run.err
    assert json.loads(Path("r.json").read_bytes())["samples"] == 200


def test_jobs_change_nothing(onnxq: Cli, digits: Path) -> None:
    onnxq("calibrate", MODEL, "--data", DATA, "-o", "one.json")
    run = onnxq("calibrate", MODEL, "--data", DATA, "-o", "two.json", "--jobs", "2")
    assert run.code == 0, run.err
    assert Path("two.json").read_bytes() == Path("one.json").read_bytes()


def test_own_observer(onnxq: Cli, digits: Path) -> None:
    Path("mine.py").write_text(OBSERVER)
    run = onnxq("calibrate", MODEL, "--data", DATA, "--calibrator", "mine.py:Wide", "--json")
    assert run.code == 0, run.err
    logits = run.json["tensors"]["logits"]
    assert logits["hi"] == pytest.approx(2 * logits["max"])
    refused = onnxq("quantize", MODEL, "--ranges", RANGES)
    assert refused.code == 2
    assert "add --calibrator mine.py:Wide" in refused.err
    named = ("--calibrator", "mine.py:Wide")
    made = onnxq("quantize", MODEL, "--ranges", RANGES, *named, "--json").json
    # behind a Relu a range may not be wider than what was seen, or the Relu would stay
    assert made["measured"]["int8_coverage"]["int8"] == made["measured"]["int8_coverage"]["wanted"]


def test_observer_of_a_found_recipe_may_not_be_code(onnxq: Cli, digits: Path) -> None:
    Path("mine.py").write_text(OBSERVER)
    recipe = Path("digits_cnn.onnxq.toml")
    text = recipe.read_text() + '\n[calibration]\nmethod = "mine.py:Wide"\noptions = {factor = 1}\n'
    recipe.write_text(text.replace("[calibration]\n", "[calibration]\n", 1))
    run = onnxq("quantize", MODEL)
    assert run.code == 2
    assert "may not name Python code ('mine.py:Wide')" in run.err
    run = onnxq("calibrate", MODEL, "--recipe", recipe, "--data", DATA, "--json")
    assert run.code == 0, run.err
    assert run.json["tensors"]["logits"]["hi"] == run.json["tensors"]["logits"]["max"]


BAD = {
    "no data": (["calibrate", "other.onnx"], 2, "there are no samples to calibrate with"),
    "unknown method": (
        ["calibrate", MODEL, "--data", DATA, "--calibrator", "entrpy"],
        2,
        "did you mean 'entropy'?",
    ),
    "ranges that are none": (["quantize", MODEL, "--ranges", DATA], 3, "holds no ranges of onnxq"),
    "no such ranges": (["quantize", MODEL, "--ranges", "no.json"], 3, "cannot be read"),
    "nothing is calibrated": (
        ["quantize", MODEL, "--ranges", "no.json", "--jobs", "2"],
        2,
        "--jobs is about calibrating",
    ),
    "output on ranges": (
        ["quantize", MODEL, "--ranges", "r.json", "-o", "r.json", "--force"],
        3,
        "one of the files that are read",
    ),
    "show nothing": (["calibrate", "show", "no.json"], 3, "'no.json' cannot be read"),
    "output is there": (["calibrate", MODEL, "--data", DATA, "-o", MODEL], 3, "one of the files"),
    "jobs and cluster": (
        ["calibrate", MODEL, "--data", DATA, "--jobs", "2", "--cluster", "tcp://a:1"],
        2,
        "give one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(onnxq: Cli, digits: Path, files_in, case: str) -> None:
    (digits / "other.onnx").write_bytes((digits / MODEL).read_bytes())
    args, code, text = BAD[case]
    before = files_in(digits)
    run = onnxq(*args)
    assert run.code == code
    assert text in run.err
    assert run.err.count("\n") == 1
    assert files_in(digits) == before


def test_ranges_of_another_model(onnxq: Cli, digits: Path, build) -> None:
    from onnxq.graph import save

    save(build("g (float[N,4] x) => (float[N,4] y) <float[4,4] w = seeded> { y = MatMul (x, w) }"),
         Path("net.onnx"))  # fmt: skip
    np.save("x.npy", np.random.default_rng(0).standard_normal((70, 4)).astype(np.float32))
    assert onnxq("calibrate", "net.onnx", "--data", "x.npy").code == 0
    run = onnxq("quantize", MODEL, "--ranges", "net.ranges.json")
    assert run.code == 2
    assert "observed on another model" in run.err


def test_own_observer_is_shown_and_merged_when_it_is_named(
    onnxq: Cli, digits: Path, halves
) -> None:
    Path("mine.py").write_text(OBSERVER)
    named = ("--calibrator", "mine.py:Wide")
    for half in halves:
        assert onnxq("calibrate", MODEL, "--data", half, "-o", f"{half}.json", *named).code == 0
    for command in (("show", "a.npy.json"), ("merge", "a.npy.json", "b.npy.json", "-o", "m.json")):
        refused = onnxq("calibrate", *command)
        assert refused.code == 2
        assert "add --calibrator mine.py:Wide" in refused.err
        run = onnxq("calibrate", *command, *named)
        assert run.code == 0, run.err
    assert json.loads(Path("m.json").read_bytes())["samples"] == 200


def test_resume_does_not_ignore_settings(onnxq: Cli, digits: Path, halves) -> None:
    go_on = ("calibrate", MODEL, "--data", "b.npy", "--resume", "a.json", "--quiet", "-o")
    onnxq("calibrate", MODEL, "--data", "a.npy", "-o", "a.json")
    assert onnxq(*go_on, "p.json", "--calibrator", "percentile").code == 0
    assert json.loads(Path("p.json").read_bytes())["observer"]["name"] == "percentile"
    onnxq(*go_on, "auto.json")
    found = [
        onnxq("calibrate", "show", name, "--calibrator", "percentile", "--json").json
        for name in ("p.json", "auto.json")
    ]
    assert found[0] == found[1]
    other = onnxq(*go_on, "m.json", "--calibrator", "moving-average")
    assert other.code == 2
    assert "'auto' cannot be read by 'moving-average'" in other.err
    exact = onnxq(*go_on, "e.json", "--exact")
    assert exact.code == 2
    assert "leave out --exact" in exact.err
    assert not Path("m.json").exists()
    assert not Path("e.json").exists()


def test_data_are_not_overwritten(onnxq: Cli, digits: Path) -> None:
    before = Path(DATA).read_bytes()
    run = onnxq("calibrate", MODEL, "--data", DATA, "-o", DATA, "--force")
    assert run.code == 3
    assert "is one of the files that are read" in run.err
    assert Path(DATA).read_bytes() == before
