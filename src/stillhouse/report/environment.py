"""What the page templates are filled with: the functions and limits that all of them know."""

from __future__ import annotations

import jinja2

from stillhouse.core import verdicts
from stillhouse.report import classes, view
from stillhouse.report import format as fmt

DISAGREEMENTS = 30
TEXT_LIMIT = 600
LABELS = 40


def environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stillhouse.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(  # pyright: ignore[reportUnknownMemberType]
        fmt=fmt,
        view=view,
        verdicts=verdicts,
        classes=classes,
        disagreements=DISAGREEMENTS,
        text_limit=TEXT_LIMIT,
        label_limit=LABELS,
    )
    return environment
