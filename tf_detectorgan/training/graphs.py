"""Iterates over TensorFlow graphs, including those inside functions, branches and loops."""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

# Attributes of ops that run graphs: a nested tf.function, tf.cond, tf.switch_case and tf.while_loop.
INNER = ("f", "then_branch", "else_branch", "branches", "cond", "body")


def operations(graph: tf.Graph, outer: str = "") -> Iterator[tuple[str, tf.Operation]]:
    """Yields (name, op) of a graph and the graphs inside it; names begin with the ops that run them."""
    for op in graph.get_operations():
        yield outer + op.name, op
        for inner in inner_graphs(op):
            yield from operations(inner, f"{outer}{op.name}/")


def inner_graphs(op: tf.Operation) -> list[tf.Graph]:
    """Returns the graphs that an op runs."""
    values = [op.get_attr(name) for name in INNER if name in op.node_def.attr]
    functions = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return [op.graph._get_function(function.name).graph for function in functions]
