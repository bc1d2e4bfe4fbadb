"""A verification: suspects and controls are asked, and the verdict is written down: a record and a
page, signed, that anybody can check from the snapshot.
"""

from __future__ import annotations

from pathlib import Path

from stillhouse.core.console import Terminal
from stillhouse.core.manifest import manifest
from stillhouse.core.precision import Auto
from stillhouse.core.progress import Progress
from stillhouse.core.rundir import claim, write_json, write_text
from stillhouse.core.verdict_results import VerdictRecord
from stillhouse.guard.keys import Keys
from stillhouse.guard.registry import Registry
from stillhouse.guard.settings import VerifyConfig
from stillhouse.guard.snapshot import digest, take, written
from stillhouse.guard.suspects import candidate, said_by
from stillhouse.guard.verdict import judge
from stillhouse.report import render


def run_verify(
    config: VerifyConfig, registry: Registry, keys: Keys, out: Path,
    *, progress: Progress | None = None,
) -> VerdictRecord:  # fmt: skip
    """The verification, to its folder: record.json, record.sig, snapshot.json, answers.json,
    report.html. A finished one is read. Raises UsageError, DataError, ModelError, RunError."""
    progress = progress or Terminal()
    snapshot = take(registry, keys, model=config.model, clients=config.clients)
    text = written(snapshot.as_json())
    content = {"snapshot": digest(text.encode())}
    settings, auto = config.model_dump(mode="json"), Auto.of(out)
    claim(out, settings, content, private=True)  # the questions are customers'
    if (out / "record.json").is_file():
        progress.note(f"{out} is finished already")
        return VerdictRecord.open(out, "verification")
    write_json(out / "manifest.json", manifest(content=content, auto=auto.facts))
    for note in auto.notes(config):
        progress.note(note)
    config = auto.settle(config)
    write_text(out / "snapshot.json", text)
    progress.note(f"only {', '.join(config.suspects)} and the controls are asked")
    asked = [
        *(candidate(name, config, snapshot, control=False) for name in config.suspects),
        *(candidate(name, config, snapshot, control=True) for name in config.controls),
    ]
    answers = [
        {
            "name": each.name, "fingerprint": each.fingerprint, "control": each.control,
            "said": said_by(each, snapshot, progress),
        }
        for each in asked
    ]  # fmt: skip
    held = written(answers)
    write_text(out / "answers.json", held)
    with progress.stage("judging", 1, "verdicts") as advance:
        record = judge(snapshot, answers, config, keys.marking.hex(), keys.public)
        advance(1)
    body = written(record.model_dump(mode="json", by_alias=True))
    signature = keys.sign(body.encode())
    write_text(out / "record.sig", signature + "\n")
    write_text(out / "record.json", body)
    render([out], out / "report.html")
    registry.judged(", ".join(config.suspects), record.sentence, body.encode(), signature)
    return record
