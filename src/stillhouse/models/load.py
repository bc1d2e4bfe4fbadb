"""Models and tokenizers from a folder or the hub: safetensors, and no code unless asked."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from stillhouse.core.errors import ModelError
from stillhouse.core.rundir import CUT
from stillhouse.models.kinds import (
    TOLD,
    head_of,
    refuse_file,
    refuse_folder,
    refuse_head,
    refuse_inputs,
)

logging.disable_progress_bar()
logging.set_verbosity_error()


def resolve(name: str) -> Path | str:
    """A model folder, checked, or a hub name as it is. Raises ModelError."""
    path = Path(name).expanduser()
    if not (path / "config.json").exists():  # a run's folder stands for the model it made
        if (path / "student" / "config.json").is_file():
            path = path / "student"
        elif (path / CUT / "config.json").is_file() and not (path / "config.yaml").exists():
            path = path / CUT
    if path.is_dir():
        refuse_folder(name, path)
        if any(path.glob("*.onnx")) and not any(path.glob("*.safetensors")):
            raise ModelError(f"{name} holds an exported ONNX model: give the folder it came from")
        if not (path / "config.json").is_file():
            holds = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise ModelError(f"{name} is no model folder: it has no config.json, it holds {holds}")
        if not any(path.glob("*.safetensors")):
            raise ModelError(
                f"{name} has no .safetensors weights: save the model again with save_pretrained "
                "(pickled weights are not loaded)"
            )
        _check_labels(path / "config.json")
        return path
    if path.exists():
        refuse_file(name, path)
    if path.is_symlink():
        raise ModelError(f"{name} is a link that leads nowhere: give the model's folder itself")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no model folder {name}: check the path")
    if not name.strip() or name in ("None", "nan"):
        raise ModelError(f"{name or 'nothing'!r} is no model: give a folder or a hub name")
    return name


def _check_labels(path: Path) -> None:
    """Raises ModelError for a config.json that transformers reads no label names from."""
    try:
        labels = json.loads(path.read_text(encoding="utf-8")).get("id2label")
    except (ValueError, AttributeError):
        return  # transformers says what is wrong with it
    if labels is not None and not isinstance(labels, dict):
        raise ModelError(
            f"id2label of {path} is a {type(labels).__name__}: write a name for each id, as in "
            '{"0": "negative", "1": "positive"}'
        )


def model_folder(name: str) -> Path:
    """The folder of a teacher's weights; a hub model's is its snapshot."""
    found = resolve(name)
    return (
        found if isinstance(found, Path) else Path(snapshot_download(found, local_files_only=True))
    )


def _hub_error(name: str, error: Exception) -> ModelError:
    """What transformers raises, in one line. It raises anything: a damaged file meets whatever
    library reads it."""
    if isinstance(error, SafetensorError):
        return ModelError(
            f"{name}: its weights are cut short or damaged ({str(error).splitlines()[0]}): "
            "download or save them again"
        )
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{name} comes with code of its own: read it, and if you trust it give "
            "--trust-remote-code"
        )
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not Path(name).exists():
        return ModelError(f"no folder {name} here, and the hub gave no model of that name: {first}")
    return ModelError(f"can't load {name}: {first}")


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    source = resolve(name)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _hub_error(name, error) from error


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    source = resolve(name)
    try:
        found = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        if isinstance(source, Path):
            refuse_inputs(name, load_config(name, trust_remote_code=trust_remote_code))
        raise _hub_error(name, error) from error
    if isinstance(source, Path) and not _has_vocabulary(source, found):
        refuse_inputs(name, load_config(name, trust_remote_code=trust_remote_code))
        raise ModelError(
            f"{name} has no tokenizer (no {' or '.join(_vocabulary_files(found))}): save it there "
            "with tokenizer.save_pretrained"
        )
    if not found.is_fast:
        raise ModelError(f"{name} has no fast tokenizer (tokenizer.json): convert it first")
    return found


def _vocabulary_files(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return sorted(set(tokenizer.vocab_files_names.values()))


def _has_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer came from its folder. Where there is none transformers makes an empty
    one, to which every word is unknown."""
    return any((folder / file).is_file() for file in _vocabulary_files(tokenizer))


