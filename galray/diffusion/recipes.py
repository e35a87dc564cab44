"""Recipes: which galaxies to paint, how many of each, and how; built in, or in a YAML file.

A recipe file is a list of requests. What a request does not say, the job's options say::

    - label: dust_lane_early_type
      answers: {smooth: 0.8, odd: 0.75, dust_lane:1.3: 0.85}   # vote fractions; 1.3 is a weight
      count: 500
      guidance_scale: 3
    - label: spiral
      votes_of: spiral   # votes as real spirals have them, in their variety
      count: 200
    - label: cigar_shaped_smooth
      votes_of: cigar_shaped_smooth   # variations of real cigars,
      start_time: 0.85                # begun from each when noise hides most of it
    - label: dust_lane_early_type
      outline: {smooth: 0.8, in_between: 0.8}   # first this alone, then the answers alone:
      answers: {odd: 0.4, dust_lane: 0.7}       # for what training never saw together
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pydantic
import yaml

from galray.core.errors import ConfigError, nearest
from galray.core.schema import LABEL_ANSWERS
from galray.core.storage import Location
from galray.diffusion.conditions import condition
from galray.diffusion.sampler import OUTLINE_UNTIL, SAMPLERS, Guidance

GALAXIES_PER_SEED = 10_000_019
_FAULTS_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a galaxy is painted from its noise."""

    guidance_scale: float = 2.0
    """1 follows the votes as they are; more follows them harder, at a loss of variety."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Times, 0 a galaxy and 1 noise, within which to guide; the middle alone keeps variety."""
    guidance_rescale: float = 0.0
    """0 to 1: how far to bring guided images back to the contrast of unguided ones."""
    outline_until: float = OUTLINE_UNTIL
    """Time, 0 a galaxy and 1 noise, until which a request's outline is asked for, where it has one."""
    start_time: float = 1.0
    """Below 1, requests with votes_of begin from those very galaxies, hidden by so much noise, 0 none and 1
    all: variations of them, the nearer the less."""
    num_steps: int = 20
    sampler: str = "unipc"

    def __post_init__(self) -> None:
        Guidance(self.guidance_scale, self.guidance_interval, self.guidance_rescale)
        if self.sampler not in SAMPLERS:
            raise ConfigError(
                f"No sampler is named {self.sampler!r}{nearest(self.sampler, SAMPLERS)}. "
                f"Use one of {', '.join(SAMPLERS)}."
            )
        if not 0 < self.start_time <= 1:
            raise ConfigError(f"start_time is {self.start_time}; give a time above 0, and 1 for noise alone.")
        if not 0 <= self.outline_until <= 1:
            raise ConfigError(f"outline_until is {self.outline_until}; give a time between 0 and 1.")
        if self.num_steps < 1:
            raise ConfigError(f"num_steps is {self.num_steps}; give at least 1. 20 to 50 are usual.")


@dataclass(frozen=True)
class Request:
    """What to paint, and the label that it gets.

    Attributes
    ----------
    label : str
        Of the galaxies painted.
    answers : mapping of str to float
        GZ2 answers, ``name`` or ``name:weight``, and their vote fractions; see `conditions.condition`.
    votes_of : str
        Instead, or for all questions that `answers` leaves open: the votes of real training galaxies of this
        label, each used about equally often.
    outline : mapping of str to float
        Answers asked for instead while noise hides all but a galaxy's outline, until `outline_until`. Answers
        that training never saw together contradict each other to the network, and the one that it knows
        better wins; asked for one after the other, they meet.
    count : int or None
        How many galaxies. None: a share of the job's own count.
    guidance_scale, guidance_interval, guidance_rescale, outline_until, start_time, num_steps, sampler
        See `Sampling`. None: the job's own.

    Raises
    ------
    ConfigError
        Neither answers nor votes_of, an unknown answer, a number out of range.
    """

    label: str
    answers: Mapping[str, float] = field(default_factory=dict)
    votes_of: str = ""
    outline: Mapping[str, float] = field(default_factory=dict)
    count: int | None = None
    guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float | None = None
    outline_until: float | None = None
    start_time: float | None = None
    num_steps: int | None = None
    sampler: str | None = None

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if not self.label or not (self.answers or self.votes_of):
            raise ConfigError("a request needs a label, and answers or votes_of.")
        if self.count is not None and self.count < 1:
            raise ConfigError(f"count is {self.count}; give at least 1.")
        condition(self.answers)
        condition(self.outline)
        self.sampling(Sampling())

    def sampling(self, default: Sampling) -> Sampling:
        """Return how this request is painted."""
        own = {f.name: getattr(self, f.name) for f in fields(Sampling)}
        return replace(default, **{name: value for name, value in own.items() if value is not None})

    def weighted(self, weight: float) -> Request:
        """Return this request with a weight for each answer that has none of its own."""
        if weight == 1:
            return self
        answers = {n if ":" in n else f"{n}:{weight:g}": vote for n, vote in self.answers.items()}
        return replace(self, answers=answers)


