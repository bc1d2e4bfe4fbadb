"""Differences of a metric in its own unit."""

from __future__ import annotations

WRITTEN = {"bleu": "BLEU", "chrf": "chrF"}  # names with capitals of their own
OF_HUNDRED = ("bleu", "chrf")  # metrics from 0 to 100


def points(value: float, metric: str, digits: int = 1) -> str:
    """A difference in points of a hundred, signed; of log-likelihoods in nats."""
    if metric == "log_likelihood":
        return f"{value:+.3f}"
    return f"{value if metric in OF_HUNDRED else 100 * value:+.{digits}f}"


def unit(metric: str) -> str:
    return "nats a token" if metric == "log_likelihood" else "points"


def spoken(metric: str) -> str:
    """A metric's name inside a sentence."""
    return WRITTEN.get(metric, metric.replace("_", "-"))
