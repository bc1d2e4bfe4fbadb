"""Is this a copy of ours? Marks against controls, client by client, for a suspect and for models
that are known to be none; a record and a page, signed, that anybody can check from the snapshot.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from stillhouse.core.console import Terminal
from stillhouse.core.errors import DataError, UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.rundir import claim, manifest, write_json, write_text
from stillhouse.core.settings import read_yaml
from stillhouse.core.terms import Config, Positive
from stillhouse.core.types import Example
from stillhouse.core.verdict_results import ClientTrial, Suspect, Verdict, VerdictRecord
from stillhouse.extract.prices import Tariff
from stillhouse.extract.victim import Described, is_endpoint
from stillhouse.flows.common import store_root
from stillhouse.guard import evidence
from stillhouse.guard.keys import Keys, commitment_to, is_signed
from stillhouse.guard.model import ServedModel
from stillhouse.guard.registry import Kept, Registry
from stillhouse.guard.tables import keys as key_table
from stillhouse.guard.tables import models as model_table
from stillhouse.guard.trial import Said, Trial, changed, trial, wrong_answer
from stillhouse.guard.watermark import canonical, draw
from stillhouse.report.html import render

FEW = 5  # marks of a client below which nothing is said
FORMS = ("as asked", "changed")
BATCH = 256


class VerifyConfig(Config):
    """suspects: model folders, or YAML descriptions of APIs; controls: models known to be
    independent. clients: whose marks are looked for (left out: everyone's). alpha: the chance that
    an independent model is called a copy. limit: queries that an API may be asked in all. model:
    the fingerprint of the model that was served, where the registry has several. label_map: the
    served model's names for the suspects' labels."""

    flow: Literal["verify"] = "verify"
    suspects: Annotated[tuple[str, ...], Field(min_length=1)]
    controls: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    model: str | None = None
    label_map: dict[str, str] = Field(default_factory=dict)
    alpha: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    limit: Positive | None = None
    cache: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Snapshot:
    """What of the registry a verdict stands on."""

    key: str
    commitment: str
    committed: float
    model: str
    name: str
    task: str
    choices: list[str]
    clients: dict[str, str]  # names by id
    kept: list[Kept]

    def as_json(self) -> dict[str, Any]:
        found = asdict(self)
        for row in found["kept"]:
            row["query"] = row["query"].hex()
        return found

    @classmethod
    def of_json(cls, held: dict[str, Any]) -> Snapshot:
        rows: list[dict[str, Any]] = held["kept"]
        kept = [Kept(**{**row, "query": bytes.fromhex(row["query"])}) for row in rows]
        rest: dict[str, Any] = {name: held[name] for name in held if name != "kept"}
        return cls(kept=kept, **rest)


def take(registry: Registry, keys: Keys, config: VerifyConfig) -> Snapshot:
    """The registry's evidence. Raises UsageError where there is none for this key."""
    rows = registry.rows(key_table, key_table.c.id == keys.id)
    if not rows:
        raise UsageError(
            f"the registry has no commitment to the key {keys.id}: it is not the one that served"
        )
    if rows[0]["commitment"] != keys.commitment:
        raise UsageError("the registry's commitment is to another key than this one")
    served = registry.rows(model_table)
    if config.model is not None:
        served = [row for row in served if row["id"].startswith(config.model)]
    with_evidence = [row for row in served if registry.evidence(model=row["id"])]
    if not with_evidence:
        raise UsageError("the registry has no marks (of this model): nothing can be proved")
    if len(with_evidence) > 1:
        listed = ", ".join(f"{row['name']} ({row['id'][:8]})" for row in with_evidence)
        raise UsageError(f"several models have marks: say which with --set model=: {listed}")
    (model,) = with_evidence
    wanted = {registry.named(name).id for name in config.clients}
    kept = [
        each
        for each in registry.evidence(model=model["id"])
        if each.key == keys.id and (not wanted or each.client in wanted)
    ]
    if not kept:
        raise UsageError(
            f"no mark was made with the key {keys.id} for these clients: nothing can be proved"
        )
    names = {row.id: row.name for row in registry.clients()}
    clients = {each.client: names[each.client] for each in kept}
    return Snapshot(
        keys.id, keys.commitment, rows[0]["created"], model["id"], model["name"], model["task"],
        model["choices"], clients, kept,
    )  # fmt: skip


Ask = Callable[[Sequence[Example]], list[str]]


@dataclass(frozen=True)
class Asked:
    """A suspect: its name, what stands for it, and how it is asked."""

    name: str
    fingerprint: str
    control: bool
    ask: Ask


def run_verify(
    config: VerifyConfig, registry: Registry, keys: Keys, out: Path,
    *, progress: Progress | None = None,
) -> VerdictRecord:  # fmt: skip
    """The verification, to its folder: record.json, record.sig, snapshot.json, answers.json,
    report.html. A finished one is read. Raises UsageError, DataError, ModelError, RunError."""
    progress = progress or Terminal()
    snapshot = take(registry, keys, config)
    text = _written(snapshot.as_json())
    content = {"snapshot": _digest(text.encode())}
    claim(out, config.model_dump(mode="json"), content)
    if (out / "record.json").is_file():
        progress.note(f"{out} is finished already")
        return VerdictRecord.open(out, "verification")
    write_json(out / "manifest.json", manifest(content=content))
    write_text(out / "snapshot.json", text)
    progress.note(f"only {', '.join(config.suspects)} and the controls are asked")
    asked = [
        *(_suspect(name, config, snapshot, control=False) for name in config.suspects),
        *(_suspect(name, config, snapshot, control=True) for name in config.controls),
    ]
    answers = [
        {
            "name": each.name, "fingerprint": each.fingerprint, "control": each.control,
            "said": _said(each, snapshot, progress),
        }
        for each in asked
    ]  # fmt: skip
    held = _written(answers)
    write_text(out / "answers.json", held)
    record = judge(snapshot, answers, config, keys.marking.hex(), keys.public)
    body = _written(record.model_dump(mode="json", by_alias=True))
    signature = keys.sign(body.encode())
    write_text(out / "record.sig", signature + "\n")
    write_text(out / "record.json", body)
    render([out], out / "report.html")
    registry.judged(", ".join(config.suspects), record.sentence, body.encode(), signature)
    return record


def _said(each: Asked, snapshot: Snapshot, progress: Progress) -> dict[str, list[str]]:
    """What a suspect says of all kept questions, form by form."""
    found: dict[str, list[str]] = {}
    whole = [Example(kept.text, kept.pair) for kept in snapshot.kept]
    forms = {"as asked": whole, "changed": [changed(e, 0) for e in whole]}
    for form, examples in forms.items():
        with progress.stage(f"asking {each.name}, {form}", len(examples), "questions") as step:
            said: list[str] = []
            for at in range(0, len(examples), BATCH):
                few = examples[at : at + BATCH]
                said += each.ask(few)
                step(len(few))
        found[form] = said
    return found


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
        snapshot=_digest(_written(snapshot.as_json()).encode()),
        answers=_digest(_written(answers).encode()), suspects=suspects,
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
        ("the snapshot is the record's", _digest(snapshot_text.encode()) == record.snapshot),
        ("the answers are the record's", _digest(answers_text.encode()) == record.answers),
        ("marks and controls are the key's", _drawn(snapshot, record)),
        ("reckoned anew, the result is the same", _alike(again.model_dump(), record.model_dump())),
    ]


