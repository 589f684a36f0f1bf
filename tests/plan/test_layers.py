"""What is wanted of every node: patterns, bits, conflicts, and what means nothing."""

from __future__ import annotations

import msgspec
import pytest

from onnxq.errors import UsageError
from onnxq.ops import Census, classify
from onnxq.plan import (
    CalibrationSettings,
    LayerRule,
    LayerSettings,
    Recipe,
    WeightSettings,
    layer_settings,
    readings,
)
from onnxq.targets import get_target
from onnxq.types import Precision

TARGET = get_target("cpu-x86")
NET = """g (float[1,4,4,4] x) => (float y)
<float[4,4,1,1] w1 = seeded, float[4,4,1,1] w2 = seeded, float[64,40] v = seeded>
{ [conv_1] c = Conv (x, w1) [act] r = Relu (c) [conv_2] d = Conv (r, w2)
  [flat] f = Flatten (d) [head] y = Gemm (f, v) }"""
NAMES = ("conv_1", "act", "conv_2", "flat", "head")


@pytest.fixture
def view(build):
    return build(NET).view()


@pytest.fixture
def census(view) -> Census:
    return classify(view, TARGET)


def rule(**said: object) -> LayerRule:
    """A rule as a recipe's file makes it."""
    return msgspec.convert(said, LayerRule)


def precisions(census: Census, recipe: Recipe) -> dict[str, Precision]:
    return {name: wanted.precision for name, wanted in layer_settings(census, recipe).items()}


# --- which nodes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "hits"),
    [
        ({"name": "conv_1"}, {"conv_1"}),
        ({"name": "conv_*"}, {"conv_1", "conv_2"}),
        ({"name": "*"}, set(NAMES)),
        ({"regex": r"conv_\d"}, {"conv_1", "conv_2"}),
        ({"regex": "(act|head)"}, {"act", "head"}),
        ({"op": "Conv"}, {"conv_1", "conv_2"}),
        ({"position": "first"}, {"conv_1"}),
        ({"position": "last"}, {"head"}),
    ],
)
def test_pattern_chooses_nodes(census, pattern, hits) -> None:
    found = precisions(census, Recipe(layers=(rule(**pattern, precision="int16"),)))
    assert {name for name, wanted in found.items() if wanted == "int16"} == hits
    assert {wanted for name, wanted in found.items() if name not in hits} <= {"int8"}


def test_regular_expression_is_of_the_whole_name(census) -> None:
    recipe = Recipe(layers=(rule(regex="conv", precision="float"),))
    with pytest.raises(UsageError, match="no node's name matches 'conv'; did you mean 'conv_"):
        layer_settings(census, recipe)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (Recipe(keep_float=("conv1",)), "no node is called 'conv1'; did you mean 'conv_1'?"),
        (Recipe(keep_float=("CONV_1",)), "no node is called 'CONV_1'"),
        (Recipe(keep_float=("zzz*",)), "`onnxq inspect MODEL` lists all"),
        (Recipe(keep_float=("conv_1", "zzz")), "no node is called 'zzz'"),
        (Recipe(keep_float_op=("conv",)), "no node is a 'conv'; did you mean 'Conv'?"),
        (Recipe(layers=(rule(name="haed", bits=8),)), "'haed'; did you mean 'head'?"),
        (Recipe(layers=(rule(op="Gem", bits=8),)), "no node is a 'Gem'; did you mean 'Gemm'?"),
        (Recipe(layers=(rule(regex="haed.*", bits=8),)), "did you mean 'head'?"),
    ],
)
def test_pattern_that_matches_nothing_is_an_error(census, recipe, told) -> None:
    with pytest.raises(UsageError) as error:
        layer_settings(census, recipe)
    assert told in str(error.value)


def test_position_needs_a_weight(build) -> None:
    census = classify(build("g (float[1,4] x) => (float y) { y = Relu (x) }").view(), TARGET)
    with pytest.raises(
        UsageError, match="no node multiplies with constant weights: none is the last"
    ):
        layer_settings(census, Recipe(layers=(rule(position="last", bits=8),)))


