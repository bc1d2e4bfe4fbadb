"""An audit of span question answering: texts are all that is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from serving import serving

import tiny
from stillhouse.core.audit_results import AuditRecord
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.data.columns import Columns
from stillhouse.data.rows import ingest
from stillhouse.data.sources import Part, Pool
from stillhouse.evaluation.evaluate import score_rows
from stillhouse.extract.audit import audit
from stillhouse.extract.config import AuditConfig
from stillhouse.extract.record import audit_record
from stillhouse.models.load import load_span_model, load_tokenizer
from stillhouse.tasks.span import Span, span_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spans")
    tiny.save(path / "public", seed=4)
    torch.manual_seed(0)
    victim = load_span_model(str(path / "public"), fresh_head=True)
    victim.save_pretrained(path / "victim")
    tiny.tokenizer().save_pretrained(path / "victim")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        words = rng.choice([*tiny.PLAIN[2:26], *tiny.GOOD], 24).tolist()
        answers = {"text": [words[number % 24]], "answer_start": [0]}
        question = " ".join(rng.choice(tiny.PLAIN[:20], 5))
        rows.append({"question": question, "context": " ".join(words), "answers": answers})
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [" ".join(rng.choice(tiny.WORDS[:40], n)) for n in rng.integers(22, 40, 300)]
    (path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    return path


def config(folder: Path, **changes: Any) -> AuditConfig:
    values: dict[str, Any] = {
        "victim": str(folder / "victim"),
        "data": {"path": str(folder / "rows.jsonl"), "max_length": 48},
        "queries": {"budgets": [0.5, 1.0], "of": 60, "corpus": str(folder / "text.txt")},
        "thieves": [{"model": str(folder / "public"),
                     "training": {"steps": 12, "batch_size": 16, "lr": 5e-3,
                                  "precision": "float32"}}],
        "label": {"precision": "float32"},
        "evaluation": {"seeds": [0, 1], "resamples": 50},
        "cache": str(folder / "cache"),
    }  # fmt: skip
    return parse(AuditConfig, {**values, **changes})


@pytest.fixture(scope="module")
def record(folder: Path) -> AuditRecord:
    return audit_record(audit(config(folder), folder / "run", progress=Silent()))


def test_questions_are_asked_of_paragraphs(record: AuditRecord) -> None:
    assert (record.task, record.metric) == ("span", "f1")
    assert [(c.kind, c.view, c.queries) for c in record.copies] == [
        ("wiki", "text", 30), ("wiki", "text", 60), ("random", "text", 30), ("random", "text", 60),
    ]  # fmt: skip
    for each in record.asked:
        assert each.text.endswith("?")
        assert each.pair is not None
        assert each.answer in each.pair
    assert record.leaks == []
    assert [change.view for change in record.changes] == ["text"]


def test_thieves_learn_from_texts(record: AuditRecord) -> None:
    """More than a head that was never trained agrees with another such."""
    assert max(copy.agreement for copy in record.copies) > 0.15


@pytest.mark.slow
def test_the_same_behind_an_api_is_the_same_curve(
    folder: Path, tmp_path: Path, record: AuditRecord
) -> None:
    model, tokenizer = (
        load_span_model(str(folder / "victim")),
        load_tokenizer(str(folder / "victim")),
    )
    asked = 0

    def answer(text: str, pair: str | None) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        row = {"text": text, "pair": pair}
        held = ingest([(1, row)], "q", Columns("text", "pair"), tmp_path / f"q{asked}",
                      labelled=False)  # fmt: skip
        data = span_data(Pool([Part(held, held.kept, labelled=False)]), tokenizer,
                         tmp_path / "s", max_length=48, progress=Silent(), title="q")  # fmt: skip
        return {"span": Span().texts(score_rows(model, data, Span(), fast=True), data)[0]}

    with serving(answer) as server:
        described = {
            "url": server.url, "body": {"texts": "{texts}", "pairs": "{pairs}"}, "batch": 8,
            "read": {"answers": "out", "text": "span"}, "timeout_s": 20,
        }  # fmt: skip
        (tmp_path / "api.yaml").write_text(yaml.safe_dump(described))
        asking = config(folder, victim=str(tmp_path / "api.yaml"), cache=str(tmp_path / "cache"))
        found = audit_record(audit(asking, tmp_path / "run", progress=Silent()))
        assert found.victim.charged == len(server.paid)
    assert found.victim.score == record.victim.score
    assert [c.seeds for c in found.copies] == [c.seeds for c in record.copies]
    assert [c.agreement for c in found.copies] == [c.agreement for c in record.copies]
