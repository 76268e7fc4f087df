"""Which images are for training, validation and test: whole groups (patients, scenes), never one image."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from tf_detectorgan.data.records import SPLITS
from tf_detectorgan.errors import InputError


def order(seed: int, names: Collection[str]) -> list[str]:
    """Names in an order by a hash of seed and name: a further name does not reshuffle the others."""
    return sorted(names, key=lambda name: digest(seed, name))


def digest(seed: int, name: str) -> bytes:
    """A hash of seed and name: what is drawn by it does not change with other names."""
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


def check_shares(shares: Sequence[float]) -> None:
    """Shares must be three numbers in [0, 1] with sum 1, and training must have one.

    Raises:
      InputError: they are not.
    """
    if len(shares) != 3 or any(not 0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise InputError(
            f"--splits={','.join(map(str, shares))}: the shares of training, validation, test must sum to 1"
        )
    if shares[0] == 0:
        raise InputError("--splits: the training share is 0")


def assign(
    groups: Mapping[str, Mapping[str, int]],
    shares: Sequence[float],
    seed: int,
    training_only: Collection[str] = (),
) -> dict[str, str]:
    """The split of every group, such that the shares are met in images, for each stream by itself.

    Args:
      groups: for each group its number of images per stream.
      shares: of training, validation and test, which `check_shares` lets through.
      seed: of the order in which groups are placed.
      training_only: groups that must be trained on.

    Large groups are placed first, each where the chi-square distance to the wanted counts grows least.
    """
    total = Counter[str]()
    for counts in groups.values():
        total.update(counts)
    wanted = {
        split: {s: n * share for s, n in total.items()} for split, share in zip(SPLITS, shares, strict=True)
    }
    placed: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    result = {}

    def growth(split: str, counts: Mapping[str, int]) -> float:
        return sum(
            n * (2 * (placed[split][s] - wanted[split][s]) + n) / wanted[split][s]
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
    """Exactly `count` of the images: whole groups in the seed's order, then a part of the next one.

    Args:
      groups: for each group its image ids.
      count: number of images to keep.
      seed: of the order of groups.

    Raises:
      InputError: there are fewer images.
    """
    available = sum(len(ids) for ids in groups.values())
    if available < count:
        raise InputError(f"--train_images={count}: the training split has only {available} labelled images")
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
