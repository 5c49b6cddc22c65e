"""A linear metric trained on pairs: the Siamese network whose trunk is frozen and cached."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import SplitError
from ..solvers.neighbors import unit_rows
from .metrics import CosineMetric, WCCNMetric
from .moments import IdentityMoments
from .pairs import make_pairs, pair_counts, units_of
from .rates import Curve

__all__ = ["SiameseMetric"]


class SiameseMetric(WCCNMetric):
    """Cosine after a low-rank projection that is trained on pairs with the logistic loss.

    It starts from linear discriminant analysis in the space where the shrunken within-identity covariance is the
    identity, and is drawn back to it by a penalty; AdamW on balanced pairs within batches; training stops where the
    equal error rate on held-out identities is lowest, and is then repeated with that many steps on all of them.

    Parameters
    ----------
    shrinkage : float, default=0.5
        Share of the scaled identity in the within-identity covariance, in [0, 1].
    n_components : int, default=128
        Width of the projection, as far as rows and features allow.
    anchor : float, default=0.1
        Weight of the penalty |L - L0|² / |L0|².
    learning_rate : float, default=1e-3
        Of AdamW.
    max_steps : int, default=300
        Steps; one is a batch of up to 64 identities with up to 8 images of each.
    held_out : float, default=0.2
        Share of the identities that decides when to stop, in [0, 1); where too few are left, a third of `max_steps`
        are made.
    power : float or "auto", default="auto"
        As in `CosineMetric`.
    random_state : int, default=0
        Seed of batches and of the held-out identities.

    Attributes
    ----------
    n_steps_ : int
        Steps made; 0 where training did not help.
    power_, mean_, components_
        As in `CosineMetric`.

    References
    ----------
    Koch, Zemel, Salakhutdinov: Siamese neural networks for one-shot image recognition. ICML workshop 2015.
    Guillaumin, Verbeek, Schmid: Is that you? Metric learning approaches for face identification. ICCV 2009.

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> X = np.repeat(generator.normal(size=(12, 6)), 5, axis=0) + 0.1 * generator.normal(size=(60, 6))
    >>> metric = SiameseMetric(max_steps=20).fit(X, np.repeat(np.arange(12), 5))
    >>> metric.transform(X).shape
    (60, 6)
    """

    def __init__(
        self,
        shrinkage: float = 0.5,
        n_components: int = 128,
        anchor: float = 0.1,
        learning_rate: float = 1e-3,
        max_steps: int = 300,
        held_out: float = 0.2,
        power: float | str = "auto",
        random_state: int = 0,
    ) -> None:
        super().__init__(shrinkage, power)
        self.n_components = n_components
        self.anchor = anchor
        self.learning_rate = learning_rate
        self.max_steps = max_steps
        self.held_out = held_out
        self.random_state = random_state

    def _learn(self, moments: IdentityMoments) -> CosineMetric:
        self._check()
        self.mean_ = moments.mean
        train, rest = self._parts(moments)
        if len(rest):
            part = np.unique(moments.codes[train], return_inverse=True)[1]
            inner = _Problem(moments.rows[train], part, self._share(), self.n_components)
            self.n_steps_ = self._best_step(inner, moments, rest)
        else:
            self.n_steps_ = self.max_steps // 3
        whole = _Problem(moments.rows, moments.codes, self._share(), self.n_components)
        for _, projection in self._steps(whole, [self.n_steps_]):
            self.components_ = whole.on_rows(projection).astype(moments.rows.dtype)
        return self

    def _check(self) -> None:
        for name, least in (("n_components", 1), ("max_steps", 0), ("random_state", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"SiameseMetric: expected {name} of {least} or more, got {value!r}")
        if not 0 <= self.held_out < 1 or not self.learning_rate > 0 or not self.anchor >= 0:
            raise ValueError(
                "SiameseMetric: expected held_out in [0, 1), learning_rate above 0 and anchor of 0 or more, got "
                f"{self.held_out!r}, {self.learning_rate!r}, {self.anchor!r}"
            )

    def _parts(self, moments: IdentityMoments) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows of held-out identities; none of these where either side would be too small."""
        codes = moments.codes
        everything = np.arange(len(codes)), np.zeros(0, dtype=np.intp)
        repeated = int((np.bincount(codes) > 1).sum())
        if self.held_out == 0 or self.held_out * repeated < 3:
            return everything
        try:
            units = units_of(codes, moments.groups)
        except SplitError:
            return everything
        # Whole units, in the order of a shuffle, until the share of the identities is reached.
        identities = np.bincount(units[np.unique(codes, return_index=True)[1]])
        order = np.random.default_rng([self.random_state, 0x51AB]).permutation(len(identities))
        reached = np.cumsum(identities[order]) >= self.held_out * identities.sum() * (1 - 1e-9)
        held = np.isin(units, order[: int(reached.argmax()) + 1])
        train, rest = np.flatnonzero(~held), np.flatnonzero(held)
        repeated = int((np.bincount(codes[rest]) > 1).sum())
        genuine, impostor = pair_counts(codes[rest], None if moments.bursts is None else moments.bursts[rest])
        if repeated < 2 or not genuine or not impostor or len(np.unique(codes[train])) < 2:
            return everything
        return train, rest

    def _best_step(self, problem: _Problem, moments: IdentityMoments, rest: np.ndarray) -> int:
        """Return the number of steps with the lowest equal error rate on the rows of held-out identities."""
        rows, codes = moments.rows[rest], moments.codes[rest]
        bursts = None if moments.bursts is None else moments.bursts[rest]
        genuine = pair_counts(codes, bursts)[0]
        pairs = make_pairs(codes, 2 * min(genuine, 20_000), self.random_state, bursts=bursts)
        best, at, worse = np.inf, 0, 0
        for step, projection in self._steps(problem, range(0, self.max_steps + 1, 20)):
            vectors = unit_rows(rows @ problem.on_rows(projection).T.astype(rows.dtype))
            scores = self.score_rows(vectors[pairs.first], vectors[pairs.second])
            rate = Curve.of(scores[pairs.same], scores[~pairs.same]).eer()
            best, at, worse = (rate, step, 0) if rate < best else (best, at, worse + 1)
            if worse == 3:
                break
        return at

    def _steps(self, problem: _Problem, stops: Any) -> Any:
        """Train, and yield (step, projection) at the given numbers of steps."""
        import torch

        generator = np.random.default_rng([self.random_state, 0x51A])
        start = torch.from_numpy(problem.start.astype(np.float32))
        size = float(start.square().sum()) or 1.0
        projection = start.clone().requires_grad_(True)
        slope = torch.tensor([2.0, -3.0], requires_grad=True)  # log of the scale, and the shift, of the logistic
        optimiser = torch.optim.AdamW([projection, slope], lr=self.learning_rate, weight_decay=0.0)
        done = 0
        for stop in stops:
            for _ in range(stop - done):
                rows = problem.batch(generator)
                unit = torch.nn.functional.normalize(torch.from_numpy(problem.rows[rows]) @ projection.T, dim=1)
                loss = _pair_loss(unit, torch.from_numpy(problem.codes[rows]), slope)
                loss = loss + self.anchor * (projection - start).square().sum() / size
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            done = stop
            yield stop, projection.detach().numpy().astype(np.float64)


