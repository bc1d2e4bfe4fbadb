"""The guard's commands, as a user types them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from authority import authority, needed, serving

import tiny
from stillhouse.core.settings import parse
from stillhouse.core.types import Example
from stillhouse.guard.guard import Guard
from stillhouse.guard.keys import new_keys, read_keys
from stillhouse.guard.model import ServedModel
from stillhouse.guard.registry import Registry
from stillhouse.guard.settings import GuardConfig
from stillhouse.guard.simulated import bursty
from stillhouse.guard.tables import events, queries

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guard")
    tiny.save(path / "model", seed=3)
    tiny.save(path / "other", seed=9)
    tiny.reviews(path / "reviews.csv", count=200)
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(tiny.PLAIN[:26], n)) for n in rng.integers(5, 20, 600)]
    (path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'registry.db'}"


def test_keys_are_made_once(call: Call, tmp_path: Path, url: str) -> None:
    code, out, err = call("guard", "keys", tmp_path / "owner.key", "--registry", url)
    assert code == 0, err
    assert read_keys(tmp_path / "owner.key").commitment in out
    code, _, err = call("guard", "keys", tmp_path / "owner.key")
    assert code == 2
    assert "exists" in err


def test_a_client_from_its_key_to_its_end(call: Call, url: str) -> None:
    code, out, err = call("clients", "create", "Ann's shop", "--registry", url, "--queries", 5)
    assert code == 0, err
    key = out.strip()
    assert key.startswith("sh_")
    assert "once" in err
    code, out, _ = call("clients", "list", "--registry", url)
    assert code == 0
    assert "Ann's shop" in out
    assert key not in out
    code, out, _ = call("clients", "list", "--registry", url, "--json")
    assert json.loads(out)[0]["queries"] == 5
    assert "was not flagged" in call("clients", "unflag", "Ann's shop", "--registry", url)[2]
    assert call("clients", "revoke", "Ann's shop", "--registry", url) == (
        0, "", "Ann's shop: revoked\n",
    )  # fmt: skip
    assert "revoked before" in call("clients", "revoke", "Ann's shop", "--registry", url)[2]
    held = Registry(url)
    assert held.identify(key) is None
    held.close()
    code, _, err = call("clients", "revoke", "nobody", "--registry", url)
    assert code == 2
    assert "no client 'nobody'" in err


def test_a_client_is_flagged_by_hand(call: Call, url: str) -> None:
    call("clients", "create", "ann", "--registry", url)
    at = ("--registry", url)
    assert call("clients", "flag", "ann", *at)[0] == 2  # no reason
    for wrong in ("", "two\nlines", "x" * 201):
        code, _, err = call("clients", "flag", "ann", "--why", wrong, *at)
        assert (code, "the reason is one line" in err) == (2, True)
    why = ("--why", "asks for word lists")
    assert call("clients", "flag", "ann", *why, *at) == (0, "", "ann: flagged\n")
    assert "was flagged before" in call("clients", "flag", "ann", *why, *at)[2]
    assert "flagged" in call("clients", "list", *at)[1]
    held = Registry(url)
    assert [row["detail"] for row in held.rows(events, events.c.kind == "flagged")] == [why[1]]
    held.close()
    assert call("clients", "unflag", "ann", *at)[2] == "ann: not flagged any more\n"
    code, _, err = call("clients", "flag", "nobody", *why, *at)
    assert (code, "no client 'nobody'" in err) == (2, True)


@pytest.mark.parametrize("columns", [20, 80, 300])
def test_what_is_copied_from_a_table_is_whole(
    columns: int, call: Call, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    names = ["ann", "[red]the [/b] shop[/red] :smile:", "中文 " * 20 + "end", "x" * 120]
    held = Registry(url)
    held.upgrade()
    ids = [held.create_client(name, queries=10**9)[0].id for name in names]
    held.close()
    code, out, err = call("clients", "list", "--registry", url)
    assert code == 0, err
    for each in (*names, *ids, "client", "charged"):
        assert each in out
    if columns == 300:
        assert len(out.splitlines()) == 5


def test_forgetting_asks_first(call: Call, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call("clients", "create", "ann", "--registry", url)
    monkeypatch.setattr("typer.confirm", _no)
    code, _, err = call("clients", "forget", "ann", "--registry", url)
    assert code == 130, err
    code, _, err = call("clients", "forget", "ann", "--registry", url, "--yes")
    assert code == 0
    assert "0 rows deleted" in err


def _no(*_: object, **__: object) -> None:
    import typer

    raise typer.Abort


def test_learning_says_how_good_the_check_is(call: Call, folder: Path) -> None:
    code, out, err = call(
        "guard", "learn", "--model", folder / "model", "--data", folder / "reviews.csv",
        "--out", folder / "check", "--cache", folder / "cache", "--set", "lr=0.01",
        "--corpus", folder / "text.txt", "--precision", "float32",
    )  # fmt: skip
    assert code == 0, err
    assert "AUC" in out
    assert "tolerance" in out
    assert (folder / "check" / "membership.safetensors").is_file()


def test_bursts_are_learned_from_the_log(call: Call, url: str) -> None:
    registry = Registry(url)
    registry.upgrade()
    ann = registry.create_client("ann")[0].id
    odd = bursty(np.random.default_rng(0), (1, 4000), 0.05, 5)[0].tolist()
    rows = [
        {"time": float(n), "client": ann, "query": n.to_bytes(16, "big"), "model": "m", "units": 1,
         "odd": each, "text": None, "pair": None}
        for n, each in enumerate(odd)
    ]  # fmt: skip
    with registry.writing() as connection:
        connection.execute(sa.insert(queries), rows)
    registry.close()
    code, out, err = call("guard", "bursts", "--registry", url)
    assert code == 0, err
    assert "taken for honest" in out
    assert "guard.check.burst (50) is enough" in out
    code, out, err = call(
        "guard", "bursts", "--registry", url, "--client", "ann", "--burst", 1, "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["questions"] == 4000
    assert found["flagged"] == ["ann"]
    assert 5 <= found["bound"] <= 15
    code, _, err = call("guard", "bursts", "--registry", url, "--burst", 0)
    assert code == 2
    assert "burst" in err


def test_a_verdict_and_its_check(call: Call, folder: Path, tmp_path: Path, url: str) -> None:
    served(folder, tmp_path, url)
    words = [
        "verify", "--suspect", folder / "other", "--control", folder / "model", "--registry", url,
        "--key", tmp_path / "owner.key", "--out", tmp_path / "v", "--precision", "float32",
    ]  # fmt: skip
    code, out, err = call(*words)
    assert code == 0, err
    assert "precision: float32\n" in (tmp_path / "v" / "config.yaml").read_text()
    assert "other" in out
    assert "p" in out
    assert "is asked" in err or "are asked" in err
    assert "what this rests on" in out
    assert "the owner's word" in out
    code, out, _ = call(*words, "--json")
    assert json.loads(out)["flow"] == "verify"
    code, out, _ = call("guard", "check-verdict", tmp_path / "v")
    assert code == 0
    assert "FAIL" not in out
    assert "What this does not show" in out
    assert "no public key known from elsewhere" in out
    public = read_keys(tmp_path / "owner.key").public
    code, out, _ = call("guard", "check-verdict", tmp_path / "v", "--public-key", public)
    assert code == 0
    assert "ok    the public key is the known one" in out
    assert "no public key known" not in out
    code, out, _ = call("guard", "check-verdict", tmp_path / "v", "--head", "00" * 32)
    assert code == 1
    assert "FAIL  the known head" in out
    (tmp_path / "v" / "record.sig").write_text("00")
    code, out, _ = call("guard", "check-verdict", tmp_path / "v")
    assert code == 1
    assert "FAIL  the record is signed" in out
    (tmp_path / "shown").mkdir()
    code, _, err = call("report", tmp_path / "v", "--out", tmp_path / "shown" / "again.html")
    assert code == 0, err
    if os.name == "posix":  # they have customers' questions
        held = [tmp_path / "shown" / "again.html", tmp_path / "v", *(tmp_path / "v").rglob("*")]
        assert [path.name for path in held if path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize("words", [("verify", "--suspect", "s"), ("guard", "learn", "--out", "o"),
                                   ("serve", "m")])  # fmt: skip
def test_a_precision_is_one_that_there_is(words: tuple[str, ...], call: Call) -> None:
    more = ("--model", "m", "--data", "d") if "learn" in words else ()
    code, _, err = call(*words, *more, "--precision", "int4")
    assert (code, "bf16" in err) == (2, True)


def test_a_password_in_an_address_is_not_shown(call: Call) -> None:
    url = "postgresql://ann:p@ss:word@db.internal/guard"
    code, out, err = call("clients", "list", "--registry", url)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    for hidden in ("p@ss", "ss:w", "word@", "ann", "db.internal"):
        assert hidden not in err


def served(folder: Path, path: Path, url: str) -> Path:
    """A registry with marks, and its owner's key."""
    new_keys(path / "owner.key")
    registry = Registry(url)
    registry.upgrade()
    client = registry.create_client("ann")[0].id
    model = ServedModel(folder / "model")
    config = parse(GuardConfig, {"marks": {"rate": 0.1, "early": 0}})
    with Guard(config, read_keys(path / "owner.key"), registry, model.about) as guard:
        guard.answer(client, [Example(text) for text, _ in tiny.sentences(200)], model.answers)
    return path / "owner.key"


