"""The data sets of finetune_defaults.py: parts of public ones, and requests written here.

A set is a folder with train.jsonl and dev.jsonl; every draw follows from the set's name. What is
reported stays apart from what is trained on in the public sets' own split, cut to 2,000 rows.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.core.rundir import write_text
from stillhouse.data.builtin import tickets
from stillhouse.data.readers import find_splits, read

Row = dict[str, str]
REPORTED = 2000

ACTIONS = {
    "open": ["open a new {}", "I'd like to get {}", "how can I apply for {}", "set me up with {}",
             "sign up for {}", "what do I need to start {}"],
    "close": ["close {}", "I no longer want {}", "please get rid of {} for good", "cancel {}",
              "how do I end {}", "terminate {} as of today"],
    "block": ["freeze {}", "put {} on hold", "stop anyone from using {}", "can you lock {}",
              "suspend {} for a while", "block {} right now"],
    "lost": ["I can't find {}", "{} is gone", "somebody stole {}", "I left {} on a train",
             "I seem to have mislaid {}", "what happens when {} was lost"],
    "fee": ["what does {} cost", "why was I charged for {}", "is there a fee on {}",
            "how expensive is {}", "the price of {} went up", "do I pay anything for {}"],
    "change": ["change the name on {}", "update the details of {}", "I want to modify {}",
               "my address on {} is old", "correct a mistake in {}", "edit {}"],
    "limit": ["what's the maximum for {}", "raise the limit of {}", "how much can I use {} for",
              "{} doesn't allow enough", "is there a cap on {}", "I hit the ceiling of {}"],
    "status": ["where is {} now", "has {} been approved", "when will {} arrive",
               "I'm still waiting for {}", "any news on {}", "how long does {} take"],
    "broken": ["{} doesn't work", "I get an error with {}", "{} was declined", "{} keeps failing",
               "something is wrong with {}", "why can't I use {}"],
    "share": ["add my wife to {}", "can two people have {}", "let my son use {}",
              "give someone access to {}", "I'd like a second person on {}", "is {} for families"],
}  # fmt: skip
OBJECTS = {
    "credit card": ["my credit card", "the visa", "the plastic I pay with", "my mastercard"],
    "savings": ["my savings account", "the deposit account", "the pot I save in", "my nest egg"],
    "mortgage": ["my mortgage", "the home loan", "the loan on our house", "the house financing"],
    "transfer": ["a bank transfer", "the wire", "the money I sent", "a payment to a friend"],
    "phone plan": ["my phone plan", "the mobile contract", "my sim", "the cell subscription"],
    "internet": ["my internet line", "the broadband", "our wifi at home", "the fibre connection"],
    "parcel": ["my parcel", "the package", "the order from last week", "my delivery"],
    "flight": ["my flight", "the plane ticket", "the booking to Lisbon", "our seats on the plane"],
    "hotel": ["my hotel room", "the reservation for the night", "our stay", "the suite"],
    "car rental": ["the rental car", "the hire car", "the vehicle I booked", "the van for Sunday"],
    "insurance": ["my insurance", "the policy", "the cover for my car", "our liability plan"],
    "gym": ["my gym membership", "the fitness club", "my workout pass", "the training contract"],
    "streaming": [
        "my streaming account",
        "the film subscription",
        "the series app",
        "my watchlist",
    ],
    "password": ["my password", "the login", "the pin", "my sign-in code"],
    "invoice": ["my invoice", "the bill", "the receipt for May", "the statement"],
}
ASIDES = ["", "", "", "hi there,", "sorry to bother you,", "quick question:", "hello,", "urgent!",
          "I moved last month,", "after my call about {},", "it's not about {},", "my wife asked,",
          "unlike with {},", "thanks in advance,", "second time I ask:", "on holiday,"]  # fmt: skip
ENDS = ["", "", "", "please", "thanks", "as soon as possible", "?", "!", "if that's possible",
        "since yesterday", "and not {}", "before the weekend"]  # fmt: skip


@dataclass(frozen=True)
class Set:
    """`chosen`: whether the defaults were chosen on it; the others judge them."""

    name: str
    rows: int
    make: Callable[[Path, random.Random], tuple[list[Row], list[Row]]]
    chosen: bool = False

    def write(self, data: Path, out: Path) -> Path:
        folder = out / self.name
        train, dev = self.make(data, random.Random(self.name))
        draw = random.Random(f"{self.name} rows")
        parts = {"train": _some(train, self.rows, draw), "dev": _some(dev, REPORTED, draw)}
        folder.mkdir(parents=True, exist_ok=True)
        for part, rows in parts.items():
            write_text(folder / f"{part}.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
        return folder


def _some(rows: list[Row], count: int, draw: random.Random) -> list[Row]:
    return rows if len(rows) <= count else draw.sample(rows, count)


def _public(name: str) -> Callable[[Path, random.Random], tuple[list[Row], list[Row]]]:
    """A set as it comes."""

    def make(data: Path, _: random.Random) -> tuple[list[Row], list[Row]]:
        return _lines(data / name / "train.jsonl"), _lines(data / name / "dev.jsonl")

    return make


def _skewed(name: str, label: str, every: int) -> Callable[..., tuple[list[Row], list[Row]]]:
    """A set with one in `every` of a label's rows."""

    def make(data: Path, draw: random.Random) -> tuple[list[Row], list[Row]]:
        both = _public(name)(data, draw)
        train, dev = (
            [row for row in part if row["label"] != label or draw.random() < 1 / every]
            for part in both
        )
        return train, dev

    return make


