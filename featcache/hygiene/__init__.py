"""Is the data clean? `audit` finds copies, leaks, doubtful labels, outliers and blank images; `leaks` checks splits.

``auditing`` asks all questions, ``findings`` holds the answers; ``near`` finds copies by codes and ``pixels`` compares
thumbnails, ``suspects`` doubts labels, ``strangers`` finds outliers and blanks, ``leaking`` looks at the two sides of a
split, ``tails`` says in all of them how much is too much.
"""

from .auditing import audit
from .findings import KINDS, Audit
from .leaking import leaks, near_pairs
from .pixels import thumbnails

__all__ = ["KINDS", "Audit", "audit", "leaks", "near_pairs", "thumbnails"]
