"""What marks prove: thieves of a marked model, independent models, and thieves who fight back.

command    python benchmarks/watermark.py --teacher sst2-teacher --data $STILLHOUSE_DATA --out marks
           of pairs and spans: --tasks sick squad --victims audits/victims --parts table
           the larger one: --queries 67349 --fight 10
hardware   two CPU cores; see docs/results.md for the time it took
result     see docs/results.md, "Marks"

After Krishna et al. 2020 sec. 6.2: thieves of 3 and of 10 epochs on WIKI queries. A client asks the
guarded model; its answers train a public MiniLM; the copy is tried for the client's marks. Every
training is done once and kept, so a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from stillhouse.core.console import Terminal
from stillhouse.core.rundir import write_json, write_text
from stillhouse.core.seeding import generator
from stillhouse.core.settings import parse
from stillhouse.core.types import Example
from stillhouse.data.rows import Columns, ingest
from stillhouse.data.sources import Part, Pool
from stillhouse.extract.answers import Answers, from_json
from stillhouse.extract.config import AuditConfig
from stillhouse.extract.setup import Audit, judged, victim_of
from stillhouse.extract.sweep import at
from stillhouse.extract.thief import Thief
from stillhouse.flows.stages import load_trained
from stillhouse.guard import Guard, GuardConfig, Keys, Registry, ServedModel
from stillhouse.guard import evidence as statistics
from stillhouse.guard.model import Truth
from stillhouse.guard.registry import Kept
from stillhouse.guard.suspects import changed
from stillhouse.guard.trial import Said, trial
from stillhouse.models.builtin import minilm
from stillhouse.models.load import load_tokenizer
from stillhouse.models.save import save_model
from stillhouse.tasks.base import Task

KEYS = Keys(bytes(range(32)))
NONE = {"rate": 0.0, "most": 0.0}
RATES = {
    "0.1 %": {"rate": 0.001, "early": 0}, "adaptive": {},
    "3 %": {"rate": 0.03, "most": 0.03, "early": 0},
}  # fmt: skip
ALIKE = {"scope": "everyone", "rate": 0.005}
LR = {"squad": 2e-4}
PARTS = ("table", "alarms", "thieves")


@dataclass(frozen=True)
class Client:
    """A client's stream and what it was told."""

    name: str
    id: str
    pool: Pool
    answers: Answers
    kept: list[Kept]


