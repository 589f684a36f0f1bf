"""``check_model``: quantize a new export as its baseline was, and tell what got worse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec.structs import replace as with_fields

from onnxq.api.backends import settled
from onnxq.api.job import (
    Job,
    Origin,
    Progress,
    make_job,
    refuse_libraries,
    with_data,
    with_test_data,
)
from onnxq.api.pipeline import apply_plan, made_by, make_receipt, metric_of, read_files
from onnxq.api.replay import load_receipt
from onnxq.api.stages import Draft, draft, usual_precision
from onnxq.data import Data, check_output
from onnxq.errors import UsageError
from onnxq.graph import SMALL_TYPES_OPSET, Model, files_of, load, write_bytes
from onnxq.plan import (
    CheckSettings,
    Choice,
    NodePlan,
    Recipe,
    find_recipe,
    make_plan,
    pinned,
)
from onnxq.runtime import StateLoop, environment
from onnxq.targets import get_target
from onnxq.types import Feed, Precision
from onnxq.verify import (
    Changes,
    Check,
    LatencyFacts,
    Receipt,
    changes_of,
    measure_speed,
    other_machine,
    regressions,
)

# A latency that is missed is measured so often again: a slow model is slow each time.
AGAIN = 2
# What a recipe decides about the precision of nodes: where one differs, the baseline's plan is not
# what is wanted.
_DECIDES = ("objective", "float_type", "format", "keep_float", "keep_float_op", "layers")
_LIKE_BEFORE = "as in the baseline's plan"


@dataclass(frozen=True)
class Checked:
    """What ``check_model`` found.

    Attributes:
        check: The gates, and what changed.
        receipt: The receipt of this run: what ``update`` makes the next baseline.
    """

    check: Check
    receipt: Receipt


def baseline_path(model: Path) -> Path:
    """Where the baseline of a model is looked for: ``m.baseline.json`` for ``m.onnx``."""
    return model.with_suffix(".baseline.json")


def check_model(
    model: str | Path | Model,
    baseline: str | Path | None = None,
    *,
    data: Data | None = None,
    test_data: Data | None = None,
    recipe: Recipe | str | Path | None = None,
    settings: CheckSettings | None = None,
    search: bool = False,
    update: bool = False,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Checked:
    """Quantize a model, and hold what comes out against the receipt of an earlier one.

    Args:
        model: The new export.
        baseline: A receipt; ``MODEL.baseline.json`` if None.
        data: Calibration data, in any form that ``onnxq.data.open_data`` takes. Wins over the
            recipe's.
        test_data: Test data, in the same forms.
        recipe: A recipe, the path of one, or ``preset:NAME``; without it the one beside the
            model, and without that the baseline's, whose paths start from the baseline's folder.
        settings: How much worse it may be; what the recipe says if None.
        search: Whether plans are searched anew, and not the baseline's is applied again.
        update: Whether this run becomes the baseline, whatever the gates say.
        seed: Draws the calibration samples; the baseline's if None.
        progress: Called with (stage, done, total).

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.

    Examples:
        >>> onnxq.check_model("model.onnx").check.passed  # doctest: +SKIP
        True
    """
    path = model.path if isinstance(model, Model) else Path(model)
    if baseline is None and path is None:
        raise UsageError("a model in memory has no baseline beside it", "name one")
    beside = Path(baseline) if baseline is not None else baseline_path(path or Path())
    job = replace(check_job(path, beside, recipe), progress=progress)
    job = job if seed is None else replace(job, seed=seed)
    job = with_data(job, data) if data is not None else job
    job = with_test_data(job, test_data) if test_data is not None else job
    if settings is not None:
        job = replace(job, recipe=with_fields(job.recipe, check=settings))
    return run_check(model, job, beside, search=search, update=update)


def check_job(model: Path | None, baseline: Path, recipe: Recipe | str | Path | None = None) -> Job:
    """The job of a check: by which recipe, for which target, with which seed.

    The recipe is the one that is given, or the one beside the model, or the baseline's. What it
    leaves open about the target, the baseline's plan says, whatever machine this is.

    Raises:
        UnusableError: The baseline cannot be read, or is none.
        RecipeError: The recipe cannot be read.
    """
    known = load_receipt(baseline) if baseline.is_file() else None
    beside = find_recipe(model) if model is not None and model.is_file() else None
    if known is None or recipe is not None or beside is not None:
        job = make_job(model, recipe)
    else:  # a receipt that lies somewhere may name no code, as a recipe that was found may not
        origin = Origin(baseline.parent, allow_code=False)
        refuse_libraries(known.recipe, baseline)
        job = Job(
            known.recipe, data_from=origin, test_from=origin, metric_from=origin,
            observer_from=origin, recipe_from=origin,
        )  # fmt: skip
    if known is None:
        return job
    target = job.recipe.target or known.plan.target
    return replace(
        job,
        recipe=with_fields(job.recipe, target=target),
        seed=known.run.seed,
        prepare=known.run.prepare,
    )


def run_check(
    model: str | Path | Model,
    job: Job,
    baseline: Path,
    *,
    search: bool = False,
    update: bool = False,
) -> Checked:
    """Run a job, and hold what it made against a baseline.

    Without a baseline, ``update`` makes the first one.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree. Nothing is written then.
    """
    source = model if isinstance(model, Model) else load(model)
    job = settled(job, source)
    before = _known(baseline, update=update)
    if update:
        check_output(baseline, [*files_of(source), *read_files(job)], force=True)
    plan, after = _measured(source, job, before, search=search, update=update)
    gates = regressions(before, after, job.recipe.check) if before is not None else ()
    changes = changes_of(before, after) if before is not None else Changes()
    if update:
        write_bytes(after.to_json(), baseline)
    check = Check(
        model=str(source.path or ""),
        baseline=str(baseline),
        passed=all(gate.status != "failed" for gate in gates),
        gates=gates,
        changes=changes,
        plan=plan,
        notes=after.measured.notes + _budgets(after),
        updated=update,
    )
    return Checked(check, after)


def _known(baseline: Path, *, update: bool) -> Receipt | None:
    """The baseline; None where this run makes the first one.

    Raises:
        UnusableError: It cannot be read.
        UsageError: It is of weights that are in no export.
    """
    if update and not baseline.exists():
        return None
    known = load_receipt(baseline)
    if known.training is not None:
        raise UsageError(
            f"baseline '{baseline}' is of trained weights, which no new export has",
            "name another with --baseline; --update makes it",
        )
    return known


def _measured(
    source: Model, job: Job, before: Receipt | None, *, search: bool, update: bool
) -> tuple[str, Receipt]:
    """How the plan was made, in words, and the receipt of the run."""
    anew = "" if before is None else _why_anew(job, before, search=search)
    job = _timed(job, None if update or anew else before)
    if before is None or anew:
        drafted, made, after = made_by(source, job)
        plan = f"planned anew: {anew}" if anew else "the first baseline"
    else:
        drafted, plan = _drafted_like(source, job, before)
        made = source if drafted.plan.empty else apply_plan(drafted)
        after = make_receipt(drafted, made, None, job, metric_of(job))
    if before is not None and not update:
        after = _confirmed(before, after, (source, drafted.prepared, made), drafted)
    return plan, after


def _timed(job: Job, before: Receipt | None) -> Job:
    """The job without timing where that is of no use: nothing to compare with, and no search."""
    useless = before is not None and (
        before.measured.latency is None or bool(other_machine(before, environment()))
    )
    if not useless and "latency" not in job.recipe.check.skip:
        return job
    verify = with_fields(job.recipe.verify, seconds=0.0)
    return replace(job, recipe=with_fields(job.recipe, verify=verify))


def _why_anew(job: Job, before: Receipt, *, search: bool) -> str:
    """Why the baseline's plan is not applied again; empty where it is."""
    if search:
        return "--search"
    recipe, known = job.recipe, before.recipe
    wanted = {"precision": usual_precision(job).value, "target": recipe.target}
    wanted |= {key: getattr(recipe, key) for key in _DECIDES}
    there = {key: getattr(known, key) for key in wanted} | {"target": before.plan.target}
    differ = [key for key, value in wanted.items() if value != there[key]]
    return f"the recipe says another {' and '.join(differ)}" if differ else ""