@needed
def test_heads_are_sealed_stamped_and_published(
    call: Call, folder: Path, tmp_path: Path, url: str
) -> None:
    at = ["--registry", url]
    code, _, err = call("guard", "heads", "--out", tmp_path / "h.json", *at)
    assert (code, "no registry" in err) == (2, True)
    key = served(folder, tmp_path, url)
    tsa = authority(tmp_path / "tsa")
    code, out, err = call("guard", "heads", "--seal", "--key", key, "--json", *at)
    assert code == 0, err
    held = json.loads(out)
    assert sum(each["head"]["decisions"] for each in held) > 20
    written = ["--out", tmp_path / "h.json", "--request", tmp_path / "h.tsq"]
    code, out, err = call("guard", "heads", *written, "--published", "a newspaper", *at)
    assert code == 0, err
    assert "a newspaper" in out
    assert json.loads((tmp_path / "h.json").read_text())["hash"] == held[-1]["hash"]
    (tmp_path / "h.tsr").write_bytes(tsa.stamp((tmp_path / "h.tsq").read_bytes()))
    code, out, err = call("guard", "heads", "--stamp", tmp_path / "h.tsr", *at)
    assert code == 0, err
    assert "Tiny" in out
    assert "without a public root" in out
    with serving(tsa) as address:
        code, out, err = call("guard", "heads", "--tsa", address, *at, "--json")
    assert code == 0, err
    assert len(json.loads(out)[-1]["stamps"]) == 2
    for words, said in (
        (["--number", 99], "no head 99"), (["--stamp", "nowhere.tsr"], "can't read nowhere.tsr"),
        (["--stamp", tmp_path / "h.json"], "no time-stamp response"),
    ):  # fmt: skip
        code, _, err = call("guard", "heads", *words, *at)
        assert (code, said in err, len(err.strip().splitlines())) == (2, True, 1), err
    code, _, err = call("guard", "heads", "--tsa", address, *at)  # it is gone
    assert (code, "gives no time stamp" in err) == (1, True), err


