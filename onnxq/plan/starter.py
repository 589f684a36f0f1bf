"""The first recipe of a model: what fits it, as comments to take away or to change."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from onnxq.errors import printable
from onnxq.graph import GraphView
from onnxq.ops import Census, NodeInfo, Role
from onnxq.plan.presets import presets
from onnxq.targets import Target
from onnxq.types import Precision, TensorSpec

WIDTH = 98
# From here on a model is more than caches and one protobuf file hold: its weights are what counts.
LARGE = 1_000_000_000
MOST_REASONS = 8
# Pixels; what has fewer on a side is no image.
LEAST_SIDE = 8
# Parts of a name that tell which end of a state it is, and not which state.
_ENDS = frozenset({"in", "out", "input", "output", "next", "new", "prev", "old", "n", "0"})
_RECURRENT = ("LSTM", "GRU", "RNN")
_ATTENTION = ("com.microsoft::Attention", "com.microsoft::MultiHeadAttention")


@dataclass(frozen=True)
class Subject:
    """The model that a recipe is for.

    Attributes:
        name: Its file's name.
        source: The graph as it is in the file: its inputs and outputs.
        prepared: The graph that is quantized.
        census: What each node of that is.
        target: What it was judged for.
    """

    name: str
    source: GraphView
    prepared: GraphView
    census: Census
    target: Target

    @property
    def layers(self) -> list[NodeInfo]:
        """The nodes that multiply with constant weights, in the graph's order."""
        return [n for n in self.census.nodes if n.role is Role.COMPUTE and n.stored]


