"""The operations of a training step that depend on the number of replicas.

Each replica computes a *share* of a loss: its sum divided by the global batch size. The sum of all shares is
the loss of the global batch, and the sum of their gradients is the gradient of that loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def total(tensors):
    """Returns the sum over replicas of a tensor or a list. Its gradient is also summed over replicas."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def count() -> int:
    """Returns the number of replicas."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def share(per_image) -> tf.Tensor:
    """Returns this replica's share of the mean of a per-image loss [N] over the global batch."""
    return tf.reduce_sum(per_image) / tf.cast(tf.shape(per_image)[0] * count(), per_image.dtype)


def index() -> int:
    """Returns the index of the replica that the step is being traced for."""
    return int(tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group))


def assign(variables: Sequence[tf.Variable], values: Sequence[tf.Tensor]) -> None:
    """Assigns `values`, which are equal on all replicas, to mirrored `variables`."""

    def update(strategy, values):
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(variable, lambda v, x: v.assign(x), args=(value,), group=False)

    tf.distribute.get_replica_context().merge_call(update, args=(list(values),))


def require_gradients(gradients: Sequence, names: Sequence[str], of: str) -> None:
    """Raises RuntimeError with the names of all variables that the loss `of` does not depend on.

    A missing gradient means that the graph is disconnected, and is never treated as zero.
    """
    missing = [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
    if missing:
        raise RuntimeError(f"{of} has no gradient for: {', '.join(missing)}")
