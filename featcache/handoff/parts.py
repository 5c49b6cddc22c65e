"""Whether the parts of a stranger's network belong together, told before anything is computed with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import HandoffError
from ..heads.layers import LayerBlocks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_parts"]

_AGAIN = "it is damaged or was made by something else, get it again"


def check_parts(
    tensors: Mapping[str, Tensor],
    parts: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    classes: list[str],
) -> None:
    """Raise HandoffError or HeadError unless join, prelude and last layer fit the backbone and the classes.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        "head.weight", "head.bias", and those of the prelude.
    parts : mapping
        As `pack_network` gives them.
    shapes : mapping of str to tuple of int
        Node → shape of a row of its codes.
    classes : list of str
        Labels, or the one name of a number.
    """
    if not classes or len(set(classes)) != len(classes):
        raise _wrong("distinct classes", f"{classes!r:.200}")
    width = _joined_width(parts["join"], shapes) if parts["join"] else _node_width(parts["node"], shapes)
    expected = {"head.weight": (len(classes), width), "head.bias": (len(classes),)}
    raised = parts["prelude"]
    if raised:
        _check_prelude(raised)
        expected |= {"prelude.shift": (width,), "prelude.scale": (width,)}
    for name, shape in expected.items():
        if name not in tensors or tuple(tensors[name].shape) != shape or not tensors[name].is_floating_point():
            got = tuple(tensors[name].shape) if name in tensors else "none"
            raise _wrong(f"{name} as numbers of shape {shape}", str(got))


def _node_width(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if not isinstance(node, str) or node not in shapes:
        raise _wrong(f"a node of the backbone ({', '.join(shapes)})", f"{node!r:.200}")
    return math.prod(shapes[node])


def _joined_width(joined: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    whole = isinstance(joined, dict) and all(isinstance(joined.get(key), list) for key in ("nodes", "shapes"))
    sizes = joined["shapes"] if whole else []
    if (
        not whole
        or not joined["nodes"]
        or len(sizes) != len(joined["nodes"])
        or not all(isinstance(node, str) for node in joined["nodes"])
        or not all(isinstance(s, list) and all(type(n) is int and n > 0 for n in s) for s in sizes)
    ):
        raise _wrong("nodes and shapes to join", f"{joined!r:.200}")
    blocks = LayerBlocks(tuple(joined["nodes"]), tuple(tuple(s) for s in sizes))
    blocks.check(shapes)
    return sum(blocks.sizes)


def _check_prelude(raised: Any) -> None:
    power = raised.get("power") if isinstance(raised, dict) else None
    if not isinstance(power, (int, float)) or not 0 < power < math.inf or type(raised.get("unit")) is not bool:
        raise _wrong("a prelude with a power above 0 and unit", f"{raised!r:.200}")


def _wrong(expected: str, got: str) -> HandoffError:
    return HandoffError(f"network: expected {expected}, got {got}; {_AGAIN}")
