"""Several nodes together: their codes as one matrix with known blocks of columns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import HeadError
from ..features import FeatureSet

__all__ = ["LayerBlocks", "join_layers"]

_PART = re.compile(r"(?P<node>[^+:]+):(?P<shape>[1-9]\d{0,8}(?:x[1-9]\d{0,8})*)")

#: Feature maps are pooled so many rows at a time.
_STEP_BYTES = 64 << 20


@dataclass(frozen=True)
class LayerBlocks:
    """Which nodes lie side by side in a matrix, and what shape each was pooled to.

    Parameters
    ----------
    nodes : tuple of str
        Names of the nodes, in the order of their columns.
    shapes : tuple of tuple of int
        Shape of one row of each after pooling: (C,) of a vector, (C, h, w) of a feature map.

    Examples
    --------
    >>> blocks = LayerBlocks(("layer1", "flatten"), ((64, 2, 2), (512,)))
    >>> blocks.sizes, blocks.node
    ((256, 512), 'layer1:64x2x2+flatten:512')
    >>> LayerBlocks.parse(blocks.node) == blocks
    True
    """

    nodes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of columns of each node; what estimators take as `blocks`."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def node(self) -> str:
        """All of it as one text: the `node` of a FeatureSet and of a head."""
        return "+".join(
            f"{node}:{'x'.join(map(str, shape))}" for node, shape in zip(self.nodes, self.shapes, strict=True)
        )

    @classmethod
    def parse(cls, node: str) -> LayerBlocks | None:
        """Read `node` back; None for the name of one node, or anything else."""
        found = [_PART.fullmatch(part) for part in node.split("+")]
        if not all(found):
            return None
        shapes = tuple(tuple(int(n) for n in match["shape"].split("x")) for match in found if match)
        return cls(tuple(match["node"] for match in found if match), shapes)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise HeadError where a node is not there, or rows of its shape cannot be pooled to that of its block.

        Parameters
        ----------
        shapes : mapping of str to tuple of int
            Node → shape of one row of its codes.
        """
        missing = [node for node in self.nodes if node not in shapes]
        if missing:
            raise HeadError(f"layers: no codes of {', '.join(missing)}; there are {', '.join(shapes) or 'none'}")
        for node, shape in zip(self.nodes, self.shapes, strict=True):
            _check_pooling(tuple(shapes[node]), shape, node)

    def join(self, codes: Mapping[str, np.ndarray]) -> np.ndarray:
        """Pool, normalise and concatenate codes.

        Parameters
        ----------
        codes : mapping of str to ndarray of shape (n_samples, *shape of the node)
            Codes of all `nodes`, as `Backbone.encode` gives them.

        Returns
        -------
        ndarray of float32 of shape (n_samples, sum of sizes)
            Each row's part of each node has length one (zeros stay zeros).

        Raises
        ------
        HeadError
            A node is not there, or cannot be pooled to its shape.
        """
        self.check({node: X.shape[1:] for node, X in codes.items()})
        n = len(codes[self.nodes[0]])
        out, start = np.empty((n, sum(self.sizes)), dtype=np.float32), 0
        for node, shape, size in zip(self.nodes, self.shapes, self.sizes, strict=True):
            X = codes[node]
            step = max(1, _STEP_BYTES // (4 * max(1, math.prod(X.shape[1:]))))
            for row in range(0, n, step):
                rows = slice(row, min(row + step, n))
                out[rows, start : start + size] = _unit(_pooled(np.asarray(X[rows], dtype=np.float32), shape))
            start += size
        return out


def _check_pooling(given: tuple[int, ...], shape: tuple[int, ...], node: str) -> None:
    """Raise HeadError, before memory is taken for it, where rows cannot be pooled to a shape (of a file, perhaps)."""
    tokens = len(given) == 2 and shape == (given[1],)
    maps = len(given) == len(shape) == 3 and given[0] == shape[0] and shape[1] <= given[1] and shape[2] <= given[2]
    if given != shape and not tokens and not maps:
        raise HeadError(
            f"layers: {node}: expected codes that can be pooled to {shape}, got rows of shape {given}; extract with "
            "the nodes and the pooling the head was trained on"
        )


def _pooled(X: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Mean over the bins of an adaptive pooling, as torch places them; shape (n, prod(shape))."""
    if X.shape[1:] == shape:
        return X.reshape(len(X), -1)
    if X.ndim == 3 and shape == (X.shape[2],):
        return X.mean(axis=1)  # tokens
    out = np.empty((len(X), *shape), dtype=np.float32)
    for i, rows in enumerate(_bins(X.shape[2], shape[1])):
        for j, columns in enumerate(_bins(X.shape[3], shape[2])):
            out[:, :, i, j] = X[:, :, rows, columns].mean(axis=(2, 3))
    return out.reshape(len(X), -1)


def _bins(length: int, n: int) -> list[slice]:
    return [slice(i * length // n, -(-(i + 1) * length // n)) for i in range(n)]


def _unit(X: np.ndarray) -> np.ndarray:
    # float64: squares of large activations must not overflow, nor those of small ones vanish.
    lengths = np.sqrt(np.square(X, dtype=np.float64).sum(axis=1, keepdims=True))
    return X / np.where(lengths > 0.0, lengths, 1.0)


def _target(shape: tuple[int, ...], target_size: int) -> tuple[int, ...]:
    """Shape to pool to: as fine a square grid as keeps a feature map at `target_size` values."""
    if len(shape) == 2:
        return (shape[1],)
    if len(shape) != 3:
        return (math.prod(shape),) if len(shape) == 1 else shape
    side = max(1, math.isqrt(max(1, target_size // shape[0])))
    return (shape[0], min(side, shape[1]), min(side, shape[2]))


def join_layers(
    source: Any,
    nodes: str | Sequence[str] | None = None,
    *,
    target_size: int = 512,
    **choice: Any,
) -> FeatureSet:
    """Put several nodes' codes of the same images side by side.

    Feature maps (extracted with ``pooling="none"``) are pooled to about `target_size` values, tokens to their mean;
    vectors stay as they are. Then each node's part of a row is brought to length one, so that no node outweighs the
    others by the size of its activations.

    Parameters
    ----------
    source : FeatureStore or sequence of FeatureSet
        A store with several nodes, or what was loaded of one node each; all of one spec and the same images.
    nodes : str or sequence of str, default=None
        Which nodes, "a,b" or a list; None: all of them, in the store's order.
    target_size : int, default=512
        Values per feature map at most, where it has fewer channels than that; otherwise one per channel.
    **choice
        What `FeatureStore.load` takes: view, snapshot, label, group, split, view_number.

    Returns
    -------
    FeatureSet
        X of shape (n_samples, sum of the nodes' sizes), float32, in memory; labels and provenance of the first set.
        ``LayerBlocks.parse(joined.node)`` says which columns belong to which node.

    Raises
    ------
    HeadError
        Sets of other images, or specs, or no node at all.

    References
    ----------
    Evci et al. 2022, "Head2Toe" (arXiv 2201.03529).

    Examples
    --------
    >>> maps = FeatureSet(np.ones((2, 4, 6, 6), "float32"), ["a", "b"], node="layer1")
    >>> vectors = FeatureSet(np.ones((2, 9), "float32"), ["a", "b"], node="flatten")
    >>> joined = join_layers([maps, vectors], target_size=16)
    >>> joined.X.shape, joined.node
    ((2, 25), 'layer1:4x2x2+flatten:9')
    """
    if isinstance(target_size, bool) or not isinstance(target_size, (int, np.integer)) or target_size < 1:
        raise HeadError(f"target_size: expected a whole number of 1 or more, got {target_size!r}")
    wanted = _wanted(nodes)
    sets = _sets(source, wanted, choice)
    first = sets[0]
    names = tuple(item.node or f"node {i + 1}" for i, item in enumerate(sets))
    if len(set(names)) < len(names):
        raise HeadError(f"nodes: expected different ones, got {', '.join(names)}")
    for item, name in zip(sets[1:], names[1:], strict=True):
        if not np.array_equal(item.row_ids, first.row_ids):
            raise HeadError(f"{name}: other images (or another order) than {names[0]}; load both from the same view")
        if item.fingerprint != first.fingerprint:
            raise HeadError(f"{name}: codes of another spec than {names[0]}; extract all nodes in one run")
    if bad := [name for name in names if "+" in name or ":" in name]:
        raise HeadError(f"nodes: expected names without '+' and ':', got {bad[0]!r}")
    blocks = LayerBlocks(names, tuple(_target(item.X.shape[1:], int(target_size)) for item in sets))
    return replace(first, X=blocks.join(dict(zip(names, (i.X for i in sets), strict=True))), node=blocks.node)


def _wanted(nodes: Any) -> list[str] | None:
    if nodes is None:
        return None
    words = [w.strip() for w in nodes.split(",")] if isinstance(nodes, str) else list(nodes)
    if not words or not all(isinstance(w, str) and w for w in words):
        raise HeadError(f"nodes: expected names of nodes such as 'layer2,layer3', got {nodes!r}")
    if len(set(words)) < len(words):
        raise HeadError(f"nodes: expected different ones, got {', '.join(words)}")
    return words


def _nodes(store: Any) -> list[str | None]:
    return list(store.nodes) or [None]  # an empty store says so itself


def _sets(source: Any, wanted: list[str] | None, choice: Mapping[str, Any]) -> list[FeatureSet]:
    if hasattr(source, "load") and hasattr(source, "nodes"):  # heads know no store
        return [source.load(node=node, **choice) for node in wanted or _nodes(source)]
    sets = list(source.values()) if isinstance(source, Mapping) else source
    if not isinstance(sets, (list, tuple)) or not sets or not all(isinstance(item, FeatureSet) for item in sets):
        raise HeadError(f"source: expected a FeatureStore or several FeatureSets, got {type(source).__name__}")
    if choice:
        raise HeadError(f"source: {', '.join(sorted(choice))} is for a store; these sets are loaded already")
    if wanted is None:
        return list(sets)
    named = {item.node: item for item in sets}
    if lost := [node for node in wanted if node not in named]:
        raise HeadError(f"nodes: no set of {', '.join(lost)}; there are {', '.join(named)}")
    return [named[node] for node in wanted]
