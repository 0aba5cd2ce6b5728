"""What the data of a step costs: images per second and core of each stage, at the paper's setting.

Every stage is measured in processor time, in turn with what it was before: decoded by Pillow,
warped as floats by `grid_sample`, and handed over tensor by tensor.
"""

import mmap
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mtfixmatch.augmentation import geometry
from mtfixmatch.data import mapper as mapper_module
from mtfixmatch.data.decoded_store import DecodedStore
from mtfixmatch.data.mapper import TrainMapper
from mtfixmatch.data.packed import PackedBatch
from mtfixmatch.data.samplers import Draw
from mtfixmatch.engine.setup import resolve_config
from mtfixmatch.street.scene import draw_scene
from mtfixmatch.tasks import build_tasks
from mtfixmatch.tasks.config import set_classes
from mtfixmatch.utils import decoders
from mtfixmatch.utils.devices import stack
from mtfixmatch.utils.images import read_rgb_pixels

CONFIG = "configs/cityscapes/dense_fixmatch.yaml"
CLASSES = {"detection": 8, "segmentation": 19}
WIDTH, HEIGHT, SCENES = 2048, 1024, 3
FORMATS = {"PNG": {}, "JPEG": {"quality": 90}}
ROUNDS, BATCHES = 6, 8
BATCH, STEPS_PER_SECOND, GPUS = 16, 5, 8  # images and steps of one GPU


def bench_data() -> dict[str, float]:
    """Return the figures of all stages, and the cores that GPUs need."""
    with tempfile.TemporaryDirectory() as folder, _one_thread():
        figures: dict[str, float] = {}
        for name, options in FORMATS.items():
            records = _write_scenes(Path(folder), name, options)
            figures |= {f"{name}: {key}": x for key, x in _bench_views(records, folder).items()}
        return figures | _bench_handover(records)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread, as a data worker does."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])


