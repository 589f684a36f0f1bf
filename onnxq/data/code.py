"""A user's own Python code: named as ``module:function``, imported, and guarded."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxq.data.validate import suggest
from onnxq.errors import DataError

_CODE = re.compile(r"(?P<module>.+\.py|[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
# files whose frames say nothing about where a user's code failed
_NOT_THEIRS = {
    __file__,
    importlib.__file__,
    "<frozen importlib._bootstrap>",
    "<frozen importlib._bootstrap_external>",
}

# Modules of files that were imported, with time and size of the file at that time.
_imported: dict[Path, tuple[tuple[int, int], ModuleType]] = {}


def parse_code(spec: str, base: Path) -> tuple[str | Path, str] | None:
    """Module (or file) and function of ``module:function``; None for anything else."""
    match = _CODE.fullmatch(spec)
    if match is None:
        return None
    module, name = match["module"], match["name"]
    return (base / Path(module).expanduser() if module.endswith(".py") else module), name


def find_function(module: str | Path, name: str) -> Callable[..., Any]:
    """Import a dotted module or a ``.py`` file, and get a function of it.

    Raises:
        DataError: It cannot be imported, or has no such function.
    """
    if isinstance(module, Path) and not module.is_file():
        raise DataError(f"{module}: no such Python file", "give the path of a .py file")
    with user_code(f"{module} cannot be imported"):
        loaded = _import_file(module) if isinstance(module, Path) else _import_name(module)
    function = getattr(loaded, name, None)
    if not callable(function):
        known = [key for key, value in vars(loaded).items() if callable(value)]
        hint = suggest(name, known, "functions in it") if known else "it defines no function"
        raise DataError(f"{module} has no function '{name}'", hint)
    return function  # type: ignore[no-any-return]  # whatever it yields is checked later


def _import_name(name: str) -> ModuleType:
    with _importable(Path.cwd()):
        return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    """Import a file, once as long as it stays as it is."""
    path = path.resolve()
    stat = path.stat()
    stamp = stat.st_mtime_ns, stat.st_size
    known = _imported.get(path)
    if known is not None and known[0] == stamp:
        return known[1]
    # named by its whole path: two files of the same name do not meet in sys.modules
    name = "onnxq_data_" + hashlib.sha256(str(path).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    with _importable(path.parent):
        spec.loader.exec_module(module)
    _imported[path] = stamp, module
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules in ``folder`` be imported, as ``python -m`` and ``python file.py`` do."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # the module may have changed the path itself
            sys.path.remove(str(folder))


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Turn whatever a user's code raises into a DataError that names the line."""
    try:
        yield
    except Exception as error:  # a user's function may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame for frame in frames if frame.filename not in _NOT_THEIRS]
        at = f" ({Path(theirs[-1].filename).name}:{theirs[-1].lineno})" if theirs else ""
        raise DataError(f"{what}: {type(error).__name__}: {error}{at}") from error
