#!/usr/bin/env python3
"""Train or evaluate a multi-task network, from a config file and KEY VALUE pairs."""

import sys

from detectron2.engine import default_argument_parser, default_setup, launch

from mtfixmatch.engine import MultiTaskTrainer, evaluate_checkpoint, load_config
from mtfixmatch.errors import InputError


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


if __name__ == "__main__":
    try:
        launch_main(default_argument_parser().parse_args())
    except (InputError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
