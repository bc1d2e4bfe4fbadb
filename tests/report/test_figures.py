import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest

from stillhouse.core.results import Gain
from stillhouse.report import canvas, figures
from stillhouse.report.figures import Point

POINTS = [
    Point("Teacher", "teacher", 21.6, 0.934, (0.92, 0.946)),
    Point("Student", "student", 4.2, 0.919, (0.905, 0.932)),
    Point("Baseline", "baseline", 4.2, 0.901, (0.885, 0.915)),
]


def scatter(points: list[Point] = POINTS) -> str:
    return figures.quality_against(points, key="f", metric="Accuracy", xlabel="Latency, ms")


def text_of(svg: str) -> list[str]:
    return [each.text or "" for each in ET.fromstring(svg).iter() if each.tag.endswith("text")]


def test_text_of_a_figure_is_text() -> None:
    assert {"Teacher", "Student", "Baseline", "Latency, ms"} <= set(text_of(scatter()))


def test_every_colour_is_the_pages() -> None:
    svg = scatter()
    assert re.findall(r"#[0-9a-f]{6}\b", svg) == []
    assert "var(--teacher)" in svg
    assert "var(--student)" in svg
    assert "DejaVu" not in svg


def test_labels_are_escaped_and_never_taken_for_markup_or_maths() -> None:
    hostile = ['</svg><script>alert(1)</script>"', "$x_1$ & $\\frac{}{$", f'id="x" {FIRST_PAINT}']
    svg = scatter([Point(text, "student", 1.0 + n, 0.9) for n, text in enumerate(hostile)])
    assert "<script" not in svg
    assert set(hostile[1:]) <= set(text_of(svg))


FIRST_PAINT = canvas.PAINT["ink"]


def test_same_data_gives_the_same_figure_whatever_the_users_settings() -> None:
    before = scatter()
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.hashsalt": "other"}):
        assert scatter() == before


def test_a_glyph_that_the_measuring_font_lacks_is_no_error() -> None:
    assert "日本語" in text_of(scatter([Point("日本語", "student", 1.0, 0.9), POINTS[0]]))


@pytest.mark.parametrize("scores", [(0.9, 0.9), (0.0, 0.0), (-0.2, 0.4)])
def test_equal_or_negative_scores_are_drawn(scores: tuple[float, float]) -> None:
    svg = scatter([Point(f"m{n}", "student", 1.0, score) for n, score in enumerate(scores)])
    assert {"m0", "m1"} <= set(text_of(svg))


def test_gain_says_what_it_shows() -> None:
    svg = figures.gain(Gain(value=0.0, interval=(0.0, 0.0), p_value=1.0), key="g")
    assert 'aria-label="Gain +0.000, interval 0.000 to 0.000, against zero."' in svg


def test_confusion_writes_each_count_but_zero() -> None:
    svg = figures.confusion([[7, 0], [3, 5]], ["no", "yes"], key="c")
    assert {"7", "3", "5"} <= set(text_of(svg))
    assert "0" not in text_of(svg)
    assert "12 of 15 rows on the diagonal" in svg


def test_a_cell_of_the_confusion_is_as_strong_as_its_share_of_the_gold_label() -> None:
    """Not of the answer, of which the first column has nine."""
    svg = figures.confusion([[8, 0], [1, 3]], ["no", "yes"], key="c")
    found = [
        float(alpha) for alpha in re.findall(r"fill: var\(--student\); opacity: ([\d.]+)", svg)
    ]
    assert found == pytest.approx([0.05 + figures.SHADE * share for share in (1.0, 0.25, 0.75)])
