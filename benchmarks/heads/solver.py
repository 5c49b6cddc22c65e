"""How fast is multinomial logistic regression, alone and as a path over folds, at the same objective as scikit-learn's?

Every rival runs at the loosest tolerance of its own (of 1e-2, 1e-3, …) that brings its objective within 1e-5 of the
optimum; that tolerance is found beforehand and does not count. Ours runs at its default. The optimum is the smallest of
ours in float64 and of newton-cg at its tightest. Rivals of one fit: scikit-learn's newton-cg, lbfgs (its default),
newton-cholesky where its Hessian has at most 3,000 rows, and torch.optim.LBFGS with strong Wolfe line search from zero
on the same rows. Of a path: LogisticRegressionCV with newton-cg, its fastest, on the same folds and values of C; the
optima there are ours in float64.
"""

import warnings
from typing import Any

import numpy as np
from measuring import claim, median
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold

from featcache.softmax import SoftmaxClassifier, SoftmaxClassifierCV

from .case import Case, seconds, standardised, synthetic

WANTED = 1e-5
TOLERANCES = tuple(10.0**-e for e in range(2, 9))
#: Single fits: (name, C). Names with x are generated: rows x features x classes.
FITS = (
    ("clothing10", 1e-2),
    ("clothing10", 1.0),
    ("sign_digits", 1e-2),
    ("sign_digits", 1.0),
    ("pneumonia_xray", 1e-2),
    ("6000x512x50", 1e-2),
    ("6000x512x50", 1.0),
    ("10000x768x100", 1e-2),
    ("1000x2048x20", 1e-2),
)
#: Fits that take minutes with the rivals: newton-cg and lbfgs only, at tolerances that come near, once.
LARGE = (("100000x512x100", 1e-3), ("100000x2048x20", 1e-3), ("20000x512x1000", 1e-2))
PATHS = ("clothing10", "sign_digits", "6000x512x50")
PATH_CS = tuple(np.logspace(-5, 2, 20))


def problem(case: Case, name: str) -> tuple[np.ndarray, np.ndarray]:
    if name[0].isdigit():
        n, d, k = (int(part) for part in name.split("x"))
        return synthetic(*((n, d, k) if not case.tiny else (80, 16, 4)))
    return standardised(case.load(name))


def objective(X: np.ndarray, y: np.ndarray, C: float, coef: np.ndarray, intercept: np.ndarray) -> float:
    """The objective of LogisticRegression, in float64: C times the log losses, plus half the squared weights."""
    total = 0.0
    for start in range(0, len(X), 20_000):
        scores = X[start : start + 20_000].astype(np.float64) @ coef.T + intercept
        if scores.shape[1] == 1:
            scores = np.column_stack([np.zeros(len(scores)), scores])
        scores -= scores.max(axis=1, keepdims=True)
        own = scores[np.arange(len(scores)), y[start : start + 20_000]]
        total += float((np.log(np.exp(scores).sum(axis=1)) - own).sum())
    return C * total + 0.5 * float(np.square(coef).sum())


def torch_lbfgs(X: np.ndarray, y: np.ndarray, C: float, tol: float) -> Any:
    """What one would write by hand: the same objective, torch.optim.LBFGS on all rows."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    rows, k = torch.from_numpy(X), int(y.max()) + 1
    columns = k if k > 2 else 1
    target = torch.from_numpy(y) if k > 2 else torch.from_numpy(y[:, None].astype(np.float32))
    criterion = cross_entropy if k > 2 else binary_cross_entropy_with_logits
    weight = torch.zeros((columns, X.shape[1]), requires_grad=True)
    bias = torch.zeros(columns, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=3000, tolerance_grad=tol * 1e-2, tolerance_change=tol * 1e-4,
        history_size=10, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = criterion(rows @ weight.T + bias, target) + weight.square().sum() * (0.5 / (C * len(y)))
        loss.backward()
        return loss

    solver.step(closure)

    class Fitted:
        coef_, intercept_ = weight.detach().double().numpy(), bias.detach().double().numpy()

    return Fitted


def rivals(X: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Name → (C, tol) → fitted."""
    names = ["newton-cg", "lbfgs"]
    if X.shape[1] * len(np.unique(y)) <= 3000:
        names.append("newton-cholesky")
    found = {
        name: lambda C, tol, name=name: LogisticRegression(C=C, solver=name, tol=tol, max_iter=10_000).fit(X, y)
        for name in names
    }
    return {**found, "torch.optim.LBFGS": lambda C, tol: torch_lbfgs(X, y, C, tol)}


