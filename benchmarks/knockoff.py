"""An audit beside ART's KnockoffNets: the same victim, queries, encoder, epochs and batches.

command    python benchmarks/knockoff.py --teacher sst2-teacher --data $STILLHOUSE_DATA \
               --out knockoff
hardware   two CPU cores; see docs/results.md for the time it took
result     see docs/results.md, "Stolen, beside ART"

ART (adversarial-robustness-toolbox) takes arrays of one shape, so that its rows are all padded to
the longest query, and has neither queries, prices, agreement nor schedules: the texts are ours, the
learning rate is constant (the best of `--rates` on queries kept out, by agreement with the victim),
the loss its own, cross-entropy with the victim's probabilities, in float32. Ours once as it comes,
and where that is bf16, once in float32. In turns, seed by seed. Seconds are of all that one copy
takes: models loaded, queries tokenized, asked, learned; ours also made the queries and scored the
copy.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import stillhouse as sh
from stillhouse.core.console import Terminal
from stillhouse.core.machine import machine
from stillhouse.core.rundir import write_json
from stillhouse.core.settings import parse
from stillhouse.extract.config import AuditConfig
from stillhouse.extract.setup import Audit
from stillhouse.models.builtin import minilm
from stillhouse.models.load import load_classifier, load_tokenizer

EPOCHS, BATCH, KEPT_OUT = 3, 32, 500


class OfIds(nn.Module):
    """A classifier of rows of ids, as floats: the only form ART passes on. A victim answers with
    probabilities (ART learns what `predict` gives as shares), a thief has logits for its loss."""

    def __init__(self, model: nn.Module, pad: int, *, shares: bool) -> None:
        super().__init__()
        self.model, self.pad, self.shares = model, pad, shares

    def forward(self, ids_NT: Tensor) -> Tensor:
        ids_NT = ids_NT.long()
        mask_NT = (ids_NT != self.pad).long()
        logits_NK = self.model(input_ids=ids_NT, attention_mask=mask_NT).logits
        return logits_NK.softmax(-1) if self.shares else logits_NK


def wrapped(name: str, rate: float, labels: list[str], length: int, *, shares: bool) -> Any:
    from art.estimators.classification import PyTorchClassifier

    model, tokenizer = load_classifier(name, labels=labels), load_tokenizer(name)
    pad = int(tokenizer.pad_token_id or 0)  # pyright: ignore[reportArgumentType]
    inside = OfIds(model, pad, shares=shares)
    return PyTorchClassifier(
        model=inside, loss=nn.CrossEntropyLoss(), input_shape=(length,), nb_classes=len(labels),
        optimizer=torch.optim.AdamW(inside.parameters(), lr=rate), device_type="cpu",
    )  # fmt: skip


def knockoff(args: argparse.Namespace, seed: int, rate: float, made: Audit) -> dict[str, float]:
    """ART's copy of one seed: its score, agreement on queries kept out, and seconds."""
    from art.attacks.extraction import KnockoffNets

    tokenizer = load_tokenizer(args.teacher)
    labels = list(load_classifier(args.teacher).config.id2label.values())
    texts = [each.text for each in made.stream("wiki", seed, args.queries + KEPT_OUT)]
    rows = list(made.splits.reported)
    started = time.perf_counter()

    def ids(texts: list[str], length: int | None = None) -> np.ndarray:
        coded = tokenizer(
            texts, padding="max_length" if length else True, truncation=True,
            max_length=length or 128, return_tensors="np",
        )  # fmt: skip
        return coded["input_ids"].astype(np.float32)

    asked_NT = ids(texts[: args.queries])
    length = asked_NT.shape[1]
    torch.manual_seed(seed)
    np.random.seed(seed)
    victim = wrapped(args.teacher, rate, labels, length, shares=True)
    thief = wrapped(str(minilm()), rate, labels, length, shares=False)
    attack = KnockoffNets(
        victim, batch_size_fit=BATCH, batch_size_query=64, nb_epochs=EPOCHS,
        nb_stolen=args.queries, use_probability=True,
    )  # fmt: skip
    attack.extract(asked_NT, thieved_classifier=thief)
    seconds = time.perf_counter() - started
    held_NT = ids(texts[args.queries :], length)
    same = thief.predict(held_NT).argmax(1) == victim.predict(held_NT).argmax(1)
    answers = thief.predict(ids([row.text for row in rows], length)).argmax(1)
    gold = np.array([labels.index(str(row.label)) for row in rows])
    return {"score": float((answers == gold).mean()), "agreed": float(same.mean()), "s": seconds}


def ours(args: argparse.Namespace, seed: int, precision: str) -> dict[str, float]:
    """The audit's copy of one seed, from nothing."""
    started = time.perf_counter()
    name = f"{precision}-{seed}"
    found = sh.audit(
        args.teacher, str(args.data / "sst2"), out=args.out / f"audit-{name}", seeds=[seed],
        queries=settings(args), views=["probabilities"], thieves=[thief_settings(precision)],
        label={"precision": precision}, cache=str(args.out / f"cache-{name}"), progress=Terminal(),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    return {"score": found.record.copies[0].score, "s": seconds}


def thief_settings(precision: str = "auto") -> dict[str, Any]:
    training = {"lr": 1e-4, "epochs": float(EPOCHS), "batch_size": BATCH, "precision": precision}
    return {"model": str(minilm()), "training": training}


def settings(args: argparse.Namespace) -> dict[str, Any]:
    corpus = str(args.data / "wikitext2")
    return {"kinds": ["wiki"], "budgets": [1.0], "of": args.queries, "corpus": corpus}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True, help="a model fine-tuned on SST-2")
    parser.add_argument("--data", type=Path, required=True, help="the folder with sst2, wikitext2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-5, 1e-4, 2e-4])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    values = {
        "victim": str(args.teacher), "data": {"path": str(args.data / "sst2")},
        "queries": settings(args), "thieves": [thief_settings()], "cache": str(args.out / "cache"),
    }  # fmt: skip
    made = Audit(parse(AuditConfig, values), Terminal())
    tried = {rate: knockoff(args, 100, rate, made) for rate in args.rates}
    best = max(tried, key=lambda rate: tried[rate]["agreed"])
    found: dict[str, Any] = {"tried": {f"{r:g}": each for r, each in tried.items()}, "rate": best}
    for seed in range(args.seeds):
        turns = [("art", ""), ("ours", "auto")]
        if machine().precision != "float32":
            turns.append(("ours, float32", "float32"))
        for name, precision in turns if seed % 2 else reversed(turns):
            one = ours(args, seed, precision) if precision else knockoff(args, seed, best, made)
            found.setdefault(name, []).append(one)
    write_json(args.out / "knockoff.json", found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
