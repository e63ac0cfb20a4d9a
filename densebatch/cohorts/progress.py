"""What a user sees of one slide among others: the same, with its name before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from densebatch.run.report import Progress

if TYPE_CHECKING:
    from types import TracebackType


class RowProgress(Progress):
    """Tells what happens to a slide, until the context is left.

    Parameters
    ----------
    progress
        Is told.
    sample
        Name of the slide.
    """

    def __init__(self, progress: Progress, sample: str) -> None:
        self._progress = progress
        self._sample = sample
        self._shown: set[str] = set()

    def __enter__(self) -> RowProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self._shown:
            self._progress.drop(name)

    def stage(self, name: str, total: int, done: int) -> None:
        """Begin a stage."""
        self._shown.add(f"{self._sample}: {name}")
        self._progress.stage(f"{self._sample}: {name}", total, done)

    def advance(self, name: str, pixels: int) -> None:
        """Count a task."""
        self._progress.advance(f"{self._sample}: {name}", pixels)

    def note(self, text: str) -> None:
        """Tell a remark."""
        self._progress.note(f"{self._sample}: {text}")
