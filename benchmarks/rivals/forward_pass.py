"""The forward pass alone on ready, normalised images: eager fp32 and autocast, as PyTorch has them."""

import argparse
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import answer, load_model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def arguments(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("pixels", type=Path, help=".npy of uint8 (N, H, W, 3)")
    parser.add_argument("--out", type=Path, required=True, help=".npy for the codes")
    parser.add_argument("--arch", default="mobilenet_v2")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--mode", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure")
    return parser


def normalised(pixels: np.ndarray) -> np.ndarray:
    """Return float32 (N, 3, H, W), the input of an ordinary network; the rivals get it for nothing."""
    values = (pixels.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def timed(forward: Callable[[], np.ndarray], n_images: int, seconds: float) -> tuple[np.ndarray, float]:
    """Return the codes and the rate of the median pass, after one that does not count."""
    codes, times = forward(), []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 2:
        start = time.perf_counter()
        forward()
        times.append(time.perf_counter() - start)
    return codes, round(n_images / float(np.median(times)), 2)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__)
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args(argv)
    import torch

    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = load_model(args.arch, args.weights).to(memory_format=layout)
    x = torch.from_numpy(normalised(np.load(args.pixels))).contiguous(memory_format=layout)
    low = torch.autocast("cpu", dtype=torch.bfloat16) if args.mode == "bf16" else contextlib.nullcontext()

    def forward() -> np.ndarray:
        with torch.inference_mode(), low:
            return torch.cat([model(part).flatten(1).float() for part in x.split(32)]).numpy()

    codes, rate = timed(forward, len(x), args.seconds)
    np.save(args.out, codes)
    return {"images_per_second": rate}


if __name__ == "__main__":
    answer(main)
