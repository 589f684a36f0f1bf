"""What an execution provider runs as int8: tables, so that a machine can plan for another one."""

from onnxq.targets.table import TARGETS, get_target
from onnxq.targets.target import Kernel, Pairs, Support, Target

__all__ = ["TARGETS", "Kernel", "Pairs", "Support", "Target", "get_target"]
