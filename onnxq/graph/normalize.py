"""Bring a model into the form that quantization needs, without changing what it computes.

Everything here works on the graph alone; folding constants and BatchNorm is the runtime's part
(``onnxq.runtime.prepare``), between ``normalize`` and ``restore_identity``.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxq.errors import ModelError
from onnxq.graph.infer import infer
from onnxq.graph.lift import lift_constants
from onnxq.graph.model import Model
from onnxq.graph.opset import MINIMUM_IR, MINIMUM_OPSET, raise_opset, restore_shapes
from onnxq.graph.view import node_names, unused

# Names that ONNX Runtime's BASIC level gives to what it fused, after the first node's own name.
FUSION_SUFFIXES = ("/MatMulAddFusion",)


def normalize(model: Model, opset: int = MINIMUM_OPSET) -> Model:
    """Inline functions, free initializers, raise the opset, widen float16, name nodes.

    Args:
        model: The model as loaded.
        opset: The least opset that it is to have.

    Returns:
        A new model; its ``notes`` tell what was done.

    Raises:
        ModelError: The opset cannot be raised.
    """
    model = model.copy()
    model = _inline_functions(model)
    model = _free_initializers(model)
    model = raise_opset(model, opset)
    model = _widen_float16(model)
    return name_nodes(model)


def _inline_functions(model: Model) -> Model:
    if not model.ir.functions:
        return model
    count = len(model.ir.functions)
    passes.InlinePass()(model.ir)
    return model.with_notes(f"inlined {count} local functions")


def _free_initializers(model: Model) -> Model:
    """Take initializers out of the graph's inputs, where they hinder constant folding."""
    graph = model.ir.graph
    overridable = [value for value in graph.inputs if value.is_initializer()]
    if not overridable:
        return model
    inputs = [value for value in graph.inputs if not value.is_initializer()]
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    return model.with_notes(f"took {len(overridable)} initializers out of the graph's inputs")


def _widen_float16(model: Model) -> Model:
    """Compute in float32 what the model computes in float16.

    The CPU provider has no float16 kernels: it casts around every node, at run time.
    """
    graphs = list(model.ir.graphs())
    if not any(_is_half(v) for graph in graphs for v in _values(graph)):
        return model
    main = model.ir.graph
    taken = set(model.view().names)
    for value in [v for v in main.inputs if _is_half(v)]:
        _cast_input(main, value, taken)
    for value in [v for v in main.outputs if _is_half(v) and not v.is_graph_input()]:
        _cast_output(main, value, taken)
    kept = {id(v) for v in (*main.inputs, *main.outputs)}
    for graph in graphs:
        for value in _values(graph):
            if _is_half(value) and id(value) not in kept:
                _widen_value(value)
        for node in graph:
            _widen_attributes(node, {id(v) for v in node.outputs} & kept)
    return model.with_notes("widened float16 to float32 (the provider has no float16 kernels)")


def _values(graph: ir.Graph) -> list[ir.Value]:
    made = [v for node in graph for v in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *made]


def _is_half(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT16 or (
        value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT16
    )


def _widen_value(value: ir.Value) -> None:
    value.type = ir.TensorType(ir.DataType.FLOAT)
    if value.const_value is not None:
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)


def _widen_attributes(node: ir.Node, kept_outputs: set[int]) -> None:
    for name, attr in list(node.attributes.items()):
        if attr.type == ir.AttributeType.TENSOR and attr.value.dtype == ir.DataType.FLOAT16:
            wide = attr.value.numpy().astype(np.float32)
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(wide))
        elif name in ("to", "dtype") and attr.value == ir.DataType.FLOAT16 and not kept_outputs:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))


def _cast_input(graph: ir.Graph, value: ir.Value, taken: set[str]) -> None:
    """Keep a float16 input as it is, and let the nodes read it in float32."""
    inner = _float32_of(value, taken)
    for node, port in value.uses():
        node.replace_input_with(port, inner)
    graph.insert_before(graph[0], _cast(value, inner, taken))


def _cast_output(graph: ir.Graph, value: ir.Value, taken: set[str]) -> None:
    """Keep a float16 output as it is, and compute it in float32."""
    outer = ir.Value(name=value.name, shape=value.shape, type=value.type)
    graph.outputs[list(graph.outputs).index(value)] = outer
    value.name = _float32_of(value, taken).name
    graph.append(_cast(value, outer, taken))


def _float32_of(value: ir.Value, taken: set[str]) -> ir.Value:
    name = unused(f"{value.name}_float32", taken)
    taken.add(name)
    return ir.Value(name=name, shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))


def _cast(source: ir.Value, target: ir.Value, taken: set[str]) -> ir.Node:
    name = unused(f"{target.name}_Cast", taken)
    taken.add(name)
    assert target.dtype is not None
    return ir.Node(
        "", "Cast", [source], [ir.AttrInt64("to", int(target.dtype))], outputs=[target], name=name
    )


def name_nodes(model: Model) -> Model:
    """Give every node of the main graph a unique name; edits the model in place of a copy."""
    graph = model.ir.graph
    names = node_names(graph)
    changed = sum(node.name != name for node, name in zip(graph, names, strict=True))
    for node, name in zip(graph, names, strict=True):
        node.name = name
    return model.with_notes(f"named {changed} nodes") if changed else model


def restore_identity(folded: Model, source: Model) -> Model:
    """Put back what folding through the runtime loses, infer shapes, lift weights out of bodies.

    Kept from ``source``: producer, doc strings, ``metadata_props``, the names and symbolic
    dimensions of inputs and outputs, and only the operator sets that are in use.

    Raises:
        ModelError: Folding changed the inputs or outputs.
    """
    new, old = folded.ir, source.ir
    for mine, theirs in (
        (new.graph.inputs, old.graph.inputs),
        (new.graph.outputs, old.graph.outputs),
    ):
        if [v.name for v in mine] != [v.name for v in theirs]:
            raise ModelError(
                f"ONNX Runtime changed the inputs or outputs of '{source.path}' while folding",
                "use --no-prepare",
            )
        for value, origin in zip(mine, theirs, strict=True):
            value.doc_string = origin.doc_string
            value.metadata_props.update(origin.metadata_props)
    new.producer_name, new.producer_version = old.producer_name, old.producer_version
    new.domain, new.model_version, new.doc_string = old.domain, old.model_version, old.doc_string
    new.ir_version = max(old.ir_version or 0, MINIMUM_IR)
    new.metadata_props.clear()
    new.metadata_props.update(old.metadata_props)
    new.graph.name, new.graph.doc_string = old.graph.name, old.graph.doc_string
    new.graph.metadata_props.update(old.graph.metadata_props)
    passes.RemoveUnusedOpsetsPass()(new)
    _restore_node_names(new.graph, old.graph)
    restore_shapes(new.graph.inputs, old.graph.inputs)
    infer(new, data_prop=True)
    restore_shapes(new.graph.outputs, old.graph.outputs)  # inference puts numbers for symbols
    # Only now: folding leaves what it computes inside a body in that body.
    return name_nodes(lift_constants(Model(new, source.path, source.notes)))


def _restore_node_names(new: ir.Graph, old: ir.Graph) -> None:
    docs = {node.name: node.doc_string for node in old}
    taken = {node.name for node in new}
    for node in new:
        for suffix in FUSION_SUFFIXES:
            base = (node.name or "").removesuffix(suffix)
            if base != node.name and base not in taken:
                node.name = base
        node.doc_string = docs.get(node.name) or node.doc_string
