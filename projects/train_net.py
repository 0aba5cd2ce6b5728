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

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from detectron2.engine import default_argument_parser, default_setup, launch  # noqa: E402
from detectron2.engine.launch import DEFAULT_TIMEOUT  # noqa: E402
from detectron2.utils import comm  # noqa: E402
from torch.multiprocessing.spawn import ProcessException  # noqa: E402

from mtfixmatch.engine import MultiTaskTrainer, evaluate_checkpoint, load_config  # noqa: E402
from mtfixmatch.runtime.lock import locked  # noqa: E402
from mtfixmatch.runtime.rank_watch import failure_of  # noqa: E402
from mtfixmatch.runtime.signals import STOPPED, forwarding  # noqa: E402
from mtfixmatch.utils.errors import InputError  # noqa: E402


def main(args):
    cfg = load_config(args.config_file, args.opts, resume=args.resume)
    if args.eval_only:  # the files of the run, if it is one's folder, stay as they are
        cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "eval")
        cfg.freeze()
        default_setup(cfg, args)
        return evaluate_checkpoint(cfg)
    cfg.freeze()
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
    local_rank, args.num_gpus = (int(os.environ[n]) for n in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    store, rank, world_size = next(dist.rendezvous("env://"))
    args.num_machines, args.machine_rank = world_size // args.num_gpus, rank // args.num_gpus
    # The store outlives a restart, and has the addresses of those that are gone.
    store = dist.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    places = {"rank": rank, "world_size": world_size, "timeout": DEFAULT_TIMEOUT}
    dist.init_process_group(backend, store=store, **places)
    comm.create_local_process_group(args.num_gpus)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    comm.synchronize()
    return main(args)


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
