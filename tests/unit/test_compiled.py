"""Compiled networks: one graph without breaks, for any number of rows, equal to the plain one."""

import copy
from functools import partial

import pytest
import torch

dynamo = pytest.importorskip("torch._dynamo")

import torch.distributed as dist  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from functorch.compile import make_boxed_func  # noqa: E402
from torch import nn  # noqa: E402
from torch._dynamo.backends.common import aot_autograd  # noqa: E402
from torch._dynamo.testing import CompileCounter  # noqa: E402

from mtfixmatch.engine.ema import build_teacher  # noqa: E402
from mtfixmatch.modeling.cast_weights import CastWeights  # noqa: E402
from mtfixmatch.modeling.compiled import (  # noqa: E402
    MOST_SHAPES,
    _check_shapes,
    compile_network,
    compile_networks,
)
from mtfixmatch.modeling.sync_norm import CAN_COMPILE, CpuSyncBatchNorm, SyncBatchNorm  # noqa: E402
from mtfixmatch.runtime.rank_watch import LONG, RankWatch  # noqa: E402
from mtfixmatch.utils.errors import InputError  # noqa: E402
from tests.support.engine_helpers import (  # noqa: E402
    build_trainer,
    copy_state,
    losses_of,
    make_batch,
    run_config,
    run_step,
    same_state,
)
from tests.support.helpers import tiny_config  # noqa: E402

# Number of images, and those of them that each head runs on.
BATCHES = [
    (6, (0, 1, 2), (3, 4, 5)),
    (6, (0, 1, 2, 4), (1, 5)),
    (5, (1, 2), (0, 1, 3, 4)),
    (3, (0, 1), (0, 2)),
    (8, (0, 1, 2, 3, 4, 5, 6), (0, 1)),
]


@pytest.fixture
def networks(street_root):
    """A student with dropout, and its teacher."""
    cfg = tiny_config(street_root, "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.3)
    torch.manual_seed(0)
    student = build_model(cfg).train()
    return student, build_teacher(student)


def run(network, batch, seeds=True):
    count, boxes, maps = batch
    images = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(count))
    rows = {"detection": boxes, "segmentation": maps}
    masks = {task: [i in given for i in range(count)] for task, given in rows.items()}
    return network(images, masks, [7 * i for i in range(count)] if seeds else None)


def tensors_of(result):
    outputs, zero = result
    return [*(x for task in outputs.values() for x in task), zero]


@pytest.fixture
def counted():
    """Compile networks with a backend that counts graphs and runs them as they are."""
    dynamo.reset()
    counter = CompileCounter()
    yield counter
    dynamo.reset()


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_one_graph_runs_every_number_of_rows(networks, counted, which):
    network = networks[which == "teacher"]
    plain = copy.deepcopy(network)
    names = list(network.state_dict())
    compile_network(network, backend=counted)
    dynamo.utils.counters.clear()
    for batch in BATCHES:
        with torch.set_grad_enabled(which == "student"):
            results = [tensors_of(run(x, batch, which == "student")) for x in (network, plain)]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        if which == "student":
            for result in results:
                sum(x.sum() for x in result).backward()
            pairs = zip(network.parameters(), plain.parameters(), strict=True)
            assert all(torch.equal(a.grad, b.grad) for a, b in pairs)
    assert counted.frame_count == 1
    assert not dynamo.utils.counters["graph_break"]
    assert list(network.state_dict()) == names


def test_a_teacher_with_cast_weights_is_one_graph_too(networks, counted):
    _, teacher = networks
    plain = copy.deepcopy(teacher)
    compile_network(teacher, backend=counted)
    weights = CastWeights(teacher, torch.bfloat16)
    for batch in BATCHES[:3]:
        torch._foreach_mul_(list(teacher.parameters()), 1.25)
        torch._foreach_mul_(list(plain.parameters()), 1.25)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            with weights.applied():
                found = tensors_of(run(teacher, batch, seeds=False))
            expected = tensors_of(run(plain, batch, seeds=False))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert counted.frame_count == 1


