"""The search end to end on a tiny model: rounds, rewinding, controls, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import tiny
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.flows.stages import load_trained
from stillhouse.models.load import load_classifier
from stillhouse.models.masks import apply_masks
from stillhouse.numerics import masks as numerics
from stillhouse.tickets import search
from stillhouse.tickets.config import TicketsConfig
from stillhouse.tickets.find import Found, find
from stillhouse.tickets.prunable import output_weights, prunable
from stillhouse.tickets.runs import TicketsRun, run_tickets
from stillhouse.tickets.search import masks_path, theta_path
from stillhouse.training.sparse import load_masks, load_sparse, save_sparse


def config(folder: Path, **changes: Any) -> TicketsConfig:
    values: dict[str, Any] = {
        "model": str(folder / "model"),
        "data": {"path": str(folder / "reviews.csv"), "max_length": 32},
        "training": {"steps": 6, "batch_size": 16, "lr": 1e-2, "evaluations": 3,
                     "precision": "float32", "select": "last"},
        "prune": {"sparsity": 0.5, "rounds": 2},
        "evaluation": {"seeds": [0, 1], "resamples": 50},
        "cache": str(folder / "cache"),
    }  # fmt: skip
    for section, change in changes.items():
        inner = isinstance(values.get(section), dict)
        values[section] = {**values[section], **change} if inner else change
    return parse(TicketsConfig, values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tickets")
    tiny.save(path / "model")
    tiny.reviews(path / "reviews.csv")
    return path


def states(found: Found) -> dict[str, Tensor]:
    """The trained weights of the best seed's last ticket."""
    model = load_trained(found.best, found.gold.make(found.best.seed))
    return dict(model.state_dict())


@pytest.fixture(scope="module")
def run(folder: Path) -> TicketsRun:
    return run_tickets(
        config(folder, evaluation={"controls_at": "all"}), folder / "run", progress=Silent()
    )


def test_every_kind_is_there_at_every_round(run: TicketsRun) -> None:
    found = [(each.kind, each.round) for each in run.record.levels]
    controls = [(k, r) for r in (1, 2) for k in ("ticket", "random", "reinitialised")]
    assert found == [("dense", 0), *controls]
    for each in run.record.levels:
        assert len(each.seeds) == 2
        assert len(each.early_steps) == 2
        assert (each.gain is None) == (each.kind == "dense")


def test_exactly_the_asked_number_of_weights_is_left(run: TicketsRun) -> None:
    whole = run.record.prunable
    assert whole == 2 * (4 * 32 * 32 + 2 * 32 * 64) + 32 * 32
    for number, share in ((1, 0.5**0.5), (2, 0.5)):
        levels = [each for each in run.record.levels if each.round == number]
        assert {each.kept for each in levels} == {round(share * whole)}
        for seed in (0, 1):
            masks, facts = load_masks(masks_path(run.out, seed, number))
            assert sum(int(m.sum()) for m in masks.values()) == round(share * whole)
            assert facts["round"] == number


def test_what_is_pruned_stays_pruned(run: TicketsRun) -> None:
    first, second = (load_masks(masks_path(run.out, 0, r))[0] for r in (1, 2))
    for name, mask in second.items():
        assert not (mask & ~first[name]).any()


def test_the_ticket_is_theta_0_where_its_mask_is_and_0_elsewhere(
    run: TicketsRun, folder: Path
) -> None:
    before = load_classifier(str(folder / "model")).state_dict()
    ticket = load_classifier(str(run.out / "ticket")).state_dict()
    masks, _ = load_masks(run.out / "ticket" / "masks.safetensors")
    for name, tensor in before.items():
        expected = tensor * masks[name] if name in masks else tensor
        assert torch.equal(ticket[name], expected), name


def test_the_trained_ticket_survives_saving_and_loading(run: TicketsRun) -> None:
    masks, _ = load_masks(run.out / "model" / "masks.safetensors")
    model = load_classifier(str(run.out / "model"))
    state = model.state_dict()
    for name, mask in masks.items():
        assert torch.count_nonzero(state[name][~mask]) == 0
        assert torch.count_nonzero(state[name][mask]) == mask.sum()
    again = tiny.model(seed=7)
    found = load_sparse(run.out / "model-sparse.safetensors", again)
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert run.record.storage.sparse < run.record.storage.dense
    assert (run.out / "model-sparse.safetensors").stat().st_size == run.record.storage.sparse


def test_the_search_is_found_again(run: TicketsRun, folder: Path) -> None:
    again = run_tickets(
        config(folder, evaluation={"controls_at": "all"}), run.out, progress=Silent()
    )
    assert again.record == run.record
    with pytest.raises(UsageError, match="another run"):
        run_tickets(config(folder), run.out, progress=Silent())


