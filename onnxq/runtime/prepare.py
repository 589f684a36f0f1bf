"""``prepare``: fold constants and BatchNorm, and prove that the model computes the same."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from onnxq.errors import ModelError, RuntimeFailure
from onnxq.graph import (
    MINIMUM_OPSET,
    Editor,
    GraphView,
    Model,
    NodeView,
    drop_dead_channels,
    load,
    name_norms,
    name_pools,
    normalize,
    restore_identity,
)
from onnxq.numerics import sqnr_db
from onnxq.runtime.session import Session
from onnxq.targets import Target
from onnxq.types import Array, Feed, TensorSpec

# Folding BatchNorm rounds every weight once more: an error of about 2^-24 of each value, which a
# deep network sums up. 60 dB (a thousandth) is far below what a wrong rewrite causes and far above
# rounding. Widening float16 leaves float16's own rounding, 2^-11 a step.
SAME_DB, SAME_FLOAT16_DB = 60.0, 30.0
# Integers (an argmax) follow from floats, and rounding may break a tie the other way.
SAME_INTEGERS = 0.99
STANDARD_DOMAINS = ("", "ai.onnx.ml")
RUNTIME_DOMAINS = (
    "", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.training",
    "ai.onnx.preview.training", "com.microsoft", "com.ms.internal.nhwc", "org.pytorch.aten",
)  # fmt: skip


# ONNX Runtime's own operator for an Add and the LayerNormalization behind it.
SKIP_NORM = "com.microsoft::SkipLayerNormalization"


def prepare(
    model: Model,
    feed: Feed | None = None,
    opset: int = MINIMUM_OPSET,
    target: Target | None = None,
) -> Model:
    """Bring a model into the form that is quantized, without changing what it computes.

    Inlines functions, takes initializers out of the inputs, raises the opset, widens
    float16, names nodes, folds constants and BatchNorm with ONNX Runtime's BASIC level,
    infers shapes, and writes means over whole images as GlobalAveragePool and layer
    normalizations as LayerNormalization, for which it raises the opset to 17 where it can. Takes
    out channels of convolutions that are constant or never read. An Add that the runtime would
    fuse with a LayerNormalization behind it, to its loss, becomes Sum.

    Args:
        model: The model as loaded.
        feed: One feed to check with that the outputs stay the same; made up when None. Without
            one, a model that one protobuf file cannot hold is not run at all: that takes several
            times its size in memory.
        opset: The least opset that the quantized form needs.
        target: What the model is meant for; a processor like this one if None.

    Returns:
        A new model whose ``notes`` tell what was done.

    Raises:
        ModelError: A step fails, or the outputs change.
        RuntimeFailure: ONNX Runtime cannot load the model.
    """
    _refuse_custom_domains(model)
    normal = normalize(model, opset)
    if feed is None and not model.fits_one_file:
        note = "too large to fold in memory: only named its nodes and inferred shapes"
        return restore_identity(normal.copy(), normal).with_notes(note)
    prepared = name_norms(name_pools(restore_identity(_fold(normal), normal)))
    prepared = drop_dead_channels(prepared)
    if target is None or target.splits_norms:
        prepared = _split_norms(prepared)
    before, after = len(normal.view().nodes), len(prepared.view().nodes)
    if after < before:
        prepared = prepared.with_notes(f"folded {before} nodes to {after}")
    return _check_same(model, prepared, feed)


def _refuse_custom_domains(model: Model) -> None:
    """Name the node that no installed ONNX Runtime kernel runs, before it fails to load."""
    local = {(domain, op) for domain, op, _ in model.ir.functions}
    for name, domain, op in model.operators():
        if domain not in RUNTIME_DOMAINS and (domain, op) not in local:
            raise ModelError(
                f"node '{name}' of '{model.path}' is a {domain}::{op}: ONNX Runtime has no kernel "
                "for this custom operator, so the model cannot be measured",
                "cut the model before such nodes, and quantize the rest",
            )


def _fold(model: Model) -> Model:
    folded = _optimized(model, "basic")
    foreign = _domains(folded) - _domains(model) - set(STANDARD_DOMAINS)
    if foreign:
        raise ModelError(
            f"folding '{model.path}' made nodes of {', '.join(sorted(foreign))}", "use --no-prepare"
        )
    return folded


def _optimized(model: Model, level: str) -> Model:
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        written = Path(folder) / "optimized.onnx"
        Session(model, level=level, write_optimized=written).close()
        if not written.is_file():
            raise ModelError(
                f"ONNX Runtime did not write the optimised form of '{model.path}'",
                "use --no-prepare",
            )
        return load(written, in_memory=True)


def _split_norms(model: Model) -> Model:
    """Write an Add as Sum, which is the same, where ONNX Runtime fuses it with what normalizes it.

    Its kernel for the two adds up one value after another, and takes two to five times as long as
    they do by themselves. Left as it is where that would cost another fusion, such as Attention.
    """
    sums = [add for node in model.view().nodes if (add := _residual(model.view(), node))]
    if not sums:
        return model
    fused = _optimized(model, "all").view()
    skips = {t for node in fused.nodes if node.full_op == SKIP_NORM for t in node.outputs}
    editor, count = Editor(model), 0
    for add in sums:
        (reader,) = model.view().uses(add.outputs[0])
        if skips.intersection(model.view().by_name[reader.node].outputs):
            editor.replace(add.name, "Sum", add.inputs)
            count += 1
    split = editor.finish()
    if not count or _fusions(fused) - _fusions(_optimized(split, "all").view()):
        return model
    return split.with_notes(
        f"wrote {count} Add before layer normalizations as Sum, not to be fused"
    )


def _residual(view: GraphView, node: NodeView) -> NodeView | None:
    """The Add that a LayerNormalization alone reads."""
    add = view.producer(node.inputs[0]) if node.full_op == "LayerNormalization" else None
    if add is None or add.full_op != "Add" or add.outputs[0] in view.output_names:
        return None
    return add if len(view.uses(add.outputs[0])) == 1 else None


def _fusions(optimized: GraphView) -> Counter[str]:
    """How many there are of each of ONNX Runtime's own operators but the one that is to go."""
    return Counter(n.full_op for n in optimized.nodes if n.domain and n.full_op != SKIP_NORM)


