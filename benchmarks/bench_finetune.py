r"""Is the hand-off to fine-tuning worth what it promises?

Question
    Does the network begin at the head's accuracy; is starting from the head better than from a random layer; which
    strategy pays at how many labels; is a killed run bit-equal; what does the cached trunk save; does a run survive
    short memory; how do the two recipes of PyTorch's tutorial fare beside it; do exported networks say the same.

Command
    python benchmarks/bench_finetune.py [--only PART[,PART]] [--data DIR] [--repeats N] [--tiny]
        [--out benchmarks/results/finetune.json]

    Parts that are not run keep the figures that the results file has. `--list` shows the parts and how long they take
    on two cores. --tiny: the embedded network on generated images, seconds; it shows that the benchmark runs, not that
    the claims hold.
"""

import sys

from finetune import deploying, depth, handing, interrupting, lpft, memory, strategies, tutorial
from finetune.case import Case
from parts import Part, bench_on_codes

PARTS: dict[str, Part] = {
    "handing": Part(handing.run, 2),
    "lpft": Part(lpft.run, 10),
    "strategies_near": Part(strategies.near, 12),
    "strategies_far": Part(strategies.far, 20),
    "interrupting": Part(interrupting.run, 10),
    "depth": Part(depth.run, 6),
    "memory": Part(memory.run, 2),
    "tutorial": Part(tutorial.run, 25),
    "deploying": Part(deploying.run, 3),
}


if __name__ == "__main__":
    sys.exit(bench_on_codes("finetune", __doc__, PARTS, Case))
