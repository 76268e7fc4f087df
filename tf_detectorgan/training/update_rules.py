"""The update of a Keras optimizer as a differentiable function: U of Eqn 3.

Keras's own `stateless_apply` raises an error on the TensorFlow backend. Here W' and the new state are plain
tensors, computed from the optimizer's options and a given state, by default the current one. Nothing is
assigned before `commit`. docs/unroll.md has examples. Letters: W weights, g their gradient, m and v the first
and second moments, t steps taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule

from tf_detectorgan.training import replicas


class State(NamedTuple):
    """The state of an optimizer."""

    iterations: tf.Tensor  # t, integer scalar
    slots: tuple[list[tf.Tensor], ...]  # one list per kind of moment, each in the order of W


class Update(NamedTuple):
    """The weights W' after a step, in the order of W, and the optimizer's state after it."""

    W: list[tf.Tensor]
    state: State


def current_state(optimizer: keras.optimizers.Optimizer) -> State:
    """Returns the optimizer's current state.

    Raises:
      ValueError: the optimizer is not built, or there is no rule for its class or for one of its options.
    """
    _require_supported(optimizer)
    slots = _RULES[type(optimizer)].slots(optimizer)
    values = tuple([tf.convert_to_tensor(v.value) for v in slot] for slot in slots)
    return State(tf.convert_to_tensor(optimizer.iterations.value), values)


def require_built_on(optimizer: keras.optimizers.Optimizer, W: Sequence[tf.Variable]) -> None:
    """Raises ValueError unless the optimizer is built on W, in this order."""
    _require_supported(optimizer)
    own = [v.value for v in _variables(optimizer)]
    if [id(v) for v in own] != [id(w) for w in W]:
        raise ValueError(
            f"{type(optimizer).__name__} is built on {len(own)} variables that are not the {len(W)} weights "
            "or are in another order; build it on the network's trainable_variables"
        )


def current(optimizer: keras.optimizers.Optimizer) -> Update:
    """Returns the current weights and state, as an update that changes nothing."""
    return Update([tf.convert_to_tensor(v.value) for v in _variables(optimizer)], current_state(optimizer))


def advance(
    optimizer: keras.optimizers.Optimizer,
    W: Sequence[tf.Tensor],
    gradients: Sequence[tf.Tensor],
    state: State | None = None,
) -> Update:
    """Returns the update that `optimizer.apply` would make, with clipping, weight decay and schedule.

    Differentiable with respect to `gradients`, W and the state. On several replicas, pass the sum of their
    gradients: clipping is by the norm of the sum (Keras clips each replica's gradients).

    Args:
      optimizer: built on the variables whose values are W, in the same order.
      W: tensors of the variables' shapes and dtypes.
      gradients: of the same shapes; tf.IndexedSlices and other dtypes are converted.
      state: the state before the step; None: the optimizer's current state.

    Raises:
      RuntimeError: a gradient is None.
    """
    state = current_state(optimizer) if state is None else state
    rate = _learning_rate(optimizer, state.iterations)
    replicas.require_gradients(gradients, [v.path for v in _variables(optimizer)], "the loss")
    gradients = [tf.cast(tf.convert_to_tensor(g), w.dtype) for g, w in zip(gradients, W, strict=True)]
    if optimizer.clipnorm:  # each tensor is clipped by its own norm
        g = _flatten(_clipped(optimizer, gradients))
    else:
        (g,) = _clipped(optimizer, [_flatten(gradients)])
    moments = [_flatten(slot) for slot in state.slots]
    step = _RULES[type(optimizer)].step
    delta, *moments = step(optimizer, g, moments, tf.cast(rate, g.dtype), state.iterations)
    W = [_decayed(optimizer, v, w, rate) for v, w in zip(_variables(optimizer), W, strict=True)]
    W_updated = _unflatten(_flatten(W) + delta, W)
    return Update(W_updated, State(state.iterations + 1, tuple(_unflatten(m, W) for m in moments)))


def _flatten(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns all elements in one vector, so that a rule takes ten ops in total, not ten per weight."""
    return tf.concat([tf.reshape(v, [-1]) for v in tensors], 0)


def _unflatten(vector, like: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Inverse of `_flatten`: returns tensors with the shapes of `like`."""
    parts = tf.split(vector, [v.shape.num_elements() for v in like])
    return [tf.reshape(part, v.shape) for part, v in zip(parts, like, strict=True)]


def commit(optimizer: keras.optimizers.Optimizer, update: Update) -> None:
    """Applies `update`: assigns its values to the optimizer's variables, its moments and t."""
    slots = [v for slot in _RULES[type(optimizer)].slots(optimizer) for v in slot]
    variables = [v.value for v in (*_variables(optimizer), *slots, optimizer.iterations)]
    values = [*update.W, *(value for slot in update.state.slots for value in slot)]
    replicas.assign(variables, [*values, update.state.iterations])


def apply(optimizer: keras.optimizers.Optimizer, gradients: Sequence[tf.Tensor]) -> None:
    """Updates the optimizer's variables as `optimizer.apply` does, with fewer ops. Not differentiable.

    Keras's Adam runs 26 ops per variable, each of them a kernel on a GPU; TensorFlow has one fused op.

    Args:
      optimizer: built on the trained variables, in the order of `gradients`.
      gradients: summed over replicas; clipping is by the norm of the sum. None of them is None.
    """
    if type(optimizer) is keras.optimizers.SGD:
        commit(optimizer, advance(optimizer, current(optimizer).W, gradients))
        return
    _require_supported(optimizer)
    variables = _variables(optimizer)
    gradients = _clipped(optimizer, [tf.convert_to_tensor(g) for g in gradients])
    dtype = variables[0].dtype
    t, rate = (tf.cast(v, dtype) for v in (optimizer.iterations.value + 1, _learning_rate(optimizer)))
    betas = optimizer.beta_1, optimizer.beta_2
    powers = [tf.pow(tf.cast(beta, dtype), t) for beta in betas]  # rounded to float32 first, as in Keras
    scalars = [*powers, rate, *(tf.constant(v, dtype) for v in (*betas, optimizer.epsilon))]

    def step(w, m, v, g, decay: bool, *scalars):
        cast = [tf.cast(scalar, w.dtype) for scalar in scalars]
        names = ("beta1_power", "beta2_power", "lr", "beta1", "beta2", "epsilon")
        options = dict(zip(names, cast, strict=True))
        if decay:
            w.assign_sub(w * tf.cast(optimizer.weight_decay, w.dtype) * options["lr"])
        tf.raw_ops.ResourceApplyAdam(
            var=w.handle, m=m.handle, v=v.handle, grad=tf.cast(g, w.dtype), **options
        )

    def update(strategy, gradients, *scalars):
        slots = (optimizer._momentums, optimizer._velocities)
        for w, m, v, g in zip(variables, *slots, gradients, strict=True):
            decay = optimizer.weight_decay is not None and optimizer._use_weight_decay(w.value)
            strategy.extended.update(w.value, step, args=(m.value, v.value, g, decay, *scalars), group=False)
        strategy.extended.update(optimizer.iterations.value, lambda count: count.assign_add(1), group=False)

    tf.distribute.get_replica_context().merge_call(update, args=(gradients, *scalars))


class _Rule(NamedTuple):
    slots: Callable  # optimizer -> lists of Keras variables
    step: Callable  # (optimizer, g, moments, rate, t) -> (w' - w, *moments'), all flattened


def _sgd(optimizer, g, moments, rate, iterations):
    """SGD: m' = mu m - rate g, W' = W + m'; Nesterov: W' = W + mu m' - rate g (Sutskever et al. 2013)."""
    step = -rate * g
    if not moments:
        return (step,)
    mu = tf.cast(optimizer.momentum, g.dtype)  # rounded to float32 first, as in Keras
    m = mu * moments[0] + step
    return mu * m + step if optimizer.nesterov else m, m


def _adam(optimizer, g, moments, rate, iterations):
    """Adam (Kingma & Ba 2015, section 2), with epsilon outside the bias-corrected root, as in Keras."""
    m, v = moments
    t = tf.cast(iterations + 1, g.dtype)
    beta_1, beta_2 = (tf.cast(beta, g.dtype) for beta in (optimizer.beta_1, optimizer.beta_2))
    alpha = rate * tf.sqrt(1 - beta_2**t) / (1 - beta_1**t)
    m = m + (g - m) * (1 - optimizer.beta_1)
    v = v + (g * g - v) * (1 - optimizer.beta_2)
    return -m * alpha / (_sqrt(v) + optimizer.epsilon), m, v


def _sqrt(v, at_zero=0.0):
    """Returns the square root of v, `at_zero` at 0, with derivative 0 there instead of infinity.

    Adam's v is 0 only where every gradient so far was 0. Then m is 0, too, and near g = 0 the update is
    W' = W - alpha m / epsilon, which does not depend on the root. So the derivative is exact (decision 0049).
    """
    nonzero = v != 0  # not v > 0, so that NaN stays NaN
    return tf.where(nonzero, tf.sqrt(tf.where(nonzero, v, 1)), at_zero)


_RULES = {
    keras.optimizers.SGD: _Rule(lambda o: (o.momentums,) if o.momentum else (), _sgd),
    keras.optimizers.Adam: _Rule(lambda o: (o._momentums, o._velocities), _adam),
    keras.optimizers.AdamW: _Rule(lambda o: (o._momentums, o._velocities), _adam),
}


def _require_supported(optimizer) -> None:
    """Raises ValueError if `advance` would compute a different update than Keras."""
    kind = type(optimizer).__name__
    if type(optimizer) not in _RULES:
        supported = ", ".join(kind.__name__ for kind in _RULES)
        raise ValueError(f"no update rule for {kind}; there are rules for {supported}")
    if not optimizer.built:
        raise ValueError(f"{kind} is not built; call its build(trainable_variables) first")
    for name in ("use_ema", "gradient_accumulation_steps", "loss_scale_factor", "amsgrad"):
        if getattr(optimizer, name, None):
            raise ValueError(f"{kind}: the update rule does not support {name}; do not set it")
    if not isinstance(optimizer._learning_rate, keras.Variable | LearningRateSchedule):
        raise ValueError(
            f"{kind}: learning_rate is a function without the step as argument; "
            "use a LearningRateSchedule instead"
        )
    for name in ("constraint", "overwrite_with_gradient"):
        weights = [v.path for v in _variables(optimizer) if getattr(v, name)]
        if weights:
            raise ValueError(f"the update rule does not support {name}; it is set on: {', '.join(weights)}")


def _variables(optimizer) -> list[keras.Variable]:
    """Returns the variables that the optimizer was built on. Keras has no public attribute for them."""
    return optimizer._trainable_variables


def _learning_rate(optimizer, iterations=None):
    """Returns the rate at step `iterations`, or the current one, which is all that Keras's property has."""
    rate = optimizer._learning_rate
    iterations = optimizer.iterations.value if iterations is None else iterations
    return rate(iterations) if isinstance(rate, LearningRateSchedule) else optimizer.learning_rate


def _clipped(optimizer, gradients):
    """Returns the gradients clipped by each tensor's norm, by the global norm, or by value.

    Keras allows one of the three per optimizer. As in Keras, a limit that is not positive means no clipping.
    """
    norm, joint, size = optimizer.clipnorm, optimizer.global_clipnorm, optimizer.clipvalue
    if norm and norm > 0:
        return [tf.clip_by_norm(g, norm) for g in gradients]
    if joint and joint > 0:
        square = 2 * tf.reduce_sum(tf.stack([tf.nn.l2_loss(g) for g in gradients]))
        # At 0, where the root has no derivative, the limit is used as the norm: nothing is clipped.
        use_norm = _sqrt(square, at_zero=joint)
        return tf.clip_by_global_norm(gradients, joint, use_norm)[0]
    if size and size > 0:
        return [tf.clip_by_value(g, -size, size) for g in gradients]
    return gradients


def _decayed(optimizer, variable, w, rate):
    """Returns w after decoupled weight decay (Loshchilov & Hutter 2019), or w if `variable` is excluded."""
    if optimizer.weight_decay is None or not optimizer._use_weight_decay(variable.value):
        return w
    return w - w * tf.cast(optimizer.weight_decay, w.dtype) * tf.cast(rate, w.dtype)
