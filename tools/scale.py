"""Measure how cost grows with images, labels, tasks, image size and processes (docs/scale.md).

    python -m tools.scale FOLDER [MOST_IMAGES]

FOLDER gets the listings; it needs 100 MB for a million images, and 4 GB for ten million. Figures go
to output/scale.json, plots to output/scale.png. The tables are those of docs/scale.md.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from tabulate import tabulate

from tools import scale_ranks, scale_records, scale_steps
from tools.bench_data import BATCH, STEPS_PER_SECOND, bench_data

matplotlib.use("Agg")

OUTPUT = "output/scale"
SHARE = 10  # one image in so many is labeled
LABELS = (1_000, 10_000, 100_000)  # of LABEL_IMAGES
LABEL_IMAGES = 100_000
GPUS = (8, 64, 512)
PER_NODE = 8  # GPUs
IMAGE_MB = 2.3  # a PNG of Cityscapes: 2,975 images are 6.8 GB


def measure_records(folder: Path, most: int) -> dict[str, list[dict]]:
    """Return what a start costs by number of images, and by number of labels."""
    images = [10**n for n in range(3, 8) if 10**n <= most]
    by_images = [scale_records.measure(folder / str(n), n, n // SHARE) for n in images]
    root = folder / str(LABEL_IMAGES)
    by_labels = [scale_records.measure(root, LABEL_IMAGES, n) for n in LABELS]
    return {"images": by_images, "labels": by_labels}


def needs(gpus: int, found: Mapping[str, Any], per_core: float) -> dict[str, float]:
    """Return what a run on some GPUs needs, from counts; rates are for STEPS_PER_SECOND."""
    step = found["processes"][-1]
    # A ring sends a reduced tensor twice, in parts; of a gathered one, each process gets all parts.
    reduced = sum(step["bytes"][x] for x in (scale_ranks.GRADIENTS, "allreduce"))
    gathered = step["bytes"]["allgather"] / step["processes"] * gpus
    ring = 2 * (gpus - 1) / gpus * reduced
    images = BATCH * STEPS_PER_SECOND * gpus
    nodes = max(1, gpus // PER_NODE)
    start = found["images"][-1]["later"]
    return {
        "images in a batch": BATCH * gpus,
        "images a second": images,
        f"cores a node, at {per_core:.0f} images a second and core": images / nodes / per_core,
        "read by a node, MB/s": images / nodes * IMAGE_MB,
        "collectives a step": sum(step["collectives"].values()),
        "received by each GPU: gradients, MB a step": ring / 1e6,
        "statistics of BatchNorm, MB a step": gathered / 1e6,
        "both, Gbit/s": (ring + gathered) * STEPS_PER_SECOND * 8 / 1e9,
        f"memory of {found['images'][-1]['images']:,} records, MiB a rank": start["rank_mib"],
    }


def tables(found: Mapping[str, Any], per_core: float) -> str:
    """Return all tables as text."""
    rows = [
        [row["images"], row["labeled"], *_start_figures(row["later"])]
        for row in found["images"] + found["labels"]
    ]
    stages = [f"{stage}, CPU s" for stage in scale_records.STAGES]
    start = ["images", "labeled", *stages, "all, s", "rank, MiB", "worker, MiB"]
    tasks = [[len(x["tasks"]), ", ".join(x["tasks"]), *_costs(x)] for x in found["tasks"]]
    sizes = [[x["size"], *_costs(x)] for x in found["sizes"]]
    costs = ["GFLOP", "activations, MiB", "parameters, million"]
    names = sorted({name for x in found["processes"] for name in x["collectives"]})
    ranks = [
        [
            x["processes"],
            *(f"{x['collectives'].get(n, 0)} ({x['bytes'].get(n, 0) / 1e6:.3f} MB)" for n in names),
        ]
        for x in found["processes"]
    ]
    needed = {gpus: needs(gpus, found, per_core) for gpus in GPUS}
    lines = [[name, *(_text(needed[gpus][name]) for gpus in GPUS)] for name in needed[GPUS[0]]]
    parts = (
        (rows, start),
        (tasks, ["tasks", "", *costs]),
        (sizes, ["pixels, both sides", *costs]),
        (ranks, ["processes", *names]),
        (lines, ["", *(f"{gpus} GPUs" for gpus in GPUS)]),
    )
    style: dict[str, Any] = {"tablefmt": "pipe", "floatfmt": ",.4g", "intfmt": ","}
    return "\n\n".join(
        tabulate(x, headers=y, disable_numparse=x is lines, **style) for x, y in parts
    )


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _start_figures(start: Mapping[str, Any]) -> list[float]:
    seconds = [start["cpu_seconds"][stage] for stage in scale_records.STAGES]
    return [*seconds, sum(start["seconds"].values()), start["rank_mib"], start["worker_mib"]]


def _costs(costs: Mapping[str, Any]) -> list[float]:
    return [costs["GFLOP"], costs["activations_mib"], costs["parameters"] / 1e6]


def plot(found: Mapping[str, Any]) -> Figure:
    """Plot each cost over what it grows with."""
    figure = Figure(figsize=(15, 7.5), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for axis, key, x in zip(axes[:2], ("images", "labels"), ("images", "labeled"), strict=True):
        rows = found[key]
        seconds = {"start, CPU s": [sum(r["later"]["cpu_seconds"].values()) for r in rows]}
        memory = {
            f"{name}, MiB": [r["later"][f"{name}_mib"] for r in rows] for name in ("rank", "worker")
        }
        _draw(axis, x, [r[x] for r in rows], seconds | memory, log=True)
    for axis, key, x in zip(axes[2:4], ("tasks", "sizes"), ("tasks", "size"), strict=True):
        rows = found[key][2:] if key == "tasks" else found[key]
        places = [len(r[x]) if key == "tasks" else r[x] for r in rows]
        names = {"GFLOP": "GFLOP", "activations_mib": "activations, MiB"}
        values = {shown: [r[name] for r in rows] for name, shown in names.items()}
        _draw(axis, x, places, values)
    rows = found["processes"]
    places = [r["processes"] for r in rows]
    calls = {"collectives a step": [sum(r["collectives"].values()) for r in rows]}
    _draw(axes[4], "processes", places, calls)
    sizes = {"MB a step and process": [sum(r["bytes"].values()) / 1e6 for r in rows]}
    _draw(axes[5], "processes", places, sizes)
    return figure


def _draw(
    axis: Any, label: str, x: Sequence[float], values: Mapping[str, Sequence], log: bool = False
) -> None:
    for name, y in values.items():
        axis.plot(x, y, marker="o", label=name)
    if log:
        axis.set_xscale("log")
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    axis.set_xlabel(label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def main(folder: str, most: str = "1000000") -> None:
    """Measure everything, or plot and print what output/scale.json has."""
    os.makedirs(os.path.dirname(OUTPUT), exist_ok=True)
    found: dict[str, Any] = measure_records(Path(folder).absolute(), int(most))
    found |= scale_steps.measure() | {"processes": scale_ranks.measure()}
    found["per_core"] = bench_data()["PNG: labeled views per second and core"]
    Path(f"{OUTPUT}.json").write_text(json.dumps(found, indent=1))
    show(found)


def show(found: Mapping[str, Any]) -> None:
    """Print the tables and write the plots."""
    plot(found).savefig(f"{OUTPUT}.png", dpi=60)
    print(tables(found, found["per_core"]))


if __name__ == "__main__":
    if sys.argv[1].endswith(".json"):
        show(json.loads(Path(sys.argv[1]).read_text()))
    else:
        main(*sys.argv[1:])
