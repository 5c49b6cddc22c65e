"""Fine-tuning by hand, in plain torch: the embedded backbone (MobileNetV2 of half width, 112 px), some or all of it.

Only what the part "advise" needs: one recipe for all, AdamW with a cosine schedule, shifted (and, where that keeps the
class, mirrored) pictures, batch norms in training mode where their layers train. What does not train runs once.
"""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

SIZE, BATCH, PAD = 112, 32, 8
#: Depth from which the last blocks train: those after the node features.13, whatever node `advise` names.
LAST = 14
RATES = {"last blocks": 1e-3, "all": 5e-4, "from scratch": 3e-3}


def pictures(folder: Path, ids: list[str]) -> torch.Tensor:
    """Return images as the embedded backbone takes them, (n, 3, 112, 112) of bytes."""
    out = torch.empty(len(ids), 3, SIZE, SIZE, dtype=torch.uint8)
    for i, name in enumerate(ids):
        with Image.open(folder / name) as image:
            image = image.convert("RGB")
            scale = SIZE / min(image.size)
            size = [max(SIZE, round(side * scale)) for side in image.size]
            left, top = (size[0] - SIZE) // 2, (size[1] - SIZE) // 2
            small = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + SIZE, top + SIZE))
            out[i] = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)
    return out


def tuned(
    mode: str,
    weights: Any,
    images: torch.Tensor,
    y: np.ndarray,
    test: torch.Tensor,
    *,
    steps: int,
    mirror: bool,
    seed: int,
) -> tuple[np.ndarray, float]:
    """Train on images with class numbers y; return the classes of the test images, and seconds.

    `mode` is "last blocks", "all" or "from scratch"; `weights` the state of the embedded backbone.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a sum's last bits depend on their number, and what is trained on those
    start = time.perf_counter()
    try:
        found = _tuned(mode, weights, images, y, test, steps=steps, mirror=mirror, seed=seed)
    finally:
        torch.set_num_threads(threads)
    return found, time.perf_counter() - start


def _tuned(
    mode: str,
    weights: Any,
    images: torch.Tensor,
    y: np.ndarray,
    test: torch.Tensor,
    *,
    steps: int,
    mirror: bool,
    seed: int,
) -> np.ndarray:
    torch.manual_seed(seed)
    from torchvision.models import mobilenet_v2

    network = mobilenet_v2(weights=None, width_mult=0.5)
    if mode != "from scratch":
        network.load_state_dict(weights, strict=False)
    head = nn.Linear(network.last_channel, int(y.max()) + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    cut = LAST if mode == "last blocks" else 0
    below, above = network.features[:cut].eval(), network.features[cut:]
    shifted = [_shifted(images, mirror, seed * 100 + i) for i in range(4 if cut else 1)]
    stem = [_run(below, x) for x in shifted] if cut else []  # what does not train runs once per shifted copy
    parameters = [
        {"params": list(above.parameters()), "lr": RATES[mode], "weight_decay": 1e-2},
        {"params": list(head.parameters()), "lr": 1e-2, "weight_decay": 1e-3},
    ]
    optimizer = torch.optim.AdamW(parameters)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    targets = torch.from_numpy(y)
    above.train()
    batches = _batches(len(y), steps, seed)
    for step, rows in enumerate(batches):
        if cut:
            x = stem[step % len(stem)][rows]
        else:
            x = _normalised(_shifted(images[rows], mirror, seed * 100_000 + step))
        loss = F.cross_entropy(head(F.dropout(above(x).mean(dim=(2, 3)), 0.2)), targets[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.inference_mode():
        found = [head(network.features(_normalised(part)).mean(dim=(2, 3))).argmax(dim=1) for part in test.split(128)]
    return torch.cat(found).numpy()


def _batches(n: int, steps: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = min(BATCH, n)
    out: list[torch.Tensor] = []
    while len(out) < steps:
        out += [part for part in torch.randperm(n, generator=generator).split(size) if len(part) == size]
    return out[:steps]


def _run(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([module(_normalised(part)) for part in images.split(128)])


def _shifted(images: torch.Tensor, mirror: bool, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    wide = F.pad(images, (PAD, PAD, PAD, PAD))
    moves = torch.randint(0, 2 * PAD + 1, (len(images), 2), generator=generator).tolist()
    flips = (torch.rand(len(images), generator=generator) < 0.5).tolist()
    out = torch.stack([x[:, i : i + SIZE, j : j + SIZE] for x, (i, j) in zip(wide, moves, strict=True)])
    if mirror:
        for i, flip in enumerate(flips):
            if flip:
                out[i] = out[i].flip(2)
    return out


def _normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((images / 255.0 - mean) / std).contiguous(memory_format=torch.channels_last)
