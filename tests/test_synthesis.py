"""Record file, COCO file and PNGs of a synthetic set agree; its provenance is correct."""

import json
import shutil
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools.coco import COCO
from tensorflow.python.framework.config import is_op_determinism_enabled

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan import disk, synthesis
from tf_detectorgan.data import records
from tf_detectorgan.data.placement import Placement
from tf_detectorgan.errors import InputError, Interrupted
from tf_detectorgan.models.generators import Composition, paste, reach
from tf_detectorgan.training.loop import StopSignal

SIDE, COUNT, SEVERAL = 32, 7, 12
NAMES = ("blowhole", "crack")


class Tiles:
    """4 clean and 5 labelled images in memory, with the interface of `records.Dataset`."""

    name = "tiles"
    class_names = NAMES
    max_boxes = 2

    def __init__(self, bit_depth, channels):
        self.image_shape, self.bit_depth = (SIDE, SIDE, channels), bit_depth
        self.features = records.features(self.image_shape, bit_depth, NAMES)
        rng = np.random.default_rng(0)
        self.examples = {
            "train_clean": [self._example(rng, k, 0) for k in range(4)],
            "train_labelled": [self._example(rng, 100 + k, 1 + k % 2) for k in range(5)],
        }

    def _example(self, rng, image_id, boxes):
        corner = rng.integers(0, 14, (boxes, 2))
        height = SIDE - 4 * (image_id % 2)  # some images are padded at the bottom
        image = np.zeros(self.image_shape, np.int64)
        image[:height] = rng.integers(0, 2**self.bit_depth, (height, *self.image_shape[1:]))
        return {
            "image": image.astype(np.uint16 if self.bit_depth == 16 else np.uint8),
            "image_id": image_id,
            "file_name": f"{image_id}.png",
            "groups": [f"tile{image_id % 100 // 2}"],  # 0 and 1 share a tile with 100 and 101
            "boxes": np.concatenate([corner, corner + rng.integers(4, 10, (boxes, 2))], 1),
            "labels": rng.integers(0, 2, boxes),
            "valid_size": (height, SIDE),
            "source_size": (height, SIDE),
            "provenance": "",
        }

    def count(self, split):
        return len(self.examples.get(split, []))

    def serialized(self, split):
        strings = [records.encode(self.features, e) for e in self.examples.get(split, [])]
        return tf.data.Dataset.from_tensor_slices(tf.constant(strings, tf.string, [len(strings)]))

    def decode(self, serialized):
        return records.decode(self.features, serialized)

    def by_id(self, image_id):
        return {e["image_id"]: e for split in self.examples.values() for e in split}[image_id]


COMPOSITION = Composition("blend_in_box", "mask_and_object", 0.25, 2)


def cut_and_paste(batch):
    x, insertion = batch.x, batch.insertion
    return paste(x, insertion.exemplars, COMPOSITION.blend(insertion.boxes, insertion.content, SIDE, SIDE))


