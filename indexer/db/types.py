"""Column types that SQLite and PostgreSQL store differently but give back alike."""

from datetime import datetime, timezone
from typing import Any

import numpy as np
from sqlalchemy import BigInteger, ColumnElement, DateTime, Dialect, Integer, LargeBinary, Text, TypeDecorator
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import UserDefinedType

Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite gives AUTOINCREMENT to INTEGER only
Bytewise = Text().with_variant(Text(collation="C"), "postgresql")  # compared as in SQLite, whatever the locale


class UtcDateTime(TypeDecorator[datetime]):
    """A time that comes back in UTC; SQLite forgets the time zone, PostgreSQL answers in the server's."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo is not None:
            return value and value.astimezone(timezone.utc)
        return value.replace(tzinfo=timezone.utc)


class HalfvecBytes(bytes):
    """A vector in the form that pgvector's `halfvec_send` and `halfvec_recv` speak; see `StoredVector`."""


class Halfvec(UserDefinedType[bytes]):
    """pgvector's `halfvec`. Without a dimension: collections of several share one table."""

    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **_: Any) -> str:
        return "halfvec"


class StoredVector(TypeDecorator[bytes]):
    """A vector as little-endian float16 bytes: a blob in SQLite, in PostgreSQL a `halfvec` of the same bits."""

    impl = LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(Halfvec() if dialect.name == "postgresql" else LargeBinary())

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        return halfvec_bytes(value) if value is not None and dialect.name == "postgresql" else value

    def column_expression(self, column: ColumnElement[bytes]) -> ColumnElement[bytes]:
        return _SentVector(column)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        if value is None or dialect.name != "postgresql":
            return value
        return np.frombuffer(value, ">f2", offset=4).astype("<f2").tobytes()  # after dimension and flags


def halfvec_bytes(vector: bytes) -> HalfvecBytes:
    """Little-endian float16 values as pgvector receives them: dimension, two bytes of zero, big-endian values."""
    values = np.frombuffer(vector, "<f2")
    return HalfvecBytes(len(values).to_bytes(2, "big") + b"\0\0" + values.astype(">f2").tobytes())


class _SentVector(FunctionElement[bytes]):
    """A vector column as it is read: as text its numbers would take longer to parse than to find."""

    type = StoredVector()
    inherit_cache = True


@compiles(_SentVector)
def _as_it_is(element: Any, compiler: Any, **options: Any) -> str:
    return str(compiler.process(element.clauses, **options))


@compiles(_SentVector, "postgresql")
def _as_bytes(element: Any, compiler: Any, **options: Any) -> str:
    return f"halfvec_send({compiler.process(element.clauses, **options)})"
