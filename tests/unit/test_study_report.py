"""The report of a study, from folders of runs that hold a few small files each."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.modeling import build_model
from PIL import Image

from mtfixmatch.data.loader import eval_records
from mtfixmatch.engine import load_config
from mtfixmatch.engine.checkpoint import export_model
from mtfixmatch.study import grid, settings
from mtfixmatch.study.archive import add_to_archive
from mtfixmatch.study.cells import Block
from mtfixmatch.study.figures import (
    collect_results,
    our_figures,
    overlap_of,
    paper_figures,
    primary_metrics,
    tasks_of,
)
from mtfixmatch.study.layout import matches, read_filter, read_layout
from mtfixmatch.study.plan import load_study
from mtfixmatch.study.report import write_report
from mtfixmatch.study.state import finished_folders, write_status
from mtfixmatch.study.tables import expected_overlap
from mtfixmatch.tasks import build_tasks
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import REPOSITORY, tiny_config

BOTH = {"MODEL.TASKS": ["detection", "segmentation"]}
STUDY = {
    "title": "Small",
    "config": str(REPOSITORY / "configs" / "street" / "resnet18.yaml"),
    "output": "unused",
    "factors": {
        "setting": {"b": {}, "c": {}},
        "tasks": {"both": BOTH, "detection": {"MODEL.TASKS": ["detection"]}},
        "method": {"supervised": {"FIXMATCH.METHOD": "Supervised"}, "fixmatch": {}},
        "detection_labels": ["TASKS.DETECTION.LABELS"],
        "segmentation_labels": ["TASKS.SEGMENTATION.LABELS"],
        "seed": ["SEED"],
    },
    "runs": [
        {
            "setting": ["b", "c"],
            "tasks": "both",
            "method": ["supervised", "fixmatch"],
            "detection_labels, segmentation_labels": [[20, 10], [10, 10]],
            "seed": [0, 1, 2],
        },
        {"setting": "b", "tasks": "detection", "method": "supervised", "seed": [0]},
    ],
    "tables": [
        {
            "table": 2,
            "caption": "Numbers",
            "rows": ["method"],
            "columns": ["segmentation_labels", "detection_labels"],
            "metrics": ["detection/mAP", "segmentation/mIoU"],
            "blocks": {
                "(b)": {"where": {"setting": "b", "tasks": "both"}},
                "(c)": {"where": {"setting": "c"}, "overlap_of": 100},
            },
        }
    ],
    "curves": [2],
}
HEAD = "table,setting,tasks,method,detection_labels,segmentation_labels,metric,class,value"
PAPER = f"""{HEAD}
2,b,both,supervised,10,10,detection/mAP,,0.25
2,b,both,supervised,10,10,segmentation/mIoU,,0.36
2,b,both,fixmatch,10,10,detection/mAP,,0.36
2,b,both,fixmatch,10,10,segmentation/mIoU,,0.30
9,b,both,fixmatch,20,10,detection/mAP,,0.99
2,c,both,,20,10,overlap,,3
"""


def make_study(tmp_path: Path, paper: str = PAPER, **changes):
    folder = tmp_path / "study"
    folder.mkdir(exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
    if paper:
        (folder / "paper.csv").write_text(paper)
    return load_study(folder, output=str(tmp_path / "out"))


def runs_of(study, **factors):
    wanted = factors.items()
    return [run for run in study.runs if all(run.factors.get(k) == v for k, v in wanted)]


def finish(run, student=None, **results):
    """Make a run look done; a number is the primary metric of its task."""
    for task, metric in (("detection", "mAP"), ("segmentation", "mIoU")):
        if isinstance(results.get(task), float):
            results[task] = {metric: results[task]}
    write_status(run, None)
    content = {"teacher": {"geometric_mean": None, **results}, "iteration": 1}
    content |= {"student": student} if student else {}
    (run.folder / "results_best.json").write_text(json.dumps(content))
    (run.folder / "report.md").write_text("done")


def write_subsets(run, **images):
    run.folder.mkdir(parents=True, exist_ok=True)
    labels = {task: {"count": len(ids), "images": ids} for task, ids in images.items()}
    (run.folder / "label_subsets.json").write_text(json.dumps({"labels": labels}))


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def study(tmp_path):
    """Ours: supervised .1, .2, .3 / .2, .3, .4 on 10 / 10; fixmatch one seed; others failed."""
    study = make_study(tmp_path)
    supervised = runs_of(study, setting="b", tasks="both", method="supervised", detection_labels=10)
    for seed, run in enumerate(supervised):
        finish(run, detection=0.1 * (seed + 1), segmentation=0.1 * (seed + 2))
    fixmatch = runs_of(study, setting="b", method="fixmatch")
    finish(fixmatch[3], detection=0.4, segmentation=0.27)
    write_status(fixmatch[4], "exit status 1: a | b")
    write_status(fixmatch[0], "out of\nmemory")
    stopped = runs_of(study, setting="b", method="supervised", detection_labels=20)[0]
    write_status(stopped, None)
    (stopped.folder / "last_checkpoint").write_text("model_0000001.pth")
    return study


def test_the_time_of_the_runs_that_are_done(study):
    """Each run has 30 steps; all were resumed and repeated their last 10 steps."""
    assert "minutes" not in write_report(study, study.runs).read_text()
    done = [run for run in study.runs if (run.folder / "report.md").is_file()]
    for run, minutes in zip(done, (2, 4, 3, 90), strict=True):
        lines = [{"iteration": i, "time": 2.0 * minutes} for i in (19, 29, 29)]
        (run.folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    text = write_report(study, study.runs).read_text()
    assert "Training took 2 to 90 minutes per run (median 4), without evaluations." in text
    # 3.5 rounds to the even 4; 99 minutes are 1.65 hours.
    assert "The 4 runs that are done took 1.6 hours." in text


def test_a_readme_with_marks_shows_the_whole_report(study):
    readme = study.folder / "README.md"
    readme.write_text("# Mine\n\n<!-- report -->\nstale\n<!-- end of report -->\n\nAfter.\n")
    report = write_report(study, study.runs)
    assert report == study.output / "report.md"  # another output than the study's own
    own = dataclasses.replace(study, own_output=True)
    assert write_report(own, study.runs[:1]) == report  # a part of it
    assert "stale" in readme.read_text()
    write_report(study, study.runs)
    assert write_report(own, study.runs) == readme
    text = readme.read_text()
    assert text.startswith("# Mine\n\n<!-- report -->\n\n### Runs\n")
    assert text.endswith("[tables](tables) the tables.\n\n<!-- end of report -->\n\nAfter.\n")
    assert rows_of(text) == rows_of(report.read_text()) and "stale" not in text
    for name in ("figures.csv", "tables/table_2.csv", "curves/table_2_b.png"):
        assert (study.folder / name).read_bytes() == (study.output / name).read_bytes()
    assert "](curves/table_2_b.png)" in text
    write_report(own, study.runs)
    assert readme.read_text() == text


def test_the_report_of_an_archive_is_that_of_the_folders(study):
    content = {**study.content, "output": str(study.output)}
    study.content["settings"] = content["settings"] = SETTINGS
    (study.folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    done = [run for run in study.runs if (run.folder / "report.md").is_file()]
    write_subsets(done[0], detection=["a", "b"], segmentation=["b"])
    (done[0].folder / "metrics.json").write_text('{"iteration": 9, "time": 60.0}\n')
    report = write_report(study, done)
    names = ("figures.csv", "curves/table_2_b.png", "settings.png")
    files = [report, *(report.parent / name for name in names)]
    before = [file.read_bytes() for file in files]
    add_to_archive(study.archive, finished_folders(study.runs))
    shutil.rmtree(study.output)
    names = [run.name for run in done]
    archived = load_study(study.folder)
    write_report(archived, [run for run in archived.runs if run.name in names])
    assert len(done) == 4 and "minutes" in before[0].decode()
    assert [file.read_bytes() for file in files] == before


def test_mean_spread_difference_and_marks(study):
    rows = rows_of(write_report(study, study.runs).read_text())
    # sqrt(.2 * .3) = .2449 < sqrt(.4 * .27) = .3286; the paper's sqrt(.25 * .36) = .3 < .3286.
    assert rows[rows.index(["method", "metric", "10", "10 / 20"]) + 2 :][:4] == [
        ["supervised", "detection/mAP", "0.2000 ± 0.1000<br>0.2500 (-0.0500)", "unfinished"],
        [
            *("supervised", "segmentation/mIoU"),
            *("**0.3000** ± 0.1000<br>**0.3600** (-0.0600)", "unfinished"),
        ],
        [
            *("fixmatch", "detection/mAP"),
            *("**0.4000** (1 of 3) □<br>**0.3600** □ (+0.0400)", "failed"),
        ],
        [
            *("fixmatch", "segmentation/mIoU"),
            *("0.2700 (1 of 3) □<br>0.3000 □ (-0.0300)", "failed"),
        ],
    ]


def test_differences_from_a_baseline_seed_by_seed(tmp_path):
    table = STUDY["tables"][0] | {"blocks": {"": {"where": {"setting": "b", "tasks": "both"}}}}
    study = make_study(tmp_path, paper="", tables=[table | {"baseline": ["supervised"]}])
    runs = runs_of(study, setting="b", tasks="both", detection_labels=10)
    figures = {"supervised": (0.1, 0.4, 0.2), "fixmatch": (0.3, 0.3)}  # the third seed is missing
    for method, values in figures.items():
        for run in (run for run in runs if run.factors["method"] == method):
            if run.factors["seed"] < len(values):
                finish(run, detection=values[run.factors["seed"]])
    text = write_report(study, study.runs).read_text()
    differences = text[text.index("Difference from supervised, seed by seed") :]
    # +.2 and -.1: their mean is .05, their deviation .3 / sqrt(2).
    row = ["fixmatch", "detection/mAP", "+0.0500 ± 0.2121 (1 of 2)", "-"]
    assert rows_of(differences)[2:] == [row]
    finish(runs[0], detection=0.1)
    with_one_seed = write_report(study, [run for run in study.runs if run.factors["seed"] == 0])
    assert "Difference from supervised" not in with_one_seed.read_text()


def test_states_are_counted_and_failures_told(study):
    text = write_report(study, study.runs).read_text()
    rows = rows_of(text)
    # 24 runs of both tasks and one of detection alone.
    assert rows[2:7] == [
        ["done", "4"],
        ["failed", "2"],
        ["unfinished", "1"],
        ["missing", "18"],
        ["all", "25"],
    ]
    name = "b-both-fixmatch-detection_labels20-segmentation_labels10-seed0"
    assert [f"`{name}`", "failed", "out of memory"] in rows
    assert "| exit status 1: a \\| b |" in text


def test_missing_runs_beside_the_paper(tmp_path):
    study = make_study(tmp_path)
    rows = rows_of(write_report(study, study.runs).read_text())
    assert ["fixmatch", "detection/mAP", "-<br>**0.3600** □", "-"] in rows
    assert not (tmp_path / "out" / "curves").exists()


def test_without_a_paper_only_ours(tmp_path):
    study = make_study(tmp_path, paper="")
    for run, value in zip(runs_of(study, setting="c", method="fixmatch"), (0.5, 0.7), strict=False):
        finish(run, detection=value, segmentation=0.5)
    text = write_report(study, study.runs).read_text()
    # sqrt(2 * .1 ** 2) = .1414; the only one of its column, so nothing is the best.
    assert ["fixmatch", "detection/mAP", "-", "0.6000 ± 0.1414 (2 of 3)"] in rows_of(text)
    assert "paper" not in text


def test_the_seeds_that_are_reported_count(study):
    some = runs_of(study, setting="b", tasks="both", method="supervised", detection_labels=10)[:2]
    rows = rows_of(write_report(study, some).read_text())
    assert ["done", "2"] in rows and ["all", "2"] in rows
    # .1 and .2: mean .15, deviation .1 / sqrt(2).
    assert ["supervised", "detection/mAP", "0.1500 ± 0.0707<br>0.2500 (-0.1000)"] in rows


def test_csv_of_a_table(study):
    write_report(study, study.runs)
    rows = read_csv(study.output / "tables" / "table_2.csv")
    assert [row["block"] for row in rows] == ["(b)"] * 4 + ["(c)"] * 4
    first = rows[0]
    assert (first["method"], first["metric"]) == ("supervised", "detection/mAP")
    assert float(first["10"]) == pytest.approx(0.2)
    assert float(first["10 spread"]) == pytest.approx(0.1)
    assert (first["10 seeds"], first["10 paper"]) == ("3", "0.25")
    assert float(first["10 difference"]) == pytest.approx(-0.05)
    assert (first["10 / 20"], first["10 / 20 paper"]) == ("unfinished", "")
    assert rows[2]["10 / 20"] == "failed" and rows[4]["10 / 20"] == "-"


def test_csv_of_all_figures(study):
    write_report(study, study.runs)
    rows = read_csv(study.output / "figures.csv")
    paper = [row for row in rows if row["source"] == "paper"]
    assert len(paper) == 6 and paper[0]["table"] == "2"
    ours = [row for row in rows if row["source"] == "ours"]
    assert len(ours) == 4 * 2
    name = "b-both-supervised-detection_labels10-segmentation_labels10-seed2"
    found = {row["metric"]: row["value"] for row in ours if row["run"] == name}
    assert found == {"detection/mAP": "0.3", "segmentation/mIoU": "0.4"}
    assert ours[0]["detection_labels"] == "10" and ours[0]["method"] == "supervised"


def test_a_curve_for_each_block_with_figures(study):
    text = write_report(study, study.runs).read_text()
    assert "![Table 2 (b)](curves/table_2_b.png)" in text
    assert [path.name for path in (study.output / "curves").iterdir()] == ["table_2_b.png"]
    with Image.open(study.output / "curves" / "table_2_b.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 20


def test_overlap_of_random_subsets(tmp_path):
    study = make_study(tmp_path)
    first, second, third = runs_of(study, setting="c", method="fixmatch", detection_labels=20)
    write_subsets(first, detection=["a", "b", "c"], segmentation=["c", "b", "x"])
    write_subsets(second, detection=["a"], segmentation=["a"])
    write_subsets(third, detection=["a"])  # one task alone overlaps with nothing
    # Another method with the same seed has the same images and counts once.
    twin = runs_of(study, setting="c", method="supervised", detection_labels=20)[0]
    write_subsets(twin, detection=["b", "c"], segmentation=["c", "b"])
    assert [overlap_of(run) for run in (first, second, third)] == [2, 1, None]
    rows = rows_of(write_report(study, study.runs).read_text())
    # 10 * 20 / 100, 10 * 10 / 100; seeds 0 and 1: (2 + 1) / 2.
    start = rows.index(["images with all labels", "10", "10 / 20"])
    assert rows[start + 2 : start + 5] == [
        ["ours", "-", "1.5"],
        ["expected", "1.0", "2.0"],
        ["paper", "-", "3"],
    ]
    assert expected_overlap((744,), 2975) == pytest.approx(744 * 744 / 2975)


CLASS_TABLE = {"table": 6, "task": "detection", "rows": ["method"]}
CLASS_TABLE |= {"where": [{"setting": "b", "tasks": "both", "detection_labels": 10}]}
CLASS_PAPER = f"""{HEAD}
6,b,,,,,detection/share_of_objects,car,70.5
6,b,both,supervised,10,10,detection/AP,car,0.5
6,b,both,supervised,10,10,detection/AP,bus,0.3
6,b,both,supervised,10,10,detection/mAP,,0.4
6,b,both,supervised,10,10,detection/AP_std,,0.1
"""


def test_table_by_class(tmp_path):
    study = make_study(tmp_path, CLASS_PAPER, per_class=[CLASS_TABLE], tables=[])
    supervised = runs_of(study, setting="b", method="supervised", detection_labels=10)
    for run, car in zip(supervised, (0.6, 0.8), strict=False):
        found = {"mAP": car / 2, "per_class": {"car": car, "bus": 0.0}, "std": car / 2}
        finish(run, detection=found, segmentation=0.5)
    fixmatch = runs_of(study, setting="b", method="fixmatch", detection_labels=10)[0]
    found = {"mAP": 0.9, "per_class": {"car": 0.9, "bus": None}, "std": 0.0}
    finish(fixmatch, detection=found, segmentation=0.5)
    text = write_report(study, study.runs).read_text()
    note = "mAP is a mean over 1 of 2 classes: bus never occurs in DATASETS.TEST"
    assert f"\n- detection/{note} (in 1 of 3 runs, the first: `{fixmatch.name}`)\n" in text
    rows = rows_of(text)
    start = rows.index(["method", "share of objects (%)", "supervised", "fixmatch"])
    assert rows[start + 2 : start + 6] == [
        ["car", "70.5", "0.700 ± 0.141 (2 of 3)<br>0.500 (+0.200)", "**0.900** (1 of 3)"],
        ["bus", "", "0.000 ± 0.000 (2 of 3)<br>0.300 (-0.300)", "n/a"],
        ["detection/mAP", "", "0.350 ± 0.071 (2 of 3)<br>0.400 (-0.050)", "**0.900** (1 of 3)"],
        ["detection/AP_std", "", "0.350 ± 0.071 (2 of 3)<br>0.100 (+0.250)", "**0.000** (1 of 3)"],
    ]
    by_method = {r["method"]: r for r in read_csv(study.output / "tables" / "table_6.csv")}
    assert float(by_method["supervised"]["car"]) == pytest.approx(0.7)
    assert by_method["fixmatch"]["bus"] == "n/a"


def test_metrics_as_columns_and_losses(tmp_path):
    table = {
        "table": 7,
        "rows": ["tasks", "method"],
        "metrics": ["detection/mAP", "detection/image_loss_cls", "segmentation/mIoU"],
        "where": [{"setting": "b", "detection_labels": 10, "seed": 0}, {"tasks": "detection"}],
    }
    study = make_study(tmp_path, "", tables=[table])
    alone = runs_of(study, tasks="detection")[0]
    finish(alone, detection={"mAP": 0.9, "image_losses": {"cls": 0.3}})
    for method, iou, loss in (("supervised", 0.5, 0.2), ("fixmatch", 0.6, 0.1)):
        run = runs_of(study, setting="b", tasks="both", method=method, detection_labels=10)[0]
        both = {"losses": {"cls": 0.7}, "image_losses": {"cls": loss}}
        finish(run, detection={"mAP": 0.4, **both}, segmentation=iou)
    rows = rows_of(write_report(study, study.runs).read_text())
    # The lowest loss is the best one, and a single task has no part in the square.
    assert ["both", "supervised", "0.4000", "0.2000", "0.5000"] in rows
    assert ["both", "fixmatch", "0.4000 □", "**0.1000**", "**0.6000** □"] in rows
    assert ["detection", "supervised", "**0.9000**", "0.3000", ""] in rows


def test_a_figure_with_a_remark_has_no_difference(tmp_path):
    head, *lines = PAPER.splitlines()
    doubtful = [line + (",a guess" if "0.25" in line else ",") for line in lines]
    study = make_study(tmp_path, "\n".join([f"{head},remark", *doubtful]) + "\n")
    for run in runs_of(study, setting="b", method="supervised", detection_labels=10):
        finish(run, detection=0.3, segmentation=0.3)
    text = write_report(study, study.runs).read_text()
    assert "| 0.3000 ± 0.0000<br>0.2500 " in text and "0.3600** (-0.0600)" in text
    assert "Remarks on the paper's figures:\n\n- detection/mAP: a guess\n" in text
    row = read_csv(study.output / "tables" / "table_2.csv")[0]
    assert (row["10 paper"], row["10 difference"]) == ("0.25", "")


def test_the_student_beside_the_teacher(tmp_path):
    table = {"table": 1, "rows": ["method"], "where": {"setting": "b", "detection_labels": 10}}
    table["metrics"] = ["detection/mAP", "student/detection/mAP"]
    study = make_study(tmp_path, "", tables=[table])
    supervised = runs_of(study, setting="b", tasks="both", method="supervised", detection_labels=10)
    fixmatch = runs_of(study, setting="b", method="fixmatch", detection_labels=10)
    for value, run in zip((0.2, 0.4), (supervised[0], fixmatch[0]), strict=True):
        finish(run, detection=value, segmentation=0.5, student={"detection": {"mAP": value / 4}})
    finish(supervised[1], detection=0.3, segmentation=0.5)  # which did not evaluate it
    rows = rows_of(write_report(study, study.runs).read_text())
    assert ["supervised", "0.2500 ± 0.0707 (2 of 3)", "0.0500 (1 of 3)"] in rows
    assert ["fixmatch", "**0.4000** (1 of 3)", "**0.1000** (1 of 3)"] in rows


def test_two_single_tasks_are_no_joint_result(tmp_path):
    """Two single-task runs share a row of the table; neither is a multi-task network."""
    alone = {"segmentation": {"MODEL.TASKS": ["segmentation"]}}
    factors = STUDY["factors"] | {"tasks": STUDY["factors"]["tasks"] | alone}
    runs = [
        {"tasks": ["detection", "segmentation"], "method": ["supervised", "fixmatch"], "seed": 0}
    ]
    table = {"table": 1, "rows": ["method"], "columns": ["setting"]}
    table["metrics"] = STUDY["tables"][0]["metrics"]
    study = make_study(tmp_path, "", factors=factors, runs=runs, tables=[table])
    for value, run in enumerate(study.runs, start=1):
        finish(run, **{tasks_of(run, [])[0]: value / 10})
    text = write_report(study, study.runs).read_text()
    assert "**0.2000**" in text and "**0.4000**" in text
    assert "□" not in text.replace("□ marks the network", "")


def test_experiments_that_a_table_cannot_tell_apart(tmp_path):
    table = STUDY["tables"][0] | {"blocks": {"all": {}}}
    study = make_study(tmp_path, tables=[table])
    with pytest.raises(InputError, match="several experiments meet in cell .*b-both.*c-both"):
        write_report(study, study.runs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ["colour"]}, "tables.0..*'colour' is no factor"),
        ({"row": []}, "unknown keys .'row'."),
        ({"where": {"size": 1}}, "'size' is no factor"),
        ({"baseline": ["fixmatsch"]}, "baseline: expected a value of each of method"),
        ({"baseline": ["fixmatch", 10]}, "baseline: expected a value of each of method"),
        ({"metrics": ["depth/delta1"]}, "no task 'depth'"),
        ({"blocks": {"x": {"caption": ""}}}, "blocks.x: .*unknown keys .'caption'."),
    ],
)
def test_wrong_tables_are_told(tmp_path, changes, message):
    table = {key: value for key, value in STUDY["tables"][0].items() if key != "blocks"}
    study = make_study(tmp_path, tables=[table | changes])
    with pytest.raises(InputError, match=message):
        write_report(study, study.runs)


def test_wrong_files_are_told(tmp_path):
    study = make_study(tmp_path, "table,metric,class,value\n1,detection/mAP,,high\n")
    with pytest.raises(InputError, match="paper.csv: .*'high'.* is no figure"):
        write_report(study, study.runs)
    study = make_study(tmp_path)
    study.runs[0].folder.mkdir(parents=True)
    (study.runs[0].folder / "label_subsets.json").write_text("{}")
    with pytest.raises(InputError, match="label_subsets.json"):
        write_report(study, study.runs)


def blocks_of(study):
    results = collect_results(study, study.runs)
    return {
        (table.name, layout.title): Block(layout, table.name, results)
        for table in read_layout(study, results)
        for layout in table.blocks
    }


def project(name, tmp_path):
    return load_study(REPOSITORY / "projects" / name, output=str(tmp_path), seeds=[0])


@pytest.mark.parametrize("name", ["cityscapes_low_data", "cityscapes_full", "bdd100k", "street"])
def test_the_studies_of_this_repository(tmp_path, name):
    """Every cell has one run, every run a cell, every figure of the paper a cell."""
    study = project(name, tmp_path)
    paper = paper_figures(study)
    placed = [cell for block in blocks_of(study).values() for cell in block.cells.values()]
    assert all(len(cell.runs) == 1 for cell in placed)
    assert {run.name for cell in placed for run in cell.runs} == {run.name for run in study.runs}
    # Overlaps and the classes' shares in the data are no cells.
    figures = [f for f in paper if "share_of" not in f.metric.name and f.metric.name != "overlap"]
    assert sum(cell.paper is not None for cell in placed) == len(figures)
    assert (len(figures) > 0) == (name != "street")
    for wanted in study.content["figure"]["columns"]:
        assert any(matches(run.factors, read_filter(wanted)) for run in study.runs)
    assert "none of its runs is done" in write_report(study, study.runs).read_text()


def joint_rows(block):
    """Column -> the row that has the square among the paper's figures."""
    return {column: row for row, column, _ in block.best_joint("paper")}


