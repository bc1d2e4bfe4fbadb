"""Runs of several stages: their table, and curves that go on from stage to stage."""

import re
from pathlib import Path

import pytest

from stillhouse.core.results import Record, StageResult
from stillhouse.report import curves, html, metrics, stages, terms

from .runs import WriteRun, make_record, metric_lines
from .staged import DISTIL, FINE_TUNE, INTERMEDIATE, PREDICTION, PRETRAIN, stage_lines, staged
from .test_html import HOSTILE, page

THREE = [PRETRAIN, DISTIL, FINE_TUNE]


def headings(write_run: WriteRun, record: Record, lines: list[dict[str, object]]) -> list[str]:
    out = html.render([write_run(record=record, lines=lines)], Path(write_run("b") / "r.html"))
    return re.findall(r"<h[1-6]>([^<]*)</h", out.read_text())


def drawn(
    write_run: WriteRun, found: list[StageResult], lines: list[dict[str, object]] | None = None
) -> dict[str, str]:
    """The figures of a run of these stages, by title."""
    folder = write_run(lines=stage_lines(found) if lines is None else lines)
    read = metrics.read(folder / "metrics.jsonl")
    made = stages.figures(staged(stages=found), read, key="k")
    return {figure.title: str(figure.svg) for figure in made}


def test_one_stage_on_answers_only_is_told_as_ever(write_run: WriteRun) -> None:
    plain = write_run("a")
    told = write_run("b", record=make_record(stages=[PREDICTION]))
    pages = [html.page_of([html.load(folder)]) for folder in (plain, told)]
    assert pages[0] == pages[1]
    assert "Stages" not in pages[0]
    assert "diagnosis" not in pages[0]


@pytest.mark.slow
def test_record_without_the_new_fields_gives_the_same_page(write_run: WriteRun) -> None:
    folder = write_run()
    before = html.page_of([html.load(folder)])
    path = folder / "record.json"
    new = r',"stages":\[\],"ablations":\[\],"similarity":null,"diagnosis":\[\]'
    old, cut = re.subn(new, "", path.read_text())
    assert cut == 1
    path.write_text(old)
    assert html.page_of([html.load(folder)]) == before


def test_one_stage_with_an_inner_term_is_a_table_where_it_learned(write_run: WriteRun) -> None:
    text = page(write_run(record=make_record(stages=[DISTIL]))).text
    start = text.index("How it learned")
    assert start < text.index("relations") < text.index("Score on held-out rows")
    assert "Stages" not in text


def test_table_tells_each_stage(write_run: WriteRun) -> None:
    text = page(write_run(record=staged(), lines=stage_lines([INTERMEDIATE, PREDICTION]))).text
    row = re.sub(r"\s+", " ", text[text.index("share of the gradient") :])
    order = ["intermediate", "252,000 rows", "kept 600", "–", "25 min 12 s", "hidden states"]
    order += ["31 %", "prediction", "kept 350 to 400", "0.921", "Accuracy", "soft targets", "74 %"]
    places = [row.index(part) for part in order]
    assert places == sorted(places)


def test_parts_come_in_their_order(write_run: WriteRun) -> None:
    found = headings(write_run, staged(), stage_lines([INTERMEDIATE, PREDICTION]))
    order = ["The models", "Why, as far as the run can tell", "Before you rely on this", "Stages"]
    order += ["Without each term", "What is inside", "What it answers", "The data"]
    assert [each for each in found if each in order] == order


def test_steps_go_on_from_stage_to_stage(write_run: WriteRun) -> None:
    found = drawn(write_run, [INTERMEDIATE, PREDICTION])
    assert (
        "Stages: intermediate from step 0; prediction from step 600." in found["Value of each term"]
    )
    # A stage without a score has no panel of its own; the next one's begins where it does.
    assert "Stages: prediction from step 600." in found["Accuracy on held-out rows"]


def test_a_stage_that_no_value_reaches_is_not_said_to_begin() -> None:
    """A run that ended with its first stage: its curve is as long as that one."""
    series = metrics.by_seed("student", [(0, 300, 0.8), (0, 600, 0.9)])
    assert series is not None
    marks = [curves.Mark(0, "intermediate"), curves.Mark(600, "prediction")]
    svg = curves.held_out_score([series], {"student": "Student"}, key="k", marks=marks)
    assert "Stages: intermediate from step 0." in svg
    assert "prediction" not in svg


