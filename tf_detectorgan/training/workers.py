"""The processes that train together, on one machine each. One process alone is its own chief.

The chief, worker 0, alone reads and writes the run directory, makes images, evaluates and reports; what the
others need to know they learn from it by sums over workers to which only the chief adds (decision 0092).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf

from tf_detectorgan import disk
from tf_detectorgan.checkpoints import PhaseDirectory
from tf_detectorgan.cluster import tf_config
from tf_detectorgan.data.streams import GAN_ONLY, Host
from tf_detectorgan.errors import EXIT_BAD_INPUT, EXIT_CANNOT_WRITE, EXIT_INTERRUPTED, InputError, Interrupted

POLL = 0.5  # seconds between two looks for the others


class Workers:
    """All processes of a training, seen from one of them. All must make the same calls in the same order."""

    def __init__(self, strategy: tf.distribute.MultiWorkerMirroredStrategy | None = None):
        self.strategy = strategy
        self.index = strategy.cluster_resolver.task_id if strategy else 0

    @property
    def chief(self) -> bool:
        return self.index == 0

    @property
    def host(self) -> Host:
        """Which rows of every batch this process decodes."""
        return Host(self.index, len(_addresses(self.strategy))) if self.strategy else GAN_ONLY

    def run_on_chief(self, work: Callable[[], Any]) -> int:
        """Calls `work` on the chief only; everybody waits for it and gets its result as an int."""
        result = int(work() or 0) if self.chief else 0
        return self.total(result)

    def total(self, number: int) -> int:
        """Sum over workers."""
        return int(self._sum(tf.constant(number, tf.int64))) if self.strategy else number

    def restore(self, phase: PhaseDirectory, parts: dict[str, Any]) -> int:
        """The chief's newest checkpoint on all workers; returns the number of finished steps."""
        steps = self.run_on_chief(phase.restore)
        self.broadcast(parts)
        return steps

    def save(self, phase: PhaseDirectory, parts: dict[str, Any], steps: int) -> None:
        """The chief saves; pools, which only their own worker fills, are fetched before."""
        if self.strategy:
            owned = self.strategy.num_replicas_in_sync // len(_addresses(self.strategy))
            for part in parts.values():
                for replica, pool in enumerate(part if isinstance(part, list) else ()):
                    self._copy(pool.variables, replica // owned)
        if self.chief:
            phase.save(steps)

    def broadcast(self, parts: dict[str, Any]) -> None:
        """Gives the chief's values to the variables of all workers."""
        if self.strategy:
            for part in parts.values():
                for one in part if isinstance(part, list) else [part]:
                    self._copy(one.variables, 0)

    def rows(self, batches: Iterable) -> Iterator:
        """Each replica's part of this host's rows: replica r, counted over all workers, has part r of all."""
        strategy, hosts = self.strategy, self.host.count

        for batch in batches:

            def of_replica(context, batch=batch):
                r, owned = context.replica_id_in_sync_group, context.num_replicas_in_sync // hosts
                return tf.nest.map_structure(lambda v: tf.split(v, owned)[r % owned], batch)

            yield strategy.experimental_distribute_values_from_function(of_replica)  # type: ignore[union-attr]

    def _copy(self, variables: Iterable, owner: int) -> None:
        for variable in variables:
            value = tf.convert_to_tensor(variable)
            wide = tf.cast(value, tf.int64) if value.dtype.is_integer else value
            summed = self._sum(wide if self.index == owner else tf.zeros_like(wide))
            variable.assign(tf.cast(summed, value.dtype))

    def _sum(self, value: tf.Tensor) -> tf.Tensor:
        return self.strategy.reduce("SUM", value, axis=None) if self.strategy else value


def _addresses(strategy) -> list[str]:
    return strategy.cluster_resolver.cluster_spec().as_dict()["worker"]


def join(count: int) -> Workers:
    """Waits for all workers. To be called before TensorFlow runs anything.

    Raises:
      InputError: the environment does not say who the workers are.
    """
    if count == 1:
        return Workers()
    tf_config.announce(os.environ, count)
    cluster = json.loads(os.environ["TF_CONFIG"])
    wait_for_others(cluster["cluster"]["worker"], cluster["task"]["index"])
    return Workers(tf.distribute.MultiWorkerMirroredStrategy())


def wait_for_others(addresses: list[str], index: int) -> None:
    """Returns once every other worker can be reached.

    TensorFlow waits for them too, but holds the interpreter meanwhile: a SIGTERM would not be heard, maybe
    for hours, while another pod waits for its node. This worker listens in TensorFlow's place until then.

    Args:
      addresses: host:port of all workers.
      index: this one's.
    """
    missing = [address for place, address in enumerate(addresses) if place != index]
    everywhere = ("", int(addresses[index].rpartition(":")[2]))
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    said: list[str] = []
    with socket.create_server(everywhere, family=family, dualstack_ipv6=both):
        while missing := [address for address in missing if not _reached(address)]:
            if missing != said:
                print(f"waiting for {', '.join(missing)}", flush=True)
                said = missing
            time.sleep(POLL)


def _reached(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=POLL).close()
    except OSError:  # not there yet, and perhaps not even its name
        return False
    return True


@contextlib.contextmanager
def ending_together(count: int) -> Iterator[None]:
    """With several workers: a lost one, as any other end, ends this process at once, with the exit code due.

    TensorFlow notices a dead peer by its closed connection, one that is cut off by heartbeats (10 seconds);
    then all operations between workers fail. Its own way out would wait for the peer that is no more.
    """
    if count == 1:
        yield
        return
    try:
        yield
        code, line = 0, ""
    except InputError as error:
        code, line = EXIT_BAD_INPUT, f"error: {error}"
    except Interrupted as error:
        code, line = EXIT_INTERRUPTED, f"interrupted: {error}"
    except SystemExit as error:  # by a signal, before steps are counted
        code, line = int(error.code or 0), ""
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError) as error:
        why = str(error.message).splitlines()[0]
        code, line = EXIT_INTERRUPTED, f"interrupted: lost a worker; the last checkpoint is kept ({why})"
    except Exception as error:  # whatever it is, the process must not wait for its peers
        said = disk.fault(error)
        code, line = (EXIT_CANNOT_WRITE, f"error: {said}") if said else (1, traceback.format_exc())
    print(line, file=sys.stderr, end="\n" if line else "")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
