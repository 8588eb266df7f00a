"""The errors that medprobe raises on purpose: each names the file, column or flag, and what to do."""

from __future__ import annotations


class MedprobeError(Exception):
    """Base of every error whose message is meant for the user; the command line prints it without a traceback."""


class UsageError(MedprobeError):
    """A flag, name or combination of arguments that cannot work (exit status 2)."""


class DataError(MedprobeError):
    """A manifest, image, store or result that cannot be used as it is (exit status 1)."""


class UnreadableError(DataError):
    """A store that the disk refuses to read, perhaps for a moment: nothing is known of what is in it."""


class MedprobeWarning(UserWarning):
    """Something that a reader of the numbers must know, although they could be computed."""
