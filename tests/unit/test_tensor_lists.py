"""Lists of the tensors of modules, the teacher's average over them, and their staleness."""

import copy

import pytest
import torch
from torch import nn

from mtfixmatch.engine.ema import averaged_tensors, build_teacher, update_teacher
from mtfixmatch.utils.tensor_lists import TensorLists


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2).double())
    net.register_buffer("scale", torch.rand(5), persistent=False)
    return net


def ids(lists):
    return {id(x) for tensors in lists for x in tensors}


def test_each_list_has_one_type_and_each_tensor_is_there_once():
    net = network()
    net.append(net[0])  # the same weights again
    lists = TensorLists(net).get()
    types = [{x.dtype for x in tensors} for tensors in lists]
    assert types == [{torch.float32}, {torch.int64}, {torch.float64}]
    assert [len(x) for x in lists] == [2 + 4 + 1, 1, 2]  # with the scale
    assert len(averaged_tensors(net).get()[0]) == 6
    assert [len(x) for x in TensorLists(net, parameters=False).get()] == [3, 1]
    assert TensorLists(nn.ReLU()).get() == []


def load(net):
    net.load_state_dict(copy.deepcopy(net.state_dict()))


def assign(net):
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)


def set_buffer(net):
    net[1].running_mean = torch.ones(4)


def set_parameter(net):
    net[0].bias = nn.Parameter(torch.ones(4))


def add_module(net):
    net[0].extra = nn.Linear(2, 2)


def replace_module(net):
    net[2] = nn.Linear(4, 2)


def remove_buffer(net):
    del net.scale


def move(net):
    net.double()


@pytest.mark.parametrize(
    "change",
    [load, assign, set_buffer, set_parameter, add_module, replace_module, remove_buffer, move],
)
def test_the_lists_are_those_of_now(change):
    net = network()
    lists = TensorLists(net)
    assert lists.get() is lists.get()
    change(net)
    assert ids(lists.get()) == ids([[*net.parameters(), *net.buffers()]])
    assert lists.get() is lists.get()


def test_a_replaced_buffer_is_put_back():
    net = network()
    lists = TensorLists(net, parameters=False)
    before = ids(lists.get())
    set_buffer(net)
    lists.put_back()
    assert ids([net.buffers()]) == before == ids(lists.get())


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.99, 1.0])
def test_the_average_is_that_of_single_tensors(decay):
    student = network()
    teacher = build_teacher(student)
    expected = copy.deepcopy(teacher)
    tensors = averaged_tensors(teacher), averaged_tensors(student)
    for step in range(3):
        torch.manual_seed(step)
        for x in student.state_dict().values():
            x.add_(7) if x.dtype is torch.int64 else x.normal_()
        update_teacher(*tensors, decay)
        for old, new in zip(
            expected.state_dict().values(), student.state_dict().values(), strict=True
        ):
            old.lerp_(new, 1 - decay) if old.is_floating_point() else old.copy_(new)
        for name, value in expected.state_dict().items():
            assert torch.equal(value, teacher.state_dict()[name]), name
    assert torch.equal(teacher.scale, expected.scale)


def test_the_average_follows_a_teacher_that_was_moved_and_loaded():
    student = network()
    teacher = build_teacher(student)
    tensors = averaged_tensors(teacher), averaged_tensors(student)
    update_teacher(*tensors, 0.5)
    for net in (teacher, student):
        move(net)
        assign(net)
    with torch.no_grad():
        student[0].weight.fill_(3.0)
        teacher[0].weight.fill_(1.0)
        student[1].running_mean.fill_(4.0)
    update_teacher(*tensors, 0.5)
    assert teacher[0].weight.unique().tolist() == [2.0]
    assert teacher[1].running_mean.unique().tolist() == [2.0]
