"""Cuts a model down to a target: scored on data, chosen for the least damage, measured.

Axes: N rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.seeding import generator
from stillhouse.models.student import parameters
from stillhouse.models.surgery import Kept, Sizes, everything, sizes
from stillhouse.tasks.base import Data
from stillhouse.tickets.clock import Clock, Seconds, block_times
from stillhouse.tickets.config import RemoveConfig
from stillhouse.tickets.plan import Option, choose, steps_down
from stillhouse.tickets.refit import Refit
from stillhouse.tickets.worth import Damage, best_units, unit_worth

HEADS, NEURONS = 4, 6  # into how many steps a layer's heads and neurons are cut
LEAST_NEURONS = 32
TRIES, BISECTIONS = 8, 30  # how many cuts are timed for a target, of how many budgets
ENOUGH = 1.05  # times the asked speed: no need to look for a better model nearer to it


@dataclass(frozen=True)
class Removal:
    """What stays, and what that was found to be: seconds in the asked runtime (None where the
    target needs no timing) and the damage on the scored rows before any training."""

    kept: list[Kept]
    model: PreTrainedModel
    damage: float
    before_s: float | None
    after_s: float | None

    @property
    def times(self) -> float:
        """How many times as fast it was measured."""
        return self.before_s / self.after_s if self.before_s and self.after_s else 1.0


def remove(
    config: RemoveConfig, model: PreTrainedModel, data: Data, *, progress: Progress
) -> Removal:
    """Cuts `model` to the config's target, by the worth of its parts on rows of `data`. Raises
    UsageError for a target that no removal reaches, which names the nearest."""
    _check(config, model)
    rows = generator(config.seed, "worth").permutation(len(data))[: config.score_rows]
    rows = np.sort(rows)
    with progress.stage("scoring heads and neurons", len(rows), "rows") as advance:
        drawn = generator(config.seed, "drawn answers")
        worth = unit_worth(model, data, rows, drawn, progress=advance)
    refit = None
    if config.refit:
        with progress.stage("reading activations", len(rows), "rows") as advance:
            refit = Refit(model, data, rows, progress=advance)
    damage = Damage(model, data, rows, cut=refit)
    if config.speedup is None and config.parameters is None:
        kept = counted(config, model, worth, damage, progress)
        return Removal(kept, damage.cut(kept), damage(kept), None, None)
    cutter = _Cutter(config, model, data, worth, damage, progress)
    return cutter.by_parameters() if config.speedup is None else cutter.by_speed()


def _check(config: RemoveConfig, model: PreTrainedModel) -> None:
    """Raises UsageError for more than there is, and for a share that no removal leaves."""
    own = sizes(model)
    for what, asked, most in (
        ("layers", config.layers, len(own.heads)),
        ("heads", config.heads, min(own.heads)),
        ("neurons", config.neurons, min(own.neurons)),
    ):
        if asked is not None and asked > most:
            raise UsageError(f"{asked} {what} can't stay of {most}: ask for fewer")
    if config.parameters is not None:
        fixed, block = block_parameters(model)
        options = [
            [Option(*pair, block(*pair), 0.0) for pair in choices(config, own, layer)]
            for layer in range(1, len(own.heads) + 1)
        ]
        whole, least = parameters(model), fixed + sum(o.cost for o in cheapest(options))
        if least > config.parameters * whole:
            raise UsageError(
                f"no removal leaves {config.parameters:.0%} of the parameters: the nearest "
                f"leaves {least / whole:.1%} (embeddings and head stay)"
            )


def block_parameters(model: PreTrainedModel) -> tuple[float, Callable[[int, int], float]]:
    """Parameters outside the blocks, and a block's by its heads and neurons (0 heads: gone)."""
    own, hidden = sizes(model), model.config.hidden_size

    def block(heads: int, neurons: int) -> float:
        if heads == 0:
            return 0.0
        width = heads * own.head
        attention = 4 * width * hidden + 3 * width + hidden
        return attention + 2 * neurons * hidden + neurons + hidden + 4 * hidden

    held = sum(block(h, n) for h, n in zip(own.heads, own.neurons, strict=True))
    return parameters(model) - held, block


