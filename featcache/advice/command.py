"""The commands by which a reader measures again what an advice rests on."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

__all__ = ["Command"]


@dataclass(frozen=True)
class Command:
    """What `featcache advise` was given, and so what other verbs need to see the same rows.

    Parameters
    ----------
    store : str
        A store or a plain file.
    choice : tuple of str, default=()
        Options that say what its rows are, with their values: --view, --label, --group, --split, --labels, --key.
    asked : tuple of str, default=()
        Options of advise alone, and --nodes, --logits.
    has_nodes : bool, default=True
        Whether nodes can be named: a plain file has none.
    """

    store: str
    choice: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    has_nodes: bool = True

    def advise(self, where: str) -> str:
        """Return the command that made the advice, and where in its JSON to look."""
        return f"{self._line('advise', *self.asked, '--json')}  # under {where}"

    def rank(self, node: str = "", by: str = "") -> str:
        """Return `featcache rank` of one node, or of those that were given."""
        nodes = ("--nodes", node) if node and self.has_nodes else () if node else _those(self.asked)
        return self._line("rank", *nodes, *(("--by", by) if by else ()))

    def compare(self, node: str, *options: str) -> str:
        """Return `featcache compare` of one node."""
        return self._line("compare", *(("--node", node) if node and self.has_nodes else ()), *options)

    def info(self) -> str:
        """Return `featcache info`, or advise where info would count other rows."""
        if not self.has_nodes or set(self.choice[::2]) - {"--view"}:
            return self.advise("reasons")
        return self._line("info")

    def _line(self, verb: str, *options: str) -> str:
        return shlex.join(["featcache", verb, self.store, *self.choice, *options])


def _those(asked: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(
        word for i in range(0, len(asked), 2) if asked[i] in ("--nodes", "--logits") for word in asked[i : i + 2]
    )
