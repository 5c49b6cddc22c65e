"""Does an audit find what was planted, and leave alone what was not?

Real images are split into a training part of 70 % and a test part; a tenth of the test images is copied into training,
compressed again at a JPEG quality of 30 to 90 and, by turns, resized by 10 to 25 %, cropped or mirrored. Other images
get two more shots each on the other side: turned by up to 5 degrees, framed and lit otherwise (a burst, the leak of a
group that no column names). 5 % of the labels become another class, drawn at random (or always the next one, which is
harder: heads learn it). The audit sees codes alone, or codes and images. Its recall is counted over planted copies; its
precision over the pairs it reports, where every pair that was not planted counts as wrong, even if it shows
one thing twice, as some pairs of these sets do. Where nothing is planted, in codes of pure noise, under shuffled labels
and where right classes overlap, no label should be doubted; and copies should be found however common they are: codes
of half of the images, of all, and of all three times, with a little noise.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measuring import claim
from PIL import Image

import featcache as fc
from featcache.features import FeatureSet
from featcache.hygiene import leaks, near_pairs
from featcache.splits import holdout

from .case import REAL
from .planting import KINDS, burst, noisy, recompressed

#: At most so many images per set and seed are encoded anew.
_COPIES, _BURSTS = 45, 15


def run(case: Any) -> dict[str, Any]:
    """Return figures and claims; `case.tiny` takes seconds, on generated codes without images."""
    seeds = case.repeats or (1 if case.tiny else 2)
    names = REAL[:1] if case.tiny else REAL
    copies, noise = [], []
    for name in names:
        data = _grouped(case, name)
        for seed in range(seeds):
            copies += _copies(case, data, name, seed)
            noise += [_noise(data, name, seed, kind) for kind in ("random", "next class")[: 2 if seed == 0 else 1]]
    clean = [_clean(case, _grouped(case, name), name) for name in names]
    null = [_doubts(data, said) for seed in range(seeds) for data, said in _nothing(case, names[0], seed)]
    common = [_common(_grouped(case, name), name, *much) for name in names for much in ((0.5, 1), (1.0, 1), (1.0, 3))]
    return {
        "seeds": seeds,
        "copies": copies,
        "labels": noise,
        "nothing planted": clean,
        "labels that nothing is wrong with": null,
        "common copies": common,
        "claims": _claims(copies, noise, null, common),
    }


def _grouped(case: Any, name: str) -> FeatureSet:
    """The codes, with no split; bccd_cells' `split` is what a cell was cut from, which these questions do not need."""
    data = case.load(name)
    return replace(data.select(data.labelled), splits=None, groups=None, name=name)


def _images(case: Any, name: str) -> Path | None:
    return None if case.tiny else case.data / "datasets" / name


