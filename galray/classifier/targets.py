"""What a rare object is: boolean expressions over Galaxy Zoo 2 votes.

A target is one line of text over the answer names of `galray.core.schema` and ``classifications``,
the number of volunteers who saw the galaxy::

    smooth >= 0.5 and dust_lane >= 0.5 and odd * classifications >= 8

Truth has three values, after Kleene: 1 (it is one), 0 (it is none), -1 (the votes cannot tell).
The votes are read as follows, in this order:

1. A ``label`` equal to the target's name decides: 1. So does ``not_`` and the name: 0.
2. A galaxy that volunteers counted (``classifications`` > 0) has a known answer to every question:
   one that nobody was asked was not reached, so nobody gave its answers, and their fractions are 0.
   A question with some answers missing, or a galaxy without the tree's first question, stays unknown.
3. A galaxy whose votes are stated (a class label that `schema.LABEL_ANSWERS` knows, or a synthetic
   galaxy's condition) is unknown wherever nothing is stated. Its volunteers are taken to be
   `STATED_CLASSIFICATIONS`, so that guards on counts hold for it as for a typical GZ2 galaxy.
4. Anything else that is NaN or null is unknown, and unknown joins as in Kleene's logic: a spiral
   (smooth 0) is certainly no dust-lane early type, though nobody looked for the lane; a smooth
   galaxy of which no more is known is -1.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa

from galray.core.errors import ConfigError, MissingColumnError, nearest
from galray.core.schema import (
    ANSWER_NAMES,
    LABEL_ANSWERS,
    N_ANSWERS,
    QUESTION_OF_ANSWER,
    votes_of_label,
)

UNKNOWN = -1
STATED_CLASSIFICATIONS = 44  # the median of GZ2 (Willett et al. 2013, section 2)
NAMES = (*ANSWER_NAMES, "classifications")

_GRAMMAR = (
    ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare,
    ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div,
    ast.Name, ast.Load, ast.Constant,
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A kind of galaxy, defined by one expression over votes.

    Parameters
    ----------
    name : str
        A lower-case identifier; also the ``label`` that marks a galaxy as one.
    expression : str
        Comparisons of answer names, ``classifications`` and numbers, joined by ``and``, ``or``,
        ``not``; ``+ - * /`` and brackets are allowed. Nothing else is: it is never run as Python.
    description : str
        For people.

    Raises
    ------
    ConfigError
        If the name or the expression cannot be used; an unknown answer is met with the nearest ones.
    """

    name: str
    expression: str
    description: str = ""

    def __post_init__(self) -> None:
        if not (self.name.isidentifier() and self.name == self.name.lower()):
            raise ConfigError(
                f"target name {self.name!r} is not a lower-case identifier; try 'ring' or 'my_ring'"
            )
        if not self.variables:
            raise ConfigError(
                f"target {self.name!r}: {self.expression!r} names no vote; use one of {ANSWER_NAMES}"
            )
        self.evaluate(pd.DataFrame({name: [0.5] for name in self.variables}))

    @property
    def variables(self) -> tuple[str, ...]:
        """Names that the expression uses, sorted; parsing refuses what the grammar does not allow."""
        body = self._parsed()
        nodes = list(ast.walk(body))
        for node in nodes:
            if not isinstance(node, _GRAMMAR) or not _is_number_if_constant(node):
                raise self._refused(f"{type(node).__name__} is not allowed")
        if not _is_condition(body) or not all(map(_joins_its_like, nodes)):
            raise self._refused("'and', 'or' and 'not' join comparisons, and comparisons compare numbers")
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        for name in sorted(names.difference(NAMES)):
            raise self._refused(f"there is no vote {name!r}{nearest(name, NAMES)}")
        return tuple(sorted(names))

    def evaluate(self, votes: pd.DataFrame) -> np.ndarray:
        """Return 1, 0 or -1 (undecided) for each row of `votes`, whose NaN means unknown.

        Parameters
        ----------
        votes : DataFrame
            A float column for each of `variables`.

        Returns
        -------
        ndarray of int8, shape (n,)
        """
        # pandas' nullable types carry Kleene's logic: NA and False is False, NA and True is NA
        nullable = votes[list(self.variables)].astype("Float64")
        try:
            decided = cast(pd.Series, nullable.eval(self.expression, engine="python"))
        except (TypeError, ValueError, NotImplementedError, ZeroDivisionError, RecursionError) as error:
            raise self._refused(f"it cannot be evaluated ({error})") from error
        return decided.astype("Int8").fillna(UNKNOWN).to_numpy(dtype=np.int8)

    def _parsed(self) -> ast.expr:
        try:
            return ast.parse(self.expression.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._refused(f"it is not an expression ({error})") from error

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(
            f"target {self.name!r}: {self.expression[:200]!r}: {why}. Write comparisons of answer names, "
            "'classifications' and numbers, such as 'smooth >= 0.5 and ring >= 0.5'"
        )


def _is_number_if_constant(node: ast.AST) -> bool:
    return not isinstance(node, ast.Constant) or type(node.value) in (int, float)


def _is_condition(node: ast.AST) -> bool:
    return isinstance(node, ast.BoolOp | ast.Compare) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )


def _joins_its_like(node: ast.AST) -> bool:
    """Whether logic has conditions below it, and arithmetic and comparisons numbers."""
    below = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    is_logic = _is_condition(node) and not isinstance(node, ast.Compare)
    return all(_is_condition(child) == is_logic for child in below)


