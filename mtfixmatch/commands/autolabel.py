"""Label the unlabeled part of a dataset by a trained network, see docs/autolabel.md.

projects/autolabel.py output/quickstart --config-file configs/street/quickstart.yaml --output new

Human labels stay as they are. The thresholds of the network's labels are measured for each class on
DATASETS.TEST. The new folder holds the labels, a config to train on them, and review.csv.
"""

import os
import shlex
from argparse import Namespace

from ..engine import load_config
from ..inference.autolabel import autolabel
from ..inference.dataset_config import CONFIG
from ..inference.label_formats import FORMATS
from ..inference.measure import SOURCES, Settings
from ..inference.predictor import load
from ..runtime.memory import keep_freed_memory
from ..utils.checkout import spell_commands
from . import command_parser, exit_at_input_error


def parse_args() -> Namespace:
    """Parse the arguments of the process."""
    parser = command_parser(__doc__)
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
    what = "parts of the images, each measured by thresholds of the others; 1: no such measurement"
    add("--folds", type=int, default=default.folds, help=f"{what} (default: {default.folds})")
    what = "write the labels for other tools as well"
    add("--to", nargs="+", choices=FORMATS, default=[], help=what)
    add("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    add("opts", nargs="*", metavar="KEY VALUE", help="override the config; before --to")
    return parser.parse_intermixed_args()


def main(args: Namespace) -> None:
    """Label a dataset and print what was done, and the command to train on it."""
    settings = Settings(
        precision=args.precision,
        lower=args.lower,
        least=args.least,
        source=args.measure_on,
        folds=args.folds,
    )
    keep_freed_memory()
    predictor = load(args.model, device=args.device)
    cfg = load_config(args.config_file, args.opts)
    print(autolabel(predictor, cfg, args.output, settings, list(dict.fromkeys(args.to))))
    config_file = shlex.quote(os.path.join(args.output, CONFIG))
    train = spell_commands("python projects/train_net.py")
    print(f"Next: {train} --config-file {config_file}")


def run() -> None:
    """Run the command."""
    with exit_at_input_error():
        main(parse_args())
