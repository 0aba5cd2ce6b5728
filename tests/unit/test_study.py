"""Plan, state, archive and runner of a study; a small script stands in for the training."""

import json
import math
import os
import shutil
import sys
import tarfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from mtfixmatch.data.partial_labels import hide_labels
from mtfixmatch.engine.report import parse_history
from mtfixmatch.study.archive import ARCHIVE_FILE, add_to_archive, read_archive
from mtfixmatch.study.plan import load_study
from mtfixmatch.study.runner import (
    Launcher,
    Slot,
    core_slots,
    gpu_slots,
    pending,
    run_here,
    submit,
)
from mtfixmatch.study.show import check_configs
from mtfixmatch.study.state import (
    State,
    finished_folders,
    results_of,
    state_of,
    write_status,
)
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import REPOSITORY

PROJECTS = REPOSITORY / "projects"
# Runs of the paper's tables: single-task 2 x (5 x 5 + 1), (a) 5 x 5 + 1, (b) and (c) 5 x 5,
# (d) and (e) 6 x 5; Table 4: 1 + 2 + 2 x 2 x 2 x 2; Table 7: 12 rows.
NUM_RUNS = {
    "cityscapes_low_data": 52 + 26 + 50 + 60,
    "cityscapes_full": 19,
    "bdd100k": 12,
}
STEPS = {"cityscapes_low_data": 89250, "cityscapes_full": 150000, "bdd100k": 300000}
DETECTION, SEGMENTATION = "annotations", "sem_seg_file_name"

SMALL_STUDY = {
    "title": "Small",
    "config": "../config.yaml",
    "output": "unused",
    "common": {"SOLVER.MAX_ITER": 5},
    "factors": {
        "method": {"one": {"A": 1, "B": 2}, "two": {"A": 3}},
        "labels": ["X", "Y"],
        "late": {"on": {"A": 9}},
        "seed": ["SEED"],
    },
    "runs": [
        {"method, labels": [["one", 10], ["two", 20]], "seed": [0, 1]},
        {"method": "one", "labels": 10, "seed": 0},
        {"method": "one", "late": "on", "seed": 0},
    ],
}


def write_study(folder: Path, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(SMALL_STUDY | changes, sort_keys=False))
    return folder


@pytest.fixture
def study(tmp_path):
    return load_study(write_study(tmp_path / "study"), output=str(tmp_path / "out"))


def finish(run, **results):
    write_status(run, None)
    (run.folder / "report.md").write_text("")
    (run.folder / "results_best.json").write_text(json.dumps({"teacher": results}))


# Plan


def test_the_runs_are_the_products_of_their_factors(study):
    assert [run.name for run in study.runs] == [
        "one-labels10-seed0",
        "one-labels10-seed1",
        "two-labels20-seed0",
        "two-labels20-seed1",
        "one-on-seed0",
    ]
    assert study.runs[2].overrides == [
        *("SOLVER.MAX_ITER", "5", "A", "3", "X", "20", "Y", "20", "SEED", "0")
    ]
    # The later factor wins; B of its method stays.
    assert study.runs[4].overrides[2:6] == ["A", "9", "B", "2"]
    assert study.config.name == "config.yaml"


def test_seeds_and_options_are_put_in(tmp_path):
    folder = write_study(tmp_path / "study")
    study = load_study(folder, seeds=[7], opts=["C", "d"])
    assert [run.name for run in study.runs] == [
        *("one-labels10-seed7", "two-labels20-seed7", "one-on-seed7")
    ]
    assert all(run.overrides[-4:] == ["SEED", "7", "C", "d"] for run in study.runs)


def test_only_selects(study):
    assert len(study.select({"method": ["one"]})) == 3
    assert [r.name for r in study.select({"labels": ["20"], "seed": ["1"]})] == [
        "two-labels20-seed1"
    ]


