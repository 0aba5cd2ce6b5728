"""Count kernel launches and waits of one training step, without a GPU.

    python -m tools.bench_launches [--images 16] [--config FILE] [--sites 40] [KEY VALUE ...]

The step of ResNet-50 and Dense FixMatch runs on a pretended CUDA device, see
tests/support/pretend_cuda.py, on generated street scenes of 128x128 pixels: a larger image takes
longer kernels, not more of them.
"""

import argparse
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tabulate import tabulate

from mtfixmatch.engine import load_config
from mtfixmatch.street import generate as street
from tests.support.counted_step import PASSES, count_step
from tests.support.pretend_cuda import Counts

CONFIG = "configs/cityscapes/dense_fixmatch.yaml"


def paper_counts(images: int = 16, config: str = CONFIG, first_step: int = 0, *opts: str) -> Counts:
    """Count a step with half of the images labeled."""
    with tempfile.TemporaryDirectory() as folder:
        street.generate(
            Path(folder) / "street", num_train=2 * images, num_val=1, size=(256, 128), seed=0
        )
        given = {
            "DATASETS.ROOT": folder,
            "DATASETS.CACHE_DIR": folder,
            "DATASETS.TRAIN": "('street_train',)",
            "DATASETS.TEST": "()",
            "DATALOADER.NUM_WORKERS": "0",
            "DATALOADER.LABELED": "all",
            "DATALOADER.LABELED_PER_BATCH": str(images // 2),
            "SOLVER.IMS_PER_BATCH": str(images),
            "INPUT.TRAIN_SIZE": "[128, 128]",
            "MODEL.DEVICE": "cpu",
            "MODEL.WEIGHTS": "",
            "TASKS.DETECTION.LABELS": str(images),
            "TASKS.DETECTION.THRESHOLD": "0.0101",
            "TASKS.SEGMENTATION.LABELS": str(images),
            "FIXMATCH.DIAGNOSTICS_PERIOD": "0",
            "FIXMATCH.RAMP_UP": "0.0",
            "OUTPUT_DIR": folder,
        }
        return count_step(load_config(config, [*sum(given.items(), ()), *opts]), first_step)[0]


def bench_launches() -> dict[str, int]:
    """Count a step of the paper's network with 16 images."""
    return figures(paper_counts())


def figures(counts: Counts) -> dict[str, int]:
    """Sum the counts of a step."""
    launches = by_part(counts.launches)
    return {
        "synchronizations and blocking copies of a step": sum(counts.waits.values()),
        "launches outside forward and backward passes": sum(launches.values()) - launches[PASSES],
        "launches of a step": sum(launches.values()),
    }


def by_part(counts: Counter[tuple[str, str]]) -> Counter[str]:
    """Sum counts over the lines of each part."""
    parts: Counter[str] = Counter()
    for (part, _), count in counts.items():
        parts[part] += count
    return parts


def parse_args(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--first-step", type=int, default=0, help="fixes the strong augmentation")
    parser.add_argument("--sites", type=int, default=0, help="number of lines of code to show")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs of the config")
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    args = parse_args(words)
    logging.disable(logging.INFO)
    counts = paper_counts(args.images, args.config, args.first_step, *args.opts)
    launches, waits = by_part(counts.launches), by_part(counts.waits)
    rows = [[part, count, waits[part]] for part, count in launches.most_common()]
    print(tabulate(rows, headers=["part", "launches", "waits"]))
    print(tabulate(figures(counts).items()))
    sites = {key: [counts.launches[key], counts.waits[key]] for key in counts.launches}
    order = sorted(sites, key=lambda key: (-sites[key][1], -sites[key][0]))
    rows = [[*key, *sites[key]] for key in order[: args.sites]]
    print(tabulate(rows, headers=["part", "line", "launches", "waits"]) if rows else "")


if __name__ == "__main__":
    main(sys.argv[1:])
