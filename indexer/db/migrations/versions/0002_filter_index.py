"""An index that holds all that filters usually ask for, so that they do not read documents."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":  # PostgreSQL indexes no JSON
        op.create_index("ix_documents_filter", "documents", ["collection_id", "language", "metadata"])


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.drop_index("ix_documents_filter", "documents")
