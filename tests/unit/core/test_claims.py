"""One output, several runs: one wins, the others are told who has it."""

import json
import socket
import subprocess
import sys
from contextlib import suppress

import pytest

from galray.core.claims import UNFINISHED, holder, is_claim
from galray.core.errors import PublishError
from galray.core.manifest import Manifest, publish, standing
from galray.core.storage import open_location

KILLED_RUN = """
import os, sys
from galray.core.manifest import publish
from galray.core.storage import open_location
with publish(open_location(sys.argv[1]), "galaxies") as publication:
    publication.write("shards/a", b"data")
    os._exit(9)
"""
RESUME = {"resume": True}


@pytest.fixture
def place(tmp_path):
    return open_location(str(tmp_path / "galaxies"))


def kill_a_run(location):
    subprocess.run([sys.executable, "-c", KILLED_RUN, location.uri], check=False)
    assert holder(location) is not None


def claims_in(location):
    return sorted(info.base_name for info in location.children() if is_claim(info.base_name))


@pytest.mark.parametrize("config", [{}, RESUME], ids=["fresh", "resumed"])
def test_the_second_of_two_running_jobs_is_told_who_writes(place, config):
    told = rf"being written by process \d+ on {socket.gethostname()}, since 20\d\d-"
    with publish(place, "galaxies") as publication:
        with pytest.raises(PublishError, match=told):
            standing(place, "galaxies", resume="resume" in config)
        with pytest.raises(PublishError, match=told), publish(place, "galaxies", config):
            pass
        publication.write("shards/a", b"first")
    assert (place / "shards/a").read_bytes() == b"first"
    assert Manifest.read(place).kind == "galaxies"


def test_the_work_of_a_killed_run_is_taken_over_when_that_is_asked_for(place):
    kill_a_run(place)
    with pytest.raises(PublishError, match=r"unfinished work of process.*--resume"):
        standing(place, "galaxies", resume=False)
    assert standing(place, "galaxies", resume=True) is None
    with publish(place, "galaxies", RESUME) as publication:
        assert claims_in(place) == ["unfinished.2.json", UNFINISHED]
        assert publication.started
        publication.write("shards/b", b"data")
    assert claims_in(place) == []


def test_a_run_that_failed_says_so_in_its_claim(place):
    with suppress(KeyboardInterrupt), publish(place, "galaxies") as publication:
        publication.write("shards/a", b"data")
        raise KeyboardInterrupt
    with pytest.raises(PublishError, match=r"stopped at 20\d\d-"):
        standing(place, "galaxies", resume=False)


def test_a_run_whose_work_was_taken_over_publishes_nothing(place, monkeypatch):
    def write_while_another_takes_over():
        with publish(place, "galaxies") as publication:
            publication.write("shards/b", b"first")
            monkeypatch.setattr(socket, "gethostname", lambda: "another-machine")
            with publish(place, "galaxies", RESUME) as second:
                second.write("shards/a", b"second")

    with pytest.raises(PublishError, match="was taken over from this run"):
        write_while_another_takes_over()
    assert [file.path for file in Manifest.read(place).files] == ["shards/a"]


def test_what_was_published_since_the_job_looked_is_kept(place):
    assert standing(place, "galaxies", resume=False) is None
    with publish(place, "galaxies") as publication:
        publication.write("shards/a", b"first")
    with pytest.raises(PublishError, match="already published"), publish(place, "galaxies"):
        pass
    assert claims_in(place) == []
    assert Manifest.read(place).files[0].path == "shards/a"


@pytest.mark.parametrize("content", [b"", b"{", json.dumps({"kind": "galaxies"}).encode()])
def test_a_claim_that_says_nothing_can_be_taken_over(place, content):
    (place / UNFINISHED).write_bytes(content)
    with pytest.raises(PublishError, match="an unknown machine"):
        standing(place, "galaxies", resume=False)
    with publish(place, "galaxies", RESUME):
        pass
    assert claims_in(place) == []


def test_a_claim_names_its_ray_job(place, monkeypatch):
    submitted = {"metadata": {"job_submission_id": "raysubmit_1"}, "runtime_env": {}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    with publish(place, "galaxies"):
        assert "(raysubmit_1)" in str(holder(place))
