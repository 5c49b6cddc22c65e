"""The strategies of the field by name, as stages."""

from __future__ import annotations

from typing import Any

from .settings import Stage, refuse_unless_one_of, refuse_unless_whole

__all__ = ["STRATEGIES", "strategy"]

#: Learning rates of the head, a new one and a fitted one, and of the last block as shares of them: 3e-4 both times.
_NEW, _FITTED = (3e-3, 0.1), (1e-3, 0.3)

STRATEGIES = ("head", "last-1", "last-2", "gradual", "all", "scratch")


def strategy(
    name: str, n_blocks: int, *, epochs: int = 10, batch_size: int = 32, lr: float | None = None, fitted: bool = False
) -> tuple[Stage, ...]:
    """Return the stages of a strategy of the field.

    Parameters
    ----------
    name : {"head", "last-1", "last-2", "gradual", "all", "scratch"}
        "head": the trunk stays frozen. "last-1", "last-2": the last one or two blocks train, too. "all": everything.
        "gradual": the head, then the last quarter of the blocks, then everything. "scratch": everything, at one rate,
        batch norms included; the caller initialises the network.
    n_blocks : int
        Blocks of the trunk.
    epochs : int, default=10
        In all; "gradual" divides them, one fifth to the head, two to each other stage.
    batch_size : int, default=32
        Of stages that train blocks; where only the head trains it is four times as large.
    lr : float, default=None
        Of the head; None = 3e-3, or 1e-3 where it is fitted. The last block learns a tenth as fast, or three tenths.
    fitted : bool, default=False
        Whether training begins with a fitted head: a new one has a longer way to go.

    Returns
    -------
    tuple of Stage

    Raises
    ------
    FinetuneError
        For another name.

    Examples
    --------
    >>> [(stage.title, stage.epochs) for stage in strategy("gradual", 12)]
    [('head', 2), ('last 3 blocks', 4), ('all', 4)]
    """
    refuse_unless_one_of("strategy", name, STRATEGIES)
    refuse_unless_whole("strategy: n_blocks", n_blocks, 1, "len(blocks_of(model))")
    least = 3 if name == "gradual" else 1
    refuse_unless_whole("strategy: epochs", epochs, least, f"{name!r} has {least} stage{'s'[: least > 1]}; 10 is usual")
    usual, share = _FITTED if fitted else _NEW
    lr = usual if lr is None else lr
    rates = {"lr": lr, "backbone_lr": share * lr} if fitted else {"lr": lr}
    common: dict[str, Any] = {"batch_size": batch_size, **rates}
    head: dict[str, Any] = {"batch_size": 4 * batch_size, **rates}
    if name == "head":
        return (Stage("head", epochs, **head),)
    if name == "all":
        return (Stage("all", epochs, **common),)
    if name == "scratch":
        one = {**common, "backbone_lr": lr, "layer_decay": 1.0, "weight_decay": 0.05, "batch_norm": "trained"}
        return (Stage("all", epochs, name="from scratch", warmup=min(1.0, epochs / 4), **one),)
    if name == "gradual":
        first = max(1, round(epochs / 5))
        second = max(1, (epochs - first) // 2)
        third = max(1, epochs - first - second)
        blocks = max(1, n_blocks // 4)
        return (Stage("head", first, **head), Stage(blocks, second, **common), Stage("all", third, **common))
    return (Stage(min(int(name[-1]), n_blocks), epochs, **common),)
