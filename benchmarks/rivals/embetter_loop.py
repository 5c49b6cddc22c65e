"""embetter's own pipeline: ImageLoader and TimmEncoder in scikit-learn's make_pipeline.

TimmEncoder always downloads its weights; here timm is told not to, and torchvision's are put in (see timm_loop). All
images are in memory, decoded, before the first is encoded: so it cannot be asked for large jobs.
"""

import time
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import timm
import torch
from common import answer, arguments, image_files, steady, write_codes
from sklearn.pipeline import make_pipeline
from timm_loop import NAMES, fitted


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = arguments(__doc__).parse_args(argv)
    original = timm.create_model
    timm.create_model = lambda name, pretrained=False, **more: original(name, pretrained=False, **more)
    from embetter.vision import ImageLoader, TimmEncoder

    encoder = TimmEncoder(name=NAMES[args.arch])
    timm.create_model = original
    weights = fitted(encoder.model.eval(), args.weights)
    # Its own transform is timm's for this network: bicubic, 256 → 224; the weights' own is bilinear.
    transform = partial(
        timm.data.create_transform, input_size=(3, args.crop, args.crop), interpolation="bilinear", is_training=False
    )
    encoder.transform_img = transform(crop_pct=args.crop / args.resize)
    files = image_files(args.images)
    encoder.model(torch.zeros(1, 3, args.crop, args.crop))
    start = time.perf_counter()
    codes = make_pipeline(ImageLoader(), encoder).fit_transform([str(p) for p in files])
    write_codes(args.out, args.images, files, np.asarray(codes))
    return steady(len(files), start, weights=weights, version=metadata.version("embetter"))


if __name__ == "__main__":
    answer(main)
