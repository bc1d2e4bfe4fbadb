"""The membership check: how well it tells strangers' questions, and whom it takes for strangers.

command    python benchmarks/membership.py --teacher sst2-teacher --data $STILLHOUSE_DATA \
               --out check
           python benchmarks/membership.py --simulate     (no model, no data)
hardware   two CPU cores; see docs/results.md for the time it took
result     see docs/results.md, "The membership check"

After Krishna et al. 2020 sec. 6.1: a linear head on the frozen model's last layer, its logits, or
both, learned from the owner's rows and WIKI queries; AUC and accuracy on WIKI, RANDOM and SHUFFLE,
and the share caught at 1 % and 0.1 % of honest rows. Then streams: how many questions until clients
are flagged (pure and diluted thieves), and honest ones, with the owner's data and with others', and
with bursts of others' texts among the owner's: of a check that knows the owner's data alone, and of
one that was shown some of the others' texts. Each by a test of single questions (burst 1) and by
blocks (burst 50). Who has asked all there is asks it again in another order.

--simulate: clients whose odd questions are drawn, without a model: how many honest ones of each
kind are flagged, and after how many questions thieves are.

Axes: C clients, N questions.
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
from stillhouse.guard.settings import LearnConfig, Odds
from stillhouse.guard.simulated import HONEST, bursty, independent
from stillhouse.guard.suspicion import flagged_at

FEATURES = ("both", "last", "logits")
OTHERS = (("mnli", "premise"), ("sick", "text"))
STREAMS = 200  # clients of each kind
CLIENTS, ASKED = 2000, 2500  # of simulated honest ones; questions
LENGTHS = (5, 20, 50)
THIEVES = (  # what share of their questions is odd, after so many honest ones
    ("pure", 0.87, 0), ("half of the questions", 0.46, 0), ("a fifth", 0.21, 0),
    ("pure, after 20,000 honest questions", 0.87, 20_000),
)  # fmt: skip


def odd(model: ServedModel, examples: Sequence[Example]) -> np.ndarray:
    """Whether each looks odd."""
    found = model.answers(examples)
    return np.array([truth.odd is not None and truth.odd > 0 for truth in found])


def said(odd_CN: np.ndarray, args: argparse.Namespace) -> dict[str, Any]:
    """How many of these clients are flagged by either test, and after how many questions: of those
    that are, the median and the last."""
    found: dict[str, Any] = {"odd": float(odd_CN.mean())}
    for burst in args.bursts:
        odds = Odds(alpha=args.alpha, tolerance=args.tolerance, burst=burst)
        caught = [int(each) for each in flagged_at(odd_CN, odds) if each]
        found[f"burst {burst:g}"] = {
            "flagged": len(caught) / len(odd_CN),
            "median": float(np.median(caught)) if caught else None,
            "slowest": max(caught, default=None),
        }
    return found


def in_any_order(odd_N: np.ndarray, seed: int) -> np.ndarray:
    """Of clients who ask these in a random order, C x N."""
    rng = generator(seed, "stream")
    rounds = -(-ASKED // len(odd_N))
    return np.stack(
        [
            np.concatenate([rng.permutation(odd_N) for _ in range(rounds)])[:ASKED]
            for _ in range(STREAMS)
        ]
    )


def in_bursts(own_N: np.ndarray, other_N: np.ndarray, length: int, seed: int) -> np.ndarray:
    """Of clients who ask the owner's kind of questions, and bursts of another kind: a twentieth of
    all, `length` in a row in the mean."""
    of_others = bursty(generator(seed, "bursts", length), (STREAMS, ASKED), 0.05, length)
    return np.where(of_others, in_any_order(other_N, seed + 1), in_any_order(own_N, seed + 2))


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
    found: dict[str, Any] = {"alpha": args.alpha, "tolerance": args.tolerance}
    own_N = odd(model, [Example(e.text, e.pair) for e in honest["the owner's reported rows"]])
    for name, rows in honest.items():
        odd_N = odd(model, [Example(e.text, e.pair) for e in rows])
        found[name] = said(in_any_order(odd_N, 1), args)
        for length in LENGTHS if name in asked else ():
            found[f"the owner's, 5 % {name} in bursts of {length}"] = said(
                in_bursts(own_N, odd_N, length, 5), args
            )
    for kind in ("wiki", "random"):
        odd_N = odd(model, queries(Source(corpus, kind, "single", 11), 1000))  # pyright: ignore
        for share in (1.0, 0.5, 0.2, 0.1):
            rng = generator(2, kind, int(100 * share))
            mixed_N = np.where(rng.random(1000) < share, odd_N, rng.choice(own_N, 1000))
            found[f"{kind}, {share:.0%} of the questions"] = said(in_any_order(mixed_N, 3), args)
    return found


def simulate(args: argparse.Namespace) -> None:
    """Prints two tables."""
    print(f"alpha {args.alpha:g}, tolerance {args.tolerance:g}\n")
    heads = [f"burst {burst:g}" for burst in args.bursts]
    print(f"| {CLIENTS:,} honest clients, {ASKED:,} questions | {' | '.join(heads)} |")
    print("|---" * (1 + len(heads)) + "|")
    for name, draw in HONEST.items():
        found = said(draw(generator(7, name), (CLIENTS, ASKED)), args)
        print(f"| {name} |", " | ".join(f"{found[each]['flagged']:.2%}" for each in heads), "|")
    print(f"\n| {STREAMS} thieves, after (median; slowest) | {' | '.join(heads)} |")
    print("|---" * (1 + len(heads)) + "|")
    for name, share, honest in THIEVES:
        rng = generator(8, name)
        before = independent(rng, (STREAMS, honest), 0.03)
        odd_CN = np.concatenate([before, independent(rng, (STREAMS, 8000), share)], axis=1)
        found = said(odd_CN, args)
        print(f"| {name} |", " | ".join(_found(found[each], honest) for each in heads), "|")


def _found(each: dict[str, Any], honest: int) -> str:
    if not each["flagged"]:
        return "not"
    part = "" if each["flagged"] == 1 else f", {each['flagged']:.0%} of them"
    return f"{each['median'] - honest:,.0f}; {each['slowest'] - honest:,}{part}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulate", action="store_true", help="drawn clients, no model")
    parser.add_argument("--teacher", help="a model fine-tuned on SST-2")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--bursts", type=float, nargs="+", default=[1, 50], help="check.burst")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--shown", type=int, default=4000, help="rows of each other data set")
    parser.add_argument("--alpha", type=float, default=1e-3)
    parser.add_argument("--tolerance", type=float, default=0.1)
    args = parser.parse_args()
    if args.simulate:
        simulate(args)
        return
    if not (args.teacher and args.data and args.out):
        parser.error("give --teacher, --data and --out (or --simulate)")
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
