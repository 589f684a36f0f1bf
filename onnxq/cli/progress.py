"""Progress bars on standard error for the stages of a run."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from onnxq.cli.terminal import Terminal


class StageBars:
    """One bar per stage; silent when asked, and where standard error is no terminal."""

    def __init__(self, *, quiet: bool) -> None:
        console = Terminal(stderr=True)
        self._quiet = quiet
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int, told: str = "") -> None:
        """Show how far a stage is; a total of 0 is one that nobody knows yet.

        Args:
            stage: Which.
            done: Parts that are done.
            total: All parts.
            told: What to say in place of the stage's name.
        """
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total or None)
        self._bars.update(self._tasks[stage], completed=done, description=told or stage)  # type: ignore[arg-type]

    def print(self, view: RenderableType) -> None:
        """Print above the bars, also where standard error is no terminal."""
        if not self._quiet:
            self._bars.console.print(view)
