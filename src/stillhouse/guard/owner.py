"""What the owner's page tells, read from the registry."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from stillhouse.guard.guard import Guard
from stillhouse.guard.registry import ClientRow
from stillhouse.guard.tables import events, verdicts
from stillhouse.report.owner import ClientLine, OwnerPage, render_owner

DAY_S, HOUR_S = 86_400.0, 3_600.0
LATEST = 20


def owner_page(guard: Guard) -> str:
    """The page as HTML. Raises RunError."""
    registry = guard.registry
    now = time.time()
    rows = [row for row in registry.clients() if row.role == "client"]
    counts, last = registry.counts(), (registry.since(now - HOUR_S), registry.since(now - DAY_S))
    names = {row.id: row.name for row in registry.clients()}
    return render_owner(
        OwnerPage(
            model=guard.about.name,
            task=guard.about.task,
            shows=guard.config.view(guard.about.task).name,
            clients=[_line(row, guard, counts, last) for row in rows],
            events=[
                (row["time"], names.get(row["client"], ""), row["kind"], row["detail"])
                for row in registry.rows(events, last=LATEST)
            ],
            verdicts=[
                (row["time"], row["suspect"], row["sentence"])
                for row in registry.rows(verdicts, last=LATEST)
            ],
            on_flag=guard.config.check.on_flag,
            trouble=guard.trouble,
            now=now,
        )
    )


def _line(
    row: ClientRow, guard: Guard, counts: Mapping[str, Mapping[str, int]],
    last: Sequence[Mapping[str, int]],
) -> ClientLine:  # fmt: skip
    tariff, limits, curve = guard.config.tariff, guard.config.limits, guard.curve
    return ClientLine(
        name=row.name,
        state="revoked" if row.revoked else "flagged" if row.flagged else "active",
        hour=last[0].get(row.id, 0),
        day=last[1].get(row.id, 0),
        charged=row.charged,
        asked=row.distinct,
        most=limits.queries if row.queries is None else row.queries,
        money=tariff.price(row.units),
        most_money=limits.money if row.money is None else row.money,
        currency=tariff.currency,
        odd=row.evidence.odd,
        judged=row.evidence.asked,
        copy=None if curve is None else curve.share(row.distinct),
        used=None if curve is None else curve.used(row.distinct),
        marks=counts.get(row.id, {}).get("mark", 0),
        controls=counts.get(row.id, {}).get("control", 0),
    )
