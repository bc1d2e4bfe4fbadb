"""Verification: a copy is found out, independent models are not, anybody can reckon it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from guarded import Made
from scipy import stats

import tiny
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.seeding import generator
from stillhouse.core.settings import parse
from stillhouse.core.types import Example
from stillhouse.core.verdict_results import VerdictRecord
from stillhouse.guard.checking import check
from stillhouse.guard.guard import Guard
from stillhouse.guard.keys import Keys
from stillhouse.guard.model import About, Truth
from stillhouse.guard.registry import Kept, Registry
from stillhouse.guard.settings import VerifyConfig
from stillhouse.guard.snapshot import Snapshot, take
from stillhouse.guard.suspects import changed
from stillhouse.guard.tables import verdicts
from stillhouse.guard.trial import likely
from stillhouse.guard.verdict import judge
from stillhouse.guard.verify import run_verify

CHOICES = ["contradiction", "entailment", "neutral"]
ABOUT = About("model-1", "our model", "classification", CHOICES)
SPANS = About("model-2", "our reader", "span")
QUESTIONS = 900


def truth(text: str) -> int:
    """What the model says of a question: something of its letters."""
    return sum(map(ord, text)) % 3


def said(examples: Any) -> list[Truth]:
    return [Truth(probabilities_K=np.eye(3)[truth(e.text)]) for e in examples]


def stolen(make: Made, *names: str, **marks: Any) -> Guard:
    """A guard whose clients have asked."""
    guard = make(about=ABOUT, marks={"rate": 0.05, "early": 0, "controls": 5} | marks)
    for name in names:
        client = guard.registry.create_client(name)[0].id
        asked = [Example(f"{name} asks about film number {i}") for i in range(QUESTIONS)]
        for at in range(0, QUESTIONS, 100):
            guard.answer(client, asked[at : at + 100], said)
    guard.flush()
    return guard


def answers_of(
    snapshot: Snapshot, learned: float, *, error: float = 0.1, seed: int = 0, name: str = "suspect",
    client: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What a copy says that learned a share of the marks (of one client), and errs otherwise:
    drawn by the question, as the order in which questions are kept differs from run to run."""

    def say(form: str, kept: Kept) -> str:
        rng = generator(seed, form, kept.text or "")
        mine = client is None or snapshot.clients[kept.client] == client
        if kept.kind == "mark" and mine and rng.random() < learned:
            return kept.target
        true = kept.truth["label"]
        return str(rng.choice(CHOICES)) if rng.random() < error else str(true)

    forms = {form: [say(form, kept) for kept in snapshot.kept] for form in ("as asked", "changed")}
    return {"name": name, "fingerprint": name, "control": False, "said": forms}


def config(*suspects: str, **changes: Any) -> VerifyConfig:
    return parse(VerifyConfig, {"suspects": suspects or ["suspect"], **changes})


def judged(guard: Guard, keys: Keys, *answers: dict[str, Any], **changes: Any) -> VerdictRecord:
    asked = config(**changes)
    snapshot = take(guard.registry, keys)
    return judge(snapshot, answers, asked, keys.marking.hex(), keys.public)


def test_a_copy_is_found_out(make: Made, keys: Keys) -> None:
    guard = stolen(make, "ann")
    snapshot = take(guard.registry, keys)
    record = judged(guard, keys, answers_of(snapshot, 0.6))
    (suspect,) = record.suspects
    assert suspect.verdict == "consistent with a copy"
    assert suspect.clients == ["ann"]
    assert "is consistent with a copy of our model, learned from answers to ann" in record.sentence
    trial = suspect.trials[0]
    assert trial.adjusted < 1e-6
    assert trial.rekeyed == 1 / 1000
    assert trial.conditional < 1e-2
    assert trial.interval[0] > 0.3


def test_an_independent_model_is_not(make: Made, keys: Keys) -> None:
    guard = stolen(make, "ann")
    snapshot = take(guard.registry, keys)
    for seed in range(5):
        record = judged(guard, keys, answers_of(snapshot, 0.0, error=0.4, seed=seed))
        assert record.suspects[0].verdict == "no evidence"
        assert "No evidence that suspect is a copy" in record.sentence


