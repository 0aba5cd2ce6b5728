"""Put a non-finite value into a step, at each place where one can appear."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.utils import comm

from tests.support.engine_helpers import (
    build_trainer,
    copy_state,
    make_batch,
    run_config,
    run_step,
    same_state,
)

NAN = float("nan")
# Each bad step leaves a file with both networks.
NARROW = (
    *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 2),
)

Undo = Callable[[], None]


def into_image(trainer, batch: list[dict]) -> Undo:
    batch[0]["image"] = batch[0]["image"].float()
    batch[0]["image"][0, 5, 7] = NAN
    return lambda: None


def into_loss(trainer, batch: list[dict]) -> Undo:
    head = trainer._trainer.student.heads["detection"]
    right = head.losses
    head.losses = lambda *args: right(*args) | {"box": right(*args)["box"] * NAN}
    return lambda: delattr(head, "losses")


def into_gradient(trainer, batch: list[dict]) -> Undo:
    weight = trainer._trainer.student.backbone.bottom_up.res2[0].conv1.weight
    return weight.register_hook(lambda grad: grad.index_fill(0, torch.tensor([0]), NAN)).remove


def into_buffer(trainer, batch: list[dict]) -> Undo:
    norm = trainer._trainer.student.backbone.bottom_up.stem.conv1.norm

    def spoil(*args):
        norm.running_var.data[0] = NAN  # unseen by autograd

    return norm.register_forward_hook(spoil).remove


def into_normalizer(trainer, batch: list[dict]) -> Undo:
    normalizer = trainer._trainer.normalizers["detection"]
    right = normalizer.divisor

    def spoil(count, num_images, *, is_pseudo):
        divisor = right(count, num_images, is_pseudo=is_pseudo)
        normalizer.means[int(is_pseudo)] = NAN
        return divisor * NAN

    normalizer.divisor = spoil
    return lambda: delattr(normalizer, "divisor")


def into_teacher(trainer, batch: list[dict]) -> Undo:
    head = trainer.teacher.heads["detection"]
    return head.register_forward_hook(lambda _, args, raw: (raw[0] + NAN, raw[1])).remove


# Where -> how, and what the message says of it.
PLACES: dict[str, tuple[Callable[..., Undo], str]] = {
    "image": (into_image, "the image "),
    "loss": (into_loss, "loss_detection_box"),
    "gradient": (into_gradient, "the gradient of backbone.bottom_up.res2.0.conv1.weight is nan"),
    "buffer": (into_buffer, "the buffer backbone.bottom_up.stem.conv1.norm.running_var is nan"),
    "normalizer": (into_normalizer, "loss_detection_"),
    "teacher": (into_teacher, "the teacher's output 0 for detection is nan"),
}


def state_of(trainer) -> dict[str, torch.Tensor]:
    """Everything that a step may change, flat."""
    inner = trainer._trainer
    momenta = inner.optimizer.state_dict()["state"]
    return {
        **{f"student {name}": x for name, x in copy_state(inner.student).items()},
        **{f"teacher {name}": x for name, x in copy_state(trainer.teacher).items()},
        **{f"normalizer {name}": x.clone() for name, x in inner.normalizers.state_dict().items()},
        **{f"momentum {i}": x["momentum_buffer"].clone() for i, x in momenta.items()},
    }


def spoiled_step(trainer, place: str, rank: int, step: int) -> tuple[str, dict[str, float]]:
    """Run a step with a non-finite value on one rank; return the error ("": skipped) and losses."""
    batch = make_batch(trainer, "bdsn"[comm.get_rank() :: comm.get_world_size()], step=step)
    undo = PLACES[place][0](trainer, batch) if comm.get_rank() == rank else lambda: None
    try:
        return "", run_step(trainer, batch, step=step)
    except FloatingPointError as error:
        return str(error), {}
    finally:
        undo()


def spoil_all(root: Path, output: Path) -> None:
    """Run a skipped and a stopped step for each place and rank, and write the results."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # the errors have the same text
    trainer = build_trainer(
        run_config(root, output, *NARROW, "TASKS.DETECTION.NORMALIZER", "running")
    )
    guard = trainer._trainer.guard
    results: dict[tuple, dict] = {}
    run_step(trainer, make_batch(trainer, "bn"))
    before, step = state_of(trainer), 0
    for place in PLACES:
        for rank in range(comm.get_world_size()):
            guard.skipped, guard.allowed = 0, 1
            for policy in ("skip", "stop"):  # one step may be skipped
                step += 1
                error, logged = spoiled_step(trainer, place, rank, step)
                same = same_state(state_of(trainer), before)
                found = {"step": step, "error": error, "logged": logged, "unchanged": same}
                results[place, rank, policy] = found
    logged = run_step(trainer, make_batch(trainer, "bn", step=step), step=step)
    after = state_of(trainer)
    results["end"] = {
        "changed": not same_state(after, before),
        "finite": all(x.isfinite().all() for x in after.values()),
        "total_loss": logged["total_loss"],
    }
    torch.save(results, output / f"rank{comm.get_rank()}.pth")


def spoil_in_two_processes(root: Path, output: Path) -> list[dict]:
    """Return the results of `spoil_all` of each of two ranks."""
    launch(spoil_all, 2, dist_url="auto", args=(root, output))
    return [torch.load(output / f"rank{rank}.pth") for rank in (0, 1)]