def make(
    dataset,
    directory,
    insert=cut_and_paste,
    *,
    count=COUNT,
    batch_size=3,
    seed=0,
    objects=1,
    held_out=None,
    min_audit=0.0,
    **more,
):
    placement = Placement(candidates=3, flip_objects=True, max_shift=1.0, objects=objects)
    inserter = synthesis.Inserter("cut_paste", insert, placement, 0.25, "abc")
    screening = synthesis.Screening(held_out, min_audit)
    with mock.patch.object(synthesis, "ROWS", batch_size * objects):
        synthesis.synthesize(
            inserter, dataset, directory, count=count, seed=seed, screening=screening, **more
        )
    strings = records.read_records(directory / "synthetic.tfrecord")
    schema = records.read_features(directory)
    return [records.decode(schema, string) for string in strings]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Returns sets(bit_depth, channels, objects) -> (data set, directory, records), cached."""
    finished = {}

    def once(bit_depth=8, channels=1, objects=1):
        key = bit_depth, channels, objects
        if key not in finished:
            dataset = Tiles(bit_depth, channels)
            directory = tmp_path_factory.mktemp("run") / "synthetic"
            count = COUNT if objects == 1 else SEVERAL
            finished[key] = dataset, directory, make(dataset, directory, objects=objects, count=count)
        return finished[key]

    return once


@pytest.fixture(params=[(8, 1), (16, 1), (8, 3), (16, 3)], ids=lambda p: f"{p[0]}bit-{p[1]}")
def made(request, sets):
    return sets(*request.param)


def test_full_disk_keeps_the_existing_set(small_disk):
    (small_disk / "synthetic").mkdir()
    (small_disk / "synthetic" / "synthetic.tfrecord").write_bytes(b"old")
    with pytest.raises((OSError, tf.errors.ResourceExhaustedError)) as caught:
        make(Tiles(8, 1), small_disk / "synthetic")
    assert disk.fault(caught.value).endswith("No space left on device")
    assert [str(path.relative_to(small_disk)) for path in sorted(small_disk.rglob("*"))] == [
        "synthetic",
        "synthetic/synthetic.tfrecord",
    ]


def png(file):
    if Image.open(file).mode == "RGB":  # Pillow halves 16-bit colour, TensorFlow does not
        return tf.io.decode_png(
            file.read_bytes(), dtype=tf.uint16 if file.read_bytes()[24] == 16 else tf.uint8
        )
    image = np.array(Image.open(file))
    return image[..., None]


def test_records_coco_and_png_agree(made):
    dataset, directory, found = made
    coco = COCO(str(directory / "annotations.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(NAMES)
    assert (
        len(found) == COUNT == len(coco.imgs) == len(coco.anns) == len(list((directory / "images").iterdir()))
    )
    assert len({int(record.image_id) for record in found}) == COUNT
    top = 2**dataset.bit_depth - 1
    for record in found:
        entry = coco.imgs[int(record.image_id)]
        assert entry["file_name"] == record.file_name.numpy().decode()
        assert (entry["height"], entry["width"]) == (SIDE, SIDE)
        assert entry["groups"] == [g.decode() for g in record.groups.numpy()]
        assert entry["provenance"] == json.loads(record.provenance.numpy())
        pixels = png(directory / entry["file_name"])
        assert pixels.dtype == (np.uint16 if dataset.bit_depth == 16 else np.uint8)
        np.testing.assert_array_equal(pixels, np.rint((record.image.numpy() + 1) / 2 * top))
        (annotation,) = coco.imgToAnns[int(record.image_id)]
        np.testing.assert_array_equal(boxes_lib.from_xywh([annotation["bbox"]]), record.boxes)
        assert annotation["area"] == pytest.approx(float(boxes_lib.area(record.boxes)[0]))
        assert coco.cats[annotation["category_id"]]["name"] == NAMES[int(record.labels[0])]


def test_provenance_agrees_with_pixels_and_groups(made):
    """The image is its background outside the box and its matched object inside; it has both groups."""
    dataset, _, found = made
    pasted = 0
    for record in found:
        provenance = json.loads(record.provenance.numpy())
        assert set(provenance) == {
            "method", "checkpoint", "seed", "deterministic", "number", "background_id", "objects",
        }  # fmt: skip
        assert provenance["deterministic"] == is_op_determinism_enabled()
        (inserted,) = provenance["objects"]
        assert set(inserted) == {"matched_id", "residual_scale", "box"}
        assert (provenance["method"], provenance["checkpoint"], provenance["seed"]) == ("cut_paste", "abc", 0)
        assert provenance["number"] + 1 == int(record.image_id)
        np.testing.assert_allclose(inserted["box"], record.boxes[0], atol=1e-3)
        background, matched = (
            dataset.by_id(provenance["background_id"]),
            dataset.by_id(inserted["matched_id"]),
        )
        assert background["image_id"] < 100 <= matched["image_id"]
        groups = {g.decode() for g in record.groups.numpy()}
        assert groups == {*background["groups"], *matched["groups"]}
        assert len(groups) == len(record.groups)
        np.testing.assert_array_equal(record.valid_size, background["valid_size"])
        stored = records.to_stored(record.image.numpy(), dataset.bit_depth)
        far = (
            COMPOSITION.blend(record.boxes, boxes_lib.of_sizes(record.valid_size[None]), SIDE, SIDE)[
                0, :, :, 0
            ].numpy()
            == 0
        )
        np.testing.assert_array_equal(stored[far], background["image"][far])
        x0, y0, x1, y1 = record.boxes[0].numpy().astype(int)
        # The object keeps its size and class.
        sizes = [(x1 - x0, y1 - y0, int(record.labels[0]))]
        assert sizes[0] in [
            (*(box[2:] - box[:2]), label)
            for box, label in zip(matched["boxes"], matched["labels"], strict=True)
        ]
        pasted += not np.array_equal(stored[y0:y1, x0:x1], background["image"][y0:y1, x0:x1])
    assert pasted == COUNT


def test_directory_has_exactly_the_expected_files(made):
    _, directory, _ = made
    assert {file.name for file in directory.iterdir()} == {
        "synthetic.tfrecord",
        "features.json",
        "labels.labels.txt",
        "annotations.json",
        "images",
        "gallery.html",
        "contact_sheet.png",
        "audit.json",
    }
    assert [file.name for file in directory.parent.iterdir()] == ["synthetic"]


def test_audit_of_cut_paste_by_hand(made):
    """The objects are copies of real ones, and pixels outside of the boxes are unchanged."""
    dataset, directory, _ = made
    found = json.loads((directory / "audit.json").read_text())
    assert found["objects"] == COUNT == len(found["per_object"]["nearest"])
    assert found["real_objects"] == sum(len(e["boxes"]) for e in dataset.examples["train_labelled"])
    assert found["change_inside"] > 0.01
    assert found["change_outside_worst"] < 0.5 / 255


def objects_of(record):
    return json.loads(record.provenance.numpy())["objects"]


def contents(records_of_a_set):
    return [[np.asarray(v).tolist() for v in record] for record in records_of_a_set]


def test_image_i_is_a_function_of_seed_and_i(sets, tmp_path):
    """7 images are not divisible by 3 or 4; the first 5 of 7 are those of a set of 5."""
    dataset, _, found = sets()
    first = contents(found)
    assert contents(make(dataset, tmp_path / "b", batch_size=4, count=5)) == first[:5]
    other = contents(make(dataset, tmp_path / "c", seed=1))
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_several_objects_in_an_image_do_not_overlap(sets):
    """Each object equals the same object inserted alone; the first is that of an image with one object."""
    dataset, directory, several = sets(objects=3)
    _, _, alone = sets()
    counts = [len(record.boxes) for record in several]
    assert set(counts) == {1, 2, 3}  # images are small, so that some objects would overlap
    for record, single in zip(several[:COUNT], alone, strict=True):
        assert objects_of(record)[0] == objects_of(single)[0]
        background = dataset.by_id(json.loads(record.provenance.numpy())["background_id"])
        grown = boxes_lib.dilate(record.boxes, reach(record.boxes, COMPOSITION.feather))
        meeting = boxes_lib.iou(grown, grown).numpy() - np.eye(len(grown))
        assert meeting.max() == pytest.approx(0, abs=1e-6)
        pixels, one = (records.to_stored(r.image.numpy(), 8) for r in (record, single))
        near = boxes_lib.mask(grown, SIDE, SIDE).numpy() > 0
        np.testing.assert_array_equal(pixels[near[0]], one[near[0]])
        nowhere = ~near.any(0)
        np.testing.assert_array_equal(pixels[nowhere], background["image"][nowhere])
        for provenance, box, label in zip(objects_of(record), record.boxes, record.labels, strict=True):
            np.testing.assert_allclose(provenance["box"], box, atol=1e-3)
            assert label in dataset.by_id(provenance["matched_id"])["labels"]
            x0, y0, x1, y1 = box.numpy().astype(int)
            assert not np.array_equal(pixels[y0:y1, x0:x1], background["image"][y0:y1, x0:x1])
        groups = {g.decode() for g in record.groups.numpy()}
        parents = [
            background,
            *(dataset.by_id(provenance["matched_id"]) for provenance in objects_of(record)),
        ]
        assert groups == {group for parent in parents for group in parent["groups"]}
    coco = COCO(str(directory / "annotations.json"))
    assert [len(coco.getAnnIds([int(record.image_id)])) for record in several] == counts
    found = json.loads((directory / "audit.json").read_text())
    assert found["made"] == found["objects"] == sum(counts)
    assert found["change_outside_worst"] < 0.5 / 255  # each object is measured separately


class HeldOut:
    """The rank is the parity of the matched image's id; nothing is found in a background."""

    def score_objects(self, images, boxes, labels, matched_ids):
        assert len(images) == len(boxes) == len(labels) == len(matched_ids)
        rank = np.asarray(matched_ids) % 2 * 0.5 + 0.25
        return {"rank": rank, "found": (rank > 0.5) * float(np.ptp(images) > 0)}

    def found_real(self):
        return 0.5


