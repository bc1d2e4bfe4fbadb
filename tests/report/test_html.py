import json
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

import stillhouse.report
from stillhouse.core.results import (
    DataSummary,
    Disagreement,
    FloorResult,
    Gain,
    ModelResult,
    Record,
)
from stillhouse.report import format as fmt
from stillhouse.report import page as build_page
from stillhouse.report import render

from .runs import WriteRun, evaluation_line, make_record, metric_lines, models, step_line

HOSTILE = '</td><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }}\'"&'


class Page(HTMLParser):
    """The tags, the headings' levels, the ids and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values[name] or "" for name in ("src", "href") if name in values]

    def handle_data(self, data: str) -> None:
        # The style sheet is no text of the page.
        self.text += data if self.cdata_elem is None else ""

    @property
    def levels(self) -> list[int]:
        return [int(tag[1]) for tag in self.tags if re.fullmatch(r"h[1-6]", tag)]


def page(*folders: Path) -> Page:
    out = render(folders, folders[0] / "report.html")
    return Page(out.read_text())


def test_verdict_comes_first(write_run: WriteRun) -> None:
    text = page(write_run()).text
    order = [
        "Helped",
        "keeps 98.4 %",
        "+0.018",
        "98.4\u2009%",
        "4.82\u00d7",
        "5.13\u00d7",
        "The models",
        "Seed 1",
    ]
    order += ["How it learned", "What it answers", "The data", "How it was made"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_page_is_one_file_without_script(write_run: WriteRun) -> None:
    found = page(write_run())
    assert "script" not in found.tags
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert len(found.ids) == len(set(found.ids))


def test_headings_start_at_one_and_skip_no_level(write_run: WriteRun) -> None:
    for found in (page(write_run("a")), page(write_run("b"), write_run("c"))):
        assert found.levels[0] == 1
        assert found.levels.count(1) == 1
        pairs = zip(found.levels, found.levels[1:], strict=False)
        assert all(after <= before + 1 for before, after in pairs)


def hostile_run(write_run: WriteRun) -> Path:
    parts = models()
    named = {role: model.model_copy(update={"name": HOSTILE}) for role, model in parts.items()}
    row = Disagreement(text=HOSTILE, pair=HOSTILE, gold=HOSTILE, teacher=HOSTILE, student="b")
    data = make_record().data.model_copy(
        update={"labels": [HOSTILE, "b", "c", "d"], "dropped": {HOSTILE: 1}}
    )
    record = make_record(
        **named, data=data, disagreements=[row], sentence=HOSTILE, warnings=[HOSTILE], task=HOSTILE
    )
    line = step_line("student", 0, 10)
    folder = write_run("x", record=record, lines=[{**line, "terms": {HOSTILE: {"value": 1.0}}}])
    (folder / "config.yaml").write_text(HOSTILE)
    (folder / "manifest.json").write_text(json.dumps({HOSTILE: [HOSTILE, {HOSTILE: None}]}))
    return folder


def test_text_of_the_user_never_becomes_markup(write_run: WriteRun) -> None:
    folder = hostile_run(write_run)
    for found in (page(folder), page(folder, write_run("y"))):
        assert "script" not in found.tags
        assert "img" not in found.tags
        assert found.text.count("<script>alert(1)</script>") >= 12
        assert "{{ 7 * 7 }}" in found.text


@pytest.mark.slow
def test_same_record_gives_the_same_page_in_any_process(write_run: WriteRun) -> None:
    folder = write_run()
    code = "import sys; from pathlib import Path; from stillhouse.report import render; "
    code += "render([Path(sys.argv[1])], Path(sys.argv[2]))"
    pages: list[bytes] = []
    for salt in ("1", "2"):
        out = folder / f"{salt}.html"
        environment = {"PYTHONHASHSEED": salt, "PYTHONPATH": ":".join(sys.path)}
        command = [sys.executable, "-c", code, str(folder), str(out)]
        subprocess.run(command, check=True, env=environment)
        pages.append(out.read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.slow
def test_page_of_one_run_does_not_depend_on_its_folder(write_run: WriteRun) -> None:
    one, other = write_run("one"), write_run("other")
    assert (
        render([one], one / "r.html").read_text() == render([other], other / "r.html").read_text()
    )


def test_report_does_not_import_torch() -> None:
    code = "import stillhouse.report, sys; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0
    )


def unmeasured() -> Record:
    parts = models()
    costs = ("flops", "latency_ms", "latency_p95_ms", "throughput_per_s", "peak_memory_bytes")
    none = dict.fromkeys((*costs, "calibration_error", "confusion"))
    nothing = {**none, "reliability": []}
    return make_record(
        **{role: model.model_copy(update=nothing) for role, model in parts.items()}, exports=[]
    )


def regression() -> Record:
    parts = models()
    change: dict[str, object] = {
        "confusion": None,
        "classes": [],
        "never_predicted": [],
        "reliability": [],
    }
    change |= {"calibration_error": None}
    change["metrics"] = {"pearson": 0.81, "rmse": 0.4}
    rows = {role: model.model_copy(update=change) for role, model in parts.items()}
    data = DataSummary(train=9, labelled=9, unlabelled=0, held_out=3, reported=4, labels=[])
    return make_record(
        **rows, task="regression", metric="pearson", data=data, disagreements=[], exports=[]
    )


def finetuned() -> Record:
    student = models()["student"].model_copy(update={"retention": None})
    timing = make_record().timing.model_copy(update={"baseline_s": None})
    nothing = dict.fromkeys(("teacher", "baseline", "gain", "verdict"))
    told = {"sentence": "The model reaches 0.919.", "disagreements": [], "exports": []}
    return make_record(flow="finetune", student=student, timing=timing, **nothing, **told)


def bare() -> Record:
    student = models()["student"].model_copy(
        update={"seeds": [0.9], "best_steps": [], "retention": None}
    )
    empty = {"warnings": [], "temperature": None}
    return finetuned().model_copy(update={"flow": "distill", "student": student, **empty})


def test_what_was_not_measured_is_said_or_left_out(write_run: WriteRun) -> None:
    found = page(write_run(record=unmeasured()))
    assert "latency not measured" in found.text
    assert "against latency" not in found.text
    assert "against size" in found.text
    assert "confidence right" not in found.text
    assert "Peak memory" not in found.text


def test_one_model_unmeasured_says_so_in_its_cell(write_run: WriteRun) -> None:
    teacher = models()["teacher"].model_copy(update={"flops": None})
    assert page(write_run(record=make_record(teacher=teacher))).text.count("not measured") == 1


def test_regression_has_no_labels_to_confuse(write_run: WriteRun) -> None:
    text = page(write_run(record=regression())).text
    assert "Pearson against latency" in text
    assert "RMSE" in text
    assert "What it answers" not in text
    assert "Left out" not in text


def test_an_export_is_compared_with_its_own_model_not_the_teacher(write_run: WriteRun) -> None:
    text = page(write_run()).text
    start = text.index("Agreement with its PyTorch model")
    assert text[start : text.index("Largest difference")].endswith("0.9990.988\n")
    start = text.index("Agreement with the teacher")
    assert text[start : text.index("Macro F1")].endswith("0.9510.917\n")


def test_finetuned_model_is_nobodys_student(write_run: WriteRun) -> None:
    text = page(write_run(record=finetuned(), lines=metric_lines(("student",)))).text
    assert "Fine-tuning" in text
    assert "Model took" in text
    assert "Baseline" not in text
    assert "eacher" not in text


def test_the_floor_stands_below_the_models(write_run: WriteRun) -> None:
    floor = FloorResult(
        name="TF-IDF with logistic regression", score=0.654, interval=(0.62, 0.69),
        metrics={"accuracy": 0.654}, rows=1069, seconds=0.31,
    )  # fmt: skip
    text = page(write_run(record=make_record(floor=floor))).text
    found = text[text.index("A bag of words") :]
    assert found.startswith("A bag of words (TF-IDF with logistic regression), trained on 1")
    assert "0.654, interval 0.620" in found.replace("\u2009", "")
    assert "bag of words" not in page(write_run("none")).text


@pytest.mark.slow
@pytest.mark.parametrize("record", [unmeasured(), regression(), finetuned(), bare()])
@pytest.mark.parametrize("lines", [[], [evaluation_line("student", 0, 50)], metric_lines()])
def test_missing_parts_break_nothing(
    write_run: WriteRun, record: Record, lines: list[dict[str, object]]
) -> None:
    folder = write_run("a", record=record, lines=lines)
    for name in ("manifest.json", "config.yaml") if not lines else ():
        (folder / name).unlink()
    assert record.sentence in page(folder).text


@pytest.mark.slow
def test_missing_parts_break_no_comparison(write_run: WriteRun) -> None:
    records = [make_record(), unmeasured(), regression(), finetuned(), bare()]
    folders = [write_run(f"{n}", record=each, lines=[]) for n, each in enumerate(records)]
    text = page(*folders).text
    assert "no comparison" in text
    assert "no teacher" in text
    assert text.count("not measured") >= 3


def test_run_with_no_metrics_file_has_no_curves(write_run: WriteRun) -> None:
    folder = write_run()
    (folder / "metrics.jsonl").unlink()
    assert "How it learned" not in page(folder).text


def test_many_labels_are_a_table_of_top_confusions(write_run: WriteRun) -> None:
    names = [f"label {n}" for n in range(40)]
    matrix = [[50 if row == column else 0 for column in range(40)] for row in range(40)]
    matrix[3][7], matrix[9][2] = 25, 10
    student = models()["student"].model_copy(update={"confusion": matrix})
    data = make_record().data.model_copy(update={"labels": names})
    text = page(write_run(record=make_record(student=student, data=data))).text
    assert "What it takes for what most often" in text
    cells = re.sub(r"\s+", " ", text[text.index("Of the label's rows") :])
    assert cells.index("label 3label 72533.3") < cells.index("label 9label 21016.7")


@pytest.mark.parametrize(
    ("verdict", "badge"),
    [
        ("hurt", "▼ Hurt"),
        ("no difference", "= No difference"),
        ("can't tell", "? Can't tell"),
        ("not comparable", "≠ Not comparable"),
    ],
)
def test_each_verdict_is_named(write_run: WriteRun, verdict: str, badge: str) -> None:
    worse = Gain(value=-0.02, interval=(-0.03, -0.01), p_value=0.0001, seeds=3)
    text = page(write_run(record=make_record(verdict=verdict, gain=worse))).text
    assert badge in re.sub(r"\s+", " ", text)
    assert "\u22120.020" in text
    assert "two models only" not in text


@pytest.mark.parametrize("verdict", ["helped", "hurt"])
def test_one_seed_never_helps_or_hurts_without_its_caveat(
    write_run: WriteRun, verdict: str
) -> None:
    """Wherever the word stands, in the badge, the table of runs or the page's name."""
    student = models()["student"].model_copy(update={"seeds": [0.919]})
    gain = Gain(value=0.018, interval=(0.007, 0.029), p_value=0.0021, seeds=1)
    one = make_record(student=student, gain=gain, verdict=verdict, sentence="S.", diagnosis=[])
    alone, both = write_run("a", record=one), write_run("b", record=one)
    for found in (page(alone), page(alone, both)):
        text = re.sub(r"\s+", " ", found.text)
        said = re.findall(rf"\b{verdict}\b(.{{23}})", text, flags=re.IGNORECASE)
        assert said
        assert set(said) == {", these two models only"}


