"""Assigns whole groups of images (patients, scenes) to training, validation and test."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from tf_detectorgan.data.records import SPLITS
from tf_detectorgan.errors import InputError


def order(seed: int, names: Collection[str]) -> list[str]:
    """Sorts names by a hash of seed and name, so that a new name does not change the order of the others."""
    return sorted(names, key=lambda name: digest(seed, name))


def digest(seed: int, name: str) -> bytes:
    """Returns a hash of seed and name; draws by it do not depend on other names."""
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


def check_shares(shares: Sequence[float]) -> None:
    """Checks the shares of training, validation and test.

    Raises:
      InputError: they are not three numbers in [0, 1] with sum 1, or the share of training is 0.
    """
    if len(shares) != 3 or any(not 0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        given = ",".join(map(str, shares))
        raise InputError(f"--splits={given}: give the shares of training, validation and test, with sum 1")
    if shares[0] == 0:
        raise InputError("--splits: the training share is 0; give training images a share")


def assign(
    groups: Mapping[str, Mapping[str, int]],
    shares: Sequence[float],
    seed: int,
    training_only: Collection[str] = (),
) -> dict[str, str]:
    """Returns the split of each group, so that the numbers of images meet the shares in each stream.

    Args:
      groups: for each group its number of images per stream.
      shares: of training, validation and test; `check_shares` accepts them.
      seed: of the order in which groups are placed.
      training_only: groups that must be in training.

    Large groups are placed first, each where the chi-square distance to the target counts grows least.
    """
    total = Counter[str]()
    for counts in groups.values():
        total.update(counts)
    target = {
        split: {s: n * share for s, n in total.items()} for split, share in zip(SPLITS, shares, strict=True)
    }
    placed: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    result = {}

    def growth(split: str, counts: Mapping[str, int]) -> float:
        return sum(
            n * (2 * (placed[split][s] - target[split][s]) + n) / target[split][s]
            for s, n in counts.items()
            if n
        )

    queue = order(seed, groups)
    queue.sort(key=lambda group: (group not in training_only, -sum(groups[group].values())))
    candidates = [split for split, share in zip(SPLITS, shares, strict=True) if share > 0]
    for group in queue:
        split = "train" if group in training_only else min(candidates, key=lambda c: growth(c, groups[group]))
        result[group] = split
        placed[split].update(groups[group])
    return result


def keep_exactly(groups: Mapping[str, Sequence[int]], count: int, seed: int) -> set[int]:
    """Returns exactly `count` image ids: whole groups in the seed's order, then a part of the next one.

    Args:
      groups: for each group its image ids.
      count: number of images to keep.
      seed: of the order of groups.

    Raises:
      InputError: there are fewer images.
    """
    available = sum(len(ids) for ids in groups.values())
    if available < count:
        raise InputError(
            f"--train_images={count}: the training split has only {available} labelled images; choose fewer"
        )
    kept: set[int] = set()
    rest = []
    for group in order(seed, groups):
        if len(kept) + len(groups[group]) <= count:
            kept.update(groups[group])
        else:
            rest.append(group)
    for group in rest:
        kept.update(list(groups[group])[: count - len(kept)])
    return kept