def choices(config: RemoveConfig, own: Sizes, layer: int) -> list[tuple[int, int]]:
    """(heads, neurons) that a layer may be left with; (0, 0): it may go."""
    what = config.what
    heads, neurons = own.heads[layer - 1], own.neurons[layer - 1]
    of_heads = steps_down(heads, parts=HEADS) if "heads" in what else [heads]
    least = min(LEAST_NEURONS, neurons)
    of_neurons = steps_down(neurons, parts=NEURONS, least=least) if "neurons" in what else [neurons]
    gone = [(0, 0)] if "layers" in what and len(own.heads) > 1 else []
    return [*itertools.product(of_heads, of_neurons), *gone]


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
    config: RemoveConfig, model: PreTrainedModel, worth: Worth, damage: Damage, progress: Progress
) -> list[Kept]:
    """Explicit counts. Of so many layers those stay whose removal, one after another, damages
    most."""
    own = sizes(model)
    left = everything(model)
    if config.layers is not None and len(left) > config.layers:
        total = sum(range(config.layers + 1, len(left) + 1))
        with progress.stage("trying what goes", total, "cuts") as advance:
            while len(left) > config.layers:
                tried = [[k for k in left if k is not gone] for gone in left]
                damages: list[float] = []
                for each in tried:
                    damages.append(damage(each))
                    advance(1)
                left = tried[int(np.argmin(damages))]
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

    def _damages(self) -> list[dict[tuple[int, int], float]]:
        """Each layer's damage with each choice, the other layers whole. Heads and neurons are
        tried by themselves, and taken to add up."""
        whole = everything(self.model)
        asked = [choices(self.config, self.own, k.layer) for k in whole]
        found: list[dict[tuple[int, int], float]] = []
        alone = [
            sorted({(h, len(k.neurons)) for h, _ in mine} | {(len(k.heads), n) for _, n in mine})
            for k, mine in zip(whole, asked, strict=True)
        ]
        total = sum(map(len, alone))
        with self.progress.stage("trying what goes", total, "cuts") as advance:
            for k, mine, tried in zip(whole, asked, alone, strict=True):
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
        return {pair for layer in layers for pair in choices(self.config, self.own, layer)}

    def by_parameters(self) -> Removal:
        """The least damage with the asked share of all parameters."""
        assert self.config.parameters is not None
        fixed, block = block_parameters(self.model)
        options = self._options({pair: block(*pair) for pair in self._pairs()})
        chosen = choose(options, self.config.parameters * parameters(self.model) - fixed)
        assert chosen is not None, "checked before anything was scored"
        kept = self._kept(chosen)
        return Removal(kept, self.damage.cut(kept), self.damage(kept), None, None)

    def by_speed(self) -> Removal:
        """The least damage at the asked speed. What options take is an estimate: the budget is
        moved until what was cut is measured as fast as asked and hardly faster, and of all that
        were tried and fast enough, the one with the least damage is taken."""
        asked = self.config.speedup
        assert asked is not None
        clock = Clock(self.config, self.data)
        fixed, block = block_times(self.model, clock, LEAST_NEURONS, self.progress)
        options = self._options({(h, n): block(h, n) if h else 0.0 for h, n in self._pairs()})
        own = zip(self.own.heads, self.own.neurons, strict=True)
        high = sum(block(h, n) for h, n in own)
        low = sum(option.cost for option in cheapest(options))
        budget = min(max((fixed + high) / asked - fixed, low), high)
        found: dict[tuple[Option, ...], Removal] = {}
        with self.progress.stage("timing cuts, at most", TRIES, "cuts") as advance:
            for _ in range(BISECTIONS):
                chosen = tuple(choose(options, budget) or cheapest(options))
                new = chosen not in found
                if new:
                    if len(found) == TRIES:
                        break
                    found[chosen] = self._timed(clock, chosen)
                    advance(1)
                times = found[chosen].times
                if asked <= times <= ENOUGH * asked:
                    break
                low, high = (budget, high) if times >= asked else (low, budget)
                budget = (fixed + budget) * times / asked - fixed
                if not new or not low < budget < high:
                    budget = (low + high) / 2
            if all(each.times < asked for each in found.values()):
                chosen = tuple(cheapest(options))
                found.setdefault(chosen, self._timed(clock, chosen))
        enough = [each for each in found.values() if each.times >= asked]
        if enough:
            return min(enough, key=lambda each: each.damage)
        nearest = max(each.times for each in found.values())
        raise UsageError(
            f"no removal tried of {', '.join(self.config.what)} is {asked:g} times as fast "
            f"in {self.config.runtime} at batch {self.config.batch}: the nearest is "
            f"{nearest:.2f} times"
        )

    def _timed(self, clock: Seconds, chosen: Sequence[Option]) -> Removal:
        kept = self._kept(chosen)
        model = self.damage.cut(kept)
        before, after = clock([self.model, model])
        return Removal(kept, model, self.damage(kept), before, after)