def test_a_better_baseline_leads_and_a_weak_teacher_is_no_yardstick(write_run: WriteRun) -> None:
    lead = "The baseline is better so far."
    worse = make_record(
        best="baseline", verdict="can't tell", weak_teacher=["the baseline beats it"], lead=lead,
        sentence=f"{lead} And more.",
    )  # fmt: skip
    found = page(write_run("a", record=worse))
    places = [found.text.index(part) for part in (lead, "And more.", "0.901", "The models")]
    assert places == sorted(places)
    assert "accuracy (the baseline)" in found.text
    assert "0.901 against a weak teacher's 0.934" in found.text
    assert "of the teacher's accuracy" not in found.text
    known = make_record(not_comparable="it was trained on these rows", sentence="It is open.")
    assert "of the teacher's accuracy" not in page(write_run("c", record=known)).text
    kept = page(write_run("b", record=make_record(best="baseline"))).text
    assert "96.5\u2009%" in kept
    assert "of the teacher's accuracy (the baseline)" in kept


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0099, "p\u00a0=\u00a00.010"), (0.0021, "p\u00a0=\u00a00.002"),
     (0.001, "p\u00a0=\u00a00.001"), (0.00099, "p\u00a0<\u00a00.001")],
)  # fmt: skip
def test_a_p_value_is_below_a_thousandth_only_where_it_is(value: float, said: str) -> None:
    assert fmt.p_value(value) == said


