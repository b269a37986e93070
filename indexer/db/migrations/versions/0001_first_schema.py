"""The first schema: collections, documents, chunks, tombstones, states, jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")  # compared byte by byte, as in SQLite


def _collection() -> sa.Column:
    return sa.Column("collection_id", ID, sa.ForeignKey("collections.id", ondelete="CASCADE"), nullable=False)


def _time(name: str) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False)


class Halfvec(sa.types.UserDefinedType):
    def get_col_spec(self, **_: object) -> str:
        return "halfvec"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.create_table(
        "collections",
        sa.Column("id", ID, primary_key=True),
        sa.Column("name", TEXT, nullable=False, unique=True),
        sa.Column("model_id", sa.Text, nullable=False),
        sa.Column("model_fingerprint", sa.String(64), nullable=False),
        sa.Column("dim", sa.Integer, nullable=False),
        sa.Column("recipe", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("version", ID, nullable=False),
        sa.Column("tombstones_since", ID, nullable=False),
        _time("created_at"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "documents",
        sa.Column("id", ID, primary_key=True),
        _collection(),
        sa.Column("external_id", TEXT, nullable=False),
        sa.Column("uri", TEXT),
        sa.Column("title", TEXT),
        sa.Column("language", TEXT),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("chars", sa.Integer, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("source", TEXT),
        sa.Column("source_stamp", sa.Text),
        _time("created_at"),
        _time("updated_at"),
        sa.Column("checksum", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("collection_id", "external_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_documents_collection_id", "documents", ["collection_id"])
    op.create_index("ix_documents_collection_id_source", "documents", ["collection_id", "source"])
    op.create_table(
        "chunks",
        sa.Column("id", ID, primary_key=True),
        _collection(),
        sa.Column("document_id", ID, sa.ForeignKey("documents.id", ondelete="CASCADE"), nullable=False),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("start", sa.Integer, nullable=False),
        sa.Column("end", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("language", TEXT),
        sa.Column("text_hash", sa.String(32), nullable=False),
        sa.Column("checksum", sa.BigInteger, nullable=False),
        sa.Column("vector", sa.LargeBinary().with_variant(Halfvec(), "postgresql"), nullable=False),
        sa.UniqueConstraint("document_id", "ordinal"),
        sqlite_autoincrement=True,
        postgresql_with={"toast_tuple_target": 8160},  # a vector stays beside its passage, in one page
    )
    op.create_index("ix_chunks_collection_id_id", "chunks", ["collection_id", "id"])
    op.create_index("ix_chunks_collection_id_text_hash", "chunks", ["collection_id", "text_hash"])
    op.create_table(
        "tombstones",
        sa.Column("chunk_id", ID, primary_key=True, autoincrement=False),
        _collection(),
        sa.Column("version", ID, nullable=False),
    )
    op.create_index("ix_tombstones_collection_id_version", "tombstones", ["collection_id", "version"])
    op.create_table(
        "states",
        sa.Column("document_id", ID, sa.ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("chars", sa.Integer, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "jobs",
        sa.Column("id", ID, primary_key=True),
        _collection(),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("total", sa.Integer),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
        _time("started_at"),
        _time("updated_at"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_collection_id", "jobs", ["collection_id"])


def downgrade() -> None:
    for table in ("jobs", "states", "tombstones", "chunks", "documents", "collections"):
        op.drop_table(table)
