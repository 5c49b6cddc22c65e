"""advise(): head only, last blocks, all or from scratch, decided by measurements on cached codes."""

from .advising import advise
from .finding import Advice

__all__ = ["Advice", "advise"]
