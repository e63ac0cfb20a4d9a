"""Errors that a user can act on; the command line turns each kind into an exit code."""

from __future__ import annotations

_CAUSE_LENGTH = 200


class DensebatchError(Exception):
    """Base of all errors raised on purpose. The message is one sentence for the user."""

    exit_code = 1


class InputError(DensebatchError):
    """Input or settings that cannot work: what was found, where, and what is accepted."""

    exit_code = 2


class CapacityError(InputError):
    """The plan needs more memory or disk than there is; names the worst offender."""


class SlideChangedError(DensebatchError):
    """The slide is another than the one that the run began with."""


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