def test_what_the_paper_says_about_its_best_networks(tmp_path):
    low_data = project("cityscapes_low_data", tmp_path)
    d = joint_rows(blocks_of(low_data)["3", "(d)"])
    # "Dense FixMatch with explicit sampling gives the best joint performance for all cases."
    assert d == dict.fromkeys(
        [(93, 372), (93, 744), (93, 1488), (186, 744), (186, 1488), (372, 1488)],
        ("dense_fixmatch", "explicit"),
    )
    full = project("cityscapes_full", tmp_path)
    table_4 = joint_rows(blocks_of(full)["4", ""])
    assert table_4["train_extra",] == ("fixmatch", "explicit", "all")
    bdd100k = project("bdd100k", tmp_path)
    table_7 = joint_rows(blocks_of(bdd100k)["7", ""])
    assert table_7 == {(): ("both", "partial", "dense_fixmatch", "explicit", "all")}


def values_of(run, study):
    return {tuple(f.metric): f.value for f in our_figures(run, primary_metrics(study))}


def test_figures_of_a_run(tmp_path):
    study = make_study(tmp_path)
    run = study.runs[0]
    assert values_of(run, study) == {}
    found = {"mAP": 0.2, "AP50": 0.9, "per_class": {"car": 0.3, "bus": None}, "std": None}
    found |= {"losses": {"cls": 0.6}, "image_losses": {"cls": 0.7}}
    finish(run, detection=found, segmentation=0.5, geometric_mean=0.1)
    assert values_of(run, study) == {
        ("geometric_mean", ""): 0.1,
        ("detection/mAP", ""): 0.2,
        ("detection/loss_cls", ""): 0.6,
        ("detection/image_loss_cls", ""): 0.7,
        ("detection/AP", "car"): 0.3,
        ("segmentation/mIoU", ""): 0.5,
    }


