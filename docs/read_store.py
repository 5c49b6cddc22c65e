"""Read and verify a store without featcache, as file-format.md says: python read_store.py STORE [VIEW [NODE]]."""

import json
import struct
import sys
from pathlib import Path

import h5py
import numpy as np


def check_file(path, xxhash):
    """Raise ValueError unless every checksum of a .h5 file holds: by plain reads, before HDF5 sees it."""
    data = memoryview(Path(path).read_bytes())
    magic, version, length, expected = struct.unpack_from("<8sIIQ", data[:24].tobytes().ljust(24))
    text = data[24 : 24 + length].tobytes()
    if magic != b"FEATCACH" or xxhash.xxh3_64_intdigest(text) != expected:
        raise ValueError(f"{path}: no featcache file, or its header is damaged")
    head = json.loads(text)
    if version != 1 or head["format_version"] != 1:
        raise ValueError(f"{path}: format version {version}; pip install --upgrade featcache")
    by_name, rest, at = {r["name"]: r for r in head["regions"]}, xxhash.xxh3_128(), head["block"]
    for r in sorted((r for r in head["regions"] if r["bytes"]), key=lambda r: r["offset"]):
        rest.update(data[at : r["offset"]])
        at = r["offset"] + r["bytes"]
    rest.update(data[at:])
    good = len(data) == head["size"] and rest.hexdigest() == head["meta"]
    for r in head["regions"]:
        block = data[r["offset"] : r["offset"] + r["bytes"]]
        if "groups" in r:
            sums = by_name[r["groups"]]
            stored = np.frombuffer(data[sums["offset"] : sums["offset"] + sums["bytes"]], "<u8").tolist()
            step = max(1, r["group_rows"] * r["bytes"] // max(1, r["shape"][0]))
            good &= stored == [xxhash.xxh3_64_intdigest(block[i : i + step]) for i in range(0, len(block), step)]
        else:
            good &= r["xxh3"] == xxhash.xxh3_128_hexdigest(block)
    if not good:
        raise ValueError(f"{path}: damaged")


def texts(group):
    """Return the texts of a group that holds `offsets` and `bytes`."""
    at, blob = group["offsets"][:].tolist(), group["bytes"][:].tobytes()
    return [blob[a:b].decode("utf-8", "surrogateescape") for a, b in zip(at, at[1:], strict=False)]


def read_lines(file, names):
    """Return (lines, removed ids) of a snapshot file; lines are id → (key, status, error, columns)."""
    columns = {}
    for name in names:
        group = file[f"column/{name}"]
        if "code" in group:
            distinct = texts(group)
            columns[name] = [distinct[code] for code in group["code"][:].tolist()]
        else:
            kind = next(kind for kind in ("bool", "int", "float") if kind in group)
            columns[name] = group[kind][:].astype(kind).tolist()
    keys, status, reasons = file["key"][:], file["status"][:].tolist(), texts(file["error"])
    parts = zip(texts(file["id"]), keys, status, file["error/code"][:].tolist(), strict=True)
    lines = {i: (k.tobytes(), s, reasons[e], at) for at, (i, k, s, e) in enumerate(parts)}
    lines = {i: (*rest, {name: columns[name][at] for name in names}) for i, (*rest, at) in lines.items()}
    return lines, set(texts(file["removed"]))


def merged(old, new, removed):
    """Drop removed ids, then overwrite or add newer lines; bring the columns of both to one type."""
    old = {i: line for i, line in old.items() if i not in removed and i not in new}
    if not old or not new:
        return old or new
    a, b = (next(iter(lines.values()))[3] for lines in (old, new))
    kinds = {}
    for name in a.keys() | b.keys():
        blank = "" if isinstance(a.get(name, b.get(name)), str) else float("nan")
        types = {type(a.get(name, blank)), type(b.get(name, blank))}
        kinds[name] = types.pop() if len(types) == 1 else str if str in types else float, blank
    both = (old | new).items()
    return {i: (*rest, {n: kind(c.get(n, blank)) for n, (kind, blank) in kinds.items()}) for i, (*rest, c) in both}


def read_store(root, view="main", node=None, number=None, xxhash=None):
    """Return (codes, ids, columns, roles, failed) of a state of a view; with the xxhash module all is verified."""

    def opened(path):
        if xxhash is not None:
            check_file(path, xxhash)
        file = h5py.File(path, "r", locking=False)
        return file, {name: json.loads(bytes(value)) for name, value in file.attrs.items()}

    root, rows = Path(root), {}
    head = json.loads((root / "store.json").read_text(encoding="utf-8"))
    rest = json.dumps({n: v for n, v in head.items() if n != "xxh3"}, sort_keys=True, separators=(",", ":"))
    if head["format_version"] != 1 or (xxhash is not None and xxhash.xxh3_128_hexdigest(rest.encode()) != head["xxh3"]):
        raise ValueError(f"{root}: store.json is damaged, or newer: pip install --upgrade featcache")
    names = {p.name for p in (root / "snapshots" / view).iterdir()}
    kept = {n[:8] for n in names if n[8:] == ".h5" and not {n[:8] + ".retired", n[:8] + ".lost"} & names}
    onto, chain = int(max(kept)) if number is None else number, []
    while onto is not None:
        file, about = opened(root / "snapshots" / view / f"{onto:08d}.h5")
        chain.append((*read_lines(file, about["columns"]), about["roles"]))
        onto = about["onto"]
    roles, lines, change, removed = chain[0][2], chain.pop()[0], {}, set()
    for upserts, gone, _ in reversed(chain):
        change, removed = merged(change, upserts, gone), removed | gone
    lines = merged(lines, change, removed)
    for path in sorted((root / "shards").glob("*.h5")):  # of several rows of a key the last shard's counts
        file, about = opened(path)
        keys, plain = file["key"][:], np.flatnonzero(file["view_number"][:] == 0)
        rows |= {keys[at].tobytes(): (file, at) for at in plain.tolist()}
        node = about["nodes"][0] if node is None else node
    stored = {i: lines[i] for i in sorted(lines) if lines[i][1] != 1}
    codes = np.stack([rows[key][0][f"x/{node}"][rows[key][1]] for key, *_ in stored.values()])
    columns = {n: np.asarray([line[3][n] for line in stored.values()]) for n in next(iter(stored.values()))[3]}
    return codes, list(stored), columns, roles, {i: line[2] for i, line in lines.items() if line[1] == 1}


if __name__ == "__main__":
    import xxhash

    codes, ids, columns, roles, failed = read_store(*sys.argv[1:4], xxhash=xxhash)
    print(f"{codes.shape} {codes.dtype}, columns {list(columns)}, roles {roles}, {len(failed)} failed; {ids[:3]} …")
