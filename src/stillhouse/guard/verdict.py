"""Is this a copy of ours? Marks against controls, client by client, for a suspect and for models
that are known to be none: a function of a snapshot and of what the suspects said, so that anybody
can reckon a verdict anew. No model is needed for that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillhouse.core.errors import UsageError
from stillhouse.core.settings import read_yaml
from stillhouse.core.verdict_results import ClientTrial, Suspect, Verdict, VerdictRecord
from stillhouse.guard import evidence
from stillhouse.guard.keys import commitment_to, is_signed
from stillhouse.guard.settings import VerifyConfig
from stillhouse.guard.snapshot import Snapshot, digest, written
from stillhouse.guard.trial import FORMS, Said, Trial, trial, wrong_answer
from stillhouse.guard.watermark import draw

FEW = 5  # marks of a client below which nothing is said


def judge(
    snapshot: Snapshot, answers: Sequence[dict[str, Any]], config: VerifyConfig, marking: str,
    public: str,
) -> VerdictRecord:  # fmt: skip
    """The verdict, from the snapshot and what suspects said: a function of these alone."""
    by_client: dict[str, list[int]] = {}
    for place, kept in enumerate(snapshot.kept):
        by_client.setdefault(kept.client, []).append(place)
    tests = len(by_client) * len(FORMS) * len(answers)
    found: list[tuple[dict[str, Any], list[Trial]]] = []
    for suspect in answers:
        trials = [
            trial(
                snapshot.clients[client], [snapshot.kept[i] for i in places],
                Said(form, [suspect["said"][form][i] for i in places]), snapshot.choices,
                alpha=config.alpha / tests,
            )
            for client, places in by_client.items()
            for form in FORMS
        ]  # fmt: skip
        found.append((suspect, trials))
    adjusted = iter(evidence.holm([each.p_value for _, trials in found for each in trials]))
    suspects = [
        _judged(suspect, [_row(each, next(adjusted)) for each in trials], config.alpha)
        for suspect, trials in found
    ]
    return VerdictRecord(
        alpha=config.alpha, model=snapshot.model, model_name=snapshot.name, task=snapshot.task,
        choices=snapshot.choices, key=snapshot.key, marking_key=marking,
        commitment=snapshot.commitment, committed=snapshot.committed, public_key=public,
        snapshot=digest(written(snapshot.as_json()).encode()),
        answers=digest(written(answers).encode()), suspects=suspects,
        sentence=_sentence(suspects, snapshot), warnings=_warnings(suspects, snapshot.model),
    )  # fmt: skip


def _row(found: Trial, adjusted: float) -> ClientTrial:
    table = found.table
    return ClientTrial(
        client=found.client, form=found.form, marks=table.marks, hits=table.hits,
        controls=table.controls, chance_hits=table.chance_hits, true=found.true,
        effect=found.effect, interval=found.interval, p_value=found.p_value, adjusted=adjusted,
        rekeyed=found.rekeyed, conditional=found.conditional, power=found.power,
    )  # fmt: skip


def _judged(suspect: dict[str, Any], trials: list[ClientTrial], alpha: float) -> Suspect:
    guilty = [each for each in trials if each.adjusted <= alpha]
    verdict: Verdict = "no evidence"
    if guilty:
        verdict = "copy"
    elif all(each.marks < FEW for each in trials):
        verdict = "too few marks"
    return Suspect(
        name=suspect["name"], fingerprint=suspect["fingerprint"], control=suspect["control"],
        verdict=verdict, clients=list(dict.fromkeys(each.client for each in guilty)),
        trials=trials,
    )  # fmt: skip


def _sentence(suspects: Sequence[Suspect], snapshot: Snapshot) -> str:
    """The verdict on every suspect, in words."""
    own = all(each.scope == "client" for each in snapshot.kept)
    told = [_told(each, snapshot.name, own=own) for each in suspects if not each.control]
    said = "; ".join(told)
    return "N" + said[1:] if said.startswith("no evidence that ") else said


def _told(suspect: Suspect, model: str, *, own: bool) -> str:
    """The verdict on one. `own`: marks tell whose answers were learned."""
    best = min(suspect.trials, key=lambda each: each.p_value)
    if suspect.verdict == "copy":
        learned = f"from answers to {' and '.join(suspect.clients)}" if own else "from its answers"
        return (
            f"{suspect.name} is a copy of {model}, learned {learned}: it gives {best.hits} of "
            f"{best.marks} marked answers and {best.chance_hits} of {best.controls} that were "
            f"never given (p = {best.adjusted:.1e})"
        )
    if suspect.verdict == "too few marks":
        return f"{suspect.name}: no client has {FEW} marks, which is too few to tell"
    strong = [each.power["0.5"] for each in suspect.trials]
    low, high = f"{min(strong):.2f}", f"{max(strong):.2f}"
    chance = high if low == high else f"{low} to {high}, depending on the client"
    return (
        f"no evidence that {suspect.name} is a copy of {model} (the smallest p is "
        f"{best.adjusted:.2g}); a copy that learned half of a client's marks would be found out "
        f"with a probability of {chance}"
    )


def _warnings(suspects: Sequence[Suspect], model: str) -> list[str]:
    controls = [each for each in suspects if each.control]
    found = [
        f"{each.name} is the served model itself, weights and all: marks are in models only that "
        "learned from its answers"
        for each in suspects
        if each.fingerprint == model
    ]
    if not controls:
        found.append("no independent model was tried beside the suspect: give some with --control")
    for each in controls:
        if each.verdict == "copy":
            found.append(
                f"{each.name}, which is said to be independent, comes out as a copy: is it one, "
                "or has the key been known?"
            )
    return found


def check(out: Path, *, public_key: str | None = None) -> list[tuple[str, bool]]:
    """Whether a verdict's folder holds together, by itself: signature (by `public_key`, if that is
    known from elsewhere), commitment, digests, and the same result reckoned anew. Raises
    UsageError."""
    record = VerdictRecord.open(out, "verification")
    try:
        signature = (out / "record.sig").read_text(encoding="ascii").strip()
        body = (out / "record.json").read_bytes()
        snapshot_text = (out / "snapshot.json").read_text(encoding="utf-8")
        answers_text = (out / "answers.json").read_text(encoding="utf-8")
        config = VerifyConfig.model_validate(read_yaml(out / "config.yaml"))
        snapshot = Snapshot.of_json(json.loads(snapshot_text))
        answers = json.loads(answers_text)
        again = judge(snapshot, answers, config, record.marking_key, record.public_key)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{out} is no whole verdict: {error}") from None
    committed = commitment_to(bytes.fromhex(record.marking_key))
    known = [] if public_key is None else [
        ("the public key is the known one", record.public_key == public_key.lower())
    ]  # fmt: skip
    return [
        *known,
        ("the record is signed by its public key", is_signed(body, signature, record.public_key)),
        ("the marking key is the committed one", committed == record.commitment),
        ("the snapshot is the record's", digest(snapshot_text.encode()) == record.snapshot),
        ("the answers are the record's", digest(answers_text.encode()) == record.answers),
        ("marks and controls are the key's", _drawn(snapshot, record)),
        ("reckoned anew, the result is the same", _alike(again.model_dump(), record.model_dump())),
    ]


def _drawn(snapshot: Snapshot, record: VerdictRecord) -> bool:
    """Whether the key, and nothing else, chose which of the kept questions were marked, and their
    wrong answers."""
    key = bytes.fromhex(record.marking_key)
    for kept in snapshot.kept:
        whose = kept.client if kept.scope == "client" else ""
        drawn = draw(key, whose, kept.read)
        if kept.kind != drawn.band(kept.rate, kept.controls):
            return False
        if kept.target != wrong_answer(kept, drawn.pick, record.choices):
            return False
    return True


def _alike(mine: Any, theirs: Any) -> bool:
    """Whether two records say the same, but for the last digits that other machines round."""
    if isinstance(mine, float) and isinstance(theirs, float):
        return math.isclose(mine, theirs, rel_tol=1e-6, abs_tol=1e-300)
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(_alike(mine[k], theirs[k]) for k in mine)
    if isinstance(mine, list | tuple):
        return len(mine) == len(theirs) and all(map(_alike, mine, theirs))
    return bool(mine == theirs)
