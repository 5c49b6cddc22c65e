"""How fast is multinomial logistic regression, alone and as a path over folds, at the same objective as scikit-learn's?

Every rival runs at the loosest tolerance of its own (of 1e-2, 1e-3, …) that brings its objective within 1e-5 of the
optimum; that tolerance is found beforehand and does not count. Ours runs at its default. The optimum is the smallest of
ours in float64 and of newton-cg at its tightest. Rivals of one fit: scikit-learn's newton-cg, lbfgs (its default),
newton-cholesky where its Hessian has at most 3,000 rows, and torch.optim.LBFGS with strong Wolfe line search from zero
on the same rows. Of a path: LogisticRegressionCV with newton-cg, its fastest, on the same folds and values of C; the
optima there are ours in float64.

Rivals of paths and of large fits run in processes of their own (start-up does not count) and are ended after so many
seconds. Where the rival's path was ended, or does not come within 1e-5 at any tolerance, the factor is "at least":
the seconds that it was given, or those at its tightest tolerance, over ours. Rivals of
large fits run at one given tolerance each, and their objectives stand beside. "Certified excess" is what the duality
gap allows at most.
"""

import warnings
from typing import Any

import numpy as np
from measuring import claim, median
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, train_test_split

from featcache.softmax import SoftmaxClassifier, SoftmaxClassifierCV
from featcache.softmax.cross_validated import PROMISE

from .case import Case, alike, seconds, standardised, synthetic
from .processes import fitted, hunt, stored

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
#: Fits that take minutes with the rivals: (name, C, seconds that a rival may take).
LARGE = (
    ("100000x512x100", 1e-3, 120),
    ("100000x2048x20", 1e-3, 120),
    ("20000x512x1000", 1e-2, 120),
    ("20000x256x10000", 3e-2, 240),
)
#: What runs beside ours there: (solver, tol, steps at most, and how many where those take too long). A single step of
#: newton-cg is up to 200 steps of conjugate gradients: fewer of them would not end in time either.
LARGE_RIVALS = (("newton-cg", 1e-3, (300,)), ("lbfgs", 1e-4, (300, 15)))
#: Paths: (name, classes, rows or None for all, the tolerance of TOLERANCES at which the search for the rival's begins).
PATHS = (
    ("clothing10", None, None, 6),
    ("omniglot_small", 50, 1000, 6),
    ("clothing10", None, 1000, 6),
    ("sign_digits", None, None, 6),
    ("1020x1280x17", None, None, 6),
    ("6000x512x50", None, None, 5),
)
PATH_LIMIT = 240
PATH_CS = tuple(np.logspace(-5, 2, 20))


def problem(case: Case, name: str) -> tuple[np.ndarray, np.ndarray]:
    if name[0].isdigit():
        n, d, k = (int(part) for part in name.split("x"))
        n, d, k = (n, d, k) if not case.tiny else (80, 16, 4)
        return (synthetic if 10 * k <= n else alike)(n, d, k)
    return standardised(case.load(name))


