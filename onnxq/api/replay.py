"""``replay``: the plan of a receipt, applied again without data."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec.structs import replace as with_fields

from onnxq.api.backends import settled
from onnxq.api.job import Job, Origin, Progress, refuse_libraries
from onnxq.api.pipeline import (
    RECEIPT_SCHEMA,
    Result,
    apply_plan,
    check_targets,
    make_receipt,
    write_result,
)
from onnxq.api.stages import Draft, open_reader
from onnxq.calibrate import Ranges
from onnxq.data import Data
from onnxq.errors import SelfCheckError, UnusableError, UsageError
from onnxq.graph import GraphView, Model, load, sha256
from onnxq.ops import classify
from onnxq.plan import QuantPlan, needed_opset
from onnxq.runtime import environment, prepare
from onnxq.targets import TARGETS, Provider, get_target
from onnxq.verify import MetricChoice, Receipt, load_metric

# What the bytes of an output depend on beside model and plan.
_VERSIONS = ("onnxq", "onnxruntime")


def load_receipt(path: str | Path) -> Receipt:
    """Read a receipt.

    Raises:
        UnusableError: It cannot be read, or holds something else.
    """
    try:
        receipt = Receipt.from_json(Path(path).read_bytes())
    except OSError as error:
        raise UnusableError(f"cannot read receipt '{path}': {error.strerror}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise UnusableError(
            f"'{path}' is no receipt: {error}", "onnxq writes it beside each output"
        ) from error
    if receipt.schema != RECEIPT_SCHEMA:
        raise UnusableError(
            f"receipt '{path}' is of schema {receipt.schema}; this onnxq reads {RECEIPT_SCHEMA}"
        )
    return receipt


def replay(
    model: str | Path | Model,
    receipt: str | Path | Receipt,
    *,
    test_data: Data | None = None,
    metric: str | None = None,
    provider: Provider | None = None,
    output: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Apply the plan of a receipt to the model that it was made for.

    Nothing is calibrated and nothing is decided: with the same versions, the output has the same
    bytes. The plan may have been changed by hand before: a node that is set to ``float`` becomes
    float.

    Args:
        model: A path, or a model that was loaded.
        receipt: A receipt, or the path of one.
        test_data: Samples to verify with, in any form that ``onnxq.data.open_data`` takes;
            without them only size, speed and what runs as int8 are measured, and no budget of
            accuracy counts.
        metric: ``top1`` or ``module:function``; the receipt's when None, which may name no code.
        provider: Where the output is measured; that of the receipt's recipe if None, which may
            bring no code. The output has the same bytes wherever that is.
        output: Where to write the model; its receipt goes beside it. Without it nothing is
            written.
        force: Whether an existing output may be overwritten.
        progress: Called with (stage, done, total).

    Raises:
        UsageError: The receipt is of another model.
        UnusableError: The receipt cannot be read, or its plan does not fit the model.
        OnnxqError: As ``quantize``.
    """
    known = receipt if isinstance(receipt, Receipt) else load_receipt(receipt)
    source = model if isinstance(model, Model) else load(model)
    _check_same(source, known)
    if provider is None:
        named = Path(receipt if isinstance(receipt, str | Path) else "receipt")
        refuse_libraries(known.recipe, named)
    here = with_fields(known.recipe, provider=provider or known.recipe.provider)
    job = Job(here, prepare=known.run.prepare, seed=known.run.seed, progress=progress)
    job = settled(job, source)
    path = Path(output) if output is not None else None
    read = [Path(file) for file in (test_data, receipt) if isinstance(file, str | Path)]
    if path is not None:
        check_targets(path, source, read, force=force)
    drafted = _draft(source, known, test_data)
    made = _apply(drafted)
    told, budgets = MetricChoice(), known.recipe.budgets
    if test_data is not None:
        told = load_metric(metric or known.recipe.verify.metric, allow_code=metric is not None)
    else:
        budgets = with_fields(budgets, **dict.fromkeys(budgets.of_accuracy))
    found = make_receipt(drafted, made, path, job, told, budgets, job.recipe.provider)
    calibrated = {name: digest for name, digest in known.data.items() if name != "test"}
    found = with_fields(found, data=calibrated | found.data)
    if path is not None:
        found = write_result(made, path, found, large=not source.fits_one_file)
    return Result(made, drafted, found, path)


