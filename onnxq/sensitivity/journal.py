"""The journal of an analysis: what is finished, line by line, so that a killed run goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec

from onnxq.errors import OutputError
from onnxq.graph import write_bytes


class Journal:
    """A file with one line for its run and one for every finding.

    A line that a kill cut off is dropped when the file is read, and so is a file of another run.

    Args:
        path: The file; None keeps findings in memory alone.
        key: Names the run: the same key, the same findings.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path = path
        self._head = json.dumps({"onnxq": "sensitivity", "key": key})
        self._found: dict[str, Any] = {}
        if path is not None:
            lines = _whole_lines(path)
            kept = lines if lines[:1] == [self._head] else [self._head]
            for line in kept[1:]:
                entry = json.loads(line)
                self._found[entry["name"]] = entry["value"]
            write_bytes("".join(f"{line}\n" for line in kept).encode(), path)

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def get(self, name: str, kind: Any) -> Any:  # noqa: ANN401 - whatever ``kind`` says
        """A finding as a value of some type.

        Raises:
            KeyError: There is none of this name.
            OutputError: The file holds something else under it.
        """
        try:
            return msgspec.convert(self._found[name], kind)
        except msgspec.ValidationError as error:
            raise OutputError(
                f"'{self._path}' holds something else than what was written to it: {error}",
                "delete it",
            ) from error

    def put(self, name: str, value: Any) -> None:  # noqa: ANN401 - any serialisable value
        """Add a finding; when this returns, it outlives a kill.

        Raises:
            OutputError: The file cannot be written.
        """
        self._found[name] = msgspec.to_builtins(value)
        if self._path is None:
            return
        line = json.dumps({"name": name, "value": self._found[name]})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write '{self._path}': {error.strerror}") from error


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file up to the first that is not whole."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    *whole, _ = text.split("\n")
    for number, line in enumerate(whole):
        try:
            entry = json.loads(line)
        except ValueError:
            return whole[:number]
        if not isinstance(entry, dict) or not ("key" in entry or {"name", "value"} <= entry.keys()):
            return whole[:number]
    return whole
