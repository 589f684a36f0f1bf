"""The table, CSV and Markdown of an analysis: figures anybody can check, names kept as they are."""

from __future__ import annotations

import csv
import io
import re

import pytest
from msgspec.structs import replace
from rich.console import Console

from onnxq.report import sensitivity_view, to_csv, to_markdown
from onnxq.report.sensitivity import COLUMNS, noise_share
from onnxq.sensitivity import Loss, SensitivityReport
from onnxq.types import Precision


def text(report: SensitivityReport, *, width: int = 120, top: int | None = None) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(sensitivity_view(report, top=top, width=width))
    return console.file.getvalue()  # type: ignore[attr-defined]


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


class TestTable:
    def test_a_row_tells_what_hurts_and_what_it_costs(self, report: SensitivityReport) -> None:
        lines = text(report, width=190).splitlines()
        (stem,) = [line for line in lines if line.strip().startswith("/stem/conv ")]
        # rest 29.0 - everything 18.6; 0.99 - 0.988 in points; 0.30 - 0.35 ms
        assert cells(stem) == [
            "/stem/conv", "Conv", "20.0", "26.0", "21.5", "29.0", "+10.4", "0.01", "96.0%", "0.2",
            "2", "0.300", "0.350", "-0.050", "1.5 k", "2.4 M",
        ]  # fmt: skip

    def test_what_was_not_measured_is_empty_and_what_did_not_change_is_the_same(
        self, report: SensitivityReport
    ) -> None:
        (line,) = [line for line in text(report).splitlines() if line.strip().startswith("sum ")]
        assert cells(line)[:3] == ["sum", "Add", "same"]

    @pytest.mark.parametrize("width", [80, 120, 190])
    def test_no_figure_is_cut_off(self, report: SensitivityReport, width: int) -> None:
        assert "…" not in text(report, width=width)
        for figure in ("20.0", "29.0", "-0.050", "1.5 k", "2.4 M"):
            assert figure in text(report, width=width)

    def test_names_are_no_markup(self, report: SensitivityReport) -> None:
        assert "block[bold]/a|b[/]" in text(report, width=190)

    def test_top_sums_up_the_rest_in_one_line(self, report: SensitivityReport) -> None:
        lines = text(report, width=190, top=1).splitlines()
        (rest,) = [line for line in lines if "and 3 more" in line]
        # the lowest SQNR of the three; 3 x 0.20 ms saved; 3,000,000 + 1,500 + 0; 2 x 2.4 M
        for figure in ("≥ 30.0", "+0.600", "3.0 M", "4.8 M"):
            assert figure in rest
        assert "block[bold]" not in "".join(lines)

    def test_layers_of_several_precisions_are_not_summed(self, report: SensitivityReport) -> None:
        other = replace(report.layers[1], precision=Precision.INT4_WEIGHTS)
        lines = text(replace(report, layers=(*report.layers, other)), width=190, top=1).splitlines()
        assert cells(next(line for line in lines if "more" in line)) == ["and 4 more", "≥ 30.0"]
        assert any("int4-weights" in line for line in lines if "precision" not in line)

    def test_verdict(self, report: SensitivityReport) -> None:
        said = " ".join(text(report, width=190).split())
        assert (
            "int8 everywhere: SQNR 18.6 dB, same top class on 94.0%, top1 0.92 (-7 points)" in said
        )
        assert "most sensitive layer: /stem/conv (Conv); alone in int8: SQNR 20.0 dB" in said
        assert "all others in int8: SQNR 29.0 dB" in said
        assert "keeping it float saves 0.050 ms" in said
        assert "note: calibrated with 8 samples" in said

    def test_other_metrics_have_no_points(self, report: SensitivityReport) -> None:
        said = text(replace(report, metric="ap50"), width=190)
        assert "ap50 0.92 (-0.07)" in said
        assert "points" not in said

    def test_without_labels_and_times_these_columns_go(self, report: SensitivityReport) -> None:
        layers = tuple(
            replace(row, float_ms=None, only=replace(row.only, metric=None), rest=None)
            for row in report.layers
        )
        bare = replace(report, layers=layers, metric=None, float_metric=None)
        said = text(bare, width=190)
        for title in ("drop", "saves ms", "all but"):
            assert title not in said
        assert "SQNR dB" in said

    def test_the_front_in_one_line(self, report: SensitivityReport) -> None:
        first, second, third = report.front
        third = replace(third, loss=Loss(200.0), ms=1.3)  # the second was not timed
        said = " ".join(text(replace(report, front=(first, second, third)), width=400).split())
        assert "2 plans from 0.71 ms (SQNR 18.6 dB, 0 layers in float)" in said
        assert "to 1.3 ms (2 in float)" in said
        alone = text(replace(report, front=(third,)), width=190)
        assert "nothing is faster than float (1.3 ms)" in alone
        assert "latency against accuracy" not in text(replace(report, front=()), width=190)

    def test_no_layers(self, report: SensitivityReport) -> None:
        assert "there is no layer to quantize" in text(replace(report, layers=()))


def test_shares_of_noise_follow_from_powers(report: SensitivityReport) -> None:
    # noise of power 10^-1.86 in all, of 10^-2 by the first layer
    assert noise_share(report, report.layers[0]) == pytest.approx(10**-2 / 10**-1.86)


class TestCsv:
    def test_every_layer_is_a_row_of_figures(self, report: SensitivityReport) -> None:
        rows = list(csv.DictReader(io.StringIO(to_csv(report))))
        assert [row["layer"] for row in rows] == [layer.name for layer in report.layers]
        assert list(rows[0]) == [column.key for column in COLUMNS]
        first, last = rows[0], rows[-1]
        assert float(first["recovered_db"]) == pytest.approx(10.4)
        assert float(first["drop"]) == pytest.approx(0.2)  # points
        assert float(first["saved_ms"]) == pytest.approx(-0.05)
        assert (last["weights_sqnr_db"], last["macs"], last["parameters"]) == ("", "", "0")


class TestMarkdown:
    def test_every_row_has_as_many_cells_as_the_head(self, report: SensitivityReport) -> None:
        rows = [line for line in to_markdown(report).splitlines() if line.startswith("|")]
        assert len(rows) == 2 + len(report.layers)
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1

    def test_names_are_text(self, report: SensitivityReport, evil: str) -> None:
        written = to_markdown(report)
        assert evil not in written
        assert re.sub(r"\\(.)", r"\1", written).count(evil) == 1  # escaped, and nothing lost

    def test_top(self, report: SensitivityReport) -> None:
        assert "| and 2 more |" in to_markdown(report, top=2)
        assert "more |" not in to_markdown(report)