def test_several_runs_are_compared_and_each_told(write_run: WriteRun) -> None:
    found = page(write_run("small"), write_run("other/small"), write_run("mini"))
    assert "3 runs side by side" in found.text
    assert "small (2)" in found.text
    assert {"#run-1", "#run-2", "#run-3"} <= set(found.links)
    assert {"run-1", "run-2", "run-3"} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert "compare their gains" not in found.text


def test_a_teacher_is_drawn_once_only_where_all_runs_have_the_same() -> None:
    def drawn(*teachers: ModelResult) -> int:
        records = [(f"run {n}", make_record(teacher=each)) for n, each in enumerate(teachers)]
        points = build_page._points(records, lambda entry: entry.model.latency_ms)
        return sum(point.role == "teacher" for point in points)

    teacher = models()["teacher"]
    other = teacher.model_copy(update={"name": "another", "score": 0.5})
    assert drawn(teacher, teacher) == 1
    assert drawn(teacher, other) == drawn(teacher, other, teacher) - 1 == 2


@pytest.mark.slow
def test_runs_of_two_metrics_share_no_axis(write_run: WriteRun) -> None:
    text = page(write_run("a"), write_run("b", record=regression())).text
    assert "compare their gains" in text
    assert text.count("Accuracy against latency") == 2
    assert text.count("Pearson against latency") == 2


