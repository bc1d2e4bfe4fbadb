"""Is this a copy of ours? Marks against controls, client by client, for a suspect and for models
that are known to be none: a function of a snapshot and of what the suspects said, so that anybody
can reckon a verdict anew. No model is needed for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillhouse.core.errors import DataError
from stillhouse.core.times import minute
from stillhouse.core.verdict_results import (
    ClientTrial,
    Example,
    Stamp,
    Suspect,
    Verdict,
    VerdictRecord,
)
from stillhouse.guard import evidence
from stillhouse.guard.binding import Case, binding, facts, moment
from stillhouse.guard.blind import SealedAnswers
from stillhouse.guard.chain import SealedHead
from stillhouse.guard.registry import Kept
from stillhouse.guard.settings import VerifyConfig
from stillhouse.guard.snapshot import Answered, Snapshot, digest, written
from stillhouse.guard.trial import FORMS, Said, Trial, trial, truth_of

FEW = 5  # marks of a client below which nothing is said
SHOWN = 5  # marked questions, and as many controls, that the page shows


def judge(
    snapshot: Snapshot, answers: Sequence[dict[str, Any]], config: VerifyConfig, marking: str,
    public: str, *, heads: Sequence[SealedHead] = (), stamps: Sequence[Stamp] = (),
    blind: SealedAnswers | None = None,
) -> VerdictRecord:  # fmt: skip
    """The verdict, from the snapshot, what suspects said, and what binds both: a function of these
    alone. Raises DataError for answers that are not one a question."""
    asked = [Answered.model_validate(each) for each in answers]
    for each in asked:
        if set(each.said) != set(FORMS) or {*map(len, each.said.values())} != {len(snapshot.kept)}:
            raise DataError(f"the answers of {each.name} are not one a question, in each form")
    by_client: dict[str, list[int]] = {}
    for place, kept in enumerate(snapshot.kept):
        by_client.setdefault(kept.client, []).append(place)
    tests = len(by_client) * len(FORMS) * len(asked)
    found: list[tuple[Answered, list[Trial]]] = []
    for suspect in asked:
        trials = [
            trial(
                snapshot.clients[client], [snapshot.kept[i] for i in places],
                Said(form, [suspect.said[form][i] for i in places]), snapshot.choices,
                alpha=config.alpha / tests,
            )
            for client, places in by_client.items()
            for form in FORMS
        ]  # fmt: skip
        found.append((suspect, trials))
    third = None if blind is None else blind.answers
    case = Case(
        snapshot, heads, stamps, asked, third, config.known_from,
        binding(snapshot, heads, stamps, third),
    )  # fmt: skip
    adjusted = iter(evidence.holm([each.p_value for _, trials in found for each in trials]))
    suspects = [
        _judged(suspect, [_row(each, next(adjusted)) for each in trials], config.alpha, case)
        for suspect, trials in found
    ]
    times = [each.time for each in snapshot.kept]
    return VerdictRecord(
        alpha=config.alpha, model=snapshot.model, model_name=snapshot.name, task=snapshot.task,
        choices=snapshot.choices, key=snapshot.key, marking_key=marking,
        commitment=snapshot.commitment, committed=snapshot.committed, public_key=public,
        snapshot=digest(written(snapshot.as_json()).encode()),
        answers=digest(written(answers).encode()),
        heads=digest(written_heads(heads).encode()), blind=None if blind is None else blind.digest,
        suspects=suspects, sentence=_sentence(suspects, case), facts=facts(case),
        asked_by="the owner" if third is None else third.asked_by,
        questions=(min(times), max(times)), head=heads[-1].head.hash if heads else None,
        sealed=heads[-1].head.time if heads else None, stamps=list(stamps),
        left_out=snapshot.left_out, examples=_examples(snapshot, asked),
        warnings=_warnings(suspects, snapshot),
    )  # fmt: skip


def written_heads(heads: Sequence[SealedHead]) -> str:
    """heads.json."""
    return written([each.model_dump(mode="json") for each in heads])


def _row(found: Trial, adjusted: float) -> ClientTrial:
    table = found.table
    return ClientTrial(
        client=found.client, form=found.form, marks=table.marks, hits=table.hits,
        controls=table.controls, chance_hits=table.chance_hits, true=found.true,
        effect=found.effect, interval=found.interval, p_value=found.p_value, adjusted=adjusted,
        rekeyed=found.rekeyed, conditional=found.conditional, power=found.power,
    )  # fmt: skip


def _judged(suspect: Answered, trials: list[ClientTrial], alpha: float, case: Case) -> Suspect:
    guilty = [each for each in trials if each.adjusted <= alpha]
    verdict: Verdict = "no evidence"
    if guilty:
        bound = case.bound.binds_before(moment(case, suspect))
        verdict = "copy" if bound else "consistent with a copy"
    elif all(each.marks < FEW for each in trials):
        verdict = "too few marks"
    times = suspect.first, suspect.last
    return Suspect(
        name=suspect.name, fingerprint=suspect.fingerprint, control=suspect.control,
        verdict=verdict, clients=list(dict.fromkeys(each.client for each in guilty)),
        trials=trials, asked=None if times[0] is None or times[1] is None else (times[0], times[1]),
    )  # fmt: skip


def _sentence(suspects: Sequence[Suspect], case: Case) -> str:
    """The verdict on every suspect, in words."""
    own = all(each.scope == "client" for each in case.snapshot.kept)
    told = [_told(each, case, own=own) for each in suspects if not each.control]
    said = "; ".join(told)
    return "N" + said[1:] if said.startswith("no evidence that ") else said


def _told(suspect: Suspect, case: Case, *, own: bool) -> str:
    """The verdict on one. `own`: marks tell whose answers were learned."""
    model = case.snapshot.name
    best = min(suspect.trials, key=lambda each: each.p_value)
    if suspect.verdict in ("copy", "consistent with a copy"):
        learned = f"from answers to {' and '.join(suspect.clients)}" if own else "from its answers"
        found = (
            f"{suspect.name} is {'a' if suspect.verdict == 'copy' else 'consistent with a'} copy "
            f"of {model}, learned {learned}: it gives {best.hits} of {best.marks} marked answers "
            f"and {best.chance_hits} of {best.controls} that were never given "
            f"(p = {best.adjusted:.1e})"
        )
        if suspect.verdict == "copy" and case.bound.marks is not None:
            return f"{found}; the marks were time-stamped by {minute(case.bound.marks)}"
        return (
            f"{found}; that the marks were not made up to fit its answers rests on the owner's word"
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


def _examples(snapshot: Snapshot, answers: Sequence[Answered]) -> list[Example]:
    """The first marked and control questions by time: nobody chose them."""
    order = sorted(range(len(snapshot.kept)), key=lambda i: (snapshot.kept[i].time, i))
    found: list[Example] = []
    for kind in ("mark", "control"):
        chosen = [i for i in order if snapshot.kept[i].kind == kind][:SHOWN]
        found += [_example(snapshot, answers, i) for i in chosen]
    return found


def _example(snapshot: Snapshot, answers: Sequence[Answered], place: int) -> Example:
    kept = snapshot.kept[place]
    return Example(
        kind="mark" if kept.kind == "mark" else "control", client=snapshot.clients[kept.client],
        time=kept.time, text=kept.text, pair=kept.pair, truth=truth_of(kept),
        served=answer_of(kept), target=kept.target,
        said={each.name: each.said[FORMS[0]][place] for each in answers},
    )  # fmt: skip


def answer_of(kept: Kept) -> str:
    """The answer that was given, as a name or a text."""
    return str(kept.served["text"] if "text" in kept.served else kept.served.get("label", ""))


def _warnings(suspects: Sequence[Suspect], snapshot: Snapshot) -> list[str]:
    controls = [each for each in suspects if each.control]
    found = [
        f"{each.name} is the served model itself, weights and all: marks are in models only that "
        "learned from its answers"
        for each in suspects
        if each.fingerprint == snapshot.model
    ]
    if not controls:
        found.append("no independent model was tried beside the suspect: give some with --control")
    for each in controls:
        if each.verdict in ("copy", "consistent with a copy"):
            found.append(
                f"{each.name}, which is said to be independent, comes out as a copy: is it one, "
                "or has the key been known?"
            )
    if snapshot.left_out:
        found.append(
            f"{snapshot.left_out:,} later questions were left out: no time stamp binds them yet"
        )
    return found