def _check_same(source: Model, receipt: Receipt) -> None:
    found = sha256(source)
    if found != receipt.source.sha256:
        raise UsageError(
            f"the receipt is of '{receipt.source.path}' ({receipt.source.sha256[:12]}), and "
            f"'{source.path}' is another model ({found[:12]})",
            "its plan fits the very same file only; quantize this one anew",
        )
    if receipt.training is not None:
        raise UsageError(
            "the receipt is of trained weights, which it does not hold",
            f"train again with its recipe and seed {receipt.run.seed}: `onnxq qat`",
        )


def _draft(source: Model, receipt: Receipt, test_data: Data | None) -> Draft:
    recipe, plan = receipt.recipe, receipt.plan
    if plan.target not in TARGETS:
        raise UnusableError(f"the receipt's plan is for target '{plan.target}', which is not known")
    test = None
    if test_data is not None:
        test = open_reader(test_data, Origin(), source.view().inputs, recipe)
    target = get_target(plan.target)
    prepared = source
    if receipt.run.prepare:
        prepared = prepare(source, None, needed_opset(recipe), target)
    view = prepared.view()
    _check_fits(plan, view)
    return Draft(
        source, prepared, classify(view, target), Ranges(0, receipt.ranges),
        _without_idle_pairs(plan, view), recipe, None, test, _notes(receipt, test_data),
        leaves_out=receipt.run.leaves_out,
    )  # fmt: skip


def _check_fits(plan: QuantPlan, view: GraphView) -> None:
    names, planned = ({node.name for node in nodes} for nodes in (view.nodes, plan.nodes))
    if names != planned:
        raise UnusableError(
            f"the receipt's plan does not fit the model: only one of them has node "
            f"'{min(names ^ planned)}'",
            "other versions may prepare a model otherwise; quantize it anew",
        )
    known = {tensor for node in view.nodes for tensor in (*node.inputs, *node.outputs)}
    if strange := {*plan.tensors, *plan.blocks} - known - set(view.names):
        raise UnusableError(f"the receipt's plan is of tensor '{min(strange)}', which is not there")


def _without_idle_pairs(plan: QuantPlan, view: GraphView) -> QuantPlan:
    """The plan without pairs that no node on integers makes or reads.

    There are some only where nodes were set to float by hand.
    """
    static = [view.by_name[node.name] for node in plan.nodes if node.precision.static]
    beside = {tensor for node in static for tensor in (*node.inputs, *node.outputs)}
    tensors = {t: p for t, p in plan.tensors.items() if t in beside or view.is_constant(t)}
    return with_fields(plan, tensors=tensors)


def _apply(drafted: Draft) -> Model:
    if drafted.plan.empty:
        return drafted.source
    try:
        return apply_plan(drafted)
    except (SelfCheckError, LookupError, ValueError, ArithmeticError) as error:
        raise UnusableError(
            f"the receipt's plan cannot be applied: {type(error).__name__}: {error}",
            "set nodes to float in it by hand, and nothing else",
        ) from error


def _notes(receipt: Receipt, test_data: Data | None) -> tuple[str, ...]:
    here, notes = environment(), []
    moved = [
        f"{name} {receipt.environment[name]} (here {here[name]})"
        for name in _VERSIONS
        if receipt.environment.get(name, here[name]) != here[name]
    ]
    if moved:
        notes.append(f"the receipt was made with {', '.join(moved)}: bytes may differ")
    if test_data is None:
        left = list(receipt.recipe.budgets.of_accuracy)
        text = "applied again without data: accuracy was not measured"
        text += f", nor budget {', '.join(left)} checked" if left else ""
        notes.append(f"{text}; give --test-data")
    return tuple(notes)
