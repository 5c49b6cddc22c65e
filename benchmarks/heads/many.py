"""What does training 100 heads in one pass over the codes save, and does it cost accuracy or memory?

Ours in one pass (20 settings times 5 folds, and 100 settings on a holdout) against the same heads of ours trained one
after the other (a part of them, scaled openly), and against scikit-learn's SGDClassifier and MLPClassifier one by one
for as many epochs (a part, scaled). Then a stream from a file on disk: rows a second and the highest memory, on a part
of 10^7 x 512, which is extrapolated in the figures and said so there. All run in one process, in turns, on one set.
"""

import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from measuring import claim, median
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier

from featcache.heads import HeadSweep
from featcache.solvers.batches import RunningMoments, n_batches, ordered_batches, shuffled_batches
from featcache.solvers.many import HeadSettings, train_heads
from featcache.splits import holdout, k_fold

from .child import Peak

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
DECAYS = (0.01, 1.0, 10.0, 30.0)
PART = 5


def run(case):
    figures = {"speed": {}, "accuracy": {}}
    claims = []
    for name in ("clothing10", "sign_digits", "bccd_cells")[: 1 if case.tiny else 3]:
        problem = _Problem(case.load(name), epochs=2 if case.tiny else 20)
        repeats = case.repeats or (1 if case.tiny else 3)
        speed = problem.speed(repeats)
        figures["speed"][name] = speed
        figures["accuracy"][name] = accuracy = problem.accuracy()
        for which in ("20 settings x 5 folds", "100 settings"):
            factor = speed[which]["factor, ours one by one (scaled)"]
            claims.append(claim(f"{name}: {which} in one pass is faster than one by one", factor, factor > 1))
        lost = accuracy["the same setting trained alone"] - accuracy["chosen in one pass"]
        claims.append(claim(f"{name}: the chosen head is as good as its setting trained alone", lost, abs(lost) < 0.01))
    figures["stream"] = stream = _stream(20_000 if case.tiny else 1_000_000, 64 if case.tiny else 512)
    bound = 4 * stream["MB of one window"] + 400
    claims.append(
        claim(
            "memory of a stream does not grow with the rows",
            stream["MB more at most"],
            stream["MB more at most"] < bound,
        )
    )
    return {**figures, "claims": claims}


