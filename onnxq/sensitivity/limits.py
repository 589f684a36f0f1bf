"""How much a plan may lose: the user's budgets, or what is asked of everybody."""

from __future__ import annotations

import math

import msgspec
from msgspec.structs import replace as with_fields

from onnxq.plan import Budgets
from onnxq.sensitivity.values import Loss

# What is asked where no budget on accuracy is given. A point of the metric. Without labels, three
# answers of a hundred may change, of which a classifier loses few: they are those that it was
# unsure of. For other outputs 30 dB, noise of 3 % of the amplitude, which moves a picture of 27 dB
# PSNR by less than half a dB.
USUAL_DROP, USUAL_AGREEMENT, USUAL_DB = 0.01, 0.97, 30.0
# Answers may agree by luck where the scores behind them are far off.
USUAL_SCORES_DB = 20.0
# Answers that change for each that is lost; the proof on labelled samples has the last word.
_CHANGES = 4.0


class Limits(msgspec.Struct, frozen=True):
    """The most that may be lost; None where nothing is asked.

    Attributes:
        max_drop: Of the metric, as ``Budgets.max_drop``.
        min_sqnr: In dB, of the worst output.
        min_agreement: Of the answers with the same largest score.
        usual: Whether these are what is asked of everybody, and no budget of the user's.
        whole: Whether ``min_agreement`` is read in whole answers: it is no budget of the user's.
        min_typical: In dB, of the sample in the middle: what a search asks after a failed proof.
        nearer: Whether they leave less to lose than was asked for.
    """

    max_drop: float | None = None
    min_sqnr: float | None = None
    min_agreement: float | None = None
    usual: bool = False
    whole: bool = False
    min_typical: float | None = None
    nearer: bool = False

    def kept(self, loss: Loss, float_metric: float | None) -> bool:
        """Whether a loss is within the limits; what could not be measured is not."""
        drop = None
        if loss.metric is not None and float_metric is not None:
            drop = float_metric - loss.metric
        return all((
            self.max_drop is None or (drop is not None and drop <= self.max_drop + _ROUNDING),
            _reaches(loss.sqnr_db, self.min_sqnr),
            _reaches(loss.typical_db, self.min_typical),
            _reaches(loss.agreement, self.min_agreement),
        ))  # fmt: skip

    def in_answers(self, samples: int) -> Limits:
        """The same limits, read on so many samples.

        A share that nobody asked for is read in whole answers, rounded up: of 40 answers two may
        change where three of a hundred may, since one more or less is an accident. A budget of the
        user's stays the share that it is.
        """
        if not self.whole or self.min_agreement is None:
            return self
        changed = math.ceil((1 - self.min_agreement) * samples - _ROUNDING)
        return with_fields(self, min_agreement=1 - changed / samples)

    def tightened(self, share: float) -> Limits:
        """Limits that leave so much less to lose: half of what may be lost is ``share`` 0.5."""
        db = None if self.min_sqnr is None else self.min_sqnr + _decibels(share)
        agreement = None if self.min_agreement is None else 1 - (1 - self.min_agreement) * share
        drop = None if self.max_drop is None else self.max_drop * share
        return with_fields(self, max_drop=drop, min_sqnr=db, min_agreement=agreement, nearer=True)

    def __str__(self) -> str:
        said = []
        if self.max_drop is not None:
            said.append(f"a drop of at most {self.max_drop:.4g}")
        if self.min_agreement is not None:
            said.append(f"{self.min_agreement:.4g} of the answers the same")
        if self.min_sqnr is not None:
            said.append(f"{self.min_sqnr:.4g} dB")
        if self.min_typical is not None:
            said.append(f"{self.min_typical:.4g} dB on half of the samples")
        return " and ".join(said)


_ROUNDING = 1e-9


def _reaches(value: float | None, least: float | None) -> bool:
    return least is None or (value is not None and value >= least - _ROUNDING)


def _decibels(share: float) -> float:
    return -10 * math.log10(share)


def _without_labels(limits: Limits) -> Limits:
    """Limits on a metric as limits on answers that change, where samples have no labels.

    The metric falls by no more than the share of answers that change, and mostly by much less: an
    answer may change for the better, or from one mistake to another.
    """
    if limits.max_drop is None or limits.min_agreement is not None:
        return limits
    return Limits(None, limits.min_sqnr, 1 - _CHANGES * limits.max_drop, whole=True)


def limits_of(budgets: Budgets, floating: Loss) -> Limits:
    """The limits of a search.

    Args:
        budgets: What the user asks for.
        floating: The loss of the float model itself, which shows what can be measured.

    Returns:
        The user's limits on accuracy; the usual ones where there are none.
    """
    own = Limits(budgets.max_drop, budgets.min_sqnr, budgets.min_agreement)
    if own != Limits():
        return own if floating.metric is not None else _without_labels(own)
    if floating.metric is not None:
        scores = floating.agreement is not None and floating.sqnr_db is not None
        least = USUAL_SCORES_DB if scores else None
        return Limits(max_drop=USUAL_DROP, min_sqnr=least, usual=True)
    if floating.agreement is not None:
        least = USUAL_SCORES_DB if floating.sqnr_db is not None else None
        return Limits(None, least, USUAL_AGREEMENT, usual=True, whole=True)
    if floating.sqnr_db is not None:
        return Limits(min_sqnr=USUAL_DB, usual=True)
    return Limits(usual=True)
