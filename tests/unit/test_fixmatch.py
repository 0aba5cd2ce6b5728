import math
from itertools import combinations

import pytest
import torch

from mtfixmatch.augmentation.strong import StrongAugmentation
from mtfixmatch.engine.checkpoint import export_model
from mtfixmatch.engine.samples import (
    assign_targets,
    assigned_of,
    stack_images,
    targets_of,
    weak_samples,
)
from mtfixmatch.engine.step import loss_name
from mtfixmatch.methods import ramp_up
from mtfixmatch.utils.errors import InputError
from tests.support.engine_helpers import (
    NO_MIXING,
    build_trainer,
    copy_state,
    gradients,
    losses_of,
    make_batch,
    relative_difference,
    run_config,
    run_step,
    same_state,
)

MIXES = ["".join(mix) for size in range(1, 5) for mix in combinations("ndsb", size)]
SUPERVISED_KEYS = {"loss_detection_cls", "loss_detection_box", "loss_segmentation_ce"}
UNSUPERVISED_KEYS = {f"{key}_unsup" for key in SUPERVISED_KEYS}
ALL_KEYS = SUPERVISED_KEYS | UNSUPERVISED_KEYS | {"total_loss"}


@pytest.fixture(scope="module")
def trainers(street_root, tmp_path_factory):
    """Trainers by method, built once; no test depends on the weights that another left."""
    output = tmp_path_factory.mktemp("steps")
    return {
        method: build_trainer(run_config(street_root, output / method, "FIXMATCH.METHOD", method))
        for method in ("Supervised", "FixMatch", "DenseFixMatch")
    }


@pytest.fixture
def trainer(trainers):
    return trainers["DenseFixMatch"]


@pytest.fixture
def fresh(street_root, tmp_path):
    """A function from options to a new trainer."""

    def build(*opts):
        return build_trainer(run_config(street_root, tmp_path, *opts))

    return build


def weight_now(trainer, task):
    return trainer.method.unsupervised_weight(task, trainer._trainer.iter)


def assert_every_gradient(trainer):
    for name, parameter in trainer._trainer.student.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("on", ["unlabeled", "all"])
@pytest.mark.parametrize("method", ["FixMatch", "DenseFixMatch"])
def test_every_mix_of_labels_gives_the_same_losses_and_all_gradients(
    trainers, method, on, monkeypatch
):
    trainer = trainers[method]
    monkeypatch.setattr(trainer.method, "unsupervised_on", on)
    for step, mix in enumerate(MIXES):
        kinds = mix if len(mix) > 1 else 2 * mix
        losses = losses_of(run_step(trainer, make_batch(trainer, kinds, step=step), step=step))
        assert losses.keys() == ALL_KEYS, mix
        assert all(math.isfinite(value) for value in losses.values()), (mix, losses)
        assert_every_gradient(trainer)
        for task, letters in (("detection", "db"), ("segmentation", "sb")):
            own = [value for key, value in losses.items() if task in key and "unsup" not in key]
            if not set(letters) & set(mix):
                assert own == [0.0] * len(own), mix
            else:
                assert sum(own) > 0, mix


@pytest.mark.parametrize("kinds", ["nn", "bdsn", "dn", "sn"])
def test_supervised_step_with_any_labels(trainers, kinds):
    trainer = trainers["Supervised"]
    losses = losses_of(run_step(trainer, make_batch(trainer, kinds)))
    assert losses.keys() == SUPERVISED_KEYS | {"total_loss"}
    assert all(math.isfinite(value) for value in losses.values())
    assert_every_gradient(trainer)
    assert (losses["total_loss"] == 0) == (kinds == "nn")


def test_burn_in_trains_on_labels_alone_then_the_ramp_up_begins(trainer, monkeypatch):
    monkeypatch.setattr(trainer.method, "burn_in_steps", 100)
    monkeypatch.setattr(trainer.method, "ramp_up_steps", 100)
    task = trainer._trainer.tasks[1]
    teach = trainer.teacher.forward
    monkeypatch.setattr(trainer.teacher, "forward", lambda *args: pytest.fail("a teacher's pass"))
    logged = losses_of(run_step(trainer, make_batch(trainer, "bdsn", step=99), step=99))
    assert weight_now(trainer, task) == 0
    assert {value for key, value in logged.items() if key.endswith("_unsup")} == {0}
    assert logged["loss_segmentation_ce"] > 0
    monkeypatch.setattr(trainer.teacher, "forward", teach)
    logged = losses_of(run_step(trainer, make_batch(trainer, "bdsn", step=140), step=140))
    assert weight_now(trainer, task) == pytest.approx(math.exp(-5 * 0.6**2))
    assert logged["loss_segmentation_ce_unsup"] > 0


