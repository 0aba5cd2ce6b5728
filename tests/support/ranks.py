"""Groups of gloo processes on one warm process, and what each of their steps has seen and done.

The process that imports this forks the ranks; it must not have run a backward pass itself.
"""

import hashlib
import random
import sys
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from detectron2.engine.launch import _distributed_worker, _find_free_port
from detectron2.modeling import build_model
from detectron2.utils import comm

from mtfixmatch.augmentation.strong import StrongAugmentation
from mtfixmatch.data.loader import build_train_loader, train_records
from mtfixmatch.engine import trainer as trainer_module
from mtfixmatch.tasks import build_tasks
from tests.support.engine_helpers import (
    KINDS,
    NO_MIXING,
    build_trainer,
    copy_state,
    gradients,
    losses_of,
    make_batch,
    relative_difference,
    run_config,
    run_step,
)
from tests.support.short_training import SAMPLERS

# A network that takes little time, and more layers with a norm than a ResNet-18.
NARROW = (
    *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 2),
)
NORMS: dict[str, tuple[Any, ...]] = {
    "FrozenBN": (
        *(*NO_MIXING, *NARROW, "MODEL.RESNETS.NORM", "FrozenBN"),
        *("TASKS.DETECTION.NORMALIZER", "running", "TASKS.SEGMENTATION.NORMALIZER", "image"),
    ),
    "SyncBN": (
        *(*NO_MIXING, *NARROW),
        *("MODEL.RESNETS.NORM", "SyncBN", "MODEL.SEM_SEG_HEAD.NORM", "SyncBN"),
    ),
}
CASES = [("FrozenBN", "DenseFixMatch"), ("SyncBN", "DenseFixMatch"), ("SyncBN", "Supervised")]
STEPS = 3


def fork_ranks(work: Callable, world_size: int, *args: Any) -> None:
    """Run `work` in every process of a group; an error in one of them is raised here."""
    if world_size == 1:  # as the command does, without a group
        mp.start_processes(_alone, (work, args), nprocs=1, start_method="fork")
        return
    url = f"tcp://127.0.0.1:{_find_free_port()}"
    given = (work, world_size, world_size, 0, url, args)
    mp.start_processes(_distributed_worker, given, nprocs=world_size, start_method="fork")


def _alone(rank: int, work: Callable, args: tuple) -> None:
    work(*args)


# Single steps on mixes of labels


def make_mixes(count: int, size: int, seed: int) -> list[tuple[str, str]]:
    """Kinds of the images of each batch, and which of them get no pseudo-label ("-")."""
    rng = random.Random(seed)
    fixed = [
        ("dbsnbbdn", "++++++++"),
        ("dsdsdsds", "++++++++"),  # two processes: no map on rank 0, no boxes on rank 1
        ("bnbnbnbn", "-+-+-+-+"),  # no label on rank 1
        ("dddndndd", "++++++++"),  # no map anywhere
        ("nsnsnsns", "+-+-+-+-"),  # rank 1 has no pseudo-boxes
        ("nnnnnnnn", "++++++++"),
    ]
    drawn = [
        ("".join(rng.choices(list(KINDS), k=size)), "".join(rng.choices("++-", k=size)))
        for _ in range(count - len(fixed))
    ]
    return [(kinds[:size], kept[:size]) for kinds, kept in fixed][:count] + drawn


def build_doubled(cfg):
    """Return a config in float64, because BatchNorm of a few pixels enlarges rounding errors."""
    model = build_model(cfg).double()
    model.register_forward_pre_hook(lambda _, given: (given[0].double(), *given[1:]))
    return model


PRECISIONS = {"float32": build_model, "float64": build_doubled}


def steps_of_mixes(
    root: Path, output: Path, opts: tuple, mixes: list[tuple[str, str]]
) -> Iterator[dict]:
    """Run this rank's step on its images of each mix, always from the same weights."""
    trainer = build_trainer(run_config(root, output, *opts))
    whole_pixels(trainer.teacher.heads["detection"])
    inner = trainer._trainer
    start = [copy_state(module) for module in (inner.student, trainer.teacher)]
    label = inner.pseudo_label
    for kinds, kept in mixes:
        for module, state in zip((inner.student, trainer.teacher), start, strict=True):
            module.load_state_dict(state)
        inner.pseudo_label = lambda batch, *given, kept=kept: blanked(
            label(batch, *given), batch, kept
        )
        batch = make_batch(trainer, kinds)[comm.get_rank() :: comm.get_world_size()]
        losses = losses_of(run_step(trainer, batch))
        norms = {n: b.clone() for n, b in inner.student.named_buffers() if b.is_floating_point()}
        yield {"losses": losses, "gradients": gradients(trainer), "buffers": norms}


def whole_pixels(head) -> None:
    """Round predicted boxes: of anchors at equal IoU with a box, rounding may favor one."""
    exact = head.predict

    def rounded(*given):
        predictions = exact(*given)
        for instances in predictions:
            instances.pred_boxes.tensor.round_()
        return predictions

    head.predict = rounded


def blanked(pseudo: list[dict], batch: list[dict], kept: str) -> list[dict]:
    """Remove the pseudo-labels of the images that should have none."""
    for labels, item in zip(pseudo, batch, strict=True):
        if kept[item["draw"].position] == "-":
            for name, target in labels.items():
                empty = name == "detection"
                labels[name] = target[:0] if empty else torch.full_like(target, 255)
    return pseudo


