"""Small worlds for the tests: a vocabulary of sixty words, models of a few thousand weights, data
whose labels follow from the words. Nothing is downloaded.

Axes: N rows, K choices, D vector width.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

from stillhouse.core.config import DistillConfig
from stillhouse.core.settings import parse
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Batch, Dense, StudentOutput
from stillhouse.models.load import head_settings, load_span_model
from stillhouse.tasks.base import Dataset
from stillhouse.tasks.vectors import Vectors

GOOD = ["good", "great", "fine", "lovely", "superb", "warm", "bright", "clean", "swift", "kind"]
BAD = ["bad", "poor", "awful", "nasty", "dull", "cold", "dark", "dirty", "slow", "rude"]
PLAIN = [
    "the",
    "a",
    "film",
    "book",
    "meal",
    "room",
    "hotel",
    "phone",
    "train",
    "staff",
    "was",
    "is",
    "very",
    "quite",
    "not",
    "and",
    "but",
    "with",
    "it",
    "this",
    "we",
    "they",
    "service",
    "screen",
    "battery",
    "soup",
    "story",
    "ending",
    "price",
    ",",
    ".",
    "!",
    "?",
    "s",
    "t",
    "##s",
    "##ed",
    "##ing",
    "un",
    "##er",
]
WORDS = [*GOOD, *BAD, *PLAIN]
SENTIMENT = ["negative", "positive"]
KINDS = ["bert", "roberta", "xlm-roberta", "electra", "distilbert", "modernbert"]
DIVERGENCES: dict[str, dict[str, Any]] = {
    "forward_kl": {},
    "reverse_kl": {},
    "jsd": {"beta": 0.3},
    "total_variation": {},
    "skew_kl": {"alpha": 0.1},
    "decoupled": {"alpha": 1.0, "beta": 2.0},
    "logit_mse": {},
}


def tokenizer(kind: str = "bert") -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer with the special tokens of `kind`."""
    of_roberta = kind in ("roberta", "xlm-roberta")
    special = {
        "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    }["roberta" if of_roberta else "bert"]
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    if of_roberta:
        cls, pad, sep, unk, mask = special
        names = {"pad": pad, "unk": unk, "cls": cls, "sep": sep, "mask": mask}
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token=names["unk"]))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = names["cls"], names["sep"]
    second = f"{sep} $B {sep}" if of_roberta else f"$B:1 {sep}:1"
    core.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} {second}",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    inputs = ["input_ids", "attention_mask"]
    if kind in ("bert", "electra"):
        inputs.insert(1, "token_type_ids")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_input_names=inputs,
        model_max_length=64,
        **{f"{name}_token": token for name, token in names.items()},
    )


