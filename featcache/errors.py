"""Every exception featcache raises on purpose, in one tree.

::

    FeatcacheError
    ├── SourceError           (ValueError)          a folder, list or data set cannot serve as a source of images
    ├── ImageError            (ValueError)          one image cannot be read; extraction writes it to the ledger
    ├── PreprocessError       (ValueError)          a preprocessing recipe makes no sense
    ├── BackboneError         (ValueError)          unknown architecture or node, an input that the network refuses
    │   └── WeightsError                            weights that do not fit the architecture or the recorded digest
    │       └── WeightsUnavailable (FileNotFoundError)  weights that could not be fetched; says where to put the file
    ├── SpecError             (ValueError)          something cannot be fingerprinted; asks for a version string
    ├── StoreError            (OSError)             the store on disk cannot do what was asked
    │   ├── NotAStore         (FileNotFoundError)   no store at that path
    │   ├── StoreTooNew                             written by a newer featcache; says what to install
    │   ├── SpecMismatch      (ValueError)          another extraction spec; prints the difference
    │   ├── ViewMismatch      (ValueError)          a source that shares nothing with the view it would replace
    │   ├── MissingCodes      (LookupError)         images whose codes are not in the store; says to extract again
    │   └── DamagedStore                            a checksum failed; names the file, never returns its rows
    ├── FailureBudgetExceeded (RuntimeError)        too many images failed; the good rows are kept
    ├── FeaturesError         (ValueError)          a FeatureSet that contradicts itself
    ├── ExchangeError         (ValueError)          a plain file of features that cannot be written, read or trusted
    ├── SplitError            (ValueError)          a split that the data cannot give
    ├── HeadError             (ValueError)          unknown head, or data that a head cannot be trained on
    └── HandoffError          (ValueError)          a head and images (or codes) that do not belong together

Each class also derives from the built-in that a caller would reach for, so ``except ValueError`` keeps working. The
message is always one line: the object and where; what was expected and what came; what to do next.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BackboneError",
    "DamagedStore",
    "ExchangeError",
    "FailureBudgetExceeded",
    "FeatcacheError",
    "FeaturesError",
    "HandoffError",
    "HeadError",
    "ImageError",
    "MissingCodes",
    "NotAStore",
    "PreprocessError",
    "SourceError",
    "SpecError",
    "SpecMismatch",
    "SplitError",
    "StoreError",
    "StoreTooNew",
    "ViewMismatch",
    "WeightsError",
    "WeightsUnavailable",
]


class FeatcacheError(Exception):
    """Base of everything featcache raises on purpose."""

    def __str__(self) -> str:
        # OSError subclasses print "[Errno …]" for two arguments; ours always carry exactly one sentence.
        return str(self.args[0]) if self.args else self.__class__.__name__


class SourceError(FeatcacheError, ValueError):
    """A folder, list or data set cannot serve as a source of images."""


class ImageError(FeatcacheError, ValueError):
    """One image cannot be read; extraction writes the reason to the ledger and goes on."""


class PreprocessError(FeatcacheError, ValueError):
    """A preprocessing recipe makes no sense."""


class BackboneError(FeatcacheError, ValueError):
    """Unknown architecture or node, or an input that the network refuses."""


class WeightsError(BackboneError):
    """Weights that do not fit the architecture or the recorded digest."""


class WeightsUnavailable(WeightsError, FileNotFoundError):
    """Weights that could not be fetched; the message says where to put the file by hand."""


class SpecError(FeatcacheError, ValueError):
    """Something cannot be fingerprinted; the message asks for a version string."""


class StoreError(FeatcacheError, OSError):
    """The store on disk cannot do what was asked."""


class NotAStore(StoreError, FileNotFoundError):
    """There is no store at that path."""


class StoreTooNew(StoreError):
    """The store was written by a newer featcache; the message says what to install."""


class SpecMismatch(StoreError, ValueError):
    """The store holds codes of another extraction spec; the message prints the difference."""


class ViewMismatch(StoreError, ValueError):
    """The source shares nothing with the view that it would replace."""


class MissingCodes(StoreError, LookupError):
    """Images whose codes are in no shard; `extract` computes them again."""


class DamagedStore(StoreError):
    """A checksum failed; the message names the file, and its rows are not returned.

    Attributes
    ----------
    file : str
        Path of the damaged or missing file, "" when it is not known.
    """

    file: str = ""

    @classmethod
    def at(cls, path: Any, reason: str) -> DamagedStore:
        """Return the error for one file: its path, then what is wrong and what to do."""
        # A stranger's file may have a line break in its name; a message has none.
        name = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))
        error = cls(f"{name}: {reason}")
        error.file = str(path)
        return error


class FailureBudgetExceeded(FeatcacheError, RuntimeError):
    """More images failed than the budget allows; the good rows are kept.

    Attributes
    ----------
    report : ExtractionReport or None
        What the run did nevertheless, with the failures.
    """

    report: Any = None


class FeaturesError(FeatcacheError, ValueError):
    """A FeatureSet that contradicts itself."""


class ExchangeError(FeatcacheError, ValueError):
    """A plain file of features that cannot be written, read or trusted."""


class SplitError(FeatcacheError, ValueError):
    """A split that the data cannot give."""


class HeadError(FeatcacheError, ValueError):
    """Unknown head, or data that a head cannot be trained on."""


class HandoffError(FeatcacheError, ValueError):
    """A head and images (or codes), or parts of a network, that do not belong together."""
