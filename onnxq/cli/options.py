"""Command-line options that win over the recipe's keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from msgspec.structs import replace as with_fields

from onnxq.api import (
    PRESET,
    Job,
    load_ranges,
    make_job,
    usual_precision,
    with_data,
    with_metric,
    with_observer,
    with_test_data,
)
from onnxq.calibrate import Calibration, Workers, connect
from onnxq.errors import UsageError
from onnxq.plan import Recipe
from onnxq.targets import Provider
from onnxq.types import Precision

WEIGHT_OPTIONS = ("block_size", "weight_method", "asymmetric_weights")
WEIGHTS_ALONE = (Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS)


@dataclass(frozen=True)
class Overrides:
    """What was said on the command line; None and empty mean: as the recipe says."""

    recipe: Path | None = None
    preset: str | None = None
    data: str | None = None
    test_data: str | None = None
    precision: str | None = None
    float_type: str | None = None
    format: str | None = None
    block_size: str | None = None
    weight_method: str | None = None
    asymmetric_weights: bool = False
    target: str | None = None
    calibrator: str | None = None
    per_tensor: bool = False
    exact: bool = False
    keep_float: tuple[str, ...] = ()
    keep_float_op: tuple[str, ...] = ()
    metric: str | None = None
    ep: str | None = None
    ep_option: tuple[str, ...] = ()
    ep_library: str | None = None
    strict_ep: bool = False
    samples: int | None = None
    batch_size: int | None = None
    threads: int | None = None
    objective: str | None = None
    allow_slower: bool = False
    max_drop: float | None = None
    min_agreement: float | None = None
    min_sqnr: float | None = None
    min_int8: float | None = None
    max_size: float | None = None
    min_speedup: float | None = None

    def budgets(self) -> dict[str, float]:
        """The budgets that were said, by their names in a recipe."""
        found = {
            "max_drop": self.max_drop,
            "min_sqnr": self.min_sqnr,
            "min_agreement": self.min_agreement,
            "max_size_ratio": self.max_size,
            "min_speedup": self.min_speedup,
            "min_int8": self.min_int8,
        }
        return {name: limit for name, limit in found.items() if limit is not None}


def job_of(model: Path, overrides: Overrides) -> Job:
    """The job of a model: the recipe that was given or found, with the options on top.

    Raises:
        RecipeError: The recipe cannot be read or holds an unknown key.
        UsageError: There is no such preset, or it is given beside a recipe.
    """
    if overrides.recipe is not None and overrides.preset is not None:
        raise UsageError("--recipe and --preset are both recipes", "give one of them")
    preset = f"{PRESET}{overrides.preset}" if overrides.preset is not None else None
    job = make_job(model, preset or overrides.recipe)
    if overrides.data is not None:
        job = with_data(job, overrides.data)
    if overrides.test_data is not None:
        job = with_test_data(job, overrides.test_data)
    if overrides.calibrator is not None:
        job = with_observer(job, overrides.calibrator)
    if overrides.metric is not None:
        job = with_metric(job, overrides.metric)
    return replace(job, recipe=_merge(job.recipe, overrides))


def provider_of(known: Provider, said: Mapping[str, Any]) -> Provider:
    """Where models run: a provider, and on top of it the options that begin with ``--ep``.

    Args:
        known: What counts where nothing is said.
        said: The options by their names.

    Raises:
        UsageError: An option is not of its form, or they contradict each other.
    """
    plugin, _, library = (said["ep_library"] or "=").partition("=")
    if said["ep_library"] and not (plugin and library):
        raise UsageError(f"--ep-library '{said['ep_library']}' is not of the form NAME=PATH")
    name = said["ep"] or plugin or known.name
    if plugin and name != plugin:
        raise UsageError(f"--ep is '{name}', and the plugin's name is '{plugin}'", "say one name")
    pairs = [option.partition("=") for option in said["ep_option"]]
    if wrong := [key for key, equals, _ in pairs if not (key and equals)]:
        raise UsageError(f"--ep-option '{wrong[0]}' is not of the form KEY=VALUE")
    base = known if name == known.name else Provider(name)
    return with_fields(
        base,
        options=base.options | {key: value for key, _, value in pairs},
        library=library or base.library,
        strict=known.strict or said["strict_ep"],
    )


def ranges_of(path: Path, job: Job) -> Calibration:
    """The ranges in a file; their observer may be Python code that the job names itself.

    Raises:
        DataError: The file cannot be read, or holds something else.
        UsageError: Its observer is Python code that was not named.
    """
    named = job.observer_from
    code = job.recipe.calibration.method if named.allow_code else ""
    return load_ranges(path, code=code, base=named.base)


@contextmanager
def workers_of(options: Mapping[str, Any]) -> Iterator[Workers]:
    """The workers that ``--jobs`` and ``--cluster`` name.

    Raises:
        UsageError: Both are given.
        RuntimeFailure: Dask is not installed, or its scheduler cannot be reached.
    """
    if options["cluster"] is None:
        yield Workers(options["jobs"])
        return
    if options["jobs"] > 1:
        raise UsageError("--jobs are processes here, --cluster are workers elsewhere: give one")
    with connect(options["cluster"]) as workers:
        yield workers


def check_weight_options(job: Job, said: Overrides) -> None:
    """Refuse options about weights alone where no layer stores them so.

    Raises:
        UsageError: One is given.
    """
    recipe = with_fields(job.recipe, precision=usual_precision(job).value)
    if any(precision in WEIGHTS_ALONE for precision in recipe.precisions):
        return
    given = [name for name in WEIGHT_OPTIONS if getattr(said, name)]
    if given:
        raise UsageError(
            f"--{given[0].replace('_', '-')} is about weights alone, and the precision is "
            f"{recipe.precision}",
            f"add --precision {' or '.join(WEIGHTS_ALONE)}, or leave it out",
        )


def _merge(recipe: Recipe, said: Overrides) -> Recipe:
    weights = {
        "block_size": int(said.block_size) if said.block_size else recipe.weights.block_size,
        "symmetric": recipe.weights.symmetric and not said.asymmetric_weights,
        "method": said.weight_method or recipe.weights.method,
    }
    return with_fields(
        recipe,
        precision=said.precision or recipe.precision,
        objective=said.objective or recipe.objective,
        allow_slower=recipe.allow_slower or said.allow_slower,
        float_type=said.float_type or recipe.float_type,
        format=said.format or recipe.format,
        weights=with_fields(recipe.weights, **weights),
        target=said.target or recipe.target,
        provider=provider_of(recipe.provider, asdict(said)),
        per_channel=recipe.per_channel and not said.per_tensor,
        keep_float=recipe.keep_float + said.keep_float,
        keep_float_op=recipe.keep_float_op + said.keep_float_op,
        data=with_fields(recipe.data, batch_size=said.batch_size or recipe.data.batch_size),
        calibration=with_fields(
            recipe.calibration,
            samples=said.samples or recipe.calibration.samples,
            exact=said.exact or recipe.calibration.exact,
        ),
        verify=with_fields(recipe.verify, threads=said.threads or recipe.verify.threads),
        budgets=with_fields(recipe.budgets, **said.budgets()),
    )
