"""What a stored model is, by its true name: what its folder holds, and what its head is for.

A model that can't be used is refused by its config and files, before its weights are loaded.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import transformers

from stillhouse.core.errors import ModelError

# How names of transformers' classes end, and the task of ours that they are for.
HEADS = {
    "ForSequenceClassification": "classification",
    "ForQuestionAnswering": "span",
    "ForMaskedLM": "masked_lm",
    "ForPreTraining": "pretraining",
    "LMHeadModel": "causal_lm",
    "ForCausalLM": "causal_lm",
    "ForConditionalGeneration": "seq2seq",
}
TOLD = {
    "classification": "a classifier of texts",
    "span": "a model for extractive question answering",
    "masked_lm": "a masked language model",
    "pretraining": "a pretrained encoder",
    "causal_lm": "a causal language model",
    "seq2seq": "an encoder-decoder",
}
INPUTS = {"pixel_values": "images", "input_values": "sound", "input_features": "sound"}
POINTER = b"version https://git-lfs"
BEGINNING = 64  # bytes of a file that tell what it is


def refuse_folder(name: str, folder: Path) -> None:
    """Raises ModelError for a folder that holds something else than a model's config, weights and
    tokenizer, or stands for these only."""
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.json")]:
        refuse_stand_in(name, path)
    whole = any(folder.glob("model*.safetensors"))
    if (adapter := folder / "adapter_config.json").is_file() and not whole:
        about = _read(adapter)
        base = about.get("base_model_name_or_path") or "its base model"
        raise ModelError(
            f"{name} is a PEFT adapter ({about.get('peft_type') or 'of unknown type'}) of {base}, "
            "not a whole model: merge it (merge_and_unload), save_pretrained, and give that folder"
        )
    if (folder / "model_index.json").is_file():
        raise ModelError(
            f"{name} is a diffusers pipeline: making images is not supported, give a model of texts"
        )
    if any(folder.glob("*.gguf")) and not whole:
        raise ModelError(
            f"{name} holds GGUF weights (llama.cpp's): give the folder that they were made from, "
            "with config.json and .safetensors weights"
        )


def refuse_stand_in(name: str, path: Path) -> None:
    """Raises ModelError for a file that is not there itself: a git-LFS pointer or a web page."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        begins = file.read(BEGINNING)
    if begins.startswith(POINTER):
        raise ModelError(
            f"{name}: {path.name} is a git-LFS pointer, the file itself was not downloaded: run "
            "git lfs pull there"
        )
    if begins.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ModelError(f"{name}: {path.name} is a web page: download the file itself again")


def refuse_file(name: str, path: Path) -> None:
    """Raises ModelError for a file where a model's folder is due."""
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        raise ModelError(
            f"{name} is a file of GGUF weights (llama.cpp's): give the folder that they were made "
            "from, with config.json and .safetensors weights"
        )
    if suffix == ".onnx":
        raise ModelError(f"{name} is an exported ONNX model: give the folder that it came from")
    if suffix in (".safetensors", ".json", ".bin", ".pt"):
        raise ModelError(f"{name} is one file of a model: give its folder, {path.parent}")
    raise ModelError(
        f"{name} is no model folder but a file: give the folder that holds config.json"
    )


def head_of(config: Any) -> str | None:
    """What a stored model's head is for: a task of ours, another one in words ("token
    classification"), or None where it has no head or its config doesn't say."""
    for architecture in getattr(config, "architectures", None) or []:
        for ending, task in HEADS.items():
            if architecture.endswith(ending):
                return task
        if found := re.search(r"(?<=[a-z0-9A-Z])For([A-Z]\w*)$", architecture):
            return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", found[1]).lower()
    return None


def takes(config: Any) -> str:
    """What a model reads: texts, images, sound, or images and texts."""
    named = getattr(config, "architectures", None) or []
    classes = [getattr(transformers, each, None) for each in named]
    for each in classes:
        if other := INPUTS.get(getattr(each, "main_input_name", "input_ids")):
            return other
    if any(hasattr(config, part) for part in ("vision_config", "audio_config")):
        return "images and texts" if hasattr(config, "vision_config") else "sound and texts"
    return "texts"


def refuse_inputs(name: str, config: Any) -> None:
    """Raises ModelError for a model that doesn't read texts."""
    if (what := takes(config)) == "texts":
        return
    head = head_of(config)
    if head is not None and head not in TOLD:
        what = head
    raise ModelError(
        f"{name} is a {config.model_type}: {_unsupported(what)}, give a model of texts"
    )


def _unsupported(what: str) -> str:
    """`token classification is not supported yet`; of inputs, `reading images is ...`."""
    reading = what in INPUTS.values() or " and " in what
    return f"{'reading ' if reading else ''}{what} is not supported yet"


def refuse_head(name: str, config: Any, task: str, folder: Path | None) -> None:
    """Raises ModelError for a stored model whose head answers something else than `task` (one of
    TOLD) does; one without a head is left to whoever loads it."""
    refuse_inputs(name, config)
    head = head_of(config)
    if head is None:
        if folder is not None and (folder / "modules.json").is_file():
            raise ModelError(
                f"{name} is a sentence-transformers model: sentence embedding is not supported "
                "yet, as it has no labels; stillhouse finetune makes a classifier of it"
            )
        return
    if head not in TOLD:
        raise ModelError(
            f"{name}: {_unsupported(head)}, give {TOLD[task]} (stillhouse finetune makes one of it)"
        )
    if head == task:
        return
    if (head, task) == ("masked_lm", "classification"):
        raise ModelError(
            f"{name} is a masked language model, which has no labels: fine-tune it first "
            "(distill and finetune take it with --task masked_lm)"
        )
    raise ModelError(
        f"{name} is {TOLD[head]}, and {TOLD[task]} is needed: give one, or make one of it with "
        "stillhouse finetune"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