@pytest.fixture
def group_of_one(tmp_path):
    """A process group of this process alone, whose sums over ranks are its own values."""
    dist.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def synchronize(network):
    """Make the norms of a network those of several processes on a CPU; return their number."""
    norms = [m for m in network.modules() if type(m) is nn.BatchNorm2d]
    for norm in norms:
        norm.__class__ = CpuSyncBatchNorm
    return len(norms)


@pytest.mark.skipif(not CAN_COMPILE, reason="this PyTorch cannot order the exchanges of a graph")
def test_a_student_with_synchronized_norms_is_one_graph_too(networks, counted, group_of_one):
    student, _ = networks
    synchronize(student)
    plain = copy.deepcopy(student)
    compile_network(student, backend=counted)
    for batch in BATCHES:
        results = [tensors_of(run(x, batch)) for x in (student, plain)]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        for result in results:
            sum(x.sum() for x in result).backward()
        pairs = zip(student.buffers(), plain.buffers(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        pairs = zip(student.parameters(), plain.parameters(), strict=True)
        assert all(torch.equal(a.grad, b.grad) for a, b in pairs)
    assert counted.frame_count == 1


@pytest.mark.skipif(not CAN_COMPILE, reason="this PyTorch cannot order the exchanges of a graph")
def test_the_exchanges_of_a_graph_keep_their_order(networks, group_of_one):
    """Each one depends on the one before, also where two heads do not depend on each other."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph.graph)
        return make_boxed_func(graph.forward)

    student, _ = networks
    count = synchronize(student)
    dynamo.reset()
    compile_network(student, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    sum(x.sum() for x in tensors_of(run(student, BATCHES[0]))).backward()
    dynamo.reset()
    assert len(graphs) == 2  # forward and backward
    for graph in graphs:
        calls = [x for x in graph.nodes if torch.ops.mtfixmatch.sum_over_ranks.default in x.args]
        assert len(calls) == 2 * count
        tokens = [call.args[0] for call in calls]
        assert all(x.args[0] is call for x, call in zip(tokens[1:], calls, strict=False))


@pytest.mark.skipif(not CAN_COMPILE, reason="this PyTorch cannot order the exchanges of a graph")
@pytest.mark.parametrize("norm_class", [SyncBatchNorm, CpuSyncBatchNorm])
def test_a_compiled_norm_is_the_plain_one(counted, group_of_one, norm_class):
    """That of a GPU, too: a graph has plain operators instead of PyTorch's kernels."""
    torch.manual_seed(0)
    norm, plain = norm_class(5).double(), nn.BatchNorm2d(5).double()
    compiled = torch.compile(norm, backend=counted, fullgraph=True)
    for count in (3, 4):
        x = torch.randn(count, 5, 6, 7, dtype=torch.float64, requires_grad=True)
        other = x.detach().clone().requires_grad_()
        weight = torch.rand_like(x)
        found, expected = compiled(x), plain(other)
        torch.testing.assert_close(found, expected)
        (found * weight).sum().backward()
        (expected * weight).sum().backward()
        torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(dict(norm.named_buffers()), dict(plain.named_buffers()))
    torch.testing.assert_close(norm.weight.grad, plain.weight.grad)


def test_heads_on_all_images_or_none_are_few_more_graphs(networks, counted):
    student, _ = networks
    compile_network(student, backend=counted)
    for count in (4, 6, 7, 5):
        everything = tuple(range(count))
        run(student, (count, everything, everything))
        run(student, (count, everything, (0, 1)))
    assert counted.frame_count == 2
    for batch in ((4, (1,), (0, 1)), (4, (), (0, 1)), (5, (2,), (3, 4)), (6, (), (1, 4, 5))):
        run(student, batch)
    assert counted.frame_count == 4


def test_a_copy_is_not_compiled(networks, counted):
    student, _ = networks
    compile_network(student, backend=counted)
    assert copy.deepcopy(student).compiled is None
    assert student.compiled is not None


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.COMPILE", False), "MODEL.CUDA_GRAPHS needs MODEL.COMPILE to be True; it is False"),
        (("MODEL.DEVICE", "cpu"), "MODEL.CUDA_GRAPHS needs MODEL.DEVICE to be a GPU; it is cpu"),
        (
            ("SOLVER.ACCUMULATION_STEPS", 2),
            "MODEL.CUDA_GRAPHS needs SOLVER.ACCUMULATION_STEPS to be 1; it is 2",
        ),
    ],
)
def test_a_config_that_no_cuda_graph_can_have(street_root, opts, message):
    cfg = tiny_config(street_root, "MODEL.COMPILE", True, "MODEL.CUDA_GRAPHS", True)
    cfg.MODEL.DEVICE = "cuda"
    cfg.merge_from_list(list(opts))
    with pytest.raises(InputError, match=f"^{message}$"):
        compile_networks(cfg)