def _write_scenes(folder: Path, file_format: str, options: Mapping) -> list[dict]:
    records = []
    for i in range(SCENES):
        scene = draw_scene(np.random.default_rng([0, i]), WIDTH, HEIGHT)
        image, label = folder / f"{i}.{file_format}", folder / f"{i}_label.png"
        Image.fromarray(scene.rgb).save(image, file_format, **options)
        ids = np.where(scene.ids >= 1000, scene.ids // 1000, scene.ids)
        Image.fromarray(ids.astype(np.uint8)).save(label)
        boxes = [{"bbox": [150.0 * j, 300.0, 150.0 * j + 60, 380.0]} for j in range(12)]
        labels = {
            "annotations": [{**x, "category_id": 1, "iscrowd": 0} for x in boxes],
            "sem_seg_file_name": str(label),
            "sem_seg_lut": bytes(i % 19 for i in range(256)),
        }
        size = {"height": HEIGHT, "width": WIDTH}
        records.append({"file_name": str(image), "image_id": str(i), **size, **labels})
    return records


def _build_mapper() -> TrainMapper:
    cfg = resolve_config(CONFIG, ["MODEL.DEVICE", "cpu"])
    for name, count in CLASSES.items():
        set_classes(cfg, name, [str(i) for i in range(count)])
    return TrainMapper(cfg, build_tasks(cfg))


def _bench_views(records: list[dict], folder: str) -> dict[str, float]:
    """Return milliseconds and ratios of the stages, and images per second and core."""
    mapper, store = _build_mapper(), DecodedStore(f"{folder}/store")
    now: dict[str, list[float]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    most = 0
    for i in range(ROUNDS * SCENES):
        record, draw = records[i % SCENES], Draw(0, i, i % BATCH)
        most = max(most, _check_view(mapper, record, draw))
        for name, run in _stages(mapper, record, draw).items():
            after, before = _seconds(run), _seconds(run, before=True)
            now[name].append(after)
            ratios[name].append(before / after)
        mapped = _seconds_of_mapping(store, record["file_name"])
        ratios["mapped from DECODED_STORE instead of decoded"].append(now["decode"][-1] / mapped)
    seconds = {name: statistics.median(x) for name, x in now.items()}
    figures = {f"{name}, ms": 1e3 * x for name, x in seconds.items()}
    figures |= {f"{name}, times as fast": statistics.median(x) for name, x in ratios.items()}
    whole = seconds["labeled view"]
    figures["labeled views per second and core"] = 1 / whole
    figures["cores for one GPU"] = BATCH * STEPS_PER_SECOND * whole
    figures[f"cores for {GPUS} GPUs"] = GPUS * BATCH * STEPS_PER_SECOND * whole
    return figures | {"largest difference from before in grey levels": most}


def _seconds_of_mapping(store: DecodedStore, file: str) -> float:
    """Return the seconds of mapping an image and of reading a value of each of its pages.

    A view reads the pixels that it shows, of a mapped image as of a decoded one.
    """
    read = partial(store.read, file, [HEIGHT, WIDTH])
    read()
    return _seconds(lambda: read().ravel()[:: mmap.PAGESIZE].max())


def _stages(mapper: TrainMapper, record: dict, draw: Draw) -> dict[str, Callable[[], object]]:
    pixels = read_rgb_pixels(record["file_name"], [HEIGHT, WIDTH])
    matrix = mapper._view_matrix((HEIGHT, WIDTH), draw)
    return {
        "decode": lambda: read_rgb_pixels(record["file_name"], [HEIGHT, WIDTH]),
        "warp": lambda: mapper_module._channels_first(
            geometry.warp_pixels(pixels, matrix, mapper.size, mapper.fill)
        ),
        "targets": lambda: mapper._targets(record, record, matrix),
        "labeled view": lambda: mapper(record, draw),
    }


def _check_view(mapper: TrainMapper, record: dict, draw: Draw) -> int:
    """Return the largest difference of a view from the one of before; labels must be equal."""
    after = mapper(record, draw)
    with _before():
        before = mapper(record, draw)
    assert torch.equal(after["targets"]["segmentation"], before["targets"]["segmentation"])
    return int((after["image"].int() - before["image"].int()).abs().max())


def _seconds(run: Callable[[], object], *, before: bool = False) -> float:
    """Return the seconds of processor time that a stage takes."""
    with _before() if before else nullcontext():
        start = time.process_time()
        run()
        return time.process_time() - start


@contextmanager
def _before() -> Iterator[None]:
    """Let the mapper work as it did before it was made fast."""
    with ExitStack() as changes:
        for owner, name, function in (
            (decoders, "kornia_io", None),
            (geometry, "warp_pixels", _warp_floats),
            (geometry, "_warp_upright_map", _warp_float_map),
            (mapper_module, "_channels_first", lambda view: view),
            (cv2, "LUT", lambda pixels, table: table[pixels]),
        ):
            changes.enter_context(patch.object(owner, name, function))
        yield


def _warp_floats(pixels, matrix, size, fill) -> torch.Tensor:
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None].float()
    fill = torch.tensor(fill).view(1, 3, 1, 1)
    view = geometry.warp(images, matrix[None], size, mode="bilinear", fill=fill)
    return view[0].round().clamp(0, 255).to(torch.uint8)


def _warp_float_map(label_map, matrix, size, ignore) -> torch.Tensor:
    images, fill = label_map[None, None].float(), torch.tensor(float(ignore))
    warped = geometry.warp(images, matrix[None], size, mode="nearest", fill=fill)
    return warped[0, 0].round().to(label_map.dtype)


class _Ready(Dataset):
    """Items that cost a data worker nothing."""

    def __init__(self, items: list[dict]):
        self.items = items

    def __len__(self) -> int:
        return BATCH * (BATCHES + 4)

    def __getitem__(self, index: int) -> dict:
        return self.items[index % BATCH]


def _bench_handover(records: list[dict]) -> dict[str, float]:
    """Return the processor time of the trainer for a batch that is ready, relative to a list."""
    mapper = _build_mapper()
    items = [mapper(records[i % SCENES], Draw(0, 0, i)) for i in range(BATCH)]
    packed, plain = (
        iter(DataLoader(_Ready(items), BATCH, num_workers=1, collate_fn=collate))
        for collate in (PackedBatch.of, list)
    )

    def receive_block() -> None:
        stack([item["image"] for item in next(packed).items()])

    def receive_list() -> None:
        torch.stack([item["image"] for item in next(plain)])

    pairs = []
    for _ in range(BATCHES):
        time.sleep(1)  # until both workers have batches ready
        pairs.append((_seconds(receive_block), _seconds(receive_list)))
    after = statistics.median(x for x, _ in pairs[1:])
    return {
        f"data wait of a step with {BATCH} ready images, ms": 1e3 * after,
        "the same, share of a step": after * STEPS_PER_SECOND,
        "handover, times as fast": statistics.median(y / x for x, y in pairs[1:]),
    }
