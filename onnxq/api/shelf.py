"""``Shelf``: a place in the cache folder for what a long run finds."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from onnxq.graph import write_bytes

Found = TypeVar("Found", bound=msgspec.Struct)


@dataclass(frozen=True)
class Shelf:
    """Where one run keeps what it finds: a journal while it lasts, its outcome afterwards.

    Attributes:
        folder: The folder.
        key: Names the run: the same key, the same outcome.
        certain: Whether the key tells all that the outcome depends on. Where it does not, only the
            journal is kept, which is to know by itself whether it fits.
    """

    folder: Path
    key: str
    certain: bool

    @staticmethod
    def of(folder: Path, facts: object, *, certain: bool) -> Shelf | None:
        """The shelf of a run; None where the folder cannot be written to: a cache is no must.

        Args:
            folder: Is made if there is none.
            facts: What the outcome depends on: any value that serialises.
            certain: Whether that is all.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError:
            return None
        key = hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()
        return Shelf(folder, key[:32], certain)

    @property
    def journal(self) -> Path:
        """The file of what is found while the run lasts."""
        return self.folder / f"{self.key}.journal"

    @property
    def _outcome(self) -> Path:
        return self.folder / f"{self.key}.json"

    def get(self, kind: type[Found]) -> Found | None:
        """The outcome of the same run, if it came to its end before."""
        try:
            return msgspec.json.decode(self._outcome.read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError):  # there is none, or it is of another version
            return None

    def put(self, outcome: msgspec.Struct) -> None:
        """Keep an outcome; the journal goes.

        Raises:
            OutputError: It cannot be written.
        """
        if self.certain:
            write_bytes(msgspec.json.encode(outcome), self._outcome)
            self.journal.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget what was found."""
        self._outcome.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)
