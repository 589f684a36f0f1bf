"""The plan: recipe in, a precision and a reason for every node and scales for every tensor out."""

from onnxq.plan.plan import NodePlan, QuantPlan, make_plan
from onnxq.plan.policy import keep_float, tensors_to_observe
from onnxq.plan.recipe import (
    Budgets,
    CalibrationSettings,
    DataSettings,
    Recipe,
    VerifySettings,
    find_recipe,
    load_recipe,
)

__all__ = [
    "Budgets",
    "CalibrationSettings",
    "DataSettings",
    "NodePlan",
    "QuantPlan",
    "Recipe",
    "VerifySettings",
    "find_recipe",
    "keep_float",
    "load_recipe",
    "make_plan",
    "tensors_to_observe",
]
