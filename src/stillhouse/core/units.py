"""Differences of a metric in its own unit, which is also what a setting or a sentence counts in:
points (of a hundred; of BLEU and chrF theirs), of log-likelihoods nats a token."""

from __future__ import annotations

WRITTEN = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "mae": "MAE",
    "r_squared": "R²",
}  # names with capitals of their own
OF_HUNDRED = ("bleu", "chrf")  # metrics from 0 to 100
LOWER_IS_BETTER = ("perplexity", "mae")
# A difference that is too small to matter: a point of a share, a correlation, BLEU or chrF; of
# log-likelihoods 0.01 nats a token, which is a hundredth of the perplexity.
MARGIN = 1.0
MARGINS = {"log_likelihood": 0.01}


def margin_of(metric: str, asked: float | None = None) -> float:
    """The largest difference that counts as none, in the metric's own values: `asked`, in the
    units above, or the metric's default."""
    counted = MARGINS.get(metric, MARGIN) if asked is None else asked
    return counted if metric in (*OF_HUNDRED, "log_likelihood") else counted / 100


def span_of(metric: str) -> float:
    """How far a metric's values move if all rows go from wrong to right."""
    return 100.0 if metric in OF_HUNDRED else 1.0


def better(mine: float, theirs: float, metric: str) -> bool:
    """Whether one value of a metric is better than another."""
    return mine < theirs if metric in LOWER_IS_BETTER else mine > theirs


def points(value: float, metric: str, digits: int = 1) -> str:
    """A difference in points of a hundred, signed; of log-likelihoods in nats."""
    if metric == "log_likelihood":
        return f"{value:+.3f}"
    return f"{value if metric in OF_HUNDRED else 100 * value:+.{digits}f}"


def counted(count: int, noun: str) -> str:
    """So many of something, in the singular where it is one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def amount(value: float, metric: str, digits: int = 1) -> str:
    """A size of a difference with its unit, unsigned."""
    return f"{points(abs(value), metric, digits).lstrip('+')} {unit(metric)}"


def unit(metric: str) -> str:
    return "nats a token" if metric == "log_likelihood" else "points"


def spoken(metric: str) -> str:
    """A metric's name inside a sentence."""
    return WRITTEN.get(metric, metric.replace("_", "-"))


def batches_told(
    *, rows: int, batch: int, alone: float, together: float, changed: int, metric: str
) -> str:
    """What an int8 file's answers owe to the rows beside them, in words."""
    if not changed:
        return f"int8 answers to {rows:,} test rows are the same alone and in batches of {batch}"
    digits = 1 if metric in OF_HUNDRED else 4
    return (
        f"int8 answers depend on the rows beside them: {spoken(metric)} {alone:.{digits}f} each "
        f"alone, {together:.{digits}f} in batches of {batch}; {changed:,} of {rows:,} answers "
        "differ"
    )


def rows_told(batch: int | None, tokens: int | None) -> str:
    """So many rows together, of so many tokens; empty where it is not known."""
    if batch is None or tokens is None:
        return ""
    return f"{batch} row{'' if batch == 1 else 's'} of {tokens} tokens"


def cost_told(tokens: int | None, batch: int | None, batch_tokens: int | None) -> str:
    """What latency and throughput were measured on; empty where it is not known."""
    one, many = rows_told(1, tokens), rows_told(batch, batch_tokens)
    parts = [f"latency: {one}" if one else "", f"throughput: batches of {many}" if many else ""]
    return "; ".join(filter(None, parts))