def part_of(case: Case, name: str, classes: int | None, n: int | None) -> tuple[str, np.ndarray, np.ndarray]:
    """Return what to call a part of a problem, and its rows: of some of its classes, n of them, drawn by class."""
    X, y = problem(case, name)
    if classes is not None:
        few = np.sort(np.random.default_rng(0).permutation(int(y.max()) + 1)[: classes // (8 if case.tiny else 1)])
        X, y, name = X[np.isin(y, few)], y[np.isin(y, few)], f"{name}, {len(few)} classes"
    if n is not None and n < len(y):
        rows, _ = train_test_split(np.arange(len(y)), train_size=n, stratify=y, random_state=0)
        X, y, name = X[np.sort(rows)], y[np.sort(rows)], f"{name}, {n} rows"
    if classes is not None or n is not None:
        X = (X - X.mean(axis=0)) / (X.std(axis=0) + 1e-3)
    return name, X.astype(np.float32), np.unique(y, return_inverse=True)[1]


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [row for entry in LARGE[:: 3 if case.tiny else 1] for row in _one_large(case, *entry)]
    theirs = [row for row in rows if row["who"] != "featcache"]
    behind = [
        f"{row['problem']}: {row['who']}"
        for row in theirs
        if row["times_featcache"] <= 1 and (row["above_ours"] is None or row["above_ours"] <= WANTED)
    ]
    text = "large fits, to 10,000 classes: rivals that come within 1e-5 of our objective as soon (asked: none)"
    lowest = min(row["above_ours"] for row in theirs if row["above_ours"] is not None)
    return {
        "fits": rows,
        "claims": [
            claim(text, behind or "none", not behind),
            claim("large fits: no rival's objective is lower than ours by 1e-5 of it", lowest, lowest >= -WANTED),
        ],
    }


def _one_large(case: Case, name: str, C: float, limit: float) -> list[dict[str, Any]]:
    X, y = problem(case, name)
    took, ours = seconds(lambda: SoftmaxClassifier(C).fit(X, y))
    about = {"problem": f"{name}, C={C:g}", "classes": len(ours.classes_)}
    certified = float(f"{ours.gap_ / ours.objective_:.1e}")
    first = {"who": "featcache", "seconds": round(took, 2), "times_featcache": 1.0, "above_ours": 0.0}
    lines = [{**about, **first, "certified_excess": certified, "passes": int(ours.n_iter_[0])}]
    folder = stored(case.work / "large", X=X, y=y)
    for solver, tol, steps in LARGE_RIVALS:
        for most in steps:
            found = fitted(folder, "sklearn_fit", limit, C=C, solver=solver, tol=tol, max_iter=most)
            line = {**about, "who": f"{solver}, tol {tol:g}, {most} steps at most"}
            if found is not None:
                break
            line |= {"seconds": f"over {limit}", "times_featcache": round(limit / took, 1), "above_ours": None}
            lines.append({**line, "note": "ended; the factor is a lower bound"})
        else:
            continue
        excess = objective(X, y, C, found["coef"], found["intercept"]) / ours.objective_ - 1.0
        line |= {"seconds": round(found["seconds"], 2), "times_featcache": round(found["seconds"] / took, 1)}
        lines.append({**line, "above_ours": float(f"{excess:.1e}")})
    return lines


def fold_excess(paths: np.ndarray, X: np.ndarray, y: np.ndarray, folds: list[Any], best: np.ndarray) -> float:
    """The largest relative excess over all folds and values of C of the weights on LogisticRegressionCV's path."""
    # folds, (a single l1 ratio,) C, classes, features + 1
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
        for name, classes, n, start in PATHS[: 2 if case.tiny else None]:
            rows.append(_one_path(case, *part_of(case, name, classes, n), start))
    worst = max(row["our_excess"] for row in rows)
    claims = [claim("path: our objectives are within 1e-5, worst of all folds and C", worst, worst <= WANTED)]
    for text, asked, wide in (("N > D", 15, False), ("N < D", 4, True)):
        kind = [row for row in rows if (row["rows"] < row["features"]) == wide]
        if kind:
            least = min(kind, key=lambda row: row["times_newton_cg"])
            figure = f"{least['problem']}: {least['factor_is']} {least['times_newton_cg']}"
            text = f"path, {text}, times LogisticRegressionCV, worst case (asked: {asked})"
            claims.append(claim(text, figure.replace("measured ", ""), least["times_newton_cg"] >= asked))
    return {"paths": rows, "claims": claims}


def _one_path(case: Case, name: str, X: np.ndarray, y: np.ndarray, start: int) -> dict[str, Any]:
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y))
    best, ours_at_each = _path_objectives(X, y, folds)
    fit_ours = lambda: SoftmaxClassifierCV(PATH_CS, cv=folds).fit(X, y)  # noqa: E731
    before, ours = seconds(fit_ours)
    row = {
        "problem": name,
        "rows": X.shape[0],
        "features": X.shape[1],
        "classes": len(ours.classes_),
        "separable": bool((SoftmaxClassifier(1e4).fit(X, y).predict(X) == y).all()),
        "our_excess": float(f"{(ours_at_each / best - 1.0).max():.1e}"),
        "passes": int(ours.path_iter_.sum()),
        "our_accuracy": round(float(ours.scores_.mean(axis=0).max()), 4),
    }
    fold = np.empty(len(y), dtype=np.int64)
    for f, (_, held) in enumerate(folds):
        fold[held] = f
    folder = stored(case.work / "path", X=X, y=y, fold=fold)

    def theirs_at(tol: float) -> dict[str, Any] | None:
        settings = {"Cs": list(PATH_CS), "solver": "newton-cg", "tol": tol, "max_iter": 10_000}
        found = fitted(folder, "sklearn_path", PATH_LIMIT, **settings)
        return found and {**found, "excess": fold_excess(found["coefs"], X, y, folds, best)}

    wanted = np.inf if case.tiny else WANTED
    tols = TOLERANCES[:1] if case.tiny else TOLERANCES
    tried = hunt(theirs_at, lambda found: found["excess"] <= wanted, tols, min(start, len(tols) - 1))
    after = seconds(fit_ours)[0]  # the machine as it is now, beside what it was before
    return row | _beside(tried, wanted, (before + after) / 2)