def test_a_network_that_no_cuda_graph_can_hold(networks, counted):
    student, _ = networks
    with pytest.raises(InputError, match=r"cannot record .*\.ASPP_DROPOUT: turn one off"):
        compile_network(student, cuda_graphs=True, backend=counted)
    student.head("segmentation").apply(lambda m: setattr(m, "p", 0.0))
    student.backbone.bottom_up.stem.conv1.norm = CpuSyncBatchNorm(64)
    with pytest.raises(InputError, match="cannot record .* SyncBN on several GPUs"):
        compile_network(student, cuda_graphs=True, backend=counted)


def test_steps_of_many_shapes_have_no_cuda_graphs():
    _check_shapes(MOST_SHAPES)
    with pytest.raises(InputError, match="have had 9 different numbers of images"):
        _check_shapes(MOST_SHAPES + 1)


def test_the_rank_watch_gives_a_compilation_time(networks, counted):
    _, teacher = networks
    compile_network(teacher, backend=counted)
    watch, seen = RankWatch(40.0), []
    enter = watch._enter
    watch._enter = lambda stage, limit: (seen.append((stage, limit)), enter(stage, limit))
    with torch.no_grad(), watch._knowing_of_compilations(), watch.stepping("step 0"):
        run(teacher, BATCHES[0], seeds=False)
        run(teacher, BATCHES[1], seeds=False)
    assert seen == [
        ("step 0", 40.0),
        ("the compilation of a network", LONG),
        ("step 0", 40.0),
        ("what follows step 0", LONG),
    ]
    with torch.no_grad():
        run(teacher, (4, (0, 1, 2, 3), (1, 2)), seeds=False)  # another graph, which nobody watches
    assert len(seen) == 4


def test_a_compiled_training_is_the_plain_one(street_root, tmp_path, counted, monkeypatch):
    """Two steps with other labels and parts: losses, student and teacher are equal to the bit."""
    compiled = partial(compile_network, backend=counted)
    monkeypatch.setattr("mtfixmatch.modeling.compiled.compile_network", compiled)
    seen = []
    for compiles in (False, True):
        opts = ("MODEL.COMPILE", compiles, "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.3)
        trainer = build_trainer(run_config(street_root, tmp_path, *opts))
        inner = trainer._trainer
        losses = []
        for step, (kinds, inner.accumulation_steps) in enumerate((("bbnn", 1), ("bdsn", 2))):
            losses.append(losses_of(run_step(trainer, make_batch(trainer, kinds), step=step)))
        seen.append((losses, copy_state(inner.student), copy_state(trainer.teacher)))
    (losses, *plain), (same_losses, *compiled_states) = seen
    assert losses == same_losses and counted.frame_count > 1
    for a, b in zip(plain, compiled_states, strict=True):
        assert same_state(a, b)
