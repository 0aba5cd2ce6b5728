"""Write a trained network as one .onnx file that needs neither PyTorch nor Detectron2.

projects/export.py output/quickstart --output model.onnx
projects/export.py output/quickstart --output small.onnx --int8 my/images --config-file my.yaml

MODEL is the folder of a run, a checkpoint or the name of a published model. The file is written
only if its results are those of PyTorch. See docs/export.md.
"""

import os
from argparse import Namespace
from collections.abc import Sequence

from tabulate import tabulate

from ..engine import load_config
from ..inference.aot import export_aot
from ..inference.export import Source, export_onnx
from ..inference.images import read_some
from ..inference.predictor import load
from ..inference.quantize import export_int8
from ..inference.verify import difference_table, generated_images
from . import command_parser, exit_at_input_error


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments; None: those of the process."""
    parser = command_parser(__doc__)
    parser.add_argument("model", metavar="MODEL")
    text = "file to write: .onnx, or .pt2 with --aot"
    parser.add_argument("--output", required=True, metavar="FILE", help=text)
    parser.add_argument("--tasks", nargs="+", default=[], help="some of the tasks; default: all")
    text = "compare results on these images: folders, globs, lists; default: generated scenes"
    parser.add_argument("--images", nargs="+", default=[], help=text)
    text = "write 8-bit integers, calibrated on these images"
    parser.add_argument("--int8", nargs="+", default=[], metavar="IMAGES", help=text)
    parser.add_argument("--limit", type=int, default=100, help="most images to read; default: 100")
    text = "with --int8: evaluate before and after on DATASETS.TEST of this config"
    parser.add_argument("--config-file", help=text)
    parser.add_argument("--opts", nargs="+", default=[], help="KEY VALUE pairs for --config-file")
    text = "compile with PyTorch's AOTInductor instead, for this kind of machine"
    parser.add_argument("--aot", action="store_true", help=text)
    args = parser.parse_args(argv)
    if args.aot and args.int8:
        parser.error("--int8 writes an .onnx file: leave out --aot")
    if args.config_file and not args.int8:
        parser.error("--config-file is read with --int8 only")
    suffix = ".pt2" if args.aot else ".onnx"
    if not args.output.endswith(suffix):
        parser.error(f"--output {args.output} must end in {suffix}")
    return args


def main(args: Namespace) -> None:
    """Write the file and print how its results differ."""
    predictor = load(args.model, device="cpu")
    source = Source.of(predictor, args.tasks)
    if args.int8:
        images = read_some(args.int8, "--int8", args.limit, predictor.range_16bit)
        opts = ["MODEL.DEVICE", "cpu", *args.opts]
        cfg = load_config(args.config_file, opts, eval_only=True) if args.config_file else None
        differences, metrics = export_int8(source, args.output, images, cfg)
        print("8-bit integers against full precision:")
    else:
        images = generated_images()
        if args.images:
            images = read_some(args.images, "--images", args.limit, predictor.range_16bit)
        export = export_aot if args.aot else export_onnx
        differences, metrics = export(source, args.output, images), []
        print(f"Against PyTorch, on {len(images)} images at three sizes each:")
    print(difference_table(differences))
    if metrics:
        print(tabulate(metrics, headers="keys", showindex=["before", "after"], floatfmt=".4f"))
    print(f"{args.output}: {os.path.getsize(args.output) / 1e6:.1f} MB, {predictor.identity}")


def run() -> None:
    """Run the command."""
    with exit_at_input_error():
        main(parse_args())
