"""What an execution provider runs as int8: tables, so that a machine can plan for another one."""

from onnxq.targets.providers import AUTO, CPU, PROVIDERS, Provider, ProviderFacts, get_provider
from onnxq.targets.table import TARGETS, get_target
from onnxq.targets.target import Kernel, Pairs, Support, Target

__all__ = [
    "AUTO",
    "CPU",
    "PROVIDERS",
    "TARGETS",
    "Kernel",
    "Pairs",
    "Provider",
    "ProviderFacts",
    "Support",
    "Target",
    "get_provider",
    "get_target",
]
