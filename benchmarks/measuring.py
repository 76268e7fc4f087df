"""What benchmarks of steps share: steps in turns, their time, memory and arithmetic, and the file."""

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

Step = Callable[[], Any]  # runs once and does not return before it is done


def started(function: Callable) -> tuple[Any, float]:
    """A function without arguments as a concrete graph that has run once, and the core seconds that took."""
    import tensorflow as tf

    began = time.process_time()
    graph = tf.function(function, autograph=False).get_concrete_function()
    graph()
    return graph, round(time.process_time() - began, 1)


def in_turns(steps: dict[str, Step], rounds: int, name: str = "measuring") -> dict[str, list[float]]:
    """Core seconds of each step, one a round: all steps in order, then all again.

    Core seconds are what the process's threads got of the processors (user and system), so what other
    processes take of the machine delays but hardly counts. Each step runs once before anything is counted.
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
    """Median and quartiles of a / b, taken round by round."""
    values = [one / other for one, other in zip(a, b, strict=True)]
    return spread(values)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def shown(value: dict[str, float]) -> str:
    """A spread as text."""
    return f"{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def peak_mib(step: Step, of_tensorflow: bool = True) -> float:
    """MiB that a step, which has run before, holds at most beyond what the process holds already.

    Resident memory, after the C library has given back what it keeps for later. With oneDNN TensorFlow
    besides has a pool for larger tensors, which it never gives back: what a step takes of it is added from
    the pool's own accounts. As if both were highest at once, so this is an upper bound.

    Raises:
      OSError: this is not Linux, or its /proc cannot reset the peak.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is held now: man 5 proc
    before = status_kib("VmRSS")
    step()
    resident = (status_kib("VmHWM") - before) / 1024
    return round(resident + (pool_mib(step) if of_tensorflow else 0.0), 1)


def pool_mib(step: Step) -> float:
    """MiB of TensorFlow's pool on the CPU that a step holds at most beyond what was held; 0 without it."""
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
    """Planes of TensorFlow's trace of a step."""
    # Not at the top: PyTorch's side and the plain measurements do without.
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        with tf.profiler.experimental.Profile(folder):
            step()
        (file,) = Path(folder).rglob("*.xplane.pb")
        return xplane_pb2.XSpace.FromString(file.read_bytes()).planes


def status_kib(field: str) -> int:
    """KiB, of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def convolution_flops(function) -> int:
    """Floating point operations of the convolutions and matrix products that one call of a graph runs.

    A multiplication and an addition are two. Counted over the nodes that outputs and side effects depend on;
    zeros of the padding count as numbers. Everything else (norms, activations, losses) is left out.

    Args:
      function: a `tf.function`'s concrete function, whose tensors have static shapes.

    Raises:
      ValueError: a function inside of the graph (a condition's branch, say) has one of them.
    """
    graph = function.graph
    wanted, seen, total = [t.op for t in graph.outputs] + list(graph.control_outputs), set(), 0
    while wanted:
        op = wanted.pop()
        if op.name in seen:
            continue
        seen.add(op.name)
        total += _flops(op)
        wanted += [t.op for t in op.inputs] + list(op.control_inputs)
    return total


COUNTED = ("MatMul", "Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter")


def _flops(op) -> int:
    if op.type == "MatMul":
        inner = op.inputs[0].shape[0 if op.get_attr("transpose_a") else 1]
        return 2 * op.outputs[0].shape.num_elements() * inner
    if op.type in COUNTED:
        # All three multiply every number of the convolution's output with a filter of its input channels.
        result = op.outputs[0] if op.type == "Conv2D" else op.inputs[2]
        kernel = op.outputs[0] if op.type == "Conv2DBackpropFilter" else op.inputs[1]
        height, width, channels, _ = kernel.shape
        return 2 * result.shape.num_elements() * height * width * channels
    inner = [value.func.name for value in op.node_def.attr.values() if value.HasField("func")]
    if inner:
        library = {f.signature.name: f for f in op.graph.as_graph_def().library.function}
        # `inner` grows by the functions that functions call.
        for node in (node for name in inner for node in library[name].node_def):
            if node.op in COUNTED:
                raise ValueError(f"{op.name}, of type {op.type}, has a {node.op} inside: not counted")
            inner += [value.func.name for value in node.attr.values() if value.HasField("func")]
    return 0


def profile(step: Step, repeats: int = 9) -> dict[str, float]:
    """Seconds of a TensorFlow step by kind of op, most first; the step has run before.

    Of each node the shortest of the repeats counts, as the trace tells wall time, waiting included.
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
        # An op is "its/name:Type"; what else is traced ("ExecutorState::Process") surrounds ops.
        if found and not name.endswith(":") and " " not in node:
            kinds[kind] += duration
    return {kind: duration / 1e12 for kind, duration in kinds.most_common()}


def profile_table(profiles: dict[str, dict[str, float]], kinds: int = 20) -> str:
    """Milliseconds of steps, one a column, in the kinds of op that take the last of them most of its time."""
    last = list(profiles.values())[-1]
    lines = [f"{'ms':<40}" + "".join(f"{name:>28}" for name in profiles)]
    for kind in ["all", *list(last)[:kinds]]:
        values = [sum(p.values()) if kind == "all" else p.get(kind, 0.0) for p in profiles.values()]
        lines.append(f"{kind:<40}" + "".join(f"{1000 * value:>28.1f}" for value in values))
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), "")
    return {"cpu": model or platform.machine(), "cores": len(os.sched_getaffinity(0))}


def write(path: Path, content: dict[str, Any]) -> None:
    """JSON, never half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    os.replace(temporary, path)
