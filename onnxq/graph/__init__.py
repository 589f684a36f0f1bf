"""The model: load, save, look at, edit, strip. The only place that knows onnx and onnx_ir."""

from onnxq.graph.compact import compact, forget_inferred
from onnxq.graph.dead_channels import drop_dead_channels
from onnxq.graph.defaults import attribute_defaults
from onnxq.graph.edit import Editor, with_constants
from onnxq.graph.extract import extract
from onnxq.graph.files import (
    check_writable,
    copy_model,
    data_path,
    files_at,
    files_of,
    load,
    move_model,
    read_tensor,
    save,
    sha256,
    staging,
    write_bytes,
)
from onnxq.graph.infer import infer_shapes
from onnxq.graph.model import (
    Model,
    deserialize,
    encoded_size,
    from_text,
    lend,
    serialize,
    to_text,
)
from onnxq.graph.normalize import name_nodes, normalize, restore_identity
from onnxq.graph.norms import name_norms
from onnxq.graph.opset import MINIMUM_OPSET, NORM_OPSET, SMALL_TYPES_OPSET
from onnxq.graph.pools import name_pools
from onnxq.graph.retype import TYPELESS, FloatPorts, float_ports, narrow
from onnxq.graph.strip import Place, Tolerance, difference, strip
from onnxq.graph.view import GraphView, InnerUse, NodeView, Use

__all__ = [
    "MINIMUM_OPSET",
    "NORM_OPSET",
    "SMALL_TYPES_OPSET",
    "TYPELESS",
    "Editor",
    "FloatPorts",
    "GraphView",
    "InnerUse",
    "Model",
    "NodeView",
    "Place",
    "Tolerance",
    "Use",
    "attribute_defaults",
    "check_writable",
    "compact",
    "copy_model",
    "data_path",
    "deserialize",
    "difference",
    "drop_dead_channels",
    "encoded_size",
    "extract",
    "files_at",
    "files_of",
    "float_ports",
    "forget_inferred",
    "from_text",
    "infer_shapes",
    "lend",
    "load",
    "move_model",
    "name_nodes",
    "name_norms",
    "name_pools",
    "narrow",
    "normalize",
    "read_tensor",
    "restore_identity",
    "save",
    "serialize",
    "sha256",
    "staging",
    "strip",
    "to_text",
    "with_constants",
    "write_bytes",
]