# The debiased odd-feature fractions alone are unsafe: they reach 1 where two of forty volunteers
# said "odd". Hence the guard on the number of "odd" votes in all of these.
DUST_LANE_EARLY_TYPE = Target(
    "dust_lane_early_type",
    "smooth >= 0.5 and dust_lane >= 0.5 and odd * classifications >= 8",
    "a smooth galaxy crossed by a dust lane (Kaviraj et al. 2012)",
)
RING = Target("ring", "ring >= 0.5 and odd * classifications >= 8", "a galaxy with a ring")
MERGER = Target("merger", "merger >= 0.5 and odd * classifications >= 8", "galaxies that merge")
TARGETS: dict[str, Target] = {target.name: target for target in (DUST_LANE_EARLY_TYPE, RING, MERGER)}

# The clean classes of Zhu et al. (2019), with the thresholds of Willett et al. (2013), Table 3.
MORPHOLOGY: tuple[Target, ...] = (
    Target("completely_round_smooth", "smooth >= 0.469 and completely_round >= 0.50"),
    Target("in_between_smooth", "smooth >= 0.469 and in_between >= 0.50"),
    Target("cigar_shaped_smooth", "smooth >= 0.469 and cigar_shaped >= 0.50"),
    Target("edge_on", "features_or_disk >= 0.430 and edge_on >= 0.602"),
    Target("spiral", "features_or_disk >= 0.430 and not_edge_on >= 0.715 and spiral >= 0.619"),
)


def find_target(text: str) -> Target:
    """Return a built-in target by name, or the user's own from ``name=expression``.

    Raises
    ------
    ConfigError
        If there is no such target, or the expression cannot be used.

    Examples
    --------
    >>> find_target("ring").expression
    'ring >= 0.5 and odd * classifications >= 8'
    >>> find_target("blue_cigar=smooth >= 0.5 and cigar_shaped >= 0.8").name
    'blue_cigar'
    """
    name, equals, expression = text.partition("=")
    if equals:
        return Target(name.strip(), expression.strip())
    if text not in TARGETS:
        raise ConfigError(
            f"no target is called {text!r}{nearest(text, TARGETS)}; built in are {', '.join(TARGETS)}. "
            "Give your own as 'name=expression'"
        )
    return TARGETS[text]


def truth(table: pa.Table, target: Target) -> np.ndarray:
    """Return whether each galaxy is one of `target`'s kind, as the module's docstring defines.

    Parameters
    ----------
    table : pyarrow.Table
        Galaxies: ``votes`` and, where known, ``classifications``, ``label`` and ``source``
        (`schema.GALAXY_SCHEMA`; absent columns read as null).
    target : Target

    Returns
    -------
    ndarray of int8, shape (n,)
        1 yes, 0 no, -1 unknown.
    """
    return truths(table, (target,))[:, 0]


def truths(table: pa.Table, targets: Sequence[Target]) -> np.ndarray:
    """Return `truth` for several targets: int8, shape (n, len(targets))."""
    labels = _strings(table, "label")
    votes = vote_frame(table)
    result = np.full((table.num_rows, len(targets)), UNKNOWN, dtype=np.int8)
    for column, target in enumerate(targets):
        result[:, column] = target.evaluate(votes)
        result[labels == target.name, column] = 1
        result[labels == f"not_{target.name}", column] = 0
    return result


def morphology(table: pa.Table, classes: Sequence[Target] = MORPHOLOGY) -> np.ndarray:
    """Return each galaxy's class, or -1 where it has none, more than one, or an unknown one.

    A plain label that names a class wins over votes.

    Parameters
    ----------
    table : pyarrow.Table
        Galaxies, as in `truth`.
    classes : sequence of Target
        The classes, in the order of their indices.

    Returns
    -------
    ndarray of int64, shape (n,)
        Index into `classes`, or -1.
    """
    members = truths(table, classes) == 1
    result = np.where(members.sum(axis=1) == 1, members.argmax(axis=1), UNKNOWN)
    labels = _strings(table, "label")
    for index, target in enumerate(classes):
        result[labels == target.name] = index
    return result


def vote_frame(table: pa.Table) -> pd.DataFrame:
    """Return the 37 vote fractions and ``classifications`` as read by the rules above; NaN is unknown."""
    classifications = _classifications(table)
    labels = _strings(table, "label")
    votes = _fill_unasked(_votes(table), classifications > 0)
    stated = np.isin(labels, list(LABEL_ANSWERS)) | (_strings(table, "source") == "synthetic")
    stated &= np.isnan(classifications)
    classifications[stated] = STATED_CLASSIFICATIONS
    for label in LABEL_ANSWERS:
        rows = stated & (labels == label)
        votes[rows] = np.where(np.isnan(votes[rows]), votes_of_label(label), votes[rows])
    frame = pd.DataFrame(votes, columns=list(ANSWER_NAMES))
    return frame.assign(classifications=classifications)


def _fill_unasked(votes: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Set the answers of questions that nobody reached to 0, in galaxies that volunteers counted."""
    first_answers = np.flatnonzero(np.diff(QUESTION_OF_ANSWER, prepend=-1))
    asked = np.logical_or.reduceat(~np.isnan(votes), first_answers, axis=1)
    counted = counted & asked[:, 0]
    return np.where(counted[:, None] & ~asked[:, QUESTION_OF_ANSWER], 0.0, votes)


def _votes(table: pa.Table) -> np.ndarray:
    if "votes" not in table.column_names:
        raise MissingColumnError("the galaxy table", ["votes"], table.column_names)
    column = table["votes"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, N_ANSWERS)


def _classifications(table: pa.Table) -> np.ndarray:
    if "classifications" not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return table["classifications"].cast(pa.float64()).to_numpy().copy()


def _strings(table: pa.Table, name: str) -> np.ndarray:
    """Return a text column as an object array, empty strings where null or absent."""
    if name not in table.column_names:
        return np.full(table.num_rows, "", dtype=object)
    return table[name].fill_null("").to_numpy().astype(object)
