"""The exception tree: every failure that a user can mend is one of these.

    GalrayError
    ├── ConfigError             an option, or two options that contradict each other
    ├── InputError              a file or table that cannot be used
    │   ├── MissingColumnError  a table lacks a column; names the nearest ones found
    │   ├── EmptyInputError     nothing usable is left
    │   └── ImageRejected       one image cannot be used; carries a rejection reason
    ├── LineageError            data would leak from where it must not be seen
    ├── PublishError            an output that already stands, or is unfinished
    ├── TrainingError           a training that cannot go on
    └── StorageError            a folder or bucket that cannot be used
        ├── StorageUnreachable  no answer from the endpoint, or none but its own failure
        └── StorageDenied       the keys or permissions are refused

Messages name the file, row or option, and end with the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

# How a job is told to stop: by Ctrl-C or `ray job stop`; of Ctrl-C in a training, Ray makes an exit.
INTERRUPTIONS = (KeyboardInterrupt, SystemExit)
_NAMED = 5  # of the columns that a table lacks; more would hide the message


class GalrayError(Exception):
    """Base of every error that galray raises on purpose."""


class ConfigError(GalrayError, ValueError):
    """An option that cannot be, or two that contradict each other."""


class InputError(GalrayError):
    """A file or table that cannot be used."""


class MissingColumnError(InputError):
    """A table lacks columns that are needed.

    Parameters
    ----------
    where : str
        The table, as the user named it.
    missing : sequence of str
        The columns that are needed and absent.
    found : sequence of str
        The columns that are there, searched for the nearest names.
    """

    def __init__(self, where: str, missing: Sequence[str], found: Sequence[str]) -> None:
        wanted = "; ".join(f"{name!r}{nearest(name, found)}" for name in missing[:_NAMED])
        wanted += f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        super().__init__(
            f"{where} lacks {len(missing)} needed column(s): {wanted}. "
            f"It has {len(found)} columns. Rename the columns, or choose the table that has them."
        )
        self._arguments = (where, list(missing), list(found))

    def __reduce__(self):  # keeps the arguments when Ray carries the error to another process
        return type(self), self._arguments


class EmptyInputError(InputError):
    """Nothing usable is left of an input."""


class ImageRejected(InputError):
    """One image cannot be used.

    Parameters
    ----------
    reason : str
        One of ``galray.core.schema.REJECT_REASONS``.
    detail : str
        What was seen, for the person who mends it.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self):  # keeps both arguments when Ray carries the error to another process
        return type(self), (self.reason, self.detail)


class LineageError(GalrayError):
    """Data would be judged on galaxies that a model has already seen."""


class PublishError(GalrayError):
    """An output that already stands, or one that is unfinished."""


class TrainingError(GalrayError):
    """A training that cannot go on; says at which step and why."""


class StorageError(GalrayError):
    """A folder or bucket that cannot be used."""


class StorageUnreachable(StorageError):
    """No answer from the object store's endpoint, or none but its own failure."""

    @classmethod
    def failing(cls, uri: str, message: str) -> StorageUnreachable:
        """Return what is told of a store that answers, however often it is asked, that it cannot."""
        return cls(
            f"{uri}: the object store answers that it is overloaded or failing, however often it is asked: "
            f"{message}. Wait until it has recovered, then go on with --resume."
        )


class StorageDenied(StorageError):
    """The object store refuses the keys, or the permissions do not suffice."""


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> str:
    """Return `` (did you mean 'a', 'b'?)``, or an empty string where nothing is near."""
    close = difflib.get_close_matches(name, list(candidates), n=count, cutoff=0.6)
    return f" (did you mean {', '.join(map(repr, close))}?)" if close else ""
