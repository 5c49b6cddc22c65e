"""suggest(): which images to label next, by the doubts of a head and by what is not covered yet."""

from .suggesting import STRATEGIES, suggest
from .suggestions import Suggestion, Suggestions

__all__ = ["STRATEGIES", "Suggestion", "Suggestions", "suggest"]
