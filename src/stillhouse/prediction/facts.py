"""What stands beside a model that was made here, and beside its exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from stillhouse.core.config import WRITING, DistillConfig, FinetuneConfig
from stillhouse.core.inference import (
    Inference,
    default_length,
    read_inference,
    write_inference,
)
from stillhouse.data.encoding import pad_id
from stillhouse.flows.gold import Gold
from stillhouse.flows.setup import Setup
from stillhouse.flows.training_data import copy_training_data
from stillhouse.models.limits import max_tokens, positions, tokenizer_for
from stillhouse.models.load import label_names, resolve


def inference_of(
    model: Any, tokenizer: Any, task: str, *, name: str | None = None,
    max_length: int | None = None, pair: bool | None = None, **more: Any,
) -> Inference:  # fmt: skip
    """How rows become this model's inputs: as asked, else as stands in the folder `name`, else as
    is usual."""
    source = None if name is None else resolve(name)
    held = read_inference(source) if isinstance(source, Path) else None
    length = max_length or (held.max_length if held else default_length(task))
    names = tokenizer_for(model, tokenizer).model_input_names
    facts: dict[str, Any] = {"pair": pair} if held is None else held.model_dump()
    return Inference(
        **{
            **facts,
            "task": task,
            "labels": _labels(model, held) if task == "classification" else [],
            "max_length": max_tokens(model, length),
            "positions": positions(model),
            "inputs": [
                each for each in ("input_ids", "attention_mask", "token_type_ids") if each in names
            ],
            "pad_id": pad_id(tokenizer),
            **more,
        }
    )


def _labels(model: Any, held: Inference | None) -> list[str]:
    """A classifier's labels as the data that it was trained on named them."""
    own = label_names(model.config)
    return held.labels if held is not None and len(held.labels) == len(own) else own


def complete_export(
    folder: Path, model: Any, tokenizer: Any, facts: Inference, *, source: Path | str
) -> None:
    """Puts beside ONNX files all that answering rows with them needs, and which rows the model has
    seen, if its folder, `source`, says so (a hub name says nothing)."""
    tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)
    write_inference(folder, facts)
    if isinstance(source, Path):
        copy_training_data(source, folder)


def facts_of(
    model: nn.Module, made: Setup | Gold, config: DistillConfig | FinetuneConfig
) -> Inference | None:
    """What stands beside the model for those who use it; nothing of a masked language model."""
    if made.task.name == "masked_lm":
        return None
    rows = made.splits
    first = next(iter(rows.reported), None) if rows is not None else None
    labels = made.task.choices if made.task.name == "classification" else []
    writing = config.writing.model_dump(mode="json") if config.task in WRITING else {}
    return inference_of(
        model,
        made.tokenizer,
        made.task.name,
        max_length=config.data.tokens(made.task.name),
        pair=None if first is None else first.pair is not None,
        separator=config.data.separator,
        target_length=config.data.target_length,
        writing=writing,
        labels=labels,
    )