def _emotions(count: int) -> Callable[..., tuple[list[Row], list[Row]]]:
    """GoEmotions' rows of one label, of its `count` commonest."""

    def make(data: Path, _: random.Random) -> tuple[list[Row], list[Row]]:
        train, dev = (
            [
                {"text": row["text"], "label": row["labels"][0]}
                for row in _lines(data / "goemotions" / f"{part}.jsonl")
                if len(row["labels"]) == 1
            ]
            for part in ("train", "dev")
        )
        known = {name for name, _ in Counter(row["label"] for row in train).most_common(count)}
        return tuple([r for r in part if r["label"] in known] for part in (train, dev))  # pyright: ignore

    return make


def _acts(data: Path, _: random.Random) -> tuple[list[Row], list[Row]]:
    """RNNLG's sentences by domain and dialogue act; those of fewer than 20 rows left out."""
    parts: dict[str, list[Row]] = {"train": [], "dev": []}
    for domain in ("restaurant", "hotel", "tv", "laptop"):
        for part, rows in parts.items():
            for row in _lines(data / f"rnnlg-{domain}" / f"{part}.jsonl"):
                act = row["source"].partition("(")[0].strip("?")
                rows.append({"text": row["target"], "label": f"{domain} {act}"})
    counts = Counter(row["label"] for row in parts["train"])
    train, dev = ([r for r in rows if counts[r["label"]] >= 20] for rows in parts.values())
    return train, dev


def _tickets(_: Path, __: random.Random) -> tuple[list[Row], list[Row]]:
    paths = find_splits(tickets.folder())
    rows = {part: [_plain(row) for row in read(paths[part])] for part in ("train", "test")}
    return rows["train"], rows["test"]


def _plain(line: tuple[int, dict[str, Any]]) -> Row:
    return {name: str(line[1][name]) for name in ("text", "label")}


def _requests(classes: int, rows: int, skew: float = 0.0) -> Callable[..., Any]:
    """Requests to a service, a class each pair of what is wanted and what it is about. `skew`: a
    class's rows go with its rank to minus that power."""

    def make(_: Path, draw: random.Random) -> tuple[list[Row], list[Row]]:
        pairs = [(action, thing) for action in ACTIONS for thing in OBJECTS]
        random.Random("classes").shuffle(pairs)
        named, weights = pairs[:classes], [(i + 1.0) ** -skew for i in range(classes)]
        seen: set[str] = set()
        found: list[list[Row]] = []
        for count in (rows, REPORTED):
            part: list[Row] = []
            for place in [*range(classes)] * 2 + draw.choices(range(classes), weights, k=3 * count):
                row = _request(*named[place], draw)
                if row["text"] not in seen and len(part) < count:
                    seen.add(row["text"])
                    part.append(row)
            found.append(part)
        return found[0], found[1]

    return make


def _request(action: str, thing: str, draw: random.Random) -> Row:
    other = draw.choice(OBJECTS[draw.choice(list(OBJECTS))])
    wish = draw.choice(ACTIONS[action]).format(draw.choice(OBJECTS[thing]))
    words = f"{draw.choice(ASIDES)} {wish} {draw.choice(ENDS)}".format(other, other).split()
    if draw.random() < 0.3:  # two letters of a word the other way round
        i = draw.randrange(len(words))
        if len(words[i]) > 3:
            at = draw.randrange(1, len(words[i]) - 2)
            words[i] = words[i][:at] + words[i][at + 1] + words[i][at] + words[i][at + 2 :]
    return {"text": " ".join(words), "label": f"{action} {thing}"}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


SETS: Sequence[Set] = (
    Set("sst2-200", 200, _public("sst2"), chosen=True),
    Set("tickets", 600, _tickets),
    Set("emotions-6", 600, _emotions(6), chosen=True),
    Set("requests-77", 1069, _requests(77, 1069), chosen=True),
    Set("acts", 1000, _acts, chosen=True),
    Set("sst2-skewed", 2000, _skewed("sst2", "negative", 12)),
    Set("requests-150", 3000, _requests(150, 3000)),
    Set("mrpc", 3668, _public("mrpc")),
    Set("sick", 4500, _public("sick")),
    Set("requests-150-skewed", 6000, _requests(150, 6000, skew=1.0)),
    Set("emotions-28", 12_000, _emotions(28)),
    Set("sst2-20000", 20_000, _public("sst2")),
)