def tolerance(call: Any, C: float, best: float, value: Any) -> float | None:
    """The loosest tolerance at which a solver comes near enough; None where it never does."""
    for tol in TOLERANCES:
        if value(call(C, tol)) <= best * (1.0 + WANTED):
            return tol
    return None


def one_fit(case: Case, name: str, C: float) -> dict[str, Any]:
    X, y = problem(case, name)
    value = lambda fitted: objective(X, y, C, fitted.coef_, fitted.intercept_)  # noqa: E731
    ours = lambda: SoftmaxClassifier(C).fit(X, y)  # noqa: E731
    best = min(
        value(SoftmaxClassifier(C, tol=1e-9, max_iter=5000).fit(X, y)),
        value(LogisticRegression(C=C, solver="newton-cg", tol=1e-8, max_iter=10_000).fit(X, y)),
    )
    calls = rivals(X, y)
    tols = {who: tolerance(call, C, best, value) for who, call in calls.items()}
    times: dict[str, list[float]] = {who: [] for who in ("featcache", *calls)}
    excess = {"featcache": value(ours()) / best - 1.0}
    for _ in range(case.repeats or (1 if case.tiny else 5)):
        times["featcache"].append(seconds(ours)[0])
        for who, call in calls.items():
            if tols[who] is not None:
                took, fitted = seconds(lambda call=call, who=who: call(C, tols[who]))
                times[who].append(took)
                excess[who] = value(fitted) / best - 1.0
    return {
        "problem": f"{name}, C={C:g}",
        "rows": X.shape[0],
        "features": X.shape[1],
        "classes": int(y.max()) + 1,
        "seconds": {who: median(t) for who, t in times.items() if t},
        "excess": {who: float(f"{e:.1e}") for who, e in excess.items()},
        "not_reached": [who for who, tol in tols.items() if tol is None],
        "passes": int(SoftmaxClassifier(C).fit(X, y).n_iter_[0]),
    }


def single(case: Case) -> dict[str, Any]:
    """One fit at one C."""
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, C in FITS[:: 3 if case.tiny else 1]:
            rows.append(one_fit(case, name, C))
    for row in rows:
        ours = row["seconds"]["featcache"]
        theirs = {who: s for who, s in row["seconds"].items() if who not in ("featcache", "torch.optim.LBFGS")}
        row["times_best_of_sklearn"] = round(min(theirs.values()) / ours, 2) if theirs else None
        for key, who in (("times_default", "lbfgs"), ("times_torch", "torch.optim.LBFGS")):
            row[key] = round(row["seconds"][who] / ours, 2) if who in row["seconds"] else None
    named = [(row["problem"], row["times_best_of_sklearn"]) for row in rows if row["times_best_of_sklearn"]]
    least = min(times for _, times in named)
    defaults = [row["times_default"] for row in rows if row["times_default"]]
    by_hand = [row["times_torch"] for row in rows if row["times_torch"]]
    worst = max(row["excess"]["featcache"] for row in rows)
    return {
        "fits": rows,
        "claims": [
            claim("our objective is within 1e-5 of the optimum", worst, worst <= WANTED),
            claim("one fit, times sklearn's best solver, worst case (asked: 2)", least, least >= 2),
            claim("one fit, times sklearn's default, median (asked: 8)", median(defaults, 2), median(defaults) >= 8),
            claim("one fit, times torch.optim.LBFGS, worst case (asked: ahead)", min(by_hand), min(by_hand) > 1),
        ],
    }  # fmt: skip


def large(case: Case) -> dict[str, Any]:
    """Single fits of sizes that take the rivals minutes; one run each; the objectives stand beside."""
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, C in LARGE[: 1 if case.tiny else None]:
            X, y = problem(case, name)
            took, ours = seconds(lambda X=X, y=y, C=C: SoftmaxClassifier(C).fit(X, y))
            row = {"problem": f"{name}, C={C:g}", "featcache_seconds": round(took, 2)}
            row["certified_excess"] = float(f"{ours.gap_ / ours.objective_:.1e}")
            for solver, tol in (("newton-cg", 1e-3), ("lbfgs", 1e-4)):
                took, theirs = seconds(
                    lambda X=X, y=y, C=C, solver=solver, tol=tol: LogisticRegression(
                        C=C, solver=solver, tol=tol, max_iter=300
                    ).fit(X, y)
                )
                excess = objective(X, y, C, theirs.coef_, theirs.intercept_) / ours.objective_ - 1.0
                row |= {f"{solver}_seconds": round(took, 2), f"{solver}_above_ours": float(f"{excess:.1e}")}
            rows.append(row)
    ahead = all(
        row["newton-cg_seconds"] > row["featcache_seconds"] and row["newton-cg_above_ours"] > -WANTED for row in rows
    )
    return {"fits": rows, "claims": [claim("large fits: sooner than newton-cg, objective no higher", ahead, ahead)]}


