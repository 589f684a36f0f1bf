"""LSTM, GRU and RNN.

What the input contributes to the gates is one product for all time steps; the loop over time holds
only the small recurrent part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from onnxq.graph import NodeView
from onnxq.qat.operators.registry import operator
from onnxq.qat.operators.values import together, unsupported

State = tuple[Tensor, ...]
Activation = Callable[[Tensor], Tensor]
# The part of the gates that comes from the input, and the state: the next state, hidden first.
Step = Callable[[Tensor, State], State]

# Activations by lower-case name: the function, and the defaults of its numbers (alpha, beta).
ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "affine": (lambda x, a, b: a * x + b, (1.0, 0.0)),
    "elu": (F.elu, (1.0,)),
    "hardsigmoid": (lambda x, a, b: (a * x + b).clamp(0, 1), (0.2, 0.5)),
    "leakyrelu": (F.leaky_relu, (0.01,)),
    "relu": (torch.relu, ()),
    "scaledtanh": (lambda x, a, b: a * torch.tanh(b * x), (1.0, 1.0)),
    "sigmoid": (torch.sigmoid, ()),
    "softplus": (F.softplus, ()),
    "softsign": (F.softsign, ()),
    "tanh": (torch.tanh, ()),
    "thresholdedrelu": (lambda x, a: F.threshold(x, a, 0.0), (1.0,)),
}


@dataclass(frozen=True)
class Weights:
    """What one direction computes with; H hidden values, G gates, I inputs.

    Attributes:
        inputs: [G * H, I].
        hidden: [G * H, H].
        input_bias: [G * H].
        hidden_bias: [G * H].
        peepholes: [3, H], or None.
    """

    inputs: Tensor
    hidden: Tensor
    input_bias: Tensor
    hidden_bias: Tensor
    peepholes: Tensor | None


@operator("LSTM")
def lstm(
    node: NodeView,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Long short-term memory; gates in the order input, output, forget, cell."""
    layer = _Layer(node, x, w, r, b, peepholes)
    return layer.run(_lstm_step, ("Sigmoid", "Tanh", "Tanh"), lengths, (hidden, cell))


@operator("GRU")
def gru(
    node: NodeView,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gated recurrent unit; gates in the order update, reset, hidden."""
    layer = _Layer(node, x, w, r, b)
    return layer.run(_gru_step, ("Sigmoid", "Tanh"), lengths, (hidden,))


@operator("RNN")
def rnn(
    node: NodeView,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Simple recurrence of one gate."""
    layer = _Layer(node, x, w, r, b)
    return layer.run(_rnn_step, ("Tanh",), lengths, (hidden,))


StepMaker = Callable[[NodeView, Weights, list[Activation]], tuple[Tensor, Step]]


class _Layer:
    """A recurrent node with its tensors: x [time, batch, I], weights by direction."""

    def __init__(
        self,
        node: NodeView,
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None,
        peepholes: Tensor | None = None,
    ) -> None:
        x, w, r = together(x, w, r)
        self.node = node
        self.first_batch = bool(node.attrs.get("layout", 0))
        self.x = x.transpose(0, 1) if self.first_batch else x
        self.size = r.shape[-1]
        b = w.new_zeros((w.shape[0], 2 * w.shape[1])) if b is None else b.to(x.device)
        held = [None] * w.shape[0] if peepholes is None else list(peepholes.to(x.device))
        self.weights = [
            Weights(
                w[at],
                r[at],
                b[at, : w.shape[1]],
                b[at, w.shape[1] :],
                None if peephole is None else peephole.reshape(3, -1),
            )
            for at, peephole in enumerate(held)
        ]

    def run(
        self,
        maker: StepMaker,
        default: tuple[str, ...],
        lengths: Tensor | None,
        initial: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, ...]:
        """All directions: hidden values at all times, then every last state."""
        direction = self.node.attrs.get("direction", "forward")
        activations = _activations(self.node, default * len(self.weights))
        starts = [self._start(given) for given in initial]
        sequences, ends = [], []
        for at, weights in enumerate(self.weights):
            backwards = direction == "reverse" or at == 1
            functions = list(islice(activations, len(default)))
            bias, step = maker(self.node, weights, functions)
            x = _turned(self.x, lengths) if backwards else self.x
            projected = F.linear(x, weights.inputs, bias)
            state = tuple(start[at] for start in starts)
            sequence, end = _unroll(step, projected, state, lengths)
            sequences.append(_turned(sequence, lengths) if backwards else sequence)
            ends.append(end)
        y = torch.stack(sequences, 1)  # [time, directions, batch, H]
        last = [torch.stack(states) for states in zip(*ends, strict=True)]
        if self.first_batch:
            return y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last)
        return y, *last

    def _start(self, given: Tensor | None) -> Tensor:
        """An initial state as [directions, batch, H]."""
        if given is None:
            return self.x.new_zeros((len(self.weights), self.x.shape[1], self.size))
        given = given.to(self.x.device)
        return given.transpose(0, 1) if self.first_batch else given