def _copies(case: Any, data: FeatureSet, name: str, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    train, test = holdout(data.y, test_size=0.3, ids=data.ids, seed=seed)
    copied = rng.permutation(test)[: min(_COPIES, max(1, len(test) // 10))]
    shot = rng.permutation(np.setdiff1d(test, copied))[:_BURSTS]
    origins = np.concatenate([copied, np.repeat(shot, 2)])
    codes, pictures = _planted(case, data, name, origins, len(copied), seed, rng)
    n = len(data)
    splits = np.full(n + len(origins), "train")
    splits[test] = "test"
    leaky = FeatureSet(  # no labels: another question, and most of an audit's time
        np.concatenate([data.X, codes]),
        ids=[*data.row_ids.tolist(), *(f"planted/{i:04d}" for i in range(len(origins)))],
        splits=splits,
        name=name,
    )
    source = np.concatenate([np.arange(n), origins])
    kinds = np.concatenate([np.full(n, "own"), np.full(len(copied), "copy"), np.full(2 * len(shot), "burst")])
    out = []
    for seen in (None,) if pictures is None else (None, _reader(_images(case, name), data, pictures)):
        found = fc.audit(leaky, images=seen, progress=False, seed=seed)
        out.append(_line(name, seed, "codes" if seen is None else "codes and images", leaky, found, source, kinds))
    quick = leaks(leaky.X, np.flatnonzero(splits == "train"), test, ids=leaky.ids)
    hits = {int(j) for i, j in quick.rows.tolist() if source[i] == source[j]} & set(copied.tolist())
    out[0]["copied test images that leaks() names"] = round(len(hits) / len(copied), 3)
    return out


def _planted(
    case: Any, data: FeatureSet, name: str, origins: np.ndarray, copies: int, seed: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[Image.Image] | None]:
    """Codes and pictures of planted images; in a trial run codes with a little noise, and no pictures."""
    folder = _images(case, name)
    if folder is None:
        return data.X[origins] + 0.02 * rng.normal(size=(len(origins), data.X.shape[1])).astype("float32"), None
    from heads.case import WEIGHTS

    pictures = []
    for i, row in enumerate(origins.tolist()):
        with Image.open(folder / str(data.row_ids[row])) as image:
            pictures.append(recompressed(image, KINDS[i % len(KINDS)], rng) if i < copies else burst(image, rng))
    path = case.work / f"{name}-planted-{seed}.features"
    backbone = fc.Backbone("mobilenet_v2", weights=str(case.data / "weights" / WEIGHTS["mobilenet_v2"]))
    fc.extract(fc.ImageSource.from_arrays(pictures), backbone, path, precision="fp32", progress=False)
    return fc.FeatureStore.open(path).load().X, pictures


def _reader(folder: Path | None, data: FeatureSet, pictures: list[Image.Image]) -> Any:
    assert folder is not None

    def read(name: str) -> Any:
        return pictures[int(name[8:])] if name.startswith("planted/") else (folder / name).read_bytes()

    return read


def _line(
    name: str, seed: int, seen: str, leaky: FeatureSet, found: Any, source: np.ndarray, kinds: np.ndarray
) -> dict[str, Any]:
    place = {identity: i for i, identity in enumerate(leaky.row_ids.tolist())}
    pairs = [
        (place[a], place[b])
        for kind in ("exact duplicate", "near duplicate")
        for row in found.of(kind)
        for a, b in zip(row["ids"][:-1], row["ids"][1:], strict=True)
    ]
    right = [source[a] == source[b] for a, b in pairs]
    named = {int(row) for pair, ok in zip(pairs, right, strict=True) if ok for row in pair}
    groups = np.asarray(found.groups_of(leaky.row_ids.tolist()))
    apart = [i for i in np.flatnonzero(kinds == "burst") if not groups[i] or groups[i] != groups[source[i]]]
    return {
        "data": name,
        "seed": seed,
        "seen": seen,
        "planted copies": int((kinds == "copy").sum()),
        "pairs reported": len(pairs),
        "precision": round(float(np.mean(right)), 3) if pairs else None,
        "recall": round(float(np.mean([i in named for i in np.flatnonzero(kinds == "copy")])), 3),
        "shots of a burst in the group of their image": round(
            1 - len(apart) / max(1, int((kinds == "burst").sum())), 3
        ),
        "bursts said to straddle": len(found.of("group straddles")),
        "expected false": round(len(found.of("near duplicate")) - found.expected.get("near duplicate", 0.0), 1),
    }


def _noise(data: FeatureSet, name: str, seed: int, kind: str) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    assert data.y is not None
    y, wrong = noisy(data.y, 0.05, rng)
    if kind == "next class":
        classes, codes = np.unique(data.y, return_inverse=True)
        y = np.where(wrong, classes[(codes + 1) % len(classes)], data.y)
    found = fc.audit(replace(data, y=y), seed=seed, progress=False)
    place = {identity: i for i, identity in enumerate(data.row_ids.tolist())}
    rows = np.asarray([place[row["ids"][0]] for row in found.of("label suspect")], dtype=np.intp)
    named = [row["suggested"] == data.y[i] for row, i in zip(found.of("label suspect"), rows, strict=True) if wrong[i]]
    return {
        "data": name,
        "seed": seed,
        "noise": kind,
        "planted": int(wrong.sum()),
        "reported": len(rows),
        "expected to be real": found.expected.get("label suspect", 0.0),
        "precision": round(float(wrong[rows].mean()), 3) if len(rows) else None,
        "recall": round(float(wrong[rows].sum() / wrong.sum()), 3),
        "true label suggested": round(float(np.mean(named)), 3) if named else None,
    }


def _clean(case: Any, data: FeatureSet, name: str) -> dict[str, Any]:
    found = fc.audit(data, images=_images(case, name), progress=False)
    kinds = ("exact duplicate", "near duplicate", "label suspect", "outlier", "constant")
    return {"data": name, "rows": len(data), **{kind: len(found.of(kind)) for kind in kinds}}


def _nothing(case: Any, name: str, seed: int) -> list[tuple[FeatureSet, str]]:
    """Sets without a wrong label, or without any label that codes know of."""
    rng = np.random.default_rng(seed)
    out = []
    for n, classes, d in ((100, 2, 16), (300, 5, 64)):
        X, y = rng.normal(size=(n, d)).astype("float32"), rng.integers(classes, size=n).astype(str)
        out.append((FeatureSet(X, y), f"noise, {classes} classes"))
    for apart in (0.5, 1.0, 1.5):
        codes = rng.integers(3, size=300)
        X = rng.normal(size=(300, 16)).astype("float32")
        X[:, :3] += apart * np.eye(3)[codes]
        out.append((FeatureSet(X, codes.astype(str)), f"3 classes {apart} deviations apart"))
    real = _grouped(case, name)
    out.append((replace(real, y=rng.permutation(real.y)), f"{name}, labels shuffled"))
    return [*out, (real, name)] if seed == 0 else out


def _doubts(data: FeatureSet, said: str) -> dict[str, Any]:
    found = fc.audit(data, progress=False)
    count = len(found.of("label suspect"))
    return {"data": said, "rows": len(data), "reported": count, "share": round(count / len(data), 4)}


def _common(data: FeatureSet, name: str, share: float, each: int) -> dict[str, Any]:
    """Codes of some images once more, or of all of them several times, with a tenth of their spread as noise."""
    rng = np.random.default_rng(0)
    X = data.X[np.sort(rng.permutation(len(data))[:400])]
    origins = np.repeat(np.arange(round(share * len(X))), each)
    near = X[origins] + 0.1 * X.std(axis=0) * rng.normal(size=(len(origins), X.shape[1])).astype("float32")
    source = np.concatenate([np.arange(len(X)), origins])
    rows = near_pairs(np.concatenate([X, near])).rows
    right = source[rows[:, 0]] == source[rows[:, 1]]
    return {
        "data": name,
        "planted": f"{round(100 * share)} %, {each} each",
        "pairs reported": len(rows),
        "precision": round(float(right.mean()), 3) if len(rows) else None,
        "recall": round(float(right.sum() / len(origins)), 3),
    }


def _claims(
    copies: list[dict[str, Any]],
    noise: list[dict[str, Any]],
    null: list[dict[str, Any]],
    common: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    best = [row for row in copies if row["seen"] == "codes and images"] or copies
    plain = [row for row in noise if row["noise"] == "random"]
    return [
        _least("planted copies: precision of the pairs on each set, mean of the seeds, at least 0.9", best,
               "precision", 0.9),
        _least("planted copies: recall on each set, mean of the seeds, at least 0.9", best, "recall", 0.9),
        _least("5 % of labels wrong at random: precision on each set, mean of the seeds, at least 0.6", plain,
               "precision", 0.6),
        _least("5 % of labels wrong at random: recall on each set, mean of the seeds, at least 0.6", plain,
               "recall", 0.6),
        _least("copies of half of the images or more: precision on each set, mean of the amounts, at least 0.9",
               common, "precision", 0.9),
        _least("copies of half of the images or more: recall on each set, mean of the amounts, at least 0.9", common,
               "recall", 0.9),
        claim("labels of noise, of overlapping classes, and shuffled: at most 2 % of each set reported",
              worst := max(row["share"] for row in null), worst <= 0.02),
    ]  # fmt: skip


def _least(text: str, rows: list[dict[str, Any]], figure: str, wanted: float) -> dict[str, Any]:
    sets = dict.fromkeys(row["data"] for row in rows)
    means = {name: [row[figure] or 0.0 for row in rows if row["data"] == name] for name in sets}
    measured = {name: round(float(np.mean(values)), 3) for name, values in means.items()}
    return claim(text, measured, min(measured.values()) >= wanted)
