"""Train or evaluate a multi-task network, from a config file and KEY VALUE pairs.

--num-gpus starts several processes, as in Detectron2; torchrun can start them, too.
"""

import os
import sys
from argparse import Namespace
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessException

from ..engine import MultiTaskTrainer, evaluate_checkpoint, load_config
from ..runtime.lock import locked
from ..runtime.memory import keep_freed_memory
from ..runtime.rank_watch import failure_of
from ..runtime.signals import STOPPED, forwarding
from ..utils.checkout import config_path
from ..utils.errors import InputError
from ..utils.log import log_to


def main(args: Namespace) -> dict[str, Any]:
    """Train or evaluate in this process, one of `launch_main`; return the results."""
    if args.config_file:  # which default_setup reads, too
        args.config_file = str(config_path(args.config_file))
    cfg = load_config(args.config_file, args.opts, resume=args.resume, eval_only=args.eval_only)
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    if args.eval_only:  # in a folder of its own, so that the files of a run stay unchanged
        cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "eval")
        cfg.freeze()
        default_setup(cfg, args)
        log_to(cfg.OUTPUT_DIR)
        return evaluate_checkpoint(cfg)
    cfg.freeze()
    with locked(cfg.OUTPUT_DIR):
        default_setup(cfg, args)
        log_to(cfg.OUTPUT_DIR)
        trainer = MultiTaskTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


def launch_main(args: Namespace) -> None:
    """Start the processes of the training, or be one of those that torchrun has started."""
    if dist.is_torchelastic_launched():
        join_torchrun(args)
        main(args)
        return
    with forwarding() if args.num_gpus * args.num_machines > 1 else nullcontext():
        launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (args,))


def join_torchrun(args: Namespace) -> None:
    """Join the process group of the processes that torchrun has started."""
    local_rank, args.num_gpus = (int(os.environ[n]) for n in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    store, rank, world_size = next(dist.rendezvous("env://"))
    args.num_machines, args.machine_rank = world_size // args.num_gpus, rank // args.num_gpus
    # After a failure torchrun restarts the processes, but keeps the store with the old addresses.
    store = dist.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    group = {"rank": rank, "world_size": world_size, "timeout": DEFAULT_TIMEOUT}
    dist.init_process_group(backend, store=store, **group)
    comm.create_local_process_group(args.num_gpus)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    comm.synchronize()


def run() -> None:
    """Run the command."""
    args = default_argument_parser().parse_args()
    try:
        launch_main(args)
    except (InputError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except ProcessException as error:
        if getattr(error, "exit_code", None) == STOPPED:
            sys.exit(STOPPED)
        sys.exit(f"error: {failure_of(error, args.machine_rank * args.num_gpus)}")