def test_gallery_shows_first_highest_median_and_lowest_ranks():
    """Ranks of 30 images are the last digits of their numbers; of equal ranks the first is taken."""
    shown = synthesis._Shown()
    for number in range(30):
        shown.add(number, number % 10 / 16, number)
    first, best, median, worst = shown.sections().values()
    assert first == list(range(24))
    assert best == [9, 19, 29, 8, 18, 28, 7, 17]
    assert median == [4, 5, 14, 15, 3, 6, 13, 16]
    assert worst == [0, 10, 20, 1, 11, 21, 2, 12]
    sections = {heading: [{"caption": str(n)} for n in some] for heading, some in shown.sections().items()}
    captions = [one["caption"] for one in synthesis._for_contact_sheet(sections)]
    assert captions[:8] == list("01234567")
    assert captions[8:10] == ["Highest audit ranks: 9", "Highest audit ranks: 19"]
    assert captions[10:] == [
        "Median audit ranks: 4",
        "Median audit ranks: 5",
        "Lowest audit ranks: 0",
        "Lowest audit ranks: 10",
    ]


def test_objects_below_min_audit_are_left_out_and_counted(sets, tmp_path):
    dataset, _, every = sets(objects=3)
    options = {"held_out": HeldOut(), "objects": 3, "count": SEVERAL}
    good = make(dataset, tmp_path / "good", min_audit=0.5, **options)
    wanted = {int(r.image_id): [one for one in objects_of(r) if one["matched_id"] % 2] for r in every}
    wanted = {i: [one | {"audit": 0.75, "found": True} for one in kept] for i, kept in wanted.items() if kept}
    assert {int(r.image_id): objects_of(r) for r in good} == wanted
    assert 0 < len(wanted) < SEVERAL
    assert max(map(len, wanted.values())) > 1
    count = sum(map(len, wanted.values()))
    found = json.loads((tmp_path / "good" / "audit.json").read_text())
    assert (found["made"], found["objects"]) == (sum(len(r.boxes) for r in every), count)
    assert (found["found"], found["found_real"], found["min_audit"]) == (1.0, 0.5, 0.5)
    assert found["per_object"]["rank"] == [0.75] * count
    assert len(COCO(tmp_path / "good" / "annotations.json").imgs) == len(wanted)
    with pytest.raises(InputError, match=f"no object in {SEVERAL} images"):
        make(dataset, tmp_path / "none", min_audit=0.8, **options)
    assert not (tmp_path / "none").exists()