def test_stages_of_two_metrics_share_no_axis(write_run: WriteRun) -> None:
    found = drawn(write_run, THREE)
    assert "Stages: pre-train from step 0." in found["Perplexity on held-out rows: pre-train"]
    both = found["Accuracy on held-out rows: distil, fine-tune"]
    assert "Stages: distil from step 800; fine-tune from step 1200." in both
    assert ">fine-tune</text>" in both


def test_losses_of_other_terms_share_no_axis(write_run: WriteRun) -> None:
    again = FINE_TUNE.model_copy(update={"name": "again", "terms": ["gold"]})
    losses = [title for title in drawn(write_run, [*THREE, again]) if "loss" in title]
    names = ["pre-train", "distil", "fine-tune, again"]
    assert losses == [f"Training loss: {name}" for name in names]


def test_runs_without_a_term_are_not_drawn(write_run: WriteRun) -> None:
    lines = stage_lines([INTERMEDIATE, PREDICTION])
    main = [line for line in lines if line["run"] != "student-without-attention"]
    assert len(main) < len(lines)
    found = [INTERMEDIATE, PREDICTION]
    assert drawn(write_run, found, lines) == drawn(lambda **k: write_run("b", **k), found, main)


def test_lines_of_no_stage_are_drawn_from_step_0(write_run: WriteRun) -> None:
    found = drawn(write_run, [INTERMEDIATE, PREDICTION], metric_lines())
    assert "Stages: intermediate from step 0." in found["Accuracy on held-out rows"]
    assert "soft targets" in found["Value of each term"]


def test_lines_are_read_with_their_stage(write_run: WriteRun) -> None:
    read = metrics.read(write_run(lines=stage_lines(THREE)) / "metrics.jsonl")
    assert {row.stage for row in read.steps} == {"pre-train", "distil", "fine-tune"}
    later = metrics.part(read, "distil".__eq__, later=800)
    assert min(row.step for row in later.steps) == 810
    assert max(row.step for row in later.evaluations) == 1200


@pytest.mark.slow
@pytest.mark.parametrize("lines", [[], metric_lines(), stage_lines(THREE[1:])])
def test_missing_lines_break_nothing(write_run: WriteRun, lines: list[dict[str, object]]) -> None:
    text = page(write_run(record=staged(stages=THREE), lines=lines)).text
    assert "Stages" in text
    assert "wikitext-2" in text


def test_names_of_the_user_never_become_markup(write_run: WriteRun) -> None:
    stage = PREDICTION.model_copy(
        update={
            "name": HOSTILE,
            "data": HOSTILE,
            "terms": [HOSTILE],
            "metric": HOSTILE,
            "gradient_share": {HOSTILE: 1.0},
        }
    )
    worth = staged().ablations[0].model_copy(update={"stage": HOSTILE, "without": HOSTILE})
    found = [INTERMEDIATE, stage]
    record = staged(stages=found, ablations=[worth], diagnosis=[HOSTILE])
    folder = write_run(record=record, lines=stage_lines(found))
    for each in (page(folder), page(folder, write_run("y"))):
        assert "script" not in each.tags
        assert "img" not in each.tags
        assert each.text.count("<script>alert(1)</script>") >= 9
        assert len(each.ids) == len(set(each.ids))


@pytest.mark.slow
def test_comparison_names_the_stages(write_run: WriteRun) -> None:
    staged_run = write_run("a", record=staged(), lines=stage_lines([INTERMEDIATE, PREDICTION]))
    text = page(staged_run, write_run("b")).text
    assert text.count("intermediate → prediction") == 1


@pytest.mark.parametrize(
    ("term", "name"),
    [
        ("gold", "gold answers"),
        ("hidden-2", "hidden states 2"),
        ("attention_kl", "attention, KL"),
        ("attention_kl-2", "attention, KL 2"),
        ("my_own", "my own"),
        ("2", "2"),
    ],
)
def test_terms_have_names_that_people_read(term: str, name: str) -> None:
    assert terms.name(term) == name
