"""The registry's tables. Texts are there only where they are evidence, or where the policy keeps
them; no key is."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

METADATA = MetaData()
REVISION = "0005"  # of the last migration, which makes these tables
SERIAL = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers only INTEGER by itself

keys = Table(
    "keys", METADATA,
    Column("id", String(12), primary_key=True),
    Column("commitment", String(64), nullable=False),
    Column("public", String(64), nullable=False),
    Column("created", Float, nullable=False),
)  # fmt: skip

models = Table(
    "models", METADATA,
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("task", String(20), nullable=False),
    Column("choices", JSON, nullable=False),
    Column("shows", String(40), nullable=False),
    Column("curve", JSON),
    Column("served", Float, nullable=False),
)  # fmt: skip

clients = Table(
    "clients", METADATA,
    Column("id", String(16), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("role", String(10), nullable=False),
    Column("secret", String(64), nullable=False),  # SHA-256 of 256 random bits
    Column("created", Float, nullable=False),
    Column("revoked", Float),
    Column("queries", BigInteger),  # most; NULL: the policy's
    Column("money", Float),
    Column("per_s", Float),
    Column("charged", BigInteger, nullable=False, default=0),  # queries, those leased included
    Column("units", BigInteger, nullable=False, default=0),
    Column("token_budget", BigInteger),  # tokens that the model reads, most; NULL: the policy's
    Column("tokens_per_s", Float),
    Column("token_charge", BigInteger, nullable=False, default=0, server_default="0"),
    Column("tokens", Float),  # of the questions' rate limit; NULL: full
    Column("token_bucket", Float),  # of the tokens' rate limit; NULL: full
    Column("filled", Float),
    Column("distinct", BigInteger, nullable=False, default=0),
    Column("asked", BigInteger, nullable=False, default=0),  # and judged, in this window
    Column("odd", BigInteger, nullable=False, default=0),
    Column("window", Integer, nullable=False, default=1),  # of evidence, begun anew after a flag
    Column("flagged", Float),
    Column("bets", JSON(none_as_null=True)),  # the tests of this window (suspicion.Bets)
)  # fmt: skip

queries = Table(
    "queries", METADATA,
    Column("id", SERIAL, primary_key=True),
    Column("time", Float, nullable=False),
    Column("client", String(16), ForeignKey("clients.id"), nullable=False),
    Column("query", LargeBinary(16), nullable=False),  # a keyed hash
    Column("model", String(64), nullable=False),
    Column("units", Integer, nullable=False),
    Column("odd", Boolean),
    Column("text", Text),
    Column("pair", Text),
    Index("queries_of", "client", "query"),
    Index("queries_time", "time"),
)  # fmt: skip

marks = Table(
    "marks", METADATA,
    Column("id", SERIAL, primary_key=True),
    Column("time", Float, nullable=False),
    Column("client", String(16), ForeignKey("clients.id"), nullable=False),
    Column("query", LargeBinary(16), nullable=False),
    Column("kind", String(8), nullable=False),  # mark, control, or passed: neither, for good
    Column("text", Text),
    Column("pair", Text),
    Column("read", Text),  # what it was drawn from
    Column("truth", JSON),
    Column("served", JSON),
    Column("target", Text),
    Column("shows", String(40), nullable=False),
    Column("rate", Float, nullable=False),
    Column("controls", Integer, nullable=False),
    Column("scope", String(8), nullable=False),
    Column("key", String(12), ForeignKey("keys.id"), nullable=False),
    Column("model", String(64), ForeignKey("models.id"), nullable=False),
    UniqueConstraint("client", "query", "key", "model", name="one_decision"),
)  # fmt: skip

events = Table(
    "events", METADATA,
    Column("id", SERIAL, primary_key=True),
    Column("time", Float, nullable=False),
    Column("client", String(16)),
    Column("kind", String(20), nullable=False),
    Column("detail", Text, nullable=False),
    Index("events_time", "time"),
)  # fmt: skip

verdicts = Table(
    "verdicts", METADATA,
    Column("id", SERIAL, primary_key=True),
    Column("time", Float, nullable=False),
    Column("suspect", Text, nullable=False),
    Column("sentence", Text, nullable=False),
    Column("record", String(64), nullable=False),  # SHA-256 of record.json
    Column("signature", String(128), nullable=False),
)  # fmt: skip

heads = Table(
    "heads", METADATA,
    Column("number", SERIAL, primary_key=True, autoincrement=False),
    Column("time", Float, nullable=False),
    Column("first", Float),  # of the decisions under it
    Column("last", Float),
    Column("decisions", BigInteger, nullable=False),
    Column("root", String(64), nullable=False),
    Column("previous", String(64), nullable=False),
    Column("head", String(64), nullable=False),  # SHA-256 of the body
    Column("body", Text, nullable=False),  # what is hashed, signed and stamped
    Column("signature", String(128), nullable=False),
)  # fmt: skip

leaves = Table(
    "leaves", METADATA,
    Column("id", SERIAL, primary_key=True),
    Column("head", SERIAL, ForeignKey("heads.number"), nullable=False),
    Column("place", Integer, nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    Column("mark", BigInteger),  # the row of `marks`; NULL: a tally, or deleted
    Column("client", String(16)),  # NULL: deleted
    Column("salt", LargeBinary(16)),  # NULL: deleted
    Column("tally", JSON(none_as_null=True)),
    Index("leaves_of", "head", "place", unique=True),
    Index("leaves_mark", "mark", unique=True),
    Index("leaves_client", "client"),
)  # fmt: skip

bindings = Table(
    "bindings", METADATA,
    Column("id", SERIAL, primary_key=True),
    Column("head", SERIAL, ForeignKey("heads.number"), nullable=False),
    Column("time", Float, nullable=False),
    Column("stamp", LargeBinary),  # an RFC 3161 response, DER
    Column("published", Text),
)  # fmt: skip
