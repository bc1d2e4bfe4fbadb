"""The registry's database: SQLite by default, PostgreSQL where several workers serve."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool

from stillhouse.core.errors import RunError, UsageError
from stillhouse.core.private import close_to_world, make
from stillhouse.core.rundir import writes
from stillhouse.guard.tables import REVISION

BUSY_S = 30.0  # how long SQLite waits for another writer
STATEMENT_S = 10.0  # how long PostgreSQL may take for a statement
HELD_BY = "alembic_version"
MAKING = threading.Lock()
NO_ADDRESS = (
    "no registry at that address: write sqlite:///FILE or postgresql://USER@HOST/NAME "
    "(in a user or a password %40 for @, %3A for : and %2F for /)"
)
REASONS = {  # what PostgreSQL and its client library say, and what that means
    r"password|authentication|no pg_hba\.conf|role .* does not exist|permission denied":
        "it refuses the user or the password: correct --registry",
    r"database .* does not exist": "there is no such database: make it, or correct --registry",
    r"translate host|resolve|name or service": "its host is unknown: correct --registry",
    r"refused|no such file|unreachable|no route": "nothing answers there: is it running?",
    r"timeout|timed out|time out|limit of size": "it does not answer in time: is it overloaded?",
    r"too many (clients|connections)|remaining connection slots": "it has no connection free",
    r"ssl|certificate": "the two do not agree on TLS: see sslmode",
    r"starting up|shutting down|recovery|terminat|closed|lost|reset by":
        "the connection was lost, or it is starting or stopping: try again",
    r"connection option|conninfo": "its address has an option that is none: correct --registry",
    r"read-only|readonly": "it can't be written to: it is read-only",
    r"no space|disk full|could not extend": "its disk is full",
}  # fmt: skip


class Unreachable(RunError):
    """The database is away. Its sentence is for the owner: it names the database, though neither
    where that is nor who asks for it."""


class Database:
    """Raises UsageError for an address that is none, RunError where it can't be reached."""

    def __init__(self, url: str = "sqlite:///stillhouse-guard.db") -> None:
        self.url = address(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"poolclass": NullPool, "connect_args": {"timeout": BUSY_S}}
        if not self.is_sqlite:
            waits = f"-c statement_timeout={int(1000 * STATEMENT_S)}"
            asked = {"connect_timeout": 5, "keepalives_idle": 10, "options": waits}
            options = {"pool_pre_ping": True, "pool_timeout": STATEMENT_S, "connect_args": asked}
        try:
            self.engine = sa.create_engine(self.url, hide_parameters=True, **options)
        except (ArgumentError, NoSuchModuleError):
            raise UsageError(NO_ADDRESS) from None
        except ModuleNotFoundError as error:
            raise UsageError(f"this registry needs {error.name}: install it") from None
        if self.is_sqlite:
            if self.file is not None:
                with writes(self.file.parent, asked=True):
                    self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                for each in ("", "-wal", "-shm"):
                    close_to_world(self.file.with_name(self.file.name + each))
            event.listen(self.engine, "do_connect", self._make)
            event.listen(self.engine, "connect", _sqlite)
            event.listen(self.engine, "begin", _begin)

    @property
    def name(self) -> str:
        """What the owner calls the database: a name or a file."""
        return self.url.database or ("in memory" if self.is_sqlite else "without a name")

    @property
    def file(self) -> Path | None:
        """SQLite's, where it has one. The files beside it get its mode from SQLite."""
        held = self.url.database
        return Path(held) if self.is_sqlite and held and ":memory:" not in held else None

    def _make(self, *_: object) -> None:
        """Makes the file, which only the owner may read, before SQLite does. One at a time: to
        close a file drops all locks that this process has on it."""
        if self.file is not None:
            with MAKING, contextlib.suppress(OSError):  # it is there; or SQLite tells what is wrong
                if not self.file.exists():
                    make(self.file)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url.get_backend_name()} {self.name})"

    def insert(self, table: sa.Table) -> Any:
        """An INSERT that can say what happens to a row that is there."""
        if self.is_sqlite:
            from sqlalchemy.dialects.sqlite import insert
        else:
            from sqlalchemy.dialects.postgresql import insert
        return insert(table)

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction. Raises RunError where the database can't be reached."""
        with self._transaction(reads=False) as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One transaction that changes nothing: on SQLite no writer waits for it."""
        with self._transaction(reads=True) as connection:
            yield connection

    @contextmanager
    def _transaction(self, *, reads: bool) -> Iterator[sa.Connection]:
        try:
            with self.engine.connect().execution_options(reads=reads) as connection:
                with connection.begin():
                    yield connection
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            raise Unreachable(
                f"the registry {self.name} can't be reached: {reason(error, self.url)}"
            ) from error
        except DatabaseError as error:
            if type(error) is not DatabaseError and not _of_the_address(error):  # of a row
                raise
            raise UsageError(f"{self.name} is no registry: {reason(error, self.url)}") from None

    def ping(self) -> None:
        """Raises RunError where the database can't be reached."""
        with self.reading() as connection:
            connection.execute(sa.select(1))

    def upgrade(self) -> None:
        """Brings the tables to this version's. Where they are, no migration is even loaded. Raises
        UsageError for those of a later version."""
        with self.reading() as connection:
            if _revision(connection) == REVISION:
                return
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(files("stillhouse.guard") / "migrations"))
        with self.writing() as connection:
            if not self.is_sqlite:  # several workers start at once
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(5391)"))
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:  # a revision that there is no migration of
                raise UsageError(
                    f"{self.name} is a registry of another version of stillhouse "
                    f"({_line(error)}): update stillhouse"
                ) from None

    def close(self) -> None:
        self.engine.dispose()


