"""Make the stores that every later version of featcache must read: tests/fixtures/format-N/.

    python scripts/make_format_fixtures.py [FOLDER]

N is the format version that this featcache writes. Fixtures are made once, when a format is new, and never again: the
script refuses a folder that exists. Beside each store lie what it must give (JSON), and its codes (npz).
"""

import contextlib
import hashlib
import json
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

from featcache.errors import DamagedStore
from featcache.store import CONSTANT, FAILED, OK, Entries, FeatureStore
from featcache.store.container import FORMAT_VERSION, Container

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / f"format-{FORMAT_VERSION}"
COMPUTED = {"mode": "fp32", "environment": {"torch": "2.6.0", "featcache": "0.1.0"}}
LOCATOR = {"kind": "enum", "value": "IMAGENET1K_V1"}
#: Code points, undecodable bytes and UTF-8 sort differently; a line break and a NUL within are names, too.
NAMES = [
    "äpfel/ä.jpg",
    "caf\udce9.jpg",
    "\udc80\udcff.jpg",
    "\ue000.jpg",
    "😀.jpg",
    "zeile\n2.jpg",
    "nul\0.jpg",
    "日本/一.png",
]


def spec_for(dtype: str, nodes: list[str]) -> dict:
    weights = "sha256:" + "ab" * 32
    return {
        "version": 1,
        "backbone": {"arch": "resnet18", "kwargs": {}, "weights": weights, "nodes": nodes, "version": None},
        "preprocess": {"resize": 256, "crop": 224, "mean": [0.485, 0.456, 0.406], "std": [1.0, 1e-05, 0.225]},
        "precision": {"class": "tolerance", "cosine": 0.998},
        "dtype": dtype,
    }


def keys_for(numbers) -> np.ndarray:
    """Return keys that spread over all values, as digests do."""
    return np.stack([np.random.default_rng([int(n), 32]).integers(0, 256, 32, dtype="u1") for n in numbers])


def rows_for(numbers, shape, dtype="float32", salt=0) -> np.ndarray:
    """Return codes; every tenth image is blank: all its codes are equal."""
    rows = np.stack([np.random.default_rng([int(n), salt]).standard_normal(shape) for n in numbers])
    rows[np.asarray(list(numbers)) % 10 == 0] = 0.5
    return rows.astype(dtype)


def blank(numbers) -> np.ndarray:
    return np.asarray(list(numbers)) % 10 == 0


def name_of(number: int) -> str:
    return NAMES[number // 7] if number % 7 == 3 and number // 7 < len(NAMES) else f"img{number:04d}.jpg"


def lines_for(numbers, columns) -> Entries:
    """Return lines whose every thirteenth image failed."""
    numbers = np.asarray(list(numbers))
    failed = numbers % 13 == 12
    keys = keys_for(numbers)
    keys[failed & (numbers % 2 == 0)] = 0
    status = np.where(failed, FAILED, np.where(blank(numbers), CONSTANT, OK)).astype("u1")
    errors = np.where(failed, np.where(numbers % 2, "truncated: 7 of 9 KB – größer", "cannot be read"), "")
    ids = np.asarray([name_of(n) for n in numbers.tolist()])
    return Entries(ids, keys, status, errors, {name: make(numbers) for name, make in columns.items()})


BASE = {
    "label": lambda n: np.asarray(["Katze", "Hund", "", "鳥", "caf\udce9"])[n % 5],
    "person": lambda n: n // 4,
    "part": lambda n: np.where(n % 3, "train", "test"),
    "score": lambda n: np.where(n % 8, n / 7, np.nan),
    "checked": lambda n: n % 2 == 0,
    "age": lambda n: n - 50,  # missing later on: becomes float64
    "mixed": lambda n: n / 4,  # text later on: becomes text
    "sub/column": lambda n: np.asarray([f"{i % 3}" for i in n.tolist()]),
}
LATER = {**{name: make for name, make in BASE.items() if name != "age"}, "mixed": lambda n: np.full(len(n), "many")}
ROLES = {"label": "label", "group": "person", "split": "part"}


def make_plain(root: Path) -> FeatureStore:
    """Make float32, one node, three shards, a base and two deltas, a retired state, every kind of column and line."""
    store = FeatureStore.create(root, spec_for("float32", ["flatten"]), locator=LOCATOR)
    source = {"name": "images", "location": "/somewhere/bilder", "ignored": {".txt": 2}}
    for part in (range(260), range(260, 280), range(280, 290)):
        store.append(keys_for(part), {"flatten": rows_for(part, 4)}, constant=blank(part), computed=COMPUTED)
    store.commit(lines_for(range(260), BASE), roles=ROLES, source=source)
    kept = [n for n in range(280) if not 40 <= n < 50]
    store.commit(lines_for(kept, BASE), roles=ROLES, source=source)
    twin = lines_for([5], LATER)
    twin = Entries(np.asarray(["twin of 5.jpg"]), twin.keys, twin.status, twin.errors, twin.columns)
    store.commit(lines_for([*range(280, 290), 7, 45], LATER).merged(twin), keep_old=True)
    store.retire("main", [1])
    return store


def make_half(root: Path) -> FeatureStore:
    """Make float16, two nodes, augmented views, two views, compacted, the shards before in the trash."""
    store = FeatureStore.create(root, spec_for("float16", ["flatten", "layer3"]), locator=LOCATOR)
    for part in (range(20, 40), range(20)):
        for view_number in range(2):
            codes = {
                "flatten": rows_for(part, 5, "float16", view_number),
                "layer3": rows_for(part, (2, 3, 3), "float16", view_number),
            }
            options = {"constant": blank(part), "computed": COMPUTED, "view_number": view_number}
            store.append(keys_for(part), codes, **options)
    store.commit(lines_for(range(40), {"label": BASE["label"]}), roles={"label": "label"})
    store.commit(lines_for(range(10, 15), {}), view="few")
    store.compact()
    with hurried():
        store.gc(grace_days=0)
    return store


def make_damaged(root: Path) -> FeatureStore:
    """Make a shard of two groups of rows, one bit of the second one flipped, and a sound shard."""
    store = FeatureStore.create(root, spec_for("float32", ["flatten"]), locator=LOCATOR)
    for part in (range(300), range(300, 310)):
        store.append(keys_for(part), {"flatten": rows_for(part, 3)}, constant=blank(part), computed=COMPUTED)
    store.commit(lines_for(range(310), {"label": BASE["label"]}), roles={"label": "label"})
    sound = [*range(0, 256, 8), *range(300, 310)]
    store.commit(lines_for(sound, {"label": BASE["label"]}), view="sound", roles={"label": "label"})
    path = store.shards[0].path
    with contextlib.closing(Container(path)) as shard:
        place = shard.region("x/flatten")["offset"] + 280 * 3 * 4 + 5
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)
    return FeatureStore.open(root)


