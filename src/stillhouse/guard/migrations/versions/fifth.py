"""Heads of the log, their leaves, and what binds them from outside."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "heads",
        sa.Column("number", SERIAL, primary_key=True, autoincrement=False),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("first", sa.Float),
        sa.Column("last", sa.Float),
        sa.Column("decisions", sa.BigInteger, nullable=False),
        sa.Column("root", sa.String(64), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("head", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("signature", sa.String(128), nullable=False),
    )
    op.create_table(
        "leaves",
        sa.Column("id", SERIAL, primary_key=True),
        sa.Column("head", SERIAL, sa.ForeignKey("heads.number"), nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("mark", sa.BigInteger),
        sa.Column("client", sa.String(16)),
        sa.Column("salt", sa.LargeBinary(16)),
        sa.Column("tally", sa.JSON(none_as_null=True)),
    )
    op.create_index("leaves_of", "leaves", ["head", "place"], unique=True)
    op.create_index("leaves_mark", "leaves", ["mark"], unique=True)
    op.create_index("leaves_client", "leaves", ["client"])
    op.create_table(
        "bindings",
        sa.Column("id", SERIAL, primary_key=True),
        sa.Column("head", SERIAL, sa.ForeignKey("heads.number"), nullable=False),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("stamp", sa.LargeBinary),
        sa.Column("published", sa.Text),
    )


def downgrade() -> None:
    for name in ("bindings", "leaves", "heads"):
        op.drop_table(name)
