"""Clients have budgets and rates in tokens that the model reads."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("clients", sa.Column("token_budget", sa.BigInteger))
    op.add_column("clients", sa.Column("tokens_per_s", sa.Float))
    op.add_column(
        "clients", sa.Column("token_charge", sa.BigInteger, nullable=False, server_default="0")
    )
    op.add_column("clients", sa.Column("token_bucket", sa.Float))


def downgrade() -> None:
    for name in ("token_bucket", "token_charge", "tokens_per_s", "token_budget"):
        op.drop_column("clients", name)
