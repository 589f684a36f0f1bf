"""The journal: a run that failed goes on where it was, and only that very run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.calibrate import Calibration, encode
from onnxq.calibrate.run import PORTION
from onnxq.data import Preprocess, open_data
from onnxq.errors import DataError, OutputError

NET = "g (float[N,50] x) => (float[N,50] y) { t = Relu (x) y = Sqrt (t) }"
TAPS = ("x", "t", "y")
# Four portions of 64, one of 32, and a tail of 32.
SAMPLES = 320


def normal(samples: int, seed: int, size: int = 50) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((samples, size)).astype(np.float32)


class Flaky:
    """A function of data that fails at a sample of a pass, as often as it is told to."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.fail_at = x, None

    def __call__(self):
        for number, row in enumerate(self.x):
            if number == self.fail_at:
                raise OSError("the disk is gone")
            yield {"x": row[None]}


@pytest.mark.parametrize("observer", ["mse", "moving-average"])
@pytest.mark.parametrize("fail_at", [0, 30, 100, 200, 290, 319])
def test_a_failed_run_goes_on(build, observe, runs, tmp_path, observer, fail_at) -> None:
    x, journal = normal(SAMPLES, 0), tmp_path / "j"
    model = build(NET)
    flaky = Flaky(x)
    expected = encode(observe(model, open_data(flaky, model.view().inputs), TAPS, observer))
    reader = open_data(flaky, model.view().inputs)
    assert reader.size == SAMPLES  # it counts them now, before it fails
    flaky.fail_at = fail_at
    with pytest.raises(DataError, match="the disk is gone"):
        observe(model, reader, TAPS, observer, journal=journal)
    finished = 288 if fail_at >= 288 else fail_at // PORTION * PORTION  # 288: the tail begins
    assert journal.is_file() == (finished > 0)
    flaky.fail_at = None
    runs.clear()
    told: list[int] = []
    again = observe(
        model, reader, TAPS, observer, journal=journal, progress=lambda done, _: told.append(done)
    )
    assert encode(again) == expected
    assert sum(runs) == SAMPLES - finished
    assert told[0] == finished or finished == 0
    assert told[-1] == SAMPLES


def interrupt(at: int):
    def progress(done: int, _: int) -> None:
        if done >= at:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_run_goes_on(build, observe, runs, tmp_path) -> None:
    data, journal = {"x": normal(SAMPLES, 0)}, tmp_path / "j"
    expected = encode(observe(build(NET), data, TAPS, "mse"))
    for at in (70, 200, 300):
        with pytest.raises(KeyboardInterrupt):
            observe(build(NET), data, TAPS, "mse", journal=journal, progress=interrupt(at))
    runs.clear()
    assert encode(observe(build(NET), data, TAPS, "mse", journal=journal)) == expected
    assert sum(runs) == SAMPLES - 288
    assert [path.name for path in tmp_path.iterdir()] == ["j"]


def interrupted(build, observe, journal: Path, **options) -> None:
    settings = {"data": {"x": normal(SAMPLES, 0)}, "taps": TAPS, "observer": "mse"} | options
    with pytest.raises(KeyboardInterrupt):
        observe(build(NET), **settings, journal=journal, progress=interrupt(200))
    assert journal.is_file()


def test_an_error_of_an_observer_leaves_no_half_portion(
    build, observe, tmp_path, monkeypatch
) -> None:
    """The third portion fails between two tensors: the journal holds whole portions only."""
    monkeypatch.setattr("onnxq.calibrate.run._JOURNAL_SHARE", 1e-9)  # the first, and the last
    file, journal = tmp_path / "mine.py", tmp_path / "j"
    file.write_text("""
class Mine:
    left = 1000
    def __init__(self):
        self.count = 0
    def observe(self, tap):
        self.count += len(tap.lows)
    def merge(self, other):
        if other.count:
            Mine.left -= 1
        if not Mine.left:
            raise ValueError("no more")
        self.count += other.count
    def range(self, grid):
        return 0, self.count
""")
    data, name = {"x": normal(SAMPLES, 0)}, f"{file}:Mine"
    expected = encode(observe(build(NET), data, TAPS, name))
    text = file.read_text()
    file.write_text(text.replace("left = 1000", "left = 8"))
    with pytest.raises(DataError, match="no more"):
        observe(build(NET), data, TAPS, name, journal=journal)
    file.write_text(text)
    assert encode(observe(build(NET), data, TAPS, name, journal=journal)) == expected


