"""The loop that an expert writes by hand: channels_last, autocast, inference mode, threads and workers tuned."""

import argparse
import contextlib
import itertools
import time
from typing import Any

import numpy as np
import torch
from common import answer, arguments, image_files, load_model, steady, write_codes
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.functional import pil_to_tensor
from tutorial_loop import Photos

MODES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
WARM_UP_SECONDS = 0.5


def arithmetic(mode: str, device: str) -> Any:
    """Return the context in which the network runs."""
    kind = torch.device(device).type
    return contextlib.nullcontext() if mode == "fp32" else torch.autocast(kind, dtype=MODES[mode])


def loader_of(photos: Photos, batch_size: int, workers: int, device: str) -> DataLoader:
    ahead = {"prefetch_factor": 4} if workers else {}
    return DataLoader(photos, batch_size=batch_size, num_workers=workers, pin_memory=device != "cpu", **ahead)


def warm_up(model: Any, args: argparse.Namespace) -> None:
    x = torch.zeros(args.batch_size, 3, args.crop, args.crop, device=args.device)
    start = time.perf_counter()
    with torch.inference_mode(), arithmetic(args.mode, args.device):
        while time.perf_counter() - start < WARM_UP_SECONDS:
            model(x.contiguous(memory_format=torch.channels_last))


def run(model: Any, batches: Any, args: argparse.Namespace) -> np.ndarray:
    """Return the codes of all batches as float32."""
    rows = []
    with torch.inference_mode(), arithmetic(args.mode, args.device):
        for batch in batches:
            x = batch.to(args.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            rows.append(model(x).flatten(1))
        return torch.cat(rows).float().cpu().numpy()


def in_memory(photos: Photos, args: argparse.Namespace) -> list[torch.Tensor]:
    """Return batches of uint8 pixels of the network's size: where files do not count."""
    pixels = []
    for path in photos.files:
        with Image.open(path) as image:
            pixels.append(pil_to_tensor(image.convert("RGB").resize((args.crop, args.crop))))
    return list(torch.stack(pixels).split(args.batch_size))


def normalised(batches: list[torch.Tensor], photos: Photos, device: str) -> Any:
    """Yield batches of pixels as numbers, made so on the device."""
    mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (photos.preset.mean, photos.preset.std))
    for batch in batches:
        yield (batch.to(device, non_blocking=True).float() / 255 - mean) / std


def tune(model: Any, photos: Photos, args: argparse.Namespace) -> dict[str, Any]:
    """Return the fastest settings on a few of the images: what an expert finds out before the real run."""
    cores = torch.get_num_threads()
    photos.files = photos.files[: args.tune]

    def seconds(workers: int, threads: int, batch_size: int) -> float:
        torch.set_num_threads(threads)
        start = time.perf_counter()
        run(model, loader_of(photos, batch_size, workers, args.device), args)
        return time.perf_counter() - start

    found = {(w, t, 32): seconds(w, t, 32) for w, t in itertools.product((0, 1, 2), {max(1, cores - 1), cores})}
    workers, threads, _ = min(found, key=lambda settings: found[settings])
    found[workers, threads, 64] = seconds(workers, threads, 64)
    best = min(found, key=lambda settings: found[settings])
    return dict(zip(("workers", "threads", "batch_size"), best, strict=True))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__)
    parser.add_argument("--mode", choices=list(MODES), default="fp32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tune", type=int, metavar="N", help="only find the best settings on N images")
    parser.add_argument("--from-memory", action="store_true", help="pixels are in memory before the clock starts")
    args = parser.parse_args(argv)
    files = image_files(args.images)
    photos = Photos(files, args.resize, args.crop)
    model = load_model(args.arch, args.weights).to(args.device, memory_format=torch.channels_last)
    if args.threads:
        torch.set_num_threads(args.threads)
    warm_up(model, args)
    if args.tune:
        return tune(model, photos, args)
    pixels = in_memory(photos, args) if args.from_memory else []
    start = time.perf_counter()
    loader = loader_of(photos, args.batch_size, args.workers, args.device)
    codes = run(model, normalised(pixels, photos, args.device) if args.from_memory else loader, args)
    write_codes(args.out, args.images, files, codes)
    return steady(len(files), start)


if __name__ == "__main__":
    answer(main)