def _revision(connection: sa.Connection) -> str | None:
    """Which migration the tables come from, as Alembic wrote it down."""
    if not sa.inspect(connection).has_table(HELD_BY):
        return None
    return connection.execute(sa.text(f"SELECT version_num FROM {HELD_BY}")).scalar()


def _sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where we say
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # a mark that is committed stays
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: sa.Connection) -> None:
    reads = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def address(url: str) -> sa.URL:
    """The address of a database. Raises UsageError, which shows nothing of it: what is wrong with
    it may be that a part of the password is read as something else."""
    rest = url.partition("://")[2]
    place = rest.rpartition("@")[2].partition("?")[0]
    if not url.startswith("sqlite") and (rest.count("@") > 1 or place.count("/") > 1):
        raise UsageError(NO_ADDRESS)
    try:
        found = sa.make_url(url)
        backend = found.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise UsageError(NO_ADDRESS) from None
    if found.drivername == "postgresql":
        return found.set(drivername="postgresql+psycopg")
    if backend not in ("sqlite", "postgresql"):
        raise UsageError(NO_ADDRESS)
    return found


def _of_the_address(error: DatabaseError) -> bool:
    """Whether PostgreSQL or its client library refuses an option or a user's rights."""
    said = getattr(error, "orig", error)
    if type(said).__module__.partition(".")[0] != "psycopg":
        return False
    return isinstance(error, ProgrammingError) and getattr(said, "sqlstate", "") in (None, "42501")


def reason(error: Exception, url: sa.URL) -> str:
    """Why a database failed and what to do, without what its driver says of hosts, ports, users and
    passwords."""
    said = str(getattr(error, "orig", error))
    if url.get_backend_name() == "sqlite":
        return _line(error)  # which has no path
    for words, means in REASONS.items():
        if re.search(words, said, re.IGNORECASE):
            return means
    return f"{type(getattr(error, 'orig', error)).__name__}; its own log says more"


def _line(error: Exception) -> str:
    """The first line of an error that is known to hold no address."""
    return (str(getattr(error, "orig", error)).strip().splitlines() or [""])[0]
