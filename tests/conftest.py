"""Shared fixtures: models from text, and quantizing them in one call."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from onnx_ir.passes.common import ShapeInferencePass

from onnxq.graph import Model, from_text, name_nodes
from onnxq.ops import Census, classify
from onnxq.plan import QuantPlan, Recipe, make_plan, tensors_to_observe
from onnxq.rewrite import rewrite
from onnxq.runtime import TappedSession, default_target, synthetic_feed
from onnxq.targets import get_target
from onnxq.types import Feed, TensorRange

# The same examples in every run, and none fails because a machine is busy. To look for others:
# pytest --hypothesis-profile default
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")

SEEDED = re.compile(r"float(\[[\d,]*\]) (\w+) = seeded")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate", action="store_true", help="rewrite the expected sections of golden cases"
    )


def seeded(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that depend on the name only, scaled so that layers keep the size of their input.

    ``RandomState`` is frozen: every NumPy draws the same.
    """
    values = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    fan_in = np.prod(shape[1:]) if len(shape) > 2 else shape[0] if len(shape) == 2 else 1
    return (values * np.sqrt(3 / fan_in)).astype(np.float32)


def _fill_seeded(text: str) -> str:
    def fill(found: re.Match[str]) -> str:
        shape = tuple(int(n) for n in found[1].strip("[]").split(",") if n)
        numbers = ", ".join(f"{v:.9g}" for v in seeded(found[2], shape).ravel())
        return f"float{found[1]} {found[2]} = {{{numbers}}}"

    return SEEDED.sub(fill, text)


def build_model(text: str) -> Model:
    """A model from text, with shapes inferred and nodes named.

    Text without a ``<ir_version ...>`` head gets opset 17. ``float[2,3] w = seeded`` makes up an
    initializer.
    """
    if not text.lstrip().startswith("<ir_version"):
        text = f'<ir_version: 8, opset_import: ["" : 17]>\n{text}'
    model = from_text(_fill_seeded(text))
    ShapeInferencePass(check_type=False, strict_mode=False)(model.ir)
    return name_nodes(model)


def measure_ranges(model: Model, tensors: tuple[str, ...], feed: Feed) -> dict[str, TensorRange]:
    """The ranges of tensors on one feed."""
    found = TappedSession(model, tensors).read(feed) if tensors else {}
    ends = {t: (float(v.min()), float(v.max())) for t, v in found.items() if v.size}
    return {t: TensorRange(lo, hi, lo, hi) for t, (lo, hi) in ends.items()}


def observed_tensors(model: Model, census: Census, recipe: Recipe | None = None) -> tuple[str, ...]:
    """The tensors that a plan may quantize."""
    recipe = recipe or Recipe()
    return tensors_to_observe(model.view(), census, recipe)


@dataclass(frozen=True)
class Quantized:
    """A model and all that became of it."""

    source: Model
    census: Census
    plan: QuantPlan
    model: Model
    feed: Feed

    def reasons(self) -> dict[str, str]:
        """Code of the reason by name, for the nodes that have one."""
        return {n.name: n.reason.code for n in self.plan.nodes if n.reason}


def quantize_model(source: Model, recipe: Recipe | None = None) -> Quantized:
    """Quantize for cpu-x86 with the ranges of one made-up feed."""
    target = get_target("cpu-x86")
    census = classify(source.view(), target)
    feed = synthetic_feed(source.view().inputs)
    recipe = recipe or Recipe()
    ranges = measure_ranges(source, observed_tensors(source, census, recipe), feed)
    plan = make_plan(source.view(), census, ranges, recipe, target)
    return Quantized(source, census, plan, rewrite(source, plan), feed)


@pytest.fixture(scope="session")
def build() -> Callable[[str], Model]:
    return build_model


@pytest.fixture(scope="session")
def quantize() -> Callable[..., Quantized]:
    return quantize_model


@pytest.fixture(scope="session")
def ranges_of() -> Callable[..., dict[str, TensorRange]]:
    return measure_ranges


@pytest.fixture(scope="session")
def saturates() -> bool:
    """True on a processor that adds products of uint8 and int8 in saturating 16 bits."""
    return default_target() == "cpu-x86-avx2"


@pytest.fixture(autouse=True)
def _cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What one test measured is not known to the next, nor to the user's own runs."""
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path_factory.mktemp("cache")))
