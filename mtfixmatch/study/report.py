"""The report of a study: tables, curves and pictures from the runs that are done."""

import re
from collections import Counter
from pathlib import Path
from statistics import median

from tabulate import tabulate

from ..engine.report import training_seconds
from .cells import Block
from .figures import Metric, StudyResults, collect_results, write_figures
from .grid import draw_grid
from .layout import TableLayout, read_layout
from .overlap import overlap_table
from .paired import paired_table
from .plan import Run, Study
from .plots import draw_curves
from .state import history_of
from .tables import axis_title, class_markdown, markdown, write_csv

README_FILE = "README.md"
BEGIN, END = "<!-- report -->", "<!-- end of report -->"
# States that are always counted; others appear only if a run has them.
COUNTED = ("done", "failed", "unfinished", "missing")
LEGEND = (
    "A cell gives our mean ± sample standard deviation over the seeds. **Bold** marks the best "
    "figure of a column (in a table by class: of a class) in its part of the table. □ marks the "
    "network with the largest geometric mean of its tasks' metrics. `-` stands for no run, "
    "(1 of 3) for one of three seeds done. A column with one number of labels has it for each task."
)
PAPER_LEGEND = " The second line gives the paper's figure and, in brackets, our difference from it."


def write_report(study: Study, runs: list[Run]) -> Path:
    """Write the report with figures.csv, tables/, curves/ and qualitative.jpg beside it.

    The report of all runs of the study's own output goes into the README.md beside study.yaml, if
    that has the marks for it. Any other report is report.md in the output folder.

    Args:
        study: with the keys of the report.
        runs: to report; cells of other runs show "-".

    Returns:
        The path of the report.

    Raises:
        InputError: for a file that cannot be used.
    """
    readme = study.folder / README_FILE
    in_readme = runs == study.runs and study.own_output and _has_marks(readme)
    path = readme if in_readme else study.output / "report.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = collect_results(study, runs)
    figures = [*results.paper, *results.ours]
    write_figures(figures, list(study.content["factors"]), path.parent / "figures.csv")
    text = _report(study, results, path.parent)
    path.write_text(_insert(text, readme.read_text()) if in_readme else text)
    return path


def _report(study: Study, results: StudyResults, folder: Path) -> str:
    """Write the tables and pictures into a folder and return the Markdown around them."""
    parts = [
        f"# {study.content['title']}",
        "## Runs\n\n" + _states(results) + _time(results),
        "## How to read the tables\n\n" + LEGEND + (PAPER_LEGEND if results.paper else ""),
        *(_table(study, table, results, folder) for table in read_layout(study, results)),
        *_pictures(study, results, folder),
        "[figures.csv](figures.csv) holds the figures of every run, [tables](tables) the tables.",
    ]
    return "\n\n".join(parts) + "\n"


def _has_marks(readme: Path) -> bool:
    text = readme.read_text() if readme.is_file() else ""
    return END in text.partition(BEGIN)[2]


def _insert(report: str, readme: str) -> str:
    """Put a report between the marks of a README: without its title, one level of headings down."""
    before, _, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    body = re.sub(r"\A# .*\n+", "", report)
    body = re.sub(r"^##", "###", body, flags=re.MULTILINE)
    return f"{before}{BEGIN}\n\n{body.strip()}\n\n{END}{after}"


def _states(results: StudyResults) -> str:
    counts = dict.fromkeys(COUNTED, 0) | Counter(s.name for s in results.states.values())
    rows = [*counts.items(), ("all", len(results.states))]
    text = tabulate(rows, headers=["state", "runs"], tablefmt="pipe")
    messages = [
        (f"`{run}`", state.name, " ".join(state.message.split()).replace("|", "\\|"))
        for run, state in results.states.items()
        if state.message
    ]
    if messages:
        text += "\n\n" + tabulate(messages, headers=["run", "state", "message"], tablefmt="pipe")
    return text


def _time(results: StudyResults) -> str:
    done = [run for run in results.runs if results.states[run.name].name == "done"]
    times = [training_seconds(history_of(run)) for run in done]
    minutes = [seconds / 60 for seconds in times if seconds]
    if not minutes:
        return ""
    return (
        f"\n\nTraining took {min(minutes):.0f} to {max(minutes):.0f} minutes per run (median "
        f"{median(minutes):.0f}), without evaluations. The {len(minutes)} runs that are done took "
        f"{sum(minutes) / 60:.1f} hours."
    )


def _table(study: Study, table: TableLayout, results: StudyResults, folder: Path) -> str:
    blocks = [Block(layout, table.name, results) for layout in table.blocks]
    (folder / "tables").mkdir(exist_ok=True)
    write_csv(blocks, folder / "tables" / f"table_{table.name}.csv")
    parts = [f"## Table {table.name}: {table.caption}"]
    for block in blocks:
        parts += [f"### {block.layout.title}"] if block.layout.title else []
        if block.layout.columns:
            parts.append(f"Columns: {axis_title(block)}")
        parts.append(_classes(table, block, results) if table.per_class else markdown(block))
        parts += [paired_table(block), overlap_table(block, results)]
        parts.append(_curves(study, table, block, folder))
    return "\n\n".join(part for part in parts if part)


def _classes(table: TableLayout, block: Block, results: StudyResults) -> str:
    """Write a table of classes, with their shares in the data if the paper gives them."""
    shares: dict[Metric, float] = {
        figure.metric: figure.value
        for figure in results.paper
        if figure.table == table.name and "/share_of_" in figure.metric.name
    }
    names = [metric.name.split("/")[1].replace("_", " ") for metric in shares]
    title = f"{names[0]} (%)" if names else ""
    return class_markdown(block, {m.class_name: f"{x:g}" for m, x in shares.items()}, title)


def _curves(study: Study, table: TableLayout, block: Block, folder: Path) -> str:
    wanted = [str(name) for name in study.content.get("curves") or []]
    if table.name not in wanted or table.per_class:
        return ""
    words = re.findall(r"[^\W_]+", f"table {table.name} {block.layout.title}")
    name = f"curves/{'_'.join(words)}.png"
    title = " ".join(word for word in ("Table", table.name, block.layout.title) if word)
    return f"![{title}]({name})" if draw_curves(block, title, folder / name) else ""


def _pictures(study: Study, results: StudyResults, folder: Path) -> list[str]:
    if "figure" not in study.content:
        return []
    path = folder / "qualitative.jpg"
    reason = draw_grid(study, results.runs, path)
    text = "Predictions that score above TEST.PICTURE_THRESHOLD:\n\n![predictions](qualitative.jpg)"
    if reason and path.exists():  # figures of a run are kept longer than its weights
        text += f"\n\nThe picture is from an earlier report: {reason}."
    elif reason:
        text = f"No picture: {reason}."
    return ["## Predictions\n\n" + text]
