"""Where the time of a training step and of a prediction goes, as ratios (`make bench`).

Every comparison alternates between its two sides in short blocks, so that a machine that gets
slower or faster meanwhile does not tip it.
"""

import ctypes
import json
import logging
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict

import numpy as np
import psutil
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from mtfixmatch.engine import MultiTaskTrainer, load_config
from mtfixmatch.engine import step as step_module
from mtfixmatch.engine.setup import resolve_config
from mtfixmatch.inference.export import Source, export_onnx
from mtfixmatch.inference.exported import ExportedNet, open_network
from mtfixmatch.inference.predictor import Predictor
from mtfixmatch.inference.verify import generated_images
from mtfixmatch.runtime.memory import MMAP_MAX, TOP_PAD, TRIM_THRESHOLD, keep_freed_memory
from mtfixmatch.street.scene import draw_scene
from mtfixmatch.tasks.config import set_classes
from tools.bench_data import bench_data
from tools.bench_eval import bench_eval
from tools.bench_launches import bench_launches
from tools.bench_predict import bench_predict
from tools.bench_structure import bench_structure

BLOCK, BLOCKS, MEMORY_STEPS = 4, 5, 200
EXPORT_SIZES = ((512, 256), (2048, 1024))  # width, height
CLASSES = {"detection": 8, "segmentation": 19}
OUTPUT = "output/bench.json"
MMAP_THRESHOLD = -3  # of mallopt
GUARD = "looking for non-finite values"
CONFIG = "configs/Base-Small.yaml"
PAPER_CONFIG = "configs/cityscapes/dense_fixmatch.yaml"
# ResNet-18, 256x256, 4 labeled + 4 unlabeled images a batch.
OPTS: dict[str, str] = {
    "DATASETS.TRAIN": "('street_train',)",
    "DATASETS.TEST": "('street_val',)",
    "INPUT.TRAIN_SIZE": "[256, 256]",
    "INPUT.SCALE_RANGE": "[0.5, 2.0]",
    "DATALOADER.NUM_WORKERS": "1",
    "DATALOADER.LABELED": "all",
    "DATALOADER.LABELED_PER_BATCH": "4",
    "SOLVER.IMS_PER_BATCH": "8",
    "SOLVER.BASE_LR": "0.001",
    "SOLVER.WARMUP_ITERS": "0",
    "SOLVER.CLIP_GRADIENTS.ENABLED": "False",
    "TASKS.DETECTION.LABELS": "40",
    "TASKS.SEGMENTATION.LABELS": "40",
    "FIXMATCH.DIAGNOSTICS_PERIOD": "0",
    "FIXMATCH.RAMP_UP": "0.0",
}


