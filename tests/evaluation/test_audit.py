"""The audit of synthetic images, checked by hand on images with known pixels."""

import numpy as np
import pytest

from tf_detectorgan.evaluation import audit

SIDE = 32


def objects(images, boxes, content=None):
    images = np.asarray(images, np.float32)
    boxes = np.asarray(boxes, np.float32)
    whole = np.tile(np.float32([0, 0, SIDE, SIDE]), (len(images), 1))
    return audit.Objects(images, boxes, whole if content is None else np.asarray(content, np.float32))


def noise(count, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (count, SIDE, SIDE, 1)).astype(np.float32)


def audited(synthetic, real, groups=None):
    """Audits images that are their own backgrounds; more than three are measured in two parts."""
    halves = [slice(0, 3), slice(3, None)] if len(synthetic.images) > 3 else [slice(None)]
    parts = [
        audit.measure(audit.Objects(*(v[half] for v in synthetic)), synthetic.images[half], 0.25)
        for half in halves
    ]
    measured = audit.measure(real)
    return audit.audit(
        audit.joined(parts), measured, range(len(measured.crops)) if groups is None else groups
    )


def test_changes_inside_and_outside_by_hand():
    """In the box 0.4 of a range of 2: 0.2. Outside one pixel by 1.0; the 2 blended pixels are ignored."""
    background = np.zeros((2, SIDE, SIDE, 1), np.float32)
    synthetic = background.copy()
    synthetic[0, 10:14, 10:18] = 0.4  # the box of the first image
    synthetic[0, 8:10, 10:18] = -0.4  # within the blend
    synthetic[1, 30, 30] = 1.0
    found = audit.changes(objects(synthetic, [[10, 10, 18, 14]] * 2), background, margin=0.25)
    np.testing.assert_allclose(found["inside"], [0.2, 0], atol=1e-6)
    beyond = SIDE * SIDE - 12 * 8  # the box and 2 pixels on every side
    np.testing.assert_allclose(found["outside"], [0, 0.5 / beyond], atol=1e-8)


def test_margin_is_relative_to_the_box_size():
    background = np.zeros((1, SIDE, SIDE, 1), np.float32)
    synthetic = background.copy()
    synthetic[0, 12, 4] = 1.0  # 4 pixels left of a box that is 16 wide
    where = objects(synthetic, [[8, 8, 24, 16]])
    assert audit.changes(where, background, margin=0.25)["outside"][0] == 0
    assert audit.changes(where, background, margin=0.1)["outside"][0] > 0


def test_padding_is_neither_inside_nor_outside():
    background = np.zeros((1, SIDE, SIDE, 1), np.float32)
    synthetic = background.copy()
    synthetic[0, :, 20:] = 1.0
    found = audit.changes(objects(synthetic, [[4, 4, 8, 8]], [[0, 0, 20, SIDE]]), background, 0.25)
    assert found["inside"][0] == found["outside"][0] == 0


def test_contrast_by_hand():
    """Around the box, half of the pixels are 0 and half 0.2: mean 0.1, deviation 0.1; the box is 0.4."""
    image = np.zeros((1, SIDE, SIDE, 1), np.float32)
    image[:, ::2] = 0.2
    image[:, 10:14, 10:14] = 0.4
    np.testing.assert_allclose(audit.contrast(objects(image, [[10, 10, 14, 14]])), [3.0], rtol=1e-5)


def test_copies_and_variety_of_copied_and_new_objects():
    """Half of the synthetic objects are real ones with changed grey levels or mirrored, half are new."""
    real = objects(noise(8), [[8, 8, 24, 24]] * 8)
    copied = objects(0.5 * real.images + 0.2, real.boxes)
    copied.images[:4] = copied.images[:4, :, ::-1]  # boxes lie in the middle
    new = objects(noise(8, seed=1), real.boxes)
    both = objects(np.concatenate([copied.images, new.images]), np.concatenate([real.boxes] * 2))
    found = audited(both, real)
    assert found["copies"] == pytest.approx(0.5, abs=0.07)  # 5 % of the new ones count as copies by chance
    np.testing.assert_allclose(found["per_object"]["nearest"][:8], 1, atol=1e-3)
    assert found["nearest_real"] < 0.5
    assert found["change_inside"] == found["change_outside"] == 0
    assert found["variety"] == pytest.approx(found["variety_real"], abs=0.1)
    same = objects(np.repeat(real.images[:1], 8, 0), real.boxes)
    assert audited(same, real)["variety"] == pytest.approx(0, abs=1e-5)
    assert found == audited(both, real)


def test_copy_threshold_ignores_objects_of_the_same_group():
    """Each patient has the same object twice, with different contrast; all synthetic objects are copies."""
    once = noise(4)
    twice = np.concatenate([once, 0.5 * once])
    real, boxes = objects(twice, [[8, 8, 24, 24]] * 8), [[8, 8, 24, 24]] * 4
    copied = objects(0.3 * once + 0.02 * noise(4, seed=9), boxes)
    assert audited(copied, real, [0, 1, 2, 3] * 2)["copies"] == 1
    assert audited(copied, real)["copies"] == 0  # with one group per object
    alone = audited(copied, real, [0] * 8)
    assert (alone["copies"], alone["nearest_real"]) == (None, None)


def test_audit_of_one_image():
    one = objects(noise(1), [[8, 8, 24, 24]])
    assert audited(one, objects(noise(2), [[8, 8, 24, 24]] * 2))["variety"] == 0