# They are stored in types that older operator sets do not have.
_SMALL_TYPES = (Precision.INT4_WEIGHTS, Precision.INT16)


def _drafted_like(source: Model, job: Job, baseline: Receipt) -> tuple[Draft, str]:
    """A draft whose nodes have the precisions of an earlier plan, as far as they are still there.

    Scales are of the new weights and ranges, without outliers where the plan's were so. Nodes that
    are new, or another operator than before, have what the recipe wants of all.
    """
    drafted, before = draft(source, job), baseline.plan
    if baseline.run.leaves_out and drafted.trimmed is not None:
        drafted = replace(drafted, ranges=drafted.trimmed, leaves_out=True)
    recipe, census = drafted.recipe, drafted.census
    known = {node.name: node for node in before.nodes}
    said = pinned(census, recipe)
    able = drafted.prepared.opset >= SMALL_TYPES_OPSET
    alike = {
        node.name: known[node.name]
        for node in census.nodes
        if node.name in known
        and known[node.name].op == node.op
        # a plan that was changed by hand may want what this graph was not prepared for
        and (able or known[node.name].precision not in _SMALL_TYPES)
    }
    choices = {n.name: Choice(n.precision, _LIKE_BEFORE) for n in alike.values()}
    plan = make_plan(
        drafted.prepared.view(),
        census,
        drafted.ranges.tensors,
        recipe,
        get_target(before.target),
        {name: choice for name, choice in choices.items() if name not in said},
    )
    plan = with_fields(plan, nodes=tuple(_with_its_reason(node, alike) for node in plan.nodes))
    told = f"the baseline's, on {len(alike)} of {len(plan.nodes)} nodes"
    if new := len(plan.nodes) - len(alike):
        told += f"; {new} new one{'s' if new > 1 else ''} by the recipe"
    return replace(drafted, plan=plan), told


