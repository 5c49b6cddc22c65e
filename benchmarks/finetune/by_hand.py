"""The rival: the two recipes of PyTorch's transfer-learning tutorial, written as the tutorial writes them.

Fixed feature extractor: all weights frozen, a new last layer trained. Fine-tuning: all weights trained from the
pretrained ones. Both for 25 epochs of SGD (0.001, momentum 0.9, batches of 4, the rate times 0.1 every 7 epochs), with
random crops and mirroring, keeping the epoch that was best on the evaluated images. As in the tutorial those are the
validation images; the test images are asked once, at the end, for the comparison.
"""

import copy
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
RECIPES = ("fixed extractor", "fine-tuning")


class Photos(Dataset):
    """Files and class numbers, transformed when they are asked for."""

    def __init__(self, files: Sequence[tuple[Path, int]], transform: transforms.Compose) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        """Return how many."""
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        """Return one image (3, 224, 224) and its class."""
        path, label = self.files[i]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), label


def train(
    recipe: str, weights: Path, parts: dict[str, list[tuple[Path, int]]], *, epochs: int = 25, seed: int = 0
) -> tuple[list[int], float]:
    """Return what the trained network says of the test images, and the seconds that training took."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    loaders = {part: _loader(files, part) for part, files in parts.items()}
    model = torchvision.models.mobilenet_v2(weights=None)
    model.load_state_dict(torch.load(weights, weights_only=True))
    if recipe == RECIPES[0]:
        model.requires_grad_(False)
    model.classifier[1] = nn.Linear(1280, 2)
    trained = model.classifier[1] if recipe == RECIPES[0] else model
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.001, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    best, kept = -1.0, copy.deepcopy(model.state_dict())
    for _ in range(epochs):
        model.train()
        for images, labels in loaders["train"]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        scheduler.step()
        right = sum(a == b for a, b in zip(said(model, loaders["val"]), [c for _, c in parts["val"]], strict=True))
        if right / len(parts["val"]) > best:
            best, kept = right / len(parts["val"]), copy.deepcopy(model.state_dict())
    seconds = time.perf_counter() - start
    model.load_state_dict(kept)
    return said(model, loaders["test"]), seconds


def _loader(files: list[tuple[Path, int]], part: str) -> DataLoader:
    ends = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    if part == "train":
        steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *ends]
    else:
        steps = [transforms.Resize(256), transforms.CenterCrop(224), *ends]
    return DataLoader(Photos(files, transforms.Compose(steps)), batch_size=4, shuffle=part == "train", num_workers=2)


def said(model: nn.Module, loader: DataLoader) -> list[int]:
    """Return the class number of every image."""
    model.eval()
    with torch.no_grad():
        return [int(c) for images, _ in loader for c in model(images).argmax(1)]