@pytest.mark.parametrize(
    "only, message",
    [
        ({"labels": ["11"]}, r"labels=11: labels has \['10', '20'\]"),
        ({"depth": ["1"]}, "depth does not exist"),
        ({"late": ["on"], "method": ["two"]}, "no run of study has all"),
    ],
)
def test_only_refuses_what_is_not_there(study, only, message):
    with pytest.raises(InputError, match=message):
        study.select(only)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"runs": [{"size": 1}]}, r"runs\[0\]: 'size' is no factor"),
        ({"runs": [{"method": "three"}]}, "factors.method has no 'three'"),
        ({"runs": [{"method, labels": [["one", 1, 2]]}]}, "lists of up to 2 values"),
        ({"colour": 1}, r"unknown keys \['colour'\]"),
    ],
)
def test_a_wrong_study_file_is_named(tmp_path, changes, message):
    with pytest.raises(InputError, match=f"study.yaml: .*{message}"):
        load_study(write_study(tmp_path / "study", **changes))


def test_a_missing_or_broken_study_file_is_named(tmp_path):
    with pytest.raises(InputError, match="study.yaml: cannot be read"):
        load_study(tmp_path)
    (tmp_path / "study.yaml").write_text("a: [")
    with pytest.raises(InputError, match="study.yaml: while parsing"):
        load_study(tmp_path)


# The paper's studies


@pytest.fixture(scope="module", params=NUM_RUNS)
def paper_study(request):
    return load_study(PROJECTS / request.param)


METHODS = {"supervised": "Supervised", "fixmatch": "FixMatch", "dense_fixmatch": "DenseFixMatch"}


def test_every_cell_of_the_paper_resolves(paper_study):
    configs = check_configs(paper_study, paper_study.runs)
    name = paper_study.folder.name
    assert len(configs) == NUM_RUNS[name]
    assert {cfg.SOLVER.MAX_ITER for cfg in configs} == {STEPS[name]}
    assert {cfg.FIXMATCH.RAMP_UP for cfg in configs} == {0.05 if "low" in name else 0.1}
    for run, cfg in zip(paper_study.runs, configs, strict=True):
        method, sampling = run.factors["method"], run.factors["sampling"]
        batch_size = 8 if method == "supervised" else 16
        found = (cfg.FIXMATCH.METHOD, cfg.DATALOADER.SAMPLING, cfg.SOLVER.IMS_PER_BATCH)
        assert found == (METHODS[method], sampling, batch_size)
        assert cfg.DATALOADER.LABELED_PER_BATCH == 8
        assert (sampling == "uniform") == (method == "supervised")


def test_what_labeled_means_follows_the_paper():
    def meanings(name):
        study = load_study(PROJECTS / name)
        configs = check_configs(study, study.runs)
        found = Counter()
        for run, cfg in zip(study.runs, configs, strict=True):
            found[run.factors["setting"], cfg.DATALOADER.SAMPLING, cfg.DATALOADER.LABELED] += 1
        return {key for key in found if key[1] != "implicit"}

    others = {(s, how, "any") for s in ("single", *"bcde") for how in ("uniform", "explicit")}
    low = others | {("a", "uniform", "any"), ("a", "explicit", "segmentation")}
    assert meanings("cityscapes_low_data") == low
    assert meanings("bdd100k") == {
        *{("partial", "uniform", "any"), ("partial", "explicit", "all"), ("full", "uniform", "all")}
    }