def _path_objectives(X: np.ndarray, y: np.ndarray, folds: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the optima (folds, values of C) in float64, and what the path's own solver and tolerance come to."""
    from featcache.solvers.linear_path import LinearProblem
    from featcache.solvers.losses import SoftmaxLoss

    k, weight = int(y.max()) + 1, np.zeros((len(folds), len(y)))
    for f, (train, _) in enumerate(folds):
        weight[f, train] = 1.0
    exact = LinearProblem(X, y, k, weight, SoftmaxLoss(), dtype="float64")
    penalties = [1.0 / (C * exact.total) for C in PATH_CS]
    scale = np.stack([1.0 / penalty for penalty in penalties], axis=1)  # C times the fold's rows: from means to sums
    best = np.stack([p.value for p in exact.walk(penalties, tol=1e-10, max_iter=3000)], axis=1) * scale
    ours = LinearProblem(X, y, k, weight, SoftmaxLoss())
    tol = SoftmaxClassifierCV().tol
    walk = ours.walk(penalties, tol=tol * PROMISE, max_iter=1000, enough=tol)
    values = [
        exact.evaluate(np.asarray(p.theta, dtype=np.float64), penalty)[0]
        for p, penalty in zip(walk, penalties, strict=True)
    ]
    return best, np.stack(values, axis=1) * scale


def _beside(tried: dict[int, Any], wanted: float, ours: float) -> dict[str, Any]:
    """The rival's figures at its loosest tolerance that suffices, or a lower bound of what it would take."""
    row: dict[str, Any] = {"featcache_seconds": round(ours, 2)}
    ended = {i: found for i, found in tried.items() if found is not None}
    enough = [i for i, found in ended.items() if found["excess"] <= wanted]
    if ended:
        at = min(enough) if enough else max(ended)
        row |= {
            "newton_cg_seconds": round(ended[at]["seconds"], 2),
            "newton_cg_excess": float(f"{ended[at]['excess']:.1e}"),
            "newton_cg_tol": TOLERANCES[at],
            "accuracy": round(float(ended[at]["scores"].mean(axis=0).max()), 4),
        }
    over = len(ended) < len(tried)
    theirs = PATH_LIMIT if not enough and over else row["newton_cg_seconds"]
    row["times_newton_cg"] = round(theirs / ours, 1)
    row["factor_is"] = "measured" if enough else "at least"
    if over:
        row["note"] = f"tolerance {TOLERANCES[min(i for i, f in tried.items() if f is None)]:g}: over {PATH_LIMIT} s"
    return row
