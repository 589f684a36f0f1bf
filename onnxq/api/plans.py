"""``search_plan``: the best plan inside a budget, by the user's own evaluation; writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec.structs import replace as with_fields

from onnxq.api.job import Job, Progress, make_job, with_data, with_metric, with_test_data
from onnxq.api.search import searched
from onnxq.api.stages import draft
from onnxq.calibrate import Calibration, Workers
from onnxq.data import Data
from onnxq.errors import UsageError
from onnxq.graph import Model, load
from onnxq.plan import Budgets, QuantPlan, Recipe, checked
from onnxq.sensitivity import FrontPoint
from onnxq.verify import Candidate, MetricChoice, load_metric


@dataclass(frozen=True)
class PlanSearch:
    """What ``search_plan`` found.

    Attributes:
        plan: The best plan; where none is within the limits, the one that loses least.
        prepared: The float model that the plan is about: ``onnxq.rewrite.rewrite`` applies it.
        within: Whether the plan loses no more than it may.
        limits: What it may lose, in words.
        candidates: What was tried.
        front: The best plans from the cheapest to all float; empty where the cheapest one did.
        notes: What a reader must know to judge the plan.
    """

    plan: QuantPlan
    prepared: Model
    within: bool
    limits: str
    candidates: tuple[Candidate, ...]
    front: tuple[FrontPoint, ...]
    notes: tuple[str, ...] = ()


def search_plan(
    model: str | Path | Model,
    data: Data | None = None,
    metric: str | Callable[..., float] | None = None,
    *,
    test_data: Data | None = None,
    budgets: Budgets | None = None,
    objective: str | None = None,
    recipe: Recipe | str | Path | None = None,
    ranges: Calibration | None = None,
    workers: Workers | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PlanSearch:
    """Find the best plan inside a budget.

    ``quantize`` does the same, and then proves the plan on samples that the search never saw. Here
    all samples that calibration has not seen judge plans: figures flatter the one that is chosen.

    Args:
        model: A path, or a model that was loaded.
        data: Calibration data, in any form that ``onnxq.data.open_data`` takes; the recipe's if
            None. The tail is held back to judge with, unless there are test data.
        metric: ``top1``, ``module:function``, or a function of your own: it takes outputs by name
            and labels, over all samples, and returns a number that is higher where it is better.
            Used where samples have labels. The recipe's if None.
        test_data: Samples to judge plans with, in the same forms.
        budgets: What may be lost: ``max_drop``, ``min_sqnr`` and ``min_agreement`` count here.
            The recipe's if None; without any, what is asked of every model.
        objective: ``latency``, ``size`` or ``int8-everywhere``; the recipe's if None.
        recipe: A recipe, the path of one, or ``preset:NAME``; without it, the one beside the
            model, if any. Layers that it pins stay as it says.
        ranges: What was observed before; then nothing is calibrated.
        workers: Who calibrates and measures noise; this process alone if None.
        seed: Draws the samples.
        progress: Called with (stage, done, total).

    Returns:
        The plan, and what was tried.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.

    Examples:
        >>> budgets = Budgets(max_drop=0.005)  # doctest: +SKIP
        >>> found = onnxq.search_plan("m.onnx", "s.npz", ap50, budgets=budgets)  # doctest: +SKIP
        >>> found.within, found.plan.count(Precision.INT8)  # doctest: +SKIP
        (True, 61)
    """
    source = model if isinstance(model, Model) else load(model)
    job = replace(
        make_job(source.path, recipe),
        seed=seed,
        progress=progress,
        ranges=ranges,
        workers=workers or Workers(),
    )
    job = with_data(job, data) if data is not None else job
    job = with_test_data(job, test_data) if test_data is not None else job
    job = with_metric(job, metric) if isinstance(metric, str) else job
    job = _wanting(job, budgets, objective)
    choice = _metric(job, metric)
    drafted = draft(source, job)
    if drafted.test is None:
        raise UsageError("there are no samples to judge plans with", "give data or test_data")
    if not source.fits_one_file:
        raise UsageError(
            f"'{source.path}' is too large to try plans on", "name a precision, and quantize it"
        )
    if drafted.plan.empty:
        return PlanSearch(
            drafted.plan, drafted.prepared, within=False, limits="", candidates=(), front=()
        )
    found = searched(replace(drafted, judging=drafted.test), job, choice)
    return PlanSearch(
        found.draft.plan,
        found.draft.prepared,
        found.within,
        str(found.limits),
        found.candidates,
        found.front,
        found.draft.notes,
    )


def _wanting(job: Job, budgets: Budgets | None, objective: str | None) -> Job:
    """The job with other budgets and another objective.

    Raises:
        RecipeError: There is no such objective.
    """
    recipe = job.recipe
    wanted = with_fields(
        recipe, budgets=budgets or recipe.budgets, objective=objective or recipe.objective
    )
    return replace(job, recipe=checked(wanted))


def _metric(job: Job, metric: str | Callable[..., float] | None) -> MetricChoice:
    if metric is not None and not isinstance(metric, str):
        return MetricChoice(getattr(metric, "__name__", "metric"), metric)
    named = job.metric_from
    return load_metric(job.recipe.verify.metric, allow_code=named.allow_code, base=named.base)
