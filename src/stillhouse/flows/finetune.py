"""Fine-tune a pretrained model on gold answers: a teacher, where there is none."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from stillhouse.core.config import FinetuneConfig
from stillhouse.core.progress import Progress, Silent
from stillhouse.core.rundir import atomic, claim, manifest, write_json
from stillhouse.flows.common import TRAINED_ON
from stillhouse.flows.gold import Gold, prepare_gold
from stillhouse.flows.stages import Stage, Trained, load_trained, score_on, train
from stillhouse.tasks.base import Data


@dataclass
class Finetuned:
    config: FinetuneConfig
    gold: Gold
    model: nn.Module
    trained: Trained
    reported: Data
    total_s: float


def content_of(config: FinetuneConfig, progress: Progress | None = None) -> dict[str, str]:
    """Fingerprints of what the config names by path."""
    return prepare_gold(config, progress or Silent()).content


def finetune(config: FinetuneConfig, out: Path, *, progress: Progress | None = None) -> Finetuned:
    """Trains `config.model` with a head for the data's answers. Raises UsageError, RunError."""
    progress = progress or Silent()
    started = time.perf_counter()
    gold = prepare_gold(config, progress)
    claim(out, config.model_dump(mode="json"), gold.content)
    for note in gold.notes:
        progress.note(note)
    training, held_out, reported = gold.datasets(progress)
    write_json(out / "manifest.json", manifest(content=gold.content, seeds=[config.seed]))
    if gold.splits is not None:
        with atomic(out / TRAINED_ON) as temporary, temporary.open("wb") as file:
            np.save(file, gold.splits.labelled.folded_N2)
    stage = Stage(
        name="finetune",
        described=gold.described,
        data=training,
        objective=gold.objective,
        source=None,
        training=config.training,
        on_rows=True,
        metric=gold.task.metric if len(held_out) else None,
        evaluate=score_on(gold.task, held_out) if len(held_out) else None,
    )
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
    return Finetuned(config, gold, model, trained, reported, time.perf_counter() - started)
