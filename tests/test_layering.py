"""The floors of the house: who may import what, printed or not, and how long a file may be.

Imports are read from the source with ``ast``, so those inside functions, under
``TYPE_CHECKING`` and in ``import_module("a constant")`` count as well. Names that are only
known at run time (the ``module:function`` reader) cannot be seen and do not count.
"""

import ast
import graphlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "onnxq"

# Each floor imports itself and the floors before it.
FLOORS = (
    "errors",
    "types",
    "numerics",
    "graph",
    "targets",
    "ops",
    "runtime",
    "data",
    "calibrate",
    "plan",
    "rewrite",
    "qat",
    "verify",
    "sensitivity",
    "report",
    "api",
    "cli",
    "pytest_plugin",
    "__main__",
)

ROOT_IMPORTS = {"api", "types", "errors"}  # what onnxq/__init__.py may reach
ROOT_IMPORTERS = {"cli", "__main__"}  # who may import onnxq itself: all else would be a cycle

OWNERS = {
    "onnx": {"graph"},
    "onnx_ir": {"graph"},
    "onnxruntime": {"runtime"},
    "torch": {"qat"},
    "click": {"cli"},
    "rich": {"report", "cli"},
}

PRINTING = {"report", "cli"}
MAX_LINES = 500


@dataclass(frozen=True)
class Module:
    """One source file. ``is_package`` is true of an ``__init__.py``."""

    name: str
    source: str
    is_package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def floor(self) -> str:
        return floor_of(self.name)

    def resolve(self, target: str, level: int) -> str:
        """The absolute name behind ``level`` leading dots, as the import system reads them."""
        if level == 0:
            return target
        parts = self.name.split(".")
        parts = parts[: len(parts) - level + self.is_package]
        return ".".join([*parts, target] if target else parts)


def floor_of(name: str) -> str:
    """``onnxq.graph.view`` -> ``graph``; the root package has the floor ``""``."""
    return name.split(".")[1] if "." in name else ""


def is_ours(name: str) -> bool:
    return name == "onnxq" or name.startswith("onnxq.")


def load_package(folder: Path) -> list[Module]:
    modules = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules.append(Module(name, path.read_text(encoding="utf-8"), is_package))
    return modules


