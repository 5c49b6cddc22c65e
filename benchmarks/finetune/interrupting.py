"""Is a run that is killed (kill -9) and started again bit-equal to one that never was? And one that is extended, to a
longer one?

Without validation images the last weights count, not those of the best epoch, which may be the first. The command is
run with three stages on real images, two of them on cached activations. Chains of kills: each process is killed a
random while after so many epochs are done, two of which end a stage (the next one begins, or its activations are
extracted), then the same command goes on. At the end the weights are compared byte by byte with those of a run that
nobody touched, and so are the two halves of an extended run with the whole.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import claim

#: Epochs done when the kills of a run come, the one before training among them, and the longest while after that in
#: seconds. Of six epochs the first ends the first stage, the third the second one.
_CHAIN = ((0, 2.0), (1, 0.8), (3, 0.8), (4, 2.0))
_CHANGES = (1, 3)


def run(case: Any) -> dict[str, Any]:
    """Return how many kills there were, where they hit, and whether the weights are the same."""
    kills = case.repeats or (1 if case.tiny else 20)
    source = case.images("clothing10", 5 if case.tiny else 20, 0, n_val=0)
    head = case.work / "head.head"
    case.head(source, case.backbone(96)).save(head)
    listing = next(case.work.glob("*.csv"))
    command = _command(case, head, listing, source)
    whole = case.work / "whole"
    seconds = _finished(command, whole)
    rng, hits, same, chains = np.random.default_rng(0), [], [], 0
    while len(hits) < kills:
        out = case.work / f"killed-{chains}"
        for done, longest in _CHAIN[: kills - len(hits)]:
            hits.append(_killed(command, out, done, float(rng.uniform(0.0, longest))))
        _finished(command, out)
        same.append(_weights(out) == _weights(whole))
        chains += 1
    extended = case.tiny or _extended(case, head, listing, source)
    changes = sum(hit["at the end of a stage"] and not hit["ended before"] for hit in hits)
    claims = [
        claim(
            "runs killed at random moments end with the same bytes",
            f"{len(hits)} kills in {chains} runs, {changes} right after a stage had ended, "
            f"{sum(hit['ended before'] for hit in hits)} came too late; {sum(same)} of {chains} runs bit-equal",
            all(same) and not any(hit["ended before"] for hit in hits),
        ),
        claim("5 epochs extended by 5 equal 10 in one go", f"bit-equal: {extended}", extended),
    ]
    return {
        "seconds uninterrupted": round(seconds, 1),
        "kills": hits,
        "bit-equal": same,
        "claims": [] if case.tiny else claims,
    }


def _command(case: Any, head: Path, listing: Path, source: Any) -> list[str]:
    roles = ["--path-column", "file", "--label-column", "class", "--split-column", "split"]
    root = case.work / "drawn" if case.tiny else case.data / "datasets" / "clothing10"
    return [
        sys.executable, "-m", "featcache", "finetune", str(head), str(listing), "--root", str(root), *roles,
        "--stages", "gradual", "--epochs", "3" if case.tiny else "6", "--checkpoint-minutes", "0.02",
        "--quiet", "--json", "--val-size", "0",
    ]  # fmt: skip


def _finished(command: list[str], out: Path) -> float:
    start = time.perf_counter()
    done = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"finetune ended with {done.returncode}: {done.stderr[-300:]}")
    return time.perf_counter() - start


def _killed(command: list[str], out: Path, done: int, delay: float) -> dict[str, Any]:
    """Start, wait until so many epochs are done and a while longer, kill; say how far it was."""
    process = subprocess.Popen([*command, "-o", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    start = time.perf_counter()
    while process.poll() is None and len(_lines(out)) < 1 + done:  # the first line is the evaluation before training
        time.sleep(0.005)
    time.sleep(delay)
    ended = process.poll() is not None
    if not ended:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return {
        "after": round(time.perf_counter() - start, 2),
        "at the end of a stage": done in _CHANGES,
        "ended before": ended,
        "epochs": max(0, len(_lines(out)) - 1),
    }


def _lines(out: Path) -> list[dict[str, Any]]:
    path = out / "history.json"
    return json.loads(path.read_text(encoding="utf-8"))["history"] if path.exists() else []


def _weights(out: Path) -> bytes:
    return (out / "final.safetensors").read_bytes()


def _extended(case: Any, head: Path, listing: Path, source: Any) -> bool:
    short, whole = (2, 4) if case.tiny else (5, 10)
    command = list(_command(case, head, listing, source))
    command[command.index("gradual")] = "last-1"
    place = command.index("--epochs") + 1
    for epochs, out in ((short, "extended"), (whole, "extended"), (whole, "at-once")):
        command[place] = str(epochs)
        _finished([*command, "--schedule-epochs", str(whole)], case.work / out)
    return _weights(case.work / "extended") == _weights(case.work / "at-once")
