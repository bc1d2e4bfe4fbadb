"""A made-up language to translate, and small models that do."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import stillhouse as sh
from stillhouse.core.config import DistillConfig
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.runs import Run, run_distill

ENGLISH = ["red", "green", "blue", "big", "small", "old", "new", "cat", "dog", "bird", "house"]
GERMAN = ["rot", "grun", "blau", "gross", "klein", "alt", "neu", "katze", "hund", "vogel", "haus"]
FRENCH = ["rouge", "vert", "bleu", "grand", "petit", "vieux", "jeune", "chat", "chien", "oiseau",
          "maison"]  # fmt: skip
WORDS = dict(zip(ENGLISH, GERMAN, strict=True))
LANGUAGES = {"de": WORDS, "fr": dict(zip(ENGLISH, FRENCH, strict=True))}


def pairs(path: Path, count: int, seed: int = 0, languages: tuple[str, ...] = ("de",)) -> Path:
    """Sources in words of a made-up language and their translation into English, word by word."""
    rng, lines = random.Random(seed), []
    for _ in range(count):
        words = rng.choices(list(WORDS), k=rng.randint(2, 5))
        for language in languages:
            source = " ".join(LANGUAGES[language][word] for word in words)
            row = {"source": source, "target": " ".join(words), "language": language}
            lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def fresh(folder: Path, data: Path, *, seed: int = 0, width: int = 32, **settings: Any) -> Path:
    """A new model for the data."""
    shape = {"width": width, "layers": 1, "heads": 2, "vocabulary": 320, "seed": seed}
    sh.new("seq2seq", str(data), out=folder, progress=Silent(), **{**shape, **settings})
    return folder


def teacher(folder: Path, data: Path, start: Path, *, steps: int = 320) -> Path:
    training = {"steps": steps, "lr": 8e-3, "batch_size": 32, "evaluations": 1, "dropout": 0.0}
    sh.finetune(
        start,
        {"path": str(data), "max_length": 48},
        out=folder,
        task="seq2seq",
        training={**training, "precision": "auto", "warmup": 0.1},
        resamples=20,
        cache=str(folder.parent / "cache"),
        writing={"beams": 2},
        progress=Silent(),
    )
    return folder


def settings(teacher: Path, data: Path, student: object, /, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "task": "seq2seq",
        "teacher": str(teacher),
        "data": {"path": str(data), "max_length": 48},
        "student": student if isinstance(student, dict) else {"model": str(student)},
        "training": {"steps": 4, "batch_size": 16, "lr": 1e-3, "evaluations": 1, "log_every": 2,
                     "precision": "auto"},
        "label": {"precision": "auto"},
        "decode": {"beams": 2, "best": 2},
        "writing": {"beams": 2},
        "evaluation": {"seeds": [0], "baseline": False, "resamples": 20, "efficiency": False},
        "cache": str(teacher.parent / "cache"),
    }  # fmt: skip
    for section, change in changes.items():
        inner = isinstance(values.get(section), dict) and isinstance(change, dict)
        values[section] = {**values[section], **change} if inner else change
    return values


def run(out: Path, *given: Any, **changes: Any) -> Run:
    return run_distill(parse(DistillConfig, settings(*given, **changes)), out, progress=Silent())
