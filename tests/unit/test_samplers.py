import os
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtfixmatch.data.samplers import Draw, MixedBatchSampler, build_pools, labeled_indices
from mtfixmatch.utils.errors import InputError

KEYS = {"boxes": "annotations", "map": "sem_seg_file_name"}
RECORDS = [
    {"annotations": [], "sem_seg_file_name": "0.png"},
    {"annotations": []},
    {},
    {"sem_seg_file_name": "3.png"},
    {"hidden": {"annotations": []}},
]


def take(count, **options):
    return list(islice(MixedBatchSampler(**{"seed": 3, **options}), count))


def indices(batches):
    return [draw.index for batch in batches for draw in batch]


pools_and_counts = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 4)), min_size=1, max_size=3
)


def make_pools(sizes):
    """Disjoint pools: 100, 101, ... and 200, 201, ... and so on."""
    return [list(range(100 * (p + 1), 100 * (p + 1) + size)) for p, size in enumerate(sizes)]


@settings(max_examples=40, deadline=None)
@given(pools_and_counts, st.integers(0, 2**40), st.integers(0, 30), st.sampled_from([1, 2, 3]))
def test_resume_and_ranks_do_not_change_the_global_batch(setup, seed, start, world_size):
    pools = make_pools([size for size, _ in setup])
    options = {"pools": pools, "counts": [n * world_size for _, n in setup], "seed": seed}
    whole = take(start + 3, **options)[start:]
    parts = [
        take(3, **options, start_step=start, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for i, batch in enumerate(whole):
        assert [draw.position for draw in batch] == list(range(len(batch)))
        assert {draw.step for draw in batch} == {start + i}
        together = [draw for part in parts for draw in part[i]]
        assert sorted(together, key=lambda draw: draw.position) == batch
        for part in parts:
            composition = [sum(d.index // 100 == p + 1 for d in part[i]) for p in range(len(setup))]
            assert composition == [n for _, n in setup]


@settings(max_examples=40, deadline=None)
@given(pools_and_counts, st.integers(0, 2**40))
def test_every_image_is_seen_once_per_epoch(setup, seed):
    pools = make_pools([size for size, _ in setup])
    counts = [count for _, count in setup]
    drawn = indices(take(40, pools=pools, counts=counts, seed=seed))
    for pool in pools:
        stream = [i for i in drawn if i in pool]
        whole = len(stream) // len(pool) * len(pool)
        for first in range(0, whole, len(pool)):
            assert sorted(stream[first : first + len(pool)]) == pool


def test_positions_go_through_the_pools_in_turn():
    options = {"pools": [[10, 11, 12], [20, 21, 22, 23]], "counts": [2, 4], "world_size": 2}
    (first,), (second,) = take(1, **options), take(1, **options, rank=1)
    assert [draw.position for draw in first] == [0, 2, 4]
    assert [draw.position for draw in second] == [1, 3, 5]
    assert [draw.index // 10 for draw in first + second] == [1, 2, 2, 1, 2, 2]
    assert all(isinstance(draw, Draw) and type(draw.index) is int for draw in first)


def test_a_pool_smaller_than_its_count_is_repeated():
    assert take(2, pools=[[7]], counts=[3]) == [
        [Draw(7, 0, 0), Draw(7, 0, 1), Draw(7, 0, 2)],
        [Draw(7, 1, 0), Draw(7, 1, 1), Draw(7, 1, 2)],
    ]


def test_a_batch_may_span_two_epochs():
    drawn = indices(take(3, pools=[list(range(5))], counts=[3]))
    assert sorted(drawn[:5]) == [0, 1, 2, 3, 4]
    assert len(set(drawn[5:])) == 4


def test_epochs_seeds_and_pools_are_shuffled_differently():
    pool = list(range(30))
    epochs = [indices([batch]) for batch in take(3, pools=[pool], counts=[30])]
    other_seed = indices(take(1, pools=[pool], counts=[30], seed=4))
    two_pools = indices(take(1, pools=[pool, pool], counts=[30, 30]))
    assert two_pools[:30] == epochs[0]
    orders = [*epochs, other_seed, two_pools[30:]]
    assert len(set(map(tuple, orders))) == 5


def test_iterating_again_starts_again():
    sampler = MixedBatchSampler(pools=[list(range(9))], counts=[2], seed=0, start_step=5)
    assert next(iter(sampler)) == next(iter(sampler)) == sampler.batch(5)


def test_counts_that_do_not_divide_name_the_keys():
    with pytest.raises(InputError) as error:
        take(1, pools=[[0], [1]], counts=[3, 5], world_size=2)
    message = str(error.value)
    assert "SOLVER.IMS_PER_BATCH" in message and "DATALOADER.LABELED_PER_BATCH" in message
    assert "3 + 5 images" in message and "2 processes" in message


@pytest.mark.parametrize(
    ("which", "expected"),
    [("any", [0, 1, 3]), ("all", [0]), ("boxes", [0, 1]), ("map", [0, 3])],
)
def test_labeled_indices(which, expected):
    assert labeled_indices(RECORDS, KEYS, which).tolist() == expected


def test_labeled_images_of_a_list(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).touch()
    os.symlink(tmp_path / "b.png", tmp_path / "link.png")
    (tmp_path / "mine.txt").write_text(f"{tmp_path}/c.png\nlink.png\n")
    records = [{"file_name": str(tmp_path / name)} for name in ("a.png", "b.png", "c.png")]
    which = str(tmp_path / "mine.txt")
    assert labeled_indices(records, KEYS, which).tolist() == [1, 2]
    assert build(records, labeled=which) == ([[1, 2], [0]], [2, 6])
    with pytest.raises(InputError, match=r"no image is labeled .DATALOADER.LABELED is '.*mine.txt"):
        build(records[:1], labeled=which)
    (tmp_path / "mine.txt").write_text("d.png")
    with pytest.raises(InputError, match=r"^DATALOADER.LABELED: .*mine.txt lists .*d.png, which"):
        labeled_indices(records, KEYS, which)
    with pytest.raises(InputError, match=r"^DATALOADER.LABELED: there is no folder '.*/no.txt'"):
        labeled_indices(records, KEYS, str(tmp_path / "no.txt"))


def test_labeled_indices_lists_the_choices():
    with pytest.raises(InputError, match=r"DATALOADER.LABELED is 'box'.* any, all, boxes, map"):
        labeled_indices(RECORDS, KEYS, "box")


def build(records=RECORDS, **options):
    defaults = {"sampling": "explicit", "labeled": "any", "batch_size": 8, "labeled_per_batch": 2}
    pools, counts = build_pools(records, KEYS, **{**defaults, **options})
    return [pool.tolist() for pool in pools], counts


def test_build_pools():
    assert build(sampling="uniform") == ([[0, 1, 3]], [8])
    assert build(sampling="uniform", labeled="all") == ([[0]], [8])
    assert build(sampling="uniform", labeled="map") == ([[0, 3]], [8])
    assert build(sampling="implicit") == ([[0, 1, 2, 3, 4]], [8])
    assert build() == ([[0, 1, 3], [2, 4]], [2, 6])
    assert build(labeled="all") == ([[0], [1, 2, 3, 4]], [2, 6])
    assert build(labeled="map", labeled_per_batch=7) == ([[0, 3], [1, 2, 4]], [7, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "mixed"}, "DATALOADER.SAMPLING is 'mixed'.*uniform, implicit, explicit"),
        ({"labeled": "both"}, "DATALOADER.LABELED is 'both'"),
        ({"labeled_per_batch": 0}, "DATALOADER.LABELED_PER_BATCH is 0, expected 1 to 7"),
        ({"labeled_per_batch": 8}, "DATALOADER.LABELED_PER_BATCH is 8, expected 1 to 7"),
        (
            {"records": RECORDS[:2], "labeled": "boxes"},
            "no image is unlabeled .DATALOADER.LABELED is 'boxes'",
        ),
        ({"records": [{}]}, "no image is labeled .DATALOADER.LABELED is 'any'"),
        ({"records": [{}], "sampling": "uniform"}, "DATALOADER.SAMPLING is 'uniform', but there"),
        (
            {"records": RECORDS[1:2], "sampling": "uniform", "labeled": "all"},
            "no labeled image .DATALOADER.LABELED is 'all'",
        ),
        ({"records": [], "sampling": "implicit"}, "DATALOADER.SAMPLING is 'implicit', but there"),
    ],
)
def test_build_pools_refuses(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)
