"""featcache's forward pass alone: Backbone.encode of ready uint8 pixels, its normalisation inside."""

import argparse
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "rivals"))
from forward_pass import timed


def engines() -> list[str]:
    """Return the engines that Backbone.encode can be told to use; "auto" alone where it has no choice."""
    from featcache import Backbone

    chooses = "engine" in inspect.signature(Backbone.encode).parameters
    return ["fused", "compiled"] if chooses else ["auto"]


def backbone_of(arch: str, weights: str, pixels: np.ndarray) -> Any:
    from featcache import Backbone, Preprocess

    seed = {"init_seed": 0} if weights == "random" else {}
    side = pixels.shape[1]
    return Backbone(arch, weights=weights, preprocess=Preprocess(resize=side, crop=side), **seed)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pixels", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--mode", default="fp32")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args(argv)
    pixels = np.load(args.pixels)
    backbone = backbone_of(args.arch, args.weights, pixels)
    how = {"mode": args.mode} if args.engine == "auto" else {"mode": args.mode, "engine": args.engine}
    codes, rate = timed(lambda: next(iter(backbone.encode(pixels, **how).values())), len(pixels), args.seconds)
    np.save(args.out, codes.reshape(len(codes), -1))
    report = getattr(backbone, "engine_report", None)
    used = report(mode=args.mode, engine=args.engine) if callable(report) else report
    return {"images_per_second": rate, "engine used": str(used) if used else args.engine}


if __name__ == "__main__":
    print(json.dumps(main()))
