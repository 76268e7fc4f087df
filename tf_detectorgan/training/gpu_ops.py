"""Checks a graph op by op for what GPUs would refuse, lack, or send to the host.

Deterministic GPUs refuse some ops: their kernels end the step with an UnimplementedError (decision 0133).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.framework.kernels import get_registered_kernels_for_op  # no public name

from tf_detectorgan.training.graphs import operations

# Ops whose GPU kernels refuse determinism, by the sentences in TensorFlow 2.21's library. Others of its
# sentences are not of ops here: sums of segments refuse on Windows alone, depthwise convolutions with cuDNN
# before 7.6.3, and XLA, which `train` does not use, a max pooling; scatters of resources are all in ON_HOST.
REFUSED = (
    "AdjustContrast", "AdjustContrastv2", "ResizeNearestNeighborGrad", "SparseTensorDenseMatMul",
    "FusedBatchNormGrad", "FusedBatchNormGradV2", "FusedBatchNormGradV3", "DebugNumericSummaryV2",
    "Dilation2DBackpropFilter", "Dilation2DBackpropInput", "MaxPoolGradWithArgmax", "Svd", "Bincount",
    "DenseBincount", "FakeQuantWithMinMaxVarsGradient", "FakeQuantWithMinMaxVarsPerChannelGradient",
    "ScatterAdd", "ScatterDiv", "ScatterMax", "ScatterMin", "ScatterMul", "ScatterSub", "ScatterUpdate",
    "ScatterNdAdd", "ScatterNdSub", "ScatterNdUpdate", "CropAndResizeGradBoxes", "CropAndResizeGradImage",
    "SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits", "Timestamp",
)  # fmt: skip

# With determinism GPUs have these computed on the host (TensorFlow's notes on release 2.8).
ON_HOST = tuple(
    prefix + suffix
    for prefix in ("ScatterNd", "ResourceScatter", "TensorScatter")
    for suffix in (
        "", "Add", "Sub", "Mul", "Div", "Min", "Max", "Update", "NonAliasingAdd",
        "NdAdd", "NdSub", "NdMin", "NdMax", "NdUpdate",
    )
)  # fmt: skip
PYTHON = ("PyFunc", "PyFuncStateless", "EagerPyFunc")

# Ops without a GPU kernel that run on the host, and why that is no fault.
WITHOUT_KERNEL = {
    "CombinedNonMaxSuppression": "detection only: a few numbers a box, once an image, not in a training step",
}


class Fault(NamedTuple):
    """An op that a GPU would not run, or not without the host."""

    op: str  # layer/.../op, by way of the ops that run it
    kind: str
    why: str


def faults(graph: tf.Graph, largest: int) -> list[Fault]:
    """The ops of a graph, and of all graphs that it runs, which deterministic training on GPUs forbids.

    Args:
      graph: of a concrete function.
      largest: elements of a tensor that a kernel may take from or put into the host's memory: fewer than an
        image has.
    """
    found = []
    for name, op in operations(graph):
        why = _fault(op, largest)
        if why:
            found.append(Fault(name, op.type, why))
    return found


def _fault(op, largest: int) -> str:
    # A batch norm's gradient is deterministic where it trains.
    trains = op.type.startswith("FusedBatchNormGrad") and op.get_attr("is_training")
    if op.type in REFUSED and not trains:
        return "its GPU kernel refuses determinism"
    if op.type in PYTHON:
        return "runs Python on the host"
    if op.type in ON_HOST:
        return "is computed on the host when determinism is on"
    if op.type in WITHOUT_KERNEL or op.type == "Placeholder":
        return ""
    on_host = host_arguments(op)
    if on_host is None:
        return f"has no GPU kernel for {', '.join(sorted({t.dtype.name for t in op.inputs}))}"
    for argument, tensor in arguments(op):
        if argument in on_host and (tensor.shape.num_elements() or 0) > largest:
            return f"its {argument} of shape {tensor.shape} lies in the host's memory"
    return ""


def host_arguments(op: tf.Operation) -> frozenset[str] | None:
    """Names of the arguments that all of the op's GPU kernels have in the host's memory; None: no kernel."""
    attributes = op.node_def.attr
    types = []
    for name in _constrained(op.type):
        given = attributes[name]
        types.append((name, frozenset(given.list.type or [given.type])))
    return _host_arguments(op.type, frozenset(types))


@functools.cache
def _host_arguments(kind: str, types: frozenset[tuple[str, frozenset]]) -> frozenset[str] | None:
    given = dict(types)
    fitting = [
        frozenset(kernel.host_memory_arg)
        for kernel in _kernels(kind)
        if all(given[one.name] <= set(one.allowed_values.list.type) for one in kernel.constraint)
    ]
    return frozenset.intersection(*fitting) if fitting else None


@functools.cache
def _constrained(kind: str) -> list[str]:
    """Attributes, types or lists of types, by which kernels are chosen."""
    return sorted({one.name for kernel in _kernels(kind) for one in kernel.constraint})


@functools.cache
def _kernels(kind: str) -> list:
    """Registered for GPUs, or for every device."""
    return [k for k in get_registered_kernels_for_op(kind).kernel if k.device_type in ("GPU", "DEFAULT")]


def arguments(op) -> Iterator[tuple[str, tf.Tensor]]:
    """(name, tensor) of the op's inputs and outputs by their names in kernels; a list has one name."""
    for described, tensors in ((op.op_def.input_arg, op.inputs), (op.op_def.output_arg, op.outputs)):
        rest = iter(tensors)
        for argument in described:
            if argument.number_attr:
                count = op.get_attr(argument.number_attr)
            elif argument.type_list_attr:
                count = len(op.get_attr(argument.type_list_attr))
            else:
                count = 1
            yield from ((argument.name, next(rest)) for _ in range(count))
