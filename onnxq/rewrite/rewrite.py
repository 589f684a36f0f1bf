"""``rewrite``: from a plan to a model, in the form that is wanted.

Pairs of QuantizeLinear and DequantizeLinear say everything that a plan can say about integers, and
can be taken out again: they are written first, and checked. Other forms are lowered from them.
"""

from __future__ import annotations

from onnxq.graph import Model
from onnxq.plan import QuantPlan
from onnxq.rewrite.at_load import scale_at_load
from onnxq.rewrite.bias_scales import multiply_bias_scales
from onnxq.rewrite.blocks import arrange_weights, lower_blocks
from onnxq.rewrite.deep_convs import shift_deep_weights
from onnxq.rewrite.dynamic import lower_dynamic
from onnxq.rewrite.float16 import to_float16
from onnxq.rewrite.leading_ones import drop_leading_ones
from onnxq.rewrite.mirrored import fold_mirrored
from onnxq.rewrite.qdq import to_qdq
from onnxq.rewrite.qoperator import lower_qoperator
from onnxq.rewrite.shortcuts import take_shortcuts
from onnxq.rewrite.stems import widen_stems
from onnxq.targets import get_target
from onnxq.types import Form, Precision


def rewrite(model: Model, plan: QuantPlan, form: Form = Form.QDQ) -> Model:
    """The quantized model of a plan.

    Args:
        model: The prepared float model that the plan was made for.
        plan: Precisions and scales.
        form: How the graph says that a node computes on integers.

    Returns:
        A new model.

    Raises:
        SelfCheckError: The result differs from ``model`` in more than the quantization.
    """
    made, target = to_qdq(model, plan), get_target(plan.target)
    if target.matrix_units and model.fits_one_file:
        made = shift_deep_weights(made, set(plan.named(Precision.INT8)))
    if target.conv_channels > 1:
        made = widen_stems(made, set(plan.named(Precision.INT8)), target.conv_channels)
    if dynamic := plan.named(Precision.INT8_DYNAMIC):
        made = lower_dynamic(made, dynamic)
    if form is Form.QOPERATOR:
        made = lower_qoperator(lower_blocks(made))
    made = arrange_weights(made)
    if target.folds_bias_scales:
        made = multiply_bias_scales(made)
    if target.scales_at_run and model.fits_one_file:
        made = scale_at_load(made, plan.named(Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS))
    if half := plan.named(Precision.FP16):
        made = to_float16(made, half)
    if target.runs_as_written and model.fits_one_file:
        made = fold_mirrored(take_shortcuts(drop_leading_ones(made)))
    return made