def test_rewound_weights_are_theta_0_however_long_theta_j_trained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each round starts from, seen where the loop gets it."""
    import stillhouse.flows.stages as stages

    began: dict[str, dict[str, Tensor]] = {}
    held: dict[str, dict[str, Tensor]] = {}
    real = stages.fit

    def spy(model: Any, *args: Any, log: Any, masks: Any, **more: Any) -> Any:
        began[log.labels["run"]] = {n: t.clone() for n, t in model.state_dict().items()}
        held[log.labels["run"]] = masks
        return real(model, *args, log=log, masks=masks, **more)

    monkeypatch.setattr(stages, "fit", spy)
    found = find(config(folder, evaluation={"seeds": [0]}), tmp_path / "run")
    theta = found.gold.make(0).state_dict()
    for role in ("dense-0", "ticket-1", "ticket-2", "random-2"):
        for name, tensor in theta.items():
            assert torch.equal(began[role][name], tensor), (role, name)
    other = began["reinitialised-2"]["bert.encoder.layer.0.intermediate.dense.weight"]
    assert not torch.equal(other, theta["bert.encoder.layer.0.intermediate.dense.weight"])
    for name, mask in held["ticket-2"].items():
        assert torch.equal(held["reinitialised-2"][name], mask)
        assert not torch.equal(held["random-2"][name], mask)
        assert held["random-2"][name].sum() == mask.sum()
    trained = states(found)
    assert not torch.equal(trained["classifier.weight"], theta["classifier.weight"])


def test_late_rewinding_starts_from_step_k_with_k_steps_less(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stillhouse.flows.stages as stages

    seen: dict[str, dict[str, Tensor]] = {}
    starts: dict[str, int] = {}
    real = stages.fit

    def spy(model: Any, *args: Any, log: Any, **more: Any) -> Any:
        seen[log.labels["run"]] = {n: t.clone() for n, t in model.state_dict().items()}
        starts[log.labels["run"]] = more["start"]
        return real(model, *args, log=log, **more)

    monkeypatch.setattr(stages, "fit", spy)
    found = find(
        config(folder, prune={"rewind": 2, "rounds": 1}, evaluation={"seeds": [0]}),
        tmp_path / "run",
    )
    assert starts == {"dense-0": 0, "ticket-1": 2, "random-1": 2, "reinitialised-1": 2}
    theta_0 = found.gold.make(0).state_dict()
    from stillhouse.training import checkpoint

    kept = checkpoint.load(theta_path(tmp_path / "run", 0))
    assert kept is not None
    name = "bert.encoder.layer.1.output.dense.weight"
    assert not torch.equal(kept[0][name], theta_0[name])
    for role in ("ticket-1", "random-1"):
        assert torch.equal(seen[role][name], kept[0][name])


def test_without_rewinding_a_round_goes_on_from_the_one_before(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stillhouse.flows.stages as stages

    ends: dict[str, dict[str, Tensor]] = {}
    begins: dict[str, dict[str, Tensor]] = {}
    real = stages.fit

    def spy(model: Any, *args: Any, log: Any, **more: Any) -> Any:
        role = log.labels["run"]
        begins[role] = {n: t.clone() for n, t in model.state_dict().items()}
        result = real(model, *args, log=log, **more)
        ends[role] = {n: t.clone() for n, t in model.state_dict().items()}
        return result

    monkeypatch.setattr(stages, "fit", spy)
    find(config(folder, prune={"rewind": "none"}, evaluation={"seeds": [0]}), tmp_path / "run")
    for before, after in (("dense-0", "ticket-1"), ("ticket-1", "ticket-2")):
        for name, tensor in ends[before].items():
            assert torch.equal(begins[after][name], tensor), (after, name)


@pytest.mark.slow
@pytest.mark.parametrize("score", ["magnitude", "movement", "gradient", "fisher", "random"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_every_score_prunes_to_the_count(
    folder: Path, tmp_path: Path, score: str, scope: str
) -> None:
    asked = {"score": score, "scope": scope, "rounds": 1, "score_rows": 20}
    found = find(config(folder, prune=asked, evaluation={"seeds": [0]}), tmp_path / "run")
    masks, _ = load_masks(masks_path(tmp_path / "run", 0, 1))
    total = sum(m.numel() for m in masks.values())
    assert sum(int(m.sum()) for m in masks.values()) == round(0.5 * total)
    densities = {round(float(m.float().mean()), 2) for m in masks.values()}
    assert (densities == {0.5}) == (scope == "layer") or score == "random"
    assert len(found.rungs) == 4


def test_what_is_pruned_stays_pruned_whatever_scores_it(folder: Path, tmp_path: Path) -> None:
    """Random scores are as high where a weight is gone as where it is not."""
    asked = {"score": "random", "rounds": 2}
    alone = {"seeds": [0], "controls": ()}
    find(config(folder, prune=asked, evaluation=alone), tmp_path / "run")
    first, second = (load_masks(masks_path(tmp_path / "run", 0, r))[0] for r in (1, 2))
    assert not any((mask & ~first[name]).any() for name, mask in second.items())


def test_movement_trains_all_alike(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sums need every weight's own gradient; controls train on the same path, because the two
    draw dropout in other orders."""
    seen: dict[str, bool] = {}
    real = search.train

    def spy(title: str, seed: int, make: Any, stages: Any, **more: Any) -> Any:
        seen[title] = stages[0].fast
        return real(title, seed, make, stages, **more)

    monkeypatch.setattr(search, "train", spy)
    asked = {"score": "movement", "rounds": 1}
    find(config(folder, prune=asked, evaluation={"seeds": [0]}), tmp_path / "run")
    assert seen == dict.fromkeys(("dense-0", "ticket-1", "random-1", "reinitialised-1"), False)


