import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_detectorgan.data import splits
from tf_detectorgan.errors import InputError

GROUPS = st.dictionaries(
    st.text(min_size=1, max_size=4),
    st.fixed_dictionaries({"labelled": st.integers(0, 9), "clean": st.integers(0, 9)}),
    min_size=1,
    max_size=60,
)


@given(groups=GROUPS, seed=st.integers(0, 99), data=st.data())
@settings(max_examples=60)
def test_every_group_has_one_split_and_training_only_groups_are_in_training(groups, seed, data):
    forced = data.draw(st.sets(st.sampled_from(sorted(groups)), max_size=3))
    result = splits.assign(groups, (0.6, 0.0, 0.4), seed, forced)
    assert result.keys() == groups.keys()
    assert set(result.values()) <= {"train", "test"}  # a share of 0 gets nothing
    assert all(result[group] == "train" for group in forced)
    assert result == splits.assign(dict(reversed(groups.items())), (0.6, 0.0, 0.4), seed, forced)


@pytest.mark.parametrize("seed", range(10))
def test_each_stream_meets_the_shares_with_groups_of_different_sizes(seed):
    rng = np.random.default_rng(seed)
    groups = {
        f"p{i}": {"labelled": int(rng.poisson(0.6)), "clean": int(rng.geometric(0.5))} for i in range(300)
    }
    groups["large"] = {"labelled": 9, "clean": 20}
    result = splits.assign(groups, (0.7, 0.1, 0.2), seed)
    placed = collections.Counter()
    for group, split in result.items():
        for stream, count in groups[group].items():
            placed[stream, split] += count
    for stream in ("labelled", "clean"):
        total = sum(placed[stream, split] for split in splits.SPLITS)
        for split, share in zip(splits.SPLITS, (0.7, 0.1, 0.2), strict=True):
            assert abs(placed[stream, split] / total - share) < 0.02


def test_another_seed_gives_other_splits():
    groups = {f"p{i}": {"labelled": 1} for i in range(50)}
    assert splits.assign(groups, (0.7, 0.1, 0.2), 0) != splits.assign(groups, (0.7, 0.1, 0.2), 1)


@pytest.mark.parametrize(
    "shares", [(0.7, 0.3), (0.7, 0.2, 0.2), (-0.1, 0.5, 0.6), (0.0, 0.5, 0.5), (float("nan"),) * 3]
)
def test_invalid_shares_are_an_error(shares):
    with pytest.raises(InputError, match="--splits"):
        splits.check_shares(shares)


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=30), seed=st.integers(0, 9), data=st.data())
@settings(max_examples=60)
def test_the_exact_number_is_kept_and_at_most_one_group_is_split(sizes, seed, data):
    groups, start = {}, 0
    for number, size in enumerate(sizes):
        groups[f"g{number}"] = list(range(start, start + size))
        start += size
    count = data.draw(st.integers(1, start))
    kept = splits.keep_exactly(groups, count, seed)
    assert len(kept) == count
    cut = [ids for ids in groups.values() if 0 < len(kept & set(ids)) < len(ids)]
    assert len(cut) <= 1


def test_keeping_more_images_than_there_are_is_an_error():
    with pytest.raises(InputError, match="--train_images=57.*only 3"):
        splits.keep_exactly({"a": [1, 2], "b": [3]}, 57, 0)