def _with_its_reason(node: NodePlan, alike: Mapping[str, NodePlan]) -> NodePlan:
    """A node with the reason that it had before, where it is what it was."""
    known = alike.get(node.name)
    if known is None or known.precision is not node.precision:
        return node
    return with_fields(node, reason=known.reason)


def _confirmed(
    before: Receipt, after: Receipt, models: tuple[Model, Model, Model], drafted: Draft
) -> Receipt:
    """The receipt with the best of several latencies, where the first one misses its gate."""
    recipe = drafted.recipe
    for _ in range(AGAIN):
        gates = {gate.name: gate for gate in regressions(before, after, recipe.check)}
        if gates["latency"].status != "failed" or after.measured.latency is None:
            break
        again, _ = measure_speed(
            models, _feed(drafted), recipe.verify.threads, recipe.verify.seconds, None,
            provider=recipe.provider,
        )  # fmt: skip
        if _speed(again) > _speed(after.measured.latency):
            after = with_fields(after, measured=with_fields(after.measured, latency=again))
    return after


def _speed(latency: LatencyFacts | None) -> float:
    return latency.undisturbed or 0.0 if latency is not None else 0.0


def _feed(drafted: Draft) -> Feed | None:
    """The first test samples, complete; None without any."""
    if drafted.test is None:
        return None
    data, view = drafted.recipe.data, drafted.source.view()
    first = next(drafted.test.batches(1 if data.state else data.batch_size))
    return StateLoop(data.state, view.inputs, view.output_names).complete(first.feed)


def _budgets(receipt: Receipt) -> tuple[str, ...]:
    """What a budget of the recipe's says: it asks for a proof, and is `quantize`'s to judge."""
    return tuple(
        f"budget {gate.name} {gate.limit:g} is missed: `onnxq quantize` would not hand this over"
        for gate in receipt.gates
        if not gate.passed
    )
