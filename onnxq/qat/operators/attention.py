"""Attention: ONNX's own, and the fused operators of ONNX Runtime."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from onnxq.graph import NodeView
from onnxq.qat.operators.registry import operator
from onnxq.qat.operators.values import asks, dtype_of, together, unsupported

# What ONNX Runtime adds to the score of a masked key by default.
MASKED = -10000.0


def _heads(x: Tensor, count: int) -> Tensor:
    """[batch, sequence, hidden] as [batch, heads, sequence, size]."""
    return x.reshape(*x.shape[:-1], count, -1).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """[batch, heads, sequence, size] as [batch, sequence, hidden]."""
    return x.transpose(1, 2).flatten(2)


def _scale(node: NodeView, size: int) -> float:
    return float(node.attrs.get("scale", 0.0)) or size**-0.5


@operator("com.microsoft::Attention")
def attention(
    node: NodeView,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    added: Tensor | None = None,
    past_length: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Projection of one input to queries, keys and values, and attention among them.

    x is [batch, sequence, inputs], weight [inputs, all hidden values], ``past`` and the second
    output [2, batch, heads, sequence, size].
    """
    _refuse(node, "do_rotary", "past_present_share_buffer")
    x, weight = together(x, weight)
    projected = x @ weight
    if bias is not None:
        projected = projected + bias.to(x.device)
    sizes = node.attrs.get("qkv_hidden_sizes") or (weight.shape[1] // 3,) * 3
    count = node.attrs["num_heads"]
    q, k, v = (_heads(part, count) for part in torch.split_with_sizes(projected, sizes, -1))
    before = 0
    if past is not None:
        before = past.shape[3]
        old_k, old_v = past.to(x.device)
        k, v = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
    y = _fused_attention(node, q, k, v, mask, added, before)
    return (y, torch.stack([k, v])) if asks(node, 1) else (y,)


@operator("com.microsoft::MultiHeadAttention")
def multi_head_attention(
    node: NodeView,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    added: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_length: Tensor | None = None,
    indirection: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Attention of queries to keys and values, which may come packed into one tensor."""
    if past_length is not None or indirection is not None or asks(node, 3):
        raise unsupported(node, "it works on a cache that is made for generating text")
    count = node.attrs["num_heads"]
    q, k, v = _unpacked(query, key, value)
    if bias is not None:
        q, k, v = _biased(q, k, v, bias.to(q.device))
    q, k, v = (x if x.dim() == 4 else _heads(x, count) for x in (q, k, v))
    before = 0
    if past_key is not None and past_value is not None:
        before = past_key.shape[2]
        k, v = torch.cat([past_key.to(k.device), k], 2), torch.cat([past_value.to(v.device), v], 2)
    return _fused_attention(node, q, k, v, mask, added, before), k, v


def _unpacked(query: Tensor, key: Tensor | None, value: Tensor | None) -> tuple[Tensor, ...]:
    """Queries, keys and values: [batch, sequence, hidden], or [batch, heads, sequence, size]."""
    if query.dim() == 5 or key is None:  # [batch, sequence, heads, 3, size]
        return tuple(x.flatten(2) for x in query.unbind(3))
    if key.dim() == 5 or value is None:  # [batch, sequence, heads, 2, size]
        query, key = together(query, key)
        return (query, *(x.flatten(2) for x in key.unbind(3)))
    return together(query, key, value)


def _biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """With the bias of all three added; keys that come in heads are of a cache, without bias."""
    width = q.shape[-1]
    if k.dim() == 4:
        return q + bias[:width], k, v
    of_q, of_k, of_v = bias.tensor_split([width, width + k.shape[-1]])
    return q + of_q, k + of_k, v + of_v


def _refuse(node: NodeView, *names: str) -> None:
    for name in names:
        if node.attrs.get(name, 0):
            raise unsupported(node, f"its attribute '{name}' is set")


def _fused_attention(
    node: NodeView,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    added: Tensor | None,
    before: int,
) -> Tensor:
    """Attention as ONNX Runtime's fused operators have it; q, k, v [batch, heads, length, size].

    ``before`` counts the keys that come before the first query.
    """
    shape = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    bias = q.new_zeros(1) if added is None else added.to(q.device)
    if mask is not None:
        masked = float(node.attrs.get("mask_filter_value", MASKED))
        kept = _kept(node, mask.to(q.device), shape)
        bias = bias + torch.zeros_like(kept, dtype=q.dtype).masked_fill(~kept, masked)
    if node.attrs.get("unidirectional", 0):
        later = torch.ones(shape[2:], dtype=torch.bool, device=q.device).triu(before + 1)
        bias = bias.expand(shape).masked_fill(later, torch.finfo(q.dtype).min)
    seen = None if bias.dim() == 1 else bias.expand(shape)
    scale = _scale(node, q.shape[-1])
    return _joined(F.scaled_dot_product_attention(q, k, v, seen, scale=scale))


def _kept(node: NodeView, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Which keys a query may see, to broadcast with ``shape``: [batch, heads, queries, keys].

    A mask of one axis tells where each sequence ends, or where each ends and then where each
    begins; two axes are [batch, keys], three [batch, queries, keys], four [batch, 1, most, most].
    """
    batch, _, queries, keys = shape
    if mask.dim() == 1:
        if len(mask) not in (batch, 2 * batch):
            raise unsupported(node, f"it has a mask of {len(mask)} numbers for {batch} sequences")
        places = torch.arange(keys, device=mask.device)
        ends, begins = mask[:batch, None], mask[batch:, None]
        seen = places < ends
        return (seen & (places >= begins) if len(begins) else seen)[:, None, None, :]
    seen = mask != 0
    if mask.dim() == 2:
        return seen[:, None, None, :]
    if mask.dim() == 3:
        return seen[:, None]
    return seen[:, :, keys - queries : keys, :keys]


@operator("com.microsoft::EmbedLayerNormalization")
def embed_layer_normalization(
    node: NodeView,
    words: Tensor,
    segments: Tensor | None,
    word_table: Tensor,
    position_table: Tensor,
    segment_table: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The sum of three embeddings, normalised; the length of each sequence; the sum itself."""
    device = word_table.device
    if positions is None:
        positions = torch.arange(words.shape[1], device=device).unsqueeze(0)
    total = F.embedding(words.to(device, torch.int64), word_table)
    total = total + F.embedding(positions.to(device, torch.int64), position_table)
    if segments is not None and segment_table is not None:
        total = total + F.embedding(segments.to(device, torch.int64), segment_table)
    epsilon = float(node.attrs.get("epsilon", 1e-12))
    y = F.layer_norm(total, total.shape[-1:], scale, shift, epsilon)
    lengths = words.new_zeros(words.shape[0]) if mask is None else mask.sum(1)
    return y, lengths.to(torch.int32), total


@operator("Attention")
def onnx_attention(
    node: NodeView,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Attention of opset 23 and later; heads may lie in the last of three axes."""
    flat = q.dim() == 3
    if flat:
        q = _heads(q, node.attrs["q_num_heads"])
        k, v = (_heads(x, node.attrs["kv_num_heads"]) for x in (k, v))
    q, k, v = together(q, k, v)
    before = 0
    if past_key is not None and past_value is not None:
        before = past_key.shape[2]
        k, v = torch.cat([past_key.to(k.device), k], 2), torch.cat([past_value.to(v.device), v], 2)
    bias = _bias(node, q, k.shape[2], mask, before, lengths)
    repeats = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(repeats, 1) if repeats > 1 else x for x in (k, v))
    root = _scale(node, q.shape[-1]) ** 0.5
    scores = (q * root) @ (keys * root).transpose(-2, -1)
    stages = [scores]
    if softcap := node.attrs.get("softcap", 0.0):
        scores = softcap * torch.tanh(scores / softcap)
    stages.append(scores)
    if bias is not None:
        scores = scores + bias
    stages.append(scores)
    code = node.attrs.get("softmax_precision", 0)
    weights = torch.softmax(scores, -1, dtype=dtype_of(node, code) if code else None).to(q.dtype)
    if bias is not None:  # a query that sees no key
        weights = weights.masked_fill(bias.amax(-1, keepdim=True) == -torch.inf, 0.0)
    stages.append(weights)
    y = weights @ values
    shown = stages[node.attrs.get("qk_matmul_output_mode", 0)]
    return (_joined(y) if flat else y), k, v, shown


def _bias(
    node: NodeView, q: Tensor, keys: int, mask: Tensor | None, before: int, lengths: Tensor | None
) -> Tensor | None:
    """What is added to the scores [batch, heads, queries, keys]: -inf hides a key."""
    left, right = (node.attrs.get(f"{side}_window_size", -1) for side in ("left", "right"))
    causal = bool(node.attrs.get("is_causal", 0))
    bias = None if mask is None else _added(mask.to(q.device), q.dtype, keys)
    if lengths is None and not causal and left < 0 and right < 0:
        return bias
    key = torch.arange(keys, device=q.device)
    query = torch.arange(q.shape[2], device=q.device).unsqueeze(-1)
    allowed = torch.ones((1, 1), dtype=torch.bool, device=q.device)
    if lengths is not None:
        ends = lengths.to(q.device).reshape(-1, 1, 1, 1)
        allowed = key < ends
        query = query + ends - q.shape[2]
    else:
        query = query + before
    if causal:
        allowed = allowed & (key <= query)
    if left >= 0:
        allowed = allowed & (key >= query - left)
    if right >= 0:
        allowed = allowed & (key <= query + right)
    hidden = torch.zeros_like(allowed, dtype=q.dtype).masked_fill(~allowed, -torch.inf)
    return hidden if bias is None else bias + hidden


def _added(mask: Tensor, dtype: torch.dtype, keys: int) -> Tensor:
    """A mask as numbers to add; keys behind its end are hidden."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
    return F.pad(mask, (0, keys - mask.shape[-1]), value=-torch.inf)


@operator("RotaryEmbedding")
def rotary_embedding(
    node: NodeView, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None
) -> Tensor:
    """Turn pairs of values by the angle of their position."""
    x, cos, sin = together(x, cos, sin)
    flat = x.dim() == 3
    heads = _heads(x, node.attrs["num_heads"]) if flat else x
    size = node.attrs.get("rotary_embedding_dim", 0) or heads.shape[-1]
    if positions is not None:
        cos, sin = (F.embedding(positions.to(x.device, torch.int64), t) for t in (cos, sin))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned, rest = heads[..., :size], heads[..., size:]
    neighbours = bool(node.attrs.get("interleaved", 0))
    a, b = (turned[..., 0::2], turned[..., 1::2]) if neighbours else turned.chunk(2, -1)
    pairs = (cos * a - sin * b, sin * a + cos * b)
    y = torch.stack(pairs, -1).flatten(-2) if neighbours else torch.cat(pairs, -1)
    y = torch.cat([y, rest], -1)
    return _joined(y) if flat else y
