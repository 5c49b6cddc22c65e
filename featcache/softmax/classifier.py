"""SoftmaxClassifier: multinomial logistic regression on codes, as an ordinary scikit-learn estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from .base import SoftmaxBase

__all__ = ["SoftmaxClassifier"]


class SoftmaxClassifier(SoftmaxBase):
    """Multinomial logistic regression with L2 penalty, solved in the eigenbasis of the codes.

    The objective is that of ``sklearn.linear_model.LogisticRegression`` with the same C: the weighted sum of the log
    losses times C plus half the squared weights; the intercept is not penalised. Two classes give one row of weights,
    as there. A matrix of 0 and 1 as `y` (multi-label) gives one logistic regression per column, all solved at once.

    Parameters
    ----------
    C : float, default=1.0
        Inverse strength of the penalty, > 0.
    class_weight : dict, "balanced" or None, default=None
        Weight per label; "balanced" is n_samples / (n_classes * count). Not for multi-label.
    fit_intercept : bool, default=True
        Whether there is an intercept.
    label_smoothing : float, default=0.0
        Share of each target that is spread over all classes, in [0, 1) [2]_.
    standardize : bool, default=False
        Whether features are centred and divided by their shrunken deviations as `ShrunkScaler` does; `coef_` is on the
        features as they came. For codes on disk, which cannot be scaled beforehand.
    tol : float, default=1e-5
        How far the objective may be from its minimum, as a share of it; `gap_` says how far it is at most. Below 2e-6,
        and where float32 cannot get there, the end is computed in float64.
    max_iter : int, default=1000
        L-BFGS steps at most, per stage; a ConvergenceWarning says when they did not suffice.
    device : str, default="cpu"
        A torch device, e.g. "cuda". On "cpu" NumPy computes; torch only large problems on
        many cores.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted; 0 … n_labels - 1 for multi-label.
    coef_ : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
        Weights, float64.
    intercept_ : ndarray of shape (n_classes,) or (1,)
        Intercepts, float64.
    objective_ : float
        The minimum found: C times the weighted sum of the losses, plus half the squared weights.
    gap_ : float
        Upper bound on `objective_` minus the true minimum (duality gap).
    multilabel_ : bool
        Whether `y` was a matrix of 0 and 1.
    n_iter_ : ndarray of shape (1,)
        Times that all rows were gone through.
    n_features_in_ : int
        Features seen in `fit`.

    Notes
    -----
    Features are centred (the intercept absorbs it); where rows are few, they are written in the directions that they
    span: L2-penalised weights have no part outside of them. L-BFGS is preconditioned by the Hessian's diagonal in the
    (leading) eigenvectors of the covariance, s_j mean(p_k (1 - p_k)) + penalty for direction j of spread s_j and class
    k, a sharper form of Böhning's bound [1]_, renewed where a loose solution was found. See
    `featcache.solvers.linear_path`. A fit ends where the gradient bounds what is missing, or where its next step
    promises next to nothing; `gap_` is what is certain in the end.

    References
    ----------
    .. [1] D. Böhning, "Multinomial logistic regression algorithm", Annals of the Institute of Statistical
       Mathematics 44 (1992), 197-200.
    .. [2] C. Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016, arXiv 1512.00567.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> SoftmaxClassifier(C=1.0).fit(X, y).coef_.shape
    (3, 4)
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        class_weight: Any = None,
        fit_intercept: bool = True,
        label_smoothing: float = 0.0,
        standardize: bool = False,
        tol: float = 1e-5,
        max_iter: int = 1000,
        device: str = "cpu",
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.label_smoothing = label_smoothing
        self.standardize = standardize
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SoftmaxClassifier:
        """Fit the weights.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Codes, held in memory. See `fit_blocks` for codes that are not.
        y : array-like of shape (n_samples,), or of 0 and 1 of shape (n_samples, n_labels)
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights >= 0 of the rows; None: 1.

        Returns
        -------
        SoftmaxClassifier
            Itself.

        Raises
        ------
        ValueError
            One class only, C or other settings out of range, NaN or Inf in X.
        """
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], multi_output=True)
        return self._fit_at(self.C, self._training(np.asarray(X), y, sample_weight))

    def fit_blocks(self, X: Any, y: Any, sample_weight: Any = None) -> SoftmaxClassifier:
        """Fit the weights on codes that need not fit into memory: they are read block by block in every pass.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Whatever gives rows for a slice: a memory map, ``FeatureStore.dataset().codes``.
        y, sample_weight
            As in `fit`; held in memory.

        Returns
        -------
        SoftmaxClassifier
            Itself.

        Raises
        ------
        ValueError
            As `fit`.
        """
        self._check_settings()
        if len(getattr(X, "shape", ())) != 2 or X.shape[1] == 0 or len(y) != X.shape[0]:
            raise ValueError(
                f"SoftmaxClassifier: expected codes (n_samples, n_features) and a label for each row, got codes of "
                f"shape {getattr(X, 'shape', None)} and {len(y)} labels"
            )
        self.n_features_in_ = int(X.shape[1])
        return self._fit_at(self.C, self._training(X, np.asarray(y), sample_weight))
