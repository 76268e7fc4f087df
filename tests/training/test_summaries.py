"""TensorBoard summaries: the picture's layout, and the names of scalars and images."""

import numpy as np
import tensorflow as tf

from tf_detectorgan.batch import Insertion, Labelled
from tf_detectorgan.training import summaries


def constant(value, n=5):
    return tf.fill([n, 16, 16, 1], float(value))


def test_picture_has_six_columns_and_four_rows():
    """Columns: x, x_syn with its box, difference; y with its boxes, y without objects, difference."""
    boxes = tf.constant([[4.0, 4, 12, 12]] * 5)
    insertion = Insertion(boxes, tf.zeros([5], tf.int32), constant(0), boxes)
    y = Labelled(constant(0.1), boxes[:, None], tf.zeros([5, 1], tf.int32))
    picture = summaries.insertion_picture(constant(-0.5), insertion, constant(-0.3), y, constant(-0.8))
    assert picture.shape == (1, 4 * 16, 6 * 16, 3)
    middles = picture[0, 8::16, 8::16].numpy()
    assert middles.shape == (4, 6, 3)
    expected = [-0.5, -0.3, 2 * 0.2, 0.1, -0.8, -1]  # 2 * -0.9 is clipped to -1
    np.testing.assert_allclose(
        middles, np.broadcast_to(np.array(expected)[None, :, None], (4, 6, 3)), atol=1e-6
    )
    red = np.all(picture[0].numpy() == [1, -1, -1], -1)
    columns = [red[:, k * 16 : (k + 1) * 16].sum() for k in range(6)]
    assert columns[1] == columns[3] > 4 * 4 * 7
    assert sum(columns) == 2 * columns[1]


def test_picture_of_a_small_batch_has_fewer_rows():
    boxes = tf.constant([[4.0, 4, 12, 12]])
    y = Labelled(constant(0, 1), boxes[:, None], tf.zeros([1, 1], tf.int32))
    insertion = Insertion(boxes, tf.zeros([1], tf.int32), constant(0, 1), boxes)
    picture = summaries.insertion_picture(constant(0, 1), insertion, constant(0, 1), y, constant(0, 1))
    assert picture.shape == (1, 16, 6 * 16, 3)


def test_scalars_and_images_are_written_under_the_prefix(tmp_path):
    writer = summaries.Writer(tmp_path, "joint")
    writer.scalars(7, {"L_real": 0.25})
    writer.image("insertions", 8, tf.zeros([1, 4, 4, 3]))
    (file,) = tmp_path.glob("events*")
    found = {
        value.tag: (event.step, value)
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
    }
    assert set(found) == {"joint/L_real", "joint/insertions"}
    step, value = found["joint/L_real"]
    assert step == 7
    assert float(tf.make_ndarray(value.tensor)) == 0.25
    step, value = found["joint/insertions"]
    width, height, png = tf.make_ndarray(value.tensor)
    assert (step, int(width), int(height)) == (8, 4, 4)
    assert set(np.unique(tf.io.decode_png(png))) <= {127, 128}  # 0 of [-1, 1] is middle grey
