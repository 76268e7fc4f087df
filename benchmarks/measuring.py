"""Measures time, memory and FLOPs of training steps; writes the results."""

from __future__ import annotations

import collections
import ctypes
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tf_detectorgan.environment import TENSORFLOW

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported

Step = Callable[[], Any]  # runs once and returns when it is finished


def started(function: Callable) -> tuple[Any, float]:
    """Returns a function without arguments as a concrete graph that has run once, and its core seconds."""
    import tensorflow as tf

    began = time.process_time()
    graph = tf.function(function, autograph=False).get_concrete_function()
    graph()
    return graph, round(time.process_time() - began, 1)


def in_turns(steps: dict[str, Step], rounds: int, name: str = "measuring") -> dict[str, list[float]]:
    """Returns the core seconds of each step, one value per round; a round runs all steps in order.

    Core seconds are the processor time of the process's threads (user and system), which hardly depends on
    other processes. Each step runs once before the measurement.
    """
    seconds: dict[str, list[float]] = {key: [] for key in steps}
    for step in steps.values():
        step()
    for _ in tqdm(range(rounds), desc=name, unit="round"):
        for key, step in steps.items():
            began = time.process_time()
            step()
            seconds[key].append(time.process_time() - began)
    return seconds


def ratios(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Returns median and quartiles of a / b per round."""
    values = [one / other for one, other in zip(a, b, strict=True)]
    return spread(values)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median and quartiles."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def shown(value: dict[str, float]) -> str:
    """Returns the result of `spread` as text."""
    return f"{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def peak_mib(step: Step, of_tensorflow: bool = True) -> float:
    """Returns the peak memory of a step, which has run before, in MiB above the process's current memory.

    It is resident memory, after the C library has returned its free memory. With oneDNN, TensorFlow also has
    a pool for larger tensors, which it never returns: the step's part is added from the pool's statistics.
    Both peaks may be at different times, so the sum is an upper bound.

    Raises:
      OSError: this is not Linux, or its /proc cannot reset the peak.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the current memory: man 5 proc
    before = status_kib("VmRSS")
    step()
    resident = (status_kib("VmHWM") - before) / 1024
    return round(resident + (pool_mib(step) if of_tensorflow else 0.0), 1)


def pool_mib(step: Step) -> float:
    """Returns a step's peak in TensorFlow's CPU pool in MiB above its current use; 0 without a pool."""
    before, most = None, 0
    for plane in _traced(step):
        stats = {number: metadata.name for number, metadata in plane.stat_metadata.items()}
        for line in plane.lines:
            for event in sorted(line.events, key=lambda event: event.offset_ps):
                if plane.event_metadata[event.metadata_id].name != "MemoryAllocation":
                    continue
                found = {stats[stat.metadata_id]: stat.int64_value for stat in event.stats}
                if before is None:
                    before = found["bytes_allocated"] - found["allocation_bytes"]
                most = max(most, found["bytes_allocated"])
    return (most - (before or 0)) / 2**20


def _traced(step: Step):
    """Returns the planes of TensorFlow's trace of a step."""
    # Imported here, because PyTorch's side and plain measurements do not need it.
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        with tf.profiler.experimental.Profile(folder):
            step()
        (file,) = Path(folder).rglob("*.xplane.pb")
        return xplane_pb2.XSpace.FromString(file.read_bytes()).planes


def status_kib(field: str) -> int:
    """Returns a field of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def convolution_flops(function) -> int:
    """Returns the FLOPs of the convolutions and matrix products in one call of a graph.

    A multiplication and an addition are 2 FLOPs. Only nodes that outputs and side effects depend on count;
    operations on padding count as well. All other ops (norms, activations, losses) are left out.

    Args:
      function: a `tf.function`'s concrete function, whose tensors have static shapes.

    Raises:
      ValueError: a function inside the graph, as the branch of a condition, has such an op.
    """
    graph = function.graph
    pending, found, total = [t.op for t in graph.outputs] + list(graph.control_outputs), set(), 0
    while pending:
        op = pending.pop()
        if op.name in found:
            continue
        found.add(op.name)
        total += _flops(op)
        pending += [t.op for t in op.inputs] + list(op.control_inputs)
    return total


COUNTED = ("MatMul", "Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter")


def _flops(op) -> int:
    if op.type == "MatMul":
        inner = op.inputs[0].shape[0 if op.get_attr("transpose_a") else 1]
        return 2 * op.outputs[0].shape.num_elements() * inner
    if op.type in COUNTED:
        # In all three, every element of the convolution's output is multiplied with a filter.
        result = op.outputs[0] if op.type == "Conv2D" else op.inputs[2]
        kernel = op.outputs[0] if op.type == "Conv2DBackpropFilter" else op.inputs[1]
        height, width, channels, _ = kernel.shape
        return 2 * result.shape.num_elements() * height * width * channels
    inner = [value.func.name for value in op.node_def.attr.values() if value.HasField("func")]
    if inner:
        library = {f.signature.name: f for f in op.graph.as_graph_def().library.function}
        # The functions that these functions call are appended to `inner`.
        for node in (node for name in inner for node in library[name].node_def):
            if node.op in COUNTED:
                raise ValueError(f"{op.name}, of type {op.type}, has a {node.op} inside: not counted")
            inner += [value.func.name for value in node.attr.values() if value.HasField("func")]
    return 0


def profile(step: Step, repeats: int = 9) -> dict[str, float]:
    """Returns the seconds of a TensorFlow step, which has run before, by type of op in descending order.

    The shortest time of each node over the repeats counts, because the trace has wall time with waiting.
    """
    shortest: dict[str, int] = {}
    for _ in range(repeats):
        taken: collections.Counter[str] = collections.Counter()
        for plane in _traced(step):
            for line in plane.lines:
                for event in line.events:
                    taken[plane.event_metadata[event.metadata_id].name] += event.duration_ps
        for node, duration in taken.items():
            shortest[node] = min(shortest.get(node, duration), duration)
    kinds: collections.Counter[str] = collections.Counter()
    for node, duration in shortest.items():
        name, found, kind = node.rpartition(":")
        # An op is "its/name:Type"; other events ("ExecutorState::Process") contain ops.
        if found and not name.endswith(":") and " " not in node:
            kinds[kind] += duration
    return {kind: duration / 1e12 for kind, duration in kinds.most_common()}


def profile_table(profiles: dict[str, dict[str, float]], kinds: int = 20) -> str:
    """Returns a table of milliseconds: a column per step, a row per type of op, sorted by the last step."""
    last = list(profiles.values())[-1]
    lines = [f"{'ms':<40}" + "".join(f"{name:>28}" for name in profiles)]
    for kind in ["all", *list(last)[:kinds]]:
        values = [sum(p.values()) if kind == "all" else p.get(kind, 0.0) for p in profiles.values()]
        lines.append(f"{kind:<40}" + "".join(f"{1000 * value:>28.1f}" for value in values))
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Returns the machine's CPU and number of cores."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), "")
    return {"cpu": model or platform.machine(), "cores": len(os.sched_getaffinity(0))}


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON to a temporary file, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    os.replace(temporary, path)
