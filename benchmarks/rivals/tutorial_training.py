"""PyTorch's transfer learning tutorial, "ConvNet as fixed feature extractor", with its own settings.

Frozen network, a new last layer trained in the loop: RandomResizedCrop and flip for training, Resize and CenterCrop for
testing, batches of 4, 4 workers, SGD 0.001 with momentum 0.9, a tenth of the rate every 7 epochs, 25 epochs. Its second
phase sees the test rows after each epoch (the best epoch counts, which favours it). Stops where --stop-at is reached.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import torch
from common import answer, load_model
from PIL import Image
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class Listed(Dataset):
    """Images of a list with their class; ImageFolder would need one folder per split."""

    def __init__(self, rows: list[tuple[Path, int]], transform: Any) -> None:
        self.rows, self.transform = rows, transform

    def __len__(self) -> int:
        """Return how many."""
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        """Return one image and its class."""
        path, label = self.rows[i]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), label


def transforms_of(resize: int, crop: int) -> dict[str, Any]:
    normal = [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    train = [transforms.RandomResizedCrop(crop), transforms.RandomHorizontalFlip(), *normal]
    test = [transforms.Resize(resize), transforms.CenterCrop(crop), *normal]
    return {"train": transforms.Compose(train), "test": transforms.Compose(test)}


def loaders_of(args: argparse.Namespace) -> tuple[dict[str, DataLoader], int]:
    with args.list.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    classes = sorted({row["class"] for row in rows})
    loaders = {}
    for phase, transform in transforms_of(args.resize, args.crop).items():
        chosen = [row for row in rows if (row["split"] == "test") == (phase == "test")]
        listed = [(args.root / row["file"], classes.index(row["class"])) for row in chosen]
        loaders[phase] = DataLoader(
            Listed(listed, transform), batch_size=args.batch_size, shuffle=True, num_workers=args.workers
        )
    return loaders, len(classes)


def with_new_head(arch: str, weights: str, n_classes: int) -> nn.Module:
    """Return the frozen network with a new last layer, the only one that learns."""
    model = load_model(arch, weights, pooled=False)
    for parameter in model.parameters():
        parameter.requires_grad = False
    if arch.startswith("squeezenet"):
        model.classifier[1] = nn.Conv2d(512, n_classes, 1)
    else:
        model.classifier[1] = nn.Linear(model.last_channel, n_classes)
    return model


def epoch(model: nn.Module, loader: DataLoader, optimizer: Any, learns: bool) -> float:
    """Run one phase as the tutorial does; return the accuracy."""
    model.train(learns)
    right = 0
    for inputs, labels in loader:
        optimizer.zero_grad()
        with torch.set_grad_enabled(learns):
            outputs = model(inputs)
            loss = nn.functional.cross_entropy(outputs, labels)
            if learns:
                loss.backward()
                optimizer.step()
        right += int((outputs.argmax(1) == labels).sum())
    return right / len(loader.dataset)  # type: ignore[arg-type]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("list", type=Path, help="CSV with file, class, split")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--arch", default="mobilenet_v2")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--stop-at", type=float, default=1.1, help="accuracy on the test rows")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    begun = time.perf_counter()
    loaders, n_classes = loaders_of(args)
    model = with_new_head(args.arch, args.weights, n_classes)
    optimizer = optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.001, momentum=0.9)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    epochs: list[dict[str, Any]] = []
    for number in range(args.epochs):
        epoch(model, loaders["train"], optimizer, learns=True)
        scheduler.step()
        accuracy = epoch(model, loaders["test"], optimizer, learns=False)
        elapsed = round(time.perf_counter() - begun, 1)
        epochs.append({"epoch": number + 1, "test_accuracy": round(accuracy, 4), "seconds": elapsed})
        print(json.dumps(epochs[-1]), flush=True)
        if accuracy >= args.stop_at:
            break
    return {"epochs": epochs}


if __name__ == "__main__":
    answer(main)
