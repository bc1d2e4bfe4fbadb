"""What of a verdict is bound from outside, and what rests on the owner's word: said in words for
whoever must decide on it.

A log head that an outside authority stamped shows that all under it was fixed by then. A verdict
says "is a copy" only where that covers the key, each marked and control question with its answers,
and how many there are, before the suspect was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stillhouse.core.times import minute
from stillhouse.core.verdict_results import Fact, Stamp
from stillhouse.guard.blind import BlindAnswers
from stillhouse.guard.chain import SealedHead, is_chain, is_under, leaf
from stillhouse.guard.snapshot import Answered, Snapshot

HEAD_SHOWN = 16  # digits of a head's hash


@dataclass(frozen=True)
class Binding:
    """marks: the time by which all kept questions were fixed, by the latest of the stamps that are
    needed; key: by which the commitment was; None where no stamp shows one. stamp: the one that
    says `marks`. sealed: how many of the kept questions are under a log head. complete: whether the
    heads count as many questions of these clients as there are (or a third party picked from)."""

    key: float | None
    marks: float | None
    stamp: Stamp | None
    sealed: int
    complete: bool

    def binds_before(self, moment: float | None) -> bool:
        """Whether outside stamps show that all was fixed before a moment."""
        if self.key is None or self.marks is None or moment is None or not self.complete:
            return False
        return max(self.key, self.marks) < moment


def binding(
    snapshot: Snapshot, heads: Sequence[SealedHead], stamps: Sequence[Stamp],
    blind: BlindAnswers | None = None,
) -> Binding:  # fmt: skip
    """What the heads and their stamps show of a snapshot. Proofs are checked, stamps are taken as
    read; a chain that doesn't hold binds nothing."""
    if not is_chain(heads):
        return Binding(None, None, None, 0, False)
    proved = [
        proof.head if proof and hashed and is_under(hashed, proof, heads) else None
        for proof, hashed in zip(
            snapshot.proofs, map(snapshot.leaf, range(len(snapshot.proofs))), strict=True
        )
    ]
    places = [(proof.head, proof.place) for proof in snapshot.proofs if proof]
    whole = len(proved) == len(snapshot.kept) and len(set(places)) == len(places)
    under = [head for head in proved if head is not None]
    covered = whole and len(under) == len(proved)
    last = max(under, default=0)
    commits = [each.head.number for each in heads if each.head.commitment == snapshot.commitment]
    by = earliest(stamps, last) if covered else None
    of_key = earliest(stamps, commits[0]) if commits else None
    return Binding(
        None if of_key is None else of_key.time, None if by is None else by.time, by, len(under),
        covered and _complete(snapshot, heads, blind),
    )  # fmt: skip


def earliest(stamps: Sequence[Stamp], number: int) -> Stamp | None:
    """The first stamp, by an authority under a public root, of this head or a later one."""
    fit = [each for each in stamps if each.public and each.head >= number]
    return min(fit, key=lambda each: each.time, default=None)


def _complete(snapshot: Snapshot, heads: Sequence[SealedHead], blind: BlindAnswers | None) -> bool:
    """Whether the heads' own counts say that no question of these clients was left out."""
    counted: dict[str, tuple[int, int]] = {}
    for each in snapshot.tallies:
        tally, proof = each.tally, each.proof
        hashed = leaf(tally.model_dump(), bytes.fromhex(proof.salt))
        mine = (tally.model, tally.key) == (snapshot.model, snapshot.key)
        if not mine or not is_under(hashed, proof, heads):
            return False
        counted[tally.client] = tally.kept, proof.head
    if blind is not None:  # some clients may have no question among the picked ones
        offered = len(blind.offered)
        return snapshot.clients.keys() <= counted.keys() and offered == sum(
            kept for kept, _ in counted.values()
        )
    shown = dict.fromkeys(snapshot.clients, 0)
    for kept, proof in zip(snapshot.kept, snapshot.proofs, strict=True):
        if proof is None or kept.client not in counted or proof.head > counted[kept.client][1]:
            return False
        shown[kept.client] += 1
    return shown == {client: kept for client, (kept, _) in counted.items()}


@dataclass(frozen=True)
class Case:
    """What facts are told of. known: the time from which a suspect's answers could be known, by
    the owner's own account, if that was given."""

    snapshot: Snapshot
    heads: Sequence[SealedHead]
    stamps: Sequence[Stamp]
    answers: Sequence[Answered]
    blind: BlindAnswers | None
    known: float | None
    bound: Binding


def moment(case: Case, suspect: Answered) -> float | None:
    """Before which all must be fixed: when the suspect was first asked, or could be, if that was
    earlier."""
    if suspect.first is None or case.known is None:
        return suspect.first
    return min(suspect.first, case.known)


def facts(case: Case) -> list[Fact]:
    """What the verdict rests on, the most important first."""
    return [_marks(case), _key(case), _complete_fact(case), _said(case), *_controls(case),
            _choice(case)]  # fmt: skip


