"""One extraction of images that are in memory, decoded, before it begins."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    from featcache import Backbone, ImageSource, Preprocess, extract

    seed = {"init_seed": 0} if args.weights == "random" else {}
    # Already of the network's size, as the rival's: nothing is left to be done to them.
    backbone = Backbone(args.arch, weights=args.weights, preprocess=Preprocess(resize=224, crop=224), **seed)
    images = []
    for path in sorted(args.images.rglob("*.jpg")):
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB").resize((224, 224))))
    source = ImageSource.from_arrays(np.stack(images))
    store = extract(source, backbone, args.store, precision=args.precision, device=args.device, progress=False)
    return store.report.as_dict()


if __name__ == "__main__":
    print(json.dumps(main(), default=str))
