"""Is the embedded backbone worth having, and how far is it from a real one?

Question
    Few labels: do linear and nearest-centroid heads on its codes beat the same heads on raw pixels, and on the codes of
    an untrained network of the same architecture? On photos: how does it stand between that and a real pretrained one?

Command
    python benchmarks/bench_embedded.py [--data DIR] [--seeds 20] [--out benchmarks/results/embedded.json] [--tiny]

Rivals
    digits (scikit-learn's 1797 handwritten digits of 8 x 8 pixels, never seen in training, written as 64 x 64 grey
    images, by nearest neighbour and by bicubic interpolation): embedded; untrained, same architecture and recipe;
    the 64 raw pixels; MobileNetV2 with real ImageNet weights at 224 pixels where --data has them.
    Same splits for all: k images per class to fit, all others to test; differences are paired, with 95 % t-intervals.

    clothing10 (real photos; the training script saw the train rows, without labels): logistic regression, C chosen
    on the validation rows, refitted on train and validation rows, test rows judged once. Same rivals but pixels.

    omniglot, the four alphabets that were held out in training: 1 and 5 shots.

--tiny: 2 seeds, 300 digits, no real weights, no photos; writes only where --out says.
"""

import argparse
import csv
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import scipy.stats
import sklearn
import torch
import torchvision
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featcache.backbone import Backbone

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_WEIGHTS = "weights/mobilenet_v2-tf2_ptq_int8.pth"
OMNIGLOT_HELD_OUT = {"Balinese", "Greek", "Japanese_(katakana)", "Tagalog"}


class Centroid(ClassifierMixin, BaseEstimator):
    """Nearest class mean by cosine, after centring on the training mean."""

    def fit(self, X, y):
        """Take the means."""
        self.mean_, self.classes_ = X.mean(0), np.unique(y)
        unit = self._unit(X)
        self.centroids_ = np.stack([unit[y == c].mean(0) for c in self.classes_])
        self.centroids_ /= np.linalg.norm(self.centroids_, axis=1, keepdims=True) + 1e-12
        return self

    def _unit(self, X):
        centred = X - self.mean_
        return centred / (np.linalg.norm(centred, axis=1, keepdims=True) + 1e-12)

    def predict(self, X):
        """Return the class of the nearest mean."""
        return self.classes_[(self._unit(X) @ self.centroids_.T).argmax(1)]


def logreg(C: float = 1.0):
    """Return standardisation and logistic regression; PCA only rotates into the rows' span: same optimum, faster."""
    return make_pipeline(StandardScaler(), PCA(), LogisticRegression(C=C, max_iter=1000))


def plain_logreg():
    """Return logistic regression on values as they are, where raw pixels (0 to 1) may do better than standardised."""
    return make_pipeline(PCA(), LogisticRegression(C=10.0, max_iter=1000))


HEADS = {"logreg": logreg, "logreg-plain": plain_logreg, "centroid": Centroid}


def encode(backbone: Backbone, payloads, batch: int = 64) -> tuple[np.ndarray, float]:
    """Return codes (n, d) and the images per second, decoding included, of one pass in one process."""
    recipe, node = backbone.preprocess, backbone.nodes[0]
    backbone.encode(np.zeros((2, *recipe.shape), np.uint8))
    started, codes = time.perf_counter(), []
    for first in range(0, len(payloads), batch):
        pixels = np.stack([recipe.pixels(p) for p in payloads[first : first + batch]])
        codes.append(backbone.encode(pixels)[node])
    return np.concatenate(codes), len(payloads) / (time.perf_counter() - started)


def backbones(data: Path | None) -> dict[str, Backbone]:
    embedded = Backbone("embedded")
    arch = embedded.spec["backbone"]
    found = {
        "embedded": embedded,
        "untrained": Backbone(
            arch["arch"], "random", init_seed=0, model_kwargs=arch["kwargs"], preprocess=embedded.preprocess
        ),
    }
    if data and (data / REAL_WEIGHTS).exists():
        found["mobilenet_v2"] = Backbone("mobilenet_v2", data / REAL_WEIGHTS)
    return found


