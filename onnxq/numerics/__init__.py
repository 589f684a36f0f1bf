"""The arithmetic of linear quantization and its error metrics, in pure NumPy."""

from onnxq.numerics.linear import dequantize, fake_quantize, quantize
from onnxq.numerics.metrics import ErrorSums, cosine, sqnr_db, top1_agreement
from onnxq.numerics.qparams import channel_range, choose_qparams

__all__ = [
    "ErrorSums",
    "channel_range",
    "choose_qparams",
    "cosine",
    "dequantize",
    "fake_quantize",
    "quantize",
    "sqnr_db",
    "top1_agreement",
]
