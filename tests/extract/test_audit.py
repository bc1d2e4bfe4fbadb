"""The sweep from queries to a record, of a model of ours and of the same behind an API."""

from __future__ import annotations

import html
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from serving import serving

import killing
import tiny
from stillhouse.core.audit_results import AuditRecord
from stillhouse.core.errors import DataError, UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.data.sources import Pool
from stillhouse.evaluation.evaluate import score_rows
from stillhouse.extract.answers import Answers
from stillhouse.extract.audit import audit
from stillhouse.extract.client import OverBudget
from stillhouse.extract.config import AuditConfig, Kind
from stillhouse.extract.leaks import public_features
from stillhouse.extract.ledger import name_of
from stillhouse.extract.record import audit_record
from stillhouse.extract.runs import AuditRun, expected, run_audit
from stillhouse.extract.setup import Audit, victim_of
from stillhouse.extract.sweep import lines
from stillhouse.extract.thief import Thief, read
from stillhouse.flows.stages import Trained
from stillhouse.models.load import load_classifier, load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audit")
    tiny.save(path / "victim", seed=3)
    tiny.save(path / "public", seed=4)
    tiny.reviews(path / "reviews.csv")
    rng = np.random.default_rng(0)
    words = [*tiny.GOOD, *tiny.BAD, *tiny.PLAIN[:20]]
    lines = [" ".join(rng.choice(words, n)) + " ." for n in rng.integers(5, 20, 400)]
    (path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    return path


def config(folder: Path, **changes: Any) -> AuditConfig:
    values: dict[str, Any] = {
        "victim": str(folder / "victim"),
        "data": {"path": str(folder / "reviews.csv"), "max_length": 32},
        "queries": {"budgets": [0.25, 1.0], "of": 80, "corpus": str(folder / "text.txt")},
        "thieves": [{"model": str(folder / "public"),
                     "training": {"steps": 4, "batch_size": 16, "precision": "float32"}}],
        "label": {"precision": "float32"},
        "evaluation": {"seeds": [0, 1], "resamples": 50},
        "tariff": {"free": 10},
        "cache": str(folder / "cache"),
    }  # fmt: skip
    return parse(AuditConfig, {**values, **changes})


@pytest.fixture(scope="module")
def record(folder: Path) -> AuditRecord:
    return run_audit(config(folder), folder / "run", progress=Silent()).record


def different(asking: AuditConfig, *kinds: Kind) -> int:
    """How many different queries its seeds draw."""
    made = Audit(asking, Silent())
    drawn = [each for kind in kinds for seed in asking.evaluation.seeds
             for each in made.stream(kind, seed, made.most)]  # fmt: skip
    return len({name_of(each) for each in drawn})


def test_every_cell_is_there(record: AuditRecord) -> None:
    found = [(c.kind, c.view, c.queries) for c in record.copies]
    assert found == [
        ("wiki", "probabilities", 20), ("wiki", "probabilities", 80),
        ("random", "probabilities", 20), ("random", "probabilities", 80),
        ("wiki", "label", 20), ("wiki", "label", 80),
    ]  # fmt: skip
    for copy in record.copies:
        assert len(copy.seeds) == 2
        assert copy.units == copy.queries
        assert copy.money == pytest.approx((copy.queries - 10) / 1000)
        assert copy.retention == pytest.approx(copy.score / record.victim.score)
    assert [change.view for change in record.changes] == ["probabilities", "label"]
    assert record.changes[0].gain is None
    assert record.changes[1].gain is not None
    assert AuditRecord.model_validate_json(record.model_dump_json(by_alias=True)) == record


@pytest.mark.slow
def test_the_same_behind_an_api_is_the_same_curve(
    folder: Path, tmp_path: Path, record: AuditRecord
) -> None:
    model, tokenizer = (
        load_classifier(str(folder / "victim")),
        load_tokenizer(str(folder / "victim")),
    )

    def answer(text: str, pair: str | None) -> dict[str, Any]:
        inputs = tokenizer(text, pair, return_tensors="pt", truncation=True, max_length=32)
        with torch.no_grad():
            shares = model(**inputs).logits.softmax(-1)[0].tolist()
        return {"scores": dict(zip(tiny.SENTIMENT, shares, strict=True))}

    trouble = ["", "500", "429", "slow", "cut", "no json"]
    with serving(answer, trouble) as server:
        described = {
            "url": server.url, "body": {"texts": "{texts}"}, "batch": 8, "timeout_s": 0.4,
            "read": {"answers": "out", "probabilities": "scores"},
        }  # fmt: skip
        (tmp_path / "api.yaml").write_text(yaml.safe_dump(described))
        asking = config(folder, victim=str(tmp_path / "api.yaml"), cache=str(tmp_path / "cache"))
        found = audit_record(audit(asking, tmp_path / "run", progress=Silent()))
        paid = len(server.paid)
        again = audit_record(audit(asking, tmp_path / "run", progress=Silent()))
        assert len(server.paid) == paid
    assert again.copies == found.copies
    assert found.victim.charged == paid
    assert found.victim.score == record.victim.score
    for mine, theirs in zip(found.copies, record.copies, strict=True):
        assert mine.seeds == theirs.seeds
        assert (mine.agreement, mine.money) == (theirs.agreement, theirs.money)


def test_a_finished_audit_is_read_and_its_page_drawn(folder: Path, record: AuditRecord) -> None:
    page = folder / "run" / "report.html"
    assert record.sentence in html.unescape(page.read_text(encoding="utf-8"))
    before = page.read_bytes()
    page.unlink()
    assert run_audit(config(folder), folder / "run", progress=Silent()).record == record
    assert page.read_bytes() == before
    assert AuditRun.open(folder / "run").record == record
    with pytest.raises(UsageError, match=r"its enough differ"):
        run_audit(config(folder, enough=0.5), folder / "run", progress=Silent())


def test_seeds_may_share_one_draw(folder: Path, tmp_path: Path) -> None:
    queries = config(folder).queries.model_dump() | {"kinds": ["random"], "fresh": False}
    few = config(folder, queries=queries, views=["label"])
    found = audit(few, tmp_path / "run", progress=Silent())
    assert [len({*each}) for each in found.swept.spent.values()] == [1, 1]
    bill = expected(few)
    assert (bill.queries, bill.earnest) == (80, False)
    assert expected(config(folder)).queries == different(config(folder), "wiki", "random")


def test_reported_rows_are_never_asked(folder: Path, tmp_path: Path) -> None:
    """Not from a corpus that has them, either."""
    reported = [example.text for example in Audit(config(folder), Silent()).splits.reported]
    others = [f"{' '.join(tiny.PLAIN[i % 9 : i % 9 + 6])} {i}" for i in range(60)]
    (tmp_path / "leaky.txt").write_text("\n".join([*reported, *others]), encoding="utf-8")
    queries = {"corpus": str(tmp_path / "leaky.txt"), "kinds": ["wiki"], "of": 60}
    leaky = Audit(config(folder, queries=queries), Silent())
    drawn = [example.text for example in leaky._drawn("wiki", 0, 70)]
    assert set(drawn) & set(reported)
    for count in (20, 50):
        asked = [example.text for example in leaky.stream("wiki", 0, count)]
        assert asked == [text for text in drawn if text not in reported][:count]
    assert "wiki queries that are reported rows are not asked: leaky.txt has some" in leaky.notes


def test_reported_rows_of_a_pool_are_told_and_never_asked(folder: Path, tmp_path: Path) -> None:
    reported = [example.text for example in Audit(config(folder), Silent()).splits.reported]
    others = [f"own film {i}" for i in range(8)]
    (tmp_path / "leaky.txt").write_text("\n".join([*reported[:5], *others]), encoding="utf-8")
    queries = {"kinds": ["pool"], "pool": str(tmp_path / "leaky.txt"), "of": 8,
               "corpus": str(folder / "text.txt")}  # fmt: skip
    leaky = Audit(config(folder, queries=queries), Silent())
    assert {example.text for example in leaky.stream("pool", 0, 8)} == set(others)
    assert "5 of the pool's texts are reported on: they are not asked" in leaky.notes


def test_a_thief_learns_from_what_its_view_shows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Answers] = {}
    learn = Thief.learn

    def spied(
        self: Thief, title: str, seed: int, queries: Pool, answers: Answers, *rest: Any
    ) -> Trained:
        told[title] = answers
        return learn(self, title, seed, queries, answers, *rest)

    monkeypatch.setattr(Thief, "learn", spied)
    views = ["probabilities", "probabilities:1", "label"]
    queries = {"budgets": [0.25], "of": 80, "corpus": str(folder / "text.txt"), "kinds": ["wiki"]}
    audit(config(folder, queries=queries, views=views), tmp_path / "run", progress=Silent())
    whole, rounded, label = (told[f"wiki-{view.replace(':', '-')}-0-0.25"] for view in views)
    assert whole.probabilities_NK is not None
    assert rounded.probabilities_NK is not None
    assert (rounded.probabilities_NK == whole.probabilities_NK.round(1)).all()
    assert (rounded.probabilities_NK != whole.probabilities_NK).any()
    assert label.probabilities_NK is None
    assert label.labels_N is not None
    assert (label.labels_N == whole.probabilities_NK.argmax(1)).all()