def imports(module: Module, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and absolute module name of every import.

    ``from a import b`` is an import of ``a.b`` if that is one of the ``known`` modules, and of
    ``a`` otherwise.
    """
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield node.lineno, alias.name
            case ast.ImportFrom(module=base, names=names, level=level):
                origin = module.resolve(base or "", level)
                for alias in names:
                    full = f"{origin}.{alias.name}"
                    yield node.lineno, full if full in known else origin
            case ast.Call(
                func=ast.Name(id=called) | ast.Attribute(attr=called),
                args=[ast.Constant(value=str(text)), *_],
            ) if called in {"import_module", "__import__"}:
                target = text.lstrip(".")
                yield node.lineno, module.resolve(target, len(text) - len(target))


def edges(modules: list[Module]) -> Iterator[tuple[Module, int, str]]:
    known = {module.name for module in modules}
    for module in modules:
        for line, target in imports(module, known):
            yield module, line, target


def floor_order(modules: list[Module]) -> list[str]:
    rank = {floor: i for i, floor in enumerate(FLOORS)}
    found = [f"{m.name} is on no floor" for m in modules if m.floor and m.floor not in rank]
    for module, line, target in edges(modules):
        source, wanted = module.floor, floor_of(target)
        if not is_ours(target):
            continue
        if source == "":
            allowed = wanted in ROOT_IMPORTS
        elif wanted == "":
            allowed = source in ROOT_IMPORTERS
        else:
            allowed = rank.get(wanted, len(rank)) <= rank.get(source, -1)
        if not allowed:
            found.append(f"{module.name}:{line} may not import {target}")
    return found


def cycles(modules: list[Module]) -> list[str]:
    """One cycle for every floor that has any."""
    graphs: dict[str, dict[str, set[str]]] = {}
    for module, _, target in edges(modules):
        if is_ours(target) and floor_of(target) == module.floor:
            graphs.setdefault(module.floor, {}).setdefault(module.name, set()).add(target)
    found = []
    for graph in graphs.values():
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            found.append("cycle: " + " <- ".join(error.args[1]))
    return found


def third_party(modules: list[Module]) -> list[str]:
    return [
        f"{module.name}:{line} may not import {target}"
        for module, line, target in edges(modules)
        if module.floor not in OWNERS.get(target.split(".")[0], {module.floor})
    ]


def prints(modules: list[Module]) -> list[str]:
    return [
        f"{module.name}:{node.lineno} prints"
        for module in modules
        if module.floor not in PRINTING
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]


def long_files(modules: list[Module]) -> list[str]:
    return [
        f"{module.name} has {lines} lines, more than {MAX_LINES}"
        for module in modules
        if (lines := len(module.source.splitlines())) > MAX_LINES
    ]


RULES = (floor_order, cycles, third_party, prints, long_files)
Rule = Callable[[list[Module]], list[str]]


@pytest.fixture(scope="module")
def package() -> list[Module]:
    modules = load_package(PACKAGE)
    assert {"onnxq", "onnxq.errors", "onnxq.types"} <= {m.name for m in modules}
    return modules


@pytest.mark.parametrize("rule", RULES)
def test_package(rule: Rule, package: list[Module]) -> None:
    assert rule(package) == []


# --- The checker itself: each rule must be able to fail. ---------------------------------------

GRAPH = [Module("onnxq.graph", "", is_package=True), Module("onnxq.graph.view", "")]


@pytest.mark.parametrize(
    ("name", "source", "line", "target"),
    [
        ("onnxq.numerics.scale", "from onnxq.graph.view import View", 1, "onnxq.graph.view"),
        ("onnxq.numerics.scale", "import onnxq.graph.view", 1, "onnxq.graph.view"),
        ("onnxq.numerics.scale", "from onnxq.graph import view", 1, "onnxq.graph.view"),
        ("onnxq.numerics.scale", "from ..graph import view", 1, "onnxq.graph.view"),
        ("onnxq.numerics.scale", "from onnxq import graph", 1, "onnxq.graph"),
        ("onnxq.errors", "def f():\n    import onnxq.types", 2, "onnxq.types"),
        ("onnxq.types", "if TYPE_CHECKING:\n    import onnxq.plan", 2, "onnxq.plan"),
        ("onnxq.types", "import_module('onnxq.plan')", 1, "onnxq.plan"),
        ("onnxq.graph.load", "importlib.import_module('..cli', __name__)", 1, "onnxq.cli"),
        ("onnxq.targets", "from onnxq.ops import table", 1, "onnxq.ops"),
        ("onnxq.verify.run", "from onnxq import quantize", 1, "onnxq"),
        ("onnxq.api", "import onnxq.cli.main", 1, "onnxq.cli.main"),
        ("onnxq.cli.main", "import onnxq.utils", 1, "onnxq.utils"),
    ],
)
def test_floor_order_is_seen(name: str, source: str, line: int, target: str) -> None:
    modules = [Module(name, source), *GRAPH]
    assert floor_order(modules) == [f"{name}:{line} may not import {target}"]


def test_dots_in_a_package_start_at_the_package_itself() -> None:
    source = "from .scale import f\nfrom ..graph.view import View"
    modules = [Module("onnxq.numerics", source, is_package=True), *GRAPH]
    assert floor_order(modules) == ["onnxq.numerics:2 may not import onnxq.graph.view"]


def test_root_package_reaches_only_the_front_door() -> None:
    root = Module("onnxq", "from onnxq.api import f\nfrom . import graph", is_package=True)
    assert floor_order([root, *GRAPH]) == ["onnxq:2 may not import onnxq.graph"]


def test_unknown_floor_is_seen() -> None:
    assert floor_order([Module("onnxq.utils", "")]) == ["onnxq.utils is on no floor"]


def test_cycle_inside_a_floor_is_seen() -> None:
    load = Module("onnxq.graph.load", "from onnxq.graph import edit")
    edit = Module("onnxq.graph.edit", "def f():\n    from onnxq.graph.view import View")
    view = Module("onnxq.graph.view", "from .load import load")
    assert cycles([load, edit]) == []
    (found,) = cycles([load, edit, view])
    assert found.startswith("cycle: ")
    assert {"onnxq.graph.load", "onnxq.graph.edit", "onnxq.graph.view"} <= set(found.split())


def test_cycle_through_the_floors_own_package_is_seen() -> None:
    package = Module("onnxq.graph", "from onnxq.graph.view import View", is_package=True)
    view = Module("onnxq.graph.view", "from onnxq.graph import Model")
    assert len(cycles([package, view])) == 1


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("onnxq.ops.table", "onnx"),
        ("onnxq.rewrite.qdq", "onnx_ir.passes"),
        ("onnxq.verify.latency", "onnxruntime"),
        ("onnxq.api", "click"),
        ("onnxq.calibrate.collect", "rich.progress"),
    ],
)
def test_third_party_is_seen(name: str, target: str) -> None:
    module = Module(name, f"def f():\n    from {target} import anything")
    assert third_party([module]) == [f"{name}:2 may not import {target}"]


def test_print_is_seen() -> None:
    source = '"""Not a print()."""\n\ndef f():\n    print("x")'
    assert prints([Module("onnxq.plan.policy", source)]) == ["onnxq.plan.policy:4 prints"]
    assert prints([Module("onnxq.cli.main", source)]) == []


def test_long_file_is_seen() -> None:
    assert long_files([Module("onnxq.api", "\n" * MAX_LINES)]) == []
    assert len(long_files([Module("onnxq.api", "\n" * (MAX_LINES + 1))])) == 1


@pytest.mark.parametrize("rule", RULES)
def test_clean_source_passes(rule: Rule) -> None:
    modules = [
        Module("onnxq", "from onnxq import api, errors", is_package=True),
        Module("onnxq.api", "from onnxq.graph.view import View\nimport onnxq.verify"),
        Module("onnxq.errors", "from __future__ import annotations"),
        Module("onnxq.graph", "from .view import View", is_package=True),
        Module("onnxq.graph.view", "import onnx\nimport onnx_ir as ir\nimport numpy as np"),
        Module("onnxq.data.test_set", "from onnxq.graph import View"),
        Module("onnxq.cli.main", "import click, rich\nimport onnxq\nprint(1)"),
    ]
    assert rule(modules) == []
