"""SyncBatchNorm over ranks of which some have no images."""

from copy import deepcopy

import pytest
import timm
import torch
import torch.distributed as dist
from detectron2.modeling import build_model
from torch import nn

from mtfixmatch.modeling.sync_norm import (
    NO_ELEMENTS,
    CpuSyncBatchNorm,
    SyncBatchNorm,
    replace_sync_norms,
)
from tests.support.helpers import tiny_config

CHANNELS = 8


class NcclGroup:
    def _get_backend_name(self):
        return "nccl"


def statistics(x, *args):
    """What CUDA's kernels give for x, (N, C, H, W): float32 also for 16-bit inputs."""
    return tuple(x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2))


@pytest.fixture
def collectives(monkeypatch):
    """Name, size and type of each collective, on a meta device that PyTorch takes for a GPU."""
    sent = []

    def record(name, position):
        def collective(*args, **kwargs):
            tensor = args[position]
            sent.append((name, tuple(tensor.shape), tensor.dtype))

        return collective

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    for name in ("all_gather_single", "all_gather_into_tensor"):
        monkeypatch.setattr(dist, name, record("all_gather", 1), raising=False)
    monkeypatch.setattr(dist, "all_reduce", record("all_reduce", 0))
    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "meta")
    # Without this, sizes would depend on counts, which a meta tensor does not have.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    kernels = {
        "batch_norm_stats": statistics,
        "batch_norm_gather_stats_with_counts": statistics,
        "batch_norm_elemt": lambda x, *args: torch.empty_like(x),
        "batch_norm_backward_reduce": lambda grad, x, *args: statistics(x) * 2,
        "batch_norm_backward_elemt": lambda grad, *args: torch.empty_like(grad),
    }
    for name, kernel in kernels.items():
        monkeypatch.setattr(torch, name, kernel)
    return sent


def test_no_layer_waits_for_the_gpu(collectives, monkeypatch):
    """PyTorch's masks select what a rank with images sent, three times in a layer."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    norm = SyncBatchNorm(CHANNELS, process_group=NcclGroup(), device="meta")
    assert len(run(norm, 2, torch.float32, collectives)) == 2
    plain = nn.SyncBatchNorm(CHANNELS, process_group=NcclGroup(), device="meta")
    # The size of a selection is a value, which a tensor on the meta device does not have.
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        run(plain, 2, torch.float32, collectives)


def run(norm, count, dtype, sent):
    """The collectives of a forward and a backward pass over `count` images."""
    sent.clear()
    x = torch.empty(count, CHANNELS, 4, 4, device="meta", dtype=dtype, requires_grad=True)
    y = norm.train()(x)
    assert y.dtype == dtype and y.shape == x.shape
    y.sum().backward()
    return list(sent)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_rank_without_images_sends_what_the_others_send(collectives, dtype):
    norm = SyncBatchNorm(CHANNELS, process_group=NcclGroup(), device="meta")
    expected = [
        ("all_gather", (2 * CHANNELS + 1,), torch.float32),
        ("all_reduce", (2 * CHANNELS,), torch.float32),
    ]
    assert run(norm, 2, dtype, collectives) == expected
    assert run(norm, 0, dtype, collectives) == expected


def test_pytorchs_own_norm_does_not(collectives):
    """Once it does, SyncBatchNorm needs no case for an empty input."""
    norm = nn.SyncBatchNorm(CHANNELS, process_group=NcclGroup(), device="meta")
    with_images = run(norm, 2, torch.float16, collectives)
    assert [kind for *_, kind in with_images] == [torch.float32] * 2
    without = run(norm, 0, torch.float16, collectives)
    assert [kind for *_, kind in without] == [torch.float16] * 2


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_cpu_a_rank_without_images_sends_the_same_too(monkeypatch, dtype, affine):
    sent = []

    def reduce(tensor):
        sent.append((tuple(tensor.shape), tensor.dtype))
        return tensor

    monkeypatch.setattr("mtfixmatch.modeling.sync_norm.differentiable_all_reduce", reduce)
    norm = CpuSyncBatchNorm(CHANNELS, affine=affine).train()
    for count in (2, 0):
        assert norm(torch.ones(count, CHANNELS, 4, 4, dtype=dtype)).dtype == dtype
    assert sent[:2] == sent[2:] == [((n,), torch.float32) for n in (CHANNELS + 1, CHANNELS)]


def test_every_sync_norm_of_a_network_is_replaced(street_root):
    parts = ("RESNETS", "FPN", "RETINANET", "SEM_SEG_HEAD")
    opts = [x for part in parts for x in (f"MODEL.{part}.NORM", "SyncBN")]
    opts += ["MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", [32]]
    for device, expected in (("cpu", CpuSyncBatchNorm), ("meta", SyncBatchNorm)):
        model = build_model(tiny_config(street_root, *opts)).to(device)
        names = list(model.state_dict())
        replace_sync_norms(model)
        assert list(model.state_dict()) == names
        for part in (model.backbone.bottom_up, model.backbone.fpn, *model.heads.values()):
            norms = [m for m in part.modules() if "SyncBatchNorm" in type(m).__name__]
            assert norms and all(type(m) is expected for m in norms)


def test_the_activation_of_a_timm_norm_stays():
    torch.manual_seed(0)
    plain = timm.create_model("mobilenetv2_050", features_only=True).double().train()
    synced = timm.layers.convert_sync_batchnorm(deepcopy(plain)).double()
    replace_sync_norms(synced)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    for x, expected in zip(synced(images), plain(images), strict=True):
        torch.testing.assert_close(x, expected)
    synced = timm.layers.convert_sync_batchnorm(deepcopy(plain)).to("meta")
    replace_sync_norms(synced)
    for model, own in ((synced, SyncBatchNorm), (plain, nn.BatchNorm2d)):
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert norms and all(isinstance(m, own) for m in norms)
    assert any(type(m.act) is nn.ReLU6 for m in synced.modules() if isinstance(m, SyncBatchNorm))


def test_a_norm_with_an_activation_sends_the_same_too(collectives):
    norm = timm.layers.BatchNormAct2d(CHANNELS, device="meta")
    norm = timm.layers.convert_sync_batchnorm(norm, NcclGroup()).to("meta")
    replace_sync_norms(norm)
    assert isinstance(norm, SyncBatchNorm)
    expected = run(norm, 2, torch.float16, collectives)
    assert len(expected) == 2 and run(norm, 0, torch.float16, collectives) == expected


def joined(x, means, invstds, running_mean, running_var, momentum, eps, counts):
    """What CUDA's kernel computes from the statistics of the ranks, one after the other."""
    mean, var, n = torch.zeros_like(means[0]), torch.zeros_like(means[0]), torch.zeros(())
    for other, invstd, count in zip(means, invstds, counts, strict=True):
        own = ((1 / invstd).square() - eps) * count
        factor = 1 / (n + count)
        var = var + own + (mean - other) * (mean - other) * n * count * factor
        mean = n * factor * mean + count * factor * other
        n = n + count
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var / (n - 1), momentum)
    return mean, (var / n + eps).rsqrt()


