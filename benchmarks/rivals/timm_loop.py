"""As timm's own inference.py does it: create_model, create_dataset, create_loader with that script's defaults.

Weights of torchvision's MobileNetV2 fit timm's tensor by tensor (the same order, the same shapes); the interpolation is
set to the weights' own, so that all work on the same pixels.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from common import answer, arguments, steady, write_codes
from timm.data import create_dataset, create_loader, resolve_data_config

NAMES = {"mobilenet_v2": "mobilenetv2_100", "resnet18": "resnet18", "resnet50": "resnet50"}


def fitted(model: Any, weights: str) -> str:
    """Put torchvision's tensors into timm's model where they fit one by one; say whether they did."""
    if weights == "random":
        return "random"
    given = torch.load(weights, weights_only=True, map_location="cpu")
    own = model.state_dict()
    pairs = list(zip(own, given.values(), strict=False))  # timm's has no classifier, which comes last
    if any(own[name].shape != value.shape for name, value in pairs):
        return "random (the given ones do not fit)"
    model.load_state_dict(dict(pairs))
    return "given"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__)
    parser.set_defaults(workers=2, batch_size=256)  # those of timm's inference.py
    args = parser.parse_args(argv)
    model = timm.create_model(NAMES[args.arch], pretrained=False, num_classes=0).eval()
    weights = fitted(model, args.weights)
    data = resolve_data_config({"input_size": (3, args.crop, args.crop), "interpolation": "bilinear"}, model=model)
    data["crop_pct"] = args.crop / args.resize
    dataset = create_dataset("", root=str(args.images))
    settings = {k: data[k] for k in ("input_size", "interpolation", "mean", "std", "crop_pct")}
    loader = create_loader(
        dataset,
        batch_size=args.batch_size,
        use_prefetcher=False,
        num_workers=args.workers,
        device=torch.device(args.device),
        **settings,
    )
    model(torch.zeros(2, *data["input_size"]))
    with torch.no_grad():
        start = time.perf_counter()
        codes = [model(images).cpu().numpy() for images, _ in loader]
    files = [Path(name) for name in dataset.filenames(absolute=True)]
    write_codes(args.out, args.images, files, np.concatenate(codes))
    return steady(len(dataset), start, weights=weights, version=timm.__version__)


if __name__ == "__main__":
    answer(main)