class Stepper:
    """A trainer whose steps are timed part by part and can be replayed without the rest."""

    PARTS = ("pseudo_label", "make_strong", "update_student")

    def __init__(self, *opts: str):
        trainer = MultiTaskTrainer(load_config(CONFIG, [*sum(OPTS.items(), ()), *opts]))
        trainer.resume_or_load(resume=False)
        self.step = trainer._trainer
        self.seconds: dict[str, float] = defaultdict(float)
        self.replays: list[tuple] = []
        self._forward_backward = self.step.forward_backward
        self._teacher = self.step.teacher.forward
        for name in self.PARTS:
            self._time(self.step, name)
        self._time(step_module, "update_teacher")
        self._time(step_module, "assign_targets")
        self._time(self.step, "_check_inputs", GUARD)
        self._time(self.step.guard, "check_update", GUARD)
        self.step.forward_backward = self._keep_student  # type: ignore[method-assign]
        self.step.teacher.forward = self._keep_teacher  # type: ignore[method-assign]

    def _time(self, owner, name: str, part: str = "") -> None:
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds[part or name] += time.perf_counter() - start
            return result

        setattr(owner, name, timed)

    def _keep_teacher(self, *args):
        start = time.perf_counter()
        result = self._teacher(*args)
        self.seconds["teacher forward"] += time.perf_counter() - start
        self._teacher_args = args
        return result

    def _keep_student(self, *args):
        start = time.perf_counter()
        result = self._forward_backward(*args)
        self.seconds["student forward, losses, backward"] += time.perf_counter() - start
        self.replays.append((self._teacher_args, args))
        return result

    def run(self, steps: int) -> float:
        """Seconds of some steps of the training."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step.run_step()
            self.step.iter += 1
        return time.perf_counter() - start

    def replay(self) -> float:
        """Seconds of the same steps with nothing but the passes, on ready tensors."""
        start = time.perf_counter()
        for teacher_args, student_args in self.replays:
            with torch.no_grad(), self.step.autocast():
                self._teacher(*teacher_args)
            self._forward_backward(*student_args)
        seconds = time.perf_counter() - start
        self.replays.clear()
        return seconds


def bench_step(stepper: Stepper) -> dict:
    """The step against its floor, and the share of each part."""
    stepper.run(2)
    stepper.replays.clear()
    stepper.seconds.clear()
    steps, floors, guards = [], [], []
    for _ in range(BLOCKS):
        before = stepper.seconds[GUARD]
        steps.append(stepper.run(BLOCK))
        spent = dict(stepper.seconds)
        guards.append(spent[GUARD] - before)
        floors.append(stepper.replay())
        stepper.seconds.clear()
        stepper.seconds.update(spent)
    total = sum(steps)
    shares = {name: seconds / total for name, seconds in stepper.seconds.items()}
    # The pseudo-labels' own part is what the teacher's forward pass leaves.
    shares["pseudo_label"] -= shares["teacher forward"]
    data = stepper.step.storage.history("data_time")
    shares["data wait"] = sum(v for v, _ in data.values()[-BLOCK * BLOCKS :]) / total
    return {
        "step_seconds": total / BLOCK / BLOCKS,
        "floor_seconds": sum(floors) / BLOCK / BLOCKS,
        "step_over_floor": statistics.median(s / f for s, f in zip(steps, floors, strict=True)),
        "guard_share_of_step": statistics.median(g / s for g, s in zip(guards, steps, strict=True)),
        "shares_of_step": shares,
    }


def bench_kept_memory(stepper: Stepper) -> dict:
    """Processor time of steps that keep freed memory, relative to glibc's habit, alternating."""
    ratios = []
    for _ in range(BLOCKS):
        give_back_memory()
        plain = _processor_time(stepper)
        keep_freed_memory()
        ratios.append(_processor_time(stepper) / plain)
    stepper.replays.clear()
    return {"step_with_kept_memory": statistics.median(ratios)}


def give_back_memory() -> None:
    """Undo `keep_freed_memory`: the values of glibc after a large tensor has been freed."""
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(MMAP_MAX, 2**16)
    mallopt(MMAP_THRESHOLD, 2**25)
    mallopt(TRIM_THRESHOLD, 2**26)
    mallopt(TOP_PAD, 2**17)


def _processor_time(stepper: Stepper) -> float:
    stepper.run(1)  # the first step meets the memory of before
    start = time.process_time()
    stepper.run(BLOCK)
    return time.process_time() - start


def bench_precision(*opts: str) -> dict:
    """float32 NCHW against bfloat16 channels_last, alternating."""
    amp = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "bfloat16"]
    plain = ["SOLVER.AMP.ENABLED", "False", "MODEL.CHANNELS_LAST", "False"]
    fast, slow = Stepper(*opts, *amp), Stepper(*opts, *plain)
    ratios = []
    for stepper in (fast, slow):
        stepper.step.iter = 0
    for _ in range(3):
        ratios.append(slow.run(2) / fast.run(2))
    return {
        "speedup_of_bfloat16_channels_last": statistics.median(ratios[1:]),
        "cpu_has_amx": torch.cpu._is_amx_tile_supported(),
    }


def bench_memory(*opts: str) -> dict:
    """Growth of the process over many steps, of small images to make them many."""
    process = psutil.Process()
    stepper = Stepper(*opts, "INPUT.TRAIN_SIZE", "[96,96]")
    seen = []
    for _ in range(MEMORY_STEPS):
        stepper.run(1)
        stepper.replays.clear()
        seen.append(process.memory_info().rss / 2**20)
    half = MEMORY_STEPS // 2
    return {
        "growth_mib_second_half": max(seen[half:]) - max(seen[:half]),
        "memory_steps": MEMORY_STEPS,
    }