def test_failing_insertion_keeps_the_existing_set(sets, tmp_path):
    dataset, made, _ = sets()
    directory, calls = shutil.copytree(made, tmp_path / "synthetic"), []

    def fail_at_second(batch):
        calls.append(batch)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return cut_and_paste(batch)

    with pytest.raises(RuntimeError, match="out of memory"):
        make(dataset, directory, fail_at_second, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["synthetic"]
    before, after = (
        {file.relative_to(place): file.read_bytes() for file in place.rglob("*") if file.is_file()}
        for place in (made, directory)
    )
    assert before == after


def test_values_out_of_range_are_clipped(tmp_path):
    """Conversion to integers must not wrap around, for values outside of [-1, 1]."""
    dataset = Tiles(8, 1)

    def beyond(batch):
        above = (batch.seeds % 2 == 0)[:, None, None, None]
        return tf.where(above, tf.fill(batch.x.shape, 1.001), -1.001)

    for record in make(dataset, tmp_path / "made", beyond, count=2):
        level = 255 * (json.loads(record.provenance.numpy())["number"] == 0)
        np.testing.assert_array_equal(records.to_stored(record.image.numpy(), 8), level)


def test_interruption_between_batches_leaves_no_files(tmp_path):
    stop = StopSignal()

    def insert(batch):
        stop.received = "SIGTERM"
        return cut_and_paste(batch)

    with pytest.raises(Interrupted, match="SIGTERM in cut_paste/synthetic"):
        make(Tiles(8, 1), tmp_path / "made", insert, between=lambda: stop.check("cut_paste/synthetic"))
    assert not list(tmp_path.iterdir())
