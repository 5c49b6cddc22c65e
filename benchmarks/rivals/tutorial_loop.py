"""The loop of the PyTorch tutorials: a Dataset of PIL images, torchvision's preset, a DataLoader, eager fp32."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import answer, arguments, image_files, load_model, steady, write_codes
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms._presets import ImageClassification


class Photos(Dataset):
    """Images as the network wants them, by torchvision's own preset."""

    def __init__(self, files: list[Path], resize: int, crop: int) -> None:
        self.files, self.preset = files, ImageClassification(crop_size=crop, resize_size=resize)

    def __len__(self) -> int:
        """Return how many."""
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        """Return one image, normalised, (3, crop, crop)."""
        with Image.open(self.files[i]) as image:
            return self.preset(image.convert("RGB"))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = arguments(__doc__).parse_args(argv)
    files = image_files(args.images)
    model = load_model(args.arch, args.weights).to(args.device)
    loader = DataLoader(Photos(files, args.resize, args.crop), batch_size=args.batch_size, num_workers=args.workers)
    with torch.no_grad():
        model(torch.zeros(args.batch_size, 3, args.crop, args.crop, device=args.device))
        start = time.perf_counter()
        codes = [model(batch.to(args.device)).cpu().numpy() for batch in loader]
    write_codes(args.out, args.images, files, np.concatenate(codes))
    return steady(len(files), start)


if __name__ == "__main__":
    answer(main)
