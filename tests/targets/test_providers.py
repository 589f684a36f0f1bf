"""The table of execution providers, and the value that names one."""

from __future__ import annotations

import msgspec
import pytest

from onnxq.errors import RecipeError, UsageError
from onnxq.plan import Recipe
from onnxq.plan.recipe import parse_recipe
from onnxq.targets import CPU, PROVIDERS, TARGETS, Provider, get_provider


def test_every_target_has_its_provider() -> None:
    """A target is planned for a provider that models can be run on."""
    by_target = {facts.target: facts.runtime_name for facts in PROVIDERS.values() if facts.target}
    for name, target in TARGETS.items():
        assert by_target[by_target_of(name)] == target.provider


def by_target_of(name: str) -> str:
    return "cpu-x86" if name.startswith("cpu-") else name


def test_int8_is_what_the_target_says() -> None:
    told = {name: facts.int8 for name, facts in PROVIDERS.items()}
    assert told["cpu"] is told["openvino"] is told["tensorrt"] is told["directml"] is True
    assert told["cuda"] is False  # its target refuses int8
    assert told["coreml"] is told["migraphx"] is None


def test_every_fact_has_a_source_and_a_way_to_get_it() -> None:
    for name, facts in PROVIDERS.items():
        assert facts.name == name
        assert facts.source
        assert facts.install


@pytest.mark.parametrize(
    ("name", "told"),
    [("cda", "did you mean 'cuda'?"), ("atuo", "did you mean 'auto'?"), ("zzz", "known: ")],
)
def test_unknown_names(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=f"unknown execution provider '{name}'") as raised:
        get_provider(name)
    assert told in str(raised.value)
    assert "--ep-library" in str(raised.value)


def test_a_plugin_has_its_own_name() -> None:
    assert Provider("my_ep", library="/lib/my_ep.so").runtime_name == "my_ep"
    assert Provider("openvino").runtime_name == "OpenVINOExecutionProvider"


def test_a_recipe_names_one() -> None:
    text = """
    target = "openvino"
    [provider]
    name = "openvino"
    strict = true
    options = { device_type = "GPU" }
    """
    recipe = parse_recipe(text, "r.toml")
    assert recipe.provider == Provider("openvino", {"device_type": "GPU"}, strict=True)
    assert Recipe().provider == CPU
    again = msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe)
    assert again == recipe
    assert recipe.digest() != Recipe(target="openvino").digest()


def test_a_typo_in_it_is_told() -> None:
    with pytest.raises(RecipeError, match=r"unknown key 'provider.nme'; did you mean 'name'\?"):
        parse_recipe('[provider]\nnme = "cuda"', "r.toml")
