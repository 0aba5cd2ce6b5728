#!/usr/bin/env python3
"""Train or evaluate a multi-task network, from a config file and KEY VALUE pairs.

Several processes are started by --num-gpus, as Detectron2 does, or by torchrun.
"""

import os
import sys
import warnings
from contextlib import nullcontext

# PyTorch says at every import that a function which Detectron2 uses will go away.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch")

import torch.distributed as dist  # noqa: E402
from detectron2.engine import default_argument_parser, default_setup, launch  # noqa: E402
from detectron2.engine.launch import _distributed_worker  # noqa: E402
from torch.multiprocessing.spawn import ProcessException  # noqa: E402

from mtfixmatch.engine import MultiTaskTrainer, evaluate_checkpoint, load_config  # noqa: E402
from mtfixmatch.engine.lock import locked  # noqa: E402
from mtfixmatch.engine.rank_watch import failure_of  # noqa: E402
from mtfixmatch.engine.signals import STOPPED, forwarding  # noqa: E402
from mtfixmatch.errors import InputError  # noqa: E402


def main(args):
    cfg = load_config(args.config_file, args.opts)
    cfg.freeze()
    if args.eval_only:
        default_setup(cfg, args)
        return evaluate_checkpoint(cfg)
    with locked(cfg.OUTPUT_DIR):
        default_setup(cfg, args)
        trainer = MultiTaskTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


def launch_main(args):
    if dist.is_torchelastic_launched():
        return join_torchrun(args)
    in_processes = args.num_gpus * args.num_machines > 1
    with forwarding() if in_processes else nullcontext():
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )


def join_torchrun(args):
    """This is one of the processes that torchrun has started, and starts again when one fails."""
    names = ("LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    local_rank, world_size, args.num_gpus, args.machine_rank = (int(os.environ[n]) for n in names)
    args.num_machines = world_size // args.num_gpus
    if world_size == 1:
        return main(args)
    places = (local_rank, main, world_size, args.num_gpus, args.machine_rank)
    return _distributed_worker(*places, "env://", (args,))


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    try:
        launch_main(args)
    except (InputError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except ProcessException as error:
        if getattr(error, "exit_code", None) == STOPPED:
            sys.exit(STOPPED)
        sys.exit(f"error: {failure_of(error, args.machine_rank * args.num_gpus)}")