def k_shot(y: np.ndarray, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows to fit (`shots` per class) and all other rows."""
    rng = np.random.default_rng([seed, shots])
    fit = np.concatenate([rng.permutation(np.flatnonzero(y == c))[:shots] for c in np.unique(y)])
    return fit, np.setdiff1d(np.arange(len(y)), fit)


def accuracies(X: np.ndarray, y: np.ndarray, head: str, shots: int, seeds: int) -> np.ndarray:
    scores = []
    for seed in range(seeds):
        fit, test = k_shot(y, shots, seed)
        scores.append((HEADS[head]().fit(X[fit], y[fit]).predict(X[test]) == y[test]).mean())
    return np.asarray(scores)


def interval(values: np.ndarray) -> dict:
    """Return mean, standard deviation and 95 % t-interval (half width) of the mean."""
    spread = values.std(ddof=1)
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * spread / len(values) ** 0.5
    return {"mean": round(float(values.mean()), 4), "std": round(float(spread), 4), "ci95": round(float(half), 4)}


def few_shot(codes: dict[str, np.ndarray], y: np.ndarray, shots: list[int], seeds: int, heads=tuple(HEADS)):
    """Score every representation, and pair the embedded codes with each of the others."""
    rows = []
    for k in shots:
        for head in heads:
            scores = {name: accuracies(X, y, head, k, seeds) for name, X in codes.items()}
            for name, values in scores.items():
                row = {"codes": name, "head": head, "shots": k, **interval(values)}
                if name != "embedded":
                    row["embedded_minus_this"] = interval(scores["embedded"] - values)
                rows.append(row)
                print(json.dumps(row))
    return rows


def digits(nets: dict[str, Backbone], seeds: int, tiny: bool) -> dict:
    found = load_digits()
    rows = slice(0, 300 if tiny else None)
    y, small = found.target[rows], found.images[rows]
    grey = [Image.fromarray((s * (255 / 16)).round().astype(np.uint8)) for s in small]
    result = {}
    for name, mode in (("nearest", Image.Resampling.NEAREST), ("bicubic", Image.Resampling.BICUBIC)):
        images = [g.resize((64, 64), mode) for g in grey]
        codes, speed = {}, {}
        for net_name, net in nets.items():
            codes[net_name], speed[net_name] = encode(net, images)
        codes["raw_pixels"] = small.reshape(len(small), -1) / 16
        result[name] = {
            "images_per_second": {k: round(v) for k, v in speed.items()},
            "results": few_shot(codes, y, [1, 5, 10], seeds),
        }
    return result


def listed(folder: Path) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """Return files, classes and splits of a set with an index.csv."""
    with (folder / "index.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    files = [folder / row["file"] for row in rows]
    return files, np.asarray([row["class"] for row in rows]), np.asarray([row["split"] for row in rows])


def photos(nets: dict[str, Backbone], folder: Path) -> list[dict]:
    """Judge each network on clothing10's own split."""
    files, y, split = listed(folder)
    payloads = [f.read_bytes() for f in files]
    train, val, test = (np.flatnonzero(split == s) for s in ("train", "validation", "test"))
    both, rows = np.concatenate([train, val]), []
    for name, net in nets.items():
        X, speed = encode(net, payloads)
        grid = 10.0 ** np.arange(-5, 1)
        C = max(grid, key=lambda c: logreg(c).fit(X[train], y[train]).score(X[val], y[val]))
        right = logreg(C).fit(X[both], y[both]).predict(X[test]) == y[test]
        half = 1.96 * right.std() / len(right) ** 0.5
        rows.append({"codes": name, "accuracy": round(float(right.mean()), 4), "ci95": round(float(half), 4),
                     "n_test": len(test), "C": float(C), "images_per_second": round(speed)})  # fmt: skip
        print(json.dumps(rows[-1]))
    return rows


def characters(nets: dict[str, Backbone], folder: Path, seeds: int) -> list[dict]:
    """Judge each network on the omniglot alphabets that training did not see."""
    files, y, split = listed(folder)
    rows = np.flatnonzero(np.isin(split, sorted(OMNIGLOT_HELD_OUT)))
    payloads = [files[i].read_bytes() for i in rows]
    codes = {name: encode(net, payloads)[0] for name, net in nets.items()}
    small = [Image.open(files[i]).convert("L").resize((28, 28), Image.Resampling.BOX) for i in rows]
    codes["raw_pixels"] = np.stack([np.asarray(image).ravel() / 255 for image in small])
    return few_shot(codes, y[rows], [1, 5], seeds, heads=("centroid",))


def machine() -> dict:
    return {
        "machine": platform.machine(), "cpus": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads(),
        "python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
        "sklearn": sklearn.__version__, "numpy": np.__version__,
    }  # fmt: skip


def publish(result: dict, out: Path | None) -> None:
    """Write what there is so far: the whole takes minutes."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def data_folder(given: Path | None) -> Path | None:
    path = given or Path(os.environ.get("FEATCACHE_TEST_DATA", REPOSITORY.parent / "shared" / "data") or os.devnull)
    return path if path.is_dir() else None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with weights/ and datasets/ (or FEATCACHE_TEST_DATA)")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    out = args.out or (None if args.tiny else REPOSITORY / "benchmarks" / "results" / "embedded.json")
    data = None if args.tiny else data_folder(args.data)
    nets = backbones(data)
    arch = nets["embedded"].spec
    result = {"question": __doc__.split("\n")[0], "machine": machine(), "spec": arch}
    result["digits"] = digits(nets, 2 if args.tiny else args.seeds, args.tiny)
    publish(result, out)
    if data and (data / "datasets" / "clothing10").is_dir():
        result["clothing10_test"] = photos(nets, data / "datasets" / "clothing10")
        publish(result, out)
    if data and (data / "datasets" / "omniglot_small").is_dir():
        result["omniglot_held_out"] = characters(nets, data / "datasets" / "omniglot_small", min(args.seeds, 10))
        publish(result, out)


if __name__ == "__main__":
    main()
