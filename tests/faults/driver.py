"""A server that forks processes running `featcache extract`, slowed down so that a kill lands in the middle.

Each child is a process of its own that runs the real command; forking it from one that has imported torch saves seconds
per child. Lines of JSON come in ({"spawn": [...], "sleep": s, "err": path} or {"wait": pid}); lines of JSON go out.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time


def child(arguments: list[str], sleep: float, err: str) -> None:
    from featcache import cli
    from featcache.backbone import Backbone

    file = os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    real = Backbone.encode

    def slow(self, pixels, **options):
        time.sleep(sleep)
        return real(self, pixels, **options)

    Backbone.encode = slow
    sys.exit(cli.run(arguments))


def main() -> None:
    import h5py  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    import featcache.backbone.network
    import featcache.cli.commands  # noqa: F401

    torch.set_num_threads(1)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                child(order["spawn"], order["sleep"], order["err"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
