"""Load and check the config of a run, and fill in what data and machine decide."""

import logging
import os
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from ..config import add_mtfixmatch_config
from ..data.datasets import DATASET_NAMES, check_class_lists, get_records, register_datasets
from ..methods import build_method
from ..modeling.timm_backbone import resolve_backbone
from ..tasks.config import build_tasks, complete_task_config, set_classes, task_kinds
from ..utils.checkout import config_path
from ..utils.errors import InputError, check_choice
from ..utils.images import RANGE_16BIT
from ..utils.log import start_log
from .stored_classes import stored_classes

logger = logging.getLogger(__name__)

# Keys of Detectron2, or nodes with keys, without effect, because this project has its own mapper,
# samplers, evaluation and heads.
UNREAD_KEYS = (
    *("INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "INPUT.MAX_SIZE_TRAIN"),
    *("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"),  # images are evaluated at their own size
    *("INPUT.RANDOM_FLIP", "INPUT.CROP", "INPUT.MASK_FORMAT", "VIS_PERIOD"),
    *("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "DATALOADER.ASPECT_RATIO_GROUPING"),
    *("DATALOADER.SAMPLER_TRAIN", "DATALOADER.REPEAT_THRESHOLD", "DATALOADER.REPEAT_SQRT"),
    *("DATASETS.PROPOSAL_FILES_TRAIN", "DATASETS.PROPOSAL_FILES_TEST"),
    *("MODEL.RESNETS.RES4_DILATION", "MODEL.RESNETS.RES5_DILATION"),  # see ENCODER_STRIDE
    *("MODEL.MASK_ON", "MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS", "MODEL.FPN.IN_FEATURES"),
    *("MODEL.ROI_HEADS", "MODEL.ROI_BOX_HEAD", "MODEL.ROI_BOX_CASCADE_HEAD"),
    *("MODEL.ROI_MASK_HEAD", "MODEL.ROI_KEYPOINT_HEAD", "MODEL.PANOPTIC_FPN"),
    *("MODEL.PROPOSAL_GENERATOR", "MODEL.RPN"),
    *("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", "SOLVER.REFERENCE_WORLD_SIZE", "TEST.AUG"),
    *("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT"),
    *("TEST.EXPECTED_RESULTS", "TEST.PRECISE_BN", "TEST.KEYPOINT_OKS_SIGMAS"),
)
STEP_KEYS = ("SOLVER.STEPS", "SOLVER.GAMMA", "SOLVER.NUM_DECAYS")  # of schedulers with steps
CHOICES = {
    "FIXMATCH.STRONG.FILL": ("mean", "black"),
    "FIXMATCH.STRONG.IGNORE_ERASED": ("always", "geometric", "never"),
    "FIXMATCH.STRONG.ORDER": ("drawn", "photometric_first"),
    "FIXMATCH.UNLABELED_WEAK": ("none", "statistics", "forward"),
    "INPUT.SCALE_MODE": ("image", "crop"),
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": ("giou",),
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": ("cross_entropy",),
    "SOLVER.NONFINITE": ("stop", "skip"),
    "SOLVER.AMP.PRECISION": ("auto", "float16", "bfloat16"),
    "TEST.PRECISION": ("float32", "training"),
}


def load_config(
    config_file: str, opts: list[str], *, resume: bool = False, eval_only: bool = False
) -> CfgNode:
    """Load the config of a run and fill in what data and machine decide.

    Args:
        config_file: path of the config file, or name of a config of this package, such as
            "street/quickstart.yaml"; "": the defaults.
        opts: `KEY VALUE` pairs of the command line.
        resume: with SEED -1, use the seed that the run in OUTPUT_DIR has drawn.
        eval_only: read no training data; see `prepare_config`.

    Raises:
        InputError: a file is missing, a key is unknown, or a value is wrong.
    """
    start_log()
    cfg = resolve_config(config_file, opts)
    check_datasets(cfg, ["TEST"] if eval_only else ["TRAIN"])
    if cfg.SEED < 0:
        cfg.SEED = _draw_seed(cfg.OUTPUT_DIR if resume else "")
    prepare_config(cfg, eval_only=eval_only)
    return cfg


def resolve_config(config_file: str, opts: list[str]) -> CfgNode:
    """Merge defaults, file and `KEY VALUE` pairs, and check all that needs no data.

    For a timm network it also sets the normalization of the images.

    Raises:
        InputError: a file is missing, a key is unknown, or a value is wrong.
    """
    cfg = get_cfg()
    add_mtfixmatch_config(cfg)
    if config_file:
        path = config_path(config_file)
        if not path.is_file():
            problem = "the file does not exist, and this package has no config of that name"
            raise InputError(f"--config-file {config_file}: {problem}")
        _merge(cfg.merge_from_file, str(path), config_file)
    complete_task_config(cfg)
    _accept_other_types(cfg, opts)
    _merge(cfg.merge_from_list, opts, "the command line")
    complete_task_config(cfg)
    check_config(cfg)
    warn_of_unread_keys(cfg)
    _read_as_rgb(cfg)
    resolve_backbone(cfg)
    return cfg


def _accept_other_types(cfg: CfgNode, opts: list[str]) -> None:
    """Let the command line replace a path of the user's own data by a list, and the reverse."""
    for split in ("TRAIN", "VAL"):
        node = cfg.DATASETS.COCO_STYLE[split]
        for key in node:
            if f"DATASETS.COCO_STYLE.{split}.{key}" in opts:
                node[key] = None


def warn_of_unread_keys(cfg: CfgNode) -> None:
    """Warn of keys of Detectron2 that the config changes but that have no effect."""
    defaults = get_cfg()
    add_mtfixmatch_config(defaults)
    keys = [*UNREAD_KEYS, *([] if "Step" in cfg.SOLVER.LR_SCHEDULER_NAME else STEP_KEYS)]
    heads = {kind.head_node(cfg, name) for name, kind in task_kinds(cfg).items()}
    for name, node in cfg.MODEL.items():  # 0: from the data
        if name not in heads and isinstance(node, CfgNode) and node.get("NUM_CLASSES"):
            keys.append(f"MODEL.{name}.NUM_CLASSES")
    changed = [
        name
        for key in keys
        for name in _changed_keys(key, attrgetter(key)(cfg), attrgetter(key)(defaults))
    ]
    if changed:
        shown = ", ".join(dict.fromkeys(changed))
        logger.warning("These keys of Detectron2 have no effect: %s", shown)


def _changed_keys(key: str, value: Any, default: Any) -> list[str]:
    """Return the key if its value is not the default, or those of a node."""
    if not isinstance(value, CfgNode):
        return [key] if _as_lists(value) != _as_lists(default) else []
    return [x for k in value for x in _changed_keys(f"{key}.{k}", value[k], default[k])]


def _as_lists(value: Any) -> Any:
    """Return a value with lists for its tuples, as a config file has them."""
    return [_as_lists(x) for x in value] if isinstance(value, list | tuple) else value


def _read_as_rgb(cfg: CfgNode) -> None:
    """Set INPUT.FORMAT, which Detectron2's predictor reads, to RGB."""
    if cfg.INPUT.FORMAT != "RGB":
        text = "INPUT.FORMAT %s has no effect: images are read as RGB, as MODEL.PIXEL_MEAN must be"
        logger.warning(text, cfg.INPUT.FORMAT)
        cfg.INPUT.FORMAT = "RGB"


def _merge(merge, source, name: str) -> None:
    try:
        merge(source)
    except AttributeError:  # a string or a list where yacs expects a mapping
        raise InputError(f"{name}: it must hold KEY: VALUE pairs") from None
    except (KeyError, ValueError, AssertionError) as error:
        raise InputError(f"{name}: {error.args[0] if error.args else error!r}") from None
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{name}: {' '.join(str(error).split())}") from None


def check_config(cfg: CfgNode) -> None:
    """Raise InputError if a value cannot work."""
    build_tasks(cfg)
    for key, choices in CHOICES.items():
        check_choice(key, attrgetter(key)(cfg), choices)
    _check_numbers(cfg)
    build_method(cfg)


def check_datasets(cfg: CfgNode, needed: Sequence[str]) -> None:
    """Raise InputError if one of the `needed` keys of DATASETS names no dataset."""
    for key in needed:
        if not cfg.DATASETS[key]:
            expected = f"it must name one or more of {DATASET_NAMES}"
            raise InputError(f"DATASETS.{key} is empty: {expected}")


def _check_numbers(cfg: CfgNode) -> None:
    at_least_one = ("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATION_STEPS")
    low, high = cfg.INPUT.SCALE_RANGE
    sides = cfg.INPUT.TRAIN_SIZE
    whole = "two whole numbers, 0 <= low < high <= 65535"
    checks = {
        **{key: (attrgetter(key)(cfg) >= 1, "at least 1") for key in at_least_one},
        "INPUT.TRAIN_SIZE": (all(x > 0 and x % 32 == 0 for x in sides), "multiples of 32"),
        "INPUT.RANGE_16BIT": (_is_16bit_range(cfg.INPUT.RANGE_16BIT), whole),
        "INPUT.SCALE_RANGE": (0 < low <= high, "0 < least <= greatest"),
        "DATASETS.MAX_FAULTS": (0 <= cfg.DATASETS.MAX_FAULTS <= 1, "a share, 0-1"),
        "DATALOADER.MAX_BROKEN": (0 <= cfg.DATALOADER.MAX_BROKEN <= 1, "a share, 0-1"),
    }
    for key, (is_valid, requirement) in checks.items():
        if not is_valid:
            raise InputError(f"{key} is {attrgetter(key)(cfg)}: it must be {requirement}")


def _is_16bit_range(values: Sequence) -> bool:
    is_pair = len(values) == 2 and all(isinstance(x, int) for x in values)
    return is_pair and 0 <= values[0] < values[1] <= RANGE_16BIT[1]


def _draw_seed(folder: str) -> int:
    """Return the seed of the run in a folder, or a new one; the same on all ranks."""
    path = os.path.join(folder, "config.yaml")
    seed = -1
    if folder and comm.is_main_process() and os.path.isfile(path):
        try:
            with open(path) as file:
                seed = yaml.safe_load(file)["SEED"]
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise InputError(f"{path} has no SEED to resume with ({error!r}): set it") from None
    seed = comm.all_gather(seed)[0]
    return comm.shared_random_seed() % 2**31 if seed < 0 else seed


def prepare_config(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Fill in what data and machine decide: the classes and the device.

    An evaluation (`eval_only`) reads DATASETS.TEST alone. Where neither TASKS.<NAME>.CLASSES nor
    the dataset lists the classes, they are those stored with MODEL.WEIGHTS, or else those that the
    files of the dataset have.
    """
    register_datasets(_without_training_data(cfg) if eval_only else cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s, but there is no GPU: using the CPU", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    names = [*([] if eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST]
    unknown = _take_stored_classes(cfg, names[0]) if eval_only else []
    get_records(names)  # read all datasets now, so that broken files stop the run here
    check_class_lists(names, _class_keys(cfg).values())
    take_classes(cfg, names[0])
    for name in unknown:
        logger.warning(
            "Neither TASKS.%s.CLASSES nor MODEL.WEIGHTS names the classes of %s: they are taken "
            "from %s, in the order there: %s",
            *(name.upper(), name, names[0], cfg.TASKS[name.upper()].CLASSES),
        )


def _class_keys(cfg: CfgNode) -> dict[str, str]:
    """Return task name -> key of its classes in the metadata of a dataset, if it has classes."""
    kinds = task_kinds(cfg).items()
    return {x: kind.key_of(kind.metadata_field, x) for x, kind in kinds if kind.metadata_field}


def _without_training_data(cfg: CfgNode) -> CfgNode:
    """Return a copy of a config whose datasets need no file of the training."""
    cfg = cfg.clone()
    cfg.DATASETS.TRAIN = ()
    own = cfg.DATASETS.COCO_STYLE.TRAIN
    for key in own:
        own[key] = ""
    return cfg


def _take_stored_classes(cfg: CfgNode, dataset: str) -> list[str]:
    """Take classes that are not listed from MODEL.WEIGHTS; return the tasks that it has none of."""
    metadata = MetadataCatalog.get(dataset)
    unlisted = [
        name
        for name, key in _class_keys(cfg).items()
        if not (cfg.TASKS[name.upper()].CLASSES or metadata.get(key))
    ]
    stored = stored_classes(cfg.MODEL.WEIGHTS) if unlisted and cfg.MODEL.WEIGHTS else {}
    for name in unlisted:
        cfg.TASKS[name.upper()].CLASSES = stored.get(name, [])
    if stored:
        register_datasets(_without_training_data(cfg))  # whose readers take their order
    return [name for name in unlisted if name not in stored]


def take_classes(cfg: CfgNode, dataset: str) -> None:
    """Write the classes of a dataset into the config of each task with classes.

    Raises:
        InputError: the dataset has no classes for a task, or others than the config.
    """
    metadata = MetadataCatalog.get(dataset)
    for name, key in _class_keys(cfg).items():
        classes = metadata.get(key, []) or cfg.TASKS[name.upper()].CLASSES
        if not classes:
            raise InputError(
                f"{dataset} has no classes for {name}: add labels, or remove {name} from "
                "MODEL.TASKS"
            )
        colors = metadata.get(key.replace("classes", "colors"), [])
        set_classes(cfg, name, classes, colors, dataset=dataset)


def choose_precision(cfg: CfgNode) -> torch.dtype:
    """Return the data type of the forward passes, see SOLVER.AMP."""
    if not cfg.SOLVER.AMP.ENABLED:
        return torch.float32
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    if cfg.SOLVER.AMP.PRECISION != "auto":
        precision = getattr(torch, cfg.SOLVER.AMP.PRECISION)
        if precision is torch.float16 and not on_gpu:
            raise InputError("SOLVER.AMP.PRECISION is float16, which needs a GPU: use bfloat16")
        return precision
    if on_gpu:  # without emulation, which older GPUs offer and which is slow
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float16
    if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    logger.info("This CPU has no bfloat16 instructions: training in float32")
    return torch.float32


def choose_test_precision(cfg: CfgNode) -> torch.dtype:
    """Return the data type of an evaluation's forward passes, see TEST.PRECISION."""
    return choose_precision(cfg) if cfg.TEST.PRECISION == "training" else torch.float32
