"""What the guard costs a service: latency and throughput, guarded and not, by turns; what one
client's heaviest requests cost another; and ten minutes of load with workers killed and the
database restarted.

command    python benchmarks/guard_load.py --teacher sst2-teacher --out load
           python benchmarks/guard_load.py --teacher sst2-teacher --out load --fair
           python benchmarks/guard_load.py --teacher squad-teacher --out load --fair --spans
           python benchmarks/guard_load.py --teacher sst2-teacher --out load --soak 600
hardware   two CPU cores, services, database and clients on the same machine
result     see docs/results.md, "Load"

Real processes on loopback: `stillhouse serve` with two workers on a PostgreSQL of its own, and with
one on SQLite; the registries have 100,000 rows already; clients are threads that ask one question
at a time. The bare service beside it batches by the same scheduler. Run as root it starts the
server as the user postgres.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import sqlalchemy as sa

from stillhouse.core.rundir import write_json
from stillhouse.core.types import Example
from stillhouse.guard import Keys, Registry, ServedModel, new_keys, read_keys
from stillhouse.guard.purses import LEASE
from stillhouse.guard.tables import queries
from stillhouse.guard.watermark import draw

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "guard"))
import postgres
from processes import Running, service

WORDS = ("a", "the", "film", "story", "was", "quite", "very", "good", "bad", "dull", "warm", "with")
ROWS = 100_000


def text(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(8, 20)))


def filled(registry: Registry, client: str, count: int) -> None:
    """A registry with so many rows."""
    registry.upgrade()
    rng = np.random.default_rng(0)
    rows = [
        {"time": time.time() - 1e5 + i, "client": client, "query": rng.bytes(16), "model": "before",
         "units": 1, "odd": False, "text": None, "pair": None} for i in range(count)
    ]  # fmt: skip
    with registry.writing() as connection:
        for at in range(0, count, 5000):
            connection.execute(sa.insert(queries), rows[at : at + 5000])


def asked(
    url: str, key: str | None, *, clients: int, seconds: float, turn: int, pair: str | None = None
) -> dict[str, float]:
    """Requests a second, and quantiles of their times in milliseconds. Every question is new."""
    stop = time.monotonic() + seconds
    times: list[list[float]] = [[] for _ in range(clients)]

    def work(number: int) -> None:
        rng = random.Random(f"{turn}, {number}")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(timeout=30) as client:
            while time.monotonic() < stop:
                started = time.perf_counter()
                body = {"text": text(rng)} | ({} if pair is None else {"pair": pair})
                found = client.post(f"{url}/v1/predict", json=body, headers=headers)
                times[number].append(1000 * (time.perf_counter() - started))
                assert found.status_code == 200, found.text

    threads = [threading.Thread(target=work, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = np.concatenate([np.array(each) for each in times])
    return {
        "per_s": len(every) / seconds, "p50_ms": float(np.quantile(every, 0.5)),
        "p99_ms": float(np.quantile(every, 0.99)),
    }  # fmt: skip


def kinds(args: argparse.Namespace, cluster: postgres.Cluster) -> Iterator[tuple[str, str, int]]:
    """Each kind of database, an empty registry there, and how many workers it serves."""
    yield "PostgreSQL", cluster.database(), args.workers
    file = args.out / f"registry-{time.monotonic_ns()}.db"
    yield "SQLite", f"sqlite:///{file}", 1


def latency(args: argparse.Namespace, cluster: postgres.Cluster) -> dict[str, Any]:
    """Guarded and unguarded by turns, one client and several, on each kind of database."""
    return {name: _latency(args, url, n) for name, url, n in kinds(args, cluster)}


def _latency(args: argparse.Namespace, url: str, count: int) -> dict[str, Any]:
    registry = Registry(url)
    registry.upgrade()
    row, key = registry.create_client("load")
    filled(registry, row.id, ROWS)
    workers = ("--workers", str(count)) if count > 1 else ()
    check = ("--membership", str(args.membership)) if args.membership else ()
    found: dict[str, Any] = {}
    with (
        service(args.teacher, url, args.key, args.out, *workers, *check) as guarded,
        service(args.teacher, url, args.key, args.out, *workers, "--set", "guarded=false") as plain,
    ):
        for clients in args.clients:
            turns: dict[str, list[dict[str, float]]] = {"guarded": [], "plain": []}
            for each, secret in ((guarded, key), (plain, None)):  # warm
                asked(each.url, secret, clients=clients, seconds=3, turn=-clients)
            for turn in range(args.turns):
                how = {"clients": clients, "seconds": args.seconds, "turn": turn + 1000 * clients}
                turns["plain"].append(asked(plain.url, None, **how))
                turns["guarded"].append(asked(guarded.url, key, **how))
            found[f"{clients} clients"] = {
                name: {k: statistics.median(t[k] for t in each) for k in each[0]}
                for name, each in turns.items()
            }
            print(url.partition(":")[0], clients, found[f"{clients} clients"], flush=True)
    registry.close()
    return found


def heavy(*, spans: bool) -> dict[str, dict[str, Any]]:
    """The worst requests that sizes allow, by kind."""
    long = "parcel late please help " * 2_000
    found: dict[str, dict[str, Any]] = {
        "256 texts of 16,000 characters": {"texts": [f"{n} {long[:15_900]}" for n in range(256)]},
        "80 texts of 49,000 characters": {"texts": [f"{n} {long[:48_900]}" for n in range(80)]},
        "80 Korean texts of 16,000 characters": {
            "texts": [f"{n} " + "\uac01" * 16_000 for n in range(80)]
        },
        "256 texts that fold to many characters": {
            "texts": [f"{n} " + "\ufdfa" * 5_000 for n in range(256)]
        },
        "256 short texts": {"texts": [f"a film {n}" for n in range(256)]},
    }  # fmt: skip
    if not spans:
        return found
    passages = {
        "6 passages of 49,000 characters": [f"a b {n} " * 7_000 for n in range(6)],
        "80 passages of 3,000 characters": [f"it was late {n} " * 200 for n in range(80)],
    }
    return {
        name: {"texts": ["who?"] * len(each), "pairs": [text[:49_000] for text in each]}
        for name, each in passages.items()
    }


class Greedy:
    """A client that sends one heavy request after another, several at once."""

    def __init__(self, url: str, key: str, body: dict[str, Any], *, at_once: int = 3) -> None:
        self._url, self._key = url, key
        self._body = json.dumps(body, ensure_ascii=False).encode()
        self.statuses: dict[int, int] = {}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(at_once)]

    def __enter__(self) -> Greedy:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        headers = {"Authorization": f"Bearer {self._key}", "content-type": "application/json"}
        with httpx.Client(timeout=60) as client:
            while not self._stop.is_set():
                found = client.post(
                    f"{self._url}/v1/predict", content=self._body, headers=headers
                ).status_code
                self.statuses[found] = self.statuses.get(found, 0) + 1
                if found != 200:
                    time.sleep(0.5)


def fair(args: argparse.Namespace, cluster: postgres.Cluster) -> dict[str, Any]:
    """What a light client waits for, alone and beside a client with the heaviest requests."""
    return {name: _fair(args, url, n) for name, url, n in kinds(args, cluster)}


def _fair(args: argparse.Namespace, url: str, count: int) -> dict[str, Any]:
    registry = Registry(url)
    registry.upgrade()
    _, light = registry.create_client("light")
    _, greedy = registry.create_client("greedy")
    pair = "It was written by Ann Lee." if args.spans else None
    workers = ("--workers", str(count)) if count > 1 else ()
    found: dict[str, Any] = {}
    with service(args.teacher, url, args.key, args.out, *workers) as running:
        how: dict[str, Any] = {"clients": 1, "seconds": args.seconds, "pair": pair}
        asked(running.url, light, clients=1, seconds=3, turn=-1, pair=pair)
        for turn, (kind, body) in enumerate(heavy(spans=args.spans).items()):
            alone = asked(running.url, light, turn=2 * turn, **how)
            with Greedy(running.url, greedy, body) as load:
                time.sleep(1)
                beside = asked(running.url, light, turn=2 * turn + 1, **how)
            found[kind] = {
                "alone": alone, "beside": beside, "statuses": load.statuses,
                "ratio_p50": beside["p50_ms"] / alone["p50_ms"],
                "ratio_p99": beside["p99_ms"] / alone["p99_ms"],
            }  # fmt: skip
            print(url.partition(":")[0], kind, found[kind], flush=True)
    registry.close()
    return found


class Soak:
    """Clients that ask on whatever happens, and count what they were given."""

    def __init__(self, url: str, keys: list[str]) -> None:
        self.url, self.keys = url, keys
        self.told: list[dict[str, str]] = [{} for _ in keys]
        self.paid, self.statuses = [0] * len(keys), dict[int, int]()
        self.stop, self.changed = threading.Event(), 0
        self.threads = [threading.Thread(target=self.work, args=(n,)) for n in range(len(keys))]

    def work(self, number: int) -> None:
        rng = random.Random(number)
        with httpx.Client(timeout=10) as client:
            while not self.stop.is_set():
                texts = [text(rng) for _ in range(rng.choice([1, 1, 1, 4, 16]))]
                try:
                    found = client.post(
                        f"{self.url}/v1/predict", json={"texts": texts},
                        headers={"Authorization": f"Bearer {self.keys[number]}"},
                    )  # fmt: skip
                except httpx.HTTPError:
                    self.statuses[0] = self.statuses.get(0, 0) + 1
                    time.sleep(0.05)
                    continue
                self.statuses[found.status_code] = self.statuses.get(found.status_code, 0) + 1
                if found.status_code != 200:
                    time.sleep(0.1)
                    continue
                self.paid[number] += len(texts)
                for asked_, answer in zip(texts, found.json()["answers"], strict=True):
                    before = self.told[number].setdefault(asked_, answer["label"])
                    self.changed += before != answer["label"]


def memory(running: Running) -> int:
    """Bytes of the workers' own memory."""
    return sum(psutil.Process(pid).memory_info().rss for pid in running.workers())