def test_total_is_the_weighted_sum(trainer, monkeypatch):
    monkeypatch.setattr(trainer.method, "ramp_up_steps", 100)
    detection, segmentation = trainer._trainer.tasks
    monkeypatch.setattr(detection, "loss_weight", 2.0)
    monkeypatch.setattr(segmentation, "unsupervised_weight", 3.0)
    logged = run_step(trainer, make_batch(trainer, "bdsn", step=40), step=40)
    ramp = math.exp(-5 * 0.6**2)
    assert weight_now(trainer, detection) == pytest.approx(ramp)
    assert weight_now(trainer, segmentation) == pytest.approx(3 * ramp)
    parts = {key: logged[f"loss_{key}"] for key in ("detection_cls", "detection_box")}
    unsup = {key: logged[f"loss_{key}_unsup"] for key in parts}
    expected = 2 * (sum(parts.values()) + ramp * sum(unsup.values()))
    expected += logged["loss_segmentation_ce"] + 3 * ramp * logged["loss_segmentation_ce_unsup"]
    assert logged["total_loss"] == pytest.approx(expected, rel=1e-5)


def test_ramp_up_by_hand():
    assert ramp_up(0, 10) == pytest.approx(0.006737947)
    assert ramp_up(5, 10) == pytest.approx(0.2865047969)
    assert ramp_up(9, 10) == pytest.approx(0.9512294245)
    assert ramp_up(10, 10) == ramp_up(11, 10) == 1.0
    assert ramp_up(0, 0) == ramp_up(3, 0) == 1.0
    assert ramp_up(2, 2.5) == pytest.approx(math.exp(-5 * 0.04))


def test_threshold_over_one_leaves_no_pseudo_label(fresh):
    trainer = fresh("TASKS.DETECTION.THRESHOLD", 1.01, "TASKS.SEGMENTATION.THRESHOLD", 1.01)
    losses = losses_of(run_step(trainer, make_batch(trainer, "bdsn")))
    assert {losses[key] for key in UNSUPERVISED_KEYS} == {0.0}
    assert all(losses[key] > 0 for key in SUPERVISED_KEYS)
    assert_every_gradient(trainer)


def test_low_thresholds_leave_pseudo_labels(trainer):
    losses = losses_of(run_step(trainer, make_batch(trainer, "bdsn")))
    assert all(losses[key] > 0 for key in UNSUPERVISED_KEYS)


def test_teacher_is_the_moving_average(trainer):
    inner = trainer._trainer
    old = copy_state(trainer.teacher)
    # Away from the student, so that the average is seen.
    for value in old.values():
        if value.is_floating_point():
            value.add_(1e-3 * torch.rand_like(value))
    trainer.teacher.load_state_dict(old)
    run_step(trainer, make_batch(trainer, "bdsn"))
    student = inner.student.state_dict()
    kinds = {"running_mean": 0, "weight": 0, "num_batches_tracked": 0}
    for name, value in trainer.teacher.state_dict().items():
        kinds = {kind: count + name.endswith(kind) for kind, count in kinds.items()}
        if not value.is_floating_point():
            assert torch.equal(value, student[name]), name
            continue
        expected = 0.99 * old[name].double() + 0.01 * student[name].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6, msg=name)
    assert all(kinds.values())
    assert not trainer.teacher.training
    assert all(not module.training for module in trainer.teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in trainer.teacher.parameters())
    assert inner.student.training