def test_disagreements_are_cut_at_thirty(write_run: WriteRun) -> None:
    rows = [Disagreement(text=f"row {n};", gold="a", teacher="a", student="b") for n in range(40)]
    text = page(write_run(record=make_record(disagreements=rows))).text
    assert "30 of 40 rows" in text
    assert "row 29;" in text
    assert "row 30;" not in text


def test_all_is_what_is_public() -> None:
    assert stillhouse.report.__all__ == ["render"]


def test_each_figure_says_on_which_rows_it_was_measured(write_run: WriteRun) -> None:
    """Once where all models were measured alike; in each cell where they weren't."""
    text = page(write_run()).text
    for figure, rows in [
        ("FLOPs per example", "1 row of 24 tokens"),
        ("Latency, median", "1 row of 24 tokens"),
        ("Rows per second", "32 rows of 28 tokens"),
        ("Peak memory", "32 rows of 24 tokens"),
    ]:
        assert figure + rows in text.replace("\n", "")
    teacher = models()["teacher"].model_copy(update={"tokens": 31})
    apart = page(write_run("apart", record=make_record(teacher=teacher))).text.replace("\n", "")
    assert "21.6\u2009ms1 row of 31 tokens4.21\u2009ms1 row of 24 tokens" in apart


def test_int8_says_that_its_answers_depend_on_the_batch(write_run: WriteRun) -> None:
    text = page(write_run()).text.replace("\n", "")
    assert "Accuracy, rows one by one0.916500 rows" in text
    assert "0.91032 a batch: 13 of 500 answers change" in text


def test_labels_stand_in_a_table_with_what_they_are_taken_for(write_run: WriteRun) -> None:
    text = page(write_run()).text.replace("\n", "")
    assert "weather never answered12–0.0000.000sport (12)technology" in text
    assert "Never answered: weather." in text
    worst_first = ["weather", "technology", "world", "sport", "obituaries"]
    labels = re.search("(" + ").*?(".join(worst_first) + ")", text[text.index("taken for") :])
    assert labels is not None
    assert "mean over the 4 labels that are gold or answered in some row; 1 that" in text


@pytest.mark.parametrize(
    ("asked", "cached", "told"),
    [
        (900, 0, "Teacher took41.2\u2009s for 900 rows"),
        (100, 800, "Teacher took41.2\u2009s for 100 rows; 800 from the cache"),
        (0, 900, "Teacher's answers900 rows, all from the cache"),
        (None, None, "Teacher took41.2\u2009s"),
    ],
)
def test_what_came_from_the_cache_took_the_teacher_no_time(
    write_run: WriteRun, asked: int | None, cached: int | None, told: str
) -> None:
    record = make_record()
    counts = {"teacher_asked": asked, "teacher_cached": cached, "teacher_s": 41.2}
    timing = record.timing.model_copy(update=counts)
    text = page(write_run(record=make_record(timing=timing))).text.replace("\n", "")
    assert told in text
    assert ("41.2\u2009s" in text) == (asked != 0)