def _pair_loss(unit: Any, codes: Any, slope: Any) -> Any:
    """Logistic loss of all pairs of a batch, genuine and impostor pairs of equal weight."""
    import torch

    scores = slope[0].exp() * (unit @ unit.T) + slope[1]
    same = codes[:, None] == codes
    genuine = same & ~torch.eye(len(codes), dtype=torch.bool)
    soft = torch.nn.functional.softplus
    parts = [soft(-scores[genuine]), soft(scores[~same])]
    return sum(part.mean() for part in parts if len(part)) / 2


class _Problem:
    """Rows in the space where the within-covariance is the identity, the projection to start from, and batches."""

    def __init__(self, rows: np.ndarray, codes: np.ndarray, share: float, n_components: int) -> None:
        moments = IdentityMoments(rows, codes)
        self.codes = codes
        root = moments.within.inverse_root(share)
        variances, directions = moments.between(root)
        weights = np.sqrt(variances / (1.0 + 2.0 * variances))  # what the likelihood ratio gives the product
        self.start = root.turn(self._padded(moments, weights[:, None] * directions, n_components))
        self._matrix = root.matrix()
        self.rows = unit_rows(moments.rows.astype(np.float32) @ self._matrix.T.astype(np.float32))
        self._order = np.argsort(codes, kind="stable")
        self._counts = np.bincount(codes)
        self._starts = np.cumsum(self._counts) - self._counts

    @staticmethod
    def _padded(moments: IdentityMoments, start: np.ndarray, width: int) -> np.ndarray:
        """Few identities span few directions: fill up with the rows' own leading ones, lightly weighted."""
        start = start[:width]
        lacking = min(width, 16, moments.rows.shape[1]) - len(start)
        if lacking > 0:
            spare = moments.total.vectors.T[::-1]
            basis = np.linalg.qr(np.concatenate([start, spare]).T)[0].T[len(start) : len(start) + lacking]
            level = 0.3 * (np.sqrt(np.square(start).sum(axis=1)).mean() if len(start) else 1.0)
            start = np.concatenate([start, (level or 1.0) * basis])
        # AdamW's steps have one size for all numbers: these have root mean square 1 / sqrt(d).
        size = float(np.sqrt(np.square(start).sum()))
        return start * (np.sqrt(len(start)) / size) if size > 0 else start

    def on_rows(self, projection: np.ndarray) -> np.ndarray:
        """Return the projection as a map (k, d) of centred rows."""
        return projection @ self._matrix

    def batch(self, generator: np.random.Generator, identities: int = 64, images: int = 8) -> np.ndarray:
        """Return the rows of some images of some identities; half of these at least have two where there are such."""
        repeated = np.flatnonzero(self._counts > 1)
        chosen = generator.permutation(repeated)[:identities]
        if len(chosen) < identities:
            single = np.flatnonzero(self._counts == 1)
            chosen = np.concatenate([chosen, generator.permutation(single)[: identities - len(chosen)]])
        picked = [
            self._order[self._starts[c] + generator.permutation(self._counts[c])[:images]] for c in chosen.tolist()
        ]
        return np.concatenate(picked)
