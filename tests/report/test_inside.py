"""Ablations, layers compared, and masked language models, on the page."""

import re
import xml.etree.ElementTree as ET

import pytest

from stillhouse.core.results import Similarity
from stillhouse.report import ablations, heatmap

from .runs import WriteRun
from .staged import (
    DIAGNOSIS,
    ablation,
    by_perplexity,
    masked_lm,
    similarity,
    stage_lines,
    staged,
)
from .test_figures import text_of
from .test_html import page


def shades(svg: str) -> list[tuple[float, str]]:
    """Alpha and paint of each filled cell and swatch."""
    return [
        (float(alpha), paint) for paint, alpha in re.findall(r"fill: (\S+); opacity: ([\d.]+)", svg)
    ]


def test_most_useful_term_comes_first_and_verdicts_are_words(write_run: WriteRun) -> None:
    text = page(write_run(record=staged())).text
    table = re.sub(r"\s+", " ", text[text.index("In words") :])
    order = ["attention", "+0.021", "the term helped", "hidden states", "gold answers"]
    order += ["no difference", "embeddings", "the term hurt", "nothing"]
    places = [table.index(part) for part in order]
    assert places == sorted(places)


def test_forest_says_what_it_shows() -> None:
    svg = str(ablations.figure(staged(), key="k").svg)
    assert 'aria-label="Gain from each term: attention of intermediate +0.021, 0.013 to' in svg
    assert {"attention", "the term helped", "the term hurt", "no difference"} <= set(text_of(svg))
    assert "var(--hurt)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)


def test_one_stage_is_not_named_beside_each_term() -> None:
    worth = [ablation("distil", "cosine", 0.01, 0.005, "helped")]
    (row,) = ablations.rows(staged(stages=[], ablations=worth))
    assert row.stage == ""


def test_cells_have_numbers_and_the_two_maps_one_scale() -> None:
    found = Similarity(
        tokens=10, student=[[1.0, 0.5], [0.25, 0.75]], baseline=[[0.9, 0.5], [0.12, 0.3]]
    )
    student, baseline = heatmap.figures(staged(similarity=found), key="k")
    assert {"1.00", ".50", ".25", ".75", "emb", "1"} <= set(text_of(str(student.svg)))
    assert {".90", ".12", ".30"} <= set(text_of(str(baseline.svg)))
    assert shades(str(student.svg))[1] == shades(str(baseline.svg))[1]
    assert "Most alike: emb with emb, 1.00; 1 with 1, .75." in str(student.svg)
    for figure in (student, baseline):
        assert {"0.1", "1.0"} <= set(text_of(str(figure.svg)))


def test_shade_deepens_with_the_value() -> None:
    low, high = (0.2, 1.0), (0.2, 0.4, 0.7, 1.0)
    alphas = [heatmap._alpha(value, low) for value in high]
    assert alphas == sorted(set(alphas))
    assert alphas[0] == heatmap.PALE
    assert alphas[-1] == heatmap.STRONG


def test_layers_all_alike_are_drawn() -> None:
    found = Similarity(tokens=1, student=[[1.0]])
    (figure,) = heatmap.figures(staged(similarity=found), key="k")
    assert ET.fromstring(str(figure.svg)) is not None
    assert not figure.wide


def test_many_layers_take_the_whole_width() -> None:
    assert all(
        figure.wide for figure in heatmap.figures(staged(similarity=similarity(7, 25)), key="k")
    )


def test_reader_is_told_what_cka_is_and_what_the_run_thinks(write_run: WriteRun) -> None:
    text = page(write_run(record=staged())).text
    assert "Linear CKA says how alike two layers arrange the same 8,192 tokens" in text
    places = [text.index(part) for part in ("Helped", "The models", *DIAGNOSIS, "Stages")]
    assert places == sorted(places)


def test_masked_language_model_has_no_labels(write_run: WriteRun) -> None:
    record = masked_lm(ablations=[], similarity=similarity(4, 7))
    found = page(write_run(record=record, lines=stage_lines(record.stages)))
    assert "masked language model" in found.text
    row = re.sub(r"\s+", "", found.text[found.text.index("Perplexity (lower is better)") :])
    assert row.startswith("Perplexity(lowerisbetter)5.238.7511.0Cost")
    for absent in (
        "What it answers",
        "Labelled",
        "labels:",
        "ONNX",
        "Exported files",
        "confidence",
    ):
        assert absent not in found.text


def test_lower_is_better_is_said_wherever_it_matters(write_run: WriteRun) -> None:
    record = by_perplexity()
    text = page(write_run(record=record, lines=stage_lines(record.stages))).text
    assert "of the teacher's perplexity" not in text
    assert "8.75 against 5.23" in text
    assert "\u22122.21 perplexity" in text
    assert "To the left of zero, the run is better" in text
    assert "Lower is better. Thin lines" in text


@pytest.mark.slow
def test_tokens_and_rows_share_no_axis(write_run: WriteRun) -> None:
    text = page(write_run("a", record=masked_lm()), write_run("b")).text
    assert text.count("Accuracy against latency") == 4
