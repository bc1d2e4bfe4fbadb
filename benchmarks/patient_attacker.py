"""What still finds marks, and what it costs: one attacker with the source code and patience.

command    python benchmarks/patient_attacker.py --teacher sst2-teacher \
               --data $STILLHOUSE_DATA/sst2 --out attacker
hardware   two CPU cores, service and attacker on the same machine
result     see docs/results.md, "A patient attacker"

An attacker asks each question in several forms, or by several accounts, and takes the answer that
most of them have. Of the marked questions it is counted how many it finds (not all answers are
alike) and how many are still wrong after the majority; the price is in queries a question. Then it
times a service on loopback and compares digits: of two numbers, one of a kept question and one of
another, how often is the first the larger (AUC; 0.5: nothing is told)?
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from scipy import stats

from stillhouse.core.config import DataConfig
from stillhouse.core.rundir import write_json
from stillhouse.core.seeding import generator
from stillhouse.core.settings import parse
from stillhouse.core.types import Example
from stillhouse.data.sources import load
from stillhouse.guard import Guard, GuardConfig, Keys, Registry, ServedModel, new_keys, read_keys
from stillhouse.guard.suspects import changed
from stillhouse.guard.watermark import draw

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "guard"))
from processes import service

RATE, CONTROLS = 0.05, 3  # many marks, so that few questions tell much
AT_ONCE = 64
Form = Callable[[str], str]

ALIKE: dict[str, Sequence[Form]] = {
    "control characters": [lambda t: t[0] + "\x07" + t[1:], lambda t: t[:-1] + "\x7f" + t[-1]],
    "punctuation and spaces": [lambda t: t + " ?!", lambda t: t.replace(" ", " , ", 1)],
    "case and order": [str.upper, lambda t: " ".join(reversed(t.split()))],
    "repeated words": [lambda t: t + " " + t.split()[0], lambda t: t.split()[-1] + " " + t],
    "what is cut off": [lambda t: f"{t} " * 60 + "dull", lambda t: f"{t} " * 60 + "lovely"],
}
OTHER: dict[str, Sequence[Form]] = {
    "a word more": [
        lambda t, word=word: f"{t} {word}" for word in ("indeed", "really", "truly", "well")
    ],
    "a word less, two swapped": [
        lambda t, seed=seed: changed(Example(t), seed).text for seed in range(4)
    ],
}  # fmt: skip


def labels(guard: Guard, model: ServedModel, client: str, texts: Sequence[str]) -> list[str]:
    found: list[str] = []
    for at in range(0, len(texts), AT_ONCE):
        few = [Example(text) for text in texts[at : at + AT_ONCE]]
        found += [each["label"] for each in guard.answer(client, few, model.answers)]
    return found


def outcome(
    told: Sequence[Sequence[str]], truths: Sequence[str], marked: Sequence[bool]
) -> dict[str, Any]:
    """told: of each form or account, the label of each question."""
    each = list(zip(*told, strict=True))
    most = [Counter(forms).most_common(1)[0][0] for forms in each]
    of_marks = [i for i, mark in enumerate(marked) if mark]
    others = [i for i, mark in enumerate(marked) if not mark]
    return {
        "queries": len(told), "marks": len(of_marks),
        "found": sum(len(set(each[i])) > 1 for i in of_marks),
        "false": sum(len(set(each[i])) > 1 for i in others) / len(others),
        "left": sum(most[i] != truths[i] for i in of_marks),
        "spoilt": sum(most[i] != truths[i] for i in others) / len(others),
    }  # fmt: skip


def asking(args: argparse.Namespace, model: ServedModel, texts: list[str]) -> dict[str, Any]:
    """Forms of one account, and several accounts, on a guard in this process."""
    found: dict[str, Any] = {}
    keys = Keys(bytes(range(32)))
    truth = model.answers([Example(text) for text in texts])
    truths = [model.choices[int(each.probabilities_K.argmax())] for each in truth]  # pyright: ignore
    contents = [each.content for each in model.reads([Example(text) for text in texts])]
    for scope in ("client", "everyone"):
        path = args.out / f"{scope}.db"
        path.unlink(missing_ok=True)
        marks = {"rate": RATE, "most": RATE, "early": 0, "controls": CONTROLS, "scope": scope}
        config = parse(GuardConfig, {"marks": marks})
        registry = Registry(f"sqlite:///{path}")
        with Guard(config, keys, registry, model.about, reads=model.reads) as guard:
            ids = [registry.create_client(f"account {n}")[0].id for n in range(3)]
            whose = ids[0] if scope == "client" else ""
            marked = [draw(keys.marking, whose, each).chance < RATE for each in contents]
            plain = labels(guard, model, ids[0], texts)
            if scope == "client":
                for name, forms in (ALIKE | OTHER).items():
                    told = [plain, *(labels(guard, model, ids[0], [form(t) for t in texts])
                                     for form in forms)]  # fmt: skip
                    for count in (2, 3, 5):
                        if count <= len(told):
                            found[f"{name}, {count}"] = outcome(told[:count], truths, marked)
            told = [plain, *(labels(guard, model, each, texts) for each in ids[1:])]
            for count in (2, 3):
                what = f"{count} accounts, {scope}"
                found[what] = outcome(told[:count], truths, marked)
    return found


def auc(value_N: np.ndarray, kept_N: np.ndarray) -> tuple[float, float]:
    """And its standard error where nothing is told."""
    test = stats.mannwhitneyu(value_N[kept_N], value_N[~kept_N])
    n, m = int(kept_N.sum()), int((~kept_N).sum())
    return float(test.statistic / (n * m)), ((n + m + 1) / (12 * n * m)) ** 0.5


def watching(args: argparse.Namespace, model: ServedModel, texts: list[str]) -> dict[str, Any]:
    """Times and digits of a service on loopback."""
    key = args.out / "owner.key"
    owner = read_keys(key) if key.exists() else new_keys(key)
    url = f"sqlite:///{args.out / f'timed-{time.monotonic_ns()}.db'}"
    registry = Registry(url)
    registry.upgrade()
    row, secret = registry.create_client("attacker")
    marks = [f"guard.marks.{name}={value}" for name, value in
             (("rate", RATE), ("most", RATE), ("early", 0), ("controls", CONTROLS))]  # fmt: skip
    sets = [each for mark in (*marks, "guard.shows=probabilities") for each in ("--set", mark)]
    first, second, alone = [], [], []
    with (
        service(args.teacher, url, key, args.out, *sets) as running,
        httpx.Client(headers={"Authorization": f"Bearer {secret}"}, timeout=60) as client,
    ):

        def ask(several: list[str]) -> list[dict[str, Any]]:
            found = client.post(f"{running.url}/v1/predict", json={"texts": several})
            return found.raise_for_status().json()["answers"]

        ask(["warm"]), ask(["warm again"])
        for text in texts:
            for times in (first, second):
                began = time.perf_counter()
                (answer,) = ask([text])
                times.append(time.perf_counter() - began)
            alone.append(answer)
        together = [a for at in range(0, len(texts), 16) for a in ask(texts[at : at + 16])]
    registry.close()
    contents = [each.content for each in model.reads([Example(text) for text in texts])]
    kept_N = np.array(
        [draw(owner.marking, row.id, each).chance < RATE * (1 + CONTROLS) for each in contents]
    )
    first_N, second_N = np.array(first), np.array(second)
    same_N = np.array([a == b for a, b in zip(alone, together, strict=True)], float)
    return {
        "questions": len(texts), "kept": int(kept_N.sum()),
        "time, first": auc(first_N, kept_N), "time, first less second": auc(
            first_N - second_N, kept_N), "same digits alone and in a batch": auc(same_N, kept_N),
        "share with the same digits": [float(same_N[kept_N].mean()), float(same_N[~kept_N].mean())],
        "median ms": 1000 * float(np.median(first_N)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True, help="a model fine-tuned on SST-2")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--timed", type=int, default=1000)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = ServedModel(args.teacher)
    rows = load(parse(DataConfig, {"path": str(args.data)}), args.out / "rows").labelled
    order = generator(5, "attacker").permutation(len(rows))[: args.questions * 2].tolist()
    texts = list(dict.fromkeys(each.text for each in rows.at(np.array(order))))
    texts = [text for text in texts if len(text.split()) >= 4][: args.questions]
    found = {"watching": watching(args, model, texts[: args.timed])}
    print(found, flush=True)
    found["asking"] = asking(args, model, texts)
    for what, each in found["asking"].items():
        print(f"| {what} |", " | ".join(str(value) for value in each.values()), "|")
    write_json(args.out / "attacker.json", found)


if __name__ == "__main__":
    main()
