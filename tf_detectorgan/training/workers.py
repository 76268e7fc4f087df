"""The processes (workers) that train together, one per machine. A single process is the chief.

Only the chief, worker 0, reads and writes the run directory, makes images, evaluates and reports. It passes
values to the other workers by sums over workers in which their terms are 0 (decision 0092).
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
from tf_detectorgan.data.streams import SINGLE_HOST, Host
from tf_detectorgan.errors import EXIT_BAD_INPUT, EXIT_CANNOT_WRITE, EXIT_INTERRUPTED, InputError, Interrupted

POLL = 0.5  # seconds between two attempts to connect to the other workers


class Workers:
    """All workers of a training, from one worker's side. All must make the same calls in the same order."""

    def __init__(self, strategy: tf.distribute.MultiWorkerMirroredStrategy | None = None):
        self.strategy = strategy
        self.index = strategy.cluster_resolver.task_id if strategy else 0

    @property
    def chief(self) -> bool:
        return self.index == 0

    @property
    def host(self) -> Host:
        """This worker's host, which determines the rows of every batch that it decodes."""
        return Host(self.index, len(_addresses(self.strategy))) if self.strategy else SINGLE_HOST

    def run_on_chief(self, work: Callable[[], Any]) -> int:
        """Calls `work` on the chief only; all workers wait for it and return its result as an int."""
        result = int(work() or 0) if self.chief else 0
        return self.total(result)

    def total(self, number: int) -> int:
        """Returns the sum of `number` over workers."""
        return int(self._sum(tf.constant(number, tf.int64))) if self.strategy else number

    def restore(self, phase: PhaseDirectory, parts: dict[str, Any]) -> int:
        """Restores the chief's newest checkpoint on all workers; returns the number of finished steps."""
        steps = self.run_on_chief(phase.restore)
        self.broadcast(parts)
        return steps

    def save(self, phase: PhaseDirectory, parts: dict[str, Any], steps: int) -> None:
        """Saves a checkpoint on the chief, after copying the other workers' image pools to it."""
        if self.strategy:
            owned = self.strategy.num_replicas_in_sync // len(_addresses(self.strategy))
            for part in parts.values():
                for replica, pool in enumerate(part if isinstance(part, list) else ()):
                    self._copy(pool.variables, replica // owned)
        if self.chief:
            phase.save(steps)

    def broadcast(self, parts: dict[str, Any]) -> None:
        """Assigns the chief's values to the variables of all workers."""
        if self.strategy:
            for part in parts.values():
                for one in part if isinstance(part, list) else [part]:
                    self._copy(one.variables, 0)

    def rows(self, batches: Iterable) -> Iterator:
        """Yields this worker's rows, split over its replicas: replica r of all workers has part r."""
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
    """Waits for all workers and returns them. Call it before TensorFlow runs any op.

    Raises:
      InputError: the environment does not have the workers' addresses.
    """
    if count == 1:
        return Workers()
    tf_config.announce(os.environ, count)
    cluster = json.loads(os.environ["TF_CONFIG"])
    wait_for_others(cluster["cluster"]["worker"], cluster["task"]["index"])
    return Workers(tf.distribute.MultiWorkerMirroredStrategy())


def wait_for_others(addresses: list[str], index: int) -> None:
    """Returns when every other worker can be reached.

    TensorFlow also waits for them, but blocks the interpreter: a SIGTERM would not be handled, perhaps for
    hours while another pod waits for its node. Until then this worker listens on TensorFlow's port.

    Args:
      addresses: host:port of all workers.
      index: this worker's index in `addresses`.
    """
    missing = [address for other, address in enumerate(addresses) if other != index]
    all_interfaces = ("", int(addresses[index].rpartition(":")[2]))
    dualstack = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dualstack else socket.AF_INET
    printed: list[str] = []
    with socket.create_server(all_interfaces, family=family, dualstack_ipv6=dualstack):
        while missing := [address for address in missing if not _is_reachable(address)]:
            if missing != printed:
                print(f"waiting for {', '.join(missing)}", flush=True)
                printed = missing
            time.sleep(POLL)


def _is_reachable(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=POLL).close()
    except OSError:  # it is not running yet, and its name may not exist yet
        return False
    return True


@contextlib.contextmanager
def ending_together(count: int) -> Iterator[None]:
    """With several workers, ends this process at once when it is done or fails, or when a worker is lost.

    TensorFlow detects a dead worker by its closed connection, an unreachable one by heartbeats (10 seconds).
    Then all operations between workers fail. TensorFlow's own exit would wait for the lost worker.
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
    except SystemExit as error:  # by a signal, before the first step
        code, line = int(error.code or 0), ""
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError) as error:
        why = str(error.message).splitlines()[0]
        code, line = EXIT_INTERRUPTED, f"interrupted: lost a worker; the last checkpoint is kept ({why})"
    except Exception as error:  # after any error, the process must not wait for the other workers
        message = disk.fault(error)
        code, line = (EXIT_CANNOT_WRITE, f"error: {message}") if message else (1, traceback.format_exc())
    print(line, file=sys.stderr, end="\n" if line else "")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
