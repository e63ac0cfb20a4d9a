"""Errors that a user can act on; the command line turns each kind into an exit code."""

from __future__ import annotations


class DensebatchError(Exception):
    """Base of all errors raised on purpose. The message is one sentence for the user."""

    exit_code = 1


class InputError(DensebatchError):
    """Input or settings that cannot work: what was found, where, and what is accepted."""

    exit_code = 2


class CapacityError(InputError):
    """The plan needs more memory or disk than there is; names the worst offender."""


class PartialRunError(DensebatchError):
    """Some tiles failed after retries; everything else is written and the area is marked."""

    exit_code = 3
