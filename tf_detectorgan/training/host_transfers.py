"""Finds the tensors that a GPU step copies from the device's memory to the host's.

Before such a copy the host waits for the device, so the kernels after it start late. Which side a kernel
wants its arguments on is in TensorFlow's registrations; int32 arithmetic, for one, is the host's.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tf_detectorgan.training import gpu_ops
from tf_detectorgan.training.graphs import inner_graphs

CALLS = ("PartitionedCall", "StatefulPartitionedCall")  # inlined before they run
# Removed before a graph runs, or the same memory in another shape.
PASSED_ON = ("Identity", "IdentityN", "StopGradient", "PreventGradient", "CheckNumerics")
SHAPES = ("Shape", "ShapeN", "Size", "Rank")


class Transfer(NamedTuple):
    """A tensor in the device's memory that a kernel wants in the host's."""

    producer: str  # layer/.../op:output
    consumer: str  # layer/.../op
    kind: str  # the consumer's type
    argument: str  # of the consumer
    elements: int  # 0: of unknown shape
    dtype: str


class Memory(enum.Enum):
    """Where a tensor is while a step runs on a GPU; constants are where they are wanted."""

    CONSTANT = "constant"
    HOST = "host"
    DEVICE = "device"


def host_transfers(graph: tf.Graph) -> list[Transfer]:
    """The copies from device to host in one run of a concrete function's graph on one GPU.

    Images and other floats of its arguments are taken to be on the device already, int32 on the host, where
    TensorFlow keeps functions' arguments of that type. A loop's body counts once. What TensorFlow's graph
    optimiser does beyond folding constants and pruning is not followed.
    """
    walk = _Walk()
    outputs = walk.graph(graph, "", [_of_dtype(t) for t in graph.inputs])
    for tensor, memory in zip(graph.outputs, outputs, strict=True):
        if _of_dtype(tensor) is Memory.HOST:
            walk.want_on_host(tensor, memory, "", "", "returned", tensor.name)
    return list(walk.found.values())


def _of_dtype(tensor: tf.Tensor) -> Memory:
    """Where TensorFlow keeps a function's arguments and results, and what branches and loops pass on."""
    on_host = tensor.dtype in (tf.int32, tf.string, tf.resource, tf.variant)
    return Memory.HOST if on_host else Memory.DEVICE


class _Walk:
    """Assigns memory to the tensors of a graph and of those inside of it, op by op."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], Transfer] = {}  # by (outer ops, tensor): a tensor is copied once

    def graph(self, graph: tf.Graph, outer: str, arguments: Sequence[Memory]) -> list[Memory]:
        """Where the graph's outputs are, given where its arguments are."""
        where = {t.ref(): memory for t, memory in zip(graph.inputs, arguments, strict=True)}
        for op in _needed(graph):
            if op.type != "Placeholder":
                given = [where[t.ref()] for t in op.inputs]
                where |= dict(zip((t.ref() for t in op.outputs), self._op(op, outer, given), strict=True))
        return [where[t.ref()] for t in graph.outputs]

    def _op(self, op: tf.Operation, outer: str, given: list[Memory]) -> list[Memory]:
        """Where an op's outputs are."""
        if op.type in CALLS:
            return self.graph(inner_graphs(op)[0], f"{outer}{op.name}/", given)
        if op.type in PASSED_ON:
            return given
        folded = not op.op_def.is_stateful and all(memory is Memory.CONSTANT for memory in given)
        if (folded and not inner_graphs(op)) or _known_shape(op):
            return [Memory.CONSTANT] * len(op.outputs)
        if inner_graphs(op):
            return self._branches(op, outer, given)
        on_host = _host_arguments(op)
        named = list(gpu_ops.arguments(op))
        for (argument, tensor), memory in zip(named, given):  # noqa: B905 (outputs follow the inputs)
            if on_host is None or argument in on_host:
                self.want_on_host(tensor, memory, outer, op.name, op.type, argument)
        outputs = named[len(given) :]
        return [Memory.HOST if on_host is None or name in on_host else Memory.DEVICE for name, _ in outputs]

    def _branches(self, op: tf.Operation, outer: str, given: list[Memory]) -> list[Memory]:
        """The same of a condition or a loop, which TensorFlow makes of switches: the host chooses."""
        chosen_by = 0 if op.type.endswith("While") else 1  # inputs
        for i, (tensor, memory) in enumerate(zip(op.inputs, given, strict=True)):
            if i < chosen_by or _of_dtype(tensor) is Memory.HOST:
                self.want_on_host(tensor, memory, outer, op.name, op.type, f"input {i}")
        inside = [_of_dtype(t) for t in op.inputs][chosen_by:]
        for graph in inner_graphs(op):
            name = f"{outer}{op.name}/"
            results = self.graph(graph, name, inside)
            decides = chosen_by == 0 and [t.dtype for t in graph.outputs] == [tf.bool]
            for tensor, memory in zip(graph.outputs, results, strict=True):
                if decides or _of_dtype(tensor) is Memory.HOST:
                    self.want_on_host(tensor, memory, name, op.name, op.type, "result")
        return [_of_dtype(t) for t in op.outputs]

    def want_on_host(
        self, tensor: tf.Tensor, memory: Memory, outer: str, consumer: str, kind: str, argument: str
    ) -> None:
        """Notes a transfer if `tensor` is on the device."""
        if memory is Memory.DEVICE:
            count = tensor.shape.num_elements() or 0
            found = Transfer(outer + tensor.name, outer + consumer, kind, argument, count, tensor.dtype.name)
            self.found.setdefault((outer, tensor.name), found)


def _needed(graph: tf.Graph) -> list[tf.Operation]:
    """The ops that a run of the graph needs, in order: what outputs and side effects depend on."""
    wanted, needed = [t.op for t in graph.outputs] + list(graph.control_outputs), set()
    while wanted:
        op = wanted.pop()
        if op.name not in needed:
            needed.add(op.name)
            wanted += [t.op for t in op.inputs] + list(op.control_inputs)
    return [op for op in graph.get_operations() if op.name in needed]


def _known_shape(op: tf.Operation) -> bool:
    return op.type in SHAPES and all(t.shape.is_fully_defined() for t in op.inputs)


def _host_arguments(op: tf.Operation) -> frozenset[str] | None:
    """`gpu_ops.host_arguments`; also None for int32 variables, which TensorFlow keeps on the host."""
    variable = any(t.dtype == tf.resource for t in op.inputs) and "dtype" in op.node_def.attr
    if variable and op.get_attr("dtype") == tf.int32:
        return None
    return gpu_ops.host_arguments(op)
