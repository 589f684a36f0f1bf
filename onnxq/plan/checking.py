"""The recipe's table of ``onnxq check``: how much worse than its baseline a model may be."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from onnxq.plan.settings import Section

CheckName = Literal["metric", "agreement", "sqnr", "size", "latency", "coverage", "ranges"]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
# JSON has no infinity: a gate that is not to count stands in ``skip``.
Tolerance = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class CheckSettings(Section, frozen=True):
    """The most that a newly exported model may be worse than its baseline.

    Attributes:
        max_metric_drop: Of the quantized model's metric, as a fraction (0.005: half a point). It
            is missed when the samples prove more, with 95 % confidence.
        max_agreement_drop: Of the share of answers that quantization leaves as they are, in the
            same way.
        max_sqnr_loss: Of any output's signal-to-quantization-noise ratio, in dB.
        max_size_growth: Of the bytes of the quantized model, as a fraction of the baseline's.
        max_slowdown: Of its time per run of the prepared float model, as a fraction of the
            baseline's; on the baseline's machine alone.
        max_coverage_drop: Of the share of nodes that are quantized and really run so.
        max_range_change: Of the ends of any calibrated range, as a fraction of its width.
        skip: Gates that are not looked at: ``metric``, ``agreement``, ``sqnr``, ``size``,
            ``latency``, ``coverage``, ``ranges``.
    """

    max_metric_drop: Share = 0.005
    max_agreement_drop: Share = 0.01
    max_sqnr_loss: Tolerance = 3.0
    max_size_growth: Tolerance = 0.05
    max_slowdown: Tolerance = 0.25
    max_coverage_drop: Share = 0.02
    max_range_change: Tolerance = 0.5
    skip: tuple[CheckName, ...] = ()
