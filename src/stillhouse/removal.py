"""Cut a model down to a target, and let the whole one teach what is left.

The two halves meet here: `tickets.remove` chooses and cuts, a distillation from the unpruned model
recovers. The run folder is that distillation's, with the cut model as its student's start.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stillhouse.core.config import DistillConfig
from stillhouse.core.console import Terminal
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.rundir import CUT, check_free, write_json, write_yaml
from stillhouse.core.settings import parse
from stillhouse.models.load import folder_fingerprint
from stillhouse.models.save import save_model
from stillhouse.models.student import parameters
from stillhouse.models.surgery import sizes
from stillhouse.runs import Run, run_distill
from stillhouse.tickets.config import RemoveConfig
from stillhouse.tickets.remove import Removal, load_parts, remove


@dataclass
class RemovalRun:
    """What was removed, and the distillation that followed (none: only cut). `removal`: what stays
    of each layer, the damage before any training, and the timing of whole and cut model."""

    out: Path
    removal: dict[str, Any]
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
    place = out / CUT
    content = {"model": folder_fingerprint(config.model)}
    if check_free(place, settings, content) or not (place / "removal.json").exists():
        if recover is not None:
            check_free(out, parse(DistillConfig, distillation or {}).model_dump(mode="json"))
        model, tokenizer, data = load_parts(config, progress)
        found = remove(config, model, data, progress=progress)
        save_model(found.model, tokenizer, place)
        write_json(place / "manifest.json", {"content": content})
        write_yaml(place / "config.yaml", settings)
        write_json(place / "removal.json", told(found, parameters(model)))
    removal = json.loads((place / "removal.json").read_text(encoding="utf-8"))
    progress.note(sentence(removal))
    if distillation is None:
        return RemovalRun(out, removal, None)
    run = run_distill(parse(DistillConfig, distillation), out, progress=progress)
    return RemovalRun(out, removal, run)


def _distillation(config: RemoveConfig, out: Path, recover: dict[str, Any]) -> dict[str, Any]:
    """The settings of the recovery."""
    for own in ("teacher", "student", "data"):
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


def told(found: Removal, whole: int) -> dict[str, Any]:
    """A removal as JSON."""
    own = sizes(found.model)
    return {
        "layers": [asdict(each) for each in found.kept],
        "heads": list(own.heads),
        "neurons": list(own.neurons),
        "parameters": parameters(found.model),
        "parameters_before": whole,
        "damage": found.damage,
        "latency_before_ms": None if found.before_s is None else 1e3 * found.before_s,
        "latency_ms": None if found.after_s is None else 1e3 * found.after_s,
    }


def sentence(removal: dict[str, Any]) -> str:
    """What was removed, in words."""
    share = removal["parameters"] / removal["parameters_before"]
    kept = ", ".join(
        f"{each['layer']} ({heads} heads, {neurons} neurons)"
        for each, heads, neurons in zip(
            removal["layers"], removal["heads"], removal["neurons"], strict=True
        )
    )
    speed = ""
    if removal["latency_ms"]:
        times = removal["latency_before_ms"] / removal["latency_ms"]
        speed = f", {times:.2f} times as fast"
    return f"{share:.0%} of the parameters{speed}; layers that stay: {kept}"
