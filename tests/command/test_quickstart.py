import json
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.support.helpers import REPOSITORY

SHORT = (
    "SOLVER.MAX_ITER 4 FIXMATCH.BURN_IN 1 SOLVER.IMS_PER_BATCH 4 DATALOADER.LABELED_PER_BATCH 2 "
    "DATALOADER.NUM_WORKERS 0 INPUT.TRAIN_SIZE [128,128] FIXMATCH.DIAGNOSTICS_PERIOD 2 "
    "TASKS.DETECTION.LABELS 4 TASKS.SEGMENTATION.LABELS 4 TEST.PICTURES 2 MODEL.TIMM.WEIGHTS ''"
)


def quickstart(folder: Path) -> str:
    """Run `make quickstart` in short, in the environment that runs the tests."""
    command = [
        *("make", "quickstart", "-o", ".venv/.complete", f"PYTHON={sys.executable}"),
        f"DATA={folder / 'data'}",
        f"OUTPUT={folder / 'out'}",
        "STREET=--train 8 --val 3 --size 128x64",
        f"ARGS={SHORT} DATASETS.CACHE_DIR {folder / 'cache'}",
    ]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return run.stdout


def test_quickstart_leaves_a_report_and_reuses_it(tmp_path):
    printed = quickstart(tmp_path)
    assert "eta:" in printed
    out = tmp_path / "out"
    for name in ("predictions.png", "pseudo_labels.png", "curves.png"):
        assert min(Image.open(out / name).size) > 100
    assert list(out.glob("events.out.tfevents.*"))
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert any("teacher/geometric_mean" in line for line in lines)
    report = (out / "report.md").read_text()
    assert re.search(r"\| labeled for detection +\| +4 \|", report)
    assert "DenseFixMatch" in report and "| mean ± std" in report

    before = (out / "report.md").stat().st_mtime_ns
    again = quickstart(tmp_path)
    assert "Done: see" in again and "train_net.py" not in again
    assert (out / "report.md").stat().st_mtime_ns == before