def test_label_subsets_of_the_low_data_regime():
    """The subsets of 2,975 images have exact sizes and are nested or independent."""
    study = load_study(PROJECTS / "cityscapes_low_data")
    records = [
        {"file_name": f"{i}.png", "image_id": f"city_{i:06d}", DETECTION: [], SEGMENTATION: "x"}
        for i in range(2975)
    ]
    single = {}
    for run, cfg in zip(study.runs, check_configs(study, study.runs), strict=True):
        if run.factors["sampling"] != "uniform":
            continue
        tasks = {"detection": DETECTION, "segmentation": SEGMENTATION}
        wanted = {n: cfg.TASKS[n.upper()].LABELS for n in cfg.MODEL.TASKS}
        hidden = hide_labels(
            records,
            {tasks[name]: count for name, count in wanted.items()},
            mode=cfg.DATASETS.LABEL_SUBSETS,
            seed=cfg.DATASETS.LABEL_SEED,
        )
        kept = {n: {r["image_id"] for r in hidden if tasks[n] in r} for n in wanted}
        assert {name: len(images) for name, images in kept.items()} == wanted
        setting = run.factors["setting"]
        if setting == "single":
            ((name, images),) = kept.items()
            single[name, len(images)] = images
        elif setting in "abd":
            assert kept["segmentation"] <= kept["detection"]
            for name, images in kept.items():
                assert images == single[name, len(images)]  # comparable with the baselines
        else:
            # As many as chance gives: within 4 standard deviations of the hypergeometric mean.
            a, b = wanted["detection"], wanted["segmentation"]
            mean = a * b / 2975
            deviation = math.sqrt(mean * (1 - a / 2975) * (1 - b / 2975) * 2975 / 2974)
            assert abs(len(kept["detection"] & kept["segmentation"]) - mean) < 4 * deviation


# State


def test_states_of_a_run(study):
    missing, failed, unfinished, done, changed = study.runs
    write_status(failed, "exit status 1: error: no")
    write_status(unfinished, None)
    (unfinished.folder / "last_checkpoint").write_text("model_0000001.pth")
    finish(done, a={"m": 1.0})
    finish(changed)
    object.__setattr__(changed, "overrides", ["OTHER", "1"])
    names = [state_of(run).name for run in study.runs]
    assert names == ["missing", "failed", "unfinished", "done", "changed"]
    assert state_of(failed).message == "exit status 1: error: no"
    assert results_of(done) == {"a": {"m": 1.0}}
    assert results_of(failed) == results_of(done, "student") == {}
    assert pending([missing, failed, unfinished, done]) == [missing, failed, unfinished]
    with pytest.raises(InputError, match="one-on-seed0 was made with other settings"):
        pending(study.runs)


def test_a_run_that_ended_without_results_has_failed(study):
    run = study.runs[0]
    finish(run)
    (run.folder / "results_best.json").unlink()
    reason = "it ended without results_best.json: no evaluation has a geometric mean"
    assert state_of(run) == State("failed", reason)


def test_a_study_needs_test_data():
    study = load_study(PROJECTS / "street", opts=["DATASETS.TEST", "()"])
    with pytest.raises(InputError, match=rf"{study.runs[0].name}: DATASETS.TEST is empty"):
        check_configs(study, study.runs[:1])


def test_a_submitted_run_is_not_submitted_again(study):
    run = study.runs[0]
    write_status(run, None, job="gpu")
    assert state_of(run) == State("submitted", "to gpu")
    assert pending([run]) == []
    assert pending([run], again=True) == [run]


# Archive


@pytest.fixture
def archived(tmp_path):
    """A study whose first run is done and in the archive, and no longer on disk."""
    output = str(tmp_path / "out")
    folder = write_study(tmp_path / "study", output=output)
    run = load_study(folder).runs[0]
    finish(run, a={"m": 1.0})
    (run.folder / "metrics.json").write_text('{"iteration": 1, "time": 2.0}\n')
    (run.folder / "model_best.pth").write_bytes(b"weights")
    add_to_archive(folder / ARCHIVE_FILE, finished_folders([run]))
    shutil.rmtree(run.folder)
    return load_study(folder)


def test_an_archived_run_is_done(archived):
    run = archived.runs[0]
    assert [state_of(run).name for run in archived.runs] == ["done", *["missing"] * 4]
    assert results_of(run) == {"a": {"m": 1.0}}
    assert parse_history(run.read("metrics.json")) == [{"iteration": 1, "time": 2.0}]
    assert pending(archived.runs) == archived.runs[1:]
    assert finished_folders(archived.runs) == []