class _Problem:
    """One set, standardised, with its folds as weights."""

    def __init__(self, data, epochs):
        self.y = np.unique(data.y, return_inverse=True)[1]
        X = np.asarray(data.X, dtype=np.float32)
        self.train, self.test = holdout(self.y, seed=0)
        moments = RunningMoments.of(X[self.train])
        self.X = ((X - moments.mean) / moments.scale()).astype(np.float32)
        self.rows, self.codes = self.X[self.train], self.y[self.train]
        self.k, self.epochs = int(self.y.max()) + 1, epochs
        self.fold = np.zeros((len(self.codes), 5), dtype=bool)
        for f, (_, held) in enumerate(k_fold(self.codes, 5)):
            self.fold[held, f] = True
        self.folded = [HeadSettings(r, d, group=f) for r in RATES for d in DECAYS for f in range(5)]
        self.hundred = [HeadSettings(r, d) for r in np.logspace(-4, -1, 10) for d in np.logspace(-2, 1.5, 10)]

    def fit(self, heads, folds, validate=False):
        """Train heads and return (seconds, run)."""
        start = time.perf_counter()
        done = train_heads(
            shuffled_batches(self.rows, self.codes, 256),
            heads,
            n_features=self.rows.shape[1],
            n_classes=self.k,
            epochs=self.epochs,
            steps_per_epoch=n_batches(len(self.codes), 256),
            row_weight=(lambda codes, rows: ~self.fold[rows]) if folds else None,
            validation=(lambda: ordered_batches(self.X[self.test], self.y[self.test])) if validate else None,
        )
        return time.perf_counter() - start, done

    def rival(self, make):
        """Seconds of as many epochs of one scikit-learn estimator."""
        estimator, classes = make(), np.arange(self.k)
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for epoch in range(self.epochs):
                order = np.random.default_rng(epoch).permutation(len(self.codes))
                if isinstance(estimator, SGDClassifier):
                    estimator.partial_fit(self.rows[order], self.codes[order], classes=classes)
                    continue
                for rows in np.array_split(order, n_batches(len(order), 256)):
                    estimator.partial_fit(self.rows[rows], self.codes[rows], classes=classes)
        return time.perf_counter() - start

    def speed(self, repeats):
        """Medians of interleaved runs; what is measured on a part is scaled to all heads, and says so."""
        chosen = {"20 settings x 5 folds": (self.folded, True), "100 settings": (self.hundred, False)}
        mlps = [HeadSettings(r, 10.0, dropout=0.5, hidden=100, seed=s) for r in (1e-3, 3e-3) for s in range(5)]
        seconds = {}
        note = lambda key, value: seconds.setdefault(key, []).append(value)  # noqa: E731
        self.fit(mlps[:1], True)  # the first backward pass of a process sets torch up
        for _ in range(repeats):
            for name, (heads, folds) in chosen.items():
                note((name, "one pass"), self.fit(heads, folds)[0])
                some = heads[:: len(heads) // PART][:PART]
                note((name, "by one"), sum(self.fit([head], folds)[0] for head in some) * len(heads) / PART)
            note("sgd", self.rival(lambda: SGDClassifier(loss="log_loss", random_state=0)) * 100)
            note("mlp", self.rival(lambda: MLPClassifier(100, random_state=0, batch_size=256)) * len(mlps))
            note("ours mlp", self.fit(mlps, False)[0])
            note("ours mlp by one", sum(self.fit([one], False)[0] for one in mlps[:2]) * len(mlps) / 2)
        of = {key: median(value) for key, value in seconds.items()}
        figures = {
            name: {
                "s in one pass": of[name, "one pass"],
                f"s one by one ({PART} measured, scaled to 100)": of[name, "by one"],
                "factor, ours one by one (scaled)": round(of[name, "by one"] / of[name, "one pass"], 2),
                "s SGDClassifier (1 measured, scaled to 100)": of["sgd"],
                "factor, SGDClassifier (scaled)": round(of["sgd"] / of[name, "one pass"], 2),
            }
            for name in chosen
        }
        figures[f"{len(mlps)} MLPs of width 100"] = {
            "s in one pass": of["ours mlp"],
            "s one by one (2 measured, scaled)": of["ours mlp by one"],
            "s MLPClassifier (1 measured, scaled)": of["mlp"],
            "factor, MLPClassifier (scaled)": round(of["mlp"] / of["ours mlp"], 2),
        }
        return {"rows": len(self.codes), "epochs": self.epochs, **figures}

    def accuracy(self):
        """Test accuracy of the head that a sweep chooses, and of each setting trained by itself."""
        grid = {"learning_rate": list(RATES), "weight_decay": list(DECAYS)}
        sweep = HeadSweep(grid, standardize=False, max_iter=self.epochs).fit(self.rows, self.codes)
        place = self.folded[::5]
        index = [i for i, head in enumerate(place) if head.learning_rate == sweep.best_params_["learning_rate"]
                 and head.weight_decay == sweep.best_params_["weight_decay"]][0]  # fmt: skip
        alone = self.fit([HeadSettings(place[index].learning_rate, place[index].weight_decay)], False, validate=True)[1]
        every = self.fit([HeadSettings(h.learning_rate, h.weight_decay) for h in place], False, validate=True)[1]
        return {
            "chosen in one pass": round(float(sweep.score(self.X[self.test], self.y[self.test])), 4),
            "the same setting trained alone": round(float(alone.accuracy[0]), 4),
            "best of the grid on the test rows (an oracle)": round(float(every.accuracy.max()), 4),
        }


def _stream(n, d):
    """Stream float16 rows from a file: the pass for the moments, one epoch of 100 heads, and the scoring pass."""
    k, full = 10, 10_000_000
    with tempfile.TemporaryDirectory() as folder:
        mapped = np.lib.format.open_memmap(Path(folder) / "x.npy", mode="w+", dtype=np.float16, shape=(n, d))
        codes = np.random.default_rng(0).integers(0, k, n)
        centres = np.random.default_rng(1).normal(0, 0.08, (k, d))
        for start in range(0, n, 2_000):
            rows = slice(start, min(start + 2_000, n))
            noise = np.random.default_rng([2, start]).standard_normal((rows.stop - start, d), dtype=np.float32)
            mapped[rows] = noise + centres[codes[rows]]
        mapped.flush()
        grid = {"learning_rate": list(RATES), "weight_decay": list(DECAYS)}
        sweep = HeadSweep(grid, cv=5, refit="average", max_iter=1)
        start = time.perf_counter()
        with Peak() as peak:
            sweep.fit_batches(shuffled_batches(mapped, codes, 1024), np.arange(k), d)
        seconds = time.perf_counter() - start
    return {
        "rows": n,
        "features": d,
        "heads": 100,
        "passes": 3,
        "s": round(seconds, 1),
        "rows/s (all three passes)": round(n / seconds),
        "MB of the file": round(n * d * 2 / 1e6),
        "MB of one window": round(64 * 256 * d * 2 / 1e6, 1),
        "MB more at most": peak.mb,
        "cv accuracy": round(sweep.best_score_, 4),
        f"extrapolated to {full} rows, not measured": {
            "minutes": round(seconds * full / n / 60, 1),
            "MB more at most (windows as here, 8 bytes more for each 256 rows)": round(
                peak.mb + 8 * (full - n) / 256 / 1e6, 1
            ),
        },
    }
