"""rank(): which backbone and which layer, from cached codes, and how far such a ranking can be trusted."""

from .scoring import rank
from .table import Ranking

__all__ = ["Ranking", "rank"]
