"""torchrun starts the processes of a training instead of --num-gpus."""

import subprocess
import sys
from pathlib import Path

from compare_runs import differences
from helpers import REPOSITORY
from lives import arguments, make_data

BATCH = ("SOLVER.IMS_PER_BATCH", "4", "DATALOADER.LABELED_PER_BATCH", "2")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def train(start: tuple[str, ...], options: tuple[str, ...], root: Path, output: Path) -> str:
    script = str(REPOSITORY / "projects" / "train_net.py")
    given = arguments(root, output, "explicit", 0)
    command = [sys.executable, "-W", "ignore", *start, script, *options, *given, *BATCH]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_torchrun_trains_as_num_gpus_does(tmp_path):
    root, launched, joined = (tmp_path / name for name in ("data", "launched", "joined"))
    make_data(root)
    train((), ("--num-gpus", "2"), root, launched)
    told = train(TORCHRUN, (), root, joined)
    assert "Rank of current process: 0. World size: 2" in told
    assert differences(launched, joined) == []
