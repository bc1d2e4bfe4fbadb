"""How fast queries are made: single texts, one core.

command    python benchmarks/query_speed.py --corpus $STILLHOUSE_DATA/wikitext2 --cache cache
hardware   one CPU core; seconds
result     see docs/results.md, "Stolen"
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from stillhouse.core.progress import Silent
from stillhouse.extract.config import Kind
from stillhouse.extract.corpus import read_corpus
from stillhouse.extract.queries import Source, queries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=67_349)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    corpus = read_corpus(args.corpus, args.cache, Silent())
    kinds: tuple[Kind, ...] = ("random", "frequency", "wiki", "shuffled")
    speeds: dict[Kind, list[float]] = {kind: [] for kind in kinds}
    for seed in range(args.repeats):  # in turns
        for kind in kinds:
            started = time.perf_counter()
            queries(Source(corpus, kind, "single", seed), args.queries)
            speeds[kind].append(args.queries / (time.perf_counter() - started))
    for kind, found in speeds.items():
        low, high = min(found), max(found)
        print(f"{kind:10} {statistics.median(found):9,.0f} queries/s ({low:,.0f} to {high:,.0f})")


if __name__ == "__main__":
    main()
