"""``ModelComparison``: what was found of two models, the second a form of the first."""

from __future__ import annotations

import msgspec

from onnxq.verify.match import How
from onnxq.verify.receipt import FileFacts, MetricFacts, OutputFacts

# A layer whose new error alone makes at least this share of the noise at the outputs stands out.
MUCH_NOISE = 0.25
# One that makes at least this share is where the error enters.
MOST_NOISE = 0.5
# Less new error than this is how float32 itself rounds, which sums up to 1e-6 of a signal.
ROUNDING_DB = 100.0


class LayerError(msgspec.Struct, frozen=True):
    """One tensor that both models hold, which a layer of the first makes.

    Attributes:
        tensor: Its name in the first model.
        twin: Its name in the second one.
        matched: How they were found to be the same.
        node: The layer; empty for an input of the model.
        op: The layer's operator; ``input`` for an input.
        sqnr_db: SQNR of the tensor; 200 means identical.
        before_db: SQNR of the worst tensor that the layer reads; None for an input.
        new_db: Signal to new error: what the second model makes of the tensors that it reads there,
            against what the layer of the first makes of the very same.
        alone_db: SQNR of the worst output of the first model when this new error alone is added;
            None where it was not measured, because other layers make more new error.
    """

    tensor: str
    twin: str
    matched: How
    node: str
    op: str
    sqnr_db: float
    before_db: float | None
    new_db: float
    alone_db: float | None = None


class Growth(msgspec.Struct, frozen=True):
    """Where the error enters and how it grows.

    Attributes:
        layers: The tensors that both models hold, in the order of the first model's graph.
        output_db: SQNR of the worst output on the same samples; None where nothing tells.
        samples: How many samples that rests on.
        unmatched: How many layers of the first model have no counterpart in the second, or one of
            another shape or type; their errors count for the layers behind them.
    """

    layers: tuple[LayerError, ...]
    output_db: float | None
    samples: int
    unmatched: int

    def share(self, layer: LayerError) -> float | None:
        """The noise that a layer's new error alone makes at the worst output, by all noise there.

        Powers of independent noises add up, so that the shares of all layers make about 1.
        """
        if self.output_db is None or layer.alone_db is None:
            return None
        return float(10 ** ((self.output_db - layer.alone_db) / 10))

    @property
    def worst(self) -> LayerError | None:
        """The layer whose new error alone does the most harm; None where there is no error.

        Where no output is of floats nobody tells the harm: then the one with the most new error by
        its signal.
        """
        told = [layer for layer in self.layers if layer.alone_db is not None]
        told = told or [layer for layer in self.layers if layer.new_db < ROUNDING_DB]
        return min(told, key=lambda layer: (layer.alone_db or 0.0, layer.new_db), default=None)


class Speed(msgspec.Struct, frozen=True):
    """Milliseconds of one run of one batch of both models, measured interleaved.

    Attributes:
        float_ms: The first model.
        other_ms: The second one.
        ratio: float / other: above 1 the second is faster.
        noise: How far ``ratio`` may be off by chance, relative to it.
        rounds: Rounds measured.
        batch: What the first input's first axis was.
        threads: Threads inside an operator.
    """

    float_ms: float
    other_ms: float
    ratio: float
    noise: float
    rounds: int
    batch: int
    threads: int


class ModelComparison(msgspec.Struct, frozen=True):
    """Two models with the same inputs, compared on samples.

    Attributes:
        reference: The first model's file: what the second is held against.
        other: The second model's file.
        data: SHA-256 of the samples.
        samples: How many there were.
        outputs: By name of the output.
        max_errors: Largest difference of any entry of a float output, by its name; None where only
            one of the models gives NaN or an infinity.
        metric: None without labels; ``output`` is the second model.
        speed: None when it was not measured.
        growth: None when layers were not compared.
        environment: What machine and versions the figures come from.
        notes: What a reader must know to judge the figures.
    """

    reference: FileFacts
    other: FileFacts
    data: str
    samples: int
    outputs: dict[str, OutputFacts]
    max_errors: dict[str, float | None]
    metric: MetricFacts | None
    speed: Speed | None
    growth: Growth | None
    environment: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def size_ratio(self) -> float:
        """Bytes of the second model per byte of the first."""
        return self.other.bytes / self.reference.bytes
