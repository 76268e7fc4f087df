"""The three things that differ when a step runs on several replicas. Each is the identity on one device.

Losses are written as *shares*: divided by what all replicas hold together, so that the sum over replicas is
the loss of the joined batch, and so are sums of gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def total(tensors):
    """Sum over replicas of a tensor or a list. Differentiable: gradients are summed over replicas as well."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def count() -> int:
    """Number of replicas."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def share(per_image) -> tf.Tensor:
    """This replica's share of the mean of a per-image loss [N] over the global batch."""
    return tf.reduce_sum(per_image) / tf.cast(tf.shape(per_image)[0] * count(), per_image.dtype)


def index() -> int:
    """Which replica the step is being traced for."""
    return int(tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group))


def assign(variables: Sequence[tf.Variable], values: Sequence[tf.Tensor]) -> None:
    """Assigns to mirrored variables values that are equal on all replicas."""

    def update(strategy, values):
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(variable, lambda v, x: v.assign(x), args=(value,), group=False)

    tf.distribute.get_replica_context().merge_call(update, args=(list(values),))


def require_gradients(gradients: Sequence, names: Sequence[str], of: str) -> None:
    """A missing gradient is a disconnected graph, never a zero.

    Raises:
      RuntimeError: naming every variable that `of` does not reach.
    """
    missing = [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
    if missing:
        raise RuntimeError(f"{of} has no gradient for: {', '.join(missing)}")
