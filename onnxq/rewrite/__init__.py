"""Make the quantized graph that a plan describes, and check it before anyone sees it."""

from onnxq.rewrite.rewrite import rewrite

__all__ = ["rewrite"]
