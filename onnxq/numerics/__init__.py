"""The arithmetic of linear quantization and its error metrics, in pure NumPy."""

from onnxq.numerics.blocks import (
    LEAST_SHRINK,
    BlockedWeight,
    block_range,
    dequantize_blocks,
    quantize_blocks,
)
from onnxq.numerics.linear import dequantize, fake_quantize, quantize
from onnxq.numerics.metrics import ErrorSums, cosine, sqnr_db, top1_agreement
from onnxq.numerics.qparams import channel_range, choose_qparams
from onnxq.numerics.slices import SLICE_BYTES, rows_of, slices

__all__ = [
    "LEAST_SHRINK",
    "SLICE_BYTES",
    "BlockedWeight",
    "ErrorSums",
    "block_range",
    "channel_range",
    "choose_qparams",
    "cosine",
    "dequantize",
    "dequantize_blocks",
    "fake_quantize",
    "quantize",
    "quantize_blocks",
    "rows_of",
    "slices",
    "sqnr_db",
    "top1_agreement",
]