def test_teacher_does_not_change_in_its_own_passes(trainer, monkeypatch):
    monkeypatch.setattr(trainer._trainer, "ema_decay", 1.0)
    before, student = copy_state(trainer.teacher), copy_state(trainer._trainer.student)
    run_step(trainer, make_batch(trainer, "nnnn"))
    after = trainer.teacher.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    # Counters are the student's.
    assert all(name.endswith("num_batches_tracked") for name in changed)
    now = trainer._trainer.student.state_dict()
    assert any(not torch.equal(student[name], now[name]) for name in student)


def test_teacher_starts_as_a_copy_of_the_loaded_weights(street_root, tmp_path, trainer):
    path = str(tmp_path / "start.pth")
    export_model(trainer._trainer.student, path)
    expected = copy_state(trainer._trainer.student)
    cfg = run_config(street_root, tmp_path, "MODEL.WEIGHTS", path, "SEED", 7)
    started = build_trainer(cfg)
    assert same_state(started._trainer.student.state_dict(), expected)
    assert same_state(started.teacher.state_dict(), expected)
    assert started.start_iter == 0


class Counter:
    """Counts images through backbones and heads of student and teacher, pass by pass."""

    def __init__(self, trainer):
        self.seen = {}
        self.handles = []
        for who, net in (("student", trainer._trainer.student), ("teacher", trainer.teacher)):
            self._watch(f"{who} backbone", net.backbone)
            for name, head in net.heads.items():
                self._watch(f"{who} {name}", head)

    def _watch(self, key, module):
        def note(module, args):
            given = args[0] if torch.is_tensor(args[0]) else next(iter(args[0].values()))
            self.seen[key].append(len(given))

        self.seen[key] = []
        self.handles.append(module.register_forward_pre_hook(note))

    def close(self):
        for handle in self.handles:
            handle.remove()


@pytest.fixture
def count():
    counters = []

    def run(trainer, kinds):
        counters.append(Counter(trainer))
        run_step(trainer, make_batch(trainer, kinds))
        return counters[-1].seen

    yield run
    for counter in counters:
        counter.close()


def expected_passes(student, detection, segmentation, teacher):
    """Images in the student's pass, and in its heads'; then the same three of the teacher."""
    names = ("backbone", "detection", "segmentation")
    student_passes = zip(names, (student, detection, segmentation), strict=True)
    seen = {f"student {name}": [n] if n else [] for name, n in student_passes}
    return seen | {
        f"teacher {name}": [n] if n else [] for name, n in zip(names, teacher, strict=True)
    }


@pytest.mark.parametrize(
    "kinds, on, expected",
    [
        # b, d, s weak + d, s, n strong; detection: b, d weak + s, n strong.
        ("bdsn", "unlabeled", expected_passes(6, 4, 4, (3, 2, 2))),
        ("bdsn", "all", expected_passes(7, 6, 6, (4, 4, 4))),
        ("bbbb", "unlabeled", expected_passes(4, 4, 4, (0, 0, 0))),
        ("nnn", "unlabeled", expected_passes(3, 3, 3, (3, 3, 3))),
        ("bbnn", "unlabeled", expected_passes(4, 4, 4, (2, 2, 2))),
        ("ddd", "unlabeled", expected_passes(6, 3, 3, (3, 0, 3))),
    ],
)
def test_only_the_passes_that_are_needed(trainer, count, monkeypatch, kinds, on, expected):
    monkeypatch.setattr(trainer.method, "unsupervised_on", on)
    assert count(trainer, kinds) == expected


