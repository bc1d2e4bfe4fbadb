"""The membership check: how well it tells strangers' questions, and whom it takes for strangers.

command    python benchmarks/membership.py --teacher sst2-teacher --data $STILLHOUSE_DATA \
               --out check
hardware   two CPU cores; see docs/results.md for the time it took
result     see docs/results.md, "The membership check"

After Krishna et al. 2020 sec. 6.1: a linear head on the frozen model's last layer, its logits, or
both, learned from the owner's rows and WIKI queries; AUC and accuracy on WIKI, RANDOM and SHUFFLE,
and the share caught at 1 % and 0.1 % of honest rows. Then streams: how many questions until clients
are flagged (pure and diluted thieves), and honest ones, with the owner's data and with others':
of a check that knows the owner's data alone, and of one that was shown some of the others' texts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.core.config import DataConfig
from stillhouse.core.console import Terminal
from stillhouse.core.rundir import write_json, write_text
from stillhouse.core.seeding import generator
from stillhouse.core.settings import parse
from stillhouse.core.types import Example
from stillhouse.data.sources import load
from stillhouse.extract.corpus import read_corpus
from stillhouse.extract.queries import Source, queries
from stillhouse.guard import Head, ServedModel
from stillhouse.guard.learning import learn_check
from stillhouse.guard.settings import LearnConfig
from stillhouse.guard.suspicion import Evidence, Odds, joined

FEATURES = ("both", "last", "logits")
OTHERS = (("mnli", "premise"), ("sick", "text"))
STREAMS = 200  # clients of each kind


def odd(model: ServedModel, examples: Sequence[Example]) -> np.ndarray:
    """Whether each looks odd."""
    found = model.answers(examples)
    return np.array([truth.odd is not None and truth.odd > 0 for truth in found])


def until(odd_N: np.ndarray, odds: Odds, *, length: int, seed: int) -> list[int | None]:
    """After how many questions each of many clients is flagged, who ask these in random order."""
    found: list[int | None] = []
    for number in range(STREAMS):
        evidence, at = Evidence(), None
        order = generator(seed, "stream", number).permutation(len(odd_N))[:length]
        for place, one in enumerate(odd_N[order].tolist(), 1):
            evidence, suspect = joined(evidence, 1, int(one), odds)
            if suspect:
                at = place
                break
        found.append(at)
    return found


def said(found: Sequence[int | None]) -> dict[str, Any]:
    caught = [each for each in found if each is not None]
    return {
        "flagged": len(caught) / len(found),
        "median": float(np.median(caught)) if caught else None,
        "slowest": max(caught, default=None),
    }


def others(args: argparse.Namespace) -> tuple[dict[str, list[Example]], Path]:
    """What honest clients with other data ask, and a file of texts of these that no client asks."""
    asked: dict[str, list[Example]] = {}
    shown: list[str] = []
    for other, column in OTHERS:
        config = parse(DataConfig, {"path": str(args.data / other)})
        theirs = load(config, args.out / "cache" / "rows")
        rows = list(dict.fromkeys(e.text for e in theirs.reported))[:1000]
        asked[f"{other} ({column}s)"] = [Example(text) for text in rows]
        first = list(dict.fromkeys(e.text for e in list(theirs.labelled)[: args.shown]))
        shown += [" ".join(text.split()) for text in first if text not in set(rows)]
    write_text(args.out / "customers.txt", "\n".join(shown))
    return asked, args.out / "customers.txt"


def streams(
    args: argparse.Namespace, folder: Path, asked: dict[str, list[Example]]
) -> dict[str, Any]:
    model = ServedModel(args.teacher, head=Head.load(folder))
    store = args.out / "cache"
    corpus = read_corpus(str(args.data / "wikitext2"), store, Terminal())
    splits = load(parse(DataConfig, {"path": str(args.data / "sst2")}), store / "rows")
    honest = {"the owner's reported rows": list(splits.reported), **asked}
    odds = Odds(alpha=args.alpha, tolerance=args.tolerance)
    found: dict[str, Any] = {"alpha": odds.alpha, "tolerance": odds.tolerance}
    own_N = odd(model, honest["the owner's reported rows"])
    for name, rows in honest.items():
        odd_N = odd(model, [Example(e.text, e.pair) for e in rows])
        found[name] = {"odd": float(odd_N.mean()), **said(until(odd_N, odds, length=500, seed=1))}
    for kind in ("wiki", "random"):
        odd_N = odd(model, queries(Source(corpus, kind, "single", 11), 1000))  # pyright: ignore
        for share in (1.0, 0.5, 0.1):
            rng = generator(2, kind, int(100 * share))
            mixed_N = np.where(rng.random(1000) < share, odd_N, rng.choice(own_N, 1000))
            found[f"{kind}, {share:.0%} of the questions"] = {
                "odd": float(mixed_N.mean()), **said(until(mixed_N, odds, length=1000, seed=3))
            }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True, help="a model fine-tuned on SST-2")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--shown", type=int, default=4000, help="rows of each other data set")
    parser.add_argument("--alpha", type=float, default=1e-3)
    parser.add_argument("--tolerance", type=float, default=0.1)
    args = parser.parse_args()
    asked, customers = others(args)
    found: dict[str, Any] = {}
    for name in (*FEATURES, "customers"):
        data = {"path": str(args.data / "sst2")}
        values = {
            "model": str(args.teacher), "rows": args.rows, "cache": str(args.out / "cache"),
            "data": data | ({"unlabelled": str(customers)} if name == "customers" else {}),
            "corpus": str(args.data / "wikitext2"),
            "features": "both" if name == "customers" else name,
        }  # fmt: skip
        learned = learn_check(parse(LearnConfig, values), args.out / name, progress=Terminal())
        found[name] = learned.as_json()
        print(name, found[name], flush=True)
    for name in ("both", "customers"):
        found[f"streams, {name}"] = streams(args, args.out / name, asked)
        for client, each in found[f"streams, {name}"].items():
            print(f"| {name} | {client} | {each} |")
    write_json(args.out / "membership.json", found)


if __name__ == "__main__":
    main()