def fold_excess(fitted: Any, X: np.ndarray, y: np.ndarray, folds: list[Any], best: np.ndarray) -> float:
    """The largest relative excess over all folds and values of C of what LogisticRegressionCV found on its path."""
    paths = np.asarray(fitted.coefs_paths_)  # folds, (a single l1 ratio,) C, classes, features + 1
    paths = paths.reshape(len(folds), len(PATH_CS), -1, X.shape[1] + 1)
    found = np.empty_like(best)
    for f, (rows, _) in enumerate(folds):
        for c, C in enumerate(PATH_CS):
            found[f, c] = objective(X[rows], y[rows], C, paths[f, c, :, :-1], paths[f, c, :, -1])
    return float((found / best - 1.0).max())


def path(case: Case) -> dict[str, Any]:
    """20 values of C on 5 folds, and the best one fitted on all rows."""
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PATHS[: 1 if case.tiny else None]:
            rows.append(_one_path(case, name))
    reached = [row for row in rows if row["times_newton_cg"] is not None]
    many = [row["times_newton_cg"] for row in reached if row["rows"] > row["features"] and not row["separable"]]
    few = [row["times_newton_cg"] for row in reached if row["separable"]]
    worst = max(row["our_excess"] for row in rows)
    claims = [claim("path: our objectives are within 1e-5, worst of all folds and C", worst, worst <= WANTED)]
    if many:
        claims.append(claim("path, N > D, times LogisticRegressionCV (asked: 15)", min(many), min(many) >= 15))
    if few:
        claims.append(claim("path, separable, times LogisticRegressionCV (asked: 4)", min(few), min(few) >= 4))
    return {"paths": rows, "claims": claims}


def _one_path(case: Case, name: str) -> dict[str, Any]:
    from featcache.solvers.linear_path import LinearProblem
    from featcache.solvers.losses import SoftmaxLoss

    X, y = problem(case, name)
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y))
    weight = np.zeros((5, len(y)))
    for f, (train, _) in enumerate(folds):
        weight[f, train] = 1.0
    exact = LinearProblem(X, y, int(y.max()) + 1, weight, SoftmaxLoss(), dtype="float64")
    penalties = [1.0 / (C * exact.total) for C in PATH_CS]
    scale = np.stack([1.0 / penalty for penalty in penalties], axis=1)  # C times the fold's rows: from means to sums
    best = np.stack([p.value for p in exact.walk(penalties, tol=1e-10, max_iter=3000)], axis=1) * scale
    fit_ours = lambda: SoftmaxClassifierCV(PATH_CS, cv=folds).fit(X, y)  # noqa: E731
    took, ours = seconds(fit_ours)
    loose = LinearProblem(X, y, int(y.max()) + 1, weight, SoftmaxLoss())
    walk = loose.walk(penalties, tol=ours.tol * 0.05, max_iter=1000, enough=ours.tol)
    values = [
        exact.evaluate(np.asarray(p.theta, dtype=np.float64), penalty)[0]
        for p, penalty in zip(walk, penalties, strict=True)
    ]
    row = {
        "problem": name,
        "rows": X.shape[0],
        "features": X.shape[1],
        "separable": bool((ours.predict(X) == y).all()),
        "featcache_seconds": round(took, 2),
        "our_excess": float(f"{(np.stack(values, axis=1) * scale / best - 1.0).max():.1e}"),
        "passes": int(ours.path_iter_.sum()),
        "our_accuracy": round(float(ours.scores_.mean(axis=0).max()), 4),
    }

    def theirs_at(tol: float) -> Any:
        return LogisticRegressionCV(
            Cs=list(PATH_CS), cv=folds, solver="newton-cg", tol=tol, max_iter=10_000,
            use_legacy_attributes=False, scoring="accuracy",
        ).fit(X, y)  # fmt: skip

    row["times_newton_cg"] = None
    for tol in TOLERANCES:
        took, theirs = seconds(lambda tol=tol: theirs_at(tol))
        excess = fold_excess(theirs, X, y, folds, best)
        row |= {"newton_cg_seconds": round(took, 2), "newton_cg_excess": float(f"{excess:.1e}"), "newton_cg_tol": tol}
        row["accuracy"] = round(float(np.asarray(theirs.scores_).mean(axis=0).max()), 4)
        if excess <= WANTED or case.tiny:
            again = seconds(fit_ours)[0]  # the machine as it is now, beside what it was before
            row["featcache_seconds"] = round((row["featcache_seconds"] + again) / 2, 2)
            row["times_newton_cg"] = round(took / row["featcache_seconds"], 1)
            break
    return row
