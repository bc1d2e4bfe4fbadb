"""Numbers as people read them: units, signs, ratios, in one place so that a page agrees."""

from __future__ import annotations

import math

MINUS = "\u2212"
THIN = "\u2009"
NBSP = "\u00a0"
TIMES = "\u00d7"
DASH = "\u2013"
RAISED = str.maketrans(
    "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
)
ELLIPSIS = "\u2026"
SIGNIFICANT = ("perplexity",)  # metrics that are no share: shown with three significant digits


def score(value: float, metric: str = "") -> str:
    """Three decimals for shares and correlations, fewer for large values."""
    if not math.isfinite(value):
        return "not a number"
    if metric in SIGNIFICANT:
        return significant(value).replace("-", MINUS)
    digits = 3 if abs(value) < 10 else 1
    return f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float, metric: str = "") -> str:
    text = score(value, metric)
    return text if text.startswith(MINUS) or not math.isfinite(value) else f"+{text}"


def interval(bounds: tuple[float, float], metric: str = "") -> str:
    return f"{score(bounds[0], metric)} to {score(bounds[1], metric)}"


def p_value(value: float) -> str:
    return f"p{NBSP}<{NBSP}0.001" if value < 0.001 else f"p{NBSP}={NBSP}{value:.3f}"


def tiny(value: float) -> str:
    """Two significant digits, with a power of ten below a thousandth."""
    if value == 0 or abs(value) >= 1e-3 or not math.isfinite(value):
        return f"{value:.2g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits}{NBSP}{TIMES}{NBSP}10{str(int(power)).translate(RAISED)}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}{THIN}%" if math.isfinite(value) else "not a number"


def count(value: float) -> str:
    return f"{value:,.0f}"


def scaled(value: float, unit: str = "") -> str:
    """Three significant digits with k, M, G, T: 66.4 M."""
    value = _rounded(value)
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{significant(value / size)}{THIN}{prefix}{unit}"
    return f"{significant(value)}{THIN}{unit}".rstrip()


def significant(value: float) -> str:
    """Three significant digits, without an exponent and with its zeros: 3.20, 66.4, 1,240."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    value = _rounded(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def _rounded(value: float) -> float:
    """To three significant digits, before a unit is chosen: 999,600 is 1.00 M, not 1,000 k."""
    return float(f"{value:.3g}") if abs(value) < 1e15 else value


def milliseconds(value: float) -> str:
    return f"{significant(value)}{THIN}ms"


def seconds(value: float) -> str:
    if value < 60:
        return f"{significant(value)}{THIN}s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{THIN}h {minutes}{THIN}min" if hours else f"{minutes}{THIN}min {rest}{THIN}s"


def times(ratio: float) -> str:
    return f"{ratio:.2f}{TIMES}" if ratio < 10 else f"{ratio:.0f}{TIMES}"


def shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + ELLIPSIS