@pytest.mark.parametrize("extra", [{}, {"per_class": None, "std": None, "losses": None}])
def test_a_task_without_classes_and_losses(tmp_path, extra):
    """Its table by class has the primary metric alone; other tables are as usual."""
    study = make_study(tmp_path, "", per_class=[CLASS_TABLE])
    run = runs_of(study, setting="b", method="fixmatch", detection_labels=10)[0]
    finish(run, detection={"mAP": 0.25, **extra}, segmentation={"mIoU": 0.5, **extra})
    assert values_of(run, study) == {("detection/mAP", ""): 0.25, ("segmentation/mIoU", ""): 0.5}
    rows = rows_of(write_report(study, study.runs).read_text())
    assert ["fixmatch", "detection/mAP", "0.2500 (1 of 3)", "-"] in rows
    assert ["detection/mAP", "-", "0.250 (1 of 3)"] in rows
    assert ["detection/AP_std", "-", "n/a"] in rows


def test_results_without_a_task(tmp_path):
    study = make_study(tmp_path)
    finish(study.runs[0], detection=0.25)
    assert values_of(study.runs[0], study) == {("detection/mAP", ""): 0.25}


FIGURE = {"images": 2, "columns": [{"method": "supervised"}, {"method": "fixmatch"}]}


@pytest.fixture
def drawn(tmp_path, street_root):
    """A study with one done run, which has a config and the weights of a small network."""
    study = make_study(tmp_path, "", figure=FIGURE)
    run = runs_of(study, setting="b", method="fixmatch")[1]
    finish(run, detection=0.2, segmentation=0.5)
    cfg = tiny_config(street_root, "TEST.PICTURE_THRESHOLD", 0.0)
    (run.folder / "config.yaml").write_text(cfg.dump())
    export_model(build_model(cfg), str(run.folder / "model_best.pth"))
    return study, run


