"""Evaluation on DATASETS.TEST, in a training and with --eval-only."""

import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm

from ..data.datasets import get_records
from ..data.loader import build_eval_loader, eval_records, labeled_tasks
from ..data.records import Record
from ..modeling import MultiTaskNet
from ..runtime.rank_watch import RankWatch
from ..tasks import Task, build_tasks
from ..utils.errors import InputError
from .checkpoint import MultiTaskCheckpointer
from .evaluation import evaluate, evaluate_losses, log_results
from .report import write_json
from .setup import check_datasets, choose_test_precision


def test(
    cfg: CfgNode,
    model: MultiTaskNet,
    tasks: Sequence[Task],
    records: Sequence[Record],
    name: str,
    ranks: RankWatch,
) -> dict:
    """Evaluate a model on DATASETS.TEST, see `evaluate`, and log the results under a name.

    A task without a label in the `records` is not evaluated.
    """
    evaluated = labeled_tasks(tasks, records)
    loader = build_eval_loader(cfg, records, evaluated)
    precision = choose_test_precision(cfg)
    results = evaluate(model, loader, records, evaluated, ranks.callbacks(), precision)
    losses = {}
    if cfg.TEST.EVAL_LOSSES:
        # A network of one task is evaluated on the images labeled for it; the mean is over all.
        num_images = len(get_records(cfg.DATASETS.TEST))
        loader = build_eval_loader(cfg, records)
        losses = evaluate_losses(model, loader, records, evaluated, num_images, precision)
    if results:
        for task, values in losses.items():
            results[task] |= values
        log_results(results, tasks, name)
    return results


def evaluate_checkpoint(cfg: CfgNode) -> dict:
    """Evaluate MODEL.WEIGHTS (`--eval-only`) and write results.json into OUTPUT_DIR.

    Raises:
        InputError: MODEL.WEIGHTS is empty or cannot be loaded, or DATASETS.TEST is empty.
    """
    check_datasets(cfg, ["TEST"])
    if not cfg.MODEL.WEIGHTS:
        raise InputError("MODEL.WEIGHTS is empty: --eval-only needs a checkpoint")
    tasks = build_tasks(cfg)
    records = eval_records(cfg, tasks)
    model = build_model(cfg)
    MultiTaskCheckpointer(model, trust=cfg.MODEL.TRUST_PICKLE).load(cfg.MODEL.WEIGHTS)
    ranks = RankWatch(cfg.SOLVER.STALL_SECONDS)
    with ranks.running():
        results = test(cfg, model, tasks, records, "teacher", ranks)
    if comm.is_main_process():
        write_json({"teacher": results}, os.path.join(cfg.OUTPUT_DIR, "results.json"))
    return results
