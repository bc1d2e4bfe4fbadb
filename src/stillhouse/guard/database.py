"""The registry's database: SQLite by default, PostgreSQL where several workers serve."""

from __future__ import annotations

import re
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
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool

from stillhouse.core.errors import RunError, UsageError
from stillhouse.guard.tables import REVISION

BUSY_S = 30.0  # how long SQLite waits for another writer
STATEMENT_S = 10.0  # how long PostgreSQL may take for a statement
HELD_BY = "alembic_version"


class Database:
    """Raises UsageError for an address that is none, RunError where it can't be reached."""

    def __init__(self, url: str = "sqlite:///stillhouse-guard.db") -> None:
        try:
            made = sa.make_url(url)
            if made.drivername == "postgresql":
                made = made.set(drivername="postgresql+psycopg")
            options: dict[str, Any] = {}
            if made.get_backend_name() == "sqlite":
                options = {"poolclass": NullPool, "connect_args": {"timeout": BUSY_S}}
                if made.database:
                    Path(made.database).parent.mkdir(parents=True, exist_ok=True)
            else:
                waits = f"-c statement_timeout={int(1000 * STATEMENT_S)}"
                asked = {"connect_timeout": 5, "keepalives_idle": 10, "options": waits}
                options = {
                    "pool_pre_ping": True,
                    "pool_timeout": STATEMENT_S,
                    "connect_args": asked,
                }
            self.engine = sa.create_engine(made, hide_parameters=True, **options)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise UsageError(
                f"no registry at {_shown(url)}: write sqlite:///FILE or "
                f"postgresql://USER@HOST/NAME ({str(error).splitlines()[0]})"
            ) from None
        self.url = made
        self.is_sqlite = made.get_backend_name() == "sqlite"
        if self.is_sqlite:
            event.listen(self.engine, "connect", _sqlite)
            event.listen(self.engine, "begin", _begin)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url.render_as_string()})"

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
            raise RunError(f"the registry can't be reached: {_first(error)}") from error
        except DatabaseError as error:
            if type(error) is not DatabaseError:  # of a row, not of the whole
                raise
            raise UsageError(f"{self.url.database} is no registry: {_first(error)}") from None

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
                    f"{self.url.database} is a registry of another version of stillhouse "
                    f"({_first(error)}): update stillhouse"
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


def _shown(url: str) -> str:
    """An address without its password."""
    return re.sub(r"//([^:/@]*):[^@]*@", r"//\1:***@", url)


def _first(error: Exception) -> str:
    """A database error's first line, which has no address."""
    text = str(getattr(error, "orig", error)).strip().splitlines()[0]
    return re.sub(r"password[^,;]*", "password ...", text)
