"""What is asked of everybody, held against a proof: whole answers, and the figures alone."""

from __future__ import annotations

import pytest

from onnxq.api.search import usual_gates
from onnxq.sensitivity.limits import Limits
from onnxq.verify import Gate, Measured, OutputFacts, PreparedFacts

ASKED = Limits(min_sqnr=20.0, min_agreement=0.97, usual=True, whole=True)


def proof(samples: int, changed: int, sqnr_db: float = 30.0) -> Measured:
    """A proof in which so many answers of so many are others."""
    facts = OutputFacts(sqnr_db, 0.999, top1_agreement=1 - changed / samples)
    return proof_of({"scores": facts}, samples)


def proof_of(outputs: dict[str, OutputFacts], samples: int) -> Measured:
    prepared = PreparedFacts(1000, None, ())
    return Measured(1.0, prepared, outputs, samples, None, None, None, ())


def gates(limits: Limits, measured: Measured) -> dict[str, Gate]:
    return {gate.name: gate for gate in usual_gates(limits, measured)}


@pytest.mark.parametrize(
    ("samples", "most"), [(1, 1), (33, 1), (34, 2), (40, 2), (100, 3), (101, 4)]
)
def test_whole_answers_pass_and_one_more_misses(samples: int, most: int) -> None:
    kept = gates(ASKED, proof(samples, most))["min_agreement"]
    assert kept.passed
    assert kept.limit == pytest.approx(1 - most / samples, rel=1e-12)
    assert kept.note.endswith(
        f"0.97 of the answers the same, in whole answers, so that {most} of {samples} may change"
    )
    if most < samples:
        assert not gates(ASKED, proof(samples, most + 1))["min_agreement"].passed


def test_other_limits_stay_as_they_are() -> None:
    told = gates(ASKED, proof(40, 0, sqnr_db=19.9))
    assert (told["min_sqnr"].limit, told["min_sqnr"].passed) == (20.0, False)
    assert "whole answers" not in told["min_sqnr"].note


def test_not_measured_is_missed() -> None:
    told = gates(ASKED, proof_of({"boxes": OutputFacts(30.0, 0.999)}, 40))
    assert told["min_agreement"].value is None
    assert not told["min_agreement"].passed
