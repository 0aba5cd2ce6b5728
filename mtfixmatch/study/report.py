"""The report of a study: tables, curves and pictures from the runs that are done."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from tabulate import tabulate

from ..engine.evaluation import class_note
from ..engine.report import parse_history, training_seconds
from .cells import Block
from .figures import Figure, StudyResults, collect_results, write_figures
from .grid import draw_grid
from .layout import TableLayout, read_layout
from .plan import Run, Study
from .plots import draw_curves
from .settings import draw_settings
from .state import results_of
from .tables import class_markdown, label, markdown, overlap_table, paired_table, write_csv

BEGIN, END = "<!-- report -->", "<!-- end of report -->"
MARKED = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
# States that are always counted; others appear only if a run has them.
COUNTED = ("done", "failed", "unfinished", "missing")
LEGEND = (
    "A cell gives our mean ± sample standard deviation over the seeds. **Bold** marks the best "
    "figure of a column (in a table by class: of a class) in its part of the table. □ marks the "
    "network with the largest geometric mean of its tasks' metrics. `-` stands for no run, "
    "(1 of 3) for one of three seeds done. A column with one number of labels has it for each task."
)
SETTINGS = (
    "Each panel shows which images are labeled for what in the first run of a setting. Small "
    "groups are drawn wider than they are; the numbers count. A planned panel, before the first "
    "run, is drawn from numbered images: independent subsets will overlap in other images."
)
STD = (
    "The last line is the standard deviation over the classes: the population's, whose divisor is "
    "their number, as in the paper."
)
PAPER_LEGEND = (
    " The second line gives the paper's figure and, in brackets, our difference from it, except "
    "for a figure with a remark below the table."
)


def write_report(study: Study, runs: list[Run]) -> Path:
    """Write the report of some runs with its figures and pictures beside it; return its path.

    The report of all runs of the study's own output goes into the README.md beside study.yaml, if
    that has the marks. Any other is report.md in the output folder. Raise InputError for bad files.
    """
    path, readme = study.output / "report.md", study.folder / "README.md"
    whole = runs == study.runs and study.own_output
    if in_readme := whole and readme.is_file() and bool(MARKED.search(readme.read_text())):
        path = readme
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    results = collect_results(study, runs)
    done = [run for run in runs if results.states[run.name].name == "done"]
    write_figures([*results.paper, *results.ours], study.content["factors"], folder / "figures.csv")
    parts = [
        f"# {study.content['title']}",
        "## Runs\n\n" + _states(results) + _time(done),
        *_settings(study, folder),
        "## How to read the tables\n\n" + LEGEND + (PAPER_LEGEND if results.paper else ""),
        *_class_notes(results, done),
        *(_table(study, table, results, folder) for table in read_layout(study, results)),
        *_pictures(study, done, folder),
        "[figures.csv](figures.csv) holds the figures of every run, [tables](tables) the tables.",
    ]
    text = "\n\n".join(parts) + "\n"
    if in_readme:  # without the title and with the headings one level down
        body = re.sub("^##", "###", "\n\n".join(parts[1:]), flags=re.MULTILINE)
        text = MARKED.sub(lambda _: f"{BEGIN}\n\n{body}\n\n{END}", path.read_text(), count=1)
    path.write_text(text)
    return path


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


def _time(done: Sequence[Run]) -> str:
    times = [training_seconds(parse_history(run.read("metrics.json") or "")) for run in done]
    minutes = [seconds / 60 for seconds in times if seconds]
    if not minutes:
        return ""
    return (
        f"\n\nTraining took {min(minutes):.0f} to {max(minutes):.0f} minutes per run (median "
        f"{median(minutes):.0f}), without evaluations. The {len(minutes)} runs that are done took "
        f"{sum(minutes) / 60:.1f} hours."
    )


def _class_notes(results: StudyResults, done: Sequence[Run]) -> list[str]:
    """List the metrics that are means over fewer classes than named, with their runs."""
    lines = []
    for task, metric in results.primary.items():
        figures = {run.name: results_of(run).get(task) for run in done}
        notes = {name: class_note(metric, x) for name, x in figures.items() if x}
        for note, count in Counter(notes.values()).items():
            first = next(name for name, text in notes.items() if text == note)
            where = f"{count} of {len(notes)} runs, the first: `{first}`"
            if note:
                lines.append(f"- {note} (in {'all runs' if count == len(notes) else where})")
    return ["\n".join(lines)] if lines else []


def _settings(study: Study, folder: Path) -> list[str]:
    if "settings" not in study.content:
        return []
    if not draw_settings(study, folder / "settings.png"):
        return []
    return [f"## Settings\n\n{SETTINGS}\n\n![which images are labeled for what](settings.png)"]


def _table(study: Study, table: TableLayout, results: StudyResults, folder: Path) -> str:
    blocks = [Block(layout, table.name, results) for layout in table.blocks]
    (folder / "tables").mkdir(exist_ok=True)
    write_csv(blocks, folder / "tables" / f"table_{table.name}.csv")
    shares = [f for f in results.paper if f.table == table.name and "/share_of_" in f.metric.name]
    parts = [f"## Table {table.name}: {table.caption}"]
    for block in blocks:
        parts += [f"### {block.layout.title}"] if block.layout.title else []
        if block.layout.columns:
            parts.append(f"Columns: {label(block.layout.columns)}")
        parts.append(class_markdown(block, shares) if table.per_class else markdown(block))
        parts += [paired_table(block), overlap_table(block, results)]
        parts.append(_curves(study, table, block, folder))
    parts += [STD] if table.per_class else []
    parts.append(_remarks(figure for figure in results.paper if figure.table == table.name))
    return "\n\n".join(part for part in parts if part)


def _remarks(figures: Iterable[Figure]) -> str:
    """List the remarks on the paper's figures, each with the metrics or classes that it is on."""
    names: dict[str, dict[str, None]] = {}
    for figure in figures:
        name = figure.metric.class_name or figure.metric.name
        names.setdefault(figure.remark, {})[name] = None
    names.pop("", None)
    lines = [f"- {', '.join(of)}: {remark}" for remark, of in names.items()]
    return "\n".join(["Remarks on the paper's figures:\n", *lines]) if lines else ""


def _curves(study: Study, table: TableLayout, block: Block, folder: Path) -> str:
    if table.per_class or table.name not in map(str, study.content.get("curves") or []):
        return ""
    title = f"Table {table.name} {block.layout.title}".strip()
    words = ["table", *re.findall(r"[^\W_]+", title)[1:]]
    name = f"curves/{'_'.join(words)}.png"
    return f"![{title}]({name})" if draw_curves(block, title, folder / name) else ""


def _pictures(study: Study, done: Sequence[Run], folder: Path) -> list[str]:
    if "figure" not in study.content:
        return []
    path = folder / "qualitative.jpg"
    reason = draw_grid(study, done, path)
    text = "Predictions that score above TEST.PICTURE_THRESHOLD:\n\n![predictions](qualitative.jpg)"
    if reason:  # figures of a run are kept longer than its weights
        earlier = f"{text}\n\nThe picture is from an earlier report: {reason}."
        text = earlier if path.exists() else f"No picture: {reason}."
    return ["## Predictions\n\n" + text]
