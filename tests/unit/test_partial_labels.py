import copy
import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtfixmatch.data.partial_labels import (
    count_labels,
    hide_by_manifest,
    hide_labels,
    write_manifest,
)
from mtfixmatch.utils.errors import InputError

A, B = "first_label", "second_label"


def make_records(count, unlabeled=()):
    """Records with labels A and B, except that those in `unlabeled` have neither."""
    return [
        {"file_name": f"{i}.png", "image_id": f"city_{i:06d}"}
        | ({} if i in unlabeled else {A: [i], B: f"{i}_map.png"})
        for i in range(count)
    ]


def kept(records, key):
    return {record["image_id"] for record in records if key in record}


def test_the_subset_is_this_one_for_ever():
    """Worked out apart: the ids with the smallest sha256 of "<seed>/<stream>/<image id>"."""
    records = make_records(10)
    nested = hide_labels(records, {A: 3, B: 1}, mode="nested", seed=1)
    assert kept(nested, A) == {"city_000009", "city_000001", "city_000008"}
    assert kept(nested, B) == {"city_000009"}
    random = hide_labels(records, {A: 3, B: 1}, mode="random", seed=1)
    assert kept(random, A) == {"city_000005", "city_000006", "city_000007"}
    assert kept(random, B) == {"city_000001"}


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 25), st.integers(-5, 10**9), st.sampled_from(["nested", "random"]))
def test_invariants(data, size, seed, mode):
    records = make_records(size)
    counts = {key: data.draw(st.integers(-1, size)) for key in (A, B)}
    original = copy.deepcopy(records)
    hidden = hide_labels(records, counts, mode=mode, seed=seed)
    assert records == original
    for key, count in counts.items():
        assert len(kept(hidden, key)) == (size if count == -1 else count)
    for before, after in zip(records, hidden, strict=True):
        assert {k: v for k, v in after.items() if k != "hidden"} | after.get("hidden", {}) == before

    order = data.draw(st.permutations(range(size)))
    shuffled = hide_labels([records[i] for i in order], counts, mode=mode, seed=seed)
    assert shuffled == [hidden[i] for i in order]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 1000))
def test_smaller_subsets_lie_within_larger_ones(a, b, seed):
    hidden = hide_labels(make_records(20), {A: a, B: b}, mode="nested", seed=seed)
    small, large = sorted([kept(hidden, A), kept(hidden, B)], key=len)
    assert small <= large
    alone = hide_labels(make_records(20), {A: a}, mode="nested", seed=seed)
    assert kept(alone, A) == kept(hidden, A)


def test_random_subsets_are_independent():
    records = make_records(400)
    hidden = hide_labels(records, {A: 200, B: 200}, mode="random", seed=0)
    both = len(kept(hidden, A) & kept(hidden, B))
    assert 75 <= both <= 125  # 100 expected, standard deviation 5
    again = hide_labels(records, {A: 200, B: 50}, mode="random", seed=0)
    assert kept(again, A) == kept(hidden, A)


def test_another_seed_gives_another_subset():
    records = make_records(100)
    subsets = [
        frozenset(kept(hide_labels(records, {A: 10}, mode="nested", seed=s), A)) for s in range(5)
    ]
    assert len(set(subsets)) == 5


def test_only_labeled_images_count():
    records = make_records(6, unlabeled={0, 2, 4})
    hidden = hide_labels(records, {A: 2}, mode="nested", seed=0)
    assert len(kept(hidden, A)) == 2 and kept(hidden, B) == kept(records, B)
    assert all("hidden" not in hidden[i] for i in (0, 2, 4))


def test_hidden_labels_are_moved():
    (record,) = hide_labels(make_records(1), {A: 0}, mode="nested", seed=0)
    assert record == {
        "file_name": "0.png",
        "image_id": "city_000000",
        B: "0_map.png",
        "hidden": {A: [0]},
    }
    (twice,) = hide_labels([record], {B: 0}, mode="nested", seed=0)
    assert twice["hidden"] == {A: [0], B: "0_map.png"}
    assert record["hidden"] == {A: [0]}