def _drawn(snapshot: Snapshot, record: VerdictRecord) -> bool:
    """Whether the key, and nothing else, chose which of the kept questions were marked, and their
    wrong answers."""
    key = bytes.fromhex(record.marking_key)
    for kept in snapshot.kept:
        whose = kept.client if kept.scope == "client" else ""
        drawn = draw(key, whose, canonical(kept.text, kept.pair))
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


def _suspect(name: str, config: VerifyConfig, snapshot: Snapshot, *, control: bool) -> Asked:
    """A model's folder or an API's description. Raises UsageError, ModelError."""
    if is_endpoint(name):
        return _api(name, config, snapshot, control=control)
    model = ServedModel(name, trust_remote_code=config.trust_remote_code)
    if model.task != snapshot.task:
        raise UsageError(f"{name} is a {model.task}, and {snapshot.name} a {snapshot.task}")
    ours = _names(name, model.choices, snapshot, config.label_map)

    def ask(examples: Sequence[Example]) -> list[str]:
        return [
            each.text if each.text is not None else ours[_top(model, each.probabilities_K)]
            for each in model.answers(examples)
        ]

    return Asked(Path(name).name, model.fingerprint, control, ask)


def _top(model: ServedModel, shares_K: Any) -> str:
    return model.choices[int(shares_K.argmax())]


def _names(
    name: str, theirs: Iterable[str], snapshot: Snapshot, label_map: dict[str, str]
) -> dict[str, str]:
    """Our name of each of a suspect's labels; case is forgiven. Raises UsageError for one that is
    none of ours."""
    folded = {each.casefold(): each for each in snapshot.choices}
    found = {each: folded.get(label_map.get(each, each).casefold(), "") for each in theirs}
    strange = [each for each, ours in found.items() if not ours]
    if strange:
        raise UsageError(
            f"{name} answers {', '.join(strange[:5])}, and {snapshot.name} has the labels "
            f"{', '.join(snapshot.choices)}: say which is which with --label-map "
            f"{strange[0]}=..."
        )
    return found


def _api(name: str, config: VerifyConfig, snapshot: Snapshot, *, control: bool) -> Asked:
    described = Described(Path(name))
    store = store_root(config.cache)

    def ask(examples: Sequence[Example]) -> list[str]:
        asking = described.open(store, Tariff(), config.limit)
        try:
            said = [_said_by(each, name) for each in asking.ask(examples, lambda count: None)]
        finally:
            asking.close()
            asking.ledger.close()
        if not snapshot.choices:
            return said
        ours = _names(name, set(said), snapshot, config.label_map)
        return [ours[each] for each in said]

    return Asked(described.name, described.fingerprint, control, ask)


def _said_by(found: dict[str, Any], name: str) -> str:
    """An API's answer as a name or a text."""
    if "text" in found:
        return str(found["text"])
    if "label" in found:
        return str(found["label"])
    if "probabilities" in found:
        return max(found["probabilities"], key=found["probabilities"].__getitem__)
    raise DataError(f"{name} answers with values: marks are of labels and spans")


def _written(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