def test_supervised_has_no_teacher_pass_and_no_strong_view(trainers, count, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a strong view was made")

    monkeypatch.setattr(StrongAugmentation, "__call__", fail)
    assert count(trainers["Supervised"], "bdsn") == expected_passes(3, 2, 2, (0, 0, 0))


def test_strong_views_meet_their_own_pseudo_labels(trainer):
    """With a strong view that changes nothing the moved pseudo-labels are the pseudo-labels."""
    method = trainer.method
    saved = method.strong_augmentation
    keep = ("operations", "num_operations", "flip_prob", "cutout_area", "fill", "seed")
    still = {name: getattr(saved, name) for name in keep}
    still |= {"num_operations": 0, "flip_prob": 0.0, "cutout_area": (0.0, 0.0)}
    still["fill"] = saved.fill.flatten().tolist()
    method.strong_augmentation = StrongAugmentation(**still)
    try:
        run_step(trainer, make_batch(trainer, "dsn"))
    finally:
        method.strong_augmentation = saved
    record = trainer.step_record
    assert [set(x) for x in record.pseudo_labels] == [
        {"segmentation"}, {"detection"}, {"detection", "segmentation"}
    ]  # fmt: skip
    for weak, pseudo, strong in zip(record.weak, record.pseudo_labels, record.strong, strict=True):
        assert torch.equal(weak.image, strong.image)
        assert all(target.is_pseudo for target in strong.targets.values())
        moved = {name: target.target for name, target in strong.targets.items()}
        assert moved.keys() == pseudo.keys()
        if "segmentation" in pseudo:
            assert torch.equal(pseudo["segmentation"], moved["segmentation"])
        if "detection" in pseudo:
            boxes = (x["detection"].gt_boxes.tensor for x in (pseudo, moved))
            torch.testing.assert_close(*boxes)


def test_samples_know_their_tasks(trainer):
    batch = make_batch(trainer, "bdsn")
    weak = weak_samples(batch, stack_images(batch, torch.device("cpu")), seed=0)
    names = [set(sample.targets) for sample in weak]
    assert names == [{"detection", "segmentation"}, {"detection"}, {"segmentation"}, set()]
    detection, segmentation = trainer.tasks
    assert [len(targets_of(weak, t)) for t in (detection, segmentation)] == [2, 2]
    assigned = assign_targets(weak, trainer.tasks, trainer._trainer.student)
    assert [len(assigned_of(assigned, detection, is_pseudo=x)) for x in (False, True)] == [2, 0]
    assert assigned_of(weak, detection, is_pseudo=False) == []
    assert loss_name(detection, "cls", False) == "loss_detection_cls"
    assert loss_name(segmentation, "ce", True) == "loss_segmentation_ce_unsup"


WEAK_VIEWS = {"none": [(6, 4, 4)], "statistics": [(1, 1, 1), (6, 4, 4)], "forward": [(7, 6, 6)]}


@pytest.mark.parametrize("mode", WEAK_VIEWS)
def test_weak_views_without_a_label_in_the_student(fresh, count, mode):
    """Of "bdsn", 3 weak views have a label; the strong views of d, s, n have 2 labels a task."""
    trainer = fresh("FIXMATCH.UNLABELED_WEAK", mode)
    seen = count(trainer, "bdsn")
    names = ("backbone", "detection", "segmentation")
    rows = list(zip(*(seen[f"student {name}"] for name in names), strict=True))
    assert rows == WEAK_VIEWS[mode]
    assert seen["teacher backbone"] == [3]


def test_only_statistics_see_the_weak_views_without_a_label(fresh):
    """In evaluation mode BatchNorm's statistics differ; gradients of the step do not."""
    found = {}
    for mode in ("none", "statistics"):
        trainer = fresh("FIXMATCH.UNLABELED_WEAK", mode)
        run_step(trainer, make_batch(trainer, "bdsn"))
        found[mode] = gradients(trainer), copy_state(trainer._trainer.student)
    names = found["none"][1]
    means = [name for name in names if name.endswith("running_mean")]
    assert all(not torch.equal(found["none"][1][x], found["statistics"][1][x]) for x in means)
    assert relative_difference(found["none"][0].values(), found["statistics"][0].values()) == 0


@pytest.mark.parametrize("mode", ["none", "forward"])
def test_weak_views_in_the_pass_have_no_loss(fresh, mode):
    """With norms that do not mix images, the view without a label changes no gradient."""
    trainer = fresh(*NO_MIXING, "FIXMATCH.UNLABELED_WEAK", mode, "FIXMATCH.METHOD", "Supervised")
    run_step(trainer, make_batch(trainer, "bdsn"))
    with_view = gradients(trainer)
    trainer = fresh(*NO_MIXING, "FIXMATCH.UNLABELED_WEAK", mode, "FIXMATCH.METHOD", "Supervised")
    run_step(trainer, make_batch(trainer, "bds"))
    assert relative_difference(with_view.values(), gradients(trainer).values()) < 1e-5


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulated_gradients_are_those_of_the_whole_batch(fresh, parts):
    trainer = fresh(*NO_MIXING)
    inner, state = trainer._trainer, copy_state(trainer.teacher)
    batch = make_batch(trainer, "bdsn")
    found = []
    for count in (1, parts):
        inner.student.load_state_dict(state)
        trainer.teacher.load_state_dict(state)
        inner.accumulation_steps = count
        losses = losses_of(run_step(trainer, batch))
        found.append((gradients(trainer), losses))
    assert relative_difference(found[1][0].values(), found[0][0].values()) < 1e-5
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-5)


