"""``Recipe``: everything a run needs to know, said once, in TOML beside the model."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from onnxq.data import Preprocess
from onnxq.errors import RecipeError, nearest
from onnxq.plan.checking import CheckSettings
from onnxq.plan.settings import (
    Budgets,
    CalibrationSettings,
    DataSettings,
    LayerRule,
    PrecisionName,
    Section,
    VerifySettings,
    WeightSettings,
)
from onnxq.plan.training import QATSettings
from onnxq.targets import CPU, Provider
from onnxq.types import Precision

Objective = Literal["latency", "size", "int8-everywhere"]


class Recipe(Section, frozen=True):
    """What to do with a model.

    Attributes:
        precision: ``int8`` (weights and activations), ``int8-dynamic`` (activations while the
            model runs), ``int8-weights``, ``int4-weights``, ``int16`` (8 bit weights, 16 bit
            activations), ``fp16``, or ``float`` where single layers say what becomes of them;
            ``auto``, which is kept as None, leaves it to onnxq.
        objective: What the best plan is: ``latency`` (the fastest inside the budgets),
            ``size`` (the smallest), ``int8-everywhere`` (all that can be int8); None for
            ``latency``.
        allow_slower: Whether an output that is slower than the prepared float model will do.
        float_type: What the float part of the model computes in: ``float32`` or ``fp16``.
        format: ``qdq`` (pairs of QuantizeLinear and DequantizeLinear) or ``qoperator`` (integer
            operators).
        target: The provider to plan for; when missing, the one that models run on, or the kind of
            this machine's processor.
        provider: Where models run while ranges, plans and the output are measured.
        per_channel: One weight scale per output channel instead of one per tensor.
        keep_float: Globs of node names that stay float.
        keep_float_op: Operator types that stay float.
        layers: What is wanted of single layers, instead of what the keys above and ``weights``
            say. Two tables that want different things of one node are an error.
        data: Where samples come from.
        calibration: How ranges are chosen.
        weights: How weights are stored that are quantized alone.
        verify: How the output is judged.
        budgets: Limits that turn into gates.
        qat: How ``onnxq qat`` trains.
        check: How much worse than its baseline a model may be, for ``onnxq check``.
    """

    precision: PrecisionName | Literal["auto"] | None = None
    objective: Objective | None = None
    allow_slower: bool = False
    float_type: Literal["float32", "fp16"] = "float32"
    format: Literal["qdq", "qoperator"] = "qdq"
    target: str | None = None
    provider: Provider = CPU
    per_channel: bool = True
    keep_float: tuple[str, ...] = ()
    keep_float_op: tuple[str, ...] = ()
    layers: tuple[LayerRule, ...] = ()
    data: DataSettings = DataSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    weights: WeightSettings = WeightSettings()
    verify: VerifySettings = VerifySettings()
    budgets: Budgets = Budgets()
    qat: QATSettings = QATSettings()
    check: CheckSettings = CheckSettings()

    def __post_init__(self) -> None:
        if self.precision == "auto":  # one form of what means the same
            msgspec.structs.force_setattr(self, "precision", None)

    @property
    def usual(self) -> Precision:
        """The precision of layers that nothing else is said of; int8 when nothing is said."""
        return Precision(self.precision or "int8")

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """All precisions that are wanted, the usual one first."""
        rules = (rule.wanted(self.usual) for rule in self.layers)
        return tuple(dict.fromkeys([self.usual, *(wanted for wanted in rules if wanted)]))

    @property
    def static(self) -> bool:
        """Whether ranges of activations are needed."""
        return any(precision.static for precision in self.precisions)

    def observers(self) -> tuple[str, ...]:
        """The calibration methods of single layers."""
        return tuple(dict.fromkeys(rule.observer for rule in self.layers if rule.observer))

    def digest(self) -> str:
        """SHA-256 of the recipe's content."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def checked(recipe: Recipe) -> Recipe:
    """The same recipe: values made in Python are checked as those of a file are.

    Raises:
        RecipeError: A value is of the wrong kind; the message tells the path of its key.
    """
    replace, options = msgspec.structs.replace, recipe.calibration.options
    plain = replace(recipe, calibration=replace(recipe.calibration, options={}))
    try:
        found = msgspec.convert(msgspec.to_builtins(plain), Recipe)
    except (msgspec.ValidationError, TypeError) as error:
        raise RecipeError(f"the recipe is wrong: {_readable(str(error))}") from error
    # options are for a class of the user's, and may be any objects
    return replace(found, calibration=replace(found.calibration, options=options))


def recipe_path(model: Path) -> Path:
    """Where the recipe of a model is looked for: ``model.onnxq.toml`` for ``model.onnx``."""
    return model.with_suffix(".onnxq.toml")


def find_recipe(model: Path) -> Path | None:
    """The recipe beside a model; None without one."""
    path = recipe_path(model)
    return path if path.is_file() else None


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: It cannot be read, or holds an unknown key or a wrong value; the message
            tells the path of the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"cannot read recipe '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe '{path}' is not TOML: {error}") from error
    return parse_recipe(text, str(path))


def parse_recipe(text: str, where: str) -> Recipe:
    """Read the text of a recipe, which messages call ``where``.

    Raises:
        RecipeError: As ``load_recipe``.
    """
    try:
        return msgspec.convert(tomllib.loads(text), Recipe)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe '{where}' is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise RecipeError(f"recipe '{where}': {_readable(str(error))}") from error


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors that know how to read one."""
    schema = msgspec.json.schema(Recipe)
    for definition in schema["$defs"].values():
        first = definition.get("description", "").split("\n\n")[0]
        definition["description"] = " ".join(first.split())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "onnxq recipe",
        **schema,
    }


def _readable(message: str) -> str:
    """Turn ``... unknown field `x` - at `$.data``` into the key's path and the nearest name."""
    match = re.search(r"unknown field `([^`]*)`(?: - at `\$\.?([^`]*)`)?", message)
    if match is None:
        return re.sub(r" - at `\$\.?([^`]*)`", r" at '\1'", message)
    key, table = match.group(1), match.group(2) or ""
    sections: dict[str, type[msgspec.Struct]] = {
        "": Recipe,
        "data": DataSettings,
        "data.preprocess": Preprocess,
        "calibration": CalibrationSettings,
        "weights": WeightSettings,
        "layers": LayerRule,
        "verify": VerifySettings,
        "budgets": Budgets,
        "provider": Provider,
        "qat": QATSettings,
        "check": CheckSettings,
    }
    section = sections.get(re.sub(r"\[\d+\]", "", table), Recipe)
    known = [field.name for field in msgspec.structs.fields(section)]
    return f"unknown key '{f'{table}.{key}' if table else key}'; {nearest(key, known)}"
