"""Fine-tune a pretrained model on gold labels: a teacher, where there is none."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from stillhouse.core.config import FinetuneConfig
from stillhouse.core.progress import Progress, Silent
from stillhouse.core.rundir import atomic, claim, manifest, write_json
from stillhouse.core.seeding import shape_seed
from stillhouse.core.terms import TermConfig
from stillhouse.data.sources import Splits, load
from stillhouse.flows.common import (
    TRAINED_ON,
    Trained,
    check_padding,
    dataset,
    gold_task,
    load_trained,
    max_tokens,
    store_root,
    train_once,
)
from stillhouse.models.load import (
    folder_fingerprint,
    head_settings,
    load_classifier,
    load_tokenizer,
)
from stillhouse.tasks.base import Dataset, Task
from stillhouse.training import objective as objectives


@dataclass
class Finetuned:
    config: FinetuneConfig
    task: Task
    splits: Splits
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    trained: Trained
    reported: Dataset
    total_s: float


def content_of(config: FinetuneConfig, splits: Splits) -> dict[str, str]:
    """Fingerprints of what the config names by path."""
    return {"data": splits.fingerprint, "model": folder_fingerprint(config.model)}


def finetune(config: FinetuneConfig, out: Path, *, progress: Progress | None = None) -> Finetuned:
    """Trains `config.model` with a head for the data's labels. Raises UsageError, RunError."""
    progress = progress or Silent()
    started = time.perf_counter()
    store = store_root(config.cache)
    splits = load(config.data, store / "rows")
    pools = [splits.labelled, splits.held_out, splits.reported]
    task = gold_task(pools, asked=config.task)
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)

    def make() -> nn.Module:
        labels = [""] if task.name == "regression" else task.choices
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(shape_seed(config.seed))
            model = load_classifier(
                config.model, labels=labels, trust_remote_code=config.trust_remote_code
            )
        for name, value in head_settings(labels).items():
            setattr(model.config, name, value)
        return model

    template = make()
    check_padding(template, tokenizer)
    content = content_of(config, splits)
    claim(out, config.model_dump(mode="json"), content)
    for note in splits.notes:
        progress.note(note)
    length = max_tokens(template, config.data.max_length)
    ready = {
        name: dataset(
            task, pool, tokenizer, store, max_length=length, progress=progress, title=name
        )
        for name, pool in (
            ("training rows", splits.labelled),
            ("held-out rows", splits.held_out),
            ("reported rows", splits.reported),
        )
    }
    objective = objectives.build(
        [TermConfig(kind="gold")], choices=len(task.choices), signal=None, has_gold=True
    )
    write_json(
        out / "manifest.json",
        manifest(
            content=content,
            seeds=[config.seed],
            data=splits.labelled.fingerprint,
            reported=splits.reported.fingerprint,
        ),
    )
    with atomic(out / TRAINED_ON) as temporary, temporary.open("wb") as file:
        np.save(file, splits.labelled.folded_N2)
    trained = train_once(
        "teacher",
        config.seed,
        make,
        ready["training rows"],
        objective,
        None,
        config.training,
        task=task,
        held_out=ready["held-out rows"],
        reported=ready["reported rows"],
        out=out,
        progress=progress,
    )
    return Finetuned(
        config,
        task,
        splits,
        load_trained(trained, template),
        tokenizer,
        trained,
        ready["reported rows"],
        time.perf_counter() - started,
    )
