"""What a run tells those who watch it in this process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """Receives what happens; the command line shows it. Subclass what you need."""

    def stage(self, name: str, total: int, done: int) -> None:
        """Begin a stage of `total` tasks, `done` of which were finished in an earlier run."""

    def advance(self, name: str, pixels: int) -> None:
        """One task of a stage is done; it covered `pixels` of the slide."""

    def note(self, text: str) -> None:
        """Something that the user should know."""
