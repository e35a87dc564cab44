"""The chain of jobs as the README shows it."""

from __future__ import annotations

import re
import shlex

from tests.integration.services import REPOSITORY


def readme_commands() -> list[list[str]]:
    """Return the words of each ``python jobs/...`` command that the README shows."""
    blocks = re.findall(r"```sh\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [words for words in commands if words[0] == "python"]


def readme_jobs(root: str) -> list[list[str]]:
    """Return the name and the options of each job, with another root than the README's."""
    return [
        [script.removeprefix("jobs/").removesuffix(".py"), *(root if o == "runs/try" else o for o in options)]
        for _, script, *options in readme_commands()
    ]
