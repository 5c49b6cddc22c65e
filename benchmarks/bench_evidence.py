r"""Can one believe what featcache says about heads, backbones, labels and data?

Question
    Do intervals cover and tests keep their level; does a comparison equal the same protocol written by hand; is it
    quick; are planted leaks, label errors and groups found; does ranking backbones agree with training on them; are
    learning curves forecast well; are suggested images worth more than random ones.

Command
    python benchmarks/bench_evidence.py [--only PART[,PART]] [--data DIR] [--stores DIR] [--repeats N] [--tiny]
        [--out benchmarks/results/evidence.json]

    `--only cover` means all parts that begin with "cover". Parts that are not run keep the figures that the results
    file has; each has its own date, load and commit. `--list` shows the parts and how long they take on two cores.

--data is the folder with datasets/ and weights/ (or FEATCACHE_TEST_DATA); codes are extracted from it once, into
--stores where that is given. --tiny: generated codes, seconds; it shows that the benchmark runs, not that the claims
hold.
"""

import sys

from evidence import (
    advising,
    auditing,
    comparing,
    forecasting,
    intervals,
    ranking,
    reporting,
    straddling,
    suggesting,
)
from evidence.case import Case
from parts import Part, bench_on_codes

PARTS: dict[str, Part] = {
    "cover": Part(intervals.cover, 20),
    "false_alarms": Part(intervals.false_alarms, 20),
    "by_hand": Part(comparing.by_hand, 2),
    "quick": Part(comparing.quick, 4),
    "forecast": Part(forecasting.run, 4),
    "suggest": Part(suggesting.run, 8),
    "audit": Part(auditing.run, 4),
    "groups": Part(straddling.run, 2),
    "rank": Part(ranking.run, 5),
    "advise": Part(advising.run, 9),
    "report": Part(reporting.run, 3),
}


if __name__ == "__main__":
    sys.exit(bench_on_codes("evidence", __doc__, PARTS, Case))
