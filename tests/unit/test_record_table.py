import hashlib
import pickle
from collections import Counter

import numpy as np
import pytest
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st

from mtfixmatch.data import partial_labels
from mtfixmatch.data.partial_labels import count_labels, hide_labels
from mtfixmatch.data.record_block import MAX_SHARED, RecordBlock
from mtfixmatch.data.record_table import RecordTable, has_labels
from mtfixmatch.data.records import make_annotation, make_record
from mtfixmatch.data.samplers import _permutation

LUT = bytes(range(256))


class Reader:
    """An object that reads maps."""


def full_record(number):
    record = make_record(f"/data/{number}.png", f"{number}.png", [number + 1, 2 * number + 1])
    if number % 3 == 0:
        record["annotations"] = [make_annotation([0, 1, 2, 3], number, 0)]
    if number % 2 == 0:
        record |= {"sem_seg_file_name": f"{number}_map.png", "sem_seg_lut": LUT}
    return record


RECORDS = [full_record(number) for number in range(20)]

names = st.text(st.characters(exclude_categories=()), max_size=8)  # with lone surrogates
numbers = st.integers(0, 2**40)
odd = st.one_of(names, numbers, st.floats(allow_nan=False), st.none(), st.binary(max_size=3))
odd_records = st.fixed_dictionaries(
    {"file_name": names, "image_id": odd, "height": odd, "width": numbers},
    optional={"a": odd, "b": st.lists(odd, max_size=2), "c": st.tuples(odd, odd)},
)


