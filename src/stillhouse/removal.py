"""Cut a model down to a target, and let the whole one teach what is left.

The two halves meet here: `tickets.remove` chooses and cuts, a distillation from the unpruned model
recovers. The run folder is that distillation's, with the cut model as its student's start.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from stillhouse.core.config import DistillConfig
from stillhouse.core.console import Terminal
from stillhouse.core.errors import UsageError
from stillhouse.core.inference import write_inference
from stillhouse.core.manifest import manifest
from stillhouse.core.progress import Progress
from stillhouse.core.results import KeptLayer, Removed
from stillhouse.core.rundir import CUT, atomic_folder, check_free, write_json, write_yaml
from stillhouse.core.settings import parse
from stillhouse.flows.plan import Plan
from stillhouse.flows.prepare import prepare
from stillhouse.flows.setup import Setup
from stillhouse.flows.training_data import write_training_data
from stillhouse.models.save import save_model
from stillhouse.models.student import parameters
from stillhouse.models.surgery import sizes
from stillhouse.prediction.facts import inference_of
from stillhouse.report import render
from stillhouse.runs import Run, run_distill
from stillhouse.tasks.base import Data
from stillhouse.tickets.config import OF_THE_REMOVAL, RemoveConfig
from stillhouse.tickets.remove import Removal, remove


@dataclass
class RemovalRun:
    """What was removed, and the distillation that followed (none: only cut). OUT/cut has the cut
    model, and what was removed in removal.json (`kept.json`: which heads and neurons)."""

    out: Path
    removed: Removed
    run: Run | None


def run_removal(
    config: RemoveConfig,
    out: Path,
    *,
    recover: dict[str, Any] | None,
    progress: Progress | None = None,
) -> RemovalRun:
    """Cuts into OUT/cut, and distils into OUT by the settings of `recover` (None: doesn't). Goes on
    where it was killed. Raises UsageError for a target that nothing reaches."""
    progress = progress or Terminal()
    distillation = None if recover is None else _distillation(config, out, recover)
    settings = {**config.model_dump(mode="json"), "recover": recover}
    setup = prepared(config, progress)
    if check_free(out / CUT, settings, setup.content):
        if recover is not None:
            check_free(out, parse(DistillConfig, distillation or {}).model_dump(mode="json"))
        found = remove(config, setup.teacher, rows_of(setup, progress), progress=progress)
        with atomic_folder(out / CUT, "the cut model") as place:
            _store(found, config, settings, setup, place)
    removed = Removed.model_validate_json((out / CUT / "removal.json").read_text("utf-8"))
    if distillation is None:
        return RemovalRun(out, removed, None)
    progress.note(sentence(removed))
    run = run_distill(parse(DistillConfig, distillation), out, progress=progress)
    if run.record.removed is None:
        run.record = run.record.model_copy(update={"removed": removed})
        write_json(out / "record.json", run.record.model_dump(mode="json", by_alias=True))
        render([out], out / "report.html")
    return RemovalRun(out, removed, run)


def _store(
    found: Removal, config: RemoveConfig, settings: dict[str, Any], setup: Setup, place: Path
) -> None:
    """The cut model's folder: a model, a run's settings, and what was removed."""
    save_model(found.model, setup.teacher_tokenizer, place)
    write_training_data(place, setup.data, before=[config.model], unlabelled=True)
    asked = config.data.tokens(setup.task.name)
    facts = inference_of(found.model, setup.teacher_tokenizer, setup.task.name, max_length=asked)
    write_inference(place, facts)
    write_json(place / "manifest.json", manifest(content=setup.content))
    write_yaml(place / "config.yaml", json.loads(json.dumps(settings)))
    write_json(place / "kept.json", [asdict(each) for each in found.kept])
    write_json(place / "removal.json", told(found, config, setup.teacher).model_dump(mode="json"))


def _distillation(config: RemoveConfig, out: Path, recover: dict[str, Any]) -> dict[str, Any]:
    """The settings of the recovery."""
    for own in OF_THE_REMOVAL:
        if own in recover:
            raise UsageError(f"the recovery's {own} follows from the removal: leave it out")
    return {
        "teacher": config.model,
        "data": config.data.model_dump(),
        "task": config.task,
        "student": {"model": str(out / CUT)},
        "cache": config.cache,
        "trust_remote_code": config.trust_remote_code,
        **recover,
    }


def told(found: Removal, config: RemoveConfig, whole: PreTrainedModel) -> Removed:
    """A removal as a record has it."""
    own, stays = sizes(whole), {each.layer: each for each in found.kept}
    timed = found.after_s is not None
    return Removed(
        layers=[
            KeptLayer(
                layer=layer,
                heads=len(stays[layer].heads) if layer in stays else 0,
                of_heads=heads,
                neurons=len(stays[layer].neurons) if layer in stays else 0,
                of_neurons=neurons,
            )
            for layer, (heads, neurons) in enumerate(
                zip(own.heads, own.neurons, strict=True), start=1
            )
        ],
        parameters=parameters(found.model),
        parameters_before=parameters(whole),
        damage=found.damage,
        runtime=config.runtime if timed else None,
        batch=config.batch if timed else None,
        latency_ms=1e3 * found.after_s if found.after_s is not None else None,
        latency_before_ms=1e3 * found.before_s if found.before_s is not None else None,
    )


def sentence(removed: Removed) -> str:
    """What was removed, in words."""
    share = removed.parameters / removed.parameters_before
    kept = ", ".join(
        f"{each.layer} ({each.heads} heads, {each.neurons} neurons)"
        for each in removed.layers
        if each.heads
    )
    speed = ""
    if removed.latency_ms and removed.latency_before_ms:
        speed = f", {removed.latency_before_ms / removed.latency_ms:.2f} times as fast"
    return f"{share:.0%} of the parameters{speed}; layers that stay: {kept}"


def prepared(config: RemoveConfig, progress: Progress) -> Setup:
    """The model as a teacher, with its task and its rows."""
    values = {
        "teacher": config.model,
        "data": config.data.model_dump(),
        "task": config.task,
        "student": {"model": config.model},
        "cache": config.cache,
        "trust_remote_code": config.trust_remote_code,
    }
    setup = prepare(parse(DistillConfig, values), progress=progress)
    if setup.task.name == "span":
        raise UsageError(
            "remove takes classifiers and regressions: distil a model of spans to fewer layers"
        )
    return setup


def rows_of(setup: Setup, progress: Progress) -> Data:
    """The training rows, which parts are scored on."""
    return Plan(setup, progress).rows(setup.rows.train, "training rows")
