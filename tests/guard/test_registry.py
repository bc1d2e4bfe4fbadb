"""The registry: clients, keys, evidence, what is deleted; on SQLite and PostgreSQL."""

from __future__ import annotations

import os
import time
from importlib.resources import files
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from stillhouse.core.errors import RunError, UsageError
from stillhouse.guard.keys import Keys
from stillhouse.guard.registry import Registry
from stillhouse.guard.suspicion import Evidence
from stillhouse.guard.tables import METADATA, REVISION, clients, events, keys, marks, queries


def line(client: str, **changes: object) -> dict[str, object]:
    return {"time": time.time(), "client": client, "query": bytes(16), "model": "m", "units": 1,
            "odd": None, "text": None, "pair": None, **changes}  # fmt: skip


def test_a_key_opens_once_made_and_not_when_revoked(registry: Registry) -> None:
    row, secret = registry.create_client("ann", queries=5, money=1.5, per_s=2.0)
    assert (row.queries, row.money, row.per_s, row.role) == (5, 1.5, 2.0, "client")
    found = registry.identify(secret)
    assert found is not None
    assert found.id == row.id
    registry.revoke("ann")
    assert registry.identify(secret) is None
    assert registry.named("ann").revoked is not None


@pytest.mark.parametrize(
    "wrong", ["", "sh_", "x" * 200, "sh_000000000000_" + "0" * 64, "' OR 1=1 --", "sh_\x00"]
)
def test_other_keys_open_nothing(wrong: str, registry: Registry) -> None:
    registry.create_client("ann")
    assert registry.identify(wrong) is None


def test_one_clients_secret_is_not_anothers(registry: Registry) -> None:
    _, ann = registry.create_client("ann")
    bob, _ = registry.create_client("bob")
    assert registry.identify(f"sh_{bob.id}_{ann.rpartition('_')[2]}") is None


def test_only_a_hash_of_a_key_is_kept(registry: Registry) -> None:
    _, secret = registry.create_client("ann")
    with registry.engine.connect() as connection:
        held = str(connection.execute(sa.select(clients)).all())
    assert secret.rpartition("_")[2] not in held


@pytest.mark.parametrize(
    "name", ["Robert'); DROP TABLE clients;--", "<script>", "ünï 中文", "a" * 200]
)
def test_any_name_is_a_name(name: str, registry: Registry) -> None:
    registry.create_client(name)
    assert registry.named(name).name == name
    with pytest.raises(UsageError, match="already"):
        registry.create_client(name)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x00b", "a" * 201])
def test_what_is_no_name(name: str, registry: Registry) -> None:
    with pytest.raises(UsageError, match="one line"):
        registry.create_client(name)
    assert registry.clients() == []


def test_an_unknown_client_is_told(registry: Registry) -> None:
    for act in (registry.revoke, registry.unflag, registry.forget, registry.named):
        with pytest.raises(UsageError, match="no client 'nobody'"):
            act("nobody")


def test_a_flag_is_set_once_and_taken_back_with_the_evidence(registry: Registry) -> None:
    row, _ = registry.create_client("ann")
    bets = {"0.1/50.0": {"asked": 9, "odd": 8}}
    with registry.writing() as connection:
        connection.execute(sa.update(clients).values(asked=9, odd=8, bets=bets))
    assert registry.client(row.id).evidence == Evidence(9, 8, 1, bets)
    registry.flag("ann", "odd")
    registry.flag("ann", "odd again")
    assert registry.client(row.id).flagged is not None
    assert [e["kind"] for e in registry.rows(events)] == ["created", "flagged"]
    registry.unflag("ann")
    found = registry.client(row.id)
    assert found.flagged is None
    assert found.evidence == Evidence(0, 0, 2)  # a look that was taken is paid for


def test_a_commitment_stays_what_it_was(registry: Registry, keys: Keys) -> None:
    from stillhouse.guard.tables import keys as table

    registry.commit_to(keys)
    before = registry.rows(table)
    registry.commit_to(keys)
    assert registry.rows(table) == before
    assert before[0]["commitment"] == keys.commitment


def test_forgetting_deletes_one_clients_rows_only(registry: Registry, keys: Keys) -> None:
    ann, _ = registry.create_client("ann")
    bob, _ = registry.create_client("bob")
    _keep(registry, keys, ann.id)
    with registry.writing() as connection:
        connection.execute(sa.insert(queries), [line(ann.id), line(ann.id), line(bob.id)])
    assert registry.forget("ann") == 3
    assert [row["client"] for row in registry.rows(queries)] == [bob.id]
    assert registry.evidence() == []


