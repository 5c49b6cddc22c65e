"""How fast is ridge with exact leave-one-out over 28 alphas, and does a head from sums equal its refit?

Rival: scikit-learn's RidgeClassifierCV with the same alphas, on the same standardised codes (in float64, so that it
need not convert), interleaved; both choose by the squared error of left-out rows, and the same alpha must come out.
Then: heads fed in chunks against one fit (largest relative difference of coefficients and scores); the time to add
100 rows against that of a refit; rows per second and memory of a fit that reads its codes in blocks, with an
extrapolation to 10^7 x 512 that is called one; and SimpleShot from sums against the head "centroid" on the same
draws.
"""

import time
import tracemalloc

import numpy as np
from measuring import claim, median
from sklearn.base import clone
from sklearn.linear_model import RidgeClassifierCV

from featcache.heads import (
    IncrementalRidgeClassifier,
    LDAClassifier,
    ShrunkScaler,
    SimpleShotClassifier,
    fit_blocks,
    make_head,
)
from featcache.heads.ridge import ALPHAS
from featcache.splits import k_shot

REAL = ("clothing10", "sign_digits", "bccd_cells")
#: rows, features, classes, repeats
SYNTHETIC = ((10_000, 768, 50, 3), (1000, 2048, 20, 5), (100_000, 512, 100, 1))
TINY = ((300, 24, 4, 1), (40, 64, 3, 1))
WANTED = 10_000_000


def run(case):
    problems = [(name, *coded(case.load(name)), 5) for name in (REAL[:1] if case.tiny else REAL)]
    for n, d, k, repeats in TINY if case.tiny else SYNTHETIC:
        problems.append((f"{n} x {d}, {k} classes", *generated(n, d, k), repeats))
    paths = [leave_one_out(name, x, y, case.repeats or repeats) for name, x, y, repeats in problems]
    equal = [difference(name, x, y) for name, x, y, _ in problems[: 4 if case.tiny else 5]]
    figures = {
        "leave-one-out over 28 alphas": paths,
        "chunks against a refit": equal,
        "adding 100 rows": [adding(*problem[:3], case.repeats or 5) for problem in problems[-2:]],
        "reading in blocks": stream(*((2000, 16, 5) if case.tiny else (200_000, 512, 100))),
        "SimpleShot from sums": simpleshot(case),
    }
    tall = min(row["times faster"] for row in paths if row["rows"] > row["features"])
    least = min(row["times faster"] for row in paths)
    same = all(row["alpha"] == row["alpha of RidgeClassifierCV"] for row in paths)
    worst = max(max(row["largest relative difference"].values()) for row in equal)
    return figures | {
        "claims": [
            claim(
                "28 alphas are at least 3 times faster than RidgeClassifierCV, more rows than features", tall, tall >= 3
            ),
            # With fewer rows both decompose one (n, n) matrix, which takes most of the time of either.
            claim("28 alphas are faster than RidgeClassifierCV, with fewer rows than features, too", least, least > 1),
            claim("the same alpha is chosen on every problem", same, same),
            claim("chunks equal a refit to 1e-8", worst, worst <= 1e-8),
        ]
    }


def coded(features):
    return np.asarray(features.X, dtype=np.float32), np.unique(np.asarray(features.y), return_inverse=True)[1]


def generated(n, d, k, seed=0):
    """Codes with a falling spectrum around class means, so that classes overlap and alpha matters."""
    rng = np.random.default_rng(seed)
    spectrum = (np.arange(1, d + 1) ** -0.5).astype(np.float32)
    labels = rng.integers(0, k, n)
    middles = rng.standard_normal((k, d), dtype=np.float32) * spectrum
    return rng.standard_normal((n, d), dtype=np.float32) * (2.0 * spectrum) + middles[labels], labels


def timed(action):
    start = time.perf_counter()
    result = action()
    return result, time.perf_counter() - start


def leave_one_out(name, x, y, repeats):
    scaled = ShrunkScaler().fit_transform(x.astype(np.float64))
    ours, theirs = [], []
    for _ in range(repeats):
        head, seconds = timed(lambda: IncrementalRidgeClassifier(keep_sums=False).fit(scaled, y))
        ours.append(seconds)
        rival, seconds = timed(lambda: RidgeClassifierCV(ALPHAS).fit(scaled, y))
        theirs.append(seconds)
    return {
        "problem": name,
        "rows": len(x),
        "features": x.shape[1],
        "classes": int(y.max()) + 1,
        "repeats": repeats,
        "seconds": median(ours),
        "seconds of RidgeClassifierCV": median(theirs),
        "times faster": round(float(np.median(theirs) / np.median(ours)), 2),
        "alpha": head.alpha_,
        "alpha of RidgeClassifierCV": float(rival.alpha_),
    }


