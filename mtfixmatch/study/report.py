"""The report of a study: report.md, tables, curves and pictures from whatever is done by now."""

from collections import Counter
from pathlib import Path
from statistics import median

from tabulate import tabulate

from ..engine.report import read_history, training_seconds
from .cells import WORDS, Block, Material, collect_states
from .figures import our_figures, paper_figures, write_figures
from .grid import draw_grid
from .layout import TableLayout, read_layout
from .overlap import overlap_table
from .paired import paired_table
from .plan import Run, Study
from .plots import draw_curves
from .readme import show_in_readme
from .tables import axis_title, class_markdown, markdown, write_csv

# Counted even where there are none; other states appear when a run is in them.
COUNTED = ("done", "failed", "unfinished", "missing")
LEGEND = (
    "A cell gives our mean ± sample standard deviation over the seeds. **Bold**: the best figure "
    "of its column (in a table by class: of its class) in this part of the table. □: the network "
    "with the largest geometric mean of its tasks' metrics. `-`: no run. (1 of 3): "
    "seeds that are done. A column named by one number of labels has it for every task."
)
PAPER_LEGEND = " Below ours stands the paper's figure and, in brackets, ours less the paper's."


def write_report(study: Study, runs: list[Run]) -> Path:
    """Write report.md, figures.csv, tables/, curves/ and qualitative.jpg into study.output.

    A report of the whole study in its own folder is shown in its README.md too, see readme.py.

    Args:
        study: with the keys of the report.
        runs: to report; where only others belong a table has "-".

    Returns:
        The path of report.md.

    Raises:
        InputError: for a file that cannot be used.
    """
    material = Material(
        runs=runs,
        states=collect_states(runs),
        ours=[figure for run in runs for figure in our_figures(run)],
        paper=paper_figures(study),
    )
    figures = [*material.paper, *material.ours]
    study.output.mkdir(parents=True, exist_ok=True)
    write_figures(figures, list(study.content["factors"]), study.output / "figures.csv")
    tables = read_layout(study, figures)
    parts = [
        f"# {study.content['title']}",
        "## Runs\n\n" + _states(material) + _time(material),
        "## How to read the tables\n\n" + LEGEND + (PAPER_LEGEND if material.paper else ""),
        *(_table(study, table, material) for table in tables),
        *_pictures(study, runs),
        "All figures, run by run: [figures.csv](figures.csv). The tables: [tables](tables).",
    ]
    path = study.output / "report.md"
    text = "\n\n".join(parts) + "\n"
    path.write_text(text)
    if runs == study.runs and study.output == Path(study.content["output"]):
        show_in_readme(study, text)
    return path


def _states(material: Material) -> str:
    states = [WORDS.get(state.name, state.name) for state in material.states.values()]
    counts = dict.fromkeys(COUNTED, 0) | Counter(states)
    rows = [*counts.items(), ("all", len(states))]
    text = tabulate(rows, headers=["state", "runs"], tablefmt="pipe")
    told = [(f"`{n}`", s.name, _cell(s.message)) for n, s in material.states.items() if s.message]
    if told:
        text += "\n\n" + tabulate(told, headers=["run", "state", "message"], tablefmt="pipe")
    return text


def _time(material: Material) -> str:
    done = [run for run in material.runs if material.states[run.name].name == "done"]
    histories = [read_history(str(run.folder / "metrics.json")) for run in done]
    minutes = [spent / 60 for history in histories if (spent := training_seconds(history))]
    if not minutes:
        return ""
    return (
        f"\n\nThe steps of a run took {min(minutes):.0f} to {max(minutes):.0f} minutes "
        f"({median(minutes):.0f} in the median), those of the {len(minutes)} that are done "
        f"{sum(minutes) / 60:.1f} hours, without evaluations."
    )


def _cell(text: str) -> str:
    """A message in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _table(study: Study, table: TableLayout, material: Material) -> str:
    blocks = [Block(layout, table.name, material) for layout in table.blocks]
    (study.output / "tables").mkdir(exist_ok=True)
    write_csv(blocks, study.output / "tables" / f"table_{table.name}.csv")
    parts = [f"## Table {table.name}: {table.caption}"]
    for block in blocks:
        parts += [f"### {block.title}"] if block.title else []
        if block.layout.columns:
            parts.append(f"Columns: {axis_title(block)}")
        parts.append(_classes(table, block, material) if table.per_class else markdown(block))
        parts += [paired_table(block), overlap_table(block, material)]
        parts.append(_curves(study, table, block))
    return "\n\n".join(part for part in parts if part)


def _classes(table: TableLayout, block: Block, material: Material) -> str:
    """With the classes' shares in the data where the paper gives them."""
    shares = [f for f in material.paper if f.table == table.name and "/share_of_" in f.metric]
    title = shares[0].metric.split("/")[1].replace("_", " ") + " (%)" if shares else ""
    return class_markdown(block, {f.class_name: f"{f.value:g}" for f in shares}, title)


def _curves(study: Study, table: TableLayout, block: Block) -> str:
    wanted = [str(name) for name in study.content.get("curves") or []]
    if table.name not in wanted or table.per_class:
        return ""
    words = ["table", table.name, "".join(c if c.isalnum() else " " for c in block.title)]
    name = "curves/" + "_".join(" ".join(words).split()) + ".png"
    title = " ".join(word for word in ("Table", table.name, block.title) if word)
    return f"![{title}]({name})" if draw_curves(block, title, study.output / name) else ""


def _pictures(study: Study, runs: list[Run]) -> list[str]:
    if "figure" not in study.content:
        return []
    path = study.output / "qualitative.jpg"
    reason = draw_grid(study, runs, path)
    text = "Drawn is what scores over TEST.PICTURE_THRESHOLD.\n\n![predictions](qualitative.jpg)"
    if reason and path.exists():  # runs are kept for their figures when their weights are gone
        text += f"\n\nFrom an earlier report: {reason}."
    elif reason:
        text = f"No picture: {reason}."
    return ["## Predictions\n\n" + text]
