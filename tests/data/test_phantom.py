import collections

import numpy as np
import pytest

from tf_detectorgan.data import chest_film, phantom, records, shards


def test_an_image_depends_on_seed_and_index_only():
    image, boxes = chest_film.draw(3, 5, 64, nodule=True)
    again, same_boxes = chest_film.draw(3, 5, 64, nodule=True)
    assert image.tobytes() == again.tobytes()
    assert boxes.tobytes() == same_boxes.tobytes()
    assert chest_film.draw(4, 5, 64, nodule=True)[0].tobytes() != image.tobytes()
    assert chest_film.draw(3, 4, 64, nodule=True)[0].tobytes() != image.tobytes()


def test_another_size_shows_the_same_patient_with_scaled_boxes():
    for index in range(20):
        small, small_boxes = chest_film.draw(0, index, 64, nodule=True)
        large, large_boxes = chest_film.draw(0, index, 128, nodule=True)
        np.testing.assert_allclose(large_boxes, 2 * small_boxes, rtol=1e-6)
        shrunk = large.reshape(64, 2, 64, 2).mean((1, 3))
        assert np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > 0.98


def test_boxes_are_tight_around_the_drawn_profile():
    size = 512
    v, u = np.meshgrid(*[(np.arange(size) + 0.5) / size] * 2, indexing="ij")
    checked = 0
    for index in range(40):
        _, nodules = chest_film.film(0, index, 64, nodule=True)
        _, boxes = chest_film.draw(0, index, 64, nodule=True)
        for nodule, (x0, y0, x1, y1) in zip(nodules, boxes * (size / 64), strict=True):
            profile = nodule.profile(u, v)
            rows, columns = np.nonzero(profile > chest_film.BOX_THRESHOLD * nodule.contrast)
            extent = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            # A pixel's centre lies inside the box, so its edge is at most half a pixel outside ...
            assert (extent - [x0, y0, x1, y1] >= [-0.51] * 2 + [-1.5] * 2).all()
            # ... and the contour's tip can be thinner than a pixel: at most one and a half pixels are lost.
            np.testing.assert_allclose(extent, [x0, y0, x1, y1], atol=1.5)
            assert 0.05 * size < x1 - x0 < 0.25 * size
            checked += 1
    assert checked > 40  # some films have two


def test_an_image_differs_from_the_clean_one_only_near_the_nodules():
    for index in range(20):
        clean, none = chest_film.draw(0, index, 128, nodule=False)
        image, boxes = chest_film.draw(0, index, 128, nodule=True)
        assert none.shape == (0, 4)
        difference = image - clean
        far = np.ones([128, 128], bool)
        for x0, y0, x1, y1 in boxes:
            inside = difference[round(y0) : round(y1), round(x0) : round(x1)]
            assert inside.max() > 0.02
            margin = 0.75 * max(x1 - x0, y1 - y0)
            low_y, low_x = max(int(y0 - margin), 0), max(int(x0 - margin), 0)
            far[low_y : int(y1 + margin), low_x : int(x1 + margin)] = False
        assert np.abs(difference[far]).max() < 0.01
        assert 0 <= image.min() < image.max() <= 1


def test_boxes_lie_in_the_image_and_do_not_overlap():
    for index in range(200):
        _, nodules = chest_film.film(1, index, 64, nodule=True)
        assert 1 <= len(nodules) <= 2
        corners = np.array([n.box() for n in nodules])
        assert corners.min() > 0
        assert corners.max() < 1
        if len(nodules) == 2:
            a, b = corners
            assert (np.minimum(a[2:], b[2:]) <= np.maximum(a[:2], b[:2])).any()


def test_three_patients_have_four_images(monkeypatch):
    assert [chest_film.patient(i) for i in range(8)] == [0, 1, 1, 3, 4, 5, 5, 7]
    assert (chest_film.draw(0, 1, 64, nodule=False)[0] != chest_film.draw(0, 2, 64, nodule=False)[0]).any()
    view = chest_film.View(0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.02, 0)
    monkeypatch.setattr(chest_film, "_draw_view", lambda rng: view)
    films = [chest_film.draw(0, i, 64, nodule=False)[0] for i in range(3)]
    np.testing.assert_array_equal(films[1], films[2])
    assert (films[0] != films[2]).any()