def _config(kind: str, layers: int, hidden: int, dropout: float, settings: dict[str, Any]) -> Any:
    """A tiny config of `kind`; `settings` win over what it says."""
    found: dict[str, Any] = {
        "vocab_size": len(WORDS) + 5,
        "max_position_embeddings": 66,
        "initializer_range": 0.2,
    }
    if kind == "distilbert":
        found |= {"dim": hidden, "n_layers": layers, "n_heads": 2, "hidden_dim": 2 * hidden}
        names = ("dropout", "attention_dropout", "seq_classif_dropout")
        return DistilBertConfig(**found | dict.fromkeys(names, dropout) | settings)
    found |= {"hidden_size": hidden, "intermediate_size": 2 * hidden}
    found |= {"num_hidden_layers": layers, "num_attention_heads": 2}
    if kind == "modernbert":  # every second block sees two tokens to each side only
        found |= {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 4}
        found |= {"bos_token_id": 2, "eos_token_id": 3, "global_attn_every_n_layers": 2}
        names = ("embedding_dropout", "mlp_dropout", "attention_dropout", "classifier_dropout")
        return ModernBertConfig(**found | dict.fromkeys(names, dropout) | settings)
    found |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if kind == "electra":
        return ElectraConfig(**found | {"embedding_size": hidden // 2} | settings)
    if kind in ("roberta", "xlm-roberta"):
        found |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
        made = RobertaConfig if kind == "roberta" else XLMRobertaConfig
        return made(**found | settings)
    return BertConfig(**found | settings)


def model(
    kind: str = "bert",
    *,
    layers: int = 2,
    labels: Sequence[str] = SENTIMENT,
    seed: int = 0,
    dropout: float = 0.1,
    hidden: int = 32,
    masked: bool = False,
    **settings: Any,
) -> PreTrainedModel:
    """A classifier of `kind` (a masked language model if `masked`) with weights wide enough that
    rows get different answers."""
    head = {} if masked else head_settings(list(labels))
    config = _config(kind, layers, hidden, dropout, {**head, **settings})
    made = AutoModelForMaskedLM if masked else AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = made.from_config(config)
        for name, parameter in found.named_parameters():
            if name.endswith("bias"):  # zeros and ones would hide a forgotten bias or scale
                nn.init.normal_(parameter, std=0.1)
            elif parameter.ndim == 1:
                nn.init.normal_(parameter, mean=1.0, std=0.1)
    return found.eval()


def save(folder: Path, kind: str = "bert", **settings: Any) -> Path:
    """A model folder with its tokenizer."""
    model(kind, **settings).save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return folder


def save_spans(folder: Path, *, seed: int = 0) -> Path:
    """A folder of a model of answers in passages, its head drawn at random."""
    save(folder, seed=seed + 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = load_span_model(str(folder), fresh_head=True)
    found.save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Different (text, label): positive where a text has more good words than bad ones."""
    rng = np.random.default_rng(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        strong = rng.choice([*GOOD, *BAD], size=rng.integers(1, 4)).tolist()
        plain = rng.choice(PLAIN[:26], size=rng.integers(1, 9)).tolist()
        words = [*strong, *plain]
        rng.shuffle(words)
        score = sum(w in GOOD for w in strong) - sum(w in BAD for w in strong)
        if score:
            found[" ".join(words)] = SENTIMENT[score > 0]
    return list(found.items())


def write_csv(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)
    return path


def answered(gold_N: Tensor) -> Dataset:
    """Data that has nothing but gold answers."""
    empty = Vectors(np.empty((len(gold_N), 1)))
    return Dataset(empty, np.empty((len(gold_N), 2), "<u8"), gold_N)


def reviews(path: Path, count: int = 120, seed: int = 0) -> Path:
    return write_csv(path, ["text", "label"], sentences(count, seed))


def settings(teacher: Path, data: Path, cache: Path, /, **changes: Any) -> dict[str, Any]:
    """A quick distillation's settings; `changes` go into its sections."""
    values: dict[str, Any] = {
        "teacher": str(teacher),
        "data": {"path": str(data), "max_length": 32},
        "student": {"layers": 1},
        "training": {
            "steps": 6,
            "batch_size": 16,
            "lr": 1e-3,
            "evaluations": 2,
            "log_every": 3,
            "precision": "auto",
        },
        "label": {"precision": "auto", "check_rows": 8},
        "evaluation": {"seeds": [0], "baseline": False, "resamples": 50, "efficiency": False},
        "export": {"onnx": False, "int8": False},
        "cache": str(cache),
    }
    for section, change in changes.items():
        inner = isinstance(values.get(section), dict) and isinstance(change, dict)
        values[section] = {**values[section], **change} if inner else change
    return values


def config(teacher: Path, data: Path, cache: Path, /, **changes: Any) -> DistillConfig:
    return parse(DistillConfig, settings(teacher, data, cache, **changes))


def soft(divergence: str = "forward_kl", **options: Any) -> TermConfig:
    return TermConfig(kind="soft", divergence=divergence, **{**DIVERGENCES[divergence], **options})


class Fixed:
    """A source whose answers to a data set are given."""

    kind = Dense
    fingerprint = "fixed"

    def __init__(self, scores_NK: Tensor) -> None:
        self.scores_NK = scores_NK

    def signal(self, batch: Batch) -> Dense:
        return Dense(self.scores_NK[torch.from_numpy(batch.rows)])


class Line(nn.Module):
    """Linear scores of vectors, in float64."""

    def __init__(self, width: int, choices: int, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(choices, width, generator=draw, dtype=torch.float64))

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors.double() @ self.weight.T


def line_forward(model: nn.Module, batch: Batch, rng: np.random.Generator) -> StudentOutput:
    return StudentOutput(model(**batch.inputs))


def vectors(
    rows: int, width: int = 5, choices: int = 3, *, seed: int = 0, unlabelled: Sequence[int] = ()
) -> Dataset:
    """A data set of random vectors and labels; those at `unlabelled` have none."""
    rng = np.random.default_rng(seed)
    source = Vectors(rng.normal(size=(rows, width)).astype(np.float32))
    gold_N = torch.from_numpy(rng.integers(choices, size=rows))
    gold_N[list(unlabelled)] = -100
    return Dataset(source, source.keys(), gold_N)