def load_classifier(
    name: str, *, labels: list[str] | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A sequence classifier in float32 and eval mode. With `labels`, its head is made for them:
    the stored one where it has the same labels, in whatever order, else a fresh one (drawn from
    torch's generator); without, it must be there. Raises ModelError."""
    settings: dict[str, Any] = {}
    held: list[str] = []
    config = load_config(name, trust_remote_code=trust_remote_code)
    if labels is None:
        _check_head(name, config, "classification")
    else:
        refuse_inputs(name, config)
        held = label_names(config)
        if held != labels:
            settings = head_settings(labels) | {"ignore_mismatched_sizes": True}
    model, found = pretrained(
        AutoModelForSequenceClassification, name, trust_remote_code=trust_remote_code, **settings
    )
    if labels is None and found["missing_keys"]:
        raise ModelError(
            f"{name} has no classification head (its weights lack "
            f"{', '.join(sorted(found['missing_keys'])[:3])}): fine-tune it first"
        )
    if labels is not None and held != labels and len(held) == len(labels) > 1:
        _relabel(model, held, labels)
    return model.eval()


def load_span_model(
    name: str, *, fresh_head: bool = False, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A model of answers in passages, in float32 and eval mode. With `fresh_head`, a head that is
    not there is drawn from torch's generator; without, it must be. Raises ModelError."""
    config = load_config(name, trust_remote_code=trust_remote_code)
    if fresh_head:
        refuse_inputs(name, config)
    else:
        _check_head(name, config, "span")
    model, found = pretrained(
        AutoModelForQuestionAnswering, name, trust_remote_code=trust_remote_code
    )
    if not hasattr(model, "qa_outputs"):
        raise ModelError(f"{name} is a {model.config.model_type}: its spans can't be read here")
    if found["missing_keys"] and not fresh_head:
        raise ModelError(
            f"{name} has no head for spans (its weights lack "
            f"{', '.join(sorted(found['missing_keys'])[:3])}): fine-tune it first"
        )
    return model.eval()


def check_answers(name: str, *, trust_remote_code: bool = False) -> None:
    """Raises ModelError, by its config alone, for a model whose answers are of no task here."""
    config = load_config(name, trust_remote_code=trust_remote_code)
    if head_of(config) not in TOLD:
        _check_head(name, config, "classification")


def _check_head(name: str, config: Any, task: str) -> None:
    """Raises ModelError for a stored model whose head is for another task."""
    source = resolve(name)
    refuse_head(name, config, task, source if isinstance(source, Path) else None)


def pretrained(
    kind: Any, name: str, *, trust_remote_code: bool, **settings: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model in float32 from safetensors, and what transformers says of its loading. Raises
    ModelError where it can't be loaded, or its encoder's weights are not its config's."""
    source = resolve(name)
    try:
        model, found = kind.from_pretrained(
            source,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **settings,
        )
    except Exception as error:
        raise _hub_error(name, error) from error
    _check_weights(name, model, found)
    return model, found


def _check_weights(name: str, model: PreTrainedModel, found: dict[str, Any]) -> None:
    """Raises ModelError where weights of the encoder itself are missing, too many, or of another
    shape than the config says: they would be random, or left out, in silence."""
    inside = f"{model.base_model_prefix}."
    other = [k if isinstance(k, str) else k[0] for k in found["mismatched_keys"]]
    lost = [k for k in (*found["missing_keys"], *other) if k.startswith(inside)]
    lost = [k for k in lost if "pooler" not in k]  # a masked language model has none
    extra = [k for k in found["unexpected_keys"] if re.search(r"\.(layers?|h|block)\.\d+\.", k)]
    if lost or extra:
        first = (lost or extra)[0]
        raise ModelError(
            f"{name}: its weights are not those its config.json describes ({len(lost)} missing or "
            f"of another shape, {len(extra)} too many, {first} among them): save the model again"
        )


@torch.no_grad()
def _relabel(model: PreTrainedModel, held: list[str], labels: list[str]) -> None:
    """Puts a stored head's rows in the order of `labels`; one for other labels is made fresh."""
    inside = {id(module) for module in model.base_model.modules()}
    outputs = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == len(labels)
    ]
    (*_, head) = [module for module in outputs if id(module) not in inside] or outputs
    if sorted(held) == sorted(labels):
        order = [held.index(label) for label in labels]
        for parameter in head.parameters():
            parameter.copy_(parameter[order].clone())
    else:
        head.reset_parameters()
        nn.init.normal_(head.weight, std=getattr(model.config, "initializer_range", 0.02))
        if head.bias is not None:
            nn.init.zeros_(head.bias)


def head_settings(labels: list[str]) -> dict[str, Any]:
    """Config entries of a head for `labels`; a single one is a regression's value."""
    if len(labels) == 1:
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }


def label_names(config: Any) -> list[str]:
    """A classifier's label names in the order of its head. Raises ModelError where its config
    names other ids than its head has."""
    held = sorted(config.id2label)
    if held != list(range(config.num_labels)):
        named = ", ".join(map(str, held[:8])) + (", ..." if len(held) > 8 else "")
        raise ModelError(
            f"id2label of config.json has ids {named}; 0 to {config.num_labels - 1} are needed"
        )
    return [str(config.id2label[i]) for i in range(config.num_labels)]


def has_head(config: Any) -> bool:
    """Whether a stored model ends in a classifier's head, as its config says."""
    named = config.architectures or []
    return any(each.endswith("ForSequenceClassification") for each in named)


def folder_fingerprint(name: str) -> str:
    """Stands for the files of a model folder; a hub name stands for itself."""
    source = resolve(name)
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(source, str):
        return source
    for path in sorted([*source.glob("*.safetensors"), *source.glob("*.json")]):
        if path.name not in ("record.json", "manifest.json"):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def fingerprint(model: torch.nn.Module) -> str:
    """Stands for a model's weights and settings, whatever folder they came from."""
    digest = hashlib.blake2b(digest_size=16)
    config = getattr(model, "config", None)
    if config is not None:
        kept = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "dtype")}
        digest.update(repr(sorted(kept.items())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
