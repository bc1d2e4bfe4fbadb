"""Cuts a model down to a target: scored on data, chosen for the least damage, measured.

Axes: N rows.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.seeding import generator
from stillhouse.evaluation import efficiency
from stillhouse.export import export_onnx, onnx_runner, quantize_int8
from stillhouse.models.student import parameters
from stillhouse.models.surgery import Kept, cut, everything, sizes
from stillhouse.tasks.base import Data
from stillhouse.tickets.config import RemoveConfig
from stillhouse.tickets.plan import Option, choose, steps_down
from stillhouse.tickets.worth import Damage, best_units, unit_worth

HEADS, NEURONS = 4, 6  # into how many steps a layer's heads and neurons are cut
LEAST_NEURONS = 32
TRIES = 6  # how often a budget is tightened until what is measured meets the target
ROUNDS = 12  # of timing


@dataclass(frozen=True)
class Removal:
    """What stays, and what that was found to be: seconds in the asked runtime (None where the
    target needs no timing) and the damage on the scored rows before any training."""

    kept: list[Kept]
    model: PreTrainedModel
    damage: float
    before_s: float | None
    after_s: float | None


def remove(
    config: RemoveConfig, model: PreTrainedModel, data: Data, *, progress: Progress
) -> Removal:
    """Cuts `model` to the config's target, by the worth of its parts on rows of `data`. Raises
    UsageError for a target that no removal reaches, which names the nearest."""
    rows = generator(config.seed, "worth").permutation(len(data))[: config.score_rows]
    rows = np.sort(rows)
    progress.note(f"scoring heads and neurons on {len(rows):,} training rows")
    worth = unit_worth(model, data, rows, generator(config.seed, "drawn answers"))
    damage = Damage(model, data, rows)
    if config.speedup is None and config.parameters is None:
        kept = counted(config, model, worth, damage)
        return Removal(kept, cut(model, kept), damage(kept), None, None)
    cutter = _Cutter(config, model, data, worth, damage, progress)
    return cutter.by_parameters() if config.speedup is None else cutter.by_speed()


def cheapest(layers: Sequence[Sequence[Option]]) -> list[Option]:
    """The options that cost least, one a layer; at least one layer stays."""
    found = [min(options, key=lambda option: option.cost) for options in layers]
    if not any(option.heads for option in found):
        place, stays = min(
            ((i, o) for i, options in enumerate(layers) for o in options if o.heads),
            key=lambda each: each[1].cost,
        )
        found[place] = stays
    return found


Worth = tuple[list[Tensor], list[Tensor]]


def keep(layer: int, heads: int, neurons: int, worth: Worth) -> Kept:
    """So many of a layer's heads and neurons: those that are worth most."""
    of_heads, of_neurons = worth[0][layer - 1], worth[1][layer - 1]
    return Kept(layer, best_units(of_heads, heads), best_units(of_neurons, neurons))


def counted(
    config: RemoveConfig, model: PreTrainedModel, worth: Worth, damage: Damage
) -> list[Kept]:
    """Explicit counts. Of so many layers those stay whose removal, one after another, damages
    most. Raises UsageError for more than there is."""
    own = sizes(model)
    for what, asked, most in (
        ("layers", config.layers, len(own.heads)),
        ("heads", config.heads, min(own.heads)),
        ("neurons", config.neurons, min(own.neurons)),
    ):
        if asked is not None and asked > most:
            raise UsageError(f"{asked} {what} can't stay of {most}: ask for fewer")
    left = everything(model)
    while config.layers is not None and len(left) > config.layers:
        tried = [[k for k in left if k is not gone] for gone in left]
        left = min(tried, key=damage)
    return [
        keep(
            k.layer,
            config.heads or own.heads[k.layer - 1],
            config.neurons or own.neurons[k.layer - 1],
            worth,
        )
        for k in left
    ]


