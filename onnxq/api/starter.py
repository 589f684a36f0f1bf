"""``starter_recipe``: the first recipe of a model."""

from __future__ import annotations

from pathlib import Path

from onnxq.graph import Model, load
from onnxq.ops import classify, refuse_quantized
from onnxq.plan import Subject, starter_text
from onnxq.runtime import default_target, prepare
from onnxq.targets import get_target


def starter_recipe(model: str | Path | Model, target: str | None = None) -> str:
    """A recipe that fits a model: TOML, in which every setting is a comment.

    Names in it are those of the prepared model, which a recipe's patterns match.

    Args:
        model: A path, or a model that was loaded.
        target: What to judge it for; this machine's processor if None.

    Raises:
        ModelError: The model cannot be read or prepared, or is quantized already.
        UsageError: There is no such target.
    """
    source = model if isinstance(model, Model) else load(model)
    refuse_quantized(source)
    judged = get_target(target or default_target())
    view = prepare(source, target=judged).view()
    name = source.path.name if source.path is not None else "a model made in memory"
    return starter_text(Subject(name, source.view(), view, classify(view, judged), judged))