def _domains(model: Model) -> set[str]:
    return {node.domain for node in model.view().nodes}


def _check_same(source: Model, prepared: Model, feed: Feed | None) -> Model:
    original, made_up = Session(source), feed is None
    try:
        feed = synthetic_feed(original.inputs) if feed is None else feed
        expected = original.run(feed)
    except RuntimeFailure:
        if not made_up:
            raise
        # A made-up feed can be one that the model itself does not take.
        return prepared.with_notes("could not check that the outputs are unchanged: no data")
    original.close()  # two sessions at a time are memory for nothing
    with Session(prepared) as session:
        found = session.run(feed)
    half = any("float16" in note for note in prepared.notes)
    for name, value in expected.items():
        if not _same(value, found[name], SAME_FLOAT16_DB if half else SAME_DB):
            raise ModelError(
                f"preparing '{source.path}' changed what output '{name}' computes "
                f"({'; '.join(prepared.notes)})",
                "use --no-prepare, and report the model",
            )
    return prepared


def _same(expected: Array, found: Array, least_db: float) -> bool:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if np.issubdtype(expected.dtype, np.floating):
        return sqnr_db(expected, found) >= least_db
    return expected.size == 0 or bool(np.mean(expected == found) >= SAME_INTEGERS)


def synthetic_feed(inputs: tuple[TensorSpec, ...], seed: int = 0) -> Feed:
    """A made-up feed: normal noise for floats, small integers; symbolic axes get size 1.

    Raises:
        RuntimeFailure: An input is no tensor of numbers, or its rank is not known.
    """
    rng = np.random.default_rng(seed)
    feed: Feed = {}
    for spec in inputs:
        kind = np.sctypeDict.get(spec.dtype, np.object_)
        if spec.shape is None or not issubclass(kind, (np.number, np.bool_)):
            what = f"input '{spec.name}' ({spec.dtype or 'of unknown type'})"
            raise RuntimeFailure(f"no feed can be made up for {what}", "give --data")
        shape = [d if isinstance(d, int) and d > 0 else 1 for d in spec.shape]
        if issubclass(kind, np.floating):
            feed[spec.name] = rng.standard_normal(shape).astype(kind)
        else:
            feed[spec.name] = rng.integers(0, 2, shape).astype(kind)
    return feed
