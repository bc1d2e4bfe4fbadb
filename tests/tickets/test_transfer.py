"""Transfer of tickets: the source's mask on the target's first weights and training."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.results import Gain
from stillhouse.core.settings import parse
from stillhouse.core.ticket_results import Cell, TransferRecord
from stillhouse.tickets.config import TicketsConfig, TransferConfig
from stillhouse.tickets.runs import TicketsRun, run_tickets, run_transfer
from stillhouse.tickets.search import masks_path
from stillhouse.tickets.transfer import _sentence
from stillhouse.training.sparse import load_masks

pytestmark = pytest.mark.slow


def search(folder: Path, name: str, **changes: Any) -> TicketsRun:
    values: dict[str, Any] = {
        "model": str(folder / "model"),
        "data": {"path": str(folder / "reviews.csv"), "max_length": 32},
        "training": {"steps": 5, "batch_size": 16, "lr": 1e-2, "precision": "float32",
                     "select": "last"},
        "prune": {"sparsity": 0.5, "rounds": 1},
        "evaluation": {"seeds": [0, 1], "resamples": 50, "controls": ()},
        "cache": str(folder / "cache"),
    }  # fmt: skip
    for section, change in changes.items():
        inner = isinstance(values.get(section), dict)
        values[section] = {**values[section], **change} if inner else change
    return run_tickets(parse(TicketsConfig, values), folder / name, progress=Silent())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("transfer")
    tiny.save(path / "model")
    tiny.reviews(path / "reviews.csv")
    tiny.reviews(path / "others.csv", seed=4)
    text = "".join(f"{words} .\n" for words, _ in tiny.sentences(600, 5))
    (path / "words.txt").write_text(text, encoding="utf-8")
    masked = path / "masked"
    model = tiny.model(masked=True)
    model.load_state_dict(tiny.model().state_dict(), strict=False)
    model.save_pretrained(masked)
    tiny.tokenizer().save_pretrained(masked)
    search(path, "reviews")
    search(path, "others", data={"path": str(path / "others.csv")}, prune={"score": "random"})
    words = {"path": str(path / "words.txt"), "max_length": 16}
    search(path, "words", task="masked_lm", model=str(masked), data=words)
    return path


@pytest.fixture(scope="module")
def matrix(folder: Path) -> TransferRecord:
    runs = [str(folder / name) for name in ("reviews", "others", "words")]
    config = parse(TransferConfig, {"runs": runs})
    return run_transfer(config, folder / "matrix", progress=Silent())


def test_every_source_meets_every_target(matrix: TransferRecord) -> None:
    assert matrix.names == ["reviews", "others", "words"]
    pairs = [(cell.source, cell.target) for cell in matrix.cells]
    assert sorted(pairs) == sorted((s, t) for s in matrix.names for t in matrix.names)
    for cell in matrix.cells:
        assert (cell.gain is None) == (cell.source == cell.target)
        assert len(cell.seeds) == 2
    assert matrix.metrics == ["accuracy"] * 3
    assert (matrix.overlaps[0][0], matrix.overlaps[0][1]) == (1.0, matrix.overlaps[1][0])
    assert matrix.overlaps[0][1] < 0.6


def test_the_diagonal_is_the_targets_own_search(matrix: TransferRecord, folder: Path) -> None:
    own = TicketsRun.open(folder / "others").record
    ticket = next(level for level in own.levels if level.kind == "ticket")
    cell = next(c for c in matrix.cells if (c.source, c.target) == ("others", "others"))
    assert cell.seeds == ticket.seeds
    assert matrix.dense[1] == pytest.approx(own.levels[0].score)


def test_what_trains_is_the_sources_mask_on_the_targets_first_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stillhouse.flows.stages as stages

    seen: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
    real = stages.fit

    def spy(model: Any, *args: Any, log: Any, masks: Any, seed: int, **more: Any) -> Any:
        if seed == 0:
            weights = {n: t.clone() for n, t in model.state_dict().items()}
            seen[log.labels["run"]] = (weights, masks)
        return real(model, *args, log=log, masks=masks, seed=seed, **more)

    monkeypatch.setattr(stages, "fit", spy)
    config = parse(TransferConfig, {"runs": [str(folder / n) for n in ("reviews", "words")]})
    run_transfer(config, tmp_path / "run", progress=Silent())
    assert set(seen) == {"words-on-reviews", "reviews-on-words"}
    weights, masks = seen["words-on-reviews"]
    source, _ = load_masks(masks_path(folder / "words", 0, 1))
    assert all(torch.equal(masks[name], mask) for name, mask in source.items())
    assert not any("pooler" in name for name in masks)
    theta = tiny.model().state_dict()
    for name in source:
        assert torch.equal(weights[name], theta[name]), name
    assert any("pooler" in name for name in load_masks(masks_path(folder / "reviews", 0, 1))[0])
    assert not any("pooler" in name for name in seen["reviews-on-words"][1])


def test_a_page_is_drawn(folder: Path, matrix: TransferRecord) -> None:
    page = (folder / "matrix" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert matrix.sentence in html.unescape(page)


def test_a_finished_transfer_is_read_again(folder: Path, matrix: TransferRecord) -> None:
    asked = [str(folder / name) for name in matrix.names]
    again = run_transfer(
        parse(TransferConfig, {"runs": asked}), folder / "matrix", progress=Silent()
    )
    assert again == matrix


def test_masks_of_another_architecture_are_refused(folder: Path, tmp_path: Path) -> None:
    tiny.save(folder / "wide", hidden=48)
    search(folder, "wider", model=str(folder / "wide"))
    config = parse(TransferConfig, {"runs": [str(folder / "reviews"), str(folder / "wider")]})
    says = r"of another architecture: .* is \(32, 32\) there"
    with pytest.raises(UsageError, match=says) as caught:
        run_transfer(config, tmp_path / "run", progress=Silent())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_is_no_search_is_refused(folder: Path, tmp_path: Path) -> None:
    runs = [str(folder / "reviews"), str(folder / "model")]
    with pytest.raises(UsageError, match="no finished search"):
        run_transfer(parse(TransferConfig, {"runs": runs}), tmp_path / "run", progress=Silent())
    asked = {"runs": [str(folder / "reviews"), str(folder / "others")], "seeds": [7]}
    with pytest.raises(UsageError, match="share the seeds 0, 1"):
        run_transfer(parse(TransferConfig, asked), tmp_path / "run", progress=Silent())


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("sparser", {"prune": {"sparsity": 0.8}}, "keeps 50.0% .* sparser 20.0%: .* one sparsity"),
        ("going on", {"prune": {"rewind": "none"}}, "going on did not rewind"),
        ("queries", {"prune": {"include": "*.query.weight"}}, "prune weights of other names"),
        ("elsewhere", {"model": "others"}, "start from other weights"),
    ],
)
def test_tickets_that_cannot_be_compared_are_refused(
    folder: Path, tmp_path: Path, name: str, changes: dict[str, Any], says: str
) -> None:
    if "model" in changes:
        tiny.save(folder / "other model", seed=9)
        changes = {"model": str(folder / "other model")}
    search(folder, name, **changes)
    config = parse(TransferConfig, {"runs": [str(folder / "reviews"), str(folder / name)]})
    with pytest.raises(UsageError, match=says) as caught:
        run_transfer(config, tmp_path / "run", progress=Silent())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_ticket_without_a_pooler_leaves_more_and_says_so(matrix: TransferRecord) -> None:
    remaining = {(cell.source, cell.target): cell.remaining for cell in matrix.cells}
    assert remaining["others", "reviews"] == pytest.approx(0.5, abs=1e-4)
    whole = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    expected = (0.5 * whole + 32 * 32) / (whole + 32 * 32)
    assert remaining["words", "reviews"] == pytest.approx(expected, abs=1e-3)
    assert any("words leaves" in warning for warning in matrix.warnings)
    assert not any("ticket of others leaves" in warning for warning in matrix.warnings)


def test_a_source_that_was_searched_again_is_noticed(folder: Path, tmp_path: Path) -> None:
    runs = [str(folder / "reviews"), str(folder / "others")]
    config = parse(TransferConfig, {"runs": runs, "seeds": [0]})
    run_transfer(config, tmp_path / "run", progress=Silent())
    record = folder / "others" / "record.json"
    kept = record.read_text(encoding="utf-8")
    record.write_text(kept + " ", encoding="utf-8")
    try:
        with pytest.raises(UsageError, match="changed"):
            run_transfer(config, tmp_path / "run", progress=Silent())
    finally:
        record.write_text(kept, encoding="utf-8")


def test_a_source_that_is_spared_the_hardest_task_is_not_the_best_for_that() -> None:
    lost = {("a", "b"): 0.03, ("a", "c"): 0.03, ("b", "a"): 0.4, ("b", "c"): 0.01,
            ("c", "a"): 0.38, ("c", "b"): 0.01}  # fmt: skip
    cells = [
        Cell(source=s, target=t, remaining=0.3, score=0.5, interval=(0.4, 0.6), seeds=[0.5],
             gain=None if s == t else Gain(value=-lost[s, t], interval=(-1, 1), p_value=0.5))
        for s in "abc" for t in "abc"
    ]  # fmt: skip
    said = _sentence(["a", "b", "c"], cells)
    assert said.startswith("The ticket of c moves best")
    assert "a -1.0" in said
    assert "c +1.0" in said