@needed
def test_a_blind_verdict(call: Call, folder: Path, tmp_path: Path, url: str) -> None:
    at = ["--registry", url, "--key", served(folder, tmp_path, url)]
    questions, answers = tmp_path / "q.json", tmp_path / "a.json"
    code, out, err = call("guard", "blind-questions", "--out", questions, *at)
    assert code == 0, err
    assert "neither marks nor answers" in out
    call("guard", "keys", tmp_path / "third.key")
    ask = [
        "guard", "blind-ask", "--questions", questions, "--suspect", folder / "other",
        "--name", "Dr. Lee", "--take", 40, "--key", tmp_path / "third.key", "--out", answers,
    ]  # fmt: skip
    code, out, err = call(*ask)
    assert code == 0, err
    digest = out.split()[-1]
    code, _, err = call(*ask)
    assert (code, "exists" in err) == (2, True)
    code, out, err = call("verify", "--answers", answers, "--out", tmp_path / "v", *at)
    assert code == 0, err
    assert "third party" in out
    code, out, err = call("guard", "check-verdict", tmp_path / "v", "--answers", digest)
    assert code == 0, out + err
    code, _, err = call(
        "verify", "--answers", answers, "--suspect", "x", "--out", tmp_path / "w", *at
    )  # fmt: skip
    assert (code, "name no suspects" in err) == (2, True), err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve"], "give a model's folder"),
        (["serve", "nowhere", "--workers", "2"], "PostgreSQL"),
        (["serve", "nowhere", "--set", "guard.marks.rat=0.1"], "rat"),
        (["serve", "nowhere", "--shows", "nothing"], "nothing"),
        (["verify"], "--suspect"),
        (["verify", "--suspect", "x", "--released", "soon"], "released"),
        (["verify", "--answers", "nowhere.json", "--key", "own.key"], "can't read nowhere.json"),
        (["guard", "heads"], "no registry"),
        (["guard", "heads", "--registry", "sqlite:///some.db", "--out", "h"], "no log head yet"),
        (["clients", "list", "--registry", "nonsense"], "no registry at"),
        (["clients", "list", "--registry", "sqlite:///typo.db"], "there is no registry typo.db"),
        (["clients", "forget", "ann", "--registry", "sqlite:///some.db"], "ann"),
        (["clients", "create", "ann", "--registry", "sqlite:///text.txt"], "is no registry"),
        (["clients", "create", "ann", "--per-s", "nan"], "finite"),
        (["clients", "create", "a\nb"], "one line"),
        (["serve", "nowhere", "--host", "192.0.2.1"], "192.0.2.1:8000 can't be served at"),
        (["guard", "check-verdict", "nowhere"], "no finished verification"),
        (["guard", "learn", "--out", "x"], "--model"),
        (["verify", "--suspect", "x", "--key", "nowhere.key"], "nowhere.key"),
    ],
)
def test_wrong_calls_are_one_line(
    words: list[str], said: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Registry("sqlite:///some.db").upgrade()
    new_keys("own.key")
    (tmp_path / "text.txt").write_text("no database" * 100)
    code, _, err = call(*words)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
