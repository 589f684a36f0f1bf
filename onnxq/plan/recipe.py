"""``Recipe``: everything a run needs to know, said once, in TOML beside the model."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from onnxq.calibrate import AUTO, OBSERVERS, ObserverSpec
from onnxq.data import Preprocess
from onnxq.errors import RecipeError, UsageError

Positive = Annotated[int, msgspec.Meta(ge=1)]
Fraction = Annotated[float, msgspec.Meta(gt=0, lt=1)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the recipe: unknown keys are errors."""


class DataSettings(_Section, frozen=True):
    """Where samples come from.

    Attributes:
        calibration: Data to calibrate with: a path, ``dataset:NAME`` or ``module:function``.
        test: Data to verify with; without it the tail of ``calibration`` is held back.
        batch_size: Samples per run; the model's own where its first axis is fixed.
        holdout: The part of ``calibration`` that is held back when there is no ``test``.
        preprocess: What is done to raw arrays.
        state: Input by output, for recurrent models: what an output holds after one run is fed to
            the input of the next. Samples are then the steps of a sequence, in order.
    """

    calibration: str | None = None
    test: str | None = None
    batch_size: Positive = 8
    holdout: Fraction = 0.2
    preprocess: Preprocess | None = None
    state: dict[str, str] = {}


class CalibrationSettings(_Section, frozen=True):
    """How ranges are chosen.

    Attributes:
        method: ``auto`` (``mse``, or ``minmax`` with fewer than 64 samples), ``mse``,
            ``percentile``, ``entropy``, ``minmax``, ``moving-average``, ``sigma``, or a class of
            yours as ``module:Class``.
        percentile: The percentage of values inside the range, for ``percentile``.
        momentum: What an average keeps at each sample, for ``moving-average``.
        warmup: The first samples, which make a plain mean, for ``moving-average``.
        sigmas: Standard deviations on both sides of the mean, for ``sigma``.
        options: Keyword arguments of your own class.
        samples: The most samples to calibrate with, drawn at random with the run's seed.
        exact: Whether every value is counted, and not a sample of large tensors.
    """

    method: str = AUTO
    percentile: Annotated[float, msgspec.Meta(gt=50, le=100)] = 99.99
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.95
    warmup: Positive = 8
    sigmas: Annotated[float, msgspec.Meta(gt=0)] = 6.0
    options: dict[str, Any] = {}
    samples: Positive = 200
    exact: bool = False

    def __post_init__(self) -> None:
        if self.method in OBSERVERS or ":" in self.method:
            return
        near = difflib.get_close_matches(self.method, OBSERVERS, n=1)
        known = f"known: {', '.join(OBSERVERS)}, or module:Class"
        hint = f"did you mean '{near[0]}'?" if near else known
        raise ValueError(f"unknown method '{self.method}'; {hint}")

    def with_method(self, method: str) -> CalibrationSettings:
        """The same settings with another method.

        Raises:
            UsageError: The method is not known.
        """
        try:
            return msgspec.structs.replace(self, method=method)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def observer(self) -> ObserverSpec:
        """The observer, with its options.

        Raises:
            UsageError: Options are given for an observer that is onnxq's own.
        """
        name = self.method
        own = {
            "percentile": {"percentile": self.percentile},
            "moving-average": {"momentum": self.momentum, "warmup": self.warmup},
            "sigma": {"sigmas": self.sigmas},
        }
        if self.options and name in OBSERVERS:
            raise UsageError(
                f"[calibration.options] are for a class of yours, not for '{name}'",
                "its options are keys of [calibration]",
            )
        return ObserverSpec(name, own.get(name, self.options))


class VerifySettings(_Section, frozen=True):
    """How the output is judged.

    Attributes:
        metric: ``top1``, or ``module:function`` taking (outputs by name, labels).
        output: The output that ``top1`` is taken of; the first that looks like class scores
            when missing.
        threads: Threads inside an operator, in every run.
        seconds: About how long to measure latency; 0 leaves it out.
    """

    metric: str = "top1"
    output: str | None = None
    threads: Positive = 1
    seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 5.0


class Budgets(_Section, frozen=True):
    """Limits that turn into gates: a missed one ends the run with exit code 1.

    Attributes:
        max_drop: The most that the metric may fall, as a fraction (0.005: half a point).
        min_sqnr: The least signal-to-quantization-noise ratio of any float output, in dB.
        min_agreement: The least top-1 agreement with the source model, as a fraction.
        max_size_ratio: The most bytes of the output per byte of the source.
        min_speedup: The least latency ratio against the prepared float model.
        min_int8: The least fraction of planned int8 nodes that really run as int8.
    """

    max_drop: float | None = None
    min_sqnr: float | None = None
    min_agreement: float | None = None
    max_size_ratio: float | None = None
    min_speedup: float | None = None
    min_int8: float | None = None

    def __post_init__(self) -> None:
        for name, limit in msgspec.structs.asdict(self).items():
            if limit is not None and not math.isfinite(limit):
                raise ValueError(f"budget '{name}' is {limit}, not a number to keep to")


class Recipe(_Section, frozen=True):
    """What to do with a model.

    Attributes:
        precision: ``int8`` (weights and activations) or ``int8-weights``; without it ``int8``
            when there are data to calibrate with, and ``int8-weights`` otherwise.
        target: The provider to plan for; detected when missing.
        per_channel: One weight scale per output channel instead of one per tensor.
        keep_float: Globs of node names that stay float.
        keep_float_op: Operator types that stay float.
        data: Where samples come from.
        calibration: How ranges are chosen.
        verify: How the output is judged.
        budgets: Limits that turn into gates.
    """

    precision: Literal["int8", "int8-weights"] | None = None
    target: str | None = None
    per_channel: bool = True
    keep_float: tuple[str, ...] = ()
    keep_float_op: tuple[str, ...] = ()
    data: DataSettings = DataSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    verify: VerifySettings = VerifySettings()
    budgets: Budgets = Budgets()

    def digest(self) -> str:
        """SHA-256 of the recipe's content."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def find_recipe(model: Path) -> Path | None:
    """The recipe beside a model, ``model.onnxq.toml`` for ``model.onnx``; None without one."""
    path = model.with_suffix(".onnxq.toml")
    return path if path.is_file() else None


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: It cannot be read, or holds an unknown key or a wrong value; the message
            tells the path of the key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read recipe '{path}': {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe '{path}' is not TOML: {error}") from error
    try:
        return msgspec.convert(table, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"recipe '{path}': {_readable(str(error))}") from error


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
        "verify": VerifySettings,
        "budgets": Budgets,
    }
    known = [field.name for field in msgspec.structs.fields(sections.get(table, Recipe))]
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    return f"unknown key '{f'{table}.{key}' if table else key}'; {hint}"
