"""A verification: suspects and controls are asked, or a third party's answers are opened, and the
verdict is written down: a record and a page, signed, that anybody can check from the snapshot.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from stillhouse.core.console import Terminal
from stillhouse.core.errors import UsageError
from stillhouse.core.manifest import manifest
from stillhouse.core.precision import Auto
from stillhouse.core.progress import Progress
from stillhouse.core.rundir import claim, write_json, write_text
from stillhouse.core.types import Example
from stillhouse.core.verdict_results import Stamp, VerdictRecord
from stillhouse.guard.blind import (
    BlindAnswers,
    BlindQuestions,
    SealedAnswers,
    check_questions,
    pick,
    picked_of,
    questions_of,
    read_answers,
    sealed_answers,
)
from stillhouse.guard.chain import SealedHead
from stillhouse.guard.folder import BLIND, SIGNATURE, sign_files
from stillhouse.guard.heads import seal_all, sealed
from stillhouse.guard.keys import Keys
from stillhouse.guard.registry import Registry
from stillhouse.guard.settings import VerifyConfig
from stillhouse.guard.snapshot import Answered, Snapshot, digest, take, written
from stillhouse.guard.stamps import read_stamps
from stillhouse.guard.suspects import Candidate, Served, candidate, said_by
from stillhouse.guard.verdict import judge, written_heads
from stillhouse.report import render


def run_verify(
    config: VerifyConfig, registry: Registry, keys: Keys, out: Path,
    *, progress: Progress | None = None,
) -> VerdictRecord:  # fmt: skip
    """The verification, to its folder: record.json, snapshot.json, heads.json, answers.json,
    report.html, and the signed list of these (files.json). A finished one is read. Raises
    UsageError, DataError, ModelError, RunError."""
    progress = progress or Terminal()
    blind = None if config.answers is None else read_answers(Path(config.answers))
    snapshot, heads, stamps = gathered(config, registry, keys, blind)
    text = written(snapshot.as_json())
    content = {"snapshot": digest(text.encode())}
    if blind is not None:
        content["answers"] = blind.digest
    settings, auto = config.model_dump(mode="json"), Auto.of(out)
    claim(out, settings, content, private=True)  # the questions are customers'
    if (out / SIGNATURE).is_file():
        progress.note(f"{out} is finished already")
        return VerdictRecord.open(out, "verification")
    write_json(out / "manifest.json", manifest(content=content, auto=auto.facts))
    for note in auto.notes(config):
        progress.note(note)
    write_text(out / "snapshot.json", text, private=True)
    write_text(out / "heads.json", written_heads(heads), private=True)
    if blind is None:
        progress.note(f"only {', '.join(config.suspects)} and the controls are asked")
        answers = _asked(auto.settle(config), snapshot, progress)
    else:
        write_text(out / BLIND, written(blind.model_dump(mode="json")), private=True)
        answers = [each.model_dump(mode="json") for each in blind.answers.models]
    write_text(out / "answers.json", written(answers), private=True)
    with progress.stage("judging", 1, "verdicts") as advance:
        record = judge(
            snapshot, answers, config, keys.marking.hex(), keys.public, heads=heads, stamps=stamps,
            blind=blind,
        )  # fmt: skip
        advance(1)
    body = written(record.model_dump(mode="json", by_alias=True))
    signature = keys.sign(body.encode())
    write_text(out / "record.sig", signature + "\n", private=True)
    write_text(out / "record.json", body, private=True)
    render([out], out / "report.html")
    sign_files(out, keys)
    named = ", ".join(each.name for each in record.suspects if not each.control)
    registry.judged(named, record.sentence, body.encode(), signature)
    return record


def gathered(
    config: VerifyConfig, registry: Registry, keys: Keys, blind: SealedAnswers | None = None
) -> tuple[Snapshot, list[SealedHead], list[Stamp]]:
    """The evidence: the questions, the log heads (what is new is sealed first), and what their time
    stamps say. Where there are stamps, only questions that they bind, unless config says else; of
    blind answers, the questions that were picked."""
    take(registry, keys, model=config.model, clients=config.clients)  # is there any?
    seal_all(registry, keys)
    heads = sealed(registry)
    stamps = read_stamps(heads)
    stamped = max((each.head for each in stamps if each.public), default=None)
    up_to = None if config.unstamped else stamped
    if blind is None:
        found = take(
            registry, keys, model=config.model, clients=config.clients,
            up_to=len(heads) if up_to is None else up_to,
        )  # fmt: skip
        return found, heads, stamps
    snapshot = take(registry, keys, model=config.model, clients=config.clients)
    offered = set(blind.answers.offered)
    last = [
        proof.head
        for place, proof in enumerate(snapshot.proofs)
        if proof is not None and (hashed := snapshot.leaf(place)) and hashed.hex() in offered
    ]
    if not last:
        raise UsageError("the answers are about questions that the registry has not")
    whole = take(registry, keys, model=config.model, clients=config.clients, up_to=max(last))
    return picked_of(whole, blind.answers), heads, stamps


def export_questions(config: VerifyConfig, registry: Registry, keys: Keys) -> BlindQuestions:
    """What a third party gets: the questions that a verdict would be on, without their marks."""
    snapshot, heads, _ = gathered(config, registry, keys)
    return questions_of(snapshot, heads)


def ask_blind(
    config: VerifyConfig, given: BlindQuestions, *, take: int, nonce: str, asked_by: str,
    keys: Keys | None = None, progress: Progress | None = None,
) -> SealedAnswers:  # fmt: skip
    """A third party's part: of the given questions it picks so many by its own number (32 random
    bytes, in hex), asks its suspects and controls, and seals the answers. Raises UsageError for
    questions that their log heads don't hold."""
    progress = progress or Terminal()
    check_questions(given)
    by_leaf = {each.leaf: each for each in given.questions}
    picked = [by_leaf[leaf] for leaf in pick(nonce, list(by_leaf), take)]
    served = Served(given.name, given.task, given.choices)
    examples = [Example(each.text, each.pair) for each in picked]
    found = BlindAnswers(
        asked_by=asked_by, head=given.heads[-1].head.hash, model=given.model, nonce=nonce,
        offered=list(by_leaf), take=min(take, len(by_leaf)),
        models=[_answers(each, examples, progress) for each in _candidates(config, served)],
    )  # fmt: skip
    return sealed_answers(found, keys)


def _asked(
    config: VerifyConfig, snapshot: Snapshot, progress: Progress
) -> list[dict[str, Any]]:  # fmt: skip
    served = Served(snapshot.name, snapshot.task, snapshot.choices)
    examples = [Example(kept.text, kept.pair) for kept in snapshot.kept]
    return [
        _answers(each, examples, progress).model_dump(mode="json")
        for each in _candidates(config, served)
    ]


def _candidates(config: VerifyConfig, served: Served) -> list[Candidate]:
    return [
        *(candidate(name, config, served, control=False) for name in config.suspects),
        *(candidate(name, config, served, control=True) for name in config.controls),
    ]


def _answers(each: Candidate, examples: list[Example], progress: Progress) -> Answered:
    """What a model says, and when it was asked."""
    first = time.time()
    said = said_by(each, examples, progress)
    return Answered(
        name=each.name, fingerprint=each.fingerprint, control=each.control, said=said, first=first,
        last=time.time(),
    )  # fmt: skip
