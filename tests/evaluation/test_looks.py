"""Objects as a network sees them: distances by hand over pairs, and an audit that tells alike from unlike."""

import keras
import numpy as np
import pytest

from tf_detectorgan.evaluation import audit, looks
from tf_detectorgan.models.detectors.backbone import resnet50
from tf_detectorgan.resampling import crop

SIDE = 80


@pytest.fixture(scope="module")
def backbone():
    """ResNet-50 for grey images with random weights: nothing here asks what it has learned."""
    keras.utils.set_random_seed(0)
    return resnet50((looks.SIDE, looks.SIDE, 1), pretrained=True)


def objects(count, seed=0, blur=1):
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-1, 1, (count, SIDE // blur, SIDE // blur, 1)).astype(np.float32)
    images = np.kron(coarse, np.ones((1, blur, blur, 1), np.float32))
    return audit.Objects(
        images,
        np.tile(np.float32([8, 8, 72, 72]), (count, 1)),
        np.tile(np.float32([0, 0, SIDE, SIDE]), (count, 1)),
    )


def test_variety_is_the_mean_distance_of_pairs_by_hand(backbone):
    """LPIPS of every pair from the stages' own outputs; told in two parts, it is the same."""
    some = objects(4)
    describe = looks.describer(backbone, context=0.0)
    found = looks.joined(
        [describe(some.images[part], some.boxes[part]) for part in (slice(0, 3), slice(3, 4))]
    )
    stages = keras.Model(backbone.inputs, [backbone.get_layer(name).output for name in looks.STAGES])
    outputs = [stage.numpy() for stage in stages(crop(some.images, some.boxes, looks.SIDE, 0.0))]

    def distance(i, j):
        units = [stage / np.linalg.norm(stage, axis=-1, keepdims=True) for stage in outputs]
        return np.mean([((u[i] - u[j]) ** 2).sum(-1).mean() for u in units])

    pairs = [distance(i, j) for i in range(4) for j in range(i)]
    assert np.mean(pairs) > 1e-3
    assert looks.variety(found) == pytest.approx(np.mean(pairs), rel=1e-4)


def test_objects_that_are_all_alike_have_no_variety(backbone):
    one = objects(1)
    describe = looks.describer(backbone, context=0.0)
    same = describe(np.repeat(one.images, 5, 0), np.repeat(one.boxes, 5, 0))
    assert looks.variety(same) == pytest.approx(0, abs=1e-5)
    assert looks.variety(describe(*one[:2])) == 0


def test_the_audit_tells_textures_apart(backbone):
    """Fine noise against other fine noise, and against coarse noise."""
    describe = looks.describer(backbone, audit.CONTEXT)
    fine, more, coarse = objects(30), objects(30, seed=1), objects(30, seed=2, blur=8)

    def audited(synthetic):
        measured = audit.measure(synthetic, synthetic.images, 0.25, describe)
        return audit.audit(measured, audit.measure(fine, describe=describe), range(30))["looks"]

    same, other = audited(more), audited(coarse)
    assert same["kid"]["value"] < 0.01 * other["kid"]["value"]
    assert other["kid"]["low"] > 0
    assert same["variety"] == pytest.approx(same["variety_real"], rel=0.05)
