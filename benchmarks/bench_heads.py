r"""How fast are heads trained on cached codes, at equal objective, and how good are they beside what people use?

Question
    Multinomial logistic regression alone and as a path over folds against scikit-learn at the same objective, up to
    10,000 classes, and on codes that stay on disk; settings chosen on a sample against settings chosen on all rows;
    ridge with leave-one-out against RidgeClassifierCV; many heads in one pass; verification against the cosine; heads
    over layers and views; the error rate of answers that a head is sure of; and `auto` against seven heads that people
    use, from 1 shot to all rows.

Command
    python benchmarks/bench_heads.py [--only PART[,PART]] [--data DIR] [--stores DIR] [--repeats N] [--tiny]
        [--out benchmarks/results/heads.json]

    `--only solver` means all parts that begin with "solver". Parts that are not run keep the figures that the results
    file has; each has its own date, load and commit. `--list` shows the parts and how long they take on two cores.

--data is the folder with datasets/ and weights/ (or FEATCACHE_TEST_DATA); codes are extracted from it once, into
--stores where that is given. --tiny: generated codes, seconds; it shows that the benchmark runs, not that the claims
hold.
"""

import sys
from functools import partial

from heads import auto, layers_views, many, rejection, ridge, sampled, solver, streaming, verification
from heads.case import Case
from parts import Part, bench_on_codes

PARTS: dict[str, Part] = {
    "solver_single": Part(solver.single, 6),
    "solver_path": Part(solver.path, 16),
    "solver_large": Part(solver.large, 15),
    "streaming": Part(streaming.run, 2),
    "sampled": Part(sampled.run, 7),
    "ridge": Part(ridge.run, 8),
    "many": Part(many.run, 6),
    "verification": Part(verification.run, 12),
    "layers_views": Part(layers_views.run, 10),
    "rejection": Part(rejection.run, 6),
    "auto_few": Part(partial(auto.run, shots=(1, 5)), 8),
    "auto_some": Part(partial(auto.run, shots=(10, 20)), 5),
    "auto_all": Part(partial(auto.run, shots=("all",)), 25),
}


if __name__ == "__main__":
    sys.exit(bench_on_codes("heads", __doc__, PARTS, Case))