def bench_export() -> dict:
    """Seconds of ONNX Runtime over those of PyTorch for the results of an image, alternating."""
    cfg = resolve_config(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    for name, count in CLASSES.items():
        set_classes(cfg, name, [str(i) for i in range(count)])
    predictor = Predictor(model=build_model(cfg), cfg=cfg, name="bench", sha256="")
    source, ratios = Source.of(predictor), {}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        export_onnx(source, path, generated_images()[:1])
        exported = ExportedNet(open_network(path), source.tasks)
    for width, height in EXPORT_SIZES:
        scene = draw_scene(np.random.default_rng(0), width, height).rgb
        image = torch.from_numpy(np.ascontiguousarray(scene.transpose(2, 0, 1)))[None]
        seconds = [[_seconds(net.run, image) for net in (exported, source.net)] for _ in range(6)]
        ratio = statistics.median(a / b for a, b in seconds[1:])
        ratios[f"ONNX Runtime over PyTorch, seconds at {width}x{height}"] = ratio
    return ratios


def _seconds(run, image: torch.Tensor) -> float:
    start = time.perf_counter()
    run(image)
    return time.perf_counter() - start


def bench_generator() -> dict:
    """Scenes drawn per second by one core."""
    start = time.process_time()
    for i in range(20):
        draw_scene(np.random.default_rng([0, 0, i]), 512, 256)
    return {"street_images_per_second_and_core": 20 / (time.process_time() - start)}


def bench_encoder_strides() -> dict:
    """Compare encoder strides by arithmetic, activations and seconds of a student's pass.

    The network is that of configs/cityscapes. Arithmetic and activations are counted on the "meta"
    device, for 800x800; the seconds are those of one image of 512x512.
    """
    costs = {stride: _encoder_costs(stride) for stride in (32, 16, 8)}
    return {
        f"encoder stride {stride}, relative to 32: {name}": costs[stride][name] / costs[32][name]
        for stride in (16, 8)
        for name in costs[32]
    }


def _encoder_costs(stride: int) -> dict[str, float]:
    keys = ("MODEL.RESNETS.NORM", "MODEL.SEM_SEG_HEAD.NORM")
    opts = [*(x for key in keys for x in (key, "BN")), "MODEL.DEVICE", "cpu"]
    cfg = resolve_config(PAPER_CONFIG, [*opts, "MODEL.BACKBONE.ENCODER_STRIDE", str(stride)])
    for name, count in CLASSES.items():
        set_classes(cfg, name, [str(i) for i in range(count)])
    model = build_model(cfg).eval()
    seconds = min(_timed_pass(model, torch.rand(1, 3, 512, 512)) for _ in range(3))
    saved: list[int] = []

    def save(x: torch.Tensor) -> torch.Tensor:
        saved.append(x.numel() * x.element_size())
        return x

    images = torch.rand(2, 3, 800, 800, device="meta")
    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda x: x)
    with FlopCounterMode(display=False) as counter, hooks:
        _timed_pass(model.to("meta"), images)
    return {"arithmetic": counter.get_total_flops(), "activations": sum(saved), "seconds": seconds}


def _timed_pass(model: torch.nn.Module, images: torch.Tensor) -> float:
    """Run a forward and a backward pass of all heads, and return its seconds."""
    start = time.perf_counter()
    outputs, zero = model(
        images, dict.fromkeys(("detection", "segmentation"), [True] * len(images))
    )
    (sum(x.sum() for raw in outputs.values() for x in raw) + zero).backward()
    return time.perf_counter() - start


def main(opts: list[str]) -> None:
    logging.disable(logging.INFO)
    if opts == ["data"]:
        print(tabulate(bench_data().items(), headers=["figure", "value"], floatfmt=".3f"))
        return
    keep_freed_memory()  # as a training does
    with tempfile.TemporaryDirectory() as folder, EventStorage(0) as storage:
        opts = [*opts, "OUTPUT_DIR", folder]
        stepper = Stepper(*opts)
        stepper.step.storage = storage
        before = psutil.Process().memory_info().rss
        results = bench_step(stepper)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        results["peak_mib_of_a_step"] = (peak - before) / 2**20
        results |= (
            bench_kept_memory(stepper)
            | bench_encoder_strides()
            | bench_generator()
            | bench_export()
            | bench_precision(*opts)
            | bench_memory(*opts)
            | bench_predict()
            | bench_data()
            | bench_eval()
            | bench_launches()
            | bench_structure(CONFIG, [*sum(OPTS.items(), ()), *opts])
        )
    shares = results.pop("shares_of_step")
    results["ema_share_of_step"] = shares["update_teacher"]
    rows = [[name, value] for name, value in results.items()]
    rows += [[f"share of step: {name}", value] for name, value in shares.items()]
    print(tabulate(rows, headers=["figure", "value"], floatfmt=".3f"))
    os.makedirs(os.path.dirname(OUTPUT), exist_ok=True)
    with open(OUTPUT, "w") as file:
        json.dump(results | {"shares_of_step": shares}, file, indent=2)
    print(f"Written to {OUTPUT}")


if __name__ == "__main__":
    main(sys.argv[1:])
