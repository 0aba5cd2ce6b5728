#!/usr/bin/env python3
"""Train or evaluate a multi-task network, from a config file and KEY VALUE pairs."""

import sys
import warnings

# PyTorch says at every import that a function which Detectron2 uses will go away.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch")

from detectron2.engine import default_argument_parser, default_setup, launch  # noqa: E402
from torch.multiprocessing.spawn import ProcessRaisedException  # noqa: E402

from mtfixmatch.engine import MultiTaskTrainer, evaluate_checkpoint, load_config  # noqa: E402
from mtfixmatch.errors import InputError  # noqa: E402


def setup(args):
    cfg = load_config(args.config_file, args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args):
    cfg = setup(args)
    if args.eval_only:
        return evaluate_checkpoint(cfg)
    trainer = MultiTaskTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def launch_main(args):
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def message_of(error):
    """What a process of several said, if it is one of the errors that need no traceback."""
    name, _, message = str(error).strip().splitlines()[-1].partition(": ")
    return message if name.split(".")[-1] in ("InputError", "FloatingPointError") else ""


if __name__ == "__main__":
    try:
        launch_main(default_argument_parser().parse_args())
    except (InputError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except ProcessRaisedException as error:
        if not message_of(error):
            raise
        sys.exit(f"error: {message_of(error)}")