def heads():
    return {
        "ridge": IncrementalRidgeClassifier(alpha=10.0, standardize=True),
        "ridge, alpha by gcv": IncrementalRidgeClassifier(select="gcv", standardize=True),
        "lda": LDAClassifier(),
        "simpleshot": SimpleShotClassifier(),
    }


def difference(name, x, y):
    """Return how far 20 unequal chunks, sorted by class, lie from one fit."""
    order = np.argsort(y, kind="stable")
    edges = np.sort(np.random.default_rng(0).choice(np.arange(1, len(y)), 19, replace=False))
    x, y = x[:20_000].astype(np.float64), y[:20_000]
    order, edges = order[order < len(y)], edges[edges < len(y)]
    out = {}
    for kind, head in heads().items():
        whole, fed = clone(head).fit(x, y), clone(head)
        parts = [part for part in np.split(order, edges) if len(part)]
        for part in parts[:1] + parts[-1:] if "gcv" in kind else parts:
            fed.partial_fit(x[part], y[part], classes=np.arange(y.max() + 1))
        if "gcv" in kind:
            rest = np.concatenate(parts[1:-1])
            fed.partial_fit(x[rest], y[rest])
        pairs = [(getattr(whole, a), getattr(fed, a)) for a in ("coef_", "intercept_")]
        pairs.append((whole.decision_function(x[:500]), fed.decision_function(x[:500])))
        out[kind] = float(max(np.abs(a - b).max() / np.abs(a).max() for a, b in pairs))
    return {"problem": name, "largest relative difference": out}


def adding(name, x, y, repeats):
    """Return the time to add the last 100 rows, and to fit all again."""
    out = {"problem": name}
    few = min(100, len(x) // 4)
    for kind in ("ridge", "lda"):
        seconds = {"add": [], "refit": []}
        for _ in range(repeats):
            head = clone(heads()[kind]).fit(x[:-few], y[:-few])
            seconds["add"].append(timed(lambda head=head: head.partial_fit(x[-few:], y[-few:]))[1])
            seconds["refit"].append(timed(lambda kind=kind: clone(heads()[kind]).fit(x, y))[1])
        out[kind] = {"seconds to add": median(seconds["add"]), "seconds to refit": median(seconds["refit"])}
    return out


class Repeated:
    """Many rows out of few, made as they are read: a store larger than memory without the store."""

    def __init__(self, rows, n):
        self.rows, self.shape = rows, (n, rows.shape[1])

    def __getitem__(self, part):
        return self.rows[np.arange(part.start, part.stop) % len(self.rows)]


def stream(n, d, k):
    base, labels = generated(min(n, 20_000), d, k)
    out = []
    for rows in (n // 2, n):
        codes, y = Repeated(base.astype(np.float16), rows), labels[np.arange(rows) % len(labels)]
        head = IncrementalRidgeClassifier(alpha=10.0)
        seconds = timed(lambda codes=codes, y=y, head=head: fit_blocks(head, codes, y))[1]
        tracemalloc.start()
        fit_blocks(clone(head), codes, y)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        per_second = round(rows / seconds)
        out.append({"rows": rows, "seconds": round(seconds, 3), "rows per second": per_second, "peak MB": peak / 1e6})
    labels_mb = 8 * (WANTED - n) / 1e6  # labels and their class numbers are held, codes are not
    return {
        "features": d,
        "classes": k,
        "measured": out,
        f"extrapolated to {WANTED} rows, not measured": {
            "seconds": round(WANTED / out[-1]["rows per second"]),
            "peak MB above the labels given": round(out[-1]["peak MB"] + labels_mb),
        },
    }


def simpleshot(case):
    """Return accuracies (%) of both forms on the same draws, tested on rows that no draw may take."""
    out = []
    for name in REAL[:1] if case.tiny else REAL:
        x, y = coded(case.load(name))
        test = np.random.default_rng(0).permutation(len(y))[: min(300, len(y) // 2)]
        pool = np.setdiff1d(np.arange(len(y)), test)
        for shots in (1, 2, 5):
            pairs = []
            for seed in range(5 if case.tiny else 200):
                rows = k_shot(y, shots, rows=pool, seed=seed)
                both = (head.fit(x[rows], y[rows]) for head in (make_head("centroid"), SimpleShotClassifier()))
                pairs.append([100.0 * np.mean(head.predict(x[test]) == y[test]) for head in both])
            old, new = np.asarray(pairs).T
            half = 1.96 * np.std(new - old, ddof=1) / np.sqrt(len(old))
            out.append(
                {
                    "set": name,
                    "shots": shots,
                    "draws": len(old),
                    "head centroid": round(float(old.mean()), 2),
                    "from sums": round(float(new.mean()), 2),
                    "difference": f"{np.mean(new - old):+.2f} ± {half:.2f}",
                }
            )
    return out