@given(st.lists(odd_records, max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_table_has_the_records_that_it_was_made_of(records):
    table = RecordTable.of(records)
    assert [*table] == records and table == records
    for got, record in zip(table, records, strict=True):
        assert [*got] == [*record]
        assert [type(x) for x in got.values()] == [type(x) for x in record.values()]
    assert [*table.values("image_id")] == [record["image_id"] for record in records]
    assert has_labels(table, ["a", "b"]).tolist() == [["a" in r, "b" in r] for r in records]


def test_boxes_keep_their_mode_and_tables_are_kept_once():
    table = RecordTable.of(RECORDS)
    assert table[0]["annotations"][0]["bbox_mode"] is BoxMode.XYXY_ABS
    assert table[0]["sem_seg_lut"] is table[2]["sem_seg_lut"] is LUT
    # One kind for each combination of labels, and no bytes for an image without a label.
    (block,) = table.blocks
    assert len(block.kinds) == 4 and len(block.rows[1]) == 0


def test_objects_of_their_own_do_not_make_a_kind_for_each_record():
    readers = [Reader() for _ in range(MAX_SHARED + 5)]
    records = [full_record(1) | {"sem_seg_reader": reader} for reader in readers]
    block = RecordBlock.of([*records, full_record(1), *records[:2]])
    assert len(block.kinds) == MAX_SHARED + 2
    shared = [block.record(i)["sem_seg_reader"] for i in (0, len(records) + 1)]
    assert shared == [readers[0], readers[0]]
    assert type(block.record(MAX_SHARED + 1)["sem_seg_reader"]) is Reader
    assert block.record(len(records)) == full_record(1)


def test_places_in_a_table():
    table = RecordTable([RecordBlock.of(RECORDS[:7]), RecordBlock.of(RECORDS[7:])])
    assert len(table) == 20 and table == RECORDS and [*table] == RECORDS
    assert table[-1] == RECORDS[-1] and table[np.int64(8)] == RECORDS[8]
    assert table[3:15:4] == RECORDS[3:15:4] and [*table[::-1]] == RECORDS[::-1]
    for index in (20, -21):
        with pytest.raises(IndexError):
            table[index]
    few = table.select(np.array([9, 2, 13]))
    assert few == [RECORDS[9], RECORDS[2], RECORDS[13]] and few.select(np.array([1])) == [
        RECORDS[2]
    ]
    assert [*few.values("image_id", np.array([2, 0]))] == ["13.png", "9.png"]
    ids = [*table.values("image_id", np.array([9, 2, 3, 19]))]
    assert ids == [RECORDS[i]["image_id"] for i in (9, 2, 3, 19)]
    assert table != RECORDS[:-1] and table != 3 and RecordTable([]) == []
    assert pickle.loads(pickle.dumps(table)) == RECORDS


def test_every_access_is_a_new_record():
    table = RecordTable.of(RECORDS)
    table[0]["annotations"].clear()
    table[0]["height"] = 0
    assert table == RECORDS


def test_defaults_give_way_to_the_values_of_a_record():
    table = RecordTable.of([*RECORDS[:1], RECORDS[1] | {"range_16bit": (0, 9)}])
    table = table.with_defaults({"range_16bit": (0, 4095)})
    assert [record["range_16bit"] for record in table] == [(0, 4095), (0, 9)]
    assert table.has("range_16bit").all()


def hide_in_dicts(records, counts, seed):
    """Hide labels one record after the other."""
    hidden = {}
    for key, count in counts.items():
        ids = [record["image_id"] for record in records if key in record]
        ids.sort(key=lambda x: hashlib.sha256(f"{seed}/{key}/{x}".encode()).digest())
        hidden[key] = ids[count:] if count >= 0 else []
    result = []
    for record in records:
        keys = [key for key, ids in hidden.items() if record["image_id"] in ids]
        kept = {key: value for key, value in record.items() if key not in keys}
        more = {"hidden": record.get("hidden", {}) | {x: record[x] for x in keys}} if keys else {}
        result.append(kept | more)
    return result


@pytest.mark.parametrize("counts", [(3, 5), (0, -1), (-1, 2), (7, 10)])
def test_hiding_is_that_of_dicts(counts):
    counts = dict(zip(("annotations", "sem_seg_file_name"), counts, strict=True))
    for records in (
        RECORDS,
        RecordTable([RecordBlock.of(RECORDS[:3]), RecordBlock.of(RECORDS[3:])]),
    ):
        table = hide_labels(records, counts, mode="random", seed=5)
        assert table == hide_in_dicts(RECORDS, counts, 5)
        kept = Counter(key for record in table for key in counts if key in record)
        assert count_labels(table, [*counts]) == count_labels([*table], [*counts])
        assert count_labels(table, [*counts]).items() >= kept.items()
        places = np.array([4, 0, 6])
        assert table.select(places) == [table[i] for i in places]


def test_labels_are_hidden_twice():
    once = hide_labels(RECORDS, {"annotations": 5}, mode="random", seed=1)
    twice = hide_labels(once, {"annotations": 2, "sem_seg_file_name": 3}, mode="random", seed=2)
    dicts = hide_in_dicts([*once], {"annotations": 2, "sem_seg_file_name": 3}, 2)
    lost = np.flatnonzero(~once.has("annotations"))
    assert twice == dicts and "annotations" in once.select(lost)[0]["hidden"]


def test_ids_of_equal_first_words_are_ranked_by_the_others(monkeypatch):
    digests = [b"\x00" * 8 + bytes([i]) * 24 for i in (7, 255, 3)] + [b"\xff" * 32, b"\x00" * 32]

    class Digest:
        def __init__(self, data):
            self.digest = lambda: digests[int(data.decode()[-1])]

    monkeypatch.setattr(partial_labels.hashlib, "sha256", Digest)
    order = partial_labels._ranking(map(str, range(5)), "1/")
    assert order.tolist() == sorted(range(5), key=lambda i: digests[i]) == [4, 2, 0, 1, 3]


@pytest.mark.parametrize("size", [1, 9, 1000])
def test_permutations_of_small_numbers_are_those_of_large_ones(size):
    expected = np.random.default_rng([3, 1, 4]).permutation(size)
    assert _permutation(size, 3, 1, 4).dtype == np.int32
    assert (_permutation(size, 3, 1, 4) == expected).all()
