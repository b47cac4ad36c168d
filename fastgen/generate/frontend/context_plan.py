"""Finds the part of a network that depends on contexts only and runs in PyTorch at the start.

It is no more than the program needs.

Operators on contexts are lowered into the program as any others. One that has no rule, or no schedule (it mixes
positions), runs in PyTorch with all that it depends on; the values at the border become contexts of the program. The
border is the minimum cut between those operators and what depends on the event: the fewest numbers to keep.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node as FxNode
from torch.utils._pytree import tree_leaves, tree_map

from fastgen.generate.context_network import Call, ContextNetwork, Reference, Result
from fastgen.generate.contexts import probes
from fastgen.generate.errors import CompileError, NotCausalError
from fastgen.generate.frontend.export import Exported
from fastgen.generate.frontend.fx_info import name_of, where_of
from fastgen.generate.frontend.rules.movement import MOVEMENT, VIEWS


class ContextPlan:
    """The plan of one exported graph, whose context is ``context``; ``sizes`` are those of the event's positions."""

    def __init__(self, exported: Exported, state: dict[str, Tensor], context, sizes: Sequence[int]) -> None:
        self.exported, self.state, self.context = exported, state, context
        self.sizes = {*sizes, *(n for leaf in tree_leaves(context) for n in leaf.shape[2:])}
        """Sizes that positions have."""
        self.tokens = {n for leaf in tree_leaves(context) if not leaf.is_floating_point() for n in leaf.shape[1:2]}
        """Sizes that positions have where a context ``[N, S]`` holds tokens."""
        self.nodes = {node.name: node for node in exported.graph_module.graph.nodes}
        event, *self.contexts = exported.users
        moving, still = {event}, set(self.contexts)
        for node in self.nodes.values():
            read = {n.name for n in node.all_input_nodes}
            if read & moving or node.op == "output":
                moving.add(node.name)
            elif read & still:
                still.add(node.name)
        self.still = {name: node for name, node in self.nodes.items() if name in still}
        """Returns the nodes that depend on contexts only."""
        self.forced: set[str] = set()
        self.results: list[Result] = []
        self.followed: dict[str, Call] = {}
        """Calls that follow the number of the context's positions, where it may be another than the example's."""
        self.free: tuple[int, int] | None = None
        """The context and its dimension that they follow."""
        self._channels: dict[str, list[int | None]] = {}
        self._batch: dict[str, int | None] = {}

    # ---- growing

    def absorb(self, error: CompileError) -> bool:
        """Moves what the error is about into PyTorch, or reads a result's channels elsewhere; whether it could."""
        if error.still:
            return self._force([name for name in error.still if name in self.still])
        names = [result.name for result in self.results]
        if error.context is not None:
            number = error.context - len(self.contexts)
            if number >= 0:
                return self._turn(names[number])
            if error.node not in self.still:
                return self._force([self.contexts[error.context]])
        if error.node in self.still:
            return self._force([error.node])
        if error.node in self.nodes and not error.final:
            return self._force([n.name for n in self.nodes[error.node].all_input_nodes if n.name in self.still])
        return False

    def _turn(self, name: str) -> bool:
        channels = self._channels[name]
        if len(channels) < 2:
            return False
        del channels[0]
        self.results = [Result(r.name, r.batch, self._channels[r.name][0]) for r in self.results]
        return True

    def _force(self, names: list[str]) -> bool:
        new = set(names) - self.forced
        if not new:
            return False
        self.forced |= new
        self._measure()
        cut = self._cut()
        for name in cut:
            if name not in self._channels:
                self._channels[name] = self._candidates(name)
        self.results = [Result(name, self._batch[name], self._channels[name][0]) for name in self.still if name in cut]
        return True

    @property
    def needed(self) -> set[str]:
        """The nodes that depend on contexts only and that a program must compute, those of the results included."""
        border = {result.name for result in self.results}
        found: set[str] = set()
        for node in reversed(list(self.still.values())):
            readers = [user.name for user in node.users]
            if any(name not in self.still or (name in found and name not in border) for name in readers):
                found.add(node.name)
        return found

    # ---- the border

    def _measure(self) -> None:
        """Finds where the two samples lie in every value, by exchanging them."""
        if self._batch:
            return
        values, again, exchanged, alike = self._probed()
        for name, value in values.items():
            if not isinstance(value, Tensor):
                self._batch[name] = None
                continue
            if not torch.equal(value, again[name]):
                node = self.nodes[name]
                raise CompileError(f"{name_of(node)}, {where_of(node)}, gives other values each time it is called")
            self._batch[name] = _batch_dimension(value, exchanged[name], alike[name])

    def _probed(self) -> list[dict]:
        """Returns all values for two samples that differ, twice, for them exchanged, and for the first one twice."""
        network = self._network([Result(name, 0, None) for name in self.still])
        failed = None
        for leaves in probes(self.context):
            exchanged, alike = ([leaf[rows] for leaf in leaves] for rows in ([1, 0], [0, 0]))
            try:
                with torch.no_grad():
                    return [network.values(given) for given in (leaves, leaves, exchanged, alike)]
            except Exception as error:  # of the user's operators: the values are none that they take
                failed = error
        raise CompileError(
            f"what reads the context does not run for contexts a little different from example_context: {failed}"
        ) from failed

    def _candidates(self, name: str) -> list[int | None]:
        """Returns the dimensions that may hold the channels, the likeliest first."""
        shape, batch = self.still[name].meta["val"].shape, self._batch[name]
        dims = [d for d in range(len(shape)) if d != batch]
        return sorted(dims, key=lambda d: (shape[d] in self.sizes, shape[d] in self.tokens, d != 1, -d)) or [None]

    def _cut(self) -> set[str]:
        """Returns the names whose values the program reads: of the smallest borders, the one closest to the event."""
        import networkx  # comes with torch

        graph = networkx.DiGraph()  # from the event back to the forced nodes
        graph.add_nodes_from(("event", "forced"))
        for name, node in self.still.items():
            kept = self._batch[name] is None or _is_view(node)
            size = {} if kept else {"capacity": node.meta["val"].numel()}
            graph.add_edge((name, "out"), (name, "in"), **size)
            for user in node.users:
                graph.add_edge((user.name, "in") if user.name in self.still else "event", (name, "out"))
            if name in self.forced:
                graph.add_edge((name, "in"), "forced")
        try:
            _, (near, _) = networkx.minimum_cut(graph, "event", "forced")
        except networkx.NetworkXUnbounded as error:
            node = self.still[next(name for name in self.still if name in self.forced)]
            raise NotCausalError(
                f"what is computed of the contexts at {name_of(node)}, {where_of(node)}, cannot be told apart by "
                "samples: it mixes the samples of the batch, or its batch dimension lies among others"
            ) from error
        return {name for name in self.still if (name, "out") in near and (name, "in") not in near}

    # ---- the network

    def network(self) -> ContextNetwork | None:
        """Returns the network that runs at the start; None where nothing does."""
        if not self.results:
            return None
        network = self._network(self.results)
        network.sizes = network.measured({r.name: self.still[r.name].meta["val"] for r in self.results})
        return network

    def _network(self, results: list[Result]) -> ContextNetwork:
        wanted = {result.name for result in results}
        for node in reversed(list(self.nodes.values())):
            if node.name in wanted and node.op == "call_function":
                wanted |= {n.name for n in node.all_input_nodes}
        tensors = {name: tensor for name, tensor in self.state.items() if name in wanted}
        still, calls = {*self.still, *self.followed}, []
        for node in self.nodes.values():
            if node.name in wanted and node.op == "call_function":
                call = self.followed.get(node.name) or call_of(node)
                if node.name in still:
                    calls.append(call)
                else:
                    tensors |= ContextNetwork([], tensors, [call], [Result(node.name, 0, None)], []).values([])
        read = {name for call in calls for name in call.reads}
        tensors = {name: tensor for name, tensor in tensors.items() if name in read}
        return ContextNetwork(self.contexts, tensors, calls, results, [], self.free)

    def layers(self) -> list[str]:
        """Returns the layers whose operators run in PyTorch, in order."""
        calls = self._network(self.results).calls if self.results else []
        return list(dict.fromkeys(name_of(self.nodes[call.name]).split(" (")[0] for call in calls))


def _is_view(node: FxNode) -> bool:
    """Whether the node has the elements of another one, which is then what is kept."""
    read = node.all_input_nodes
    if node.target not in (*MOVEMENT, *VIEWS) or len(read) != 1:
        return False
    before, after = (n.meta.get("val") for n in (read[0], node))
    return isinstance(before, Tensor) and isinstance(after, Tensor) and before.numel() == after.numel()


def _batch_dimension(value: Tensor, exchanged: Tensor, alike: Tensor) -> int | None:
    """Returns the dimension along which the two samples' halves lie, each computed of its own sample, or None."""
    for d, size in enumerate(value.shape):
        if size and size % 2 == 0:
            first, second = value.split(size // 2, d)
            moved = torch.equal(value, exchanged.roll(size // 2, d)) and not torch.equal(first, second)
            if moved and torch.equal(first, alike.narrow(d, 0, size // 2)):
                return d
    return None


def call_of(node: FxNode) -> Call:
    """Returns the call of an operator in an exported graph."""
    arguments, options = tree_map(
        lambda leaf: Reference(leaf.name) if isinstance(leaf, FxNode) else leaf, (list(node.args), dict(node.kwargs))
    )
    return Call(node.name, node.target, arguments, options)
