"""Filters: the text and JSON forms, their meaning, and that SQL and Python agree on it."""

from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

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


@pytest.fixture
def session():
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        insert(session, [record(name) for name in DOCUMENTS])
        yield session
    engine.dispose()


def found_by_sql(session: Session, where: Any) -> set[str]:
    condition = to_sql(parse(where), session.get_bind().dialect)
    return set(session.scalars(select(DocumentRow.external_id).where(condition)))


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


names = st.sampled_from(["a", "b", "é", "o.a", "o.b", "title", "lang", "id"])
texts = st.text(alphabet="abAé%_\"'\\ 1漢😀", max_size=4)
scalars = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, -1.0, 1e10]), texts, st.booleans(), st.none())
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


@pytest.fixture(scope="module")
def engine():
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@settings(max_examples=200, deadline=None)
@given(where=filters, document=documents)
def test_sql_agrees_with_python(engine, where, document):
    with Session(engine) as session:  # closed without a commit: the next example finds empty tables
        insert(session, [document])
        assert bool(found_by_sql(session, where)) == matches(parse(where), document)