def _marks(case: Case) -> Fact:
    what = "Which questions were marked, and what was answered"
    moments = [moment(case, each) for each in case.answers if not each.control]
    first = min((each for each in moments if each is not None), default=None)
    count, stamp = f"{len(case.snapshot.kept):,}", case.bound.stamp
    if stamp is not None and first is not None and stamp.time < first:
        when = (
            f"was first asked on {minute(first)}" if case.known != first
            else f"could first be asked on {minute(first)}, the owner says"
        )  # fmt: skip
        return Fact(
            what=what, bound="time stamp", since=stamp.time,
            how=f"All {count} questions, with their true and their given answers, were fixed by "
            f"{minute(stamp.time)}: {_named(stamp)} stamped the log head over them. The suspect "
            f"{when}. Still to ask: could the owner know the suspect's answers "
            "before the stamp? Then the marks could have been made to fit them. And were these "
            "answers really given? The client can say.",
        )  # fmt: skip
    if stamp is not None:
        why = (
            f"A time stamp of {minute(stamp.time)} covers them, which is not before the suspect "
            "could be asked: the marks could have been made up to fit its answers."
        )
    else:
        why = (
            f"Nothing from outside shows that the {count} marked and control questions, and their "
            "answers, were not made up afterwards to fit the suspect's answers."
        )
    return Fact(what=what, bound="the owner's word", how=why + _looked_up(case))


def _key(case: Case) -> Fact:
    what = "The secret key that drew the marks"
    if case.bound.key is not None:
        return Fact(
            what=what, bound="time stamp", since=case.bound.key,
            how=f"Its commitment was in a log head that was stamped by {minute(case.bound.key)}: "
            "it can't have been chosen later.",
        )  # fmt: skip
    return Fact(
        what=what, bound="the owner's word",
        how=f"The owner's database says that it was fixed on {minute(case.snapshot.committed)}; "
        "nothing from outside shows that.",
    )  # fmt: skip


def _complete_fact(case: Case) -> Fact:
    what = "That no question was left out"
    whole = sum(each.tally.kept for each in case.snapshot.tallies)
    total = sum(each.head.decisions for each in case.heads)
    if case.bound.complete and case.bound.marks is not None:
        of = f"all {whole:,} are here" if case.blind is None else f"all {whole:,} were offered"
        return Fact(
            what=what, bound="time stamp", since=case.bound.marks,
            how=f"The stamped log counts the questions kept of these clients: {of}. Of other "
            f"clients and models nothing is said (the log has {total:,} decisions in all).",
        )  # fmt: skip
    return Fact(
        what=what, bound="the owner's word",
        how="The owner chose which questions are shown, and could have left out those that speak "
        "for the suspect.",
    )  # fmt: skip


def _said(case: Case) -> Fact:
    what = "What the models answered"
    asked = [t for each in case.answers for t in (each.first, each.last) if t is not None]
    first, last = (minute(min(asked)), minute(max(asked))) if asked else ("", "")
    when = f" on {first}" if asked else ""
    until = f" to {last}" if first != last else ""
    if case.blind is not None:
        signed = (
            f", and signed the answers (public key {case.blind.public_key})"
            if case.blind.public_key else ", but did not sign the answers"
        )  # fmt: skip
        return Fact(
            what=what, bound="third party",
            how=f"{case.blind.asked_by} asked them{when}{until}, not knowing which questions are "
            f"marked, picked {len(case.snapshot.kept):,} of {len(case.blind.offered):,} by a "
            f"number of its own{signed}. Still to ask: {case.blind.asked_by} itself, whether these "
            "are its answers.",
        )  # fmt: skip
    return Fact(
        what=what, bound="the owner's word",
        how=f"The owner asked them{when}{until}, and wrote the answers down. Ask the suspect "
        "again: the questions are in snapshot.json.",
    )  # fmt: skip


def _controls(case: Case) -> list[Fact]:
    names = [each.name for each in case.answers if each.control]
    if not names:
        return []
    what = f"That {' and '.join(names)} {'is' if len(names) == 1 else 'are'} independent"
    if case.blind is not None:
        how = f"{case.blind.asked_by} chose {'it' if len(names) == 1 else 'them'}."
        return [Fact(what=what, bound="third party", how=how)]
    how = "The owner says that they never learned from the served model's answers."
    return [Fact(what=what, bound="the owner's word", how=how)]


def _choice(case: Case) -> Fact:
    who = "The owner" if case.blind is None else case.blind.asked_by
    return Fact(
        what="Which models were tried",
        bound="the owner's word" if case.blind is None else "third party",
        how=f"{who} says that these were all. p-values are adjusted for what is on this page; "
        "whoever tries many models and shows one finds small ones by luck.",
    )  # fmt: skip


def _looked_up(case: Case) -> str:
    """What the owner says that a judge can look up himself."""
    found = ""
    for each in case.heads:
        for where in each.published:
            found += (
                f" The owner says that log head {each.head.number} ({each.head.hash[:HEAD_SHOWN]}"
                f"...) was published: {where}. Look it up, and give the hash that stands there to "
                "check-verdict --head."
            )
    for stamp in case.stamps:
        if not stamp.public:
            found += (
                f" There is a time stamp of {minute(stamp.time)} by {stamp.authority} (certificate "
                f"{stamp.certificate[:HEAD_SHOWN]}...), for which no public root vouches: anybody "
                "can make such a one. Whoever knows its root gives it to check-verdict --authority."
            )
    return found


def _named(stamp: Stamp) -> str:
    return f"{stamp.authority} (certificate {stamp.certificate[:HEAD_SHOWN]}...)"
