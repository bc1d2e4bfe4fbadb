"""Fine-tune a pretrained model on gold answers: a teacher, where there is none."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from stillhouse.core.config import WRITING, FinetuneConfig
from stillhouse.core.errors import ModelError
from stillhouse.core.manifest import manifest
from stillhouse.core.precision import Auto
from stillhouse.core.progress import Progress, Silent
from stillhouse.core.rundir import claim, write_json
from stillhouse.data.documents import file_digest
from stillhouse.flows.gold import Gold, prepare_gold
from stillhouse.flows.stages import Stage, Trained, load_trained, score_on, train
from stillhouse.flows.training_data import write_training_data
from stillhouse.models.load import resolve
from stillhouse.models.weights import Masks
from stillhouse.numerics.masks import density
from stillhouse.tasks.base import Data
from stillhouse.training import defaults
from stillhouse.training.sparse import MASKS, fitting, load_masks


@dataclass
class Finetuned:
    config: FinetuneConfig
    gold: Gold
    model: nn.Module
    trained: Trained
    masks: Masks
    reported: Data
    total_s: float


def content_of(config: FinetuneConfig, progress: Progress | None = None) -> dict[str, str]:
    """Fingerprints of what the config names by path."""
    gold = prepare_gold(config, progress or Silent(), metric=config.metric)
    return _content(gold, _masks_path(config))


def _content(gold: Gold, masks: Path | None) -> dict[str, str]:
    """A model's own masks are among its files; others have a fingerprint of their own."""
    if masks is None or masks.parent == resolve(gold.config.model):
        return gold.content
    return {**gold.content, "masks": file_digest(masks)}


def _masks_path(config: FinetuneConfig) -> Path | None:
    """Where the masks are that a training holds. Raises ModelError for a file that isn't there."""
    if config.masks == "auto":
        source = resolve(config.model)
        own = source / MASKS if isinstance(source, Path) else None
        return own if own and own.is_file() else None
    if config.masks == "none":
        return None
    path = Path(config.masks)
    path = path / MASKS if path.is_dir() else path
    if not path.is_file():
        raise ModelError(f"there are no masks {path}: give a ticket's {MASKS}, auto or none")
    return path


def finetune(config: FinetuneConfig, out: Path, *, progress: Progress | None = None) -> Finetuned:
    """Trains `config.model` with a head for the data's answers. Raises UsageError, RunError."""
    progress = progress or Silent()
    started = time.perf_counter()
    settings = config.model_dump(mode="json")
    gold = prepare_gold(config, progress, auto=Auto.of(out), metric=config.metric)
    auto, told = gold.auto, gold.auto.notes(config)
    config = auto.settle(config)
    path = _masks_path(config)
    masks = fitting(load_masks(path)[0], gold.make(config.seed), str(path)) if path else {}
    content, objective = _content(gold, path), gold.weighted(config.training.class_weights)
    claim(out, settings, content)
    if masks:
        progress.note(f"{density(masks):.1%} of the weights in {len(masks)} matrices stay ({path})")
    for note in [*gold.notes, *told]:
        progress.note(note)
    training, held_out, reported = gold.datasets(progress)
    config, became, chosen = _chosen(config, gold, training, held_out)
    facts = {"content": content, "seeds": [config.seed]}
    write_json(out / "manifest.json", manifest(**facts, auto={**auto.facts, "training": became}))
    write_training_data(out, gold.data, before=[config.model])
    stage = Stage(
        name="finetune",
        described=gold.described,
        data=training,
        objective=objective,
        source=None,
        training=config.training,
        on_rows=True,
        metric=gold.task.metric if len(held_out) else None,
        evaluate=score_on(gold.task, held_out, config.training.precision)
        if len(held_out)
        else None,
        masks=masks,
        choices=gold.task.width if config.task in WRITING else None,
    )
    if chosen:
        progress.note(chosen)
    trained = train(
        "teacher",
        config.seed,
        lambda: gold.make(config.seed),
        [stage],
        task=gold.task,
        reported=reported,
        out=out,
        progress=progress,
    )
    model = load_trained(trained, gold.make(config.seed))
    return Finetuned(config, gold, model, trained, masks, reported, time.perf_counter() - started)


def _chosen(
    config: FinetuneConfig, gold: Gold, training: Data, held_out: Data
) -> tuple[FinetuneConfig, dict[str, object], str | None]:
    """The config with what was left to be chosen, its values by name, and a line that tells them
    where they follow from the data."""
    known, names = gold.facts(training, held_out, seed=config.seed), defaults.asked(config.training)
    settled = defaults.settle(config.training, known)
    config = config.model_copy(update={"training": settled})
    became: dict[str, object] = {name: getattr(settled, name) for name in names}
    if known is None or not names:
        return config, became, None
    return config, became, defaults.told(settled, names, known)