CHANGES = {
    "data": {"data": {"x": normal(SAMPLES, 1)}},
    "fewer samples": {"data": {"x": normal(SAMPLES, 0)[:100]}},
    "observer": {"observer": "percentile"},
    "options": {"observer": "percentile", "options": {"percentile": 99.0}},
    "histogram": {"observer": "minmax", "keep_histogram": True},
    "exact": {"exact": True},
    "taps": {"taps": ("x", "t")},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_journal_of_other_settings_is_not_continued(
    build, observe, runs, tmp_path, change
) -> None:
    settings = {"data": {"x": normal(SAMPLES, 0)}, "taps": TAPS, "observer": "mse"}
    settings |= CHANGES[change]
    expected = encode(observe(build(NET), **settings))
    interrupted(build, observe, tmp_path / "j")
    runs.clear()
    found = observe(build(NET), **settings, journal=tmp_path / "j")
    assert encode(found) == expected
    assert sum(runs) == found.samples


def test_a_journal_survives_another_batch_size(build, observe, runs, tmp_path) -> None:
    data = {"x": normal(SAMPLES, 0)}
    interrupted(build, observe, tmp_path / "j")
    runs.clear()
    found = observe(build(NET), data, TAPS, "mse", journal=tmp_path / "j", batch_size=3)
    assert sum(runs) == SAMPLES - 192
    assert encode(found) == encode(observe(build(NET), data, TAPS, "mse"))


def test_a_journal_of_another_start_is_not_continued(build, observe, tmp_path) -> None:
    data = {"x": normal(SAMPLES, 0)}
    starts = [observe(build(NET), {"x": normal(9, seed)}, TAPS, "mse") for seed in (7, 8)]
    for start in (*starts, None):
        interrupted(build, observe, tmp_path / "j", start=starts[0])
        found = observe(build(NET), data, TAPS, "mse", start=start, journal=tmp_path / "j")
        assert encode(found) == encode(observe(build(NET), data, TAPS, "mse", start=start))


def test_a_journal_of_other_preprocessing_is_not_continued(build, observe, tmp_path) -> None:
    data, inputs = {"x": normal(SAMPLES, 0)}, build(NET).view().inputs
    readers = [open_data(data, inputs, preprocess=Preprocess(scale=s)) for s in (2.0, 3.0)]
    interrupted(build, observe, tmp_path / "j", data=readers[0])
    found = observe(build(NET), readers[1], TAPS, "mse", journal=tmp_path / "j")
    assert encode(found) == encode(observe(build(NET), readers[1], TAPS, "mse"))


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-3], lambda b: b"x" + b,
     lambda b: b.replace(b'"zlib": "eA', b'"zlib": "eB'), lambda b: b"\xff" * 99,
     lambda b: b.split(b"\n")[0] + b"\n"],
)  # fmt: skip
def test_a_damaged_journal_is_not_continued(build, observe, tmp_path, damage) -> None:
    data, journal = {"x": normal(SAMPLES, 0)}, tmp_path / "j"
    interrupted(build, observe, journal)
    content = journal.read_bytes()
    assert damage(content) != content
    journal.write_bytes(damage(content))
    found = observe(build(NET), data, TAPS, "mse", journal=journal)
    assert encode(found) == encode(observe(build(NET), data, TAPS, "mse"))


def test_a_journal_that_cannot_be_written_is_told(build, observe, tmp_path) -> None:
    with pytest.raises(OutputError, match="cannot write") as caught:
        observe(build(NET), {"x": normal(9, 0)}, TAPS, journal=tmp_path / "no" / "j")
    assert "\n" not in str(caught.value)


def test_an_error_matters_more_than_a_journal_that_cannot_be_written(
    build, observe, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("onnxq.calibrate.run._JOURNAL_SHARE", 1e-9)  # the first, and the last
    folder = tmp_path / "gone"
    folder.mkdir()

    def progress(done: int, _: int) -> None:
        if done > 200:
            (folder / "j").unlink()
            folder.rmdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        observe(
            build(NET), {"x": normal(SAMPLES, 0)}, TAPS, journal=folder / "j", progress=progress
        )


def test_a_journal_of_other_states_is_not_continued(build, observe, tmp_path) -> None:
    model = build("""g (float[1,3] x, float[1,3] h) => (float[1,3] y, float[1,3] h_out)
        { y = Add (x, h) h_out = Neg (y) }""")
    data = {"x": normal(700, 0, 3)}

    def run(state, **rest) -> Calibration:
        return observe(model, data, ("y",), "mse", state=state, **rest)

    with pytest.raises(KeyboardInterrupt):
        run({"h_out": "h"}, journal=tmp_path / "j", progress=interrupt(600))
    other = {"y": "h"}
    assert encode(run(other, journal=tmp_path / "j")) == encode(run(other))
