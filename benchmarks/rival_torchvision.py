"""The rival: codes and a classifier as one writes them by hand with torchvision and scikit-learn."""

import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms._presets import ImageClassification


class Photos(Dataset):
    """Images as the model wants them: torchvision's own preset on PIL images."""

    def __init__(self, files: list[Path], resize: int, crop: int) -> None:
        self.files, self.preset = files, ImageClassification(crop_size=crop, resize_size=resize)

    def __len__(self) -> int:
        """Return how many."""
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        """Return one image, normalised, (3, crop, crop)."""
        with Image.open(self.files[i]) as image:
            return self.preset(image.convert("RGB"))


def load_model(arch: str, weights: Path) -> torch.nn.Module:
    """Return the network without its classifier: images → pooled codes."""
    model = torchvision.models.get_model(arch, weights=None)
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    # SqueezeNet's classifier pools; MobileNetV2's forward does.
    model.classifier = torch.nn.AdaptiveAvgPool2d(1) if arch.startswith("squeezenet") else torch.nn.Identity()
    return model.eval()


@torch.inference_mode()
def extract(model: torch.nn.Module, photos: Photos, batch_size: int, workers: int) -> tuple[np.ndarray, float]:
    """Return codes (n, d) by the usual loop (eager fp32), and its rate in images per second."""
    model(torch.zeros(2, 3, photos.preset.crop_size[0], photos.preset.crop_size[0]))
    loader = DataLoader(photos, batch_size=batch_size, num_workers=workers)
    start = time.perf_counter()
    codes = torch.cat([model(batch) for batch in loader]).numpy()
    return codes, len(photos) / (time.perf_counter() - start)


def logreg_on_split(X: np.ndarray, y: np.ndarray, split: np.ndarray, grid: tuple[float, ...]) -> tuple[float, float]:
    """Choose C on the validation rows, fit on train and validation, touch the test rows once: (accuracy, C)."""
    train, val, test = (split == s for s in ("train", "validation", "test"))

    def fitted(C: float, rows: np.ndarray):
        return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)).fit(X[rows], y[rows])

    C = max(grid, key=lambda c: fitted(c, train).score(X[val], y[val]))
    return float(fitted(C, train | val).score(X[test], y[test])), C
