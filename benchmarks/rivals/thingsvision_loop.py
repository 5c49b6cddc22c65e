"""thingsvision as its README shows it: get_extractor, ImageDataset, DataLoader, extract_features.

It brings a torch of its own (an old one, and TensorFlow), which is what its users run.
"""

import time
from importlib import metadata
from typing import Any

import torch
from common import answer, arguments, image_files, steady, write_codes
from thingsvision import get_extractor
from thingsvision.utils.data import DataLoader, ImageDataset

MODULES = {"mobilenet_v2": "classifier.0", "resnet18": "avgpool", "resnet50": "avgpool"}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = arguments(__doc__).parse_args(argv)
    extractor = get_extractor(
        model_name=args.arch,
        source="torchvision",
        device=args.device,
        pretrained=False,
        model_path=None if args.weights == "random" else args.weights,
    )
    transforms = extractor.get_transformations(resize_dim=args.resize, crop_dim=args.crop)
    extractor.model(torch.zeros(2, 3, args.crop, args.crop))
    start = time.perf_counter()
    dataset = ImageDataset(
        root=str(args.images), out_path=str(args.out) + ".names", backend="pt", transforms=transforms
    )
    batches = DataLoader(dataset=dataset, batch_size=args.batch_size, backend="pt")
    codes = extractor.extract_features(
        batches=batches, module_name=MODULES[args.arch], flatten_acts=True, output_type="ndarray"
    )
    write_codes(args.out, args.images, image_files(args.images), codes)
    versions = {name: metadata.version(name) for name in ("thingsvision", "torch")}
    return steady(len(dataset), start, weights="given" if args.weights != "random" else "random", version=versions)


if __name__ == "__main__":
    answer(main)