def test_density_of_a_lookalike_by_hand():
    """Ellipse with half axes 0.04 (upright) and 0.02: 1/e of its density on the rim; a ring is empty."""
    one = chest_film.Lookalike(0.5, 0.4, 0.04, 0.02, np.pi / 2, density=0.3, power=3.0, hollow=0.0)
    u, v = np.array([0.5, 0.5, 0.52, 0.54]), np.array([0.4, 0.44, 0.4, 0.4])
    np.testing.assert_allclose(one.profile(u, v, 1e-3), 0.3 * np.exp([0.0, -1, -1, -8]), rtol=1e-6)
    ring = one._replace(hollow=1.0)
    np.testing.assert_allclose(ring.profile(u[:1], v[:1], 1e-3), 0.0, atol=1e-12)
    # With a coarse pixel the shorter axis grows to 0.6 pixels, and the density decreases by the same factor.
    np.testing.assert_allclose(one.profile(u[:1], v[:1], 0.05), 0.3 * 0.02 / 0.03, rtol=1e-6)


def test_nipples_are_two_at_the_same_height_or_none():
    paired = [kind.paired for kind in chest_film.LOOKALIKES].index(True)
    counts = []
    for number in range(40):
        with pytest.MonkeyPatch.context() as only:
            only.setattr(chest_film, "LOOKALIKES", chest_film.LOOKALIKES[paired : paired + 1])
            found = chest_film._draw_lookalikes(np.random.default_rng(number))
        counts.append(len(found))
        if found:
            left, right = found
            assert left.v == right.v
            np.testing.assert_allclose(left.u + right.u, 1.0)
    assert set(counts) == {0, 2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom") / "set"
    config = phantom.PhantomConfig(
        train_images=7,
        clean_images=6,
        unboxed_images=5,
        validation_images=4,
        test_images=3,
        test_clean_images=2,
    )
    shards.build(phantom.plan(config), out)
    return records.open_dataset(out)


def test_only_labelled_streams_have_boxes_and_clean_ones_no_nodules(dataset):
    boxes = {}
    for split, count in (
        ("train_labelled", 7),
        ("train_clean", 6),
        ("train_unboxed", 5),
        ("validation_labelled", 4),
        ("test_labelled", 3),
        ("test_clean", 2),
    ):
        rows = [dataset.decode(serialized) for serialized in dataset.serialized(split)]
        assert len(rows) == dataset.count(split) == count
        boxes[split] = [len(row.boxes) for row in rows]
        for row in rows:
            index, nodule = int(row.image_id), not split.endswith("clean")
            image, drawn = chest_film.draw(0, index, 64, nodule)
            np.testing.assert_allclose(row.image[..., 0], 2 * image - 1, atol=1 / 255 + 1e-6)
            np.testing.assert_array_equal(row.boxes, drawn if split.endswith("labelled") else drawn[:0])
    assert all(count >= 1 for split in boxes if split.endswith("labelled") for count in boxes[split])


def test_no_patient_is_in_two_splits_and_no_image_twice(dataset):
    splits_of, ids = collections.defaultdict(set), []
    for split in (
        "train_labelled",
        "train_clean",
        "train_unboxed",
        "validation_labelled",
        "test_labelled",
        "test_clean",
    ):
        for serialized in dataset.serialized(split):
            record = dataset.decode(serialized)
            ids.append(int(record.image_id))
            splits_of[record.groups.numpy()[0]].add(split.split("_")[0])
    assert len(ids) == len(set(ids)) == 27
    assert {len(found) for found in splits_of.values()} == {1}


def test_a_larger_training_set_begins_with_the_smaller_one():
    def ids(count):
        config = phantom.PhantomConfig(train_images=count)
        plan = phantom.plan(config)
        return [plan.example(item)["image_id"] for item in plan.splits["train_labelled"]]

    assert ids(5)[:3] == ids(3)