def soak(args: argparse.Namespace, cluster: postgres.Cluster, owner: Keys) -> dict[str, Any]:
    url = cluster.database()
    registry = Registry(url)
    registry.upgrade()
    made = [registry.create_client(f"client {n}") for n in range(4)]
    held: list[tuple[float, int]] = []
    kills = restarts = 0
    marks = ("--set", "guard.marks.rate=0.02", "--set", "guard.marks.early=0")
    with service(
        args.teacher, url, args.key, args.out, "--workers", str(args.workers), *marks
    ) as running:
        load = Soak(running.url, [key for _, key in made])
        for thread in load.threads:
            thread.start()
        began = time.monotonic()
        while time.monotonic() - began < args.soak:
            time.sleep(min(20.0, args.soak / 10))
            held.append((time.monotonic() - began, memory(running)))
            if len(held) % 3 == 0:
                workers = running.workers()
                os.kill(workers[kills % len(workers)], signal.SIGKILL)
                kills += 1
            if len(held) % 10 == 5:
                cluster.stop()
                time.sleep(2)
                cluster.start()
                restarts += 1
        load.stop.set()
        for thread in load.threads:
            thread.join()
        time.sleep(3)
    model = ServedModel(args.teacher)
    without, lost = 0, list[int]()
    for (row, _), told, paid in zip(made, load.told, load.paid, strict=True):
        kept = {e.read for e in registry.evidence(client=row.id) if e.kind == "mark"}
        contents = [each.content for each in model.reads([Example(t) for t in told])]
        likely = [
            (text, content)
            for text, content in zip(told, contents, strict=True)
            if draw(owner.marking, row.id, content).chance < 0.02
        ]
        truths = model.answers([Example(text) for text, _ in likely])
        for (text_, content), truth in zip(likely, truths, strict=True):
            assert truth.probabilities_K is not None
            true = model.choices[int(truth.probabilities_K.argmax())]
            without += told[text_] != true and content not in kept
        lost.append(registry.client(row.id).charged - paid)
    registry.close()
    bound = (kills + args.workers) * (LEASE + 16)  # of each client: leases, and what was under way
    assert without == load.changed == 0, (without, load.changed)
    assert min(lost) >= 0, f"not charged: {lost}"
    assert max(lost) <= bound, f"charged in vain: {lost}, {bound} at most"
    return {
        "seconds": args.soak, "questions": sum(load.paid), "statuses": load.statuses,
        "kills": kills, "restarts": restarts, "marked_without_record": without,
        "answers_that_changed": load.changed, "charged_and_not_answered": lost, "bound": bound,
        "memory": held,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True, help="a model fine-tuned on SST-2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--membership", type=Path, help="a learned check's folder")
    parser.add_argument("--fair", action="store_true", help="beside heavy requests, instead")
    parser.add_argument("--spans", action="store_true", help="the teacher answers from passages")
    parser.add_argument("--soak", type=float, help="seconds of load with kills, instead")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.key = args.out / "owner.key"
    owner = read_keys(args.key) if args.key.exists() else new_keys(args.key)
    with postgres.running() as cluster:
        if args.soak:
            name, found = "soak", soak(args, cluster, owner)
        elif args.fair:
            name, found = "fair", fair(args, cluster)
        else:
            name, found = "latency", latency(args, cluster)
    write_json(args.out / f"{name}.json", found)
    print(found)


if __name__ == "__main__":
    main()
