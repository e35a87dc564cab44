"""Configuration: frozen dataclasses beside the code they configure, presets, one command line.

``python jobs/train.py debug --steps 20`` starts from the preset ``debug``; without a preset's name
the first one of the job is taken. tyro suggests the nearest option to a misspelt one; a
contradiction is refused by the dataclass itself, before any cluster time is spent.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

import tyro

from galray.core.errors import ConfigError
from galray.core.storage import Location, open_location


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What every job is told."""

    root: str = "runs/default"
    """The pipeline's folder, or a prefix in an s3:// or gs:// bucket; {root} elsewhere stands for it."""

    resume: bool = False
    """Go on with unfinished work, and keep what is already published."""

    @property
    def root_location(self) -> Location:
        """The pipeline's root."""
        return open_location(self.root)

    def location(self, uri: str) -> Location:
        """Open the place that an option names."""
        return open_location(uri.replace("{root}", self.root.rstrip("/")))

    def resolved(self) -> dict[str, Any]:
        """Return the whole configuration as plain values, for manifests and tracking."""
        return asdict(self)


C = TypeVar("C", bound=JobConfig)


@dataclass(frozen=True)
class Preset(Generic[C]):
    """A named starting point of a job's options."""

    summary: str
    config: C


def parse(presets: Mapping[str, Preset[C]], description: str, argv: Sequence[str] | None = None) -> C:
    """Read a job's configuration from the command line.

    Parameters
    ----------
    presets : mapping
        Name -> preset; the first one is the default.
    description : str
        Shown by ``--help``.
    argv : sequence of str, optional
        Defaults to the command line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments.insert(0, next(iter(presets)))
    return tyro.extras.overridable_config_cli(
        {name: (preset.summary, preset.config) for name, preset in presets.items()},
        description=description,
        args=arguments,
    )


def require(condition: bool, message: str) -> None:
    """Refuse a configuration; `message` names the options and the remedy."""
    if not condition:
        raise ConfigError(message)
