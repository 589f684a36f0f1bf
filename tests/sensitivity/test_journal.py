"""The journal of an analysis: a killed run goes on, a finished one is only read; workers."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import onnxruntime as ort
import pytest

from onnxq.calibrate import Workers
from onnxq.errors import OutputError, UsageError
from onnxq.plan import Recipe
from onnxq.sensitivity.journal import Journal
from onnxq.types import Precision
from onnxq.verify import MetricChoice

MLP = """g (float[N,64] x) => (float[N,32] y)
  <float[64,64] w = seeded, float[64,64] u = seeded, float[64,32] v = seeded> {
    [a] p = MatMul (x, w) [ra] q = Relu (p) [b] r = MatMul (q, u) [rb] s = Relu (r)
    [c] y = MatMul (s, v) }"""


class Killed(Exception):
    pass


def killed_at(count: int):
    def progress(_stage: str, done: int, _total: int) -> None:
        if done == count:
            raise Killed

    return progress


def test_a_killed_run_goes_on(build, study, tmp_path) -> None:
    journal = tmp_path / "j"
    expected = study(build(MLP)).analyze(Precision.INT8)
    told: list[tuple[int, int]] = []
    for count in (3, 5, 9):
        with pytest.raises(Killed):
            study(build(MLP)).analyze(Precision.INT8, journal=journal, progress=killed_at(count))
        assert len(journal.read_text().splitlines()) == 1 + count
    with journal.open("a") as file:
        file.write('{"name": "int8 only b", "val')  # cut off in the middle
    found = study(build(MLP)).analyze(
        Precision.INT8, journal=journal, progress=lambda _, *n: told.append(n)
    )
    assert found == expected
    total = 3 + 3 * 4  # metric, facts and the whole; three layers in both views and two parts
    assert (told[0], told[-1]) == ((9, total), (total, total))


def test_a_finished_run_opens_no_session(build, study, tmp_path, monkeypatch) -> None:
    journal = tmp_path / "j"
    first = study(build(MLP))
    expected = first.analyze(Precision.INT8, Precision.INT8_WEIGHTS, journal=journal)
    again = study(build(MLP))
    content = journal.read_bytes()

    def refuse(*_args, **_options):
        raise AssertionError("a session was opened")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    assert again.analyze(Precision.INT8, Precision.INT8_WEIGHTS, journal=journal) == expected
    assert journal.read_bytes() == content
    with pytest.raises(AssertionError, match="a session was opened"):
        again.analyze(Precision.INT8, journal=journal)  # another run


def test_the_journal_of_another_run_is_not_read(build, study, noise, tmp_path) -> None:
    journal, model = tmp_path / "j", build(MLP)
    study(model).analyze(Precision.INT8, journal=journal)
    key = json.loads(journal.read_text().splitlines()[0])["key"]
    others = [
        study(model, noise(model, samples=5)),
        study(model, recipe=Recipe(keep_float=("a",))),
        study(build(MLP.replace("Relu", "Tanh"))),
    ]
    for other in others:
        found = other.analyze(Precision.INT8, journal=journal)
        assert found == other.analyze(Precision.INT8)
        head = json.loads(journal.read_text().splitlines()[0])
        assert head["key"] != key
        key = head["key"]


def test_a_journal_that_cannot_be_written(build, study, tmp_path) -> None:
    with pytest.raises(OutputError):
        study(build(MLP)).analyze(Precision.INT8, journal=tmp_path / "nowhere" / "j")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n", b"no journal\n", b"[1]\n{}\n"])
def test_a_file_that_is_no_journal_is_replaced(tmp_path, content) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    journal = Journal(path, "key")
    journal.put("one", 1.5)
    assert Journal(path, "key").get("one", float) == 1.5
    assert "one" not in Journal(path, "other")


# Workers.


def test_workers_find_the_same(build, study) -> None:
    expected = study(build(MLP)).analyze(Precision.INT8)
    assert study(build(MLP)).analyze(Precision.INT8, workers=Workers(2)) == expected


def test_any_executor_will_do(build, study) -> None:
    expected = study(build(MLP)).analyze(Precision.INT8)
    with ThreadPoolExecutor(3) as pool:
        found = study(build(MLP)).analyze(Precision.INT8, workers=Workers(3, pool))
    assert found == expected


def test_a_metric_must_be_known_to_workers(build, study) -> None:
    found = study(build(MLP), metric=MetricChoice("mine", lambda outputs, labels: 1.0))
    with pytest.raises(UsageError, match="cannot be sent to workers"):
        found.analyze(Precision.INT8, workers=Workers(2))


@pytest.mark.parametrize("line", ["5", "[]", '{"a": 1}', '"x"'])
def test_a_line_that_is_no_finding_is_dropped(tmp_path, line) -> None:
    path = tmp_path / "j"
    Journal(path, "k").put("one", 1)
    path.write_text(path.read_text() + line + "\n")
    again = Journal(path, "k")
    assert again.get("one", int) == 1


def test_a_finding_of_another_kind_is_told(tmp_path) -> None:
    path = tmp_path / "j"
    Journal(path, "k").put("one", "x")
    with pytest.raises(OutputError, match="delete it"):
        Journal(path, "k").get("one", int)
