"""What the parts work with: lists of real images with as many labels as are asked for, and a network."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from heads.case import WEIGHTS
from heads.case import Case as HeadsCase
from parts import Skip
from PIL import Image

import featcache as fc
from featcache.splits import holdout, k_shot

#: Sets with labels enough to fine-tune on, and the pixels that they are shown with.
SETS = {"clothing10": 96, "sign_digits": 64, "bccd_cells": 64}


@dataclass(frozen=True)
class Case(HeadsCase):
    """One run; see heads/case.py."""

    def backbone(self, pixels: int, nodes: str = "penultimate", **options: Any) -> fc.Backbone:
        """Return MobileNetV2 with real weights on images of so many pixels (in a trial run the embedded network)."""
        if self.tiny or self.data is None:
            return fc.Backbone("embedded", nodes=nodes, preprocess={"resize": 40, "crop": 40}, **options)
        weights = str(self.data / "weights" / WEIGHTS["mobilenet_v2"])
        small = {"resize": pixels * 8 // 7, "crop": pixels}
        return fc.Backbone("mobilenet_v2", weights=weights, nodes=nodes, preprocess=small, **options)

    def images(
        self, name: str, shots: int | str, seed: int, *, n_val: int = 0, n_test: int = 300, classes: Any = None
    ) -> fc.ImageSource:
        """Return a real set as a list with `shots` training images per class, and the same test images for every
        number.

        Parameters
        ----------
        name : str
            The set.
        shots : int or "all"
            Training images per class.
        seed : int
            Of the split and of the draw.
        n_val, n_test : int, default=0, 300
            Images of the other parts, class by class.
        classes : sequence of str, default=None
            Only these; all when not given.
        """
        rows, root = self._listed(name)
        rows = [row for row in rows if classes is None or row[1] in classes]
        y, ids = np.asarray([label for _, label in rows]), np.asarray([file for file, _ in rows])
        rest, test = holdout(y, test_size=min(0.4, n_test / len(y)), ids=ids, seed=seed)
        split = np.full(len(y), "", dtype="<U10")
        split[test] = "test"
        if n_val:
            kept, val = holdout(y[rest], test_size=min(0.4, n_val / len(rest)), ids=ids[rest], seed=seed)
            split[rest[val]], rest = "validation", rest[kept]
        train = rest if shots == "all" else k_shot(y, int(shots), rows=rest, ids=ids, seed=seed)
        split[train] = "train"
        return self._written(f"{name}-{shots}-{seed}-{n_val}", rows, split, root)

    def _written(self, name: str, rows: list[tuple[str, str]], split: np.ndarray, root: Path) -> fc.ImageSource:
        path = self.work / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as lines:
            writer = csv.writer(lines)
            writer.writerow(["file", "class", "split"])
            writer.writerows([*row, part] for row, part in zip(rows, split.tolist(), strict=True) if part)
        columns = {"path_column": "file", "label_column": "class", "split_column": "split"}
        return fc.ImageSource.from_list(path, root=root, **columns)

    def _listed(self, name: str) -> tuple[list[tuple[str, str]], Path]:
        if self.tiny:
            return self._drawn(), self.work / "drawn"
        if self.data is None or not (self.data / "datasets" / name).is_dir():
            raise Skip(f"no data set {name}")
        root = self.data / "datasets" / name
        with (root / "index.csv").open(newline="", encoding="utf-8") as lines:
            return [(line["file"], line["class"]) for line in csv.DictReader(lines)], root

    def _drawn(self) -> list[tuple[str, str]]:
        """Noise of three colours, for a trial run."""
        rows, rng = [], np.random.default_rng(0)
        for label, colour in {"red": (180, 60, 60), "green": (60, 180, 60), "blue": (60, 60, 180)}.items():
            for i in range(24):
                path = self.work / "drawn" / label / f"{i:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.clip(rng.normal(colour, 60.0, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(path)
                rows.append((f"{label}/{i:02d}.png", label))
        return rows

    def head(self, source: fc.ImageSource, backbone: fc.Backbone, name: str = "logreg") -> fc.FittedHead:
        """Return a calibrated head on cached codes of a source, exact (fp32)."""
        path = self.work / f"{Path(str(source.name)).stem}.features"
        data = fc.extract(source, backbone, path, precision="fp32", progress=False).load()
        return fc.fit(name, data, calibrate=True)
