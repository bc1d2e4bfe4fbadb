"""The first schema, written out: later changes of the tables must not change it."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.String(12), primary_key=True),
        sa.Column("commitment", sa.String(64), nullable=False),
        sa.Column("public", sa.String(64), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("task", sa.String(20), nullable=False),
        sa.Column("choices", sa.JSON, nullable=False),
        sa.Column("shows", sa.String(40), nullable=False),
        sa.Column("curve", sa.JSON),
        sa.Column("served", sa.Float, nullable=False),
    )
    op.create_table(
        "clients",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("role", sa.String(10), nullable=False),
        sa.Column("secret", sa.String(64), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("revoked", sa.Float),
        sa.Column("queries", sa.BigInteger),
        sa.Column("money", sa.Float),
        sa.Column("per_s", sa.Float),
        sa.Column("charged", sa.BigInteger, nullable=False, default=0),
        sa.Column("units", sa.BigInteger, nullable=False, default=0),
        sa.Column("tokens", sa.Float),
        sa.Column("filled", sa.Float),
        sa.Column("distinct", sa.BigInteger, nullable=False, default=0),
        sa.Column("asked", sa.BigInteger, nullable=False, default=0),
        sa.Column("odd", sa.BigInteger, nullable=False, default=0),
        sa.Column("window", sa.Integer, nullable=False, default=1),
        sa.Column("flagged", sa.Float),
    )
    op.create_table(
        "queries",
        sa.Column("id", SERIAL, primary_key=True),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("client", sa.String(16), sa.ForeignKey("clients.id"), nullable=False),
        sa.Column("query", sa.LargeBinary(16), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("units", sa.Integer, nullable=False),
        sa.Column("odd", sa.Boolean),
        sa.Column("text", sa.Text),
        sa.Column("pair", sa.Text),
    )
    op.create_index("queries_of", "queries", ["client", "query"])
    op.create_index("queries_time", "queries", ["time"])
    op.create_table(
        "marks",
        sa.Column("id", SERIAL, primary_key=True),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("client", sa.String(16), sa.ForeignKey("clients.id"), nullable=False),
        sa.Column("query", sa.LargeBinary(16), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("text", sa.Text),
        sa.Column("pair", sa.Text),
        sa.Column("truth", sa.JSON),
        sa.Column("served", sa.JSON),
        sa.Column("target", sa.Text),
        sa.Column("shows", sa.String(40), nullable=False),
        sa.Column("rate", sa.Float, nullable=False),
        sa.Column("controls", sa.Integer, nullable=False),
        sa.Column("scope", sa.String(8), nullable=False),
        sa.Column("key", sa.String(12), sa.ForeignKey("keys.id"), nullable=False),
        sa.Column("model", sa.String(64), sa.ForeignKey("models.id"), nullable=False),
        sa.UniqueConstraint("client", "query", "key", "model", name="one_decision"),
    )
    op.create_table(
        "events",
        sa.Column("id", SERIAL, primary_key=True),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("client", sa.String(16)),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_index("events_time", "events", ["time"])
    op.create_table(
        "verdicts",
        sa.Column("id", SERIAL, primary_key=True),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("suspect", sa.Text, nullable=False),
        sa.Column("sentence", sa.Text, nullable=False),
        sa.Column("record", sa.String(64), nullable=False),
        sa.Column("signature", sa.String(128), nullable=False),
    )


def downgrade() -> None:
    for name in ("verdicts", "events", "marks", "queries", "clients", "models", "keys"):
        op.drop_table(name)