class World:
    """One task: its data, the guarded model, thieves."""

    def __init__(self, task: str, args: argparse.Namespace) -> None:
        self.name, self.args = task, args
        self.out = args.out / task
        victim = str(args.teacher if task == "sst2" else args.victims / task)
        values = {
            "victim": victim, "data": {"path": str(args.data / task)},
            "queries": {"kinds": ["wiki"], "budgets": [1.0], "of": args.queries,
                        "corpus": str(args.data / "wikitext2")},
            "thieves": [{"model": str(minilm()), "training": {"epochs": 1.0}}],
            "cache": str(args.out / "cache"),
        }  # fmt: skip
        self.config = parse(AuditConfig, values)
        self.made = Audit(self.config, Terminal())
        with victim_of(self.config, self.made) as (_, found):
            self.task: Task = found
        self.model = ServedModel(victim)
        self._known: dict[tuple[str, str | None], Truth] = {}

    def thief(self, epochs: float) -> Thief:
        training = {"lr": LR.get(self.name, 1e-4), "epochs": epochs}
        if self.task.name == "span":
            training["batch_size"] = 16
        config = parse(AuditConfig, self.config.model_dump() | {
            "thieves": [{"model": str(minilm()), "training": training}]})  # fmt: skip
        return Thief(
            config.thieves[0], self.task, self.made.store, Terminal(),
            max_length=self.config.data.tokens(self.task.name), trust_remote_code=False,
        )  # fmt: skip

    @cached_property
    def reported(self) -> Any:
        return self.thief(1).data(self.made.splits.reported, "reported rows")

    def truths(self, examples: list[Example]) -> list[Truth]:
        """The victim's own answers; what was asked before isn't reckoned again."""
        new = [each for each in examples if (each.text, each.pair) not in self._known]
        for each, truth in zip(new, self.model.answers(new), strict=True):
            self._known[each.text, each.pair] = truth
        return [self._known[each.text, each.pair] for each in examples]

    def queries(self, seed: int, count: int) -> Pool:
        return self.made.stream("wiki", seed, count)

    def told(self, name: str, pool: Pool, *, view: str, marks: dict[str, Any]) -> Client:
        """A client of a guard of its own, which asks all of `pool`."""
        folder = self.out / "registries"
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / f"{name}.db"
        config = parse(GuardConfig, {"marks": marks, "shows": view})
        registry = Registry(f"sqlite:///{place}")
        registry.upgrade()
        names = {row.name: row.id for row in registry.clients()}
        found = names.get(name) or registry.create_client(name)[0].id
        asked, said = list(pool), []
        with Guard(config, KEYS, registry, self.model.about) as guard:
            for start in range(0, len(asked), 256):
                said += guard.answer(found, asked[start : start + 256], self.truths)
            guard.flush()
            kept = registry.evidence(client=found)
        answers = from_json([_as_read(each) for each in said], self.model.choices or None)
        return Client(name, found, pool, answers, kept)

    def copy(
        self, title: str, client: Client, *, epochs: float, seed: int = 0,
        pool: Pool | None = None, answers: Answers | None = None,
    ) -> Path:  # fmt: skip
        """The folder of a thief that learned a client's answers, made once."""
        folder = self.out / "copies" / title
        if (folder / "score.json").exists():
            return folder
        thief, training = self.thief(epochs), self.out / "trainings" / title
        training.mkdir(parents=True, exist_ok=True)
        trained = thief.learn(
            title, seed, pool or client.pool, answers or client.answers, self.reported, training
        )
        model = load_trained(trained, thief.make(seed))
        save_model(model, load_tokenizer(str(minilm())), folder)
        write_json(folder / "score.json", {"score": self.score(ServedModel(folder))})
        return folder

    def score(self, model: ServedModel) -> float:
        """On the reported rows."""
        return _scored(
            self, [_shown(model, t) for t in model.answers(list(self.made.splits.reported))]
        )

    def tried(
        self, model: ServedModel | Callable[[list[Example]], list[str]], client: Client
    ) -> dict[str, Any]:
        """A suspect tried for a client's marks, as asked and changed."""
        say = model if callable(model) else lambda examples: _names(model, examples)
        found: dict[str, Any] = {}
        whole = [Example(kept.text, kept.pair) for kept in client.kept]
        for form, asked in (("as asked", whole), ("changed", [changed(e, 0) for e in whole])):
            said = Said(form, say(asked))
            got = trial(client.id, client.kept, said, self.model.choices, alpha=1e-3)
            rng = generator(0, "randomised", client.name, form)
            found[form] = {
                "marks": got.table.marks, "hits": got.table.hits, "controls": got.table.controls,
                "chance_hits": got.table.chance_hits, "true": got.true, "p": got.p_value,
                "interval": got.interval, "rekeyed": got.rekeyed,
                "uniform": randomised(got.table, float(rng.random())),
            }  # fmt: skip
        return found


