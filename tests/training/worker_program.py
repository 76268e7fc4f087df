"""One process of test_workers.py: worker_program.py DIRECTORY WORKERS STEPS, or ... DIES_AT (worker 1).

Trains tiny networks by the joint step in the outer loop; writes losses and weights next to the checkpoints.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.training import conftest as tiny
from tf_detectorgan.training import workers
from tf_detectorgan.training.joint_step import joint_step
from tf_detectorgan.training.loop import Every, Phase, StopSignal, run_phase
from tf_detectorgan.training.phases import _trackable_parts

BATCH, POOL = 4, 64  # pools never fill up: after that each replica exchanges images by draws of its own


def train(directory, together, steps, dies_at):
    strategy = together.strategy or tf.distribute.get_strategy()
    count = strategy.num_replicas_in_sync
    joint_models = tiny.joint_models(batch_size=BATCH, pool_size=POOL // count, strategy=together.strategy)
    objective = tiny.objective()
    losses = []

    def step(batch, number):
        if number == dies_at and together.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        shares = strategy.run(joint_step, args=(joint_models, objective, batch, tf.constant([0, number])))
        values = {k: strategy.reduce("SUM", v, axis=None) for k, v in shares.items()}
        losses.append({k: float(v) for k, v in values.items()})
        return values

    def batches(start):
        mine = together.host.rows(BATCH)
        batches = (tiny.batch(number, BATCH) for number in range(start, steps))
        own = (tf.nest.map_structure(lambda v: tf.boolean_mask(v, mine), batch) for batch in batches)
        return together.rows(own) if together.strategy else own

    phase = Phase(
        "joint",
        directory / "joint",
        _trackable_parts(joint_models),
        steps,
        step,
        batches,
        lambda done, row: None,
    )
    run_phase(phase, Every(log=1, checkpoint=1, inspect=100), StopSignal().install(), together)
    weights = {f"{net}/{i}": w for net, ws in tiny.networks(joint_models).items() for i, w in enumerate(ws)}
    np.savez(directory / f"weights_{together.index}.npz", **weights)
    (directory / f"losses_{together.index}.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    count, steps, dies_at = (int(argument) for argument in (*sys.argv[2:], "-1")[:3])
    with workers.ending_together(count):
        train(Path(sys.argv[1]), workers.join(count), steps, dies_at)
