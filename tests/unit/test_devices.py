import pytest
import torch

from mtfixmatch.utils.devices import stack, take_rows, to_device


@pytest.mark.parametrize("rows", [[], [0, 1, 2, 3], [1, 2], [3], [0, 2], [2, 1]])
def test_rows_are_those_of_an_index(rows):
    x = torch.arange(24.0).view(4, 2, 3)
    assert torch.equal(take_rows(x, rows), x[torch.tensor(rows, dtype=torch.long)])


def test_rows_that_follow_each_other_are_not_copied():
    x = torch.arange(24.0).view(4, 2, 3)
    assert take_rows(x, [0, 1, 2, 3]) is x
    assert take_rows(x, [1, 2]).data_ptr() == x[1].data_ptr()
    assert take_rows(x, [0, 2]).data_ptr() != x.data_ptr()


def test_stacked_rows_of_one_tensor_are_not_copied():
    x = torch.arange(24.0).view(4, 2, 3)
    whole, part = stack(list(x)), stack([x[1], x[2]])
    assert torch.equal(whole, x) and whole.data_ptr() == x.data_ptr()
    assert torch.equal(part, x[1:3]) and part.data_ptr() == x[1].data_ptr()


@pytest.mark.parametrize(
    "rows",
    [
        lambda x: [x[0], x[2]],
        lambda x: [x[1], x[0]],
        lambda x: [x[0].clone(), x[1]],
        lambda x: [x[0].T, x[1].T],
        lambda x: [x[0, 0], x[0, 2]],
    ],
)
def test_other_tensors_are_stacked_by_a_copy(rows):
    tensors = rows(torch.arange(36.0).view(4, 3, 3))
    assert torch.equal(stack(tensors), torch.stack(tensors))


def test_a_cpu_tensor_that_stays_is_not_copied():
    x = torch.ones(3)
    assert to_device(x, torch.device("cpu")) is x