def _certain(label: str) -> Request:
    """Ask for a class as training shows it: the votes that its label implies."""
    return Request(label, dict.fromkeys(LABEL_ANSWERS[label], 1.0))


def _early(shape: str) -> dict[str, float]:
    return {"smooth": 0.8, "odd": 0.75, "dust_lane": 0.85, shape: 0.8}


_DISK = {"features_or_disk": 0.8, "edge_on": 0.9}
_NOT_ONE = "not_dust_lane_early_type"


def _with_a_lane(shape: str) -> Request:
    """Ask for what no galaxy of the training need combine: the shape first, and the lane after."""
    return Request(
        "dust_lane_early_type", {"odd": 0.4, "dust_lane": 0.7}, outline={"smooth": 0.8, shape: 0.8}
    )


_GZ5 = ("completely_round_smooth", "in_between_smooth", "cigar_shaped_smooth", "edge_on", "spiral")

RECIPES: dict[str, tuple[Request, ...]] = {
    "dust_lane_early_type": tuple(
        Request("dust_lane_early_type", _early(shape)) for shape in ("completely_round", "in_between")
    ),
    # Beside others, lest a classifier learn to tell what is painted from what is real.
    "dust_lane_early_type_in_turn": (
        _with_a_lane("in_between"),
        _with_a_lane("completely_round"),
        Request(_NOT_ONE, {"smooth": 0.8, "in_between": 0.8, "not_odd": 0.95}, guidance_scale=1.0),
        Request(_NOT_ONE, {"smooth": 0.8, "completely_round": 0.8, "not_odd": 0.95}, guidance_scale=1.0),
        Request(_NOT_ONE, {**_DISK, "odd": 0.4, "dust_lane": 0.7}, guidance_scale=1.0),
        Request(_NOT_ONE, {**_DISK, "not_odd": 0.95}, guidance_scale=1.0),
    ),
    "dust_lane_early_type_as_real": (
        Request("dust_lane_early_type", votes_of="dust_lane_early_type"),
        *(Request(_NOT_ONE, votes_of=label) for label in _GZ5),
    ),
    "gz5": tuple(map(_certain, _GZ5)),
    "gz5_as_real": tuple(Request(label, votes_of=label) for label in _GZ5),
    "one_of_each": (
        Request("completely_round_smooth", {"smooth": 0.9, "completely_round": 0.9, "not_odd": 0.95}),
        Request("in_between_smooth", {"smooth": 0.9, "in_between": 0.9, "not_odd": 0.95}),
        Request("cigar_shaped_smooth", {"smooth": 0.85, "cigar_shaped": 0.9, "not_odd": 0.95}),
        Request("edge_on", {"features_or_disk": 0.9, "edge_on": 0.9}),
        Request("spiral", {"features_or_disk": 0.9, "not_edge_on": 0.95, "spiral": 0.9}),
        Request("dust_lane_early_type", _early("in_between")),
    ),
}


def counted(requests: Sequence[Request], counts: Sequence[str]) -> tuple[Request, ...]:
    """Return the requests that paint so many galaxies of each label; labels that are not named get none.

    Parameters
    ----------
    requests : sequence of Request
        Those of one label share its galaxies.
    counts : sequence of str
        ``label:number``, such as ``spiral:200``.

    Raises
    ------
    ConfigError
        A label that no request paints, or one named twice, a number that is none, or none above 0.
    """
    numbers: dict[str, int] = {}
    of_label = Counter(request.label for request in requests)
    for text in counts:
        label, _, number = text.rpartition(":")
        if label not in of_label:
            raise ConfigError(
                f"--counts {text!r}: nothing asked for is labelled {label!r}{nearest(label, of_label)}. "
                f"Write label:number, with one of {', '.join(of_label)}."
            )
        if not (number.isascii() and number.isdigit()) or label in numbers:
            raise ConfigError(f"--counts {text!r}: give each label once, with how many galaxies to paint.")
        numbers[label] = int(number)
    if not any(numbers.values()):
        raise ConfigError(f"--counts {' '.join(counts)}: that is no galaxy at all. Give a label more than 0.")
    parts = {label: iter(_shared(number, of_label[label])) for label, number in numbers.items()}
    settled = [(request, next(parts[request.label])) for request in requests if request.label in parts]
    return tuple(replace(request, count=count) for request, count in settled if count)