def starter_text(subject: Subject) -> str:
    """A recipe in TOML that says nothing yet: every setting in it is a comment.

    Each line that looks like a setting can be uncommented alone, or with any others.
    """
    sections = (
        _head(subject),
        _settings(subject),
        _data(subject),
        _calibration(),
        _weights(),
        _verify(subject),
        _budgets(subject),
    )
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def states(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> dict[str, str]:
    """Input by output, where a model looks recurrent: of one type, shape and name but for its end.

    At least one input is no state: a model that only reads its own outputs has nothing to say.
    """
    found: dict[str, str] = {}
    for made in outputs:
        fits = (i for i in inputs if i.name not in found.values() and _same_state(i, made))
        if read := next(fits, None):
            found[made.name] = read.name
    return found if len(found) < len(inputs) else {}


def scores(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str | None:
    """The first output that looks like class scores: float, one row of several per sample.

    What has the size of an input is a reconstruction.
    """
    sizes = {spec.shape[1:] for spec in inputs if spec.shape is not None}
    for spec in outputs:
        shape = spec.shape or ()
        if len(shape) == 2 and _is_float(spec) and shape[1:] not in sizes and shape[1] != 1:
            return spec.name
    return None


def family(layers: Sequence[NodeInfo], names: Iterable[str]) -> tuple[str, int] | None:
    """A glob of the names of several layers that differ in numbers alone.

    Args:
        layers: What it is to match.
        names: The names of all nodes.

    Returns:
        The glob of most layers, and how many nodes it matches; None where no two are alike.
    """
    counts = Counter(_glob(node.name) for node in layers)
    pattern, alike = counts.most_common(1)[0] if counts else ("", 0)
    if alike < 2:
        return None
    return pattern, sum(fnmatchcase(name, pattern) for name in names)


def fitting_presets(subject: Subject) -> list[str]:
    """Names of presets that are made for such a model, the best first."""
    if Precision.INT8 in subject.target.refuses:
        return ["gpu"]
    sizes = {"conv": 0, "matrix": 0}
    for node in subject.layers:
        sizes["conv" if "Conv" in node.op else "matrix"] += _bytes(subject.prepared, node)
    if sum(sizes.values()) >= LARGE:
        return ["llm", "transformer"]
    return ["mobile"] if sizes["conv"] > sizes["matrix"] else ["transformer"]


def _head(subject: Subject) -> list[str]:
    census, source = subject.census, subject.source
    ops = Counter(node.op for node in subject.layers)
    size = sum(_bytes(subject.prepared, node) for node in subject.layers)
    many = ", ".join(f"{n} {op}" for op, n in ops.most_common()) or "none"
    return [
        *_told(
            f"Recipe for {subject.name}, by `onnxq recipe init`. It says nothing yet: uncomment "
            "and change what is to count. All other keys: docs/recipe.md."
        ),
        "#",
        "# Inputs:",
        *(f"#   {_tensor(spec)}" for spec in source.inputs),
        "# Outputs:",
        *(f"#   {_tensor(spec)}" for spec in source.outputs),
        *_told(
            f"Nodes: {len(census.nodes)} after preparing; {len(census.quantizable())} can compute "
            f"as int8 on {census.target}. Layers with weights: {many}; {_size(size)} of them."
        ),
        *_refused(census),
    ]


def _refused(census: Census) -> Iterator[str]:
    """Why nodes cannot be int8, the most frequent reasons first."""
    why = Counter((n.op, n.reason.sentence) for n in census.nodes if n.reason is not None)
    if not why:
        return
    yield "# Cannot be int8:"
    for (op, sentence), count in why.most_common(MOST_REASONS):
        yield from _told(f"{count} {op}: {sentence}", "#   ")
    if len(why) > MOST_REASONS:
        yield "#   and others: `onnxq inspect` lists all nodes"


def _settings(subject: Subject) -> list[str]:
    fitting = fitting_presets(subject)
    precision = _precision(subject, fitting[0])
    known = presets()
    told = "; ".join(f"{name} ({known[name].rstrip('.')})" for name in fitting)
    return [
        *_told(f"Presets that fit, to be taken whole with --preset: {told}."),
        "#",
        *_told("How all layers compute. Without it, what measurements say, node by node."),
        f'# precision = "{precision}"',
        *_told("What the best model is: the fastest inside the budgets, or the smallest."),
        '# objective = "latency"',
        *_told("The provider to plan for; else that of this machine."),
        f'# target = "{subject.target.name}"',
        *_layer_lines(subject),
    ]


def _precision(subject: Subject, preset: str) -> str:
    named = {"mobile": "int8", "transformer": "int8-dynamic", "llm": "int4-weights", "gpu": "fp16"}
    wanted = Precision(named[preset])
    return next(p for p in (wanted, Precision.INT8_WEIGHTS) if p not in subject.target.refuses)


def _layer_lines(subject: Subject) -> Iterator[str]:
    """Single layers, by position, name, glob and operator: names of this model."""
    layers = subject.layers
    if not layers:
        yield "#"
        yield from _told("No layer has constant weights, so there is none to name here.")
        return
    first, last = layers[0], layers[-1]
    yield "#"
    yield from _told("Nodes that stay float, by name, glob of names, or operator.")
    yield f"# keep_float = [{_quoted(_literal(first.name))}]"
    yield f"# keep_float_op = [{_quoted(last.op)}]"
    yield from _told(
        "What single layers are to be instead: float, int8, int8-dynamic, int8-weights, "
        "int4-weights, int16 or fp16. The same as tables of their own, under [[layers]]."
    )
    yield "layers = ["
    yield f'  # {{ position = "first", precision = "float" }}, # {_shown(first)}'
    yield f'  # {{ position = "last", precision = "float" }}, # {_shown(last)}'
    if alike := family(layers, (node.name for node in subject.census.nodes)):
        pattern, count = alike
        yield f'  # {{ name = {_quoted(pattern)}, precision = "float" }}, # {count} nodes'
    yield "]"


def _data(subject: Subject) -> list[str]:
    inputs = subject.source.inputs
    found = states(inputs, subject.source.outputs)
    fed = [spec for spec in inputs if spec.name not in found.values()]
    arrays = ", ".join(f"'{spec.name}' {_tensor_form(spec)}" for spec in fed)
    labels = "; and 'labels' int64 [samples], where they are known" if _scores(subject) else ""
    scalar = any(spec.shape == () for spec in fed)
    form = "A folder of .npz feeds, one for each run," if scalar else "An .npz"
    lines = [
        "[data]",
        *_told(
            "Samples to calibrate with and to judge by: an .npz, a folder, a function; `onnxq "
            f"quantize --help` lists all. {form} of this model holds {arrays}{labels}."
        ),
        *_told(_axes(fed)),
        '# calibration = "samples.npz"',
        *_told("Without a test set, a part of these samples is held back."),
        '# test = "test.npz"',
        "# holdout = 0.2",
    ]
    if all(not spec.shape or not isinstance(spec.shape[0], int) for spec in fed):
        lines += ["# batch_size = 8"]
    if channels := _image_channels(fed):
        lines += _preprocessing(fed[0], channels)
    if found:
        pairs = ", ".join(f"{_quoted(made)} = {_quoted(read)}" for made, read in found.items())
        lines += _told(
            "This model looks recurrent. What an output holds after one run is then fed to the "
            "input of the next; samples are the steps of a sequence, in order."
        )
        lines += [f"# state = {{ {pairs} }}"]
    return lines


def _axes(fed: Sequence[TensorSpec]) -> str:
    free = dict.fromkeys(str(a) for s in fed for a in s.shape or () if not isinstance(a, int))
    firsts = {s.shape[0] for s in fed if s.shape and isinstance(s.shape[0], int)}
    sizes = ", ".join(str(size) for size in sorted(firsts))
    told = f"Batches are fixed: {sizes} samples a run." if firsts else "Batches may have any size."
    return f"{told} Free axes: {', '.join(free)}." if free else told


def _preprocessing(spec: TensorSpec, channels: int) -> Iterator[str]:
    """What is usually done to images, in one line that holds for the input's channels."""
    means, stds = {1: ("[0.5]", "[0.5]")}.get(
        channels, ("[0.485, 0.456, 0.406]", "[0.229, 0.224, 0.225]")
    )
    first = (spec.shape or ())[1] == channels
    layout = ', layout = "NHWC->NCHW"' if first else ""
    yield from _told(
        "Images that are stored as bytes, with channels last, in a folder or an array. The "
        "figures are those of ImageNet: what counts is what this model was trained with."
    )
    numbers = f"scale = 0.00392156862745098, mean = {means}, std = {stds}"
    yield f"# preprocess = {{ {numbers}{layout} }}"


def _calibration() -> list[str]:
    return [
        "[calibration]",
        *_told("How ranges of activations are chosen: auto, mse, percentile, entropy, minmax."),
        '# method = "percentile"',
        "# percentile = 99.99 # of all values are inside the range",
        "# samples = 200 # at most",
    ]


def _weights() -> list[str]:
    return [
        "[weights]",
        *_told("How weights are stored that are quantized alone, as int8 or int4."),
        "# block_size = 32 # values that share a scale",
        "# symmetric = false # each block has a zero point",
        '# method = "hqq" # takes longer than rtn, and loses less',
    ]


def _verify(subject: Subject) -> list[str]:
    judged = _scores(subject)
    told = "No output looks like class scores. Where samples have labels, a metric of yours, "
    told += "module:function, can judge."
    if judged is not None:
        told = "Where samples have labels: the share whose largest score is the label's."
    named = ['# metric = "top1"', f"# output = {_quoted(judged)}"] if judged is not None else []
    return [
        "[verify]",
        *_told(told),
        *named,
        *_told("Threads of every run, and about how long latency is measured; 0 leaves it out."),
        "# threads = 1",
        "# seconds = 5.0",
    ]


def _budgets(subject: Subject) -> list[str]:
    of_scores = [
        "# max_drop = 0.005 # the most that the metric may fall",
        "# min_agreement = 0.97 # answers that stay the same",
    ]
    of_int8 = ["# min_int8 = 0.9 # layers that really run as int8"]
    return [
        "[budgets]",
        *_told("Limits: a missed one ends the run with exit code 1."),
        *(of_scores if _scores(subject) else []),
        "# min_sqnr = 30 # dB, of any output",
        *([] if Precision.INT8 in subject.target.refuses else of_int8),
        "# min_speedup = 1.2 # times as fast as float",
        "# max_size_ratio = 0.5 # of the bytes of the source",
    ]


def _scores(subject: Subject) -> str | None:
    return scores(subject.source.inputs, subject.source.outputs)


def _same_state(read: TensorSpec, made: TensorSpec) -> bool:
    if read.shape is None or made.shape is None or len(read.shape) != len(made.shape):
        return False
    axes = zip(read.shape, made.shape, strict=True)
    fits = all(a == b for a, b in axes if isinstance(a, int) and isinstance(b, int))
    stem = _stem(read.name)
    return fits and read.dtype == made.dtype and stem != "" and stem == _stem(made.name)


def _stem(name: str) -> str:
    """A state's name without what tells its end: ``h_in``, ``hOut``, ``h0``, ``hn`` are ``h``."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", re.sub(r"\b([hc])n\b", r"\1", name))
    return "_".join(part.lower() for part in parts if part.lower() not in _ENDS)


def _image_channels(fed: Sequence[TensorSpec]) -> int:
    """The channels of the one input, where it looks like an image; 0 elsewhere."""
    if len(fed) != 1 or fed[0].dtype != "float32" or len(fed[0].shape or ()) != 4:
        return 0
    _, second, third, last = fed[0].shape or ()
    for channels, sides in ((second, (third, last)), (last, (second, third))):
        large = all(not isinstance(side, int) or side >= LEAST_SIDE for side in sides)
        if isinstance(channels, int) and channels in (1, 3) and large:
            return channels
    return 0


def _glob(name: str) -> str:
    return re.sub(r"\d+", "*", _literal(name))


def _literal(name: str) -> str:
    """A glob that matches this name: brackets and the like stand for themselves."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _bytes(view: GraphView, node: NodeInfo) -> int:
    shapes = (view.shape(stored.tensor) or () for stored in node.stored)
    return sum(4 * math.prod(a for a in shape if isinstance(a, int)) for shape in shapes)


def _is_float(spec: TensorSpec) -> bool:
    return spec.dtype.startswith("float")


def _tensor(spec: TensorSpec) -> str:
    return printable(f"{spec.name}  {_tensor_form(spec)}")


def _tensor_form(spec: TensorSpec) -> str:
    if spec.shape is None:
        return f"{spec.dtype} of any shape"
    return f"{spec.dtype} [{', '.join('?' if a is None else str(a) for a in spec.shape)}]"


def _shown(node: NodeInfo) -> str:
    return printable(f"{node.name} ({node.op})")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def _told(text: str, indent: str = "# ") -> list[str]:
    """A sentence as comments, which no uncommented setting can be mistaken for."""
    return textwrap.wrap(
        printable(text), WIDTH, initial_indent=indent, subsequent_indent="#   ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _quoted(text: str) -> str:
    """A TOML string on one line; what is not printable is written as its number."""
    shown = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in shown)