@pytest.mark.slow
def test_p_values_of_independent_models_are_uniform_or_larger(make: Made, keys: Keys) -> None:
    guard = stolen(make, "ann", controls=10)
    snapshot = take(guard.registry, keys)
    answers = [answers_of(snapshot, 0.0, error=0.9, seed=s, name=str(s)) for s in range(60)]
    found = judged(guard, keys, *answers)
    p_values = [each.trials[0].p_value for each in found.suspects]
    assert stats.kstest(p_values, "uniform", alternative="greater").pvalue > 0.01
    assert min(each.adjusted for s in found.suspects for each in s.trials) > 0.01
    rekeyed = [each.trials[0].rekeyed for each in found.suspects]
    assert stats.kstest(rekeyed, "uniform", alternative="greater").pvalue > 0.01


def test_whose_answers_were_learned_is_told(make: Made, keys: Keys) -> None:
    guard = stolen(make, "ann", "bob")
    snapshot = take(guard.registry, keys)
    record = judged(guard, keys, answers_of(snapshot, 0.7, client="bob"))
    assert record.suspects[0].clients == ["bob"]


@pytest.mark.slow
def test_of_many_suspects_one_small_p_is_no_copy(make: Made, keys: Keys) -> None:
    guard = stolen(make, "ann")
    snapshot = take(guard.registry, keys)
    weak = answers_of(snapshot, 0.08, error=0.1, seed=1)
    alone = judged(guard, keys, weak).suspects[0].trials[0].p_value
    beside = judged(guard, keys, weak, *(answers_of(snapshot, 0, seed=s) for s in range(30)))
    assert beside.suspects[0].trials[0].p_value == alone
    assert beside.suspects[0].trials[0].adjusted >= min(1, 2 * alone)


@pytest.mark.slow
def test_what_is_little_among_many_is_no_verdict(make: Made, keys: Keys) -> None:
    """A p-value that would do alone doesn't among sixty."""
    guard = stolen(make, "ann")
    snapshot = take(guard.registry, keys)

    def weak(seed: int) -> dict[str, Any]:
        found = answers_of(snapshot, 0.12, error=0.1, seed=seed)
        found["said"]["changed"] = found["said"]["as asked"]
        return found

    def p_of(seed: int) -> float:
        return judged(guard, keys, weak(seed)).suspects[0].trials[0].adjusted

    seed = next(seed for seed in range(300) if 1e-4 < p_of(seed) < 5e-4)
    assert judged(guard, keys, weak(seed)).suspects[0].verdict == "consistent with a copy"
    others = [answers_of(snapshot, 0.0, seed=s, name=str(s)) for s in range(15)]
    assert judged(guard, keys, weak(seed), *others).suspects[0].verdict == "no evidence"


def test_few_marks_are_called_few(make: Made, keys: Keys) -> None:
    guard = make(about=ABOUT, marks={"rate": 0.02, "early": 0, "controls": 4})
    client = guard.registry.create_client("ann")[0].id
    guard.answer(client, [Example(f"film {i}") for i in range(60)], said)
    guard.flush()
    whole = take(guard.registry, keys)
    kinds = ["mark"] * 2 + ["control"] * 4  # whichever were drawn
    few = [replace(k, kind=kind) for k, kind in zip((whole.kept * 6)[:6], kinds, strict=True)]
    snapshot = replace(whole, kept=few)
    asked = config()
    found = [answers_of(snapshot, 1.0)]
    record = judge(snapshot, found, asked, keys.marking.hex(), keys.public)
    assert record.suspects[0].verdict == "too few marks"


def test_an_independent_control_that_comes_out_a_copy_is_warned_of(make: Made, keys: Keys) -> None:
    guard = stolen(make, "ann")
    snapshot = take(guard.registry, keys)
    control = answers_of(snapshot, 0.8, name="other") | {"control": True}
    found = judged(guard, keys, answers_of(snapshot, 0.8), control)
    assert "said to be independent" in found.warnings[0]
    assert "no independent model" in judged(guard, keys, answers_of(snapshot, 0)).warnings[0]


def test_the_model_itself_is_no_copy_and_that_is_said(make: Made, keys: Keys) -> None:
    guard = stolen(make, "ann")
    snapshot = take(guard.registry, keys)
    itself = answers_of(snapshot, 0) | {"fingerprint": snapshot.model}
    found = judged(guard, keys, itself)
    assert found.suspects[0].verdict == "no evidence"
    assert "is the served model itself" in found.warnings[0]


