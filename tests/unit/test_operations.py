"""docs/operations.md quotes what galray does say, and names tests that there are."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from galray.core import errors

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/operations.md").read_text()
LIKELIEST = 10
# Of a message's source, beyond what is filled in: a pattern that is nearly all filled in would fit anything.
LEAST_LITERAL = 25


def one_line(text: str) -> str:
    return " ".join(text.split())


def messages(text: str) -> list[str]:
    """Return the messages that a text quotes, each as one line."""
    return [one_line(block) for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL)]


def named_tests(text: str) -> list[tuple[str, str]]:
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)


def sections() -> dict[int, str]:
    """Return the page's numbered sections."""
    parts = re.split(r"^## (?:(\d+)\. )?", PAGE, flags=re.MULTILINE)
    return {int(number): text for number, text in zip(parts[1::2], parts[2::2], strict=True) if number}


@cache
def patterns() -> list[re.Pattern[str]]:
    """Return every f-string of galray's source as a pattern, in which what is filled in is anything."""
    sources = [path.read_text() for path in (REPOSITORY / "galray").rglob("*.py")]
    templates = [n for source in sources for n in ast.walk(ast.parse(source)) if isinstance(n, ast.JoinedStr)]
    literals = [
        [part.value if isinstance(part, ast.Constant) else None for part in template.values]
        for template in templates
    ]
    return [
        re.compile("".join(".*" if part is None else re.escape(str(part)) for part in parts))
        for parts in literals
        if sum(len(str(part)) for part in parts if part) >= LEAST_LITERAL
    ]


def says(message: str) -> bool:
    """Whether galray's source holds an f-string of which this line of a job's log is made."""
    error = re.match(r"([A-Z]\w+): ", message)
    time = re.match(r"\d\d:\d\d:\d\d ", message)
    if error:
        assert issubclass(getattr(errors, error[1]), errors.GalrayError)
    prefix = error or time
    assert prefix, f"neither an error nor a line of a log: {message}"
    return any(pattern.fullmatch(message[prefix.end() :]) for pattern in patterns())


@pytest.mark.parametrize("message", messages(PAGE))
def test_messages_are_galrays_own(message: str) -> None:
    assert says(message)


def test_a_message_that_galray_does_not_say_is_found_out() -> None:
    real = messages(PAGE)[0]
    assert says(real)
    assert not says(real.replace("no answer", "no reply"))
    assert not says("ConfigError: something that no part of galray has ever said to anybody.")


@pytest.mark.parametrize(("file", "name"), sorted(set(named_tests(PAGE))))
def test_tests_that_are_named_exist(file: str, name: str) -> None:
    tree = ast.parse((REPOSITORY / file).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_each_of_the_likeliest_failures_is_quoted_and_reproduced() -> None:
    assert list(sections()) == list(range(1, LIKELIEST + 1))
    assert all(messages(text) and named_tests(text) for text in sections().values())


def test_the_readme_leads_there() -> None:
    assert "(docs/operations.md)" in (REPOSITORY / "README.md").read_text()
