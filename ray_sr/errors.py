"""The errors a user can cause, each with the exit code that the command line ends with.

Every message is one line that says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import os


class RaySRError(Exception):
    """Base of all errors that are shown as one line, without a traceback."""

    exit_code = 1


class RecipeError(RaySRError):
    """A recipe or an option is wrong. Exit code 2."""

    exit_code = 2


class InputError(RaySRError):
    """Some input is missing or unreadable. Exit code 3."""

    exit_code = 3


class WeightsAbsentError(InputError):
    """Published weights are not on this machine and cannot be downloaded. Exit code 3."""


class ResourceError(RaySRError):
    """Not enough memory, disk, devices or permissions. Exit code 4."""

    exit_code = 4


class ModelError(RaySRError):
    """A checkpoint, model or weights file does not fit. Exit code 5."""

    exit_code = 5


class ClusterError(RaySRError):
    """The cluster or a server cannot be reached or failed. Exit code 6."""

    exit_code = 6


def printable(name: str | os.PathLike[str]) -> str:
    """A file's name, or any text, as one line that every terminal and log takes."""
    text = os.fsdecode(name)
    return text if text.isprintable() else ascii(text)


def visible(text: str) -> str:
    """The text with its control characters and the like written out: a name can hold what moves a cursor."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


_KINDS: dict[str, type[RaySRError]] = {
    kind.__name__: kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, RaySRError)
}


def described(error: RaySRError) -> dict[str, str]:
    """The error as plain text that travels between processes: `message`, and its nearest class here as `kind`."""
    kind = next(base.__name__ for base in type(error).__mro__ if _KINDS.get(base.__name__) is base)
    return {"kind": kind, "message": str(error)}


def from_description(kind: str, message: str) -> RaySRError:
    """The error that `described` was given, with the same exit code."""
    return _KINDS.get(kind, RaySRError)(message)