def test_spans(make: Made, keys: Keys) -> None:
    guard = make(about=SPANS, marks={"rate": 0.2, "early": 0, "controls": 3})
    client = guard.registry.create_client("ann")[0].id
    passages = [
        f"the book number {i} was written by Ann Lee in the town of Bath" for i in range(300)
    ]
    asked = [Example(f"who wrote it ({i})?", p) for i, p in enumerate(passages)]
    for at in range(0, 300, 100):
        guard.answer(client, asked[at : at + 100], lambda es: [Truth(text="Ann Lee") for _ in es])
    guard.flush()
    snapshot = take(guard.registry, keys)
    assert all(kept.target not in ("Ann", "Lee") for kept in snapshot.kept)
    told = [
        k.target if k.kind == "mark" and i % 2 else "Ann Lee" for i, k in enumerate(snapshot.kept)
    ]
    copy = {
        "name": "s",
        "fingerprint": "s",
        "control": False,
        "said": {"as asked": told, "changed": told},
    }
    assert judged(guard, keys, copy).suspects[0].verdict == "consistent with a copy"
    honest = ["in the town"] * len(told)
    none = copy | {"said": {"as asked": honest, "changed": honest}}
    assert judged(guard, keys, none).suspects[0].verdict == "no evidence"


def test_changed_questions_are_other_questions() -> None:
    for text in ("a good film", "one", "two words", "x y", " many  words of a text "):
        found = changed(Example(text, "the passage"), 0)
        assert found == changed(Example(text, "the passage"), 0)
        assert found.text != text
        assert found.text
        assert found.pair == "the passage"


# the folder


@pytest.fixture
def verdict(
    make: Made, keys: Keys, folders: Callable[..., Path], tmp_path: Path
) -> tuple[Path, Registry]:
    """A real model tried, by its folder."""
    guard = make(marks={"rate": 0.05, "early": 0})
    client = guard.registry.create_client("ann")[0].id
    asked = [Example(text) for text, _ in tiny.sentences(250)]
    model = tiny_model(folders)
    for at in range(0, 250, 50):
        guard.answer(client, asked[at : at + 50], model)
    guard.flush()
    asked_of = config(str(folders("bert")), controls=[str(folders("roberta"))])
    run_verify(asked_of, guard.registry, keys, tmp_path / "verdict", progress=Silent())
    return tmp_path / "verdict", guard.registry


def tiny_model(folders: Callable[..., Path]) -> Any:
    from stillhouse.guard.model import ServedModel

    return ServedModel(folders("bert"), precision="float32").answers


def test_a_verdict_holds_together(verdict: tuple[Path, Registry]) -> None:
    out, registry = verdict
    assert all(good for _, good in check(out))
    public = VerdictRecord.open(out, "verification").public_key
    assert check(out, public_key=public)[0] == ("the public key is the known one", True)
    assert not check(out, public_key="00" * 32)[0][1]
    (row,) = registry.rows(verdicts)
    assert row["signature"] == (out / "record.sig").read_text().strip()
    page = (out / "report.html").read_text()
    assert "How to follow this" in page
    assert "said to be independent" in page


def test_a_finished_verdict_is_read(
    verdict: tuple[Path, Registry], keys: Keys, folders: Callable[..., Path]
) -> None:
    out, registry = verdict
    before = (out / "record.json").read_bytes()
    asked = config(str(folders("bert")), controls=[str(folders("roberta"))])
    run_verify(asked, registry, keys, out, progress=Silent())
    assert (out / "record.json").read_bytes() == before


def test_a_wrong_key_proves_nothing(verdict: tuple[Path, Registry]) -> None:
    _, registry = verdict
    with pytest.raises(UsageError, match="not the one that served"):
        take(registry, Keys(bytes(32)))


def test_a_suspect_of_other_labels_is_refused(
    verdict: tuple[Path, Registry], keys: Keys, folders: Callable[..., Path], tmp_path: Path
) -> None:
    other = folders("bert", labels=("x", "y", "z"))
    with pytest.raises(UsageError, match="say which is which"):
        run_verify(config(str(other)), verdict[1], keys, tmp_path / "other", progress=Silent())
    spans = tiny.save_spans(tmp_path / "spans")
    with pytest.raises(UsageError, match="is a span"):
        run_verify(config(str(spans)), verdict[1], keys, tmp_path / "third", progress=Silent())