def test_grid_of_predictions(drawn):
    study, _ = drawn
    text = write_report(study, study.runs).read_text()
    assert "![predictions](qualitative.jpg)" in text
    with Image.open(study.output / "qualitative.jpg") as picture:
        # Three columns of 256 + 4; a title of 18 + 4 and two rows of 128 + 4.
        assert picture.size == (3 * 260, 22 + 2 * 132)
        tiles = [picture.crop((x, 22, x + 256, 150)) for x in (0, 260, 520)]
    assert tiles[0].getpixel((5, 5)) == (200, 200, 200)  # missing
    colours = [len(tile.getcolors(10**6)) for tile in tiles]
    assert 5 * colours[0] < min(colours[1:])  # but for JPEG's noise, grey and a word
    assert tiles[1].tobytes() != tiles[2].tobytes()


def test_no_grid_without_the_data(drawn):
    study, run = drawn
    config = run.folder / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["DATASETS"] |= {"ROOT": "/nowhere"}
    config.write_text(yaml.safe_dump(content))
    text = write_report(study, study.runs).read_text()
    assert "No picture: /nowhere/street" in text and "qualitative.jpg" not in text
    (study.output / "qualitative.jpg").write_bytes(b"of a report that had the data")
    text = write_report(study, study.runs).read_text()
    assert "![predictions](qualitative.jpg)" in text and "No picture" not in text
    assert "The picture is from an earlier report: /nowhere/street" in text
    assert (study.output / "qualitative.jpg").read_bytes() == b"of a report that had the data"


