"""The command that audits, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tiny

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audit")
    tiny.save(path / "victim", seed=3)
    tiny.save(path / "public", seed=4)
    tiny.reviews(path / "reviews.csv")
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(tiny.WORDS[:40], n)) for n in rng.integers(5, 20, 300)]
    (path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    return path


def words(folder: Path, out: str, *more: str) -> list[str]:
    return [
        "audit", "--victim", str(folder / "victim"), "--data", str(folder / "reviews.csv"),
        "--thief", str(folder / "public"), "--corpus", str(folder / "text.txt"),
        "--queries", "random", "--budget", "0.2,0.5", "--seeds", "1",
        "--cache", str(folder / "cache"), "--out", str(folder / out), *more,
    ]  # fmt: skip


def test_an_audit_from_its_question_to_its_page(call: Call, folder: Path) -> None:
    code, out, err = call(*words(folder, "run"))
    assert code == 0, err
    assert f"{folder / 'victim'} is asked" in err
    assert "only" in err
    assert "must be yours" in err
    assert "For $0.00" in out
    assert "random" in out
    assert (folder / "run" / "report.html").is_file()
    code, out, err = call(*words(folder, "run", "--json"))
    assert code == 0
    assert json.loads(out)["flow"] == "audit"
    assert "finished already" in err


@pytest.mark.slow
def test_choosing_queries_and_one_view(call: Call, folder: Path) -> None:
    code, out, _ = call(*words(folder, "chosen", "--choose", "both", "--views", "label", "--json"))
    assert code == 0
    copies = json.loads(out)["copies"]
    assert [(c["selection"], c["view"]) for c in copies] == [
        ("random", "label"), ("random", "label"), ("both", "label"), ("both", "label"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--budget", "a lot"), "--budget takes numbers"),
        (("--budget", "1,0.5"), "budgets rise"),
        (("--views", "odds"), "view"),
        (("--queries", "wikis"), "wiki"),
        (("--queries", "pool"), "queries.pool"),
        (("--thief", "no-such/model/here"), "no model folder"),
        (("--corpus", "./no-such.txt"), "check the path of the corpus"),
        (("--victim", "./no-such.yaml"), "API's description"),
    ],
)
def test_what_can_not_be_is_one_line(
    call: Call, folder: Path, more: tuple[str, ...], told: str
) -> None:
    code, _, err = call(*words(folder, "no", *more))
    assert code == 2
    last = err.strip().splitlines()[-1]
    assert told in last
    assert not (folder / "no").exists()


def test_dear_questions_are_asked_first(call: Call, folder: Path, tmp_path: Path) -> None:
    """Nothing is sent before the user agrees: the address is nobody's."""
    (tmp_path / "api.yaml").write_text(
        "url: http://127.0.0.1:9/answer\nbody: {text: '{text}'}\nread: {label: label}\n"
    )
    dear = ("--victim", str(tmp_path / "api.yaml"), "--set", "tariff.free=0",
            "--set", "tariff.tiers=[{per_thousand: 1000}]")  # fmt: skip
    code, _, err = call(*words(folder, "dear", *dear))
    assert code == 1
    assert "Go on?" in err
    assert not (folder / "dear").exists()
