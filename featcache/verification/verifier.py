"""Verifier: same or different, enrolment and identification on cached codes, without training again."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from ..errors import HeadError
from ..features import FeatureSet
from ..heads.fitted import FittedHead
from ..heads.labelled import as_matrix
from ..splits import whole_number
from .calibrating import calibration
from .choosing import check_metric_name, choose, make_metric
from .gallery import Gallery
from .pairs import apart
from .rates import RULE_OF, AcceptanceThreshold, Curve, ScoreHistogram
from .subjects import Subjects

__all__ = ["Verifier"]

#: Identities below which pairs, however many, say little about other identities.
_FEW = 30


class Verifier(Gallery, BaseEstimator):
    """Tells whether two images show the same identity, from their cached codes.

    Metric and settings are chosen by the equal error rate on held-out identities inside the training data; the
    acceptance threshold and the calibration come from the same held-out scores, never from scores of rows that the
    metric was trained on.

    Parameters
    ----------
    metric : str, default="auto"
        "cosine", "whiten", "wccn", "lda", "plda", "siamese", or "auto" for the best of all but the last.
    far : float, default=0.01
        Wanted false-accept rate: how many pairs of different identities may be taken as the same.
    identity : str, default="label"
        What a FeatureSet's identities are: "label", "group", "split" or the name of one of its columns.
    cv : int, default=3
        Folds of identities on which settings are chosen.
    template : str, default="mean"
        How several enrolled images of one identity are scored: "mean" by one vector that stands for all, "max" by the
        image that fits best.
    random_state : int, default=0
        Seed of the folds and of what is drawn.

    Attributes
    ----------
    metric_ : estimator
        The fitted metric, an ordinary scikit-learn transformer.
    metric_name_, params_ : str, dict
        What was chosen.
    threshold_ : float
        Scores from here on are the same identity.
    eer_ : float or None
        Equal error rate on held-out identities, averaged over folds; slightly optimistic, since it chose the settings.
    n_genuine_, n_impostor_ : int
        Held-out pairs behind `threshold_`; fewer than 30 / far impostor pairs do not support the rate, and fit warns.
    tried_ : list of dict
        Each setting tried, with its equal error rate.
    identities_ : ndarray of str
        The training identities; they are not enrolled by themselves.
    notes_ : list of str
        What the user should know.
    n_features_in_ : int
        Width of the codes.

    References
    ----------
    Doddington et al.: The NIST speaker recognition evaluation. Speech Communication 31, 2000 (the rule of 30).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> verifier = Verifier("wccn", far=0.05).fit(X[y < 8], y[y < 8])
    >>> for digit in (8, 9):
    ...     verifier.enrol(str(digit), X[y == digit][:5])
    >>> found = verifier.identify(X[y == 8][5:105])
    >>> sum(row["candidates"][0]["name"] == "8" for row in found) > 80
    True
    """

    def __init__(
        self,
        metric: str = "auto",
        far: float = 0.01,
        identity: str = "label",
        cv: int = 3,
        template: str = "mean",
        random_state: int = 0,
    ) -> None:
        self.metric = metric
        self.far = far
        self.identity = identity
        self.cv = cv
        self.template = template
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, *, groups: Any = None, bursts: Any = None) -> Verifier:
        """Choose and train the metric, and set threshold and calibration.

        Parameters
        ----------
        X : FeatureSet or array-like of shape (n_samples, n_features)
            Codes. Of a FeatureSet the rows that have an identity are used, in the order of their ids.
        y : array-like of shape (n_samples,), default=None
            Identities; leave out for a FeatureSet, which has them in the column `identity`.
        groups : array-like of shape (n_samples,), default=None
            Identities that share a group (an alphabet, a family) are held out together. A FeatureSet's own groups are
            used where nothing is given and they are not the identities.
        bursts : array-like of shape (n_samples,), default=None
            Rows of one burst are never paired.

        Returns
        -------
        Verifier
            Itself; what was enrolled before is forgotten.

        Raises
        ------
        HeadError
            One identity only, no identity with two images, too few impostor pairs for `far`, NaN in the codes.
        """
        self._check()
        subjects = Subjects.of(X, y, identity=self.identity, groups=groups, bursts=bursts)
        if len(subjects.names) < 2:
            raise HeadError(f"{subjects.name}: expected two identities or more, got one class; a pair needs two")
        codes, within = subjects.codes, apart(subjects.bursts, len(subjects.X))
        chosen = choose(
            self.metric,
            subjects.X,
            codes,
            cv=self.cv,
            groups=subjects.groups,
            bursts=within,
            random_state=self.random_state,
        )
        if chosen.histogram is None:
            raise HeadError(
                f"{subjects.name}: {len(subjects.names)} identities give no held-out pairs to set a threshold on "
                f"({'; '.join(chosen.notes)}); give at least two identities with two images in each of two folds"
            )
        self.metric_name_, self.params_, self.eer_ = chosen.name, chosen.params, chosen.eer
        self.tried_, self.notes_ = list(chosen.tried), [*subjects.notes, *chosen.notes]
        if len(subjects.names) < _FEW:
            self.notes_.append(
                f"threshold and settings rest on {len(subjects.names)} identities: on new ones the false-accept rate "
                "may be several times the wanted one"
            )
        self.histogram_counts_ = chosen.histogram.counts
        self.histogram_range_ = [float(chosen.histogram.edges[0]), float(chosen.histogram.edges[-1])]
        self.n_impostor_, self.n_genuine_ = (round(n) for n in chosen.histogram.counts.sum(axis=1))
        self.threshold_ = self._set_threshold()
        self.calibration_ = calibration(chosen.histogram)
        self.identities_, self.n_features_in_ = subjects.names, subjects.X.shape[1]
        self.metric_ = make_metric(chosen.name, random_state=self.random_state, **chosen.params)
        self.metric_.fit(subjects.X, codes, groups=subjects.groups, bursts=within)
        self.spec_, self.locator_, self.node_, self.fingerprint_ = subjects.provenance
        self._empty_gallery()
        return self

    def _check(self) -> None:
        check_metric_name(self.metric)
        if isinstance(self.far, bool) or not isinstance(self.far, (int, float)) or not 0 < self.far < 1:
            raise HeadError(f"far: expected a false-accept rate between 0 and 1, got {self.far!r}; 0.01 is usual")
        if self.template not in ("mean", "max"):
            raise HeadError(f"template: expected 'mean' or 'max', got {self.template!r}")
        for name, least in (("cv", 2), ("random_state", 0)):
            if not whole_number(getattr(self, name), least):
                raise HeadError(f"{name}: expected a whole number of {least} or more, got {getattr(self, name)!r}")

    def _set_threshold(self) -> float:
        found = self.threshold_at(self.far)
        if self.far * found.n_impostor < 1:
            raise HeadError(
                f"far={self.far:g}: {found.n_impostor} impostor pairs of held-out identities say nothing about so rare "
                f"an event; give more identities, or far={1 / max(found.n_impostor, 1):.2g} or more"
            )
        if not found.supported:
            text = (
                f"far={self.far:g} rests on {self.far * found.n_impostor:.1f} accepted impostor pairs "
                f"(of {found.n_impostor}); fewer than {RULE_OF} say little about the true rate"
            )
            self.notes_.append(text)
            warnings.warn(text, stacklevel=3)
        return found.threshold

    def curve(self) -> Curve:
        """Return the error rates on held-out identities at every threshold, as a `Curve`."""
        self._fitted("histogram_range_")
        low, high = self.histogram_range_
        frame = ScoreHistogram(low, high, self.histogram_counts_.shape[1])
        frame.counts = self.histogram_counts_
        return frame.curve()

    def threshold_at(self, far: float) -> AcceptanceThreshold:
        """Return the threshold for another false-accept rate, with the pairs that support it.

        Parameters
        ----------
        far : float
            Wanted false-accept rate, 0 to 1.

        Returns
        -------
        AcceptanceThreshold
            threshold, far, n_impostor, supported.
        """
        return self.curve().threshold_at(far)

    def score_pairs(self, A: Any, B: Any) -> np.ndarray:
        """Return how alike the rows of A and B in the same places are.

        Parameters
        ----------
        A, B : FeatureSet or array-like of shape (n_pairs, n_features)
            Codes of the spec that the verifier was trained on.

        Returns
        -------
        ndarray of float64 of shape (n_pairs,)
            Cosines, or log-likelihood ratios of "plda"; higher means more likely the same.

        Raises
        ------
        HeadError
            Codes of another spec, node or width, or sides of different length.
        """
        one, other = self._vectors(A), self._vectors(B)
        if len(one) != len(other):
            raise HeadError(f"pairs: expected as many rows on both sides, got {len(one)} and {len(other)}")
        return np.asarray(self.metric_.score_rows(one, other), dtype=np.float64)

    def same(self, A: Any, B: Any) -> np.ndarray:
        """Return whether rows in the same places show the same identity, by `threshold_`; see `score_pairs`."""
        return self.score_pairs(A, B) >= self.threshold_

    def same_proba(self, A: Any, B: Any, *, prior: float = 0.5) -> np.ndarray:
        """Return the probability that rows in the same places show the same identity.

        Parameters
        ----------
        A, B : FeatureSet or array-like of shape (n_pairs, n_features)
            As in `score_pairs`.
        prior : float, default=0.5
            Share of pairs of one identity where this is used, between 0 and 1.

        Returns
        -------
        ndarray of float64 of shape (n_pairs,)
            A logistic function of the score, fitted on held-out identities with both kinds of pairs of equal weight,
            moved to the prior.
        """
        if not 0 < prior < 1:
            raise HeadError(f"prior: expected a share between 0 and 1, got {prior!r}")
        return self._probability(self.score_pairs(A, B), prior)

    def _fitted(self, attribute: str = "metric_") -> None:
        check_is_fitted(self, attribute)

    def _vectors(self, data: Any) -> np.ndarray:
        self._fitted()
        if not isinstance(data, FeatureSet):
            data = as_matrix(data, "codes")
        X = self._as_head()._codes(data)
        return np.asarray(self.metric_.transform(X)) if len(X) else np.zeros((0, 0))

    def _as_head(self) -> FittedHead:
        """Return the verifier as a head: its checks of provenance and its file are those of any head."""
        return FittedHead(
            estimator=self,
            classes_=np.asarray(self.gallery, dtype=np.str_),
            head="verifier",
            params={"metric": self.metric_name_, **self.params_},
            scores={} if self.eer_ is None else {"cv": 1.0 - self.eer_},
            metric="1 - EER",
            n_features=self.n_features_in_,
            spec=self.spec_,
            locator=self.locator_,
            node=self.node_,
            fingerprint=self.fingerprint_,
            notes=tuple(self.notes_),
        )

    def save(self, path: str | Path, *, replace: bool = True) -> Path:
        """Write the verifier with all who are enrolled into one file: arrays and JSON, as `FittedHead.save` does.

        Parameters
        ----------
        path : str or Path
            The file.
        replace : bool, default=True
            Whether an existing head or verifier may be replaced; any other file never is.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        HeadError
            A path where no file of this kind can be written.
        """
        self._fitted()
        return self._as_head().save(path, replace=replace)

    @classmethod
    def load(cls, path: str | Path) -> Verifier:
        """Read a verifier that `save` wrote; HeadError, in one line, for anything else."""
        head = FittedHead.load(path)
        if not isinstance(head.estimator, cls):
            raise HeadError(f"{path}: expected a verifier, got the head {head.head!r}; FittedHead.load reads it")
        return head.estimator
