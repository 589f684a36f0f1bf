"""Mixed precision from Python: single layers in a precision of their own, and what they got."""

import onnxq
from onnxq.types import Precision

quantizer = onnxq.PTQQuantizer("default")
quantizer.configure_layer("/fc1/Gemm", precision="int4-weights", block_size=32)
quantizer.set_per_layer_fallback("/fc2/Gemm", True)  # stays float
result = quantizer.quantize("models/digits_cnn.onnx", "models/digits_calibration.npz")

for node in result.plan.nodes:
    if node.precision is not Precision.INT8:
        print(f"{node.name}: {node.precision}")
for layer, parameters in quantizer.quantization_parameters.items():
    for tensor, found in parameters.outputs.items():
        print(f"{layer}: {tensor} is {found.qtype} with a scale of {found.scale[0]:.4f}")
measured = result.receipt.measured
print(f"{measured.size_ratio:.2f} of the size, {measured.outputs['logits'].sqnr_db:.1f} dB")