def test_position_is_of_what_multiplies(build) -> None:
    """A table of words is no layer, and a layer's weights may be two."""
    census = classify(
        build("""g (int64[3,1] i) => (float y)
            <float[16,8] table = seeded, float[1,64,8] w = seeded, float[1,64,16] r = seeded>
            { [words] e = Gather (table, i) [cell] y, h = LSTM <hidden_size = 16> (e, w, r) }
            """).view(),
        TARGET,
    )
    for position in ("first", "last"):
        recipe = Recipe(layers=(rule(position=position, precision="int8-dynamic"),))
        found = precisions(census, recipe)
        assert [n for n, wanted in found.items() if wanted == "int8-dynamic"] == ["cell"]


@pytest.mark.parametrize("kind", ["keep_float", "layers"])
def test_name_with_brackets_is_a_name_first(build, kind) -> None:
    """As a glob, it would be ``block0/act``."""
    model = build("g (float[1,4] x) => (float y) { a = Relu (x) y = Relu (a) }").copy()
    model.ir.graph[0].name, model.ir.graph[1].name = "block[0]/act", "block0/act"
    said = {
        "keep_float": Recipe(keep_float=("block[0]/act",)),
        "layers": Recipe(layers=(rule(name="block[0]/act", precision="float"),)),
    }
    found = precisions(classify(model.view(), TARGET), said[kind])
    assert found == {"block[0]/act": "float", "block0/act": "int8"}


# --- what is wanted of them -------------------------------------------------------------------


def test_all_other_layers_are_as_the_recipe_says(census) -> None:
    weights = WeightSettings(block_size=64, symmetric=False, method="hqq")
    recipe = Recipe(precision="int4-weights", per_channel=False, weights=weights)
    usual = LayerSettings(Precision.INT4_WEIGHTS, False, 64, False, "hqq")
    assert set(layer_settings(census, recipe).values()) == {usual}
    one = rule(name="head", precision="int8-weights", per_channel=True, symmetric=True,
               block_size=16, method="rtn")  # fmt: skip
    found = layer_settings(census, msgspec.structs.replace(recipe, layers=(one,)))
    assert found["head"] == LayerSettings(Precision.INT8_WEIGHTS, True, 16, True, "rtn")
    assert {wanted for name, wanted in found.items() if name != "head"} == {usual}


def test_settings_of_two_tables_add_up(census) -> None:
    recipe = Recipe(
        layers=(
            rule(op="Conv", per_channel=False),
            rule(name="conv_2", precision="int16", observer="minmax"),
            rule(position="first", per_channel=False),  # the same twice
        )
    )
    found = layer_settings(census, recipe)
    assert found["conv_1"] == LayerSettings(Precision.INT8, per_channel=False)
    assert found["conv_2"] == LayerSettings(Precision.INT16, False, observer="minmax")
    assert found["head"] == LayerSettings(Precision.INT8)


@pytest.mark.parametrize(
    ("usual", "by_bits"),
    [
        # what 4, 8 and 16 bits are beside the precision of all other layers
        (None, ("int4-weights", "int8", "int16")),
        ("int8", ("int4-weights", "int8", "int16")),
        ("int16", ("int4-weights", "int8", "int16")),
        ("int8-dynamic", ("int4-weights", "int8-dynamic", "int16")),
        ("int8-weights", ("int4-weights", "int8-weights", "int16")),
        ("int4-weights", ("int4-weights", "int8-weights", "int16")),
        ("fp16", ("int4-weights", "int8", "fp16")),
        ("float", ("int4-weights", "int8", "int16")),
    ],
)
def test_bits_are_short_for_a_precision(census, usual, by_bits) -> None:
    for bits, wanted in zip((4, 8, 16), by_bits, strict=True):
        recipe = Recipe(precision=usual, layers=(rule(name="head", bits=bits),))
        found = precisions(census, recipe)
        assert (found["head"], found["act"]) == (wanted, usual or "int8")
        assert recipe.static is bool({wanted, usual or "int8"} & {"int8", "int16"})


