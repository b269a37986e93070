"""Many ids in and out of a statement as one value each, which is several times as fast as a row or a variable
for each: SQLite reads JSON, PostgreSQL has arrays of its own but takes the same JSON.
"""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Select, bindparam, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

from indexer.db.types import Id


class _Listed(FunctionElement[int]):
    """The ids of a JSON list."""

    type = Id
    inherit_cache = True


@compiles(_Listed, "sqlite")
def _listed_in_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    return f"(SELECT value FROM json_each({compiler.process(element.clauses, **options)}))"


@compiles(_Listed, "postgresql")
def _listed_in_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    given = compiler.process(element.clauses, **options)
    return f"(SELECT value::bigint FROM json_array_elements_text(CAST({given} AS json)))"


class _Joined(FunctionElement[str]):
    """All values of a column, separated by commas."""

    inherit_cache = True


@compiles(_Joined, "sqlite")
def _joined_in_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    return f"group_concat({compiler.process(element.clauses, **options)})"


@compiles(_Joined, "postgresql")
def _joined_in_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return f"string_agg(CAST({compiler.process(element.clauses, **options)} AS text), ',')"


def among(column: Any, ids: Iterable[int] | None = None) -> ColumnElement[bool]:
    """The condition that `column` is one of `ids`, or of those of the parameter "ids" (`as_json`)."""
    listed = _Listed(bindparam("ids") if ids is None else as_json(ids))
    return column.op("IN", is_comparison=True)(listed)


def as_json(ids: Iterable[int]) -> str:
    """What the parameter "ids" of a statement made with `among` takes."""
    return json.dumps([int(id) for id in ids])


def all_ids(session: Session, statement: Select[Any]) -> NDArray[np.int64]:
    """The ids that a statement of one column selects, ascending."""
    (column,) = statement.subquery().c
    joined = session.scalar(select(_Joined(column)))
    return np.sort(np.fromstring(joined or "", np.int64, sep=","))
