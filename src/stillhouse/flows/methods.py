"""Published methods by name: the objective or the stages each stands for, as settings.

What a paper leaves open, or tunes by task, is set here once and can be changed with --set. Sources:
shortened in each entry; weights are for our terms, which are means over texts and tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stillhouse.core.errors import UsageError, unknown

Values = dict[str, Any]


def _kd(_: str | None) -> Values:
    """Soft targets at T = 2 and gold labels. Hinton et al. 2015."""
    return {"objective": [_soft(0.9, 2.0), {"kind": "gold", "weight": 0.1}]}


def _pkd(layers: str) -> Callable[[str | None], Values]:
    def made(_: str | None) -> Values:
        """Soft targets, gold labels, [CLS] of inner layers. Sun et al. 2019; alpha, T as in their
        code's presets, beta in its middle (their 100 is of a mean over layers and width)."""
        patience = {"kind": "patience", "layers": layers, "variant": "reference", "weight": 100.0}
        return {"objective": [_soft(0.7, 10.0), {"kind": "gold", "weight": 0.3}, patience]}

    return made


def _tinybert(corpus: str | None) -> Values:
    """Inner layers, then the prediction, on augmented rows; with a corpus, inner layers on it
    first. Jiao et al. 2020. Theirs guesses words with a masked language model (augment.model, here
    for you to name), and has the pretrained teacher in the stage on the corpus (its teacher)."""
    inner = [{"kind": "embedding"}, {"kind": "hidden"}, {"kind": "attention"}]
    augment: Values = {"copies": 20, "share": 0.4, "candidates": 15}
    general = {"name": "general", "objective": inner, "corpus": {"path": corpus}}
    intermediate = {
        "name": "intermediate",
        "objective": inner,
        "augment": augment,
        "training": {"epochs": 10.0, "lr": 5e-5, "select": "last"},
    }
    prediction = {"name": "prediction", "objective": [_soft(1.0, 1.0)], "augment": augment}
    return {"stages": [*([general] if corpus else []), intermediate, prediction]}


def _minilm(terms: list[Values]) -> Callable[[str | None], Values]:
    def made(corpus: str | None) -> Values:
        """The last layer's relations, on a corpus or on the task's rows, then soft targets and gold
        labels. Wang et al. 2020, 2021."""
        relations: Values = {"name": "relations", "objective": terms}
        if corpus:
            relations["corpus"] = {"path": corpus}
        relations["training"] = {"select": "last"}
        return {"stages": [relations, {"name": "distil", **_kd(None)}]}

    return made


def _fitnets(_: str | None) -> Values:
    """The middle layer by a regressor, then soft targets whose weight falls from 4 to 1, T = 3,
    without T^2. Romero et al. 2015."""
    falling = {"shape": "linear", "start": 4.0, "end": 1.0}
    soft = {**_soft(1.0, 3.0), "weight": falling, "squared_temperature": False}
    hint = {"name": "hint", "objective": [{"kind": "hint"}], "training": {"select": "last"}}
    return {"stages": [hint, {"name": "distil", "objective": [soft, {"kind": "gold"}]}]}


def _pretrained(corpus: str | None) -> Values:
    """Masked-LM pre-training of the student, soft targets only on all rows, then gold labels.
    Turc et al. 2019."""
    if corpus is None:
        raise UsageError(
            "pretrained-distillation begins on running text: give it with --corpus corpus.txt"
        )
    pretrain = {"name": "pretrain", "objective": [{"kind": "gold"}], "corpus": {"path": corpus}}
    distil = {"name": "distil", "objective": [_soft(1.0, 1.0)]}
    finetune = {"name": "finetune", "objective": [{"kind": "gold"}], "rows": "labelled"}
    return {"stages": [pretrain, distil, finetune]}


def _sequence(*, word: bool, decoded: bool, inter: bool) -> Callable[[str | None], Values]:
    def made(_: str | None) -> Values:
        """Kim & Rush 2016: at word level (soft and gold, half of each), on the teacher's texts,
        fine-tuned on those of its best that are closest to the gold ones; or several of these."""
        gold: list[Values] = [{"kind": "gold"}]
        terms = [_soft(0.5, 1.0), {"kind": "gold", "weight": 0.5}] if word else gold
        first: Values = {"name": "distil" if decoded or word else "base", "objective": terms}
        if decoded:
            first["targets"] = "decoded"
        if not inter:
            return {"stages": [first]}
        second = {"name": "inter", "objective": terms, "targets": "closest"}
        return {"stages": [first, second]}

    return made


def _gkd(_: str | None) -> Values:
    """Generalised JSD, half of the batches written by the student. Agarwal et al. 2024."""
    soft = {"kind": "soft", "divergence": "jsd", "beta": 0.5}
    return {"stages": [{"name": "distil", "objective": [soft], "on_policy": {"share": 0.5}}]}


def _soft(weight: float, temperature: float) -> Values:
    return {"kind": "soft", "weight": weight, "temperature": temperature}


METHODS: dict[str, Callable[[str | None], Values]] = {
    "kd": _kd,
    "fitnets": _fitnets,
    "pkd-skip": _pkd("skip"),
    "pkd-last": _pkd("last"),
    "tinybert": _tinybert,
    "minilm": _minilm([{"kind": "attention_kl"}, {"kind": "relations", "of": ["values"]}]),
    "minilm2": _minilm([{"kind": "relations"}]),
    "pretrained-distillation": _pretrained,
    "word-kd": _sequence(word=True, decoded=False, inter=False),
    "seq-kd": _sequence(word=False, decoded=True, inter=False),
    "seq-inter": _sequence(word=False, decoded=False, inter=True),
    "word-kd+seq-kd": _sequence(word=True, decoded=True, inter=False),
    "word-kd+seq-inter": _sequence(word=True, decoded=False, inter=True),
    "seq-kd+seq-inter": _sequence(word=False, decoded=True, inter=True),
    "word-kd+seq-kd+seq-inter": _sequence(word=True, decoded=True, inter=True),
    "gkd": _gkd,
}

OF_TEXTS = tuple(n for n in METHODS if n == "gkd" or n.startswith(("word-kd", "seq-")))


def method(name: str, corpus: str | None = None) -> Values:
    """The settings a method's name stands for. `corpus`: running text for the methods that begin
    on some. Raises UsageError."""
    if name not in METHODS:
        raise UsageError(unknown("method", name, METHODS))
    return METHODS[name](corpus)
