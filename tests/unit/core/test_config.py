"""The command line of a job: presets, suggestions, contradictions."""

from dataclasses import dataclass

import pytest

from galray.core.config import JobConfig, Preset, parse, require
from galray.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Bake(JobConfig):
    loaves: int = 2
    """How many."""
    flour: str = "wheat"
    output: str = "{root}/bread"

    def __post_init__(self) -> None:
        require(self.loaves > 0, f"--loaves is {self.loaves}; give at least 1.")


PRESETS = {"full": Preset("a batch", Bake(loaves=20)), "debug": Preset("one", Bake(loaves=1))}


def test_the_first_preset_is_the_default():
    assert parse(PRESETS, "bake", []).loaves == 20
    assert parse(PRESETS, "bake", ["--flour", "rye"]) == Bake(loaves=20, flour="rye")


def test_a_preset_is_a_starting_point():
    assert parse(PRESETS, "bake", ["debug", "--flour", "rye", "--resume"]) == Bake(
        loaves=1, flour="rye", resume=True
    )


def test_a_misspelt_option_gets_a_suggestion(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(PRESETS, "bake", ["debug", "--loafs", "3"])
    assert caught.value.code == 2
    assert "--loaves" in capsys.readouterr().err


def test_an_unknown_preset_is_told_the_known(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(PRESETS, "bake", ["fulll"])
    assert caught.value.code == 2
    assert "full" in capsys.readouterr().err


def test_a_contradiction_is_refused_at_once(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(PRESETS, "bake", ["--loaves", "0"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "--loaves is 0; give at least 1." in " ".join(said.replace("│", " ").split())


def test_a_contradiction_in_python_too():
    with pytest.raises(ConfigError, match="--loaves is -1"):
        Bake(loaves=-1)


def test_help_shows_presets(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(PRESETS, "bake bread", ["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "bake bread" in said
    assert "a batch" in said


def test_root_stands_for_the_pipelines_place(tmp_path):
    config = Bake(root=f"{tmp_path}/run/")
    assert config.location(config.output).uri == f"{tmp_path}/run/bread"
    assert config.resolved()["output"] == "{root}/bread"
