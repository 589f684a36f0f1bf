"""``Receipt``: what was made, out of what, how, and what was measured. Stable for machines."""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec

from onnxq.plan import QuantPlan, Recipe
from onnxq.qat import History
from onnxq.runtime import Coverage
from onnxq.types import Reason, TensorRange
from onnxq.verify.fingerprint import GraphFacts

# JSON has no infinity. Two identical signals have an infinite ratio; 200 dB is beyond float32.
MOST_DB = 200.0


def finite_db(value: float) -> float:
    """A ratio in dB that JSON can hold: infinities become plus or minus ``MOST_DB``."""
    if math.isnan(value):
        return -MOST_DB
    return max(-MOST_DB, min(MOST_DB, value))


class FileFacts(msgspec.Struct, frozen=True):
    """A model file: path as given, SHA-256 (external data included), bytes in all."""

    path: str
    sha256: str
    bytes: Annotated[int, msgspec.Meta(ge=1)]


class PreparedFacts(msgspec.Struct, frozen=True):
    """The float model after preparing alone: the honest baseline.

    Attributes:
        bytes: Its size when saved.
        ms: Its latency; None when it was not measured.
        notes: What preparing did.
    """

    bytes: int
    ms: float | None
    notes: tuple[str, ...]


class OutputFacts(msgspec.Struct, frozen=True):
    """One output, compared with the source model on the test samples.

    Attributes:
        sqnr_db: Signal-to-quantization-noise ratio of a float output; 200 means identical. None
            for another output, and where it was empty for every sample.
        cosine: Cosine similarity, in the same cases.
        top1_agreement: Share of samples with the same largest score; None where the output
            does not look like class scores.
        equal: Share of equal entries of an output that is not float.
        sqnr_bound_db: What ``sqnr_db`` is at least, with 95 % confidence; None where no budget
            asks for it, or samples do not tell.
        agreement_bound: What ``top1_agreement`` is at least, in the same way.
        agreeing: Which samples agree, as one bit for each (``onnxq.verify.bitmap``); empty where
            samples have no answer each.
    """

    sqnr_db: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None
    equal: float | None = None
    sqnr_bound_db: float | None = None
    agreement_bound: float | None = None
    agreeing: str = ""


class MetricFacts(msgspec.Struct, frozen=True):
    """The metric of the source and of the output model on the labelled test samples.

    Attributes:
        name: What it is called.
        source: Its value for the source model.
        output: Its value for the output model.
        samples: How many samples it rests on.
        judged: The output that ``top1`` was taken of; None for a function, which gets all.
        drop_bound: What the metric falls by at most, with 95 % confidence; None where no budget
            asks for it, or samples do not tell.
        draws: How often samples were drawn anew for that.
        hits: Which samples the output model has right, as one bit for each; of ``top1`` alone.
    """

    name: str
    source: float
    output: float
    samples: Annotated[int, msgspec.Meta(ge=0)]
    judged: str | None = None
    drop_bound: float | None = None
    draws: int = 0
    hits: str = ""


class LatencyFacts(msgspec.Struct, frozen=True):
    """Milliseconds of one run of one batch, measured interleaved.

    Attributes:
        source_ms: The model as given.
        output_ms: The output model.
        ratio: source / output: above 1 the output is faster.
        ratio_prepared: prepared float model / output.
        spread: Half the distance between the quartiles of the rounds' ``ratio_prepared``,
            relative to it.
        noise: How far ``ratio_prepared``, a median over all rounds, may be off by chance,
            relative to it: four standard errors.
        rounds: Rounds measured.
        batch: What the first input's first axis was.
        threads: Threads inside an operator.
        provider: Execution provider.
        undisturbed: ``ratio_prepared`` of the fastest round of each model instead. What other
            programs take away only adds to a time, so that this is the figure to compare between
            days; under load it stays within a few percent where medians are off by a multiple.
        undisturbed_noise: How far it may be off, relative to it: what the second fastest opening
            of the sessions is slower than the fastest, of both models.
    """

    source_ms: float
    output_ms: float
    ratio: float
    ratio_prepared: float
    spread: float
    noise: float
    rounds: int
    batch: int
    threads: int
    provider: str
    undisturbed: Annotated[float, msgspec.Meta(gt=0)] | None = None
    undisturbed_noise: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Candidate(msgspec.Struct, frozen=True):
    """One form of the model that was measured.

    Attributes:
        name: What it is called.
        bytes: Its size; None for a plan that was tried, and not written.
        ms: Its latency; None when it was not measured.
        ratio: Of the prepared float model's latency to its own, where the two were measured in
            turns during a search.
        nodes: How many nodes compute in each precision; empty for a form that no plan made.
        sqnr_db: SQNR of its worst output on the samples of a search.
        agreement: Share of the same answers there.
        metric: The metric there.
        within: Whether it lost no more there than it may; None for a form that was not judged.
        chosen: Whether the output was made of it.
    """

    name: str
    bytes: int | None
    ms: float | None
    ratio: float | None = None
    nodes: dict[str, int] = {}
    sqnr_db: float | None = None
    agreement: float | None = None
    metric: float | None = None
    within: bool | None = None
    chosen: bool = False