def _as_read(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer as an endpoint reads it."""
    return {"probabilities": answer["probabilities"]} if "probabilities" in answer else answer


def _shown(model: ServedModel, truth: Any) -> dict[str, Any]:
    if truth.text is not None:
        return {"text": truth.text}
    shares = dict(zip(model.choices, truth.probabilities_K.tolist(), strict=True))
    return {"probabilities": shares}


def _scored(world: World, said: Sequence[dict[str, Any]]) -> float:
    answers = from_json(list(said), world.model.choices or None)
    return world.task.score(judged(answers, world.task, world.made.splits.reported))[
        world.task.metric
    ]


def _names(model: ServedModel, examples: list[Example]) -> list[str]:
    return [
        t.text if t.text is not None else model.choices[int(t.probabilities_K.argmax())]
        for t in model.answers(examples)
    ]


def randomised(found: statistics.Table, uniform: float) -> float:
    """Fisher's p-value without its steps: exactly uniform for independent models."""
    total, all_hits = found.marks + found.controls, found.hits + found.chance_hits
    law = stats.hypergeom(total, all_hits, found.marks)
    return float(law.sf(found.hits) + uniform * law.pmf(found.hits))


def table(world: World) -> list[dict[str, Any]]:
    """Thieves of marked and unmarked models: what they score, and what they remember."""
    args, rows = world.args, []
    views = ["text"] if world.task.name == "span" else args.views
    pool = world.queries(0, args.queries)
    honest = list(world.made.splits.reported)
    for view in views:
        marked = {
            n: world.told(f"{view}-{n[:3]}", pool, view=view, marks=RATES[n]) for n in args.rates
        }
        plain = world.told(f"{view}-unmarked", pool, view=view, marks=NONE)
        costs = {}
        for name in args.rates:  # of an honest client who asks the reported rows
            rows_of = world.told(
                f"{view}-honest-{name[:3]}", Pool(world.made.splits.reported.parts), view=view,
                marks=RATES[name],
            )  # fmt: skip
            said = [_answer(rows_of.answers, i, world) for i in range(len(honest))]
            costs[name] = _scored(world, said)
        for epochs in args.epochs:
            copy = world.copy(f"{view}-unmarked-{epochs:g}", plain, epochs=epochs)
            for name, client in marked.items():
                rows.append(_row(world, copy, client, view, epochs, name, marked=False))
                stolen = world.copy(f"{view}-{name[:3]}-{epochs:g}", client, epochs=epochs)
                rows.append(_row(world, stolen, client, view, epochs, name, marked=True))
                rows[-1]["honest"] = costs[name]
    return rows


def _answer(answers: Answers, row: int, world: World) -> dict[str, Any]:
    if answers.texts is not None:
        return {"text": answers.texts[row]}
    if answers.labels_N is not None:
        return {"label": answers.choices[int(answers.labels_N[row])]}
    assert answers.probabilities_NK is not None
    return {
        "probabilities": dict(
            zip(answers.choices, answers.probabilities_NK[row].tolist(), strict=True)
        )
    }


def _row(
    world: World, copy: Path, client: Client, view: str, epochs: float, rate: str, *, marked: bool
) -> dict[str, Any]:
    score = json.loads((copy / "score.json").read_text(encoding="utf-8"))["score"]
    found = world.tried(ServedModel(copy), client)
    return {"task": world.name, "view": view, "rate": rate, "epochs": epochs, "marked": marked,
            "score": score, **found}  # fmt: skip


def alarms(world: World) -> list[dict[str, Any]]:
    """Models that never saw an answer of this one, each tried for the marks of a client of its own:
    every one learned other rows of the owner's data, with the labels people gave them."""
    args, rows = world.args, []
    labelled = world.made.splits.labelled
    for number in range(args.independent):
        chosen = generator(0, "independent", number).permutation(len(labelled))[: args.small]
        pool = at(labelled, np.sort(chosen))
        gold = from_json(
            [{"label": label} for label in pool.labels.tolist()],
            world.model.choices,
        )
        said = Client(f"independent-{number}", "", pool, gold, [])
        copy = world.copy(said.name, said, epochs=3.0, seed=number)
        asked = world.queries(0, args.queries)  # the same for all, whose marks differ
        client = world.told(f"client-{number}", asked, view="probabilities", marks={})
        score = json.loads((copy / "score.json").read_text(encoding="utf-8"))["score"]
        rows.append({"number": number, "score": score, **world.tried(ServedModel(copy), client)})
    return rows


def thieves(world: World) -> list[dict[str, Any]]:
    """Thieves who know of marks and fight them: what that costs them, and whether it helps."""
    args = world.args
    pool, epochs = world.queries(0, args.queries), args.fight
    client = world.told("probabilities-ada", pool, view="probabilities", marks={})
    rows: list[dict[str, Any]] = []

    def add(name: str, copy: Path, *, say: Any = None, against: Client = client) -> None:
        score = json.loads((copy / "score.json").read_text(encoding="utf-8"))["score"]
        found = world.tried(say or ServedModel(copy), against)
        rows.append({"thief": name, "score": score, **found})
        print(rows[-1], flush=True)

    usual = world.copy(f"probabilities-ada-{epochs:g}", client, epochs=epochs)
    add(f"{epochs:g} epochs", usual)
    add("early stopping, 1 epoch", world.copy("probabilities-ada-1", client, epochs=1.0))
    model = ServedModel(usual)
    known = {(e.text, e.pair) for e in pool}

    def evasive(examples: list[Example]) -> list[str]:
        rng = generator(0, "evasive")
        return [
            str(rng.choice(model.choices)) if (e.text, e.pair) in known else said
            for e, said in zip(examples, _names(model, examples), strict=True)
        ]

    add("random answers to known queries", usual, say=evasive)
    again = world.queries(77, args.queries)
    relabelled = from_json([_shown(model, t) for t in model.answers(list(again))], model.choices)
    add(
        "double extraction",
        world.copy("double", client, epochs=epochs, pool=again, answers=relabelled),
    )
    dropped = _rewritten(world, pool, "dropped")
    add("word dropout", world.copy("dropped", client, epochs=epochs, pool=dropped))
    half = args.queries // 2
    other = world.told("unmarked-half", world.queries(78, half), view="probabilities", marks=NONE)
    mixed, both = _joined(world, (at(pool, np.arange(half)), client.answers.first(half)),
                          (other.pool, other.answers))  # fmt: skip
    diluted = world.copy("diluted", client, epochs=epochs, pool=mixed, answers=both)
    add("diluted by half", diluted, against=_asked_of(client, at(pool, np.arange(half))))
    for name, title, marks in (
        ("three clients compare answers", "", {}),
        ("three clients compare answers, marked alike (0.5 %)", "-alike", ALIKE),
    ):
        several = [
            world.told(f"colluding{title}-{n}", pool, view="probabilities", marks=marks)
            for n in range(3)
        ]
        votes = np.median([c.answers.probabilities_NK for c in several], axis=0)
        agreed = Answers(several[0].answers.choices, votes / votes.sum(-1, keepdims=True))
        voted = world.copy(f"voted{title}", several[0], epochs=epochs, answers=agreed)
        add(name, voted, against=several[0])
    parts = [at(pool, np.arange(n, args.queries, 3)) for n in range(3)]
    split = [
        world.told(f"split-{n}", p, view="probabilities", marks={}) for n, p in enumerate(parts)
    ]
    mixed, both = _joined(world, *((c.pool, c.answers) for c in split))
    shared = world.copy("split", split[0], epochs=epochs, pool=mixed, answers=both)
    for number, each in enumerate(split):
        add(f"three clients share the queries, client {number + 1}", shared, against=each)
    private = private_copy(world, client, args)
    asked = _asked_of(client, at(pool, np.arange(args.private)))
    add(f"DP-SGD, noise {args.noise:g}, {args.private:,} queries", private, against=asked)
    return rows


def _asked_of(client: Client, pool: Pool) -> Client:
    """As if it had asked these questions only."""
    few = {(e.text, e.pair) for e in pool}
    return replace(client, kept=[k for k in client.kept if (k.text, k.pair) in few])


def _rewritten(world: World, pool: Pool, name: str) -> Pool:
    """Queries with a tenth of their words left out, in the same order."""
    rng = generator(0, name)

    def less(text: str) -> str:
        words = text.split()
        kept = [w for w in words if rng.random() > 0.1] or words[:1]
        return " ".join(kept)

    return _pool(world, [Example(less(e.text), e.pair) for e in pool], name)


def _pool(world: World, examples: Sequence[Example], name: str) -> Pool:
    """Examples as a pool, a number behind those that are met again."""
    met: set[str] = set()
    rows = []
    for number, each in enumerate(examples, 1):
        text = each.text if each.text not in met else f"{each.text} {number}"
        met.add(text)
        rows.append((number, {"text": text}))
    folder = world.out / "pools" / name
    held = ingest(iter(rows), name, Columns("text", None), folder, labelled=False)
    return Pool([Part(held, held.kept, labelled=False)])


def _joined(world: World, *parts: tuple[Pool, Answers]) -> tuple[Pool, Answers]:
    name = f"joined-{len(parts)}"
    examples = [e for pool, _ in parts for e in pool]
    answers = [a for _, a in parts]
    assert all(a.probabilities_NK is not None for a in answers)
    shares_NK = np.concatenate([a.probabilities_NK for a in answers])  # pyright: ignore
    return _pool(world, examples, name), Answers(answers[0].choices, shares_NK)


def private_copy(world: World, client: Client, args: argparse.Namespace) -> Path:
    """A copy trained privately (Abadi et al. 2016): each example's gradient clipped to norm 1,
    Gaussian noise on their sum; Adam, three epochs, float32. Its batches are drawn without
    replacement, so no epsilon is claimed."""
    folder = world.out / "copies" / "private"
    if (folder / "score.json").exists():
        return folder
    thief = world.thief(3.0)
    model = thief.make(0).train()
    rows = min(args.private, len(client.pool))
    data = thief.data(at(client.pool, np.arange(rows)), "queries")
    shares = torch.from_numpy(np.exp(client.answers.first(rows).scores()))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=3e-4)
    rng = torch.Generator().manual_seed(0)
    for _ in range(3):
        for chosen in torch.randperm(rows, generator=rng).split(64):
            summed = [torch.zeros_like(p) for p in parameters]
            for row in chosen.tolist():
                batch = data.batch(np.array([row]))
                logp_K = model(**batch.inputs).logits.log_softmax(-1)[0]
                model.zero_grad()
                (-(shares[row] * logp_K).sum()).backward()
                grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
                norm = nn.utils.get_total_norm(grads)
                scale = min(1.0, 1.0 / (float(norm) + 1e-6))
                for total, grad in zip(summed, grads, strict=True):
                    total += grad * scale
            for parameter, total in zip(parameters, summed, strict=True):
                noise = torch.randn(total.shape, generator=rng) * args.noise
                parameter.grad = (total + noise) / len(chosen)
            optimizer.step()
    save_model(model.eval(), load_tokenizer(str(minilm())), folder)
    write_json(folder / "score.json", {"score": world.score(ServedModel(folder))})
    return folder


