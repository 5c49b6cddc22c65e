"""One network on one set: codes in each mode and from each kind of pixels, beside fp32 on reference pixels."""

import argparse
import dataclasses
import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

DRAWS, SHOTS = 200, 10


def recipes(reference: Any) -> dict[str, Any]:
    """Return the ways to the pixels that this version has: the reference, and all that differ in how they are made."""
    from featcache.preprocess import DECODERS, RESAMPLINGS

    found: dict[str, Any] = {}
    names = {"resampling": RESAMPLINGS, "decoder": DECODERS}
    for values in itertools.product(*names.values()):
        fields = dict(zip(names, values, strict=True))
        try:
            found[", ".join(values)] = dataclasses.replace(reference, **fields)
            found[", ".join(values)].pixels(np.zeros((300, 300, 3), np.uint8))
        except Exception:  # a decoder that is not installed, a combination that makes no sense
            found.pop(", ".join(values), None)
    return found


def pixels_of(recipe: Any, payloads: list[bytes]) -> np.ndarray:
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(recipe.pixels, payloads)))


def flat(codes: dict[str, np.ndarray]) -> np.ndarray:
    """Return one matrix of all nodes' codes."""
    return np.concatenate([part.reshape(len(part), -1) for part in codes.values()], axis=1)


def ways(args: argparse.Namespace, backbone: Any, payloads: list[bytes]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the codes of each way; the truth comes first."""
    modes = args.modes.split(",")
    met: dict[bytes, str] = {}
    for name, recipe in recipes(backbone.preprocess).items():
        pixels = pixels_of(recipe, payloads)
        first = met.setdefault(hashlib.sha256(pixels.tobytes()).digest(), name)
        if first != name:
            args.same_pixels[name] = first
            continue
        for mode in modes:
            yield f"{mode}, {name} pixels", flat(backbone.encode(pixels, mode=mode))
    yield "auto", auto_codes(args, backbone)


def auto_codes(args: argparse.Namespace, backbone: Any) -> np.ndarray:
    """Return the codes of a whole extraction, in the order of the files' names."""
    import featcache

    with tempfile.TemporaryDirectory() as folder:
        store = featcache.extract(args.images, backbone, Path(folder) / "codes", precision="auto", progress=False)
        args.chosen = store.report.precision
        data = store.load()
        assert list(data.ids) == sorted(data.ids), "rows are in the order of the source"
        return np.array(data.X, np.float32)


def draws(y: np.ndarray, shots: int, n: int) -> Iterator[np.ndarray]:
    """Yield the training rows of each draw: `shots` a class, fewer where half of a class is less."""
    generator = np.random.default_rng(0)
    for _ in range(n):
        groups = [generator.permutation(np.flatnonzero(y == label)) for label in np.unique(y)]
        yield np.concatenate([rows[: min(shots, len(rows) // 2)] for rows in groups])


def accuracies(X: np.ndarray, y: np.ndarray, shots: int, n: int) -> np.ndarray:
    """Return the test accuracy of a ridge head on each draw."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores = []
    for train in draws(y, shots, n):
        test = np.setdiff1d(np.arange(len(y)), train)
        head = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(0, 5, 21)))
        scores.append(head.fit(X[train], y[train]).score(X[test], y[test]))
    return np.array(scores)


def neighbours(X: np.ndarray) -> np.ndarray:
    """Return each row's nearest other row, by the cosine of centred codes."""
    X = X - X.mean(0)
    X /= np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
    like = X @ X.T
    np.fill_diagonal(like, -2)
    return like.argmax(1)


def compared(
    name: str, X: np.ndarray, y: np.ndarray, truth: np.ndarray, before: np.ndarray, args: argparse.Namespace
) -> dict[str, Any]:
    """Return the line of one way; `before` are the accuracies of the truth on the same draws."""
    from featcache.extraction.precision import worst_cosine

    after = accuracies(X, y, args.shots, args.draws)
    points = 100 * (after - before)
    return {
        "way": name,
        "worst_centred_cosine": float(np.floor(worst_cosine(truth, X) * 1e7) / 1e7),
        "same_nearest_neighbour": round(float((neighbours(truth) == neighbours(X)).mean()), 4),
        "accuracy_fp32": round(float(before.mean()), 4),
        "accuracy": round(float(after.mean()), 4),
        "points": round(float(points.mean()), 3),
        "plus_minus": round(float(1.96 * points.std(ddof=1) / np.sqrt(len(points))), 3),
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--nodes")
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--modes", default="fp32,bf16", help="fp16 only where the processor has instructions for it")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--shots", type=int, default=SHOTS)
    args = parser.parse_args(argv)
    args.same_pixels = {}
    from featcache import Backbone, ImageSource, Preprocess

    more = {"nodes": args.nodes} if args.nodes else {}
    recipe = Preprocess(resize=args.resize, crop=args.crop)
    backbone = Backbone(args.arch, weights=args.weights, preprocess=recipe, **more)
    source = ImageSource.open(args.images)
    payloads = [source.read(i) for i in range(len(source))]
    y = np.array([str(i).split("/")[0] for i in source.ids])
    found = ways(args, backbone, payloads)
    _, truth = next(found)
    before = accuracies(truth, y, args.shots, args.draws)
    lines = [compared(name, codes, y, truth, before, args) for name, codes in found]
    lines[-1]["mode"] = args.chosen.get("mode")
    return {"lines": lines, "same_pixels": args.same_pixels}


if __name__ == "__main__":
    print(json.dumps(main()))