def test_retention_keeps_what_is_young_and_the_evidence(registry: Registry, keys: Keys) -> None:
    ann, _ = registry.create_client("ann")
    old = time.time() - 10 * 86_400
    _keep(registry, keys, ann.id, time=old)
    with registry.writing() as connection:
        connection.execute(sa.insert(queries), [line(ann.id), line(ann.id, time=old)])
    assert registry.retain(7) == 1
    assert len(registry.rows(queries)) == 1
    assert len(registry.evidence()) == 1


def test_there_is_one_decision_of_a_question(registry: Registry, keys: Keys) -> None:
    ann, _ = registry.create_client("ann")
    _keep(registry, keys, ann.id)
    with pytest.raises(sa.exc.IntegrityError):
        _keep(registry, keys, ann.id)


def test_migrations_make_the_tables_that_the_code_has(url: str) -> None:
    migrated, declared = Registry(url), sa.create_engine("sqlite://")
    migrated.upgrade()
    migrated.upgrade()
    METADATA.create_all(declared)
    for table in METADATA.sorted_tables:
        ours = {c["name"]: c["nullable"] for c in sa.inspect(declared).get_columns(table.name)}
        theirs = sa.inspect(migrated.engine).get_columns(table.name)
        assert {c["name"]: c["nullable"] for c in theirs} == ours
        indices = {i["name"] for i in sa.inspect(migrated.engine).get_indexes(table.name)}
        assert {i.name for i in table.indexes} <= indices
    migrated.close()


def test_the_revision_that_the_code_knows_is_the_last_migrations(registry: Registry) -> None:
    config = Config()
    config.set_main_option("script_location", str(files("stillhouse.guard") / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [REVISION]
    with registry.reading() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).all() == [
            (REVISION,)
        ]


def test_evidence_of_another_test_begins_anew_and_flags_stay(url: str) -> None:
    """That of whole windows of single questions is no part of bets on blocks."""
    config = Config()
    config.set_main_option("script_location", str(files("stillhouse.guard") / "migrations"))
    made = Registry(url)
    with made.writing() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        row = {"id": "a", "name": "ann", "role": "client", "secret": "", "created": 1.0,
               "charged": 9, "units": 0, "distinct": 9, "asked": 9, "odd": 8, "window": 40,
               "flagged": 2.0}  # fmt: skip
        names, values = ", ".join(f'"{n}"' for n in row), ", ".join(f":{n}" for n in row)
        connection.execute(sa.text(f"INSERT INTO clients ({names}) VALUES ({values})"), row)
    made.upgrade()
    found = made.client("a")
    assert found.evidence == Evidence()
    assert (found.flagged, found.distinct) == (2.0, 9)
    made.close()


@pytest.mark.parametrize("held", [[], ["0000"]])
def test_tables_of_another_revision_are_not_taken_for_this_ones(url: str, held: list[str]) -> None:
    made = Registry(url)
    with made.writing() as connection:
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        for each in held:
            connection.execute(sa.text(f"INSERT INTO alembic_version VALUES ('{each}')"))
    if held:  # a migration that nobody has
        with pytest.raises(UsageError, match="another version"):
            made.upgrade()
    else:
        made.upgrade()
        assert made.clients() == []
    made.close()


@pytest.mark.parametrize("url", ["nonsense", "oracle://x", "mysql+nothing://x"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UsageError, match="no registry at"):
        Registry(url)


def test_a_database_that_is_away_is_one_line_without_its_password() -> None:
    with pytest.raises(RunError, match="can't be reached") as caught:
        Registry("postgresql://ann:hush@127.0.0.1:1/x").upgrade()
    assert "hush" not in str(caught.value)
    assert "hush" not in repr(Registry("postgresql://ann:hush@127.0.0.1:1/x"))


def test_a_wrong_address_does_not_show_its_password() -> None:
    with pytest.raises(UsageError) as caught:
        Registry("oracle://ann:hush@h/x")
    assert "hush" not in str(caught.value)


SECRET, HOST, ROLE = "p@ss:w/rd", "db.internal", "payroll_admin"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://{ROLE}:{SECRET}@{HOST}/guard",
        f"postgresql://{ROLE}:p@ss@{HOST}/guard",
        f"postgresql://{ROLE}:p:ss@{HOST}:54a/guard",
        f"postgresql:/{ROLE}:p/ss@{HOST}/guard",
        f"postgresql://{ROLE}:p%zzss@{HOST}:port/guard",
        f"nonsense://{ROLE}:pss@{HOST}/guard",
    ],
)
def test_an_address_that_can_not_be_read_shows_nothing_of_itself(url: str) -> None:
    with pytest.raises(UsageError, match=r"no registry at that address: .*%40 for @") as caught:
        Registry(url)
    for hidden in ("ss", HOST, ROLE):
        assert hidden not in str(caught.value).replace("address", "").replace("password", "")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("password", ["p/ss", "1/ss", "1?ss", "p%40s%3As", "p:ss"])
