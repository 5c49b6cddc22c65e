"""What the rivals share: their arguments, the images, the networks, and the form in which they answer.

Each rival is a script with ``main(argv) -> dict``: alone in a process it prints that dict as its last line.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Return the arguments that all rivals take."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("images", type=Path, help="folder with one folder per class")
    parser.add_argument("--out", type=Path, required=True, help="HDF5 file for the codes")
    parser.add_argument("--arch", default="mobilenet_v2")
    parser.add_argument("--weights", default="random", help="a state_dict, or 'random'")
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    return parser


def image_files(folder: Path) -> list[Path]:
    """Return the images below a folder in the order of their names, as featcache has them."""
    return sorted((p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES), key=lambda p: p.as_posix())


def load_model(arch: str, weights: str, pooled: bool = True) -> Any:
    """Return a torchvision network, without its classifier where `pooled`: images → pooled codes."""
    import torch
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model(arch, weights=None)
    if weights != "random":
        model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    if pooled and arch.startswith("squeezenet"):
        model.classifier = torch.nn.AdaptiveAvgPool2d(1)  # its forward flattens
    elif pooled and hasattr(model, "fc"):
        model.fc = torch.nn.Identity()
    elif pooled:
        model.classifier = torch.nn.Identity()  # MobileNetV2's forward pools
    return model.eval()


def write_codes(path: Path, folder: Path, files: Sequence[Path], codes: np.ndarray) -> None:
    """Write codes and the names of their images, as one does at the end of such a loop."""
    import h5py

    with h5py.File(path, "w") as file:
        file["codes"] = codes
        file["names"] = [p.relative_to(folder).as_posix() for p in files]


def steady(n_images: int, start: float, **more: Any) -> dict[str, Any]:
    """Return what a rival answers: its rate without import, loading and warming up, writing included."""
    return {"images": n_images, "steady_images_per_second": round(n_images / (time.perf_counter() - start), 2), **more}


def answer(main: Callable[[], dict[str, Any]]) -> None:
    """Run a rival in a process of its own."""
    print("\n" + json.dumps(main()))