def differs(step: dict, single: dict) -> list[str]:
    """List the differences between a step of several processes and the step of one."""
    a, b = step["losses"], single["losses"]
    wrong = [key for key in a.keys() | b.keys() if a.get(key) != pytest.approx(b.get(key), 1e-5)]
    for what in ("gradients", "buffers"):
        a, b = step[what], single[what]
        if a.keys() != b.keys() or relative_difference(a.values(), b.values()) >= 1e-6:
            wrong.append(what)
    return wrong


def mixes_work(root: Path, output: Path, count: int, size: int, seed: int) -> None:
    """Take the steps of all mixes on this rank, for each norm and method, and write a file."""
    torch.set_num_threads(1)
    trainer_module.build_model = build_doubled
    world, rank = comm.get_world_size(), comm.get_rank()
    found = {}
    for i, (norm, method) in enumerate(CASES):
        mixes = make_mixes(count, size, seed + i)
        opts = (*NORMS[norm], "FIXMATCH.METHOD", method)
        found[norm, method] = list(steps_of_mixes(root, output, opts, mixes))
    torch.save(found, output / f"mixes_{rank}_of_{world}.pth")


# Trainings


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in tensors)).hexdigest()


def views_work(root: Path, output: Path) -> None:
    """By sampler, workers, step and position: the image and all its views."""
    torch.set_num_threads(1)
    seen = {}
    for sampler in SAMPLERS:
        for workers in (0, 1, 2):
            cfg = training_config(root, output, sampler, workers)
            tasks = build_tasks(cfg)
            loader = build_train_loader(cfg, tasks, train_records(cfg, tasks))
            strong = StrongAugmentation(cfg, geometric=True)
            for step, batch in enumerate(islice(loader, 3)):
                positions = [item["draw"].position for item in batch]
                images = torch.stack([item["image"] for item in batch])
                view = strong(images / 255, step=step, positions=positions)
                for i, (item, position) in enumerate(zip(batch, positions, strict=True)):
                    parts = (view.images[i], view.matrices[i], view.erased[i])
                    seen[sampler, workers, step, position] = (
                        item["file_name"],
                        digest(item["image"]),
                        digest(*parts),
                    )
    torch.save(seen, output / f"views_{comm.get_rank()}_of_{comm.get_world_size()}.pth")


def losses_work(root: Path, output: Path) -> None:
    """By sampler and precision, the losses of the first steps."""
    torch.set_num_threads(1)
    found = {}
    for sampler, (precision, build) in product(SAMPLERS, PRECISIONS.items()):
        trainer_module.build_model = build
        trainer = build_trainer(training_config(root, output, sampler, 0))
        batches = enumerate(islice(trainer._trainer.data_loader, STEPS))
        steps = [losses_of(run_step(trainer, batch, step=step)) for step, batch in batches]
        found[sampler, precision] = steps
    torch.save(found, output / f"losses_{comm.get_rank()}_of_{comm.get_world_size()}.pth")


def training_config(root: Path, output: Path, sampler: str, workers: int):
    """Eight images in a batch, some labeled, with dropout."""
    return run_config(
        root,
        output,
        *NORMS["FrozenBN"],
        *("DATALOADER.SAMPLING", sampler, "DATALOADER.NUM_WORKERS", workers),
        *("SOLVER.IMS_PER_BATCH", 8, "DATALOADER.LABELED_PER_BATCH", 4),
        *("SOLVER.MAX_ITER", STEPS, "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.3),
        *("TASKS.DETECTION.LABELS", 9, "TASKS.SEGMENTATION.LABELS", 8),
        *("DATASETS.LABEL_SUBSETS", "random", "TEST.EVAL_PERIOD", 0),
    )


def networks_work(root: Path, output: Path) -> None:
    """Digests of student and teacher after each step, with a BatchNorm that is not synchronised."""
    torch.set_num_threads(1)
    trainer = build_trainer(run_config(root, output, *NARROW))
    batch, found = make_batch(trainer, "dbsnbbdn"), []
    for step in range(STEPS):
        run_step(trainer, batch[comm.get_rank() :: comm.get_world_size()], step=step)
        networks = (trainer._trainer.student, trainer.teacher)
        found += [digest(*network.state_dict().values()) for network in networks]
    torch.save(found, output / f"networks_{comm.get_rank()}_of_{comm.get_world_size()}.pth")


def figures_work(root: Path, output: Path) -> None:
    """By number of images, the figures of an evaluation, on rank 0, with the losses."""
    torch.set_num_threads(1)
    opts = (*NORMS["FrozenBN"], "TEST.EVAL_LOSSES", True)
    trainer = build_trainer(run_config(root, output, *opts))
    labeled, found = trainer.eval_records, {}
    for count in (1, 2):
        trainer.eval_records = labeled[:count]
        found[count] = trainer.evaluate()
    torch.save(found, output / f"figures_{comm.get_rank()}_of_{comm.get_world_size()}.pth")


def main() -> None:
    """ROOT OUTPUT MIXES ON_FOUR SEED: what 1, 2 and 4 processes have seen and done, as files."""
    root, output = map(Path, sys.argv[1:3])
    mixes, on_four, seed = map(int, sys.argv[3:])
    for world_size in (1, 2, 4) if on_four else (1, 2):
        count = mixes if world_size < 4 else on_four
        fork_ranks(mixes_work, world_size, root, output, count, 8, seed)
        fork_ranks(figures_work, world_size, root, output)
    for work in (views_work, losses_work, networks_work) if on_four else ():
        for world_size in (1, 2):
            fork_ranks(work, world_size, root, output)


if __name__ == "__main__":
    main()