def test_wrong_figure_is_told(tmp_path):
    study = make_study(tmp_path, figure={"columns": []})
    with pytest.raises(InputError, match="figure takes the keys images and columns"):
        write_report(study, study.runs)


def test_grid_of_named_images(drawn, monkeypatch):
    """The second and the first image change places, in all columns."""
    study, run = drawn
    grids = []
    monkeypatch.setattr(grid, "write_grid", lambda rows, titles, path: grids.append(rows))
    cfg = load_config(str(run.folder / "config.yaml"), [])
    names = [Path(x["file_name"]).name for x in eval_records(cfg, build_tasks(cfg))[:2]]
    for images in (2, names[::-1]):
        study.content["figure"] = FIGURE | {"images": images}
        write_report(study, study.runs)
    first, second = grids
    assert not np.array_equal(first[0][2], first[1][2])
    for row, other in zip(first, second[::-1], strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(row, other, strict=True))
    study.content["figure"] = FIGURE | {"images": [names[0], "nowhere.png"]}
    with pytest.raises(InputError, match="study.yaml: figure.images: 0 test .* 'nowhere.png'"):
        write_report(study, study.runs)


# The picture of the settings


SETTINGS = {"images": 100, "panels": [{"setting": "b"}, {"setting": "c", "tasks": "both"}]}


