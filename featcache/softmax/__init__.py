"""Multinomial logistic regression on codes: `SoftmaxClassifier`, and a whole path of C with `SoftmaxClassifierCV`."""

from __future__ import annotations

from .classifier import SoftmaxClassifier
from .cross_validated import SoftmaxClassifierCV

__all__ = ["SoftmaxClassifier", "SoftmaxClassifierCV"]