@pytest.mark.parametrize(
    ("recipe", "by"),
    [
        (Recipe(keep_float=("conv_*",)), "keep_float 'conv_*'"),
        (Recipe(keep_float_op=("Conv",)), "keep_float_op 'Conv'"),
        (Recipe(layers=(rule(op="Conv", precision="float"),)), "op 'Conv'"),
        (Recipe(precision="int8-weights", keep_float=("conv_*",)), "keep_float 'conv_*'"),
    ],
)
def test_kept_nodes_say_why(census, recipe, by) -> None:
    found = layer_settings(census, recipe)
    reasons = {name: wanted.reason for name, wanted in found.items() if wanted.reason}
    assert set(reasons) == {"conv_1", "conv_2"}
    for name, reason in reasons.items():
        assert found[name].precision is Precision.FLOAT
        assert (reason.code, reason.node) == ("kept-float", name)
        assert reason.sentence == f"kept float by {by}"


def test_the_plan_obeys(build, quantize) -> None:
    recipe = Recipe(precision="float", layers=(rule(name="conv_*", precision="int8"),))
    found = quantize(build(NET), recipe).plan
    kinds = {node.name: (node.precision, node.reason and node.reason.code) for node in found.nodes}
    assert kinds["conv_1"] == kinds["conv_2"] == ("int8", None)
    assert kinds["head"] == ("float", "other-precision")


# --- contradictions ---------------------------------------------------------------------------

