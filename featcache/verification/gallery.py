"""Enrolment and open-set identification: new identities without training."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy.special import expit

from ..errors import HeadError
from ..features import FeatureSet
from ..splits import whole_number
from .metrics import CosineMetric
from .rates import RULE_OF, AcceptanceThreshold

__all__ = ["Gallery"]

_UNKNOWN = "unknown"


class Gallery:
    """What a Verifier does with those who are enrolled; it has the metric, the threshold and the calibration."""

    metric_: CosineMetric
    template: str
    threshold_: float
    calibration_: list[float]
    gallery_names_: list[str]
    gallery_vectors_: np.ndarray
    gallery_owners_: np.ndarray

    def _fitted(self, attribute: str = "metric_") -> None:
        raise NotImplementedError

    def _vectors(self, data: Any) -> np.ndarray:
        raise NotImplementedError

    def threshold_at(self, far: float) -> AcceptanceThreshold:
        """Return the threshold for a false-accept rate."""
        raise NotImplementedError

    def _probability(self, scores: np.ndarray, prior: float = 0.5) -> np.ndarray:
        slope, shift = self.calibration_
        return expit(slope * scores + shift + np.log(prior / (1 - prior)))

    @property
    def gallery(self) -> list[str]:
        """Names enrolled, sorted."""
        self._fitted()
        return sorted(self.gallery_names_)

    def enrol(self, name: str, codes: Any) -> None:
        """Add an identity, or further images of one; nothing is trained.

        Parameters
        ----------
        name : str
            Its name; "unknown" is taken.
        codes : FeatureSet or array-like of shape (n_images, n_features)
            Codes of one or more of its images; a single row may have one dimension.

        Raises
        ------
        HeadError
            No name or no images, or codes of another spec, node or width.
        """
        self._fitted()
        if not isinstance(name, str) or name in ("", _UNKNOWN):
            raise HeadError(f"name: expected a name other than '' and {_UNKNOWN!r}, got {name!r}")
        if not isinstance(codes, FeatureSet) and np.ndim(codes) == 1:
            codes = np.asarray(codes)[None]
        vectors = self._vectors(codes)
        if not len(vectors):
            raise HeadError(f"{name}: expected one image or more to enrol, got none")
        if name not in self.gallery_names_:
            self.gallery_names_ = [*self.gallery_names_, name]
        owner = self.gallery_names_.index(name)
        if len(self.gallery_vectors_):
            vectors = np.concatenate([self.gallery_vectors_, vectors.astype(self.gallery_vectors_.dtype)])
        self.gallery_owners_ = np.append(self.gallery_owners_, np.full(len(vectors) - len(self.gallery_owners_), owner))
        self.gallery_vectors_ = vectors

    def forget(self, name: str) -> None:
        """Drop an enrolled identity and all its images.

        Parameters
        ----------
        name : str
            Its name.

        Raises
        ------
        HeadError
            A name that is not enrolled.
        """
        self._fitted()
        if name not in self.gallery_names_:
            raise HeadError(f"{name!r} is not enrolled; enrolled are {', '.join(self.gallery[:5]) or 'none'}")
        gone = self.gallery_names_.index(name)
        kept = self.gallery_owners_ != gone
        self.gallery_vectors_, owners = self.gallery_vectors_[kept], self.gallery_owners_[kept]
        self.gallery_owners_ = owners - (owners > gone)
        self.gallery_names_ = [other for other in self.gallery_names_ if other != name]

    def identify(self, X: Any, top: int = 5, *, far: float | None = None) -> list[dict[str, Any]]:
        """Name the enrolled identity of each row, or say that it is unknown.

        Parameters
        ----------
        X : FeatureSet or array-like of shape (n_samples, n_features)
            Codes.
        top : int, default=5
            Candidates to list.
        far : float, default=None
            Wanted share of strangers that are given a name at all. None: `threshold_` for each comparison, so that a
            gallery of 20 names up to 20 times as many strangers as one of 1.

        Returns
        -------
        list of dict
            Per row: name ("unknown" where no score reaches the threshold), score, probability (that row and best
            candidate are the same, at a prior of 0.5), candidates: [{name, score}], best first, equal ones by name.

        Raises
        ------
        HeadError
            Nothing enrolled, or codes of another spec, node or width.

        Notes
        -----
        Thresholds are set on pairs of single images. A mean of several scores higher on its own identity, and hardly
        higher on others; "max" over n images accepts up to n times as many impostors.
        """
        self._fitted()
        if not whole_number(top, 1):
            raise HeadError(f"top: expected a number of candidates of 1 or more, got {top!r}")
        if not self.gallery_names_:
            raise HeadError("identify: expected an enrolled identity or more, got none; enrol(name, codes) first")
        threshold = self.threshold_ if far is None else self._open_set_threshold(far)
        names, scores = self._gallery_scores(self._vectors(X))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        best = scores[np.arange(len(scores)), order[:, 0]]
        chances = self._probability(best)
        return [
            {
                "name": names[ranks[0]] if score >= threshold else _UNKNOWN,
                "score": float(score),
                "probability": float(chance),
                "candidates": [{"name": names[j], "score": float(row[j])} for j in ranks],
            }
            for ranks, score, chance, row in zip(order, best, chances, scores, strict=True)
        ]

    def _open_set_threshold(self, far: float) -> float:
        """Return the threshold at which the chance of a stranger being named, over all comparisons, is `far`."""
        comparisons = len(self.gallery_owners_ if self.template == "max" else self.gallery_names_)
        whole = self.threshold_at(far)
        each = self.threshold_at(1.0 - (1.0 - far) ** (1.0 / comparisons)) if comparisons > 1 else whole
        if not each.supported:
            warnings.warn(
                f"far={far:g} over {comparisons} comparisons means accepting {each.far:.2g} in each: "
                f"{each.n_impostor} impostor pairs do not support that (fewer than {RULE_OF} accepted)",
                stacklevel=3,
            )
        return each.threshold

    def predict(self, X: Any) -> np.ndarray:
        """Return the enrolled name of each row, or "unknown"; see `identify`."""
        names = [row["name"] for row in self.identify(X, top=1)] if len(X) else []
        return np.asarray(names, dtype=np.str_)

    def _gallery_scores(self, vectors: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Names, sorted, and the score of each row with each of them."""
        names, scores = self.gallery, []
        for name in names:
            own = self.gallery_vectors_[self.gallery_owners_ == self.gallery_names_.index(name)]
            if self.template == "max":
                scores.append(self.metric_.score_matrix(vectors, own).max(axis=1))
            else:
                mean = self.metric_.template(own)[None]
                scores.append(self.metric_.score_matrix(vectors, mean, np.asarray([len(own)]))[:, 0])
        return names, np.stack(scores, axis=1).astype(np.float64)

    def _empty_gallery(self) -> None:
        self.gallery_names_ = []
        self.gallery_vectors_ = np.zeros((0, 0))
        self.gallery_owners_ = np.zeros(0, dtype=np.int64)
