"""A careful client of a described API.

Nothing but the described address is contacted. Requests that are turned away (429) or fail (5xx,
timeouts, answers that are cut off) are tried again, later each time; all that may have been charged
for counts against the budget.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError

from stillhouse.core.errors import DataError, RunError, UsageError
from stillhouse.core.progress import Advance
from stillhouse.core.types import Example
from stillhouse.extract.endpoint import Endpoint, Masks, filled
from stillhouse.extract.ledger import Ledger, name_of

DEEPEST = 100  # lists and objects in each other
SHOWN = 200  # characters of an answer that doesn't fit
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0


class OverBudget(RunError):
    """The budget is spent before all was answered."""


class Client:
    """Asks an endpoint, by way of a ledger. `limit`: queries that may be sent in all."""

    def __init__(
        self,
        endpoint: Endpoint,
        ledger: Ledger,
        *,
        limit: int | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        import httpx

        if limit is not None and limit < endpoint.batch:
            raise UsageError(
                f"a limit of {limit:,} queries is less than one request, of {endpoint.batch}: "
                "raise it, or make the endpoint's batch smaller"
            )
        self._endpoint, self.ledger, self._limit = endpoint, ledger, limit
        self._sleep, self._random, self._next = sleep, random.Random(), 0.0
        self._client = httpx.Client(headers=endpoint.keyed(), timeout=endpoint.timeout_s)
        self._masks = Masks(endpoint.secrets())
        self._lock = threading.Lock()
        self._held: dict[str, dict[str, Any]] = {}
        for kept in ledger.bodies:
            with contextlib.suppress(DataError):  # what can't be read is asked again
                self._take(kept.asked, kept.body)

    def close(self) -> None:
        self._client.close()

    def ask(
        self, examples: Sequence[Example], progress: Advance = lambda queries: None
    ) -> list[dict[str, Any]]:
        """What the API answers each query, from the ledger where it did before. Raises OverBudget,
        DataError for answers that don't fit the description, RunError where it can't be reached."""
        held = self._held
        lacking = list({name_of(e): e for e in examples if name_of(e) not in held}.values())
        progress(len(examples) - len(lacking))
        size = self._endpoint.batch
        batches = (lacking[at : at + size] for at in range(0, len(lacking), size))
        with ThreadPoolExecutor(self._endpoint.parallel) as pool:
            under_way: set[Future[int]] = set()
            try:
                for batch in batches:
                    if len(under_way) == self._endpoint.parallel:
                        under_way = self._finish(under_way, progress)
                    under_way.add(pool.submit(self._one, batch))
                while under_way:
                    under_way = self._finish(under_way, progress)
            finally:
                for future in under_way:
                    future.cancel()
        return [held[name_of(e)] for e in examples]

    @staticmethod
    def _finish(under_way: set[Future[int]], progress: Advance) -> set[Future[int]]:
        done, rest = wait(under_way, return_when=FIRST_COMPLETED)
        for future in done:
            progress(future.result())
        return rest

    def _one(self, batch: Sequence[Example]) -> int:
        """One request, until it is answered."""
        import httpx

        trouble, cut = "", False
        for attempt in range(self._endpoint.retries + 1):
            if attempt:
                self._sleep(self._pause(attempt, trouble))
            self._pace()
            sent = self.ledger.send(batch, self._limit)
            if not sent:
                raise self._over()
            cut, batch = cut or len(sent) < len(batch), sent
            try:
                answer = self._client.request(
                    self._endpoint.method, self._endpoint.url, json=filled(self._endpoint, batch)
                )
            except httpx.ConnectError as error:
                self.ledger.refused(batch)
                trouble = f"can't be reached ({error})"
                continue
            except (httpx.TransportError, httpx.DecodingError) as error:
                trouble = f"broke off ({type(error).__name__})"
                continue
            if answer.status_code in (408, 425, 429):
                self.ledger.refused(batch)
                asked = self._masks.text(answer.headers.get("retry-after", ""))
                trouble = f"says {answer.status_code}; {asked}"
                continue
            if answer.status_code >= 500:
                trouble = f"says {answer.status_code}"
                continue
            if answer.is_redirect:
                self.ledger.refused(batch)
                at = self._shown(answer.headers.get("location", "another address"))
                raise DataError(
                    f"{self._endpoint.place} says {answer.status_code}, it is at {at}: name that "
                    "as url"
                )
            if answer.status_code >= 400:
                self.ledger.refused(batch)
                raise DataError(
                    f"{self._endpoint.place} refuses the request ({answer.status_code}): "
                    f"{self._shown(answer.text)}"
                )
            try:
                value = self._masks.value(_json(answer.content))
            except ValueError:
                trouble = f"answered what is no JSON: {self._shown(answer.text)}"
                continue
            self.ledger.answered(batch, value)
            self._take([name_of(each) for each in batch], value)
            if cut:
                raise self._over()
            return len(batch)
        raise RunError(
            f"{self._endpoint.place} {trouble.rstrip('; ')}, {self._endpoint.retries + 1} times: "
            "what was answered is kept, run again to go on"
        )

    def _take(self, names: Sequence[str], value: object) -> None:
        """Reads a kept answer, as far as it can be read. Raises DataError for the first query that
        has no answer in it."""
        unfit: DataError | None = None
        for name, one in zip(names, self._each(value, len(names)), strict=True):
            try:
                self._held[name] = self._read_one(one)
            except DataError as error:
                unfit = unfit or error
        if unfit is not None:
            raise unfit

    def _over(self) -> OverBudget:
        return OverBudget(
            f"the limit of {self._limit:,} queries is reached, those of earlier audits of this API "
            "included: raise it (--limit), or ask less; what was answered is kept"
        )

    def _pause(self, attempt: int, trouble: str) -> float:
        """Longer each time, never the same for two clients, and as long as the API asks."""
        asked = re.search(r"; (\d+(?:\.\d+)?)$", trouble)
        own = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1))
        own *= 0.5 + self._random.random()
        return max(own, float(asked[1])) if asked else own

    def _pace(self) -> None:
        if self._endpoint.requests_per_s is None:
            return
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + 1 / self._endpoint.requests_per_s
        if at > now:
            self._sleep(at - now)

    def _each(self, value: object, count: int) -> list[Any]:
        """The part of an answer for each query. Raises DataError, which shows what doesn't fit."""
        read = self._endpoint.read
        each: Any = [value] if read.answers is None else _search(read.answers, value)
        if not isinstance(each, list) or len(each) != count:
            got = f"{len(each)} answers" if isinstance(each, list) else "no list of answers"
            raise self._unfit(f"{got} to {count} queries at {read.answers!r}", value)
        return each

    def _read_one(self, one: object) -> dict[str, Any]:
        """What an answer says of a query. Raises DataError, which shows what doesn't fit."""
        read = self._endpoint.read
        found: dict[str, Any] = {}
        if read.probabilities is not None and not self._label_only(one):
            found["probabilities"] = self._probabilities(one)
        for name in ("label", "value", "text"):
            if (path := getattr(read, name)) is None:
                continue
            got = _search(path, one)
            if name == "value":
                got = _number(got)
            if got is None or isinstance(got, dict | list):
                raise self._unfit(f"no {name} at {path!r}", one)
            found[name] = got if name == "value" else str(got)
        return found

    def _unfit(self, what: str, where: object) -> DataError:
        return DataError(
            f"{self._endpoint.place} does not fit its description: {what} in {self._shown(where)}; "
            "what was answered is kept: put its read right, or if this was an answer out of line, "
            "run again, and it alone is asked anew"
        )

    def _shown(self, value: object) -> str:
        """The beginning of an answer, without keys that it may repeat."""
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        text = " ".join(self._masks.text(text).split())
        return text if len(text) <= SHOWN else text[:SHOWN] + " ..."

    def _label_only(self, one: object) -> bool:
        """Whether an API that shows both keeps its probabilities back, as a guarded one may."""
        read = self._endpoint.read
        return read.label is not None and _search(read.probabilities or "@", one) is None

    def _probabilities(self, one: object) -> dict[str, float]:
        read = self._endpoint.read
        got = _search(read.probabilities or "@", one)
        if read.labels is not None:
            names = _search(read.labels, one)
            fits = isinstance(names, list) and isinstance(got, list) and len(names) == len(got)
            got = dict(zip(map(str, names), got, strict=True)) if fits else None
        if not isinstance(got, Mapping) or not got:
            raise self._unfit(
                f"no probabilities by label at {read.probabilities!r} (where they are a list, "
                "read.labels says where its labels are)",
                one,
            )
        shares = {str(name): _number(share) for name, share in got.items()}
        if None in shares.values():
            raise self._unfit("a probability is no number", one)
        return {name: share for name, share in shares.items() if share is not None}


def _json(content: bytes) -> Any:
    """Raises ValueError, also for what is nested so deeply that it could not be kept."""
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return value
    raise ValueError("nested too deeply")


def _search(path: str, value: object) -> Any:
    """What is at a path; None where nothing can be."""
    try:
        return jmespath.search(path, value)
    except JMESPathError:
        return None


def _number(value: object) -> float | None:
    """A finite number, however it is written; None for what is none."""
    try:
        found = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None