def own_statistics(x, eps):
    return x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + eps).rsqrt()


def applied(x, weight, bias, mean, invstd, eps):
    return torch.batch_norm(x, weight, bias, mean, invstd**-2 - eps, False, 0.0, eps, False)


@pytest.mark.parametrize("others", [(0, 2), (3, 0), (0, 0), (1, 5)])
def test_ranks_without_images_weigh_nothing(monkeypatch, others):
    """The statistics of three ranks, this one with two images, are those of PyTorch's masks."""
    torch.manual_seed(0)
    ranks = [torch.randn(n, CHANNELS, 3, 3) + 4 for n in (others[0], 2, others[1])]
    sent = []

    def gather(out, own, group):
        """PyTorch's rank without images sends zeros; ours says that it has next to none."""
        empty = own.new_tensor([*[0.0] * CHANNELS, *[1.0] * CHANNELS, NO_ELEMENTS])
        if norm_class is nn.SyncBatchNorm:
            empty.zero_()
        sent[:] = [
            torch.cat([*own_statistics(x, 1e-5), torch.tensor([9.0 * len(x)])]) if len(x) else empty
            for x in ranks
        ]
        assert torch.equal(own, sent[1])
        out.view(3, -1).copy_(torch.stack(sent))

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 3)
    for name in ("all_gather_single", "all_gather_into_tensor"):
        monkeypatch.setattr(dist, name, lambda out, own, group, **_: gather(out, own, group))
    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "cpu")
    monkeypatch.setattr(torch, "batch_norm_stats", own_statistics)
    monkeypatch.setattr(torch, "batch_norm_gather_stats_with_counts", joined)
    monkeypatch.setattr(torch, "batch_norm_elemt", applied)
    results = []
    for norm_class in (SyncBatchNorm, nn.SyncBatchNorm):
        norm = norm_class(CHANNELS, process_group=NcclGroup()).train()
        results.append((norm(ranks[1]).detach(), *norm.buffers()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    plain = nn.BatchNorm2d(CHANNELS).train()
    expected = plain(torch.cat(ranks))[len(ranks[0]) :][:2]
    torch.testing.assert_close(results[0][0], expected)
    torch.testing.assert_close(results[0][1], plain.running_mean)
    torch.testing.assert_close(results[0][2], plain.running_var)
