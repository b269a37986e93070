"""Filters: the text and JSON forms, their meaning, and that SQL and Python agree on it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_mock_engine, select, text
from sqlalchemy.orm import Session

from indexer.db.database import open_database
from indexer.db.tables import Base, CollectionRow, DocumentRow
from indexer.errors import InvalidFilter
from indexer.filters import And, Compare, Exists, Not, Or, matches, parse, to_sql

DAY = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
DOCUMENTS: dict[str, dict[str, Any]] = {
    "a/1": {
        "language": "de",
        "title": "Katze",
        "metadata": {"year": 2020, "draft": False, "tags": ["x", "y"]},
    },
    "a/2": {
        "language": "fr",
        "title": None,
        "metadata": {"year": 2019.5, "draft": True, "author": {"name": "Zoë"}},
    },
    "b/3": {"language": "de", "title": "Hund", "metadata": {"year": "2020", "naïve": 1, "tags": []}},
    "b/4": {"language": None, "title": "100%", "metadata": {"year": None, "tags": "x", "n": -3}},
}


def record(name: str) -> dict[str, Any]:
    return {"id": name, "uri": name, "created_at": DAY, "updated_at": DAY, **DOCUMENTS[name]}


def insert(session: Session, records: list[dict[str, Any]]) -> None:
    session.add(CollectionRow(id=1, name="c", model_id="m", model_fingerprint="f", dim=1, recipe={}))
    session.flush()
    for fields in records:
        session.add(
            DocumentRow(
                collection_id=1,
                external_id=fields["id"],
                uri=fields["uri"],
                title=fields["title"],
                language=fields["language"],
                content_hash="",
                checksum=0,
                body=b"",
                chars=0,
                meta=fields["metadata"],
                created_at=fields["created_at"],
                updated_at=fields["updated_at"],
            )
        )
    session.flush()


@pytest.fixture(scope="module")
def postgresql(postgresql_database):
    with postgresql_database() as url:
        yield from writer(url)


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory):
    yield from writer(tmp_path_factory.mktemp("sqlite"))


def writer(location: Any) -> Iterator[Connection]:
    database = open_database(location, True, 1.0)
    with database.writing("test") as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("CREATE EXTENSION vector"))
        Base.metadata.create_all(connection)
        yield connection
    database.engine.dispose()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def connection(request):
    return request.getfixturevalue(request.param)


def holding(connection: Connection, records: list[dict[str, Any]]) -> AbstractContextManager[Session]:
    """A session that sees these documents; they are gone when it is closed."""
    session = Session(connection, join_transaction_mode="create_savepoint")
    insert(session, records)
    return session


@pytest.fixture
def session(connection):
    with holding(connection, [record(name) for name in DOCUMENTS]) as session:
        yield session


def found_by_sql(session: Session, where: Any) -> set[str]:
    condition = to_sql(parse(where), session.get_bind().dialect)
    return set(session.scalars(select(DocumentRow.external_id).where(condition)))


def assert_agree(connection: Connection, metadata: list[dict[str, Any]], conditions: list[Any]) -> None:
    """SQL finds the documents with these metadata that Python lets pass."""
    records = [{**record("a/1"), "id": str(n), "metadata": fields} for n, fields in enumerate(metadata)]
    with holding(connection, records) as session:
        for where in conditions:
            expected = {one["id"] for one in records if matches(parse(where), one)}
            assert found_by_sql(session, where) == expected, where


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("year >= 2020", {"a/1"}),
        ("year < 2020", {"a/2"}),
        ("year = '2020'", {"b/3"}),
        ("year != 2020", {"a/2", "b/3", "b/4"}),
        ("not year = 2020", {"a/2", "b/3", "b/4"}),
        ("exists(year)", {"a/1", "a/2", "b/3"}),
        ("year = null", {"b/4"}),
        ("year in (2020, null)", {"a/1", "b/4"}),
        ("lang in (de, fr)", {"a/1", "a/2", "b/3"}),
        ("language not in (de)", {"a/2", "b/4"}),
        ("draft", {"a/2"}),
        ("not draft", {"a/1", "b/3", "b/4"}),
        ("draft = false", {"a/1"}),
        ("tags = x", {"a/1", "b/4"}),
        ("tags contains y", {"a/1"}),
        ("exists(tags)", {"a/1", "b/3", "b/4"}),
        ('author.name = "Zoë"', {"a/2"}),
        ("author = x", set()),
        ("naïve = 1", {"b/3"}),
        ("n = -3", {"b/4"}),
        ('path startswith "a/"', {"a/1", "a/2"}),
        ("id endswith 3", {"b/3"}),
        ("title contains %", {"b/4"}),
        ("title startswith k", set()),
        ("metadata.year = 2020", {"a/1"}),
        ("created_at >= 2024-05-01", set(DOCUMENTS)),
        ("created_at < 2024-05-01T12:00:00+02:00", set()),
        ("created_at = 2024-05-01T12:00:00Z", set(DOCUMENTS)),
        ("lang = de and year = 2020 or title = null", {"a/1", "a/2"}),
        ("lang = de and (year = 2020 or title = Hund)", {"a/1", "b/3"}),
        ("", set(DOCUMENTS)),
        (None, set(DOCUMENTS)),
        ({"and": []}, set(DOCUMENTS)),
        ({"or": []}, set()),
        ({"field": "year", "op": ">=", "value": 2020}, {"a/1"}),
        ({"not": {"field": "lang", "op": "in", "value": ["de"]}}, {"a/2", "b/4"}),
        ({"field": "lang", "op": "in", "value": []}, set()),
        ({"and": [{"field": "lang", "value": "de"}, {"field": "tags", "op": "exists"}]}, {"a/1", "b/3"}),
    ],
)
def test_finds(session, where, expected):
    assert found_by_sql(session, where) == expected
    assert {name for name in DOCUMENTS if matches(parse(where), record(name))} == expected


@pytest.mark.parametrize("field", ["id", "path", "uri", "title", "lang"])
def test_numbers_keep_their_spelling_in_text_fields(field):
    name = {"path": "uri", "lang": "language"}.get(field, field)
    assert parse(f"{field} = 007") == Compare(name, "in", ("007",))
    assert parse(f"{field} in (1.10, 1e3, null)") == Or((Not(Exists(name)), Compare(name, "in", ("1.10", "1e3"))))
    assert parse(f"{field} startswith 1.0") == Compare(name, "startswith", ("1.0",))
    assert parse("year in (007, 1.10)") == Compare("year", "in", (7, 1.1))
    assert parse({"field": field, "value": 7}) == Compare(name, "in", ("7",))


def test_the_text_form_gives_the_tree_of_the_json_form():
    text = 'year >= 2020 and lang in (de, fr) and not draft and exists(author) and path startswith "a/"'
    conditions = [
        {"field": "year", "op": ">=", "value": 2020},
        {"field": "language", "op": "in", "value": ["de", "fr"]},
        {"not": {"field": "draft", "op": "=", "value": True}},
        {"field": "author", "op": "exists"},
        {"field": "path", "op": "startswith", "value": "a/"},
    ]
    tree = And(
        (
            Compare("year", ">=", (2020,)),
            Compare("language", "in", ("de", "fr")),
            Not(Compare("draft", "in", (True,))),
            Exists("author"),
            Compare("uri", "startswith", ("a/",)),
        )
    )
    assert parse(text) == tree == parse({"and": conditions})
    assert parse("a or b and c") == Or((parse("a"), And((parse("b"), parse("c")))))
    assert parse("a > and") == Compare("a", ">", ("and",))  # a value may be any word
    assert parse(r'a = "say \"hi\""') == Compare("a", "in", ('say "hi"',))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("year >=", "filter at character 8: expected a value, the filter ends here"),
        ("(year = 1", r"filter at character 10: expected '\)', the filter ends here"),
        ("year = 1 lang = 2", "filter at character 10: expected 'and', 'or' or the end, found 'lang'"),
        ("= 3", "filter at character 1: expected a field name, found '='"),
        ("a ! b", "filter at character 2: this is neither"),
        ('a = "open', "filter at character 4: this is neither"),
        ("a > true", "filter at character 1: True has no order"),
        ("a startswith 3", "startswith needs text, not 3"),
        ("created_at > soon", "'soon' is no date; expected one like 2026-11-25"),
        ("created_at startswith '2024'", "created_at is a time"),
        ("a..b = 1", "the field 'a..b' has"),
        ("a = 99999999999999999999", "over 64 bits"),
        ("(" * 500 + "a" + ")" * 500, "nested more than 64 deep"),
        ({"field": "a", "op": "~", "value": 1}, "filter: unknown operator '~'; expected one of =, ==, !="),
        ({"and": {}}, "filter.and: expected a list"),
        ({"and": [{"fild": "a"}]}, r"filter.and\[0\]: unknown key 'fild'"),
        ({"field": "a"}, "filter: 'value' is missing"),
        ({"field": "a", "op": "in", "value": "x"}, "filter: 'in' needs a list"),
        ({"field": "a", "value": {"$gt": 1}}, "expected a number, a text, true, false or null"),
        ({"field": "a", "value": "\ud800"}, "lone surrogate"),
        ({"field": "a", "value": "a\0"}, "has a NUL"),
        ({"field": "a", "value": float("nan")}, "nan is not a number"),
        ({"field": 3, "value": 1}, "a field is a name"),
        ([], "filter: expected an object"),
        ({"or": [{"field": "a", "value": 1}] * 300}, "301 conditions; at most 256"),
        ({"field": "a", "op": "in", "value": [1] * 1001}, "1001 values; at most 1000"),
    ],
)
def test_refuses(where, message):
    with pytest.raises(InvalidFilter, match=message):
        parse(where)


def test_hostile_values_are_values(session):
    for hostile in ("'; DROP TABLE documents; --", '" OR 1=1', "%", "_", "$.year", "é" * 1000):
        assert found_by_sql(session, {"field": "title", "value": hostile}) == set()
        assert found_by_sql(session, {"field": "year", "op": "contains", "value": hostile}) == set()
    assert found_by_sql(session, "year = '2020'") == {"b/3"}


NUMBERS = [
    0, 1, -1, 0.1, -0.5, 1e10, 1e300, -1e300, 5e-324, 123456789.12345679,
    2**53, 2**53 + 1, 2.0**53, 2**60, 2**60 + 1, 2.0**60, 2.0**60 + 2**8, 2**63 - 1, 2.0**63, 1 - 2**63,
]  # fmt: skip
TEXTS = ["", "a", "A", "é", "e\u0301", "漢", "😀", "\uffff", "%", "_", "\\", "'", '"', "true", "1", "null"]


def test_numbers_are_compared_without_rounding(connection):
    conditions = [
        {"field": "n", "op": op, "value": number} for op in ("=", "<", "<=", ">", ">=") for number in NUMBERS
    ]
    conditions += [{"field": "n", "op": "in", "value": values} for values in (NUMBERS[::2], [0.5, 2**60 + 1])]
    assert_agree(connection, [{"n": number} for number in [*NUMBERS, -0.0, True, "1", [1, 2.5]]], conditions)


def test_texts_are_compared_by_code_point_in_every_locale(postgresql):
    """The server of the tests has no other order, so it is the statement that shows it."""
    condition = to_sql(parse("t > a and title > a"), postgresql.dialect)
    statement = str(condition.compile(dialect=postgresql.dialect))
    assert statement.count("#>> '{}') COLLATE \"C\"") == 2  # the value itself and the elements of a list
    assert DocumentRow.title.type.dialect_impl(postgresql.dialect).collation == "C"


def test_integers_of_any_size_are_compared_in_postgresql(postgresql):
    """SQLite makes floats of those over 64 bits."""
    numbers = [10**400, -(10**400), 10**23, 10**23 + 1, 2**64 + 1]
    conditions = [
        {"field": "n", "op": op, "value": number}
        for op in ("=", "<", "<=", ">", ">=")
        for number in (1, 1e23, 2.0**64, -1e300)
    ]
    assert_agree(postgresql, [{"n": number} for number in numbers], conditions)


def test_texts_are_compared_by_code_point(connection):
    conditions = [
        {"field": "t", "op": op, "value": value}
        for op in ("=", "<", ">=", "startswith", "endswith", "contains")
        for value in TEXTS
    ]
    stored = [*TEXTS, "aA", "éa", "a😀漢", True, 1, None, ["x", "aé"], {"a": "a"}]
    assert_agree(connection, [{"t": value} for value in stored], conditions)


@pytest.mark.parametrize(
    "field", ["a.b", "a.0", "0", "é", "漢 字", "o'k", "%s", "%(x)s", ":x", "a:b", "$", "{a}", "*", "a,b"]
)
def test_names_are_names(connection, field):
    """A list has no fields, whatever their names, and none of these is syntax."""
    outer, _, inner = field.partition(".")
    metadata: list[dict[str, Any]] = [
        {outer: {inner: 1} if inner else 1}, {outer: [1, 5]}, {outer: [{"b": 1, "0": 1}]}, {outer: None},
        {outer: {}}, {"x": 1}, {"a": 1}, {},
    ]  # fmt: skip
    conditions = [
        {"field": field, "value": 1},
        {"field": field, "op": "exists"},
        {"not": {"field": field, "op": "in", "value": [1, "x", None]}},
    ]
    assert_agree(connection, metadata, conditions)


def test_values_are_more_than_a_postgresql_statement_may_have_parameters(postgresql):
    values = [*range(400), *(n + 0.5 for n in range(200)), *(f"x{n}" for n in range(399)), True]
    each = [{"field": f"f{n}", "op": "not in", "value": values} for n in range(66)]
    assert_agree(postgresql, [{"f3": 7}, {"f3": [None, "x398"]}, {"f3": "x399"}, {}], [{"and": each}])


def test_refuses_databases_of_other_kinds():
    other = create_mock_engine("mysql://", lambda *_: None).dialect
    with pytest.raises(InvalidFilter, match="for 'mysql' databases; expected sqlite or postgresql"):
        to_sql(parse("a"), other)


names = st.sampled_from(["a", "b", "é", "o.a", "o.b", "title", "lang", "id"])
texts = st.text(alphabet="abAé%_\"'\\ 1漢😀", max_size=4)
numbers = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, -1.0, 1e10, 1e300, 2**60, 2.0**60, 2**60 + 1]))
scalars = st.one_of(numbers, texts, st.booleans(), st.none())
stored = st.one_of(scalars, st.lists(scalars, max_size=3), st.dictionaries(st.sampled_from("ab"), scalars))
documents = st.builds(
    lambda title, language, metadata: {
        "id": "a", "uri": "u", "title": title, "language": language, "metadata": metadata,
        "created_at": DAY, "updated_at": DAY,
    },
    st.one_of(st.none(), texts),
    st.sampled_from([None, "a", "b"]),
    st.dictionaries(st.sampled_from(["a", "b", "é", "o"]), stored),
)  # fmt: skip
conditions = st.one_of(
    st.builds(
        lambda f, op, v: {"field": f, "op": op, "value": v}, names, st.sampled_from(["=", "!="]), scalars
    ),
    st.builds(
        lambda f, op, v: {"field": f, "op": op, "value": v},
        names,
        st.sampled_from(["<", "<=", ">", ">="]),
        scalars.filter(lambda value: value is not None and not isinstance(value, bool)),
    ),
    st.builds(
        lambda f, op, v: {"field": f, "op": op, "value": v},
        names,
        st.sampled_from(["startswith", "endswith", "contains"]),
        texts,
    ),
    st.builds(
        lambda f, op, v: {"field": f, "op": op, "value": v},
        names,
        st.sampled_from(["in", "not in"]),
        st.lists(scalars, max_size=3),
    ),
    st.builds(lambda f: {"field": f, "op": "exists"}, names),
)
filters = st.recursive(
    conditions,
    lambda inner: st.one_of(
        st.builds(lambda parts: {"and": parts}, st.lists(inner, max_size=3)),
        st.builds(lambda parts: {"or": parts}, st.lists(inner, max_size=3)),
        st.builds(lambda part: {"not": part}, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(where=filters, document=documents)
def test_sql_agrees_with_python(connection, where, document):
    with holding(connection, [document]) as session:
        assert bool(found_by_sql(session, where)) == matches(parse(where), document)