@pytest.fixture
def panels(monkeypatch):
    """The panels of each picture that is drawn."""
    drawn = []
    monkeypatch.setattr(settings, "draw_label_sets", lambda panels, path: drawn.append(panels))
    return drawn


def test_the_settings_of_runs_and_of_the_plan(tmp_path, panels):
    study = make_study(tmp_path, settings=SETTINGS)
    second = runs_of(study, setting="b", tasks="both")[1]
    write_subsets(second, detection=["a", "b", "c"], segmentation=["c", "d"])
    text = write_report(study, study.runs).read_text()
    assert "## Settings\n" in text and "](settings.png)" in text
    own, planned = panels[0]
    assert (own.title, own.tasks) == ("setting b", ["detection", "segmentation"])
    labeled = {(True, False): 2, (True, True): 1, (False, True): 1}
    assert own.groups == labeled | {(False, False): 96}
    # 20 boxes of 100, of which 10 have maps.
    assert planned.title == "setting c, tasks both, planned"
    assert planned.groups == {(True, False): 10, (True, True): 10, (False, False): 80}

    subsets = second.folder / "label_subsets.json"
    subsets.write_text(json.dumps({**json.loads(subsets.read_text()), "num_images": 7}))
    write_report(study, study.runs)
    assert panels[1][0].groups == labeled | {(False, False): 3}
    status = {"overrides": ["another study's"], "error": None, "job": None}
    (second.folder / "status.json").write_text(json.dumps(status))
    write_report(study, study.runs)
    assert panels[2][0].title == "setting b, planned"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"images": 5}, "settings: missing keys .'panels'."),
        (SETTINGS | {"panels": [{"size": 1}]}, "settings: 'size' is no factor"),
        (SETTINGS | {"images": 5}, "settings: setting b: .* = 20, but only 5 images have it"),
    ],
)
def test_wrong_settings_are_told(tmp_path, entry, message):
    study = make_study(tmp_path, settings=entry)
    with pytest.raises(InputError, match=message):
        write_report(study, study.runs)


def test_the_settings_of_the_archive(tmp_path):
    """The picture of the archive is the one in the repository, but for its metadata."""
    study = load_study(REPOSITORY / "projects" / "street")
    assert settings.draw_settings(study, tmp_path / "settings.png")
    pictures = []
    for folder in (tmp_path, study.folder):
        with Image.open(folder / "settings.png") as picture:
            pictures.append(np.asarray(picture).astype(int))
    assert pictures[0].shape == pictures[1].shape
    assert (
        np.abs(pictures[0] - pictures[1]).mean() < 1
    )  # another version of Matplotlib draws some pixels otherwise
