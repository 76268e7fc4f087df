"""Checks that no test image is trained on: neither a copy under another name, nor an image of its group.

Copies are found by a hash of the decoded pixels, near copies by a perceptual hash. The latter is the signs of
the 255 lowest DCT coefficients relative to their median (Zauner 2010, "Implementation and Benchmarking of
Perceptual Image Hash Functions", 3.2.1, with 16 x 16 coefficients instead of 8 x 8; decision 0081).
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

NEAR = 10  # of 255 bits: near copies differ in at most so many
_SIDE, _DCT_SIDE = 64, 16  # sides: pixels of the reduced image, and its lowest DCT coefficients
_FLAT = 1.0  # of 255 levels: with a smaller standard deviation the coefficients are noise
_SHOWN = 10  # pairs in a message
_ROWS = 256  # images compared at a time with all of another split: 3 MB for 3,000 of them


class Fingerprint(NamedTuple):
    """The hashes by which copies of an image are found."""

    digest: bytes  # of its pixels
    signs: np.ndarray | None  # [255] int8, -1 or 1; None: nearly uniform grey


Named = Sequence[tuple[str, Fingerprint]]  # names and fingerprints of images


class SharedImage(NamedTuple):
    """A pair of copies of one image in two splits."""

    first: str  # file name and split
    second: str
    bits: int  # in which the hashes differ; -1: equal pixels

    def __str__(self) -> str:
        how = "equal pixels" if self.bits < 0 else f"{self.bits} of 255 bits differ"
        return f"{self.first} and {self.second}: {how}"


def fingerprint(pixels: np.ndarray) -> Fingerprint:
    """Returns the fingerprint of pixels [H, W, C], uint8 or uint16; one and three grey channels are equal."""
    grey = pixels[..., :1] if resize.is_grey(pixels) else pixels
    digest = hashlib.sha256(f"{grey.shape} {grey.dtype}".encode() + grey.tobytes()).digest()
    reduced = resize.resize(resize.convert(pixels, 1, 8), _SIDE, _SIDE)[..., 0]
    if reduced.std() * 255 / np.iinfo(pixels.dtype).max < _FLAT:
        return Fingerprint(digest, None)
    coefficients = dctn(reduced, norm="ortho")[:_DCT_SIDE, :_DCT_SIDE].ravel()[1:]  # without the mean
    return Fingerprint(digest, np.where(coefficients > np.median(coefficients), 1, -1).astype(np.int8))


def check(splits: Mapping[str, Named], allow: bool) -> list[str]:
    """Returns a note if images are in two of training, validation and test, otherwise an empty list.

    Args:
      splits: for each split, such as "train_clean", names and fingerprints of its images.
      allow: return the note instead of raising an error.

    Raises:
      InputError: there are such images and `allow` is false.
    """
    count, nearest = pairs(splits)
    if not count:
        return []
    shown = [str(pair) for pair in nearest]
    more = [f"... and {count - _SHOWN} more"] if count > _SHOWN else []
    note = f"images are in two splits, number of pairs {count}:\n  " + "\n  ".join(shown + more)
    if not allow:
        raise InputError(
            f"{note}\nPut both into one group, leave one out, or allow them with --allow_duplicates"
        )
    return [note]


def pairs(splits: Mapping[str, Named]) -> tuple[int, list[SharedImage]]:
    """Returns the number of pairs of copies in two of training, validation and test, and the ten nearest."""
    parts: dict[str, list[tuple[str, Fingerprint]]] = {part: [] for part in SPLITS}
    for split, rows in splits.items():
        parts[split.split("_")[0]] += [(f"{name} ({split})", hashes) for name, hashes in rows]
    count, nearest = 0, list[SharedImage]()  # not all pairs are kept: there can be too many
    for one, other in combinations(SPLITS, 2):
        for pair in chain(_equal(parts[one], parts[other]), _near(parts[one], parts[other])):
            count += 1
            if len(nearest) < _SHOWN or pair.bits < nearest[-1].bits:
                nearest = sorted([*nearest, pair], key=lambda p: p.bits)[:_SHOWN]
    return count, nearest


def _equal(ones: Named, others: Named) -> Iterator[SharedImage]:
    by_digest: dict[bytes, list[str]] = {}
    for name, hashes in ones:
        by_digest.setdefault(hashes.digest, []).append(name)
    return (SharedImage(one, name, -1) for name, hashes in others for one in by_digest.get(hashes.digest, []))


def _near(ones: Named, others: Named) -> Iterator[SharedImage]:
    """Yields pairs of nearly, but not exactly, equal images."""
    (names, rows), (other_names, columns) = _hashes(ones), _hashes(others)
    for start in range(0, len(rows), _ROWS):
        differ = (_DCT_SIDE**2 - 1 - rows[start : start + _ROWS] @ columns.T) / 2  # exact: sums of 255 signs
        for i, j in np.argwhere(differ <= NEAR):
            (name, digest), (other, other_digest) = names[start + i], other_names[j]
            if digest != other_digest:
                yield SharedImage(name, other, int(differ[i, j]))


def _hashes(named: Named) -> tuple[list[tuple[str, bytes]], np.ndarray]:
    """Returns names and digests of the n images with a perceptual hash, and their signs [n, 255] float32."""
    hashed = [(name, hashes.digest, hashes.signs) for name, hashes in named if hashes.signs is not None]
    signs = np.array([signs for _, _, signs in hashed], np.float32).reshape(-1, _DCT_SIDE**2 - 1)
    return [(name, digest) for name, digest, _ in hashed], signs


def check_parents(dataset: Dataset, synthetic: tf.data.Dataset, source: str) -> None:
    """Checks that no synthetic image was made from an image of a group in validation or test.

    Args:
      dataset: the real images.
      synthetic: serialized Examples ([] string) with the groups of the background and the matched image.
      source: their file, for errors.

    Raises:
      InputError: a synthetic image was made from such an image.
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
                f"{source}: {image.file_name} was made from an image of group {group}, which is in "
                f"{held_out[group]}; synthesize again from training images only"
            )
