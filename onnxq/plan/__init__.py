"""The plan: recipe in, a precision and a reason for every node and scales for every tensor out."""

from onnxq.plan.checking import CheckSettings
from onnxq.plan.choices import Choice, Choices
from onnxq.plan.cut import Costs, cheapest
from onnxq.plan.layers import LayerSettings, layer_settings, pinned
from onnxq.plan.make import REFUSALS, make_plan
from onnxq.plan.pairs import pair_readers, pair_serves_all
from onnxq.plan.plan import NodePlan, QuantPlan
from onnxq.plan.policy import tensors_to_observe
from onnxq.plan.presets import load_preset, preset_text, presets
from onnxq.plan.readings import Reading, readings
from onnxq.plan.recipe import (
    Recipe,
    checked,
    find_recipe,
    load_recipe,
    recipe_path,
    recipe_schema,
)
from onnxq.plan.scales import BIAS_LIMIT, SMALLEST_PRODUCT
from onnxq.plan.settings import (
    Budgets,
    CalibrationSettings,
    DataSettings,
    LayerRule,
    VerifySettings,
    WeightSettings,
)
from onnxq.plan.starter import Subject, starter_text
from onnxq.plan.training import QATSettings
from onnxq.plan.weights import needed_opset

__all__ = [
    "BIAS_LIMIT",
    "REFUSALS",
    "SMALLEST_PRODUCT",
    "Budgets",
    "CalibrationSettings",
    "CheckSettings",
    "Choice",
    "Choices",
    "Costs",
    "DataSettings",
    "LayerRule",
    "LayerSettings",
    "NodePlan",
    "QATSettings",
    "QuantPlan",
    "Reading",
    "Recipe",
    "Subject",
    "VerifySettings",
    "WeightSettings",
    "cheapest",
    "checked",
    "find_recipe",
    "layer_settings",
    "load_preset",
    "load_recipe",
    "make_plan",
    "needed_opset",
    "pair_readers",
    "pair_serves_all",
    "pinned",
    "preset_text",
    "presets",
    "readings",
    "recipe_path",
    "recipe_schema",
    "starter_text",
    "tensors_to_observe",
]