MAKERS = {"plain": make_plain, "half": make_half, "damaged": make_damaged}


@contextlib.contextmanager
def hurried():
    """Let files count as spare although they were written in this very moment."""
    with mock.patch("featcache.store.keeping.file_system_now", lambda *_: 2e9):
        yield


def expected_of(store: FeatureStore) -> tuple[dict, dict[str, np.ndarray]]:
    """Return what a store gives: JSON, and codes by ``<view>@<number>/<node>``."""
    said: dict = {"spec": store.spec, "fingerprint": store.fingerprint, "locator": store.locator}
    codes: dict[str, np.ndarray] = {}
    said["nodes"] = {name: list(shape) for name, shape in store.nodes.items()}
    said["views"] = {view: store.snapshots(view) for view in store.views}
    said["states"] = {}
    for view, numbers in said["views"].items():
        for number in numbers:
            state = store.snapshot(view, number)
            lines = state.entries
            said["states"][state.name] = {
                "ids": lines.ids.tolist(),
                "keys": hashlib.sha256(lines.keys.tobytes()).hexdigest(),
                "status": lines.status.tolist(),
                "errors": lines.errors.tolist(),
                "roles": dict(state.roles),
                "source": dict(state.source),
                "columns": {
                    name: [c.dtype.kind, [None if v != v else v for v in c.tolist()]]
                    for name, c in lines.columns.items()
                },
            }
            for node in store.nodes:
                with contextlib.suppress(DamagedStore):
                    codes[f"{state.name}/{node}"] = np.array(store.load(view, snapshot=number, node=node).X)
    report = store.check(deep=True)
    said["check"] = {"ok": report.ok, "damaged": {d["file"]: sorted(d["images"]) for d in report.damaged}}
    return said, codes


def main(target: Path = FOLDER) -> None:
    if target.exists():
        sys.exit(f"{target} exists: fixtures of a format are made once; a new format has a folder of its own")
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(socket, "gethostname", lambda: "maker.example"):
        for name, make in MAKERS.items():
            store = make(Path(folder) / f"{name}.features")
            for private in ("index", "tmp", "pins"):
                shutil.rmtree(store.path / private)
            said, codes = expected_of(FeatureStore.open(store.path))
            shutil.rmtree(store.path / "index", ignore_errors=True)
            (Path(folder) / f"{name}.json").write_text(json.dumps(said, indent=0) + "\n", encoding="ascii")
            np.savez_compressed(Path(folder) / f"{name}.npz", **codes)
        target.mkdir(parents=True)
        for path in sorted(Path(folder).iterdir()):  # not the folder itself, which is ours alone
            (shutil.copytree if path.is_dir() else shutil.copy)(path, target / path.name)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