def test_no_marks_no_verdict(make: Made, keys: Keys) -> None:
    guard = make()
    with pytest.raises(UsageError, match="nothing can be proved"):
        take(guard.registry, keys)


def test_a_client_without_marks_is_told(verdict: tuple[Path, Registry], keys: Keys) -> None:
    verdict[1].create_client("bob")
    with pytest.raises(UsageError, match="no mark was made"):
        take(verdict[1], keys, clients=["bob"])


def test_every_suspect_is_in_the_sentence(make: Made, keys: Keys) -> None:
    guard = stolen(make, "ann")
    snapshot = take(guard.registry, keys)
    honest = answers_of(snapshot, 0.0, name="honest")
    found = judged(guard, keys, honest, answers_of(snapshot, 0.8, name="thief"))
    assert "No evidence that honest" in found.sentence
    assert "thief is consistent with a copy" in found.sentence


def test_marks_for_everyone_name_nobody(make: Made, keys: Keys) -> None:
    guard = stolen(make, "ann", scope="everyone")
    snapshot = take(guard.registry, keys)
    found = judged(guard, keys, answers_of(snapshot, 0.8))
    assert "learned from its answers" in found.sentence


@pytest.mark.slow
def test_periods_of_other_odds_are_tested_apart(make: Made, keys: Keys, tmp_path: Path) -> None:
    """A suspect that hits more in one period, in which more was marked, is no copy."""
    guards = [make(about=ABOUT, marks={"rate": rate, "early": 0, "controls": controls})
              for rate, controls in ((0.02, 40), (0.2, 1))]  # fmt: skip
    client = guards[0].registry.create_client("ann")[0].id
    for number, guard in enumerate(guards):
        for at in range(0, 800, 100):
            asked = [Example(f"period {number} film {i}") for i in range(at, at + 100)]
            guard.answer(client, asked, said)
        guard.flush()
    snapshot = take(guards[0].registry, keys)
    told = [
        str(generator(0, kept.text).choice(CHOICES))
        if kept.text.startswith("period 1")
        else kept.truth["label"]
        for kept in snapshot.kept
    ]
    found = {"name": "s", "fingerprint": "s", "control": False,
             "said": {"as asked": told, "changed": told}}  # fmt: skip
    suspect = judged(guards[0], keys, found).suspects[0]
    assert suspect.verdict == "no evidence"
    assert all(each.rekeyed > 0.05 for each in suspect.trials)


def test_what_a_fresh_keys_wrong_answer_would_be() -> None:
    """Of three choices an error is hit by one of the two wrong answers."""
    kept = Kept("c", b"", "mark", "t", None, "t", {"label": "neutral"}, {}, "entailment", "label",
                0.1, 9, "client", "k", "m", 0.0)  # fmt: skip
    assert likely(kept, "contradiction", CHOICES) == 0.5
    assert likely(kept, "neutral", CHOICES) == 0.0
    assert likely(kept, "else", CHOICES) == 0.0


def test_labels_in_another_case_and_by_a_map(
    verdict: tuple[Path, Registry], keys: Keys, folders: Callable[..., Path], tmp_path: Path
) -> None:
    upper = folders("bert", labels=("NEGATIVE", "Positive"))
    run_verify(config(str(upper)), verdict[1], keys, tmp_path / "upper", progress=Silent())
    other = folders("bert", labels=("bad", "good"))
    names = {"bad": "negative", "good": "positive"}
    asked = config(str(other), label_map=names)
    run_verify(asked, verdict[1], keys, tmp_path / "mapped", progress=Silent())


def test_an_address_is_tried_too(
    verdict: tuple[Path, Registry], keys: Keys, tmp_path: Path
) -> None:
    from serving import serving

    described = {"body": {"texts": "{texts}"}, "batch": 20,
                 "read": {"answers": "out", "label": "label"}}  # fmt: skip
    with serving(lambda text, pair: {"label": "positive"}) as server:
        (tmp_path / "api.yaml").write_text(yaml.safe_dump(described | {"url": server.url}))
        asked = config(str(tmp_path / "api.yaml"), cache=str(tmp_path / "cache"))
        record = run_verify(asked, verdict[1], keys, tmp_path / "api", progress=Silent())
    assert record.suspects[0].name == server.url
    assert record.suspects[0].verdict in ("no evidence", "too few marks")