def test_accumulation_passes_fewer_images_at_a_time(fresh, count):
    trainer = fresh(*NO_MIXING, "SOLVER.ACCUMULATION_STEPS", 3)
    seen = count(trainer, "bdsn")
    assert seen["student backbone"] == [2, 2, 2]
    assert sum(seen["student detection"]) == sum(seen["student segmentation"]) == 4


@pytest.mark.parametrize("kind", ["value", "norm"])
def test_gradients_are_clipped(fresh, kind):
    limit = 1e-3
    clip = ("ENABLED", True, "CLIP_TYPE", kind, "CLIP_VALUE", limit)
    opts = [x if i % 2 else f"SOLVER.CLIP_GRADIENTS.{x}" for i, x in enumerate(clip)]
    trainer = fresh(*NO_MIXING, *opts)
    inner, sizes = trainer._trainer, []
    unclipped = inner.grad_scaler.unscale_

    def measure(optimizer):
        unclipped(optimizer)
        sizes.append(gradient_size(trainer, kind))

    inner.grad_scaler.unscale_ = measure
    run_step(trainer, make_batch(trainer, "bdsn"))
    assert sizes[0] > 10 * limit
    assert gradient_size(trainer, kind) == pytest.approx(limit, rel=1e-3)


def gradient_size(trainer, kind):
    """Of the largest parameter gradient: its greatest element, or its norm."""
    order = math.inf if kind == "value" else 2
    return max(float(g.norm(order)) for g in gradients(trainer).values())


def test_clipping_limits_the_update(fresh):
    limit = 1e-4
    clip = ("ENABLED", True, "CLIP_TYPE", "value", "CLIP_VALUE", limit)
    opts = [x if i % 2 else f"SOLVER.CLIP_GRADIENTS.{x}" for i, x in enumerate(clip)]
    trainer = fresh(*NO_MIXING, *opts, "SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.BASE_LR", 0.1)
    before = copy_state(trainer._trainer.student)
    run_step(trainer, make_batch(trainer, "bdsn"))
    for name, parameter in trainer._trainer.student.named_parameters():
        moved = (parameter.detach() - before[name]).abs().max()
        assert moved <= 0.1 * limit * 1.01 + 1e-7, name


def dtypes_of_a_step(trainer):
    seen = {}
    net = trainer._trainer.student
    conv = net.backbone.bottom_up.stem.conv1
    conv.register_forward_hook(lambda m, args, out: seen.update(conv=out.dtype))
    net.register_forward_hook(
        lambda m, args, out: seen.update({k: {x.dtype for x in v} for k, v in out[0].items()})
    )
    trainer.teacher.backbone.bottom_up.stem.conv1.register_forward_hook(
        lambda m, args, out: seen.update(teacher=out.dtype)
    )
    losses = losses_of(run_step(trainer, make_batch(trainer, "bdsn")))
    return seen, losses


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_mixed_precision_is_used(fresh, precision):
    mixed = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "bfloat16")
    opts = mixed if precision == "bfloat16" else ()
    trainer = fresh("INPUT.TRAIN_SIZE", (128, 128), *opts)
    seen, losses = dtypes_of_a_step(trainer)
    dtype = getattr(torch, precision)
    assert seen == {
        **{"conv": dtype, "teacher": dtype},
        **{"detection": {torch.float32}, "segmentation": {torch.float32}},
    }
    assert all(math.isfinite(value) for value in losses.values())
    assert all(p.dtype == torch.float32 for p in trainer._trainer.student.parameters())
    assert_every_gradient(trainer)


def test_float16_needs_a_gpu(fresh):
    with pytest.raises(InputError, match=r"SOLVER\.AMP\.PRECISION"):
        fresh("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "float16")
