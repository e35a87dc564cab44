"""One line of text over a catalogue's columns: what a column means, or which rows are wanted.

``type != 'PSF' and 22.5 - 2.5 * log10(flux_r) < 17.8`` is read into Arrow's own compute functions and
never run as Python. Names are those of columns, in any case; ``petromag[2]`` is the third number of a
column that holds several. What is missing stays missing: a row is wanted only where the line is true.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from galray.core.errors import ConfigError, MissingColumnError
from galray.data.tables import as_floats, as_text

Values = Any  # an Arrow column, or a number or text

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "less", ast.LtE: "less_equal", ast.Gt: "greater", ast.GtE: "greater_equal",
    ast.Eq: "equal", ast.NotEq: "not_equal",
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "add_checked", ast.Sub: "subtract_checked", ast.Mult: "multiply_checked", ast.Div: "divide",
}  # fmt: skip
_FUNCTIONS = {"log10": "log10", "sqrt": "sqrt", "abs": "abs"}
_LONGEST = 2000


@dataclass(frozen=True)
class Expression:
    """A line of text over columns.

    Parameters
    ----------
    text : str
        Column names, numbers and quoted text; ``+ - * /``; ``log10``, ``sqrt``, ``abs``; comparisons
        joined by ``and``, ``or``, ``not``.

    Raises
    ------
    ConfigError
        For anything else.
    """

    text: str

    def __post_init__(self) -> None:
        self._check(self._tree)

    @cached_property
    def names(self) -> frozenset[str]:
        """The columns that it needs, in lower case."""
        called = {id(node.func) for node in ast.walk(self._tree) if isinstance(node, ast.Call)}
        return frozenset(
            node.id.lower()
            for node in ast.walk(self._tree)
            if isinstance(node, ast.Name) and id(node) not in called
        )

    def values(self, table: pa.Table) -> pa.ChunkedArray:
        """Return its value in each row.

        Parameters
        ----------
        table : pyarrow.Table
            Column names in lower case.

        Raises
        ------
        MissingColumnError
        ConfigError
            Where the columns hold what it cannot be applied to.
        """
        missing = sorted(self.names.difference(table.column_names))
        if missing:
            raise MissingColumnError(f"the catalogue (for {self.text!r})", missing, table.column_names)
        try:
            values = self._value(self._tree, table)
        except (pa.ArrowException, TypeError) as error:
            types = ", ".join(f"{name} is {table[name].type}" for name in sorted(self.names))
            raise self._refused(f"{error}; {types}") from error
        if isinstance(values, pa.ChunkedArray):
            return values
        return pa.chunked_array([pa.repeat(pa.scalar(values), len(table))])

    def holds(self, table: pa.Table) -> np.ndarray:
        """Return the rows for which it is true: bool, shape (n,); false where it cannot be told."""
        values = self.values(table)
        if not pa.types.is_boolean(values.type):
            raise self._refused("it is no condition: compare something, as in flux_r > 10")
        return pc.fill_null(values, False).to_numpy()

    @cached_property
    def _tree(self) -> ast.expr:
        try:
            if len(self.text) > _LONGEST:
                raise ValueError(f"longer than {_LONGEST} characters")
            return ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._refused(f"it cannot be read ({error})") from error

    def _check(self, node: ast.expr) -> None:
        """Refuse what the grammar does not have, before any table is there."""
        match node:
            case ast.BoolOp(values=parts):
                pass
            case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=part):
                parts = [part]
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
                parts = [left, right]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                parts = [left, right]
            case ast.Call(func=ast.Name(id=name), args=[part], keywords=[]) if name in _FUNCTIONS:
                parts = [part]
            case ast.Subscript(value=ast.Name(), slice=ast.Constant(value=int())) | ast.Name():
                parts = []
            case ast.Constant(value=bool()):
                raise self._refused("True and False are not needed; compare something")
            case ast.Constant(value=int() | float() | str()):
                parts = []
            case _:
                raise self._refused(f"{ast.unparse(node)[:80]!r} is not understood")
        for part in parts:
            self._check(part)

    def _value(self, node: ast.expr, table: pa.Table) -> Values:
        def value(part: ast.expr) -> Values:
            return self._value(part, table)

        match node:
            case ast.BoolOp(op=op, values=parts):
                joined = _compute("and_kleene" if isinstance(op, ast.And) else "or_kleene")
                result = value(parts[0])
                for part in parts[1:]:
                    result = joined(result, value(part))
                return result
            case ast.UnaryOp(op=ast.Not(), operand=part):
                return _compute("invert")(value(part))
            case ast.UnaryOp(operand=part):
                return _compute("negate")(_number(value(part)))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return _compute(_COMPARISONS[type(op)])(*_alike(value(left), value(right)))
            case ast.BinOp(left=left, op=op, right=right):
                return _compute(_ARITHMETIC[type(op)])(_number(value(left)), _number(value(right)))
            case ast.Call(func=ast.Name(id=name), args=[part]):
                return _compute(_FUNCTIONS[name])(_number(value(part)))
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=int(index))):
                return _compute("list_element")(table[name.lower()], index)
            case ast.Name(id=name):
                return _text_if_bytes(table[name.lower()])
            case ast.Constant(value=constant):
                return constant
        raise AssertionError(ast.dump(node))  # _check lets nothing else through

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(
            f"{self.text[:200]!r}: {why}. Write column names and numbers, such as "
            "\"type != 'PSF' and flux_r > 10\"."
        )


def _compute(name: str) -> Callable[..., Values]:
    return getattr(pc, name)


def _number(values: Values) -> Values:
    """Read text as numbers, as CSV has it; what is none is missing."""
    if _is_text(values) and not isinstance(values, str):
        return pa.chunked_array([pa.array(as_floats(values)[0], from_pandas=True)])
    return values


def _alike(left: Values, right: Values) -> tuple[Values, Values]:
    if _is_text(left) == _is_text(right):
        return left, right
    return _number(left), _number(right)


def _is_text(values: Values) -> bool:
    if isinstance(values, pa.ChunkedArray):
        return pa.types.is_string(values.type)
    return isinstance(values, str)


def _text_if_bytes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    is_text = pa.types.is_binary(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
    return as_text(column) if is_text else column