class Int8Share(msgspec.Struct, frozen=True):
    """How many of the layers that can compute on integers do so.

    Attributes:
        able: Layers that multiply (Conv, Gemm, MatMul and their like) and that the target can
            run as int8, whatever the plan says of them.
        int8: How many of them really run as int8.
        float_nodes: The others, with what keeps them from it.
    """

    able: int
    int8: int
    float_nodes: tuple[Reason, ...]


class Measured(msgspec.Struct, frozen=True):
    """All that was measured.

    Attributes:
        size_ratio: Bytes of the output per byte of the source.
        prepared: The float model after preparing alone.
        outputs: By name of the output; empty without data.
        samples: Test samples that ``outputs`` rests on.
        metric: None without labels.
        latency: None when it was not measured.
        int8_coverage: None when no node is planned as int8.
        candidates: The forms that were compared.
        notes: What a reader must know to judge the figures.
        int8_share: None where no budget asks for it, or it could not be measured.
        unproven: Why no figure has a bound; empty where they may have one.
    """

    size_ratio: float
    prepared: PreparedFacts
    outputs: dict[str, OutputFacts]
    samples: int
    metric: MetricFacts | None
    latency: LatencyFacts | None
    int8_coverage: Coverage | None
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()
    int8_share: Int8Share | None = None
    unproven: str = ""


class Gate(msgspec.Struct, frozen=True):
    """A budget of the recipe, and whether it was kept.

    Attributes:
        name: The recipe's key.
        limit: The budget.
        value: What was measured; None when it could not be, which misses the gate.
        passed: Whether it was kept: by the value, and by the bound where there is one.
        bound: The worst that the value may be by the luck of the samples, with 95 % confidence;
            None for what is no question of samples, and where they do not tell.
        note: What passing rests on, or what is missing.
    """

    name: str
    limit: float
    value: float | None
    passed: bool
    bound: float | None = None
    note: str = ""


class RunFacts(msgspec.Struct, frozen=True):
    """What a run depends on beside model, data and recipe.

    Attributes:
        seed: What draws samples.
        prepare: Whether the model was prepared first.
        leaves_out: Whether ranges leave outliers out, by a finding of the search.
    """

    seed: Annotated[int, msgspec.Meta(ge=0)]
    prepare: bool
    leaves_out: bool = False


class Training(msgspec.Struct, frozen=True):
    """How the weights were trained.

    Attributes:
        history: What the training showed, epoch by epoch.
        untrained: What was measured of the same plan without training.
    """

    history: History
    untrained: Measured


class Receipt(msgspec.Struct, frozen=True):
    """The receipt of one run. Its JSON Schema is ``receipt_schema()``.

    Attributes:
        schema: Version of this structure.
        onnxq: Version of onnxq.
        source: The model as given.
        output: The model that was made.
        recipe: What was asked for, complete with defaults.
        run: How it was run beside the recipe: ``seed``, and whether the graph was prepared.
        data: SHA-256 of the calibration and the test samples.
        plan: What was decided.
        ranges: What was observed.
        measured: What was measured.
        gates: Budgets and whether they were kept.
        environment: What machine and versions the figures come from.
        training: How the weights were trained; None where they are the source's.
        graph: What the graph was, for ``onnxq check`` to tell what changed in it.
    """

    schema: int
    onnxq: str
    source: FileFacts
    output: FileFacts
    recipe: Recipe
    run: RunFacts
    data: dict[str, str]
    plan: QuantPlan
    ranges: dict[str, TensorRange]
    measured: Measured
    gates: tuple[Gate, ...]
    environment: dict[str, str]
    training: Training | None = None
    graph: GraphFacts | None = None

    @property
    def passed(self) -> bool:
        """True when no gate was missed."""
        return all(gate.passed for gate in self.gates)

    def to_json(self) -> bytes:
        """The receipt as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)

    @staticmethod
    def from_json(text: bytes) -> Receipt:
        """Read a receipt back.

        Raises:
            msgspec.ValidationError: It is not one.
        """
        return msgspec.json.decode(text, type=Receipt)


def receipt_schema() -> dict[str, Any]:
    """The JSON Schema of a receipt."""
    return msgspec.json.schema(Receipt)