class _Cutter:
    """A search for the least damage within a budget."""

    def __init__(
        self,
        config: RemoveConfig,
        model: PreTrainedModel,
        data: Data,
        worth: Worth,
        damage: Damage,
        progress: Progress,
    ) -> None:
        self.config, self.model, self.data = config, model, data
        self.worth, self.damage, self.progress = worth, damage, progress
        self.own = sizes(model)

    def _choices(self, layer: int) -> list[tuple[int, int]]:
        """(heads, neurons) that a layer may be left with; (0, 0): it may go."""
        what = self.config.what
        heads, neurons = self.own.heads[layer - 1], self.own.neurons[layer - 1]
        of_heads = steps_down(heads, parts=HEADS) if "heads" in what else [heads]
        least = min(LEAST_NEURONS, neurons)
        of_neurons = (
            steps_down(neurons, parts=NEURONS, least=least) if "neurons" in what else [neurons]
        )
        gone = [(0, 0)] if "layers" in what and len(self.own.heads) > 1 else []
        return [*itertools.product(of_heads, of_neurons), *gone]

    def _damages(self) -> list[dict[tuple[int, int], float]]:
        """Each layer's damage with each choice, the other layers whole. Heads and neurons are
        tried by themselves, and taken to add up."""
        whole = everything(self.model)
        choices = [self._choices(k.layer) for k in whole]
        found: list[dict[tuple[int, int], float]] = []
        alone = [
            sorted({(h, len(k.neurons)) for h, _ in mine} | {(len(k.heads), n) for _, n in mine})
            for k, mine in zip(whole, choices, strict=True)
        ]
        total = sum(map(len, alone))
        with self.progress.stage("trying what goes", total, "cuts") as advance:
            for k, mine, tried in zip(whole, choices, alone, strict=True):
                seen: dict[tuple[int, int], float] = {}
                others = [each for each in whole if each is not k]
                for heads, neurons in tried:
                    if (heads, neurons) == (len(k.heads), len(k.neurons)):
                        seen[heads, neurons] = 0.0
                    elif 0 in (heads, neurons):
                        seen[0, 0] = self.damage(others) if others else np.inf
                    else:
                        part = keep(k.layer, heads, neurons, self.worth)
                        left = sorted([*others, part], key=lambda each: each.layer)
                        seen[heads, neurons] = self.damage(left)
                    advance(1)
                full = (len(k.heads), len(k.neurons))
                found.append(
                    {
                        (h, n): seen[0, 0] if h == 0 else seen[h, full[1]] + seen[full[0], n]
                        for h, n in mine
                    }
                )
        return found

    def _options(self, costs: Mapping[tuple[int, int], float]) -> list[list[Option]]:
        return [
            [Option(h, n, costs[h, n], damage) for (h, n), damage in mine.items()]
            for mine in self._damages()
        ]

    def _kept(self, chosen: Sequence[Option]) -> list[Kept]:
        return [
            keep(layer, option.heads, option.neurons, self.worth)
            for layer, option in enumerate(chosen, start=1)
            if option.heads
        ]

    def _pairs(self) -> set[tuple[int, int]]:
        layers = range(1, len(self.own.heads) + 1)
        return {pair for layer in layers for pair in self._choices(layer)}

    def by_parameters(self) -> Removal:
        """The least damage with the asked share of all parameters."""
        assert self.config.parameters is not None
        hidden, whole = self.model.config.hidden_size, parameters(self.model)

        def of(heads: int, neurons: int) -> float:
            if heads == 0:
                return 0.0
            width = heads * self.own.head
            attention = 4 * width * hidden + 3 * width + hidden
            return attention + 2 * neurons * hidden + neurons + hidden + 4 * hidden

        fixed = whole - sum(of(h, n) for h, n in zip(self.own.heads, self.own.neurons, strict=True))
        budget = self.config.parameters * whole - fixed
        options = self._options({pair: of(*pair) for pair in self._pairs()})
        chosen = choose(options, budget)
        if chosen is None:
            least = fixed + sum(option.cost for option in cheapest(options))
            raise UsageError(
                f"no removal leaves {self.config.parameters:.0%} of the parameters: the nearest "
                f"leaves {least / whole:.1%} (embeddings and head stay)"
            )
        kept = self._kept(chosen)
        return Removal(kept, cut(self.model, kept), self.damage(kept), None, None)

    def by_speed(self) -> Removal:
        """The least damage at the asked speed, measured; the budget shrinks until it is met."""
        assert self.config.speedup is not None
        clock = Clock(self.config, self.data)
        fixed, block = self._block_times(clock)
        costs = {(h, n): block(h, n) if h else 0.0 for h, n in self._pairs()}
        options = self._options(costs)
        budget_share = 1.0
        nearest = 0.0
        for _ in range(TRIES):
            whole = fixed + sum(block(h, n) for h, n in zip(
                self.own.heads, self.own.neurons, strict=True))  # fmt: skip
            budget = budget_share * whole / self.config.speedup - fixed
            chosen = choose(options, budget)
            if chosen is None:
                break
            kept = self._kept(chosen)
            model = cut(self.model, kept)
            before, after = clock([self.model, model])
            nearest = max(nearest, before / after)
            if before / after >= self.config.speedup:
                return Removal(kept, model, self.damage(kept), before, after)
            budget_share *= 0.97 * (before / after) / self.config.speedup
        if not nearest:
            least = cut(self.model, self._kept(cheapest(options)))
            before, after = clock([self.model, least])
            nearest = before / after
        raise UsageError(
            f"no removal of {', '.join(self.config.what)} is {self.config.speedup:g} times as fast "
            f"in {self.config.runtime} at batch {self.config.batch}: the nearest found is "
            f"{nearest:.2f} times"
        )

    def _block_times(self, clock: Clock) -> tuple[float, Any]:
        """Seconds outside the blocks, and a block's by heads and neurons: a line through a few
        measured shapes."""
        most_h, most_n = max(self.own.heads), max(self.own.neurons)
        layers = len(self.own.heads)
        deep, shallow = (layers, max(1, layers // 3)) if layers > 1 else (1, 1)
        shapes = [(most_h, most_n), (1, most_n), (most_h, min(LEAST_NEURONS, most_n))]
        models = [self._shaped(count, *shape) for shape in shapes for count in (deep, shallow)]
        with self.progress.stage("timing blocks", len(models), "models") as advance:
            seconds = clock(models)
            advance(len(models))
        pairs = list(zip(seconds[::2], seconds[1::2], strict=True))
        each = [max((d - s) / max(1, deep - shallow), 1e-9) for d, s in pairs]
        fixed = max(pairs[0][1] - shallow * each[0], 0.0)
        rows = np.array([[1.0, h, n] for h, n in shapes])
        constant, by_head, by_neuron = np.linalg.solve(rows, np.array(each))

        def block(heads: int, neurons: int) -> float:
            return float(max(constant + by_head * heads + by_neuron * neurons, 1e-9))

        return fixed, block

    def _shaped(self, layers: int, heads: int, neurons: int) -> PreTrainedModel:
        """The first layers, with so many heads and neurons each: for timing only."""
        return cut(self.model, [
            Kept(k, tuple(range(min(heads, self.own.heads[k - 1]))),
                 tuple(range(min(neurons, self.own.neurons[k - 1]))))
            for k in range(1, layers + 1)
        ])  # fmt: skip


class Clock:
    """Median seconds of models in the asked runtime and batch, timed in turns."""

    def __init__(self, config: RemoveConfig, data: Data) -> None:
        self._runtime = config.runtime
        order = np.argsort(data.lengths, kind="stable")
        middle = max(0, min(len(order) // 2 - config.batch // 2, len(order) - config.batch))
        rows = order[middle : middle + config.batch]
        self._inputs = dict(data.batch(rows).inputs)
        self._sample = dict(data.batch(order[middle : middle + 4]).inputs)

    def __call__(self, models: Sequence[PreTrainedModel]) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            runners: dict[str, Any] = {
                str(i): (self._runner(model, Path(folder) / str(i)), self._inputs, self._inputs)
                for i, model in enumerate(models)
            }
            found = efficiency.time_all(runners, rounds=ROUNDS)
        return [found[str(i)].latency_ms / 1e3 for i in range(len(models))]

    def _runner(self, model: PreTrainedModel, folder: Path) -> Any:
        if self._runtime == "torch":
            return efficiency.torch_runner(model)
        plain = export_onnx(model, self._sample, folder / "model.onnx")
        if self._runtime == "onnx":
            return onnx_runner(plain)
        return onnx_runner(quantize_int8(plain, folder / "model-int8.onnx"))


def load_parts(
    config: RemoveConfig, progress: Progress
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Data]:
    """The model, its tokenizer, and its training rows."""
    from stillhouse.core.config import DistillConfig
    from stillhouse.core.settings import parse
    from stillhouse.flows.plan import Plan
    from stillhouse.flows.prepare import prepare

    values = {
        "teacher": config.model,
        "data": config.data.model_dump(),
        "task": config.task,
        "student": {"model": config.model},
        "cache": config.cache,
        "trust_remote_code": config.trust_remote_code,
    }
    setup = prepare(parse(DistillConfig, values), progress=progress)
    data = Plan(setup, progress).rows(setup.rows.train, "training rows")
    return setup.teacher, setup.teacher_tokenizer, data