def plot(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Independent models' p-values in order, against a uniform law's."""
    from matplotlib.figure import Figure

    from stillhouse.report import canvas
    from stillhouse.report.canvas import PAINT

    found = sorted(row["as asked"]["uniform"] for row in rows)

    def draw(figure: Figure) -> None:
        ax = canvas.axes(figure, xlabel="Expected", title="p-value of an independent model")
        expected = (np.arange(len(found)) + 0.5) / len(found)
        ax.plot([0, 1], [0, 1], color=PAINT["rule"], linewidth=1.2)
        ax.plot(expected, found, "o", color=PAINT["student"], markersize=4)

    write_text(out, canvas.to_svg(draw, key="alarms", label="p-values of independent models"))


def report(out: Path) -> None:
    """What is there, as Markdown."""
    for path in sorted(out.glob("*.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))
        print(f"\n{path.stem}\n")
        for row in rows:
            named = {k: v for k, v in row.items() if not isinstance(v, dict)}
            tried = row["as asked"]
            said = ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}"
                             for k, v in named.items())  # fmt: skip
            print(f"| {said} | {tried['hits']}/{tried['marks']} | true {tried['true']:.2f} | "
                  f"{tried['chance_hits']}/{tried['controls']} | p {tried['p']:.1e} | "
                  f"changed p {row['changed']['p']:.1e} |")  # fmt: skip
        if path.stem.endswith("alarms"):
            p_values = [row["as asked"]["uniform"] for row in rows]
            print(f"\nKS against uniform: p = {stats.kstest(p_values, 'uniform').pvalue:.2f}; "
                  f"smallest {min(row['as asked']['p'] for row in rows):.3f}")  # fmt: skip
            plot(rows, out / "alarms.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True, help="a model fine-tuned on SST-2")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--victims", type=Path, help="the folder with sick and squad")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["sst2"])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--queries", type=int, default=6735)
    parser.add_argument("--small", type=int, default=1000, help="of independent models")
    parser.add_argument("--independent", type=int, default=20)
    parser.add_argument("--epochs", type=float, nargs="+", default=[3.0, 10.0])
    parser.add_argument("--fight", type=float, default=3.0, help="epochs of those who fight back")
    parser.add_argument("--rates", nargs="+", default=["0.1 %", "adaptive"], choices=RATES)
    parser.add_argument("--views", nargs="+", default=["probabilities", "label"])
    parser.add_argument("--private", type=int, default=2000, help="queries of the DP-SGD thief")
    parser.add_argument("--noise", type=float, default=0.5)
    args = parser.parse_args()
    for task in args.tasks:
        world = World(task, args)
        for part in args.parts:
            if part != "table" and task != "sst2":
                continue
            rows = {"table": table, "alarms": alarms, "thieves": thieves}[part](world)
            write_json(args.out / f"{task}-{part}.json", rows)
    report(args.out)


if __name__ == "__main__":
    main()
