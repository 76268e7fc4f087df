"""What a Keras optimizer would do, as a differentiable function: U of Eqn 3.

Keras's own `stateless_apply` raises on the TensorFlow backend. Here W' and the new state are plain tensors,
computed from the *live* optimizer's options and, for a first step, its live state; nothing is assigned before
`commit`. docs/unroll.md shows how. Letters: W weights, g their gradient, m and v the first and second
moments, t steps taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule

from tf_detectorgan.training import replicas


class State(NamedTuple):
    """What an optimizer remembers."""

    iterations: tf.Tensor  # t, integer scalar
    slots: tuple[list[tf.Tensor], ...]  # one list for each kind of moment, each in the order of W


class Update(NamedTuple):
    """Weights W' after a step, in the order of W, and the optimizer's state after it."""

    W: list[tf.Tensor]
    state: State


def live(optimizer: keras.optimizers.Optimizer) -> State:
    """The optimizer's state as it is now.

    Raises:
      ValueError: the optimizer is not built, or there is no rule for it or for one of its options.
    """
    _require_known(optimizer)
    slots = _RULES[type(optimizer)].slots(optimizer)
    values = tuple([tf.convert_to_tensor(v.value) for v in slot] for slot in slots)
    return State(tf.convert_to_tensor(optimizer.iterations.value), values)


def require_built_on(optimizer: keras.optimizers.Optimizer, W: Sequence[tf.Variable]) -> None:
    """Raises ValueError unless the optimizer is built on W, in this order."""
    _require_known(optimizer)
    own = [v.value for v in _variables(optimizer)]
    if [id(v) for v in own] != [id(w) for w in W]:
        raise ValueError(
            f"{type(optimizer).__name__} is built on {len(own)} variables that are not the {len(W)} weights "
            "or stand in another order; build it on the network's trainable_variables as they are"
        )


def current(optimizer: keras.optimizers.Optimizer) -> Update:
    """Weights and state as they are now: an update that changes nothing."""
    return Update([tf.convert_to_tensor(v.value) for v in _variables(optimizer)], live(optimizer))


def advance(
    optimizer: keras.optimizers.Optimizer,
    W: Sequence[tf.Tensor],
    gradients: Sequence[tf.Tensor],
    state: State | None = None,
) -> Update:
    """One step as `optimizer.apply` would take it, with its clipping, weight decay and schedule.

    Differentiable to `gradients`, W and the state. On several replicas `gradients` are their sum, so clipping
    is by the norm of the sum (Keras clips each replica's part).

    Args:
      optimizer: built on the variables whose values are W, in the same order.
      W: tensors of the variables' shapes and dtypes.
      gradients: the same; slices and other dtypes are converted.
      state: where the step starts; None: the live one.

    Raises:
      RuntimeError: a gradient is None.
    """
    state = live(optimizer) if state is None else state
    rate = _learning_rate(optimizer, state.iterations)
    replicas.require_gradients(gradients, [v.path for v in _variables(optimizer)], "the loss")
    gradients = [tf.cast(tf.convert_to_tensor(g), w.dtype) for g, w in zip(gradients, W, strict=True)]
    if optimizer.clipnorm:  # of each tensor
        g = _joined(_clipped(optimizer, gradients))
    else:
        (g,) = _clipped(optimizer, [_joined(gradients)])
    moments = [_joined(slot) for slot in state.slots]
    step = _RULES[type(optimizer)].step
    delta, *moments = step(optimizer, g, moments, tf.cast(rate, g.dtype), state.iterations)
    W = [_decayed(optimizer, v, w, rate) for v, w in zip(_variables(optimizer), W, strict=True)]
    ahead = _parted(_joined(W) + delta, W)
    return Update(ahead, State(state.iterations + 1, tuple(_parted(m, W) for m in moments)))


def _joined(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """All elements in one vector: a rule and its derivative are then ten ops in all, not ten a weight."""
    return tf.concat([tf.reshape(v, [-1]) for v in tensors], 0)


def _parted(vector, like: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Inverse of `_joined`: tensors of the shapes of `like`."""
    parts = tf.split(vector, [v.shape.num_elements() for v in like])
    return [tf.reshape(part, v.shape) for part, v in zip(parts, like, strict=True)]


def commit(optimizer: keras.optimizers.Optimizer, update: Update) -> None:
    """Makes the step real: the optimizer's variables, its moments and t take the update's values."""
    slots = [v for slot in _RULES[type(optimizer)].slots(optimizer) for v in slot]
    variables = [v.value for v in (*_variables(optimizer), *slots, optimizer.iterations)]
    values = [*update.W, *(value for slot in update.state.slots for value in slot)]
    replicas.assign(variables, [*values, update.state.iterations])


def apply(optimizer: keras.optimizers.Optimizer, gradients: Sequence[tf.Tensor]) -> None:
    """Takes a step that nothing is differentiated through: as `optimizer.apply` by fewer, larger ops.

    Keras's Adam is 26 ops a variable, each of them a kernel on a GPU; TensorFlow has one for all.

    Args:
      optimizer: built on the variables that move, in the order of `gradients`.
      gradients: summed over replicas; clipping is by the norm of the sum. None of them is None.
    """
    if type(optimizer) is keras.optimizers.SGD:
        commit(optimizer, advance(optimizer, current(optimizer).W, gradients))
        return
    _require_known(optimizer)
    variables = _variables(optimizer)
    gradients = _clipped(optimizer, [tf.convert_to_tensor(g) for g in gradients])
    dtype = variables[0].dtype
    t, rate = (tf.cast(v, dtype) for v in (optimizer.iterations.value + 1, _learning_rate(optimizer)))
    betas = optimizer.beta_1, optimizer.beta_2
    powers = [tf.pow(tf.cast(beta, dtype), t) for beta in betas]  # by way of float32, as in Keras
    scalars = [*powers, rate, *(tf.constant(v, dtype) for v in (*betas, optimizer.epsilon))]

    def step(w, m, v, g, decays: bool, *scalars):
        cast = [tf.cast(scalar, w.dtype) for scalar in scalars]
        names = ("beta1_power", "beta2_power", "lr", "beta1", "beta2", "epsilon")
        options = dict(zip(names, cast, strict=True))
        if decays:
            w.assign_sub(w * tf.cast(optimizer.weight_decay, w.dtype) * options["lr"])
        tf.raw_ops.ResourceApplyAdam(
            var=w.handle, m=m.handle, v=v.handle, grad=tf.cast(g, w.dtype), **options
        )

    def update(strategy, gradients, *scalars):
        slots = (optimizer._momentums, optimizer._velocities)
        for w, m, v, g in zip(variables, *slots, gradients, strict=True):
            decays = optimizer.weight_decay is not None and optimizer._use_weight_decay(w.value)
            strategy.extended.update(w.value, step, args=(m.value, v.value, g, decays, *scalars), group=False)
        strategy.extended.update(optimizer.iterations.value, lambda count: count.assign_add(1), group=False)

    tf.distribute.get_replica_context().merge_call(update, args=(gradients, *scalars))


class _Rule(NamedTuple):
    slots: Callable  # optimizer -> lists of Keras variables
    step: Callable  # (optimizer, g, moments, rate, t), of all weights joined -> (w' - w, *moments')


def _sgd(optimizer, g, moments, rate, iterations):
    """m' = mu m - rate g, W' = W + m'; Nesterov: W' = W + mu m' - rate g (Sutskever et al. 2013)."""
    step = -rate * g
    if not moments:
        return (step,)
    mu = tf.cast(optimizer.momentum, g.dtype)  # by way of float32, as in Keras
    m = mu * moments[0] + step
    return mu * m + step if optimizer.nesterov else m, m


def _adam(optimizer, g, moments, rate, iterations):
    """Kingma & Ba 2015, section 2, with epsilon outside of the corrected root, as in Keras."""
    m, v = moments
    t = tf.cast(iterations + 1, g.dtype)
    beta_1, beta_2 = (tf.cast(beta, g.dtype) for beta in (optimizer.beta_1, optimizer.beta_2))
    alpha = rate * tf.sqrt(1 - beta_2**t) / (1 - beta_1**t)
    m = m + (g - m) * (1 - optimizer.beta_1)
    v = v + (g * g - v) * (1 - optimizer.beta_2)
    return -m * alpha / (_sqrt(v) + optimizer.epsilon), m, v


def _sqrt(v, at_zero=0.0):
    """The root, with derivative 0 at 0 instead of infinity.

    Adam's v is 0 only where every gradient so far was 0, and with it m: then W' = W - alpha m / epsilon near
    g = 0, in which the root has no part. So the derivative stays exact (decision 0049).
    """
    rooted = v != 0  # not v > 0: NaN stays NaN
    return tf.where(rooted, tf.sqrt(tf.where(rooted, v, 1)), at_zero)


_RULES = {
    keras.optimizers.SGD: _Rule(lambda o: (o.momentums,) if o.momentum else (), _sgd),
    keras.optimizers.Adam: _Rule(lambda o: (o._momentums, o._velocities), _adam),
    keras.optimizers.AdamW: _Rule(lambda o: (o._momentums, o._velocities), _adam),
}


def _require_known(optimizer) -> None:
    """Raises ValueError for what `advance` would do differently from Keras."""
    kind = type(optimizer).__name__
    if type(optimizer) not in _RULES:
        known = ", ".join(kind.__name__ for kind in _RULES)
        raise ValueError(f"no update rule for {kind}; there are rules for {known}")
    if not optimizer.built:
        raise ValueError(
            f"{kind} is not built; call its build(trainable_variables) before it is asked for a step"
        )
    for name in ("use_ema", "gradient_accumulation_steps", "loss_scale_factor", "amsgrad"):
        if getattr(optimizer, name, None):
            raise ValueError(f"{kind}: the update rule has no {name}; leave it out")
    if not isinstance(optimizer._learning_rate, keras.Variable | LearningRateSchedule):
        raise ValueError(
            f"{kind}: learning_rate is a function that knows the live step only; "
            "write it as a LearningRateSchedule"
        )
    for name in ("constraint", "overwrite_with_gradient"):
        weights = [v.path for v in _variables(optimizer) if getattr(v, name)]
        if weights:
            raise ValueError(f"the update rule has no {name}; these weights have it: {', '.join(weights)}")


def _variables(optimizer) -> list[keras.Variable]:
    """What the optimizer was built on. Keras has no public name for it."""
    return optimizer._trainable_variables


def _learning_rate(optimizer, iterations=None):
    """The rate at step `iterations`, or now; the optimizer's own property knows the live step only."""
    rate = optimizer._learning_rate
    iterations = optimizer.iterations.value if iterations is None else iterations
    return rate(iterations) if isinstance(rate, LearningRateSchedule) else optimizer.learning_rate


def _clipped(optimizer, gradients):
    """By each tensor's norm, by their joint norm, or by value: Keras lets an optimizer have one of them.

    As Keras does, it takes a limit that is not positive for none.
    """
    norm, joint, size = optimizer.clipnorm, optimizer.global_clipnorm, optimizer.clipvalue
    if norm and norm > 0:
        return [tf.clip_by_norm(g, norm) for g in gradients]
    if joint and joint > 0:
        square = 2 * tf.reduce_sum(tf.stack([tf.nn.l2_loss(g) for g in gradients]))
        # Near 0, where the root has no derivative, nothing is clipped: as by a norm of the limit itself.
        use_norm = _sqrt(square, at_zero=joint)
        return tf.clip_by_global_norm(gradients, joint, use_norm)[0]
    if size and size > 0:
        return [tf.clip_by_value(g, -size, size) for g in gradients]
    return gradients


def _decayed(optimizer, variable, w, rate):
    """w after weight decay, decoupled (Loshchilov & Hutter 2019), but where the optimizer spares it."""
    if optimizer.weight_decay is None or not optimizer._use_weight_decay(variable.value):
        return w
    return w - w * tf.cast(optimizer.weight_decay, w.dtype) * tf.cast(rate, w.dtype)
