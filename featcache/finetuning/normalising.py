"""Training mode for a network of which a part is frozen: whose running statistics move, and where dropout acts."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from ..errors import HandoffError
from .blocks import blocks_of

__all__ = ["BATCH_NORMS", "set_training"]

#: Policies for norms with running statistics; see `set_training`.
BATCH_NORMS = ("frozen", "all", "none")


def set_training(model: nn.Module, frozen: Collection[str] = (), *, batch_norm: str = "frozen") -> nn.Module:
    """Put a network in training mode, its frozen blocks in eval mode.

    Parameters
    ----------
    model : nn.Module
        What `to_module` or `assemble` gave; changed in place. To be called again after ``model.train()`` or
        ``model.eval()``.
    frozen : collection of str, default=()
        Names of blocks (see `blocks_of`) that are not trained. Dropout and stochastic depth within them are off.
        Whether parameters require gradients is not changed here.
    batch_norm : {"frozen", "all", "none"}, default="frozen"
        Which norms keep their running statistics and normalise by them: those of frozen blocks; all of the trunk, which
        suits small batches; or none, so that statistics of frozen blocks follow the new images too.

    Returns
    -------
    nn.Module
        The same.

    Raises
    ------
    HandoffError
        For a block that the network does not have, or another policy.

    Examples
    --------
    >>> set_training(model, frozen=["conv1", "layer1.0"])  # doctest: +SKIP
    """
    if batch_norm not in BATCH_NORMS:
        raise HandoffError(f"batch_norm: expected one of {', '.join(BATCH_NORMS)}, got {batch_norm!r}; correct it")
    blocks = {block.name: block for block in blocks_of(model)}
    unknown = sorted(set(frozen) - set(blocks))
    if unknown:
        raise HandoffError(
            f"block {unknown[0]!r}: expected blocks of the network ({', '.join(list(blocks)[-8:])}), got one that it "
            "does not have; see featcache.finetuning.blocks_of"
        )
    model.train()
    named = dict(model.named_modules())
    for name in frozen:
        for path in blocks[name].modules:
            # Not eval(): a module that a block holds may hold modules of another one.
            named[path].training = batch_norm == "none" and _has_statistics(named[path])
    if batch_norm == "all":
        for module in model.get_submodule("trunk").modules():
            module.training = module.training and not _has_statistics(module)
    return model


def _has_statistics(module: nn.Module) -> bool:
    """Whether a module is a norm that keeps running statistics (of batches, or of instances)."""
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
