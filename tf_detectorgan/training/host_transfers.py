"""Finds the tensors that a training step on a GPU copies from device memory to host memory.

Before such a copy the host waits for the device, so the next kernels start late. TensorFlow's kernel
registrations say which arguments must be in host memory; int32 arithmetic, for example, runs on the host.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tf_detectorgan.training import gpu_ops
from tf_detectorgan.training.graphs import inner_graphs

CALLS = ("PartitionedCall", "StatefulPartitionedCall")  # inlined before they run
# Ops that are removed before a graph runs, or whose output is in the same memory as their input.
PASS_THROUGH = ("Identity", "IdentityN", "StopGradient", "PreventGradient", "CheckNumerics")
SHAPES = ("Shape", "ShapeN", "Size", "Rank")


class Transfer(NamedTuple):
    """A tensor in device memory that is the input of a kernel which needs it in host memory."""

    producer: str  # layer/.../op:output
    consumer: str  # layer/.../op
    kind: str  # the consumer's type
    argument: str  # the consumer's argument
    elements: int  # 0: unknown shape
    dtype: str


class Memory(enum.Enum):
    """The memory of a tensor while a step runs on a GPU; constants are in the memory of their consumer."""

    CONSTANT = "constant"
    HOST = "host"
    DEVICE = "device"


def host_transfers(graph: tf.Graph) -> list[Transfer]:
    """Returns the copies from device to host in one run of a concrete function's graph on one GPU.

    Float arguments are assumed to be on the device, int32 arguments on the host, where TensorFlow keeps them.
    A loop's body counts once. Of TensorFlow's graph optimisations, only constant folding and pruning are
    modelled.
    """
    walk = _Walk()
    outputs = walk.graph(graph, "", [_of_dtype(t) for t in graph.inputs])
    for tensor, memory in zip(graph.outputs, outputs, strict=True):
        if _of_dtype(tensor) is Memory.HOST:
            walk.require_on_host(tensor, memory, "", "", "returned", tensor.name)
    return list(walk.found.values())


def _of_dtype(tensor: tf.Tensor) -> Memory:
    """Returns where TensorFlow keeps arguments and results of functions, branches and loops of this dtype."""
    on_host = tensor.dtype in (tf.int32, tf.string, tf.resource, tf.variant)
    return Memory.HOST if on_host else Memory.DEVICE


class _Walk:
    """Determines the memory of the tensors of a graph and of the graphs inside it, op by op."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], Transfer] = {}  # by (outer ops, tensor): a tensor is copied once

    def graph(self, graph: tf.Graph, outer: str, arguments: Sequence[Memory]) -> list[Memory]:
        """Returns the memory of the graph's outputs, given that of its arguments."""
        known = {t.ref(): memory for t, memory in zip(graph.inputs, arguments, strict=True)}
        for op in _needed(graph):
            if op.type != "Placeholder":
                inputs = [known[t.ref()] for t in op.inputs]
                known |= dict(zip((t.ref() for t in op.outputs), self._op(op, outer, inputs), strict=True))
        return [known[t.ref()] for t in graph.outputs]

    def _op(self, op: tf.Operation, outer: str, inputs: list[Memory]) -> list[Memory]:
        """Returns the memory of an op's outputs, given that of its inputs."""
        if op.type in CALLS:
            return self.graph(inner_graphs(op)[0], f"{outer}{op.name}/", inputs)
        if op.type in PASS_THROUGH:
            return inputs
        folded = not op.op_def.is_stateful and all(memory is Memory.CONSTANT for memory in inputs)
        if (folded and not inner_graphs(op)) or _known_shape(op):
            return [Memory.CONSTANT] * len(op.outputs)
        if inner_graphs(op):
            return self._branches(op, outer, inputs)
        on_host = _host_arguments(op)
        named = list(gpu_ops.arguments(op))
        for (argument, tensor), memory in zip(named, inputs):  # noqa: B905 (outputs follow the inputs)
            if on_host is None or argument in on_host:
                self.require_on_host(tensor, memory, outer, op.name, op.type, argument)
        outputs = named[len(inputs) :]
        return [Memory.HOST if on_host is None or name in on_host else Memory.DEVICE for name, _ in outputs]

    def _branches(self, op: tf.Operation, outer: str, inputs: list[Memory]) -> list[Memory]:
        """Does the same as `_op` for a condition or a loop, whose branch the host selects."""
        selectors = 0 if op.type.endswith("While") else 1  # number of inputs that select the branch
        for i, (tensor, memory) in enumerate(zip(op.inputs, inputs, strict=True)):
            if i < selectors or _of_dtype(tensor) is Memory.HOST:
                self.require_on_host(tensor, memory, outer, op.name, op.type, f"input {i}")
        inside = [_of_dtype(t) for t in op.inputs][selectors:]
        for graph in inner_graphs(op):
            name = f"{outer}{op.name}/"
            results = self.graph(graph, name, inside)
            is_condition = selectors == 0 and [t.dtype for t in graph.outputs] == [tf.bool]
            for tensor, memory in zip(graph.outputs, results, strict=True):
                if is_condition or _of_dtype(tensor) is Memory.HOST:
                    self.require_on_host(tensor, memory, name, op.name, op.type, "result")
        return [_of_dtype(t) for t in op.outputs]

    def require_on_host(
        self, tensor: tf.Tensor, memory: Memory, outer: str, consumer: str, kind: str, argument: str
    ) -> None:
        """Records a transfer if `tensor` is on the device."""
        if memory is Memory.DEVICE:
            count = tensor.shape.num_elements() or 0
            found = Transfer(outer + tensor.name, outer + consumer, kind, argument, count, tensor.dtype.name)
            self.found.setdefault((outer, tensor.name), found)


def _needed(graph: tf.Graph) -> list[tf.Operation]:
    """Returns the ops on which the graph's outputs and side effects depend, in order."""
    pending, needed = [t.op for t in graph.outputs] + list(graph.control_outputs), set()
    while pending:
        op = pending.pop()
        if op.name not in needed:
            needed.add(op.name)
            pending += [t.op for t in op.inputs] + list(op.control_inputs)
    return [op for op in graph.get_operations() if op.name in needed]


def _known_shape(op: tf.Operation) -> bool:
    return op.type in SHAPES and all(t.shape.is_fully_defined() for t in op.inputs)


def _host_arguments(op: tf.Operation) -> frozenset[str] | None:
    """Returns `gpu_ops.host_arguments`, or None for int32 variables, which TensorFlow keeps on the host."""
    variable = any(t.dtype == tf.resource for t in op.inputs) and "dtype" in op.node_def.attr
    if variable and op.get_attr("dtype") == tf.int32:
        return None
    return gpu_ops.host_arguments(op)
