"""The pytest plugin: a fixture ``onnxq`` that fails a test where a model gets worse.

It is loaded in every run of pytest where onnxq is installed, so the library itself is imported
when the fixture is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from onnxq.data import Data
    from onnxq.plan import Recipe
    from onnxq.verify import Check, Receipt


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--onnxq-update``."""
    group = parser.getgroup("onnxq", "quantized ONNX models")
    group.addoption(
        "--onnxq-update",
        action="store_true",
        help="make the runs of onnxq.assert_unchanged the new baselines",
    )


@pytest.fixture
def onnxq(request: pytest.FixtureRequest) -> Assertions:
    """Assertions about models: ``assert_quantizes`` and ``assert_unchanged``."""
    return Assertions(update=bool(request.config.getoption("--onnxq-update")))


class Assertions:
    """What the fixture ``onnxq`` is.

    Args:
        update: Whether ``assert_unchanged`` writes baselines instead of failing.
    """

    def __init__(self, *, update: bool = False) -> None:
        self._update = update

    def assert_quantizes(
        self,
        model: str | Path,
        *,
        data: Data | None = None,
        test_data: Data | None = None,
        recipe: Recipe | str | Path | None = None,
        seed: int = 0,
        **budgets: float,
    ) -> Receipt:
        """Quantize a model, and fail where a budget is missed.

        Nothing is written. Speed is measured where ``min_speedup`` is given alone: a unit test has
        other things to do.

        Args:
            model: The float model.
            data: Calibration data, in any form that ``onnxq.data.open_data`` takes. Wins over the
                recipe's.
            test_data: Test data, in the same forms.
            recipe: A recipe, the path of one, or ``preset:NAME``; without it, the one beside the
                model, if any.
            seed: Draws the calibration samples.
            **budgets: ``max_drop``, ``min_sqnr``, ``min_agreement``, ``max_size_ratio``,
                ``min_speedup`` and ``min_int8``, as in a recipe's ``[budgets]``. They win over
                those of the recipe.

        Returns:
            The receipt, to look at further.

        Raises:
            AssertionError: A budget is missed.
            OnnxqError: See ``onnxq.errors`` for the tree.

        Examples:
            >>> def test_export(onnxq):  # doctest: +SKIP
            ...     onnxq.assert_quantizes("model.onnx", data="samples.npz", max_drop=0.005)
        """
        __tracebackhide__ = True
        from dataclasses import replace

        from msgspec.structs import replace as with_fields

        from onnxq.api import make_job, run, with_data, with_test_data
        from onnxq.plan import checked

        job = make_job(Path(model), recipe)
        job = with_data(job, data) if data is not None else job
        job = with_test_data(job, test_data) if test_data is not None else job
        wanted: dict[str, Any] = dict(budgets)
        limits = with_fields(job.recipe.budgets, **wanted)
        seconds = job.recipe.verify.seconds if limits.min_speedup is not None else 0.0
        verify = with_fields(job.recipe.verify, seconds=seconds)
        quick = checked(with_fields(job.recipe, budgets=limits, verify=verify))
        receipt = run(model, replace(job, recipe=quick, seed=seed)).receipt
        missed = [gate for gate in receipt.gates if not gate.passed]
        if missed:
            lines = [f"{model} misses {len(missed)} of {len(receipt.gates)} budgets"]
            for gate in missed:
                bound = f" (bound {gate.bound:.4g})" if gate.bound is not None else ""
                value = "not measured" if gate.value is None else f"{gate.value:.4g}{bound}"
                note = f": {gate.note}" if gate.note else ""
                lines.append(f"  {gate.name} {gate.limit:g}: {value}{note}")
            raise AssertionError("\n".join(lines))
        return receipt

    def assert_unchanged(
        self,
        model: str | Path,
        baseline: str | Path | None = None,
        *,
        data: Data | None = None,
        test_data: Data | None = None,
        recipe: Recipe | str | Path | None = None,
        skip: tuple[str, ...] = (),
        **tolerances: float,
    ) -> Check:
        """Quantize a model as its baseline was, and fail where it got worse.

        With ``pytest --onnxq-update`` the run becomes the baseline instead.

        Args:
            model: The float model.
            baseline: A receipt; ``MODEL.baseline.json`` if None.
            data: Calibration data. Wins over the recipe's.
            test_data: Test data.
            recipe: A recipe, the path of one, or ``preset:NAME``; without it the one beside the
                model, and without that the baseline's.
            skip: Gates that are not looked at, beside those of the recipe's ``[check]``.
            **tolerances: ``max_metric_drop`` and the other keys of ``[check]``. They win over
                those of the recipe.

        Returns:
            What was found, to look at further.

        Raises:
            AssertionError: A figure is worse by more than its tolerance.
            OnnxqError: See ``onnxq.errors`` for the tree.
        """
        __tracebackhide__ = True
        from dataclasses import replace

        from msgspec.structs import replace as with_fields

        from onnxq.api import baseline_path, check_job, run_check, with_data, with_test_data
        from onnxq.plan import checked
        from onnxq.report import sentence, verdict

        path = Path(model)
        beside = Path(baseline) if baseline is not None else baseline_path(path)
        job = check_job(path, beside, recipe)
        job = with_data(job, data) if data is not None else job
        job = with_test_data(job, test_data) if test_data is not None else job
        known = job.recipe.check
        wanted: dict[str, Any] = dict(tolerances)
        settings = with_fields(known, **wanted, skip=(*known.skip, *skip))
        job = replace(job, recipe=checked(with_fields(job.recipe, check=settings)))
        found = run_check(path, job, beside, update=self._update).check
        if not found.passed and not found.updated:
            failed = [gate for gate in found.gates if gate.status == "failed"]
            lines = [f"{model}: {verdict(found)}", *(f"  {sentence(gate)}" for gate in failed)]
            raise AssertionError("\n".join(lines))
        return found
