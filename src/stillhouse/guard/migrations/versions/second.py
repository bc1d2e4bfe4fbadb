"""Marks are drawn from what the model reads: it is kept beside the text."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("marks", sa.Column("read", sa.Text))


def downgrade() -> None:
    op.drop_column("marks", "read")
