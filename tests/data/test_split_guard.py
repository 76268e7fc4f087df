"""Copies of an image in two splits are found; images of other patients are not reported as copies."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy.fft import idctn

from tf_detectorgan.data import chest_film, image_files, records, split_guard
from tf_detectorgan.data.split_guard import NEAR, fingerprint
from tf_detectorgan.errors import InputError
from tf_detectorgan.prepare import Prepare, prepare


def film(index, size=128):
    """Returns a generated chest X-ray [size, size, 1] uint8."""
    image, _ = chest_film.draw(0, index, size, nodule=True)
    return np.rint(255 * image[..., None]).astype(np.uint8)


def distance(a, b):
    return int((fingerprint(a).signs != fingerprint(b).signs).sum())


def jpeg(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))[..., None]


def half(pixels):
    small = Image.fromarray(pixels[..., 0]).resize((pixels.shape[1] // 2, pixels.shape[0] // 2))
    return np.asarray(small)[..., None]


ALTERED = {
    "saved as JPEG": jpeg,
    "half as large": half,
    "of less contrast": lambda p: np.rint(0.8 * p + 20).astype(np.uint8),
    "of 16 bits": lambda p: p.astype(np.uint16) * 257,
    "with noise": lambda p: (
        (p + np.random.default_rng(0).integers(0, 3, p.shape)).clip(0, 255).astype(np.uint8)
    ),
}


def test_signs_of_an_image_with_known_dct_coefficients():
    """Of 255 coefficients, the 127 larger ones are above the median by construction."""
    amplitudes = np.random.default_rng(0).permutation(255) - 127.0
    coefficients = np.zeros([64, 64])
    coefficients[:16, :16] = np.concatenate([[0], 200 * amplitudes]).reshape(16, 16)
    image = np.rint(idctn(coefficients, norm="ortho") + 32768).astype(np.uint16)
    np.testing.assert_array_equal(fingerprint(image[..., None]).signs == 1, amplitudes > 0)


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_copy_differs_in_at_most_near_bits(how):
    for index in range(3):
        original = film(index)
        altered = ALTERED[how](original)
        assert fingerprint(original).digest != fingerprint(altered).digest
        assert distance(original, altered) <= NEAR


def test_one_and_three_grey_channels_have_the_same_digest():
    pixels = film(0)
    assert fingerprint(pixels).digest == fingerprint(np.repeat(pixels, 3, -1)).digest
    assert fingerprint(pixels).digest != fingerprint(pixels[:, ::-1]).digest
    assert (
        fingerprint(np.zeros([4, 8, 1], np.uint8)).digest != fingerprint(np.zeros([8, 4, 1], np.uint8)).digest
    )


def test_nearly_uniform_images_are_compared_by_digest_only():
    """Otherwise any two empty images would be near copies."""
    flat = np.full([64, 64, 1], 90, np.uint8)
    speckled = flat + (np.random.default_rng(0).random(flat.shape) < 0.01).astype(np.uint8)
    assert fingerprint(flat).signs is None
    assert fingerprint(speckled).signs is None
    marked = {"train_clean": [("a", fingerprint(flat))], "test_clean": [("b", fingerprint(speckled))]}
    assert split_guard.check(marked, False) == []
    marked["test_clean"] = [("b", fingerprint(flat.copy()))]
    with pytest.raises(InputError, match=r"a \(train_clean\) and b \(test_clean\): equal pixels"):
        split_guard.check(marked, False)


def test_pairs_are_reported_across_splits_only_and_can_be_allowed():
    a, b, c = (fingerprint(film(i)) for i in range(3))
    near = fingerprint(jpeg(film(1)))
    marked = {
        "train_labelled": [("a.png", a), ("a again.png", a)],
        "train_clean": [("b.png", b), ("b.jpg", near)],
        "validation_labelled": [("c.png", c)],
    }
    assert split_guard.check(marked, False) == []
    marked |= {"test_labelled": [("x.png", a)], "test_clean": [("y.jpg", near), ("z.png", c)]}
    with pytest.raises(InputError) as caught:
        split_guard.check(marked, False)
    expected = {
        "a.png (train_labelled) and x.png (test_labelled): equal pixels",
        "a again.png (train_labelled) and x.png (test_labelled): equal pixels",
        "b.jpg (train_clean) and y.jpg (test_clean): equal pixels",
        "c.png (validation_labelled) and z.png (test_clean): equal pixels",
        f"b.png (train_clean) and y.jpg (test_clean): {distance(film(1), jpeg(film(1)))} of 255 bits differ",
    }
    first, *lines, last = str(caught.value).splitlines()
    assert {line.strip() for line in lines} == expected
    assert first.endswith("number of pairs 5:")
    assert "--allow_duplicates" in last
    (note,) = split_guard.check(marked, True)
    assert "number of pairs 5:" in note


def test_pairs_do_not_depend_on_the_block_size(monkeypatch):
    rows = [(str(i), fingerprint(film(i))) for i in range(5)]
    marked = {"train_clean": rows, "test_clean": [("last", fingerprint(jpeg(film(4))))]}
    (whole,) = split_guard.check(marked, True)
    monkeypatch.setattr(split_guard, "_ROWS", 2)
    assert split_guard.check(marked, True) == [whole]
    assert "4 (train_clean) and last (test_clean)" in whole


def test_prepare_refuses_a_copy_of_a_training_image_in_test(tmp_path):
    """A JPEG copy of one of the 8 training images is added to the 4 test images."""
    images, boxes = [], []
    for number in range(12):
        name = f"{number}.png"
        Image.fromarray(film(number)[..., 0]).save(tmp_path / name)
        images.append({"id": number, "file_name": name, "part": "train" if number < 8 else "test"})
        if number % 2:
            boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": [3, 6, 9, 9]})
    Image.fromarray(film(2)[..., 0]).save(tmp_path / "copy.jpg", quality=75)
    images.append({"id": 12, "file_name": "copy.jpg", "part": "test"})
    file = tmp_path / "boxes.json"
    categories = [{"id": 1, "name": "spot"}]
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    options = {"annotations": str(file), "out": str(tmp_path / "set"), "split_key": "part"}
    with pytest.raises(
        InputError, match=r"number of pairs 1:\n.*2.png \(train_clean\) and copy.jpg \(test_clean\)"
    ):
        prepare(Prepare(**options))
    assert not (tmp_path / "set").exists()
    prepare(Prepare(**options, allow_duplicates=True))
    assert records.open_dataset(tmp_path / "set").count("test_clean") == 3


def false_alarms(images, groups):
    """Returns the number of pairs of different groups within NEAR bits, and of all such pairs."""
    signs = np.array([fingerprint(p).signs for p in images], np.float32)
    differ = (255 - signs @ signs.T) / 2
    other = np.triu(np.not_equal.outer(groups, groups), 1)
    return int((differ[other] <= NEAR).sum()), int(other.sum())


def test_no_false_alarms_between_patients_of_the_phantom():
    index = range(250)
    alarms, pairs = false_alarms(
        [film(i, 64) for i in index], np.array([chest_film.patient(i) for i in index])
    )
    assert (alarms, pairs > 30000) == (0, True)


def test_no_false_alarms_between_patients_of_real_x_rays(real_data):
    """721 X-rays of 509 patients."""
    folder = real_data("nih_cxr_opacity")
    rows = json.loads((folder / "annotations.json").read_text())["images"]
    images = [image_files.read_image(folder / row["file_name"]) for row in rows]
    alarms, pairs = false_alarms(images, np.array([row["split_group"] for row in rows]))
    assert (alarms, pairs > 250000) == (0, True)


def test_a_synthetic_image_made_from_a_held_out_group_is_refused(tiny_phantom):
    dataset = records.open_dataset(tiny_phantom("guarded"))

    def example(number, groups):
        return records.encode(
            dataset.features,
            {
                "image": np.zeros(dataset.image_shape, np.uint8),
                "image_id": number,
                "file_name": f"images/{number}.png",
                "groups": groups,
                "boxes": [[1, 1, 5, 5]],
                "labels": [0],
                "valid_size": (32, 32),
                "source_size": (32, 32),
                "provenance": "{}",
            },
        )

    def group(split):
        (first,) = dataset.serialized(split).take(1)
        return dataset.decode(first).groups[0].numpy().decode()

    def synthetic(*all_groups):
        return tf.data.Dataset.from_tensor_slices([example(i, g) for i, g in enumerate(all_groups)])

    good = [group("train_labelled"), group("train_clean")]
    split_guard.check_parents(dataset, synthetic(good, good), "made.tfrecord")
    for split in ("test_labelled", "test_clean", "validation_labelled"):
        bad = [good[0], group(split)]
        expected = f"made.tfrecord: images/1.png .*{bad[1]}, which is in {split.split('_')[0]}"
        with pytest.raises(InputError, match=expected):
            split_guard.check_parents(dataset, synthetic(good, bad), "made.tfrecord")