CONFLICTS = {
    "two names": (
        Recipe(layers=(rule(name="conv_*", bits=4), rule(name="conv_2", bits=8))),
        ("conv_2", "precision", "name 'conv_*'", "int4-weights", "name 'conv_2'", "int8"),
    ),
    "operator and name": (
        Recipe(layers=(rule(op="Gemm", per_channel=True), rule(name="head", per_channel=False))),
        ("head", "per_channel", "op 'Gemm'", "true", "name 'head'", "false"),
    ),
    "position and regex": (
        Recipe(
            precision="int4-weights",
            layers=(rule(position="last", block_size=32), rule(regex="he.d", block_size=64)),
        ),
        ("head", "block_size", "position 'last'", "32", "regex 'he.d'", "64"),
    ),
    "kept float": (
        Recipe(keep_float=("head",), layers=(rule(op="Gemm", precision="int16"),)),
        ("head", "precision", "keep_float 'head'", "float", "op 'Gemm'", "int16"),
    ),
    "operator kept float": (
        Recipe(keep_float_op=("Gemm",), layers=(rule(name="head", bits=8),)),
        ("head", "precision", "keep_float_op 'Gemm'", "float", "name 'head'", "int8"),
    ),
    "observers": (
        Recipe(layers=(rule(name="*", observer="mse"), rule(name="head", observer="minmax"))),
        ("head", "observer", "name '*'", "mse", "name 'head'", "minmax"),
    ),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_conflict_names_both_patterns_and_the_node(census, name) -> None:
    recipe, (node, key, by, value, also, other) = CONFLICTS[name]
    with pytest.raises(UsageError) as error:
        layer_settings(census, recipe)
    told = f"{by} wants {key} {value} of node '{node}', and {also} wants {other}; no pattern wins"
    assert told in str(error.value)


def test_order_of_tables_does_not_matter(census) -> None:
    recipe, _ = CONFLICTS["two names"]
    turned = msgspec.structs.replace(recipe, layers=recipe.layers[::-1])
    with pytest.raises(UsageError, match="wants precision int8 of node 'conv_2', and name 'conv_"):
        layer_settings(census, turned)


@pytest.mark.parametrize(
    ("precision", "said", "told"),
    [
        ("int8", {"block_size": 32}, "block_size means nothing to the nodes of name 'head', which "
         "are to compute as int8; it is about int4-weights, int8-weights"),
        ("int8-dynamic", {"symmetric": False}, "symmetric means nothing"),
        ("int16", {"method": "hqq"}, "method means nothing"),
        ("int8-weights", {"observer": "minmax"}, "it is about int8, int16"),
        ("int8", {"precision": "float", "per_channel": False}, "compute as float"),
        ("int8", {"bits": 4, "per_channel": False}, "compute as int4-weights"),
    ],
)  # fmt: skip
def test_setting_without_any_effect_is_an_error(census, precision, said, told) -> None:
    recipe = Recipe(precision=precision, layers=(rule(name="head", **said),))
    with pytest.raises(UsageError) as error:
        layer_settings(census, recipe)
    assert told in str(error.value)


@pytest.mark.parametrize("said", [{"block_size": 32}, {"method": "hqq"}, {"symmetric": False}])
def test_blocks_of_a_convolution_are_an_error(census, said) -> None:
    """It sums along three axes; beside a layer with blocks, in one pattern, it is left out."""
    recipe = Recipe(precision="int4-weights", layers=(rule(op="Conv", **said),))
    with pytest.raises(UsageError) as error:
        layer_settings(census, recipe)
    (key,) = said
    assert str(error.value) == (
        f"{key} means nothing to the nodes of op 'Conv': weights of Conv are not stored in blocks; "
        "name a MatMul, Gemm, Gather or recurrent layer, or leave the setting out"
    )
    all_layers = rule(regex="conv_1|head", **said)
    layer_settings(census, msgspec.structs.replace(recipe, layers=(all_layers,)))


# --- how ranges are read ----------------------------------------------------------------------


def observers(view, *rules: LayerRule, **said: object) -> dict[str, str]:
    """The method of every tensor that has one of its own."""
    found = readings(view, classify(view, TARGET), Recipe(layers=rules, **said))
    return {tensor: read.observer for tensor, read in found.items() if read.observer}


def test_observer_is_for_what_a_layer_makes_and_reads(view) -> None:
    # the Conv vanishes into the range of its Relu, whose output it therefore makes
    assert observers(view, rule(name="conv_1", observer="minmax")) == {"x": "minmax", "r": "minmax"}
    assert observers(view, rule(name="head", observer="mse")) == {"f": "mse", "y": "mse"}


def test_who_makes_a_tensor_wins_over_who_reads_it(view) -> None:
    one, other = rule(name="conv_1", observer="minmax"), rule(name="conv_2", observer="mse")
    for rules in ((one, other), (other, one)):
        assert observers(view, *rules) == {"x": "minmax", "r": "minmax", "d": "mse"}


def test_readers_must_agree(build) -> None:
    view = build("""g (float[1,4,4,4] x) => (float a, float b) <float[4,4,1,1] w = seeded>
        { [left] a = Conv (x, w) [right] b = Conv (x, w) }""").view()
    same = [rule(name=name, observer="mse") for name in ("left", "right")]
    assert observers(view, *same) == {"x": "mse", "a": "mse", "b": "mse"}
    with pytest.raises(UsageError) as error:
        observers(view, rule(name="left", observer="mse"), rule(name="right", observer="entropy"))
    told = "node 'left' wants observer mse of tensor 'x', and node 'right' wants entropy"
    assert told in str(error.value)


def test_ranges_are_read_for_16_bits_where_no_layer_of_8_touches_them(view) -> None:
    def wide(*rules: LayerRule, precision: str = "int8") -> set[str]:
        recipe = Recipe(precision=precision, layers=rules)
        found = readings(view, classify(view, TARGET), recipe)
        return {tensor for tensor, read in found.items() if read.wide}

    assert wide() == set()
    assert wide(precision="int16") == {"x", "r", "d", "f", "y"}
    assert wide(rule(name="head", bits=16)) == {"y"}
    assert wide(rule(name="head", bits=8), precision="int16") == {"x", "r", "d"}


def test_observers_are_options_of_calibration() -> None:
    """A layer's method takes its options from where all others have theirs."""
    settings = CalibrationSettings(method="mse", percentile=99.0)
    assert settings.with_method("percentile").observer().options == {"percentile": 99.0}