def test_passwords_that_can_be_read_are(password: str) -> None:
    url = Registry(f"postgresql://{ROLE}:{password}@{HOST}/guard").url
    assert (url.host, url.database) == (HOST, "guard")
    assert url.password == password.replace("%40", "@").replace("%3A", ":")


@pytest.mark.parametrize(
    ("said", "means"),
    [
        (f'connection to server at "{HOST}" (10.0.0.7), port 5432 failed: FATAL:  password '
         f'authentication failed for user "{ROLE}"', "refuses the user"),
        (f'connection to server at "{HOST}", port 5432 failed: Connection refused\n\tIs the server '
         "running on that host and accepting TCP/IP connections?", "is it running"),
        (f'could not translate host name "{HOST}" to address: Name or service not known',
         "unknown"),
        ('connection to server at "10.0.0.7", port 5432 failed: FATAL:  database "guard" does not '
         "exist", "no such database"),
        (f'FATAL:  no pg_hba.conf entry for host "10.0.0.7", user "{ROLE}"', "refuses the user"),
        ("canceling statement due to statement timeout", "in time"),
        (f'invalid connection option "{SECRET}"', "an option that is none"),
        (f"something new about {ROLE}:{SECRET}@{HOST}:5432", "its own log"),
    ],
)  # fmt: skip
def test_what_a_database_says_is_not_passed_on(
    said: str, means: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = psycopg.ProgrammingError if "option" in said else psycopg.OperationalError

    def connect(*_: object, **__: object) -> None:
        raise kind(said)

    monkeypatch.setattr(psycopg, "connect", connect)
    monkeypatch.setattr(psycopg.Connection, "connect", connect)
    registry = Registry(f"postgresql://{ROLE}:hush@{HOST}:5432/guard")
    with pytest.raises((RunError, UsageError), match=means) as caught:
        registry.upgrade()
    told = str(caught.value)
    assert "guard" in told
    for hidden in (HOST, ROLE, SECRET, "hush", "10.0.0.7", "5432"):
        assert hidden not in told
        assert hidden not in repr(registry)


@pytest.mark.skipif(os.name != "posix", reason="files have no such modes")
def test_only_the_owner_can_read_a_registry(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        folder = tmp_path / "made"
        registry = Registry(f"sqlite:///{folder / 'r.db'}")
        registry.upgrade()
        with registry.writing() as connection:
            connection.execute(sa.select(1))
            files_ = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
        assert files_ == dict.fromkeys(("r.db", "r.db-shm", "r.db-wal"), 0o600)
        assert folder.stat().st_mode & 0o777 == 0o700
        registry.close()
        (folder / "r.db").chmod(0o644)  # as an earlier version made it
        Registry(f"sqlite:///{folder / 'r.db'}").upgrade()
        assert (folder / "r.db").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_the_folder_of_a_new_registry_is_made(tmp_path: Path) -> None:
    made = Registry(f"sqlite:///{tmp_path / 'a' / 'b.db'}")
    made.upgrade()
    made.close()
    assert (tmp_path / "a" / "b.db").exists()


def _keep(registry: Registry, owner: Keys, client: str, **changes: object) -> None:
    registry.commit_to(owner)
    registry.serves("m", "model", "classification", ["a", "b"], "label", None)
    row = {"time": time.time(), "client": client, "query": bytes(16), "kind": "mark", "text": "t",
           "pair": None, "read": "t", "truth": {"label": "a"}, "served": {"label": "b"}, "target": "b",
           "shows": "label",
           "rate": 0.1, "controls": 9, "scope": "client",
           "key": owner.id, "model": "m", **changes}  # fmt: skip
    with registry.writing() as connection:
        connection.execute(sa.insert(marks), [row])
    assert registry.rows(keys)[0]["id"] == owner.id
