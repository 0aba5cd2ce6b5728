"""What the command predict costs beside its network, and whether a video fills the memory."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.modeling import build_model
from PIL import Image

from mtfixmatch.engine.setup import resolve_config
from mtfixmatch.inference.output import PICTURES, Output, save_choices
from mtfixmatch.inference.predictor import Predictor, load
from mtfixmatch.inference.sources import Item
from mtfixmatch.inference.work import predict_items
from mtfixmatch.street.scene import draw_scene
from mtfixmatch.tasks.config import set_classes

CONFIG = "configs/Base-Small.yaml"
SIZES = {"512x256": (512, 256, 8, 5), "2048x1024": (2048, 1024, 2, 3)}  # images, blocks
BOXES = 10  # that are drawn in an image
FRAMES, FRAME_SIZE = (20, 2000), (96, 64)


def make_run(folder: Path, *opts: str) -> None:
    """Write the files of a network with random weights."""
    cfg = resolve_config(CONFIG, ["MODEL.DEVICE", "cpu", *opts])
    for name, count in (("detection", 8), ("segmentation", 19)):
        set_classes(cfg, name, [f"class {i}" for i in range(count)])
    torch.manual_seed(0)
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_best.pth")


def bench_predict() -> dict[str, float]:
    """Seconds of the command over those of its network on ready tensors, without its start."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_run(folder / "run", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0")
        predictor = load(folder / "run", device="cpu")
        names = [name for name, by_default in save_choices(predictor.tasks).items() if by_default]
        ratios = {
            f"predict over its network, {size}, {'+'.join(wanted)}": _ratio(
                predictor, folder / f"{size} {len(wanted)}", wanted, *numbers
            )
            for size, numbers in SIZES.items()
            for wanted in ([name for name in names if name != PICTURES], names)
        }
    return ratios | bench_video_memory()


def _ratio(
    predictor: Predictor,
    folder: Path,
    wanted: list[str],
    width: int,
    height: int,
    images: int,
    blocks: int,
) -> float:
    """Alternate between the two in blocks, and return the median of the ratios."""
    folder.mkdir()
    for i in range(images):
        scene = draw_scene(np.random.default_rng([0, 0, i]), width, height)
        Image.fromarray(scene.rgb).save(folder / f"{i}.png")
    items = [Item(f"{i}.png", str(folder / f"{i}.png"), str(i)) for i in range(images)]
    pixels = [predictor(item.path).image for item in items]
    tensors = [torch.from_numpy(x.transpose(2, 0, 1).copy()) for x in pixels]
    scores = predictor.predict_pixels(pixels[0]).instances.scores
    threshold = float(scores.sort(descending=True).values[BOXES])
    ratios = []
    for block in range(blocks + 1):
        output = folder / f"output {block}"
        output.mkdir()
        writer = Output(
            folder=str(output), tasks=predictor.tasks, wanted=wanted, threshold=threshold
        )
        start = time.perf_counter()
        predict_items(predictor, items, writer)
        middle = time.perf_counter()
        for tensor in tensors:
            predictor.model([{"image": tensor}])
        ratios.append((middle - start) / (time.perf_counter() - middle))
    return statistics.median(ratios[1:])


def bench_video_memory() -> dict[str, float]:
    """Peak memory of the command on a long video over that on a short one."""
    peaks = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = ("MODEL.FPN.OUT_CHANNELS", "64", "MODEL.RETINANET.NUM_CONVS", "1")
        make_run(folder / "run", *small)
        for frames in FRAMES:
            video = folder / f"{frames}.mp4"
            _write_video(str(video), frames)
            peaks.append(_peak_of_command(folder, str(video)))
    return {f"peak memory, video of {FRAMES[1]} over {FRAMES[0]} frames": peaks[1] / peaks[0]}


def _write_video(path: str, frames: int) -> None:
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"mp4v"), 25.0, FRAME_SIZE)
    scene = draw_scene(np.random.default_rng(0), *FRAME_SIZE).rgb
    for i in range(frames):
        writer.write(np.roll(scene, i, axis=1))
    writer.release()


def _peak_of_command(folder: Path, video: str) -> int:
    """Return the greatest resident memory of the command, in KiB."""
    command = [sys.executable, "-W", "ignore", "projects/predict.py", str(folder / "run"), video]
    command += ["--output", f"{video} output", "--num-gpus", "0", "--save", "boxes,pictures"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"projects/predict.py ended with status {status}")
    return usage.ru_maxrss


if __name__ == "__main__":
    print(bench_predict())
