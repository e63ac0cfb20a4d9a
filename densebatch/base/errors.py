"""Errors that a user can act on; the command line turns each kind into an exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CAUSE_LENGTH = 200


class DensebatchError(Exception):
    """Base of all errors raised on purpose. The message is one sentence for the user."""

    exit_code = 1


class InputError(DensebatchError):
    """Input or settings that cannot work: what was found, where, and what is accepted."""

    exit_code = 2


class SceneError(InputError):
    """Which of several images is meant was not said, or not so that it is one of them.

    Attributes
    ----------
    scenes : a name and a description of each image that there is
    """

    def __init__(self, message: str, scenes: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.scenes = tuple(scenes)


class StackError(InputError):
    """Which of several focal planes or points in time is meant was not said.

    Attributes
    ----------
    stacks : how many there are, by the option that chooses one (`z`, `t`)
    """

    def __init__(self, message: str, stacks: Mapping[str, int] | None = None) -> None:
        super().__init__(message)
        self.stacks = dict(stacks or {})


class CapacityError(InputError):
    """The plan needs more memory or disk than there is; names the worst offender."""


class SlideChangedError(DensebatchError):
    """The slide is another than the one that the run began with."""


class StoreError(DensebatchError):
    """An object store or a web server does not give what it is asked for.

    That says nothing of the pixels, so that nobody may take them for damaged.

    Attributes
    ----------
    is_denied : whether it is there, and does not want to
    """

    def __init__(self, message: str, is_denied: bool = False) -> None:
        super().__init__(message)
        self.is_denied = is_denied


class UnreachableError(StoreError):
    """It does not even give the documents of a slide, so that no task on it can be done now."""


class WriteError(DensebatchError):
    """A task cannot write what it has made; names the path and the reason."""


class SegmenterError(DensebatchError):
    """A segmenter failed on a tile or returned no labels of it; names it and what is accepted."""


class PartialRunError(DensebatchError):
    """Some tiles failed after retries; everything else is written and the area is marked."""

    exit_code = 3


class IntegrityError(DensebatchError):
    """A result is not, or cannot be made, what the run wrote."""

    exit_code = 4


def describe_cause(error: BaseException) -> str:
    """What went wrong beneath, in one short line for the end of a sentence.

    An error of ours is a sentence already. That of another library is named by its type as well,
    because some say no more than a key or nothing at all.

    Examples
    --------
    >>> describe_cause(KeyError("chunks")), describe_cause(EOFError())
    ("KeyError: 'chunks'", 'EOFError: nothing')
    """
    text = " ".join(str(error).split())
    if isinstance(error, DensebatchError):
        return text
    short = text if len(text) <= _CAUSE_LENGTH else text[:_CAUSE_LENGTH] + "..."
    return f"{type(error).__name__}: {short or 'nothing'}"
