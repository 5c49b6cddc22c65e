"""The graph of a cut network read as a row of sections, and cut in two between them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from ..backbone.units import unit_of

__all__ = ["Order", "Section", "order_of", "registered", "split_graph"]

_RANDOM = (nn.modules.dropout._DropoutNd, nn.AlphaDropout)
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


@dataclass
class Section:
    """What belongs to one block: names within the trunk, and the first and last of its places in the graph."""

    name: str
    parameters: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    first: int = 0
    last: int = 0

    def reach(self, place: int) -> None:
        """Let the section reach as far as a place."""
        self.first, self.last = min(self.first, place), max(self.last, place)


@dataclass
class Order:
    """A graph and its sections, in the order of execution.

    Parameters
    ----------
    sections : list of Section
        From the input to the output.
    nodes : list of fx.Node
        All of the graph; a place is an index into it. Empty where there is no graph.
    end : int
        Place before which the last section's result must be taken.
    """

    sections: list[Section]
    nodes: list[fx.Node] = field(default_factory=list)
    end: int = 0

    def boundaries(self) -> list[int | None]:
        """Per section the last place after which one value, and no other, is handed on to what is deeper."""
        alive = _alive(self.nodes)
        return [None if not alive else self._boundary(i, alive) for i in range(len(self.sections))]

    def _boundary(self, i: int, alive: list[int]) -> int | None:
        start = max(section.last for section in self.sections[: i + 1])
        stop = min([section.first for section in self.sections[i + 1 :]] or [self.end])
        for place in range(stop - 1, start - 1, -1):
            node = self.nodes[place]
            # With one value alive it is this node's, unless the node is one that nothing reads.
            if alive[place] == 1 and node.users and node.op not in ("placeholder", "get_attr"):
                return place
        return None


def order_of(trunk: fx.GraphModule, units: frozenset[str], names: Mapping[str, str]) -> Order:
    """Read a graph as sections.

    Parameters
    ----------
    trunk : fx.GraphModule
        The graph, with the module tree of the network that was traced.
    units : frozenset of str
        Paths of the units; see `featcache.backbone.units`.
    names : mapping of str to str
        Name of a node in the graph → its name in the network, which begins with the module that called it.

    Returns
    -------
    Order
    """
    return _Reader(trunk, units, names).read()


def registered(root: nn.Module, units: frozenset[str]) -> Order:
    """Read a network without a graph: sections in the order in which their modules were registered."""
    sections: dict[str, Section] = {}
    waiting: list[str] = []
    for name, _ in root.named_parameters():
        unit = unit_of(name, units) or next(reversed(sections), None)
        if unit is None:
            waiting.append(name)
        else:
            section = sections.setdefault(unit, Section(unit))
            section.parameters.extend([*waiting, name])
            waiting.clear()
    _add_modules(root, sections.values())
    return Order(list(sections.values()))


class _Reader:
    """One walk through a graph, which deals what it meets out to sections."""

    def __init__(self, trunk: fx.GraphModule, units: frozenset[str], names: Mapping[str, str]) -> None:
        self.trunk, self.units, self.names = trunk, units, names
        self.modules, self.parameters = dict(trunk.named_modules()), dict(trunk.named_parameters())
        self.sections: dict[str, Section] = {}
        self.waiting: list[Section] = []  # what came before the next section and belongs to it
        self.given = {name for name in self.parameters if unit_of(name, units)}

    def read(self) -> Order:
        nodes = list(self.trunk.graph.nodes)
        for place, node in enumerate(nodes):
            if node.op in ("placeholder", "get_attr", "output"):
                continue
            unit = unit_of(self._path(node), self.units)
            if unit is not None:
                self._enter(unit, place)
            self._take(node, place, unit)
        end = min([early.first for early in self.waiting] or [len(nodes) - 1])
        if self.waiting and self.sections:
            self._join(next(reversed(self.sections.values())))
        _add_modules(self.trunk, self.sections.values())
        return Order(list(self.sections.values()), nodes, end)

    def _path(self, node: fx.Node) -> str:
        """Return the path of the module that a node is, or is called in."""
        return str(node.target) if node.op == "call_module" else self.names.get(node.name, "").rpartition(".")[0]

    def _enter(self, unit: str, place: int) -> None:
        section = self.sections.get(unit)
        if section is None:
            section = self.sections[unit] = Section(unit, first=place, last=place)
            section.parameters = [name for name in self.parameters if unit_of(name, self.units) == unit]
            section.first = min([place, *(early.first for early in self.waiting)])
            self._join(section)
        section.reach(place)

    def _join(self, section: Section) -> None:
        for early in self.waiting:
            section.parameters.extend(early.parameters)
            section.modules.extend(early.modules)
        self.waiting.clear()

    def _take(self, node: fx.Node, place: int, unit: str | None) -> None:
        """Deal out parameters that lie in no unit, and dropout, which goes with the section that it feeds."""
        target = str(node.target)
        held = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
        if node.op == "call_module":
            held += [name for name in self.parameters if name.startswith(target + ".")]
        held = [name for name in dict.fromkeys(held) if name in self.parameters and name not in self.given]
        random = unit is None and node.op == "call_module" and isinstance(self.modules[target], _RANDOM)
        if not held and not random:
            return
        self.given.update(held)
        if random or not self.sections:
            self.waiting.append(Section("", held, [target] if random else [], place, place))
            return
        section = self.sections[unit] if unit is not None else next(reversed(self.sections.values()))
        section.parameters.extend(held)
        section.reach(place)


def _add_modules(root: nn.Module, sections: Iterable[Section]) -> None:
    """Give each section the modules of its unit, and those that its other parameters lie in."""
    sections = list(sections)
    owners = {name.rpartition(".")[0]: section for section in sections for name in section.parameters}
    owners |= {name: section for section in sections for name in section.modules}
    named = {section.name: section for section in sections}
    units = frozenset(named)
    for name, _ in root.named_modules():
        unit = unit_of(name, units)
        section = owners.get(name) if unit is None else named[unit]
        if section is not None and name and name not in section.modules:
            section.modules.append(name)


def _alive(nodes: list[fx.Node]) -> list[int]:
    """Return how many values are needed later on, after each place; tensors of the network are there anyway."""
    places = {node: place for place, node in enumerate(nodes)}
    change = [0] * (len(nodes) + 1)
    for node, place in places.items():
        if node.op != "get_attr" and node.users:
            change[place] += 1
            change[max(places[user] for user in node.users)] -= 1
    alive, count = [], 0
    for step in change[:-1]:
        count += step
        alive.append(count)
    return alive


def split_graph(trunk: fx.GraphModule, place: int) -> tuple[fx.GraphModule, fx.GraphModule, dict[fx.Node, fx.Node]]:
    """Cut a graph in two after a place where one value is handed on.

    Parameters
    ----------
    trunk : fx.GraphModule
        What is cut; stays as it is.
    place : int
        One of `Order.boundaries`.

    Returns
    -------
    lower, upper : fx.GraphModule
        Input → the value; the value → what `trunk` gives. Their layers are those of `trunk`, not copies.
    copies : dict of fx.Node to fx.Node
        Nodes of `trunk` → those of `upper`.
    """
    nodes = list(trunk.graph.nodes)
    places = {node: i for i, node in enumerate(nodes)}
    lower, below = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in nodes[: place + 1]:
        if node.op != "get_attr" or any(places[user] <= place for user in node.users):
            below[node] = lower.node_copy(node, below.__getitem__)
    lower.output(below[nodes[place]])
    upper, above = fx.Graph(), dict[fx.Node, fx.Node]()
    value = upper.placeholder("activations")
    # What is given from outside is the caller's, who may want it again; within the network nobody does.
    overwritten = any(_in_place(trunk, user) for user in nodes[place].users)
    above[nodes[place]] = upper.call_method("clone", (value,)) if overwritten else value
    for node in nodes:
        if places[node] > place or (node.op == "get_attr" and any(places[user] > place for user in node.users)):
            above[node] = upper.node_copy(node, above.__getitem__)
    for graph in (lower, upper):
        graph.lint()
    return fx.GraphModule(trunk, lower, "Lower"), fx.GraphModule(trunk, upper, "Upper"), above


def _in_place(trunk: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(trunk.get_submodule(str(node.target)), "inplace", False))
    named = str(node.target).endswith("_") and node.op == "call_method"
    return node.target in _IN_PLACE or bool(node.kwargs.get("inplace")) or named
