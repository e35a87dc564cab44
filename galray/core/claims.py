"""Who is writing a folder: of two jobs that want the same output, one wins and the other is told.

A folder that is being written holds ``unfinished.json``, its claim, which is created only where none
stands. A job with ``--resume`` goes on with the work of a run that ended without publishing: its claim
is numbered after the one that it takes over (``unfinished.2.json``), and created in the same way, so that
of two that resume at once one wins too. The newest claim holds.
"""

from __future__ import annotations

import json
import os
import re
import socket
import uuid
from dataclasses import asdict, dataclass, replace

import psutil

from galray.core.errors import InputError, PublishError
from galray.core.storage import Location

UNFINISHED = "unfinished.json"
_CLOCK_STEP_S = 5.0  # a process's start is reckoned from the boot time, which moves when the clock is set
_NAME = re.compile(r"unfinished(?:\.(\d+))?\.json")


@dataclass(frozen=True)
class Claim:
    """One run's right to write a folder.

    Attributes
    ----------
    number : int
        1 for the run that began the folder, one more for each that took it over.
    run_id : str
        Of this attempt, and of no other.
    host, pid, process_started_s : str, int, float
        The process that writes; its start, in seconds since 1970, tells it from a later one of the same pid.
    ray_job : str
        As ``ray job stop`` takes it; empty where it was not submitted.
    started_utc, stopped_utc : str
        ISO 8601; `stopped_utc` is empty while the run goes on, and where it was killed.
    """

    number: int
    kind: str
    run_id: str
    host: str
    pid: int
    process_started_s: float
    ray_job: str
    started_utc: str
    code_version: str
    stopped_utc: str = ""

    @classmethod
    def of_this_process(cls, number: int, kind: str, started_utc: str, code_version: str) -> Claim:
        process = psutil.Process()
        return cls(
            number=number,
            kind=kind,
            run_id=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=process.pid,
            process_started_s=process.create_time(),
            ray_job=_submitted_as(),
            started_utc=started_utc,
            code_version=code_version,
        )

    @property
    def name(self) -> str:
        return UNFINISHED if self.number == 1 else f"unfinished.{self.number}.json"

    @property
    def content(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @property
    def is_running(self) -> bool:
        """Whether its process is known to run; what another machine does cannot be seen from here."""
        if self.stopped_utc or self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.process_started_s) < _CLOCK_STEP_S
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def __str__(self) -> str:
        job = f" ({self.ray_job})" if self.ray_job else ""
        stopped = f", stopped at {self.stopped_utc}" if self.stopped_utc else ""
        return f"process {self.pid} on {self.host}{job}, since {self.started_utc}{stopped}"


def _submitted_as() -> str:
    """Return the id that Ray's job submission gave to this process, which it puts into its environment."""
    told = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return told.get("metadata", {}).get("job_submission_id", "")


def is_claim(name: str) -> bool:
    """Whether a file's name is that of a claim."""
    return _NAME.fullmatch(name) is not None


def _names(location: Location) -> dict[int, str]:
    """Return the names of a folder's claims by their numbers, the newest last."""
    found = filter(None, (_NAME.fullmatch(info.base_name) for info in location.children()))
    return dict(sorted((int(match[1] or 1), match[0]) for match in found))


def holder(location: Location) -> Claim | None:
    """Return the claim that holds a folder, the newest one; None where nobody is writing it."""
    numbers = list(_names(location))
    return _read(location, numbers[-1]) if numbers else None


def _read(location: Location, number: int) -> Claim:
    unknown = Claim(number, "", "", "an unknown machine", 0, 0.0, "", "an unknown time", "")
    try:
        return Claim(**json.loads((location / unknown.name).read_bytes()))
    except (ValueError, TypeError, InputError):  # cut short, of an older galray, released this moment
        return unknown


def check_free(location: Location, resume: bool) -> Claim | None:
    """Return the claim that may be taken over, None where there is none.

    Raises
    ------
    PublishError
        Another run writes there, or left work there and `resume` is not given.
    """
    held = holder(location)
    if held is not None and held.is_running:
        raise PublishError(
            f"{location.uri} is being written by {held}. Wait for it, or stop it first; "
            "or give another --output."
        )
    if held is not None and not resume:
        raise PublishError(
            f"{location.uri} holds unfinished work of {held}. Give --resume to go on with it once that run "
            "is over, or delete the folder to start over."
        )
    return held


def take(location: Location, claim: Claim) -> None:
    """Create a claim.

    Raises
    ------
    PublishError
        Another run was faster.
    """
    if not (location / claim.name).create(claim.content):
        winner = holder(location)
        if winner != claim:  # it is this one where the store was asked twice
            raise PublishError(
                f"{location.uri} has just been claimed by {winner or 'another run'}. "
                "Wait for it, or give another --output."
            )


def check_held(location: Location, claim: Claim) -> None:
    """Refuse to go on with a folder that another run has taken over.

    Raises
    ------
    PublishError
        Names who did.
    """
    newest = holder(location)
    if newest != claim:
        raise PublishError(
            f"{location.uri} was taken over from this run by {newest or 'someone who has deleted it'}. "
            "Nothing was published here; let that run end."
        )


def stop(location: Location, claim: Claim, stopped_utc: str) -> None:
    """Say that a run ended without publishing, so that --resume need not ask whether it is alive."""
    (location / claim.name).write_bytes(replace(claim, stopped_utc=stopped_utc).content)


def release(location: Location) -> None:
    """Delete a folder's claims, the newest one last, so that it is held to the end."""
    for name in _names(location).values():
        (location / name).delete()