def test_what_is_asked_is_said_before(folder: Path, tmp_path: Path) -> None:
    """At most, and by the price list's own units."""
    with serving(labelled) as server:
        described = {"url": server.url, "body": {"texts": "{texts}"}, "batch": 16,
                     "read": {"answers": "out", "label": "label"}}  # fmt: skip
        (tmp_path / "api.yaml").write_text(yaml.safe_dump(described))
        asking = config(
            folder, victim=str(tmp_path / "api.yaml"), views=["label"],
            tariff={"characters": 10, "free": 0}, cache=str(tmp_path / "c"),
        )  # fmt: skip
        bill = expected(asking)
        found = audit(asking, tmp_path / "run", progress=Silent())
        assert found.charged == len(server.paid) == bill.queries
        units = sum(-(-len(text) // 10) for text, _ in server.paid)
        assert bill.money == pytest.approx(units / 1000)
        again = expected(asking)
        assert (again.queries, again.money) == (0, 0.0)
        assert f"({bill.queries:,} more are answered already)" in again.sentence
        more = config(folder, **asking.model_dump(include={"victim", "cache"}), views=["label"],
                      queries=asking.queries.model_dump(exclude={"pool"}) | {"budgets": [2.0]},
                      limit=bill.queries + 10)  # fmt: skip
        with pytest.raises(UsageError, match=f"{bill.queries} queries were sent before, and these"):
            expected(more)


def test_what_one_answer_to_all_scores_is_told(folder: Path, record: AuditRecord) -> None:
    made = Audit(config(folder), Silent())
    labels = made.splits.reported.labels.tolist()
    most = max(map(labels.count, set(labels))) / len(labels)
    assert record.victim.constant == pytest.approx(most)


def test_a_pools_columns_are_its_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text("Review Body\nfine film\n", encoding="utf-8")
    queries = {"kinds": ["pool"], "pool": str(tmp_path / "odd.csv"), "of": 1,
               "corpus": str(folder / "text.txt")}  # fmt: skip
    with pytest.raises(DataError, match="a pool's columns are called text and pair"):
        Audit(config(folder, queries=queries), Silent())


def test_a_folder_is_nobodys_until_all_that_is_given_fits(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("one film\n", encoding="utf-8")
    queries = {"kinds": ["pool"], "pool": str(tmp_path / "few.txt"), "of": 80,
               "corpus": str(folder / "text.txt")}  # fmt: skip
    with pytest.raises(UsageError, match="gives 1 different pool queries"):
        run_audit(config(folder, queries=queries), tmp_path / "run", progress=Silent())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seeds", [[], [0, 0]])
def test_seeds_are_distinct(folder: Path, seeds: list[int]) -> None:
    with pytest.raises(UsageError, match="distinct"):
        config(folder, evaluation={"seeds": seeds})


def test_what_an_api_does_not_show_is_known_before_it_is_paid(folder: Path, tmp_path: Path) -> None:
    with serving(labelled) as server:
        described = {"url": server.url, "body": {"texts": "{texts}"}, "batch": 16,
                     "read": {"answers": "out", "label": "label"}}  # fmt: skip
        (tmp_path / "api.yaml").write_text(yaml.safe_dump(described))
        asking = config(folder, victim=str(tmp_path / "api.yaml"), cache=str(tmp_path / "c"))
        with pytest.raises(DataError, match="shows no probabilities"):
            audit(asking, tmp_path / "run", progress=Silent())
        assert len(server.paid) < 40


def test_leaks_are_told(record: AuditRecord) -> None:
    assert {leak.name: leak.leaks for leak in record.leaks} == {
        "digits": True, "hidden size": False, "frozen encoder": False,
    }  # fmt: skip


def test_a_thief_has_nothing_of_the_victim(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the victim"):
        audit(config(folder, thieves=[{"model": str(folder / "victim")}]), tmp_path / "a")
    with pytest.raises(UsageError, match="none of the victim's weights"):
        config(folder, thieves=[{"layers": 2}])
    assert not (tmp_path / "a").exists()


def test_a_thief_reads_queries_as_its_model_does(folder: Path) -> None:
    made = Audit(config(folder), Silent())
    with victim_of(made.config, made) as (_, task):
        thief = Thief(made.config.thieves[0], task, made.store, Silent(), max_length=32,
                      trust_remote_code=False)  # fmt: skip
    data, model = thief.data(made.stream("wiki", 0, 30), "queries"), thief.make(0)
    entropy_N, states_NH = read(model, data, "float32")
    expected_NH = public_features(model, data)["the mean of its tokens"]
    np.testing.assert_allclose(states_NH, expected_NH, atol=1e-5)
    logp_NK = torch.from_numpy(score_rows(model, data, task)).log_softmax(-1)
    np.testing.assert_allclose(entropy_N, -(logp_NK.exp() * logp_NK).sum(-1), atol=1e-5)


@pytest.mark.slow
def test_queries_are_chosen_with_the_thief_one_has(folder: Path, tmp_path: Path) -> None:
    queries = config(folder).queries.model_dump(exclude={"pool"}) | {
        "kinds": ["wiki"], "choose": ["uncertainty", "k-centre", "both"], "candidates": 2.0,
    }  # fmt: skip
    asking = config(folder, queries=queries, views=["probabilities"])
    found = audit(asking, tmp_path / "run", progress=Silent())
    lines = {cell.line.selection: cell.line for cell in found.swept.trained}
    assert list(lines) == ["random", "uncertainty", "k-centre", "both"]
    by_cell = {(c.line.selection, c.queries): t for c, t in found.swept.trained.items()}
    first = [by_cell[how, 20][0].scores_NK for how in lines]
    for other in first[1:]:  # nothing is chosen before there is a thief
        np.testing.assert_array_equal(other, first[0])
    last = [by_cell[how, 80][0].scores_NK for how in lines]
    for i, mine in enumerate(last):
        assert all(not np.array_equal(mine, other) for other in last[i + 1 :])
    record = audit_record(found)
    assert [c.selection for c in record.copies][::2] == list(lines)
    assert expected(asking).queries == different(asking, "wiki") + 3 * 2 * 60


def test_only_classifiers_doubt(folder: Path, tmp_path: Path) -> None:
    rows = [(text, f"{len(text) / 10:.1f}") for text, _ in tiny.sentences(60)]
    tiny.write_csv(tmp_path / "values.csv", ["text", "label"], rows)
    tiny.save(tmp_path / "victim", labels=["value"], seed=5)
    queries = config(folder).queries.model_dump(exclude={"pool"}) | {"kinds": ["wiki"]}
    values = {"victim": str(tmp_path / "victim"), "data": {"path": str(tmp_path / "values.csv")}}
    found = audit(config(folder, queries=queries, **values), tmp_path / "run", progress=Silent())
    record = audit_record(found)
    assert record.task == "regression"
    assert {copy.view for copy in record.copies} == {"value"}
    queries |= {"choose": ["both"]}
    with pytest.raises(UsageError, match="classifier's doubt"):
        audit(config(folder, queries=queries, **values), tmp_path / "no", progress=Silent())
    assert not (tmp_path / "no").exists()


def labelled(text: str, pair: str | None) -> dict[str, Any]:
    del pair
    words = text.split()
    good, bad = (sum(word in held for word in words) for held in (tiny.GOOD, tiny.BAD))
    return {"label": "positive" if good > bad else "negative"}


def test_an_api_of_labels_only(folder: Path, tmp_path: Path) -> None:
    with serving(labelled) as server:
        described = {"url": server.url, "body": {"texts": "{texts}"}, "batch": 8,
                     "read": {"answers": "out", "label": "label"}}  # fmt: skip
        (tmp_path / "api.yaml").write_text(yaml.safe_dump(described))
        asking = config(folder, victim=str(tmp_path / "api.yaml"), views=["label"],
                        cache=str(tmp_path / "cache"))  # fmt: skip
        record = run_audit(asking, tmp_path / "run", progress=Silent()).record
        assert record.victim.score == 1.0
        with pytest.raises(DataError, match="shows no probabilities"):
            audit(config(folder, victim=str(tmp_path / "api.yaml"), views=["probabilities"],
                         cache=str(tmp_path / "cache")), tmp_path / "no")  # fmt: skip


def test_a_label_that_nobody_knew_is_one_line(folder: Path, tmp_path: Path) -> None:
    asked = 0

    def answer(text: str, pair: str | None) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return {"label": "odd"} if asked > 40 else labelled(text, pair)

    with serving(answer) as server:
        described = {"url": server.url, "body": {"texts": ["{text}"]},
                     "read": {"answers": "out", "label": "label"}}  # fmt: skip
        (tmp_path / "api.yaml").write_text(yaml.safe_dump(described))
        asking = config(folder, victim=str(tmp_path / "api.yaml"), views=["label"],
                        cache=str(tmp_path / "cache"))  # fmt: skip
        with pytest.raises(DataError, match="answers odd, which neither") as raised:
            audit(asking, tmp_path / "run", progress=Silent())
    assert "\n" not in str(raised.value)


def test_the_budget_ends_an_audit_and_more_lets_it_go_on(folder: Path, tmp_path: Path) -> None:
    with serving(labelled, ["", "500", "cut"]) as server:
        described = {"url": server.url, "body": {"texts": "{texts}"}, "batch": 8,
                     "read": {"answers": "out", "label": "label"}}  # fmt: skip
        (tmp_path / "api.yaml").write_text(yaml.safe_dump(described))
        settings = {"victim": str(tmp_path / "api.yaml"), "views": ["label"],
                    "cache": str(tmp_path / "cache")}  # fmt: skip
        with pytest.raises(OverBudget, match="the limit of 100 queries is reached"):
            audit(config(folder, limit=100, **settings), tmp_path / "run", progress=Silent())
        assert len(server.paid) <= 100
        found = audit(config(folder, **settings), tmp_path / "run", progress=Silent())
        assert found.charged == len(server.paid)


@pytest.mark.slow
def test_a_killed_audit_pays_nothing_twice(folder: Path, tmp_path: Path) -> None:
    """Killed while the API is being asked, and while a thief is trained."""
    with serving(labelled) as server:
        described = {"url": server.url, "body": {"texts": "{texts}"}, "batch": 4,
                     "requests_per_s": 40,
                     "read": {"answers": "out", "label": "label"}}  # fmt: skip
        (tmp_path / "api.yaml").write_text(yaml.safe_dump(described))
        asking = config(folder, victim=str(tmp_path / "api.yaml"), views=["label"],
                        cache=str(tmp_path / "cache"))  # fmt: skip
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(asking.model_dump(mode="json")))
        command = ("audit", "--config", str(tmp_path / "config.yaml"),
                   "--out", str(tmp_path / "run"), "--yes")  # fmt: skip
        for enough in (lambda: len(server.paid) > 30, (tmp_path / "run" / "checkpoints").exists):
            running = killing.fork(killing.COMMAND, *command)
            while not enough():
                assert not running.is_over(), "it ended before it was killed"
                time.sleep(0.01)
            running.kill()
        record = run_audit(asking, tmp_path / "run", progress=Silent()).record
        under_way = 2 * 4  # a batch when it was killed, twice
        assert len(server.paid) - len(set(server.paid)) <= under_way
        fresh = config(folder, victim=str(tmp_path / "api.yaml"), views=["label"],
                       cache=str(tmp_path / "other"))  # fmt: skip
        assert record.copies == audit_record(audit(fresh, tmp_path / "whole")).copies


def test_everything_may_be_crossed(folder: Path) -> None:
    asking = config(folder, cross=True, thieves=[{"model": "a"}, {"source": "b", "layers": 1}])
    found = lines(asking, asking.shown("classification"))
    assert len(found) == len(set(found)) == 2 * 2 * 2
    star = lines(asking.model_copy(update={"cross": False}), asking.shown("classification"))
    assert [(each.kind, each.view, each.thief) for each in star] == [
        ("wiki", "probabilities", 0), ("random", "probabilities", 0), ("wiki", "label", 0),
        ("wiki", "probabilities", 1),
    ]  # fmt: skip
    assert set(star) < set(found)