def test_an_empty_label_is_a_label():
    records = [{"file_name": "0.png", "image_id": "0", A: []}]
    assert count_labels(records, [A])[A] == 1
    assert hide_labels(records, {A: 0}, mode="nested", seed=0)[0]["hidden"] == {A: []}


def test_count_labels():
    records = make_records(5, unlabeled={0})
    del records[1][A], records[2][A]
    assert count_labels(records, [A, B]) == {A: 2, B: 4, "all": 2, "none": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": {A: 5}}, "first_label = 5, but only 4 images have it"),
        ({"counts": {B: -2}}, r"second_label = -2, expected -1 \(all\)"),
        ({"mode": "nest"}, "'nest' is none of nested, random"),
    ],
)
def test_bad_input(options, message):
    arguments = {"counts": {A: 1}, "mode": "nested", "seed": 0, **options}
    with pytest.raises(InputError, match=message):
        hide_labels(make_records(5, unlabeled={3}), **arguments)


def test_a_repeated_image_id_is_named():
    records = [*make_records(2), {"file_name": "other.png", "image_id": "city_000001"}]
    with pytest.raises(InputError, match=r"other\.png: image id 'city_000001' occurs twice"):
        hide_labels(records, {}, mode="nested", seed=0)


# Manifests

NAMES = {"first": A, "second": B}


def write_subset(path, records, **counts):
    hidden = hide_labels(records, {A: 3, B: 2} | counts, mode="random", seed=1)
    write_manifest(hidden, NAMES, str(path), seed=1)
    return hidden


def test_a_manifest_gives_the_same_subsets_back(tmp_path):
    records = make_records(10, unlabeled={4})
    path = tmp_path / "subsets.json"
    hidden = write_subset(path, records)
    assert hide_by_manifest(records, NAMES, str(path)) == hidden

    content = json.loads(path.read_text())
    assert content["seed"] == 1 and content["num_images"] == 10
    images = content["labels"]["second"]["images"]
    assert images == sorted(kept(hidden, B)) and content["labels"]["second"]["count"] == 2
    digest = hashlib.sha256("\n".join(images).encode()).hexdigest()
    assert content["labels"]["second"]["sha256"] == digest


def test_a_manifest_serves_a_network_of_one_of_its_tasks(tmp_path):
    records = make_records(10)
    hidden = write_subset(tmp_path / "m.json", records)
    alone = hide_by_manifest(records, {"second": B}, str(tmp_path / "m.json"))
    assert kept(alone, B) == kept(hidden, B) and len(kept(alone, A)) == 10


def spoil(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["labels"].pop("second"), "LABEL_MANIFEST .*m.json: .*for second"),
        (lambda c: c["labels"]["first"]["images"].pop(), "m.json: .*listed for first .* hash"),
        (lambda c: c.pop("labels"), "m.json: expected the label_subsets.json of a run"),
    ],
)
def test_a_spoilt_manifest_is_named(tmp_path, change, message):
    path = tmp_path / "m.json"
    write_subset(path, make_records(10))
    spoil(path, change)
    with pytest.raises(InputError, match=message):
        hide_by_manifest(make_records(10), NAMES, str(path))


def test_a_manifest_of_other_data_or_no_manifest_is_named(tmp_path):
    path = tmp_path / "m.json"
    write_subset(path, make_records(10), **{A: 10})
    with pytest.raises(InputError, match="5 of its images for first .*'city_000005'"):
        hide_by_manifest(make_records(10, unlabeled=range(5, 10)), NAMES, str(path))
    with pytest.raises(InputError, match="LABEL_MANIFEST no.json: cannot be read .No such file"):
        hide_by_manifest(make_records(10), NAMES, "no.json")
    for text, message in (("{", "is not valid JSON"), ("{}", "expected the label_subsets.json")):
        path.write_text(text)
        with pytest.raises(InputError, match=f"m.json: {message}"):
            hide_by_manifest(make_records(10), NAMES, str(path))