def _unroll(
    step: Step, projected: Tensor, state: State, lengths: Tensor | None
) -> tuple[Tensor, State]:
    """Run over time; behind the end of a sequence its state stays and its output is 0."""
    outputs = []
    ends = None if lengths is None else lengths.to(projected.device).unsqueeze(-1)
    for time, now in enumerate(projected.unbind(0)):
        after = step(now, state)
        if ends is None:
            outputs.append(after[0])
            state = after
            continue
        alive = time < ends
        outputs.append(torch.where(alive, after[0], torch.zeros_like(after[0])))
        state = tuple(torch.where(alive, n, o) for n, o in zip(after, state, strict=True))
    return torch.stack(outputs), state


def _turned(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Every sequence from its own end to its beginning; x is [time, batch, ...]."""
    if lengths is None:
        return x.flip(0)
    times = torch.arange(x.shape[0], device=x.device).unsqueeze(-1)
    ends = lengths.to(x.device, torch.int64)
    places = torch.where(times < ends, ends - 1 - times, times)
    return x.gather(0, places.unsqueeze(-1).expand_as(x))


def _activations(node: NodeView, default: tuple[str, ...]) -> Iterator[Activation]:
    """The functions of all directions; those that take numbers take the next ones given."""
    given = [iter(node.attrs.get(f"activation_{which}", ())) for which in ("alpha", "beta")]
    for name in node.attrs.get("activations", default):
        if name.lower() not in ACTIVATIONS:
            raise unsupported(node, f"its activation '{name}' is not known")
        function, defaults = ACTIVATIONS[name.lower()]
        values = [next(more, value) for more, value in zip(given, defaults, strict=False)]
        yield partial(_activated, function, values) if values else function


def _activated(function: Callable[..., Tensor], values: list[float], x: Tensor) -> Tensor:
    return function(x, *values)


def _limit(node: NodeView) -> Activation:
    """What cuts off the sums that go into a gate's activation; the cell of an LSTM is no such."""
    limit = node.attrs.get("clip")
    return (lambda x: x) if limit is None else (lambda x: x.clamp(-limit, limit))


def _lstm_step(
    node: NodeView, weights: Weights, functions: list[Activation]
) -> tuple[Tensor, Step]:
    gate, candidate, output = functions
    limit = _limit(node)
    recurrent, size = weights.hidden.T, weights.hidden.shape[-1]
    coupled = bool(node.attrs.get("input_forget", 0))
    peepholes = weights.peepholes

    def step(now: Tensor, state: State) -> State:
        hidden, cell = state
        gates = torch.addmm(now, hidden, recurrent)
        if peepholes is None:
            gates = limit(gates)
            i, o, f = gate(gates[:, : 3 * size]).chunk(3, 1)
            c = candidate(gates[:, 3 * size :])
        else:
            i, o, f, c = gates.chunk(4, 1)
            i = gate(limit(i + peepholes[0] * cell))
            f = gate(limit(f + peepholes[2] * cell))
            c = candidate(limit(c))
        cell = (1 - i if coupled else f) * cell + i * c
        if peepholes is not None:
            o = gate(limit(o + peepholes[1] * cell))
        return o * output(cell), cell

    return weights.input_bias + weights.hidden_bias, step


def _gru_step(node: NodeView, weights: Weights, functions: list[Activation]) -> tuple[Tensor, Step]:
    gate, candidate = functions
    limit = _limit(node)
    size = weights.hidden.shape[-1]
    both, own = weights.hidden[: 2 * size].T, weights.hidden[2 * size :].T
    both_bias, own_bias = weights.hidden_bias.tensor_split([2 * size])
    reset_after = bool(node.attrs.get("linear_before_reset", 0))

    def step(now: Tensor, state: State) -> State:
        (hidden,) = state
        z, r = gate(limit(torch.addmm(now[:, : 2 * size], hidden, both))).chunk(2, 1)
        if reset_after:
            new = now[:, 2 * size :] + r * torch.addmm(own_bias, hidden, own)
        else:
            new = torch.addmm(now[:, 2 * size :], r * hidden, own)
        return (torch.lerp(candidate(limit(new)), hidden, z),)

    if reset_after:  # its own bias is part of what is reset
        return weights.input_bias + F.pad(both_bias, (0, size)), step
    return weights.input_bias + weights.hidden_bias, step


def _rnn_step(node: NodeView, weights: Weights, functions: list[Activation]) -> tuple[Tensor, Step]:
    (activation,), recurrent, limit = functions, weights.hidden.T, _limit(node)

    def step(now: Tensor, state: State) -> State:
        return (activation(limit(torch.addmm(now, state[0], recurrent))),)

    return weights.input_bias + weights.hidden_bias, step
