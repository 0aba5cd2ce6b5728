#!/usr/bin/env python3
"""Label the unlabeled part of a dataset by a trained network, see docs/autolabel.md.

projects/autolabel.py output/quickstart --config-file configs/street/quickstart.yaml --output new

Human labels stay as they are. The thresholds of the network's labels are measured for each class on
DATASETS.TEST. The new folder holds the labels, a config to train on them, and review.csv.
"""

import os
import shlex
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from mtfixmatch.engine import load_config
from mtfixmatch.inference.autolabel import autolabel
from mtfixmatch.inference.dataset_config import CONFIG
from mtfixmatch.inference.label_formats import FORMATS
from mtfixmatch.inference.measure import SOURCES, Settings
from mtfixmatch.inference.predictor import load
from mtfixmatch.utils.errors import InputError


def parse_args():
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", metavar="MODEL", help="run folder, published model or checkpoint")
    add("--config-file", required=True, metavar="FILE", help="training config of the data")
    add("--output", required=True, metavar="FOLDER", help="new dataset, empty or not there yet")
    default = Settings()
    what = f"of the labels of each class (default: {default.precision})"
    add("--precision", type=float, default=default.precision, help=what)
    what = f"precision from which on a box is ignored, not background (default: {default.lower})"
    add("--lower", type=float, default=default.lower, help=what)
    what = f"boxes, or images for maps, that a precision rests on (default: {default.least})"
    add("--least", type=int, default=default.least, help=what)
    what = "DATASETS.TEST, or the labels that the config hides from the training (default: test)"
    add("--measure-on", choices=SOURCES, default=default.source, help=what)
    what = "write the labels for other tools as well"
    add("--to", nargs="+", choices=FORMATS, default=[], help=what)
    add("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    add("opts", nargs="*", metavar="KEY VALUE", help="override the config; before --to")
    return parser.parse_intermixed_args()


def main(args):
    settings = Settings(
        precision=args.precision,
        lower=args.lower,
        least=args.least,
        source=args.measure_on,
    )
    predictor = load(args.model, device=args.device)
    cfg = load_config(args.config_file, args.opts)
    print(autolabel(predictor, cfg, args.output, settings, list(dict.fromkeys(args.to))))
    config_file = shlex.quote(os.path.join(args.output, CONFIG))
    print(f"Next: python projects/train_net.py --config-file {config_file}")


if __name__ == "__main__":
    try:
        main(parse_args())
    except InputError as error:
        sys.exit("\n".join(f"error: {line}" for line in error.messages))
