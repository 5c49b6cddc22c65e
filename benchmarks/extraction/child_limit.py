"""Extractions between measurements of what bounds them: decoding alone, and the forward pass alone.

All in one process and on the same photos. The forward pass is run by the very encoder that the extraction used, in the
mode and with the engine that it chose.
"""

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

FORWARD_IMAGES = 128
LEAST_SECONDS = 1.0
#: Machines change their speed within seconds, so many short rounds.
ROUNDS = 7


def decode_rate(pixels_of: Any, files: list[Path]) -> float:
    """Return images per second from warm files to pixels, by one thread a core; nothing else runs."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
        start = time.perf_counter()
        for _ in pool.map(lambda path: pixels_of(path.read_bytes()), files):
            pass
        return len(files) / (time.perf_counter() - start)


def forward_rate(encoder: Any, pixels: np.ndarray, least: float) -> float:
    """Return images per second of the network alone: all chunks at once before one thread a core, nothing else runs."""
    many = 1
    while True:
        start = time.perf_counter()
        encoder.backbone.encode([pixels] * many, mode=encoder.mode, engine=encoder.engine)
        seconds = time.perf_counter() - start
        rate = many * len(pixels) / seconds
        if seconds >= least:
            return rate
        many = max(many + 1, int(1.2 * least * rate / len(pixels)))


def extraction(source: Path, backbone: Any, store: Path, precision: str) -> tuple[dict[str, Any], Any]:
    """Run one extraction; return its report and its encoder."""
    from featcache.extraction.run import Extraction
    from featcache.extraction.settings import Settings
    from featcache.sources import ImageSource

    run = Extraction(ImageSource.open(source), backbone, store, Settings(precision=precision), False)
    return run.run().report.as_dict(), run.encoder


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--least", type=float, default=LEAST_SECONDS)
    args = parser.parse_args(argv)
    from featcache import Backbone, Preprocess

    seed = {"init_seed": 0} if args.weights == "random" else {}
    backbone = Backbone(
        args.arch, weights=args.weights, preprocess=Preprocess(resize=args.resize, crop=args.crop), **seed
    )
    files = sorted(args.images.rglob("*.jpg"))
    _, encoder = extraction(args.images, backbone, args.work / "first", args.precision)  # builds and warms whatever
    pixels = np.stack([encoder.preprocess.pixels(p.read_bytes()) for p in files[:FORWARD_IMAGES]])

    def parts() -> tuple[float, float]:
        forward = forward_rate(encoder, pixels, args.least)
        return decode_rate(encoder.preprocess.pixels, files), forward

    measured, achieved = [parts()], []
    for number in range(args.rounds):
        report, _ = extraction(args.images, backbone, args.work / f"round-{number}", args.precision)
        achieved.append(report["steady_images_per_second"])
        measured.append(parts())
    return {
        "mode": report["precision"]["mode"],
        "achieved": achieved,
        "decode": [round(decode, 1) for decode, _ in measured],
        "forward": [round(forward, 1) for _, forward in measured],
        "shares": report.get("shares"),
        "engine": report.get("engine"),
    }


if __name__ == "__main__":
    print(json.dumps(main()))
