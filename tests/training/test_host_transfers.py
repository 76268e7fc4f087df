"""Tensors that a step on a GPU copies to the host, one planted at a time."""

import keras
import pytest
import tensorflow as tf

from tf_detectorgan.training.host_transfers import host_transfers

IMAGES = tf.TensorSpec([2, 8, 8, 1])


def transfers(function, *specs):
    graph = tf.function(function, autograph=False).get_concrete_function(*specs or [IMAGES]).graph
    return host_transfers(graph)


def cosine(images):
    rate = keras.optimizers.schedules.CosineDecay(0.0, 9, warmup_target=0.1, warmup_steps=3)
    return images * rate(tf.cast(tf.reduce_sum(images), tf.int64))


def loop(images):
    return tf.while_loop(lambda s: tf.reduce_sum(s) < 9, lambda s: [s + 1], [images])


# Case -> function, type of the kernel that needs the tensor on the host, and the tensor's elements.
PLANTED = {
    "a comparison of int32": (lambda v: tf.cast(v, tf.int32) < 3, "Less", 128),
    "a slice of int32": (lambda v: tf.argsort(v[0, 0, :, 0])[:3], "StridedSlice", 8),
    "a sum of int32": (lambda v: tf.reduce_sum(tf.cast(v > 0, tf.int32)) + 1, "Sum", 128),
    "a condition": (cosine, "StatelessIf", 1),
    "a loop's condition": (loop, "StatelessWhile", 1),
    "an op without a GPU kernel": (lambda v: tf.strings.as_string(v), "AsString", 128),
    "a shape from the device": (lambda v: tf.zeros(tf.cast(v[0, 0, :2, 0], tf.int32)), "Fill", 2),
    "an int32 result": (lambda v: tf.cast(v, tf.int32), "returned", 128),
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("nested", [False, True])
def test_tensor_that_a_kernel_needs_on_the_host_is_found_once(name, nested):
    plant, kind, elements = PLANTED[name]
    inner = tf.function(plant, autograph=False)
    (found,) = transfers(lambda v: inner(v + 1) if nested else plant(v + 1))
    assert (found.kind, found.elements) == (kind, elements)
    assert found.producer


@pytest.mark.parametrize(
    "function",
    [
        lambda v: tf.reshape(v, [tf.shape(v)[0], -1]),  # a shape is computed on the host
        lambda v: tf.cast(v, tf.int64) < 3,
        lambda v: v + tf.cast(tf.range(8) < 3, tf.float32),  # a constant
        lambda v: tf.cond(tf.constant(True), lambda: v, lambda: -v),
        lambda v: (tf.cast(v, tf.int32) < 3, v)[1],  # the comparison is pruned
    ],
)
def test_function_without_transfers(function):
    assert transfers(function) == []


def test_int32_arguments_and_variables_are_not_transferred():
    count = tf.Variable(0)

    def step(labels):
        count.assign_add(1)
        return tf.cast((labels >= 0) & (count < 7), tf.float32)

    assert transfers(step, tf.TensorSpec([2, 3], tf.int32)) == []


def test_tensor_with_two_consumers_is_copied_once():
    def step(v):
        classes = tf.cast(v, tf.int32)
        return tf.cast((classes < 3) & (classes > 1), tf.float32)

    assert len(transfers(step)) == 1