def _shared(count: int, parts: int) -> list[int]:
    """Return a count in as equal parts as whole numbers are."""
    return [(count + part) // parts for part in reversed(range(parts))]


def is_file(recipe: str) -> bool:
    """Return whether a recipe's name is that of a file, and not of a built-in one."""
    return recipe not in RECIPES and (recipe.endswith((".yaml", ".yml")) or "/" in recipe)


def read_recipe(location: Location) -> tuple[Request, ...]:
    """Read a recipe file.

    Raises
    ------
    InputError
        There is no such file.
    ConfigError
        It is no YAML or no list of requests, or a request has an unknown key, an unknown answer or a bad
        number: the file, the requests and what is wrong with each are named.
    """
    try:
        content = yaml.safe_load(location.read_bytes())
    except yaml.YAMLError as error:
        raise ConfigError(f"{location.uri} is no YAML: {' '.join(str(error).split())}. Mend it.") from error
    if not isinstance(content, list) or not content:
        raise ConfigError(f"{location.uri} must be a list of requests, each beginning with '- label: ...'.")
    try:
        return tuple(_REQUESTS.validate_python(content))
    except pydantic.ValidationError as error:
        faults = [_fault(content, dict(fault)) for fault in error.errors()]
        more = f"; and {len(faults) - _FAULTS_NAMED} more" if len(faults) > _FAULTS_NAMED else ""
        raise ConfigError(f"{location.uri}: {'; '.join(faults[:_FAULTS_NAMED])}{more}") from error


_REQUESTS = pydantic.TypeAdapter(list[Request])
_KEYS = tuple(f.name for f in fields(Request))


def _fault(content: list[Any], fault: dict[str, Any]) -> str:
    """Say what is wrong with one value of a recipe, and where."""
    index, *keys = fault["loc"]
    entry = content[index]
    label = f" ({entry['label']})" if isinstance(entry, dict) and "label" in entry else ""
    where = f"request {index + 1}{label}"
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        key = str(keys[-1])
        return f"{where}: no key is named {key!r}{nearest(key, _KEYS)}. Use {', '.join(_KEYS)}."
    if "ctx" in fault and isinstance(fault["ctx"].get("error"), ConfigError):
        return f"{where}: {fault['ctx']['error']}"
    named = ".".join(map(str, keys))
    return f"{where}: {named}{': ' if named else ''}{fault['msg']}, not {fault['input']!r}"


@dataclass(frozen=True)
class Plan:
    """Every galaxy that a recipe asks for, numbered, and the batches in which they are painted.

    The number of a galaxy decides its noise, its id and its batch, so that neither the number of workers
    nor an interruption changes anything. Requests that are painted alike take turns; others come after.

    Attributes
    ----------
    requests : tuple of Request
    counts : tuple of int
        Galaxies of each request.
    samplings : tuple of Sampling
        How each request is painted.
    seed : int
        Of the whole; each galaxy has its own, see `seed_of`.

    Raises
    ------
    ConfigError
        More than `GALAXIES_PER_SEED` galaxies.
    """

    requests: tuple[Request, ...]
    counts: tuple[int, ...]
    samplings: tuple[Sampling, ...]
    seed: int

    def __post_init__(self) -> None:
        if self.total > GALAXIES_PER_SEED:
            raise ConfigError(
                f"{self.total} galaxies are more than the {GALAXIES_PER_SEED} that one --seed has noise for. "
                "Paint them in parts, each with a seed and an --output of its own."
            )

    @classmethod
    def of(cls, requests: Sequence[Request], count: int, default: Sampling, seed: int) -> Plan:
        """Settle what requests leave to the job; `count` is shared by those that have none of their own."""
        open_requests = [i for i, request in enumerate(requests) if request.count is None]
        share = dict(zip(open_requests, _shared(count, len(open_requests)), strict=True))
        counts = tuple(share[i] if r.count is None else r.count for i, r in enumerate(requests))
        samplings = tuple(request.sampling(default) for request in requests)
        for request, sampling in zip(requests, samplings, strict=True):
            if sampling.start_time < 1 and not request.votes_of:
                raise ConfigError(
                    f"{request.label}: start_time {sampling.start_time:g} begins from real galaxies, and "
                    "votes_of must say of which label. Give it, or leave start_time at 1."
                )
        return cls(tuple(requests), counts, samplings, seed)

    @property
    def total(self) -> int:
        return sum(self.counts)

    def seed_of(self, number: int) -> int:
        """Return the seed of one galaxy's noise: no other galaxy of any --seed has it."""
        return self.seed * GALAXIES_PER_SEED + number

    def galaxies(self) -> np.ndarray:
        """Return each galaxy's request and its place in it: int64 (total, 2), by number."""
        request = np.repeat(np.arange(len(self.counts)), self.counts)
        place = np.concatenate([np.arange(count) for count in self.counts])
        order = np.lexsort((request, place, self._group()[request]))
        return np.stack([request, place], axis=1)[order]

    def batches(self, size: int) -> list[tuple[int, int]]:
        """Return the first and last + 1 number of each batch; one batch is painted in one way."""
        totals = np.bincount(self._group(), weights=self.counts).astype(int)
        found, start = [], 0
        for total in totals.tolist():
            count = math.ceil(total / size)
            edges = [start + min(i * size, total) for i in range(count + 1)]
            found += pairwise(edges)
            start += total
        return found

    def _group(self) -> np.ndarray:
        """Number the ways of painting, in the order in which requests first use them."""
        first: dict[Sampling, int] = {}
        return np.array([first.setdefault(sampling, len(first)) for sampling in self.samplings])
