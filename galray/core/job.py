"""Run a job from the command line: parse, connect, run, and end with a telling exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from ray.exceptions import RayTaskError

from galray.core.cluster import connect
from galray.core.config import C, Preset, parse
from galray.core.errors import INTERRUPTIONS, GalrayError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def run_job(run: Callable[[C], object], presets: Mapping[str, Preset[C]]) -> NoReturn:
    """Parse the command line, run one job on Ray, and exit.

    Exit codes: 0 done, 2 bad input or configuration (one line on stderr says which, and the
    remedy), 130 interrupted, 1 anything else, with its traceback.
    """
    config = parse(presets, description=(run.__doc__ or "").split("\n\n")[0])
    try:
        with connect():
            run(config)
    except INTERRUPTIONS:
        print("Interrupted. The same command with --resume goes on.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        cause = user_error(error)
        if cause is None:
            raise
        print(f"{type(cause).__name__}: {cause}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    sys.exit(0)


def user_error(error: BaseException | None) -> GalrayError | None:
    """Find the galray error that Ray may have wrapped, more than once, on its way from a worker."""
    if error is None:
        return None
    if isinstance(error, GalrayError) and not isinstance(error, RayTaskError):
        return error
    wrapped = [getattr(error, "cause", None), error.__cause__, *_worker_failures(error)]
    return next((found for inner in wrapped if inner is not error and (found := user_error(inner))), None)


def _worker_failures(error: BaseException) -> list[BaseException]:
    return list((getattr(error, "worker_failures", None) or {}).values())
