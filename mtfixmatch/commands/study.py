"""Run the experiments of a study and report the results beside the paper's figures.

projects/run_study.py cityscapes_low_data --dry-run
projects/run_study.py cityscapes_low_data --only setting=b sampling=uniform,explicit --num-gpus 4
projects/run_study.py cityscapes_low_data --slurm gpu timeout_min=4320 --gpus-per-run 2
projects/run_study.py cityscapes_low_data --report
projects/run_study.py cityscapes_low_data --archive
"""

import sys
from argparse import REMAINDER, Namespace
from collections.abc import Sequence
from pathlib import Path

from ..study.archive import add_to_archive
from ..study.plan import STUDY_FILE, Run, Study, load_study
from ..study.report import write_report
from ..study.runner import Launcher, core_slots, gpu_slots, pending, run_here, submit
from ..study.show import check_configs, show_plan
from ..study.state import finished_folders
from ..utils.checkout import PROJECTS
from ..utils.errors import InputError
from . import command_parser, exit_at_input_error


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments; None: those of the process."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("study", help="name of a folder in projects/, or path of a folder with study.yaml")
    add("--only", nargs="+", default=[], metavar="KEY=VALUE", help="factor=value[,value...]")
    add("--seeds", nargs="+", type=int, default=[], help="replace the study's seeds")
    add("--output", default="", help="folder of the runs; every run starts anew in another one")
    add("--dry-run", action="store_true", help="show the plan and check every config; run nothing")
    add("--report", action="store_true", help="write the report of finished runs; run nothing")
    add("--archive", action="store_true", help="add finished runs to the archive; run nothing")
    add("--num-gpus", type=int, default=0, help="GPUs of this machine; 0: the CPU")
    add("--gpus-per-run", type=int, default=1)
    add("--jobs", type=int, default=1, help="runs side by side on the CPU")
    add("--again", action="store_true", help="include runs that were submitted to SLURM")
    add("--slurm", nargs="+", metavar="PARTITION", help="partition, then KEY=VALUE for submitit")
    add("--opts", nargs=REMAINDER, default=[], help="KEY VALUE pairs for every run")
    return parser.parse_args(argv)


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Return ["a=1", "b=2"] as {"a": "1", "b": "2"}."""
    for text in texts:
        if "=" not in text:
            raise InputError(f"{option}: {text!r} is not KEY=VALUE")
    return dict(text.split("=", 1) for text in texts)


def find(name: str) -> Path:
    """Return the folder of a study: `name`, or in a checkout the folder of that name."""
    for folder in (Path(name), PROJECTS / name):
        if (folder / STUDY_FILE).is_file():
            return folder
    studies = sorted(path.parent.name for path in PROJECTS.glob(f"*/{STUDY_FILE}"))
    known = f", and none of {', '.join(studies)}" if studies else ""
    raise InputError(f"STUDY {name}: no folder with {STUDY_FILE}{known}")


def archive(study: Study) -> None:
    """Add the finished runs on disk to the study's archive; delete nothing."""
    if not study.own_output:
        raise InputError("--archive: only runs of the study's own output belong to its archive")
    folders = finished_folders(study.runs)
    add_to_archive(study.archive, folders)
    print(f"{study.archive}: {len(folders)} runs added")
    for folder in folders:
        print(f"may be deleted: {folder}")


def start(study: Study, runs: Sequence[Run], args: Namespace) -> int:
    """Run on this machine or through SLURM; return the exit status."""
    gpus = args.gpus_per_run if args.num_gpus or args.slurm else 0
    launch = Launcher(study.config, gpus)
    runs = pending(runs, again=args.again)
    if args.slurm:
        parameters = pairs(args.slurm[1:], "--slurm")
        logs, partition = study.output / "slurm", args.slurm[0]
        for job in submit(runs, launch, folder=logs, partition=partition, parameters=parameters):
            print("submitted", job.job_id)
        return 0
    slots = gpu_slots(args.num_gpus, gpus) if args.num_gpus else core_slots(args.jobs)
    failed = run_here(runs, launch, slots)
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def main(args: Namespace) -> int:
    """Do what the options ask for and return the exit status."""
    study = load_study(find(args.study), output=args.output, seeds=args.seeds, opts=args.opts)
    only = pairs(args.only, "--only")
    runs = study.select({factor: text.split(",") for factor, text in only.items()})
    if args.archive:
        archive(study)
        return 0
    if args.report:
        print(write_report(study, runs))
        return 0
    show_plan(study, runs)
    check_configs(study, runs)
    return 0 if args.dry_run else start(study, runs, args)


def run() -> int:
    """Run the command and return its exit status."""
    with exit_at_input_error():
        return main(parse())
