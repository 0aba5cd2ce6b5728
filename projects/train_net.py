#!/usr/bin/env python3
"""Train or evaluate a multi-task network, from a config file and KEY VALUE pairs."""

import sys
import warnings
from contextlib import nullcontext

# PyTorch says at every import that a function which Detectron2 uses will go away.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch")

from detectron2.engine import default_argument_parser, default_setup, launch  # noqa: E402
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