def test_the_folder_of_a_run_precedes_the_archive(archived):
    run = archived.runs[0]
    write_status(run, "exit status 1: error: no")
    assert state_of(run) == State("failed", "exit status 1: error: no")
    assert results_of(run) == {} and run.read("metrics.json") is None


def test_another_output_or_other_overrides_do_not_use_the_archive(archived, tmp_path):
    other = load_study(archived.folder, output=str(tmp_path / "other"))
    assert {state_of(run).name for run in other.runs} == {"missing"}
    changed = load_study(archived.folder, opts=["C", "d"])
    name = changed.runs[0].name
    with pytest.raises(InputError, match=f"{ARCHIVE_FILE}/{name} was made with other settings"):
        pending(changed.runs)


def test_an_archive_keeps_its_runs_and_replaces_a_newer_one(archived):
    first, second = archived.runs[:2]
    finish(first, a={"m": 2.0})
    finish(second, a={"m": 3.0})
    add_to_archive(archived.archive, finished_folders([second]))
    add_to_archive(archived.archive, finished_folders([first]))
    for run in (first, second):
        shutil.rmtree(run.folder)
    runs = load_study(archived.folder).runs
    assert [results_of(run) for run in runs[:2]] == [{"a": {"m": 2.0}}, {"a": {"m": 3.0}}]


def test_the_same_runs_give_the_same_archive(archived, tmp_path):
    folders = []
    for run in reversed(archived.runs):
        finish(run, a={})
        os.utime(run.folder / "report.md", (0, 10**9))
        folders.append(run.folder)
    add_to_archive(tmp_path / "a.tar.xz", folders)
    for folder in folders:
        os.utime(folder / "report.md")
        (folder / "report.md").chmod(0o600)
    add_to_archive(tmp_path / "b.tar.xz", folders[::-1])
    assert (tmp_path / "a.tar.xz").read_bytes() == (tmp_path / "b.tar.xz").read_bytes()
    with tarfile.open(tmp_path / "a.tar.xz") as archive:
        names = archive.getnames()
        assert names == sorted(names) and len(names) == 3 * len(folders)
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in archive} == {(0, 0, 0, "")}


def test_an_archive_made_by_tar_is_read(archived, tmp_path):
    finish(archived.runs[1], b={})
    with tarfile.open(tmp_path / "by_hand.tar.xz", "w:xz") as archive:
        archive.add(archived.output, arcname=".")
    assert set(read_archive(tmp_path / "by_hand.tar.xz")) == {archived.runs[1].name}


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_broken_archive_is_named(archived, content):
    content = archived.archive.read_bytes()[:200] if content is None else content
    archived.archive.write_bytes(content)
    with pytest.raises(InputError, match=f"{ARCHIVE_FILE}: cannot be read as an archive of runs"):
        load_study(archived.folder)


# Runner

SCRIPT = """
import os, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("OUTPUT_DIR") + 1])
get = os.environ.get
print("devices", get("CUDA_VISIBLE_DEVICES"), end=" ")
print("cores", os.sched_getaffinity(0), "threads", get("OMP_NUM_THREADS"))
if "20" in sys.argv:
    sys.exit("error: no such thing")
(folder / "report.md").write_text("")
(folder / "results_best.json").write_text('{"teacher": {}}')
"""


