"""Masks held on weights while they train: exactly 0 through moments, decay, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from stillhouse.core.config import DataConfig, TrainingConfig
from stillhouse.core.errors import RunError
from stillhouse.core.progress import Silent
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import LoopState
from stillhouse.data.sources import load
from stillhouse.flows.common import dataset
from stillhouse.models.masks import apply_masks
from stillhouse.tasks.classification import Classification
from stillhouse.training import checkpoint
from stillhouse.training.loop import FitResult, fit
from stillhouse.training.objective import build
from stillhouse.training.steps import TextForward

NAMES = (
    "bert.encoder.layer.0.attention.self.query.weight",
    "bert.encoder.layer.1.attention.self.value.weight",
    "bert.encoder.layer.0.intermediate.dense.weight",
    "bert.encoder.layer.1.output.dense.weight",
    "bert.pooler.dense.weight",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("masked")
    splits = load(DataConfig(path=str(tiny.reviews(folder / "r.csv"))), folder / "rows")
    return dataset(
        Classification(tiny.SENTIMENT),
        splits.labelled,
        tiny.tokenizer(),
        folder,
        max_length=32,
        progress=Silent(),
        title="rows",
    )


def masks(model: Any, names: tuple[str, ...] = NAMES) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    return {name: torch.rand(shapes[name], generator=draw) > 0.6 for name in names}


def train(model: Any, data: Any, *, fast: bool = True, **options: Any) -> FitResult:
    fields = TrainingConfig.model_fields
    settings = {k: options.pop(k) for k in [*options] if k in fields}
    config = TrainingConfig(
        **{"steps": 10, "batch_size": 16, "lr": 1e-2, "weight_decay": 0.1, "precision": "float32",
           "embeddings": "dense", **settings}
    )  # fmt: skip
    objective = build([TermConfig(kind="gold")], choices=2, signal=None, has_gold=True)
    return fit(
        model, data, objective, None, config, seed=0, forward=TextForward(config, fast=fast),
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("fast", [True, False])
def test_masked_weights_are_zero_after_every_step(data: Any, fast: bool, precision: Any) -> None:
    model = tiny.model()
    held = masks(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen: list[int] = []

    def look(state: LoopState) -> None:
        own = dict(model.named_parameters())
        seen.append(sum(int(torch.count_nonzero(own[n].detach()[~m])) for n, m in held.items()))

    train(model, data, fast=fast, precision=precision, masks=held, callbacks=[look])
    assert seen == [0] * 10
    after = dict(model.named_parameters())
    for name, mask in held.items():  # and what stays does train
        assert float((after[name] != before[name])[mask].float().mean()) > 0.99


def test_the_flat_path_trains_what_the_own_parameters_would(data: Any) -> None:
    flat, own = tiny.model(dropout=0.0), tiny.model(dropout=0.0)
    train(flat, data, masks=masks(flat), clip=0.5, lr=1e-3)
    train(own, data, masks=masks(own), clip=0.5, lr=1e-3, fast=False)
    for name, tensor in own.state_dict().items():
        if name.endswith("key.bias"):  # its gradient is 0 but for rounding
            continue
        torch.testing.assert_close(flat.state_dict()[name], tensor, atol=2e-5, rtol=0, msg=name)


def test_a_masked_training_is_that_of_a_model_without_these_weights(data: Any) -> None:
    """Clipping and moments see nothing of masked weights: the same comes of multiplying the
    weights by their mask in the forward, as autograd sees it."""

    class Product(torch.nn.Module):
        def __init__(self, mask: Tensor) -> None:
            super().__init__()
            self.mask = mask

        def forward(self, weight: Tensor) -> Tensor:
            return weight * self.mask

    plain, product = tiny.model(dropout=0.0), tiny.model(dropout=0.0)
    held = masks(plain)
    apply_masks(product, held)
    for name, mask in held.items():
        module = product.get_submodule(name.removesuffix(".weight"))
        torch.nn.utils.parametrize.register_parametrization(module, "weight", Product(mask.float()))
    train(plain, data, masks=held, clip=0.1, lr=1e-3)
    train(product, data, clip=0.1, lr=1e-3, fast=False)
    for name in held:
        module = product.get_submodule(name.removesuffix(".weight"))
        mine = plain.get_submodule(name.removesuffix(".weight")).weight
        torch.testing.assert_close(mine, module.weight, atol=2e-5, rtol=0, msg=name)


def test_optimizer_state_of_masked_weights_is_zero_in_checkpoints(
    data: Any, tmp_path: Path
) -> None:
    model = tiny.model()
    held = masks(model)
    path = tmp_path / "half.safetensors"
    train(model, data, masks=held, resume=path, checkpoint_s=1e-9, fast=False)
    found = checkpoint.load(path)
    assert found is not None
    for name, mask in held.items():
        for key in (f"optim|{name}|exp_avg", f"optim|{name}|exp_avg_sq", f"model|{name}"):
            assert torch.count_nonzero(found[0][key][~mask]) == 0, key
            assert torch.count_nonzero(found[0][key][mask]) > 0, key


@pytest.mark.parametrize("fast", [True, False])
def test_a_resumed_masked_training_ends_bit_for_bit(data: Any, tmp_path: Path, fast: bool) -> None:
    whole, part = tiny.model(), tiny.model()
    train(whole, data, masks=masks(whole), fast=fast)
    path = tmp_path / "half.safetensors"

    def stop(state: LoopState) -> None:
        state.stop = state.step == 4

    train(part, data, masks=masks(part), fast=fast, resume=path, checkpoint_s=1e-9,
          callbacks=[stop])  # fmt: skip
    again = tiny.model(seed=5)
    result = train(again, data, masks=masks(again), fast=fast, resume=path)
    assert result.steps == 10
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_an_embedding_can_be_masked_too(data: Any) -> None:
    model = tiny.model()
    name = "bert.embeddings.word_embeddings.weight"
    held = masks(model, (name,))
    train(model, data, masks=held, embeddings="rows")
    assert torch.count_nonzero(model.state_dict()[name][~held[name]]) == 0


def test_masks_that_do_not_fit_are_refused(data: Any) -> None:
    model = tiny.model()
    with pytest.raises(ValueError, match="no weight encoder"):
        train(model, data, masks={"encoder.weight": torch.ones(2, 2, dtype=torch.bool)})
    name = NAMES[0]
    with pytest.raises(ValueError, match="a mask is bool, of the same shape"):
        train(model, data, masks={name: torch.ones(3, 3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="a mask is bool, of the same shape"):
        train(model, data, masks={name: torch.ones(32, 32)})


def test_a_callback_that_writes_to_masked_weights_ends_the_run(data: Any) -> None:
    model = tiny.model()

    def write(state: LoopState) -> None:
        with torch.no_grad():
            model.bert.pooler.dense.weight.add_(1.0)

    with pytest.raises(RunError, match=r"weights of bert\.pooler\.dense\.weight are not 0"):
        train(model, data, masks=masks(model), callbacks=[write])


def test_a_training_that_starts_late_has_the_rest_of_schedule_and_order(data: Any) -> None:
    """From the weights of step 4 and without momentum (betas 0), steps 5 to 10 are the same."""
    settings: dict[str, Any] = {"betas": (0.0, 0.0), "weight_decay": 0.0, "warmup": 0.3}
    whole = tiny.model()
    kept: dict[str, Tensor] = {}

    def keep(state: LoopState) -> None:
        if state.step == 4:
            kept.update({n: t.clone() for n, t in whole.state_dict().items()})

    train(whole, data, callbacks=[keep], **settings)
    late = tiny.model(seed=3)
    late.load_state_dict(kept)
    seen: list[int] = []
    result = train(late, data, start=4, callbacks=[lambda s: seen.append(s.step)], **settings)  # pyright: ignore
    assert seen == [5, 6, 7, 8, 9, 10]
    assert (result.steps, result.examples) == (10, sum_of(data, 4))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(late.state_dict()[name], tensor), name


def sum_of(data: Any, start: int) -> int:
    from stillhouse.training.order import step_batches

    config = TrainingConfig(batch_size=16)
    stream = step_batches(data, config, 0)
    return sum(sum(map(len, next(stream))) for _ in range(10)) - sum(
        sum(map(len, batches))
        for batches, _ in zip(step_batches(data, config, 0), range(start), strict=False)
    )


@pytest.mark.parametrize("start", [-1, 10, 11])
def test_a_start_outside_the_training_is_refused(data: Any, start: int) -> None:
    with pytest.raises(ValueError, match=f"can't begin at step {start}"):
        train(tiny.model(), data, start=start)


def test_the_peak_is_told_whichever_weights_are_kept(data: Any) -> None:
    scores = iter([0.1, 0.9, 0.3, 0.2, 0.1])
    result = train(
        tiny.model(), data, select="last", evaluate=lambda m: next(scores), evaluations=5
    )
    assert (result.best_step, result.peak_step) == (10, 4)
    assert (result.score, result.peak) == (0.1, 0.9)