def test_the_last_layer_is_pruned_at_half_the_rate_where_it_is_prunable(
    folder: Path, tmp_path: Path
) -> None:
    asked = {"include": ("*.dense.weight", "classifier.weight"), "rounds": 1, "scope": "layer"}
    find(config(folder, prune=asked, evaluation={"seeds": [0], "controls": ()}), tmp_path / "run")
    masks, _ = load_masks(masks_path(tmp_path / "run", 0, 1))
    assert int(masks["classifier.weight"].sum()) == round(0.75 * 64)
    assert numerics.density({"x": masks["bert.pooler.dense.weight"]}) == 0.5


@pytest.mark.slow
def test_a_killed_search_ends_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    """Stopped in each training in turn, by an error in the place of a kill."""
    asked = config(folder, prune={"score": "movement"}, evaluation={"seeds": [0]})
    whole = find(asked, tmp_path / "whole")
    stops = 0
    while True:
        try:
            part = find(asked, tmp_path / "part", progress=Breaking(1))
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == 4
    for mine, theirs in zip(part.rungs, whole.rungs, strict=True):
        assert (mine.trained.scores_NK == theirs.trained.scores_NK).all()
    for name, tensor in torch_state(whole).items():
        assert torch.equal(torch_state(part)[name], tensor), name


def torch_state(found: Found) -> dict[str, Tensor]:
    from stillhouse.training import checkpoint

    held = checkpoint.load(found.best.path)
    assert held is not None
    return held[0]


class Breaking(Silent):
    """Ends the run at the beginning of the training after `allowed` whole ones."""

    def __init__(self, allowed: int) -> None:
        self.left = allowed

    def stage(self, title: str, total: int, unit: str) -> Any:
        if not title.startswith("training "):
            return super().stage(title, total, unit)
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().stage(title, total, unit)


@pytest.mark.parametrize("sparsity", [0.0, 1.0, 1.5, -0.1])
def test_a_sparsity_outside_its_range_is_one_line(folder: Path, sparsity: float) -> None:
    with pytest.raises(UsageError, match=r"prune\.sparsity") as caught:
        config(folder, prune={"sparsity": sparsity})
    assert "\n" not in str(caught.value)


def test_what_can_never_work_is_refused_before_training(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weight's name matches 'decoder"):
        find(config(folder, prune={"include": ("decoder.*",)}), tmp_path / "a")
    with pytest.raises(UsageError, match="nothing is left to prune"):
        find(config(folder, prune={"exclude": ("bert.*",)}), tmp_path / "b")
    with pytest.raises(UsageError, match="can't rewind to step 6 of 6"):
        find(config(folder, prune={"rewind": 6}), tmp_path / "c")
    with pytest.raises(UsageError, match="patience may end the first training before step 3"):
        find(config(folder, prune={"rewind": 3}, training={"patience": 1}), tmp_path / "d")
    with pytest.raises(UsageError, match="leaves no weight"):
        find(config(folder, prune={"sparsity": 0.999999}), tmp_path / "e")
    assert not any((tmp_path / name).exists() for name in "abcde")


def test_one_pattern_is_a_list_of_one(folder: Path) -> None:
    assert config(folder, prune={"include": "*.query.weight"}).prune.include == ("*.query.weight",)


def test_a_page_that_a_kill_prevented_is_drawn(run: TicketsRun, folder: Path) -> None:
    page = run.out / "report.html"
    before = page.read_bytes()
    assert "attention.output.dense" in page.read_text(encoding="utf-8")
    page.unlink()
    again = run_tickets(
        config(folder, evaluation={"controls_at": "all"}), run.out, progress=Silent()
    )
    assert again.record == run.record
    assert page.read_bytes() == before


def test_a_masked_language_models_ticket_is_smaller_on_disk(tmp_path: Path) -> None:
    """Its embeddings are its output's weights too, and are stored once."""
    model: Any = tiny.model(masked=True)
    weights = prunable(model)
    assert set(output_weights(model)) == {"bert.embeddings.word_embeddings.weight"}
    masks = {name: torch.rand(w.shape) < 0.1 for name, w in weights.items()}
    apply_masks(model, masks)
    model.save_pretrained(tmp_path / "dense")
    save_sparse(tmp_path / "sparse.safetensors", model, masks)
    dense = (tmp_path / "dense" / "model.safetensors").stat().st_size
    assert (tmp_path / "sparse.safetensors").stat().st_size < 0.8 * dense
    with safe_open(tmp_path / "sparse.safetensors", framework="pt") as file:
        assert "cls.predictions.decoder.weight" not in {*file.keys()}
    other = tiny.model(masked=True, seed=5)
    load_sparse(tmp_path / "sparse.safetensors", other)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