@pytest.fixture
def launcher(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    return Launcher(tmp_path / "config.yaml", train=(str(script),))


def test_a_failed_run_is_named_and_the_others_go_on(study, launcher):
    failed = run_here(study.runs, launcher, [Slot()])
    reason = "exit status 1: error: no such thing"
    assert failed == {"two-labels20-seed0": reason, "two-labels20-seed1": reason}
    assert Counter(state_of(run).name for run in study.runs) == {"done": 3, "failed": 2}
    assert [run.name for run in pending(study.runs)] == list(failed)


def test_a_killed_run_is_named_by_its_signal(study, launcher):
    Path(*launcher.train).write_text("import os; os.kill(os.getpid(), 9)")
    assert launcher(study.runs[0]) == "killed by signal 9"


def test_a_run_that_was_asked_to_stop_has_not_failed(study, launcher):
    run = study.runs[0]
    Path(*launcher.train).write_text("import sys; sys.exit(75)")
    assert launcher(run) == "exit status 75"
    (run.folder / "last_checkpoint").write_text("model_0000001.pth")
    assert state_of(run).name == "unfinished"


def test_the_command_is_that_of_the_readme(study, tmp_path):
    run = study.runs[0]
    launcher = Launcher(Path("c.yaml"), gpus=2)
    assert launcher.command(run) == [
        *(sys.executable, "-W", "ignore", "-m", "mtfixmatch", "train", "--resume"),
        *("--num-gpus", "2", "--dist-url", "auto", "--config-file", "c.yaml"),
        *("OUTPUT_DIR", str(run.folder), *run.overrides),
    ]


def test_slots_share_the_machine():
    assert gpu_slots(3, 1) == [Slot(gpus=(0,)), Slot(gpus=(1,)), Slot(gpus=(2,))]
    assert gpu_slots(5, 2) == [Slot(gpus=(0, 1)), Slot(gpus=(2, 3))]
    assert core_slots(1) == [Slot()]
    cores = sorted(os.sched_getaffinity(0))
    assert core_slots(len(cores)) == ([Slot(cores=(c,)) for c in cores] if cores[1:] else [Slot()])


def test_too_many_shares_are_refused():
    with pytest.raises(InputError, match="--gpus-per-run is 2, of --num-gpus 1"):
        gpu_slots(1, 2)
    with pytest.raises(InputError, match="--jobs is 1000, expected 1 to"):
        core_slots(1000)


def test_runs_share_the_gpus_and_never_one_of_them(study):
    """The first two runs wait for each other, so they must run side by side."""
    together = threading.Barrier(2, timeout=20)
    lock, in_use, order = threading.Lock(), set(), []

    def launch(run, slot):
        with lock:
            assert not in_use.intersection(slot.gpus)
            in_use.update(slot.gpus)
            order.append(slot.gpus)
            first = len(order) <= 2
        if first:
            together.wait()
        with lock:
            in_use.difference_update(slot.gpus)
        return None

    assert run_here(study.runs, launch, gpu_slots(4, 2)) == {}
    assert len(order) == 5 and set(order[:2]) == {(0, 1), (2, 3)}


def test_a_run_sees_its_slot_only(study, launcher):
    core = min(os.sched_getaffinity(0))
    slot = Slot(gpus=(2, 3), cores=(core,))
    with ThreadPoolExecutor(1) as pool:  # a thread that may be bound to a core
        assert pool.submit(launcher, study.runs[0], slot).result() is None
    log = (study.runs[0].folder / "run.log").read_text()
    assert f"devices 2,3 cores {{{core}}} threads 1" in log


def test_submitit_runs_them_and_keeps_their_jobs(study, launcher, tmp_path):
    pytest.importorskip("submitit")
    runs = [study.runs[0], study.runs[2]]
    jobs = submit(
        runs,
        launcher,
        folder=tmp_path / "jobs",
        partition="gpu",
        parameters={"timeout_min": "5"},  # as the command has it
        cluster="local",
    )
    assert state_of(runs[0]).name in ("submitted", "done")
    assert [job.result() for job in jobs] == [None, "exit status 1: error: no such thing"]
    assert [state_of(run).name for run in runs] == ["done", "failed"]


@pytest.mark.parametrize("wrong", [{"colour": "red"}, {"timeout_min": "long"}])
def test_wrong_parameters_for_slurm_are_one_error(study, launcher, tmp_path, wrong):
    pytest.importorskip("submitit")
    with pytest.raises(InputError, match=f"--slurm gpu: .*{next(iter(wrong))}"):
        submit(
            study.runs,
            launcher,
            folder=tmp_path,
            partition="gpu",
            parameters=wrong,
            cluster="local",
        )
    assert {state_of(run).name for run in study.runs} == {"missing"}
