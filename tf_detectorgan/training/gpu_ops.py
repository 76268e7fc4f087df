"""Finds ops in a graph that raise an error on GPUs, have no GPU kernel, or run on the host.

With determinism, some GPU kernels raise an UnimplementedError (decision 0133).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.framework.kernels import get_registered_kernels_for_op  # there is no public function

from tf_detectorgan.training.graphs import operations

# Ops whose GPU kernels raise an error with determinism, by the error messages in TensorFlow 2.21's library.
# Not listed: segment sums, which raise only on Windows; depthwise convolutions, only with cuDNN before 7.6.3;
# a max pooling in XLA, which `train` does not use; and resource scatters, which are in ON_HOST.
NONDETERMINISTIC = (
    "AdjustContrast", "AdjustContrastv2", "ResizeNearestNeighborGrad", "SparseTensorDenseMatMul",
    "FusedBatchNormGrad", "FusedBatchNormGradV2", "FusedBatchNormGradV3", "DebugNumericSummaryV2",
    "Dilation2DBackpropFilter", "Dilation2DBackpropInput", "MaxPoolGradWithArgmax", "Svd", "Bincount",
    "DenseBincount", "FakeQuantWithMinMaxVarsGradient", "FakeQuantWithMinMaxVarsPerChannelGradient",
    "ScatterAdd", "ScatterDiv", "ScatterMax", "ScatterMin", "ScatterMul", "ScatterSub", "ScatterUpdate",
    "ScatterNdAdd", "ScatterNdSub", "ScatterNdUpdate", "CropAndResizeGradBoxes", "CropAndResizeGradImage",
    "SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits", "Timestamp",
)  # fmt: skip

# Ops that run on the host with determinism (TensorFlow's release notes of 2.8).
ON_HOST = tuple(
    prefix + suffix
    for prefix in ("ScatterNd", "ResourceScatter", "TensorScatter")
    for suffix in (
        "", "Add", "Sub", "Mul", "Div", "Min", "Max", "Update", "NonAliasingAdd",
        "NdAdd", "NdSub", "NdMin", "NdMax", "NdUpdate",
    )
)  # fmt: skip
PYTHON = ("PyFunc", "PyFuncStateless", "EagerPyFunc")

# Ops without a GPU kernel that may run on the host, with the reason.
WITHOUT_KERNEL = {
    "CombinedNonMaxSuppression": "detection only: a few numbers per box, not in a training step",
}


class Fault(NamedTuple):
    """An op that fails on GPUs, or runs or has data on the host."""

    op: str  # layer/.../op, with the names of the ops that run its graph
    kind: str
    why: str


def faults(graph: tf.Graph, largest: int) -> list[Fault]:
    """Returns the ops of a graph, and of all graphs that it runs, that must not be in training on GPUs.

    Args:
      graph: the graph of a concrete function.
      largest: number of elements of a tensor that a kernel may have in host memory: fewer than an image has.
    """
    found = []
    for name, op in operations(graph):
        why = _fault(op, largest)
        if why:
            found.append(Fault(name, op.type, why))
    return found


def _fault(op, largest: int) -> str:
    # The gradient of a batch norm in training mode is deterministic.
    trains = op.type.startswith("FusedBatchNormGrad") and op.get_attr("is_training")
    if op.type in NONDETERMINISTIC and not trains:
        return "its GPU kernel raises an error with determinism"
    if op.type in PYTHON:
        return "runs Python on the host"
    if op.type in ON_HOST:
        return "runs on the host with determinism"
    if op.type in WITHOUT_KERNEL or op.type == "Placeholder":
        return ""
    on_host = host_arguments(op)
    if on_host is None:
        return f"has no GPU kernel for {', '.join(sorted({t.dtype.name for t in op.inputs}))}"
    for argument, tensor in arguments(op):
        if argument in on_host and (tensor.shape.num_elements() or 0) > largest:
            return f"its {argument} of shape {tensor.shape} is in host memory"
    return ""


def host_arguments(op: tf.Operation) -> frozenset[str] | None:
    """Returns the arguments that all of the op's GPU kernels have in host memory; None: it has no kernel."""
    attributes = op.node_def.attr
    types = []
    for name in _constrained(op.type):
        value = attributes[name]
        types.append((name, frozenset(value.list.type or [value.type])))
    return _host_arguments(op.type, frozenset(types))


@functools.cache
def _host_arguments(kind: str, types: frozenset[tuple[str, frozenset]]) -> frozenset[str] | None:
    by_name = dict(types)
    matching = [
        frozenset(kernel.host_memory_arg)
        for kernel in _kernels(kind)
        if all(by_name[one.name] <= set(one.allowed_values.list.type) for one in kernel.constraint)
    ]
    return frozenset.intersection(*matching) if matching else None


@functools.cache
def _constrained(kind: str) -> list[str]:
    """Returns the attributes (types or lists of types) by which kernels are selected."""
    return sorted({one.name for kernel in _kernels(kind) for one in kernel.constraint})


@functools.cache
def _kernels(kind: str) -> list:
    """Returns the kernels that are registered for GPUs or for every device."""
    return [k for k in get_registered_kernels_for_op(kind).kernel if k.device_type in ("GPU", "DEFAULT")]


def arguments(op) -> Iterator[tuple[str, tf.Tensor]]:
    """Yields (name, tensor) of the op's inputs and outputs; the tensors of a list have the same name."""
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
