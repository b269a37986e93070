"""An index that holds all that filters usually ask for, so that they do not read documents."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_index("ix_documents_filter", "documents", ["collection_id", "language", "metadata"])


def downgrade() -> None:
    op.drop_index("ix_documents_filter", "documents")
