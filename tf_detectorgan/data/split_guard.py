"""Nothing of a test image may be trained on: not its group, and not the picture itself under another name.

A picture is known again by its decoded pixels, or nearly by a perceptual hash: the signs of its 255 slowest
cosine waves against their median (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash
Functions", 3.2.1, with 16 x 16 waves instead of 8 x 8). Why, and whence the limit: docs/decisions/0081.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy.fft import dctn

from tf_detectorgan.data import records, resize
from tf_detectorgan.data.records import SPLITS, STREAMS, Dataset
from tf_detectorgan.errors import InputError

NEAR = 10  # bits of 255 in which nearly equal pictures may differ
_SIDE, _WAVES = 64, 16  # pixels of the reduced picture, waves an axis
_FLAT = 1.0  # of 255 levels: with a smaller deviation the waves are noise, and tell nothing
_SHOWN = 10  # pairs in a message
_ROWS = 256  # pictures compared at a time with all of another split: 3 MB for 3,000 of them


class Fingerprint(NamedTuple):
    """What a picture is known again by."""

    digest: bytes  # of its pixels
    signs: np.ndarray | None  # [255] int8, -1 or 1; None: all but one grey


Marked = Sequence[tuple[str, Fingerprint]]  # names, and what the pictures are known again by


class SharedImage(NamedTuple):
    """A picture that is in two splits."""

    first: str  # file name and split
    second: str
    bits: int  # in which the hashes differ; -1: equal pixels

    def __str__(self) -> str:
        how = "equal pixels" if self.bits < 0 else f"{self.bits} of 255 bits differ"
        return f"{self.first} and {self.second}: {how}"


def fingerprint(pixels: np.ndarray) -> Fingerprint:
    """The fingerprint of pixels [H, W, C], uint8 or uint16; grey in one channel or three is the same."""
    grey = pixels[..., :1] if resize.is_grey(pixels) else pixels
    digest = hashlib.sha256(f"{grey.shape} {grey.dtype}".encode() + grey.tobytes()).digest()
    reduced = resize.resize(resize.convert(pixels, 1, 8), _SIDE, _SIDE)[..., 0]
    if reduced.std() * 255 / np.iinfo(pixels.dtype).max < _FLAT:
        return Fingerprint(digest, None)
    waves = dctn(reduced, norm="ortho")[:_WAVES, :_WAVES].ravel()[1:]  # without the mean
    return Fingerprint(digest, np.where(waves > np.median(waves), 1, -1).astype(np.int8))


def check(splits: Mapping[str, Marked], allow: bool) -> list[str]:
    """A note on pictures that are in two of training, validation and test; empty when there are none.

    Args:
      splits: for each split, such as "train_clean", names and fingerprints of its images.
      allow: go on although there are some.

    Raises:
      InputError: there are some and `allow` is false.
    """
    count, nearest = pairs(splits)
    if not count:
        return []
    shown = [str(pair) for pair in nearest]
    more = [f"... and {count - _SHOWN} more"] if count > _SHOWN else []
    said = f"a picture is in two splits, number of pairs {count}:\n  " + "\n  ".join(shown + more)
    if not allow:
        raise InputError(
            f"{said}\nPut both into one group, leave one out, or go on with them by --allow_duplicates"
        )
    return [said]


def pairs(splits: Mapping[str, Marked]) -> tuple[int, list[SharedImage]]:
    """The number of pairs of one picture in two of training, validation and test, and the ten nearest."""
    parts: dict[str, list[tuple[str, Fingerprint]]] = {part: [] for part in SPLITS}
    for split, rows in splits.items():
        parts[split.split("_")[0]] += [(f"{name} ({split})", mark) for name, mark in rows]
    count, nearest = 0, list[SharedImage]()  # of pictures all alike there are too many pairs to hold
    for one, other in combinations(SPLITS, 2):
        for pair in chain(_equal(parts[one], parts[other]), _near(parts[one], parts[other])):
            count += 1
            if len(nearest) < _SHOWN or pair.bits < nearest[-1].bits:
                nearest = sorted([*nearest, pair], key=lambda p: p.bits)[:_SHOWN]
    return count, nearest


def _equal(ones: Marked, others: Marked) -> Iterator[SharedImage]:
    by_digest: dict[bytes, list[str]] = {}
    for name, mark in ones:
        by_digest.setdefault(mark.digest, []).append(name)
    return (SharedImage(one, name, -1) for name, mark in others for one in by_digest.get(mark.digest, []))


def _near(ones: Marked, others: Marked) -> Iterator[SharedImage]:
    """Pairs of nearly, but not quite, equal pictures."""
    (names, rows), (other_names, columns) = _hashes(ones), _hashes(others)
    for start in range(0, len(rows), _ROWS):
        differ = (_WAVES**2 - 1 - rows[start : start + _ROWS] @ columns.T) / 2  # exact: sums of 255 signs
        for i, j in np.argwhere(differ <= NEAR):
            (name, digest), (other, other_digest) = names[start + i], other_names[j]
            if digest != other_digest:
                yield SharedImage(name, other, int(differ[i, j]))


def _hashes(marked: Marked) -> tuple[list[tuple[str, bytes]], np.ndarray]:
    """Names and digests of the n pictures that have a hash, and their signs [n, 255] float32."""
    hashed = [(name, mark.digest, mark.signs) for name, mark in marked if mark.signs is not None]
    signs = np.array([signs for _, _, signs in hashed], np.float32).reshape(-1, _WAVES**2 - 1)
    return [(name, digest) for name, digest, _ in hashed], signs


def check_parents(dataset: Dataset, synthetic: tf.data.Dataset, source: str) -> None:
    """Refuses synthetic images of which a parent belongs to validation or test.

    Args:
      dataset: the real images.
      synthetic: serialized Examples ([] string), whose groups are those of both parents.
      source: their file, for errors.

    Raises:
      InputError: there is such an image.
    """
    held_out = {
        group: part
        for part in SPLITS[1:]
        for stream in STREAMS
        for image in dataset.listed(f"{part}_{stream}")
        for group in image.groups
    }
    for image in records.listed(synthetic):
        for group in held_out.keys() & image.groups:
            raise InputError(
                f"{source}: {image.file_name} was made of an image of group {group}, which is in "
                f"{held_out[group]}; synthesize again from training images only"
            )
