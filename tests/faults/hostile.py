"""Stores as a stranger could send them, and a reader in a child of limited memory that tells how it took them.

Each harm is a function that changes one thing of a small sound store; checksums are right throughout, since whoever
makes a file to do harm makes its checksums, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import struct
import time
import traceback
from pathlib import Path

import numpy as np
import xxhash
from builders import SPEC, add_rows, entries_for

from featcache.errors import FeatcacheError, StoreError
from featcache.store import FeatureStore
from featcache.store.container import Container
from featcache.store.private import save_private

HARMS = {}
SECRET = "secret of somebody else"


def harm(make):
    HARMS[make.__name__] = make
    return make


def small(path: Path) -> None:
    store = FeatureStore.create(path, SPEC)
    for numbers in (range(40), range(40, 60)):
        add_rows(store, numbers)
    store.commit(entries_for(range(60), failed=(7,)), roles={"label": "label"})
    store.commit(entries_for(range(50)), roles={"label": "label"}, keep_old=True)
    store.commit(entries_for(range(57, 60), label="d{}"), keep_old=True)
    digests = store.digests
    digests.save()
    store.requests.put({"a": 1}, store.fingerprint)


def shard(path: Path, number: int = 0) -> Path:
    return sorted((path / "shards").glob("*.h5"))[number]


def state(path: Path, number: int = 0) -> Path:
    return path / "snapshots" / "main" / f"{number:08d}.h5"


def forge(file: Path, change, text: bytes | None = None) -> None:
    """Change the JSON header of a container, and make its checksums those of the changed file."""
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[12:16], "little")
    header = json.loads(data[24 : 24 + length])
    with contextlib.suppress(TypeError):
        change(header, data)
    body = text if text is not None else json.dumps(header).encode()
    if 24 + len(body) > header["block"]:
        data = bytearray(24 + len(body)) + data[header["block"] :]
    data[:24] = struct.pack("<8sIIQ", b"FEATCACH", 1, len(body), xxhash.xxh3_64_intdigest(body))
    data[24 : 24 + len(body)] = body
    file.unlink()
    file.write_bytes(data)


def region(header, name):
    return next(r for r in header["regions"] if r["name"] == name)


def rewrite(file: Path, name: str, array: np.ndarray) -> None:
    """Change the data of a plain region, with its checksum."""

    def change(header, data):
        place = region(header, name)
        raw = array.astype(place["dtype"]).tobytes()
        assert len(raw) == place["bytes"]
        data[place["offset"] : place["offset"] + len(raw)] = raw
        place["xxh3"] = xxhash.xxh3_128_hexdigest(raw)

    forge(file, change)


def values(file: Path, name: str) -> np.ndarray:
    return np.array(Container(file).array(name))


# -- links, pipes, devices -----------------------------------------------------------------------------------------


@harm
def shard_is_a_link(path):
    outside = path.parent / "outside.h5"
    shutil.move(shard(path), outside)
    (path / "shards" / outside.name).symlink_to(outside)


@harm
def folders_are_links(path):
    for name in ("shards",):
        shutil.move(path / name, path.parent / "elsewhere")
        (path / name).symlink_to(path.parent / "elsewhere")


@harm
def damaged_is_a_link(path):
    (path / "damaged").rmdir()
    (path / "damaged").symlink_to(path.parent)


@harm
def view_is_a_link(path):
    shutil.move(path / "snapshots" / "main", path.parent / "main")
    (path / "snapshots" / "main").symlink_to(path.parent / "main")


@harm
def header_is_a_link(path):
    shutil.move(path / "store.json", path.parent / "store.json")
    (path / "store.json").symlink_to(path.parent / "store.json")


@harm
def pipes_everywhere(path):
    for name in ("shards/a.h5", "snapshots/main/00000003.h5", "index/requests.json", "index/rows-a.run", "pins/a.json"):
        (path / name).unlink(missing_ok=True)
        os.mkfifo(path / name)
    for name in ("index/digests.npz", "index/digests.npz.1"):
        (path / name).unlink(missing_ok=True)
        os.mkfifo(path / name)


@harm
def header_is_a_pipe(path):
    (path / "store.json").unlink()
    os.mkfifo(path / "store.json")


@harm
def folders_where_files_belong(path):
    for name in ("shards/a.h5", "snapshots/main/00000003.h5", "index/rows-a.run", "trash/a.h5", "pins/a.json"):
        (path / name).mkdir()


@harm
def trash_of_odd_names(path):
    for name in (
        "000000000001~shards~../../x.h5",
        "000000000001~shards~a\n.h5",
        "~~",
        "000000000001~snapshots+..~x.h5",
    ):
        with contextlib.suppress(OSError):
            (path / "trash" / name.replace("/", "+")).write_bytes(b"x")
    (path / "trash" / "000000000001~shards~aa.h5").symlink_to(path.parent / "outside.h5")
    (path / "shards" / "new\nline~.h5").write_bytes(b"x")


@harm
def pins_of_junk(path):
    for n, text in enumerate(
        [b"\xff", b"[" * 60_000, b'{"pid": NaN, "host": [1]}', b'{"pid": 1e999}', b"{", b"9" * 9000]
    ):
        (path / "pins" / f"{n}.json").write_bytes(text)
    for n in range(2000):
        (path / "pins" / f"x{n}.json").write_bytes(b"{}")


# -- JSON ----------------------------------------------------------------------------------------------------------

_TEXTS = {
    "nested": b"[" * 100_000,
    "brackets": b"[" + b"{}," * 4_000_000 + b"{}]",
    "numbers": b"[" + b"1234567," * 2_000_000 + b"1]",
    "digits": b'{"size": ' + b"9" * 100_000 + b"}",
    "nan": b'{"format_version": 1, "size": NaN, "block": Infinity, "regions": [], "attributes": {}, "kind": 1}',
    "list": b"[]",
    "twice": b'{"format_version": 1, "format_version": 1, "size": 1, "size": 2}',
}


def _json_bomb(name):
    def in_shard(path):
        forge(shard(path), lambda header, data: None, _TEXTS[name])

    def in_header(path):
        (path / "store.json").unlink()
        (path / "store.json").write_bytes(_TEXTS[name])

    def in_index(path):
        (path / "index" / "requests.json").write_bytes(_TEXTS[name])
        for run in (path / "index").glob("*.run"):
            text = _TEXTS[name]
            run.write_bytes(struct.pack("<8sIQ", b"FCINDEX1", len(text), xxhash.xxh3_64_intdigest(text)) + text)

    for make in (in_shard, in_header, in_index):
        HARMS[f"json_{name}_{make.__name__}"] = make


for _name in _TEXTS:
    _json_bomb(_name)


# -- headers of containers -----------------------------------------------------------------------------------------


def _header(name, change, where=shard):
    HARMS[f"header_{name}"] = lambda path: forge(where(path), change)


def _set(name, /, **fields):
    return lambda header, data: region(header, name).update(fields)


_header("zero_times_much", _set("x/flatten", shape=[0, 10**14, 10**14], bytes=0))
_header("beyond_counting", _set("x/flatten", shape=[10**30, 8], bytes=32 * 10**30))
_header("no_axes", _set("x/flatten", shape=[], bytes=4))
_header("negative", _set("x/flatten", shape=[-1, -8], bytes=32))
_header("many_axes", _set("x/flatten", shape=[1] * 100))
_header("float_axes", _set("x/flatten", shape=[40.0, 8]))
_header("group_of_one", _set("x/flatten", group_rows=1))
_header("group_of_all", _set("x/flatten", group_rows=10**18))
_header("group_of_more", _set("x/flatten", group_rows=10**40))
_header("group_of_a_fraction", _set("x/flatten", group_rows=256.0))
_header("sums_of_sums", _set("xxh3/x/flatten", groups="xxh3/x/flatten", group_rows=256))
_header("sums_that_are_floats", _set("xxh3/x/flatten", dtype="float64"))
_header("sums_by_a_list", _set("x/flatten", groups=["xxh3/x/flatten"]))
_header("over_the_header", _set("x/flatten", offset=0))
_header("offset_of_text", _set("x/flatten", offset="0"))
_header("negative_offset", _set("key", offset=-4096))
_header("overlap", lambda h, d: region(h, "x/flatten").update(offset=region(h, "key")["offset"]))
_header("same_name", lambda h, d: h["regions"].append(region(h, "key")))
_header("name_of_a_list", _set("key", name=["key"]))
_header("objects", _set("x/flatten", dtype="object"))
_header("dtype_of_a_list", _set("x/flatten", dtype=[["a", "<i4"]]))
_header("no_block", lambda h, d: h.update(block=True))
_header("no_regions", lambda h, d: h.update(regions=None))
_header("many_regions", lambda h, d: h["regions"].extend({**region(h, "key"), "name": str(n)} for n in range(9000)))
_header("version_of_text", lambda h, d: h.update(format_version="1"))
for _field, _values in {
    "fingerprint": [["a"], None, 7],
    "nodes": [["../x"], [["flatten"]], [5], "flatten", [], {"flatten": 1}, ["flatten", "other"]],
    "rows": [-1, 10**30, "many"],
    "computed": [None, [], "x"],
    "created": [None, 10**400, ["x"]],
    "views": [["main"], 7, {"main": "x"}],
    "merged": [7],
}.items():
    for _n, _value in enumerate(_values):
        _header(f"{_field}_{_n}", lambda h, d, f=_field, v=_value: h["attributes"].update({f: v}))
for _field, _values in {
    "onto": [0, 5, -1, True, "x", 10**30],
    "rows": [-1, 10**30, 0, True, None],
    "columns": [None, [["label"]], ["absent"], [5], ["label"] * 3],
    "roles": [[], {"label": ["label"]}, {"label": "absent"}, {"label": None}, {"x": "label"}],
    "source": [None, {"location": [1]}],
    "created": [None, 5],
    "number": ["0", 7],
    "view": ["../main", ["main"]],
}.items():
    for _n, _value in enumerate(_values):
        for _at in (0, 2):
            _header(
                f"state_{_at}_{_field}_{_n}",
                lambda h, d, f=_field, v=_value: h["attributes"].update({f: v}),
                lambda path, at=_at: state(path, at),
            )
for _field, _changes in {
    "key": [{"dtype": "uint16", "shape": [60, 16]}, {"shape": [120, 16]}, {"shape": [1920]}],
    "status": [{"shape": [60, 1]}, {"shape": []}],
    "id/offsets": [{"dtype": "float64"}, {"dtype": "int64"}, {"shape": [61, 1]}],
    "id/bytes": [{"dtype": "float64"}],
    "error/code": [{"dtype": "float32"}, {"shape": [60, 1]}],
    "column/size/int": [{"shape": [60, 1]}, {"shape": [6, 10]}],
    "column/label/code": [{"dtype": "float32"}],
}.items():
    for _n, _change in enumerate(_changes):
        _header(f"lines_{_field.replace('/', '_')}_{_n}", _set(_field, **_change), state)


# -- data ----------------------------------------------------------------------------------------------------------


@harm
def offsets_that_fall(path):
    offsets = values(state(path), "id/offsets")
    offsets[3] = 0
    rewrite(state(path), "id/offsets", offsets)


@harm
def offsets_that_overlap_and_leave(path):
    offsets = values(state(path), "column/label/offsets")
    offsets[-1] = 2**63
    rewrite(state(path), "column/label/offsets", offsets)


@harm
def codes_outside(path):
    codes = values(state(path), "column/label/code")
    codes[3] = 10**6
    rewrite(state(path), "column/label/code", codes)


@harm
def negative_codes(path):
    codes = values(state(path), "error/code")
    codes[:] = -1
    rewrite(state(path), "error/code", codes)


@harm
def status_of_no_meaning(path):
    rewrite(state(path), "status", np.full(60, 200))


@harm
def ids_that_repeat(path):
    raw = values(state(path), "id/bytes")
    rewrite(state(path), "id/bytes", np.full(len(raw), 65))


@harm
def a_long_text_for_many_lines(path):
    """40,000 lines, one text of whose label has two million characters: as a matrix of characters, 320 GB."""
    from featcache.store.entries import column_datasets
    from featcache.store.writing import write_container

    many = entries_for(range(100_000, 140_000))
    blob = np.full(2_000_000, ord("x"), "u1")
    plain = {
        "status": many.status,
        "error/code": np.zeros(len(many), "<i4"),
        "column/label/code": np.zeros(len(many), "<i4"),
        "column/label/offsets": np.asarray([0, len(blob)], "<u8"),
        "column/label/bytes": blob,
    }
    for name, texts in (("id", many.ids), ("error", np.asarray([""])), ("removed", np.zeros(0, "U1"))):
        found = column_datasets("x", np.asarray(texts, np.str_))
        plain |= {f"{name}/{part}": found[f"column/x/{part}"] for part in ("offsets", "bytes")}
    about = dict(Container(state(path)).attributes)
    about |= {"number": 3, "parent": 2, "rows": len(many), "columns": ["label"], "roles": {"label": "label"}}
    keys = {"key": np.ascontiguousarray(many.keys)}
    target = state(path, 3)
    write_container(path / "tmp", "x.h5", target, kind="snapshot", attributes=about, datasets=plain, grouped=keys)


@harm
def sparse_giants(path):
    """Files of a terabyte that take no room: as they are, and with a header that claims them."""
    with (path / "shards" / "giant.h5").open("wb") as file:
        file.truncate(1 << 40)
    file = shard(path)
    forge(file, lambda header, data: header.update(size=1 << 40))
    os.truncate(file, 1 << 40)
    for name in ("index/requests.json", "index/rows-a.run", "index/digests.npz", "pins/a.json"):
        with (path / name).open("wb") as handle:
            handle.write(struct.pack("<8sIQ", b"FCINDEX1", 0xFFFFFFFF, 0))
            handle.truncate(1 << 40)


@harm
def header_of_a_terabyte(path):
    (path / "store.json").unlink()
    with (path / "store.json").open("wb") as file:
        file.truncate(1 << 40)


@harm
def run_of_odd_types(path):
    for n, about in enumerate([{"shards": [[]]}, {"shards": {}}, {"shards": [None]}]):
        zeros = {"prefix": np.zeros(1, "<u8"), "shard": np.zeros(1, "<u4"), "row": np.zeros(1, "<u4")}
        save_private(path / "index" / f"rows-{n}.run", about, zeros)


@harm
def ten_thousand_states(path):
    folder = path / "snapshots" / "main"
    for n in range(3, 10_003):
        os.close(os.open(folder / f"{n:08d}.retired", os.O_CREAT | os.O_WRONLY))


@harm
def a_chain_of_many(path):
    first = state(path, 2).read_bytes()
    for n in range(3, 300):
        file = state(path, n)
        file.write_bytes(first)
        forge(file, lambda h, d, n=n: h["attributes"].update(number=n, onto=n - 1))


@harm
def another_shape(path):
    store = FeatureStore.open(path)
    store._shards.publish(
        np.full((1, 32), 9, "u1"),
        {"flatten": np.ones((1, 3), "f4")},
        view_number=np.zeros(1, "u2"),
        constant=np.zeros(1),
        attributes={"computed": {}},
    )


def _spec(name, spec, **fields):
    def make(path):
        from featcache import fingerprint
        from featcache.store.header import checksum

        header = json.loads((path / "store.json").read_text())
        header["spec"] = spec
        with contextlib.suppress(Exception):
            header["fingerprint"] = fingerprint.fingerprint(spec)
        header |= fields
        header["xxh3"] = checksum(header)
        (path / "store.json").unlink()
        (path / "store.json").write_text(json.dumps(header))

    HARMS[f"spec_{name}"] = make


_spec("list", ["a"])
_spec("dtype", {"dtype": "object"})
_spec("dtype_of_a_list", {"dtype": [["a", "<f4"]]})
_spec("nan", {"x": float("nan")})
_spec("locator", dict(SPEC), locator=["a"])
_spec("version", dict(SPEC), format_version=True)


# -- the reader ----------------------------------------------------------------------------------------------------


def use(path: Path) -> list[str]:
    """Do with a store what people do; return how each ended, "" when it came back."""
    said = []

    def attempt(action):
        try:
            action()
            said.append("")
        except (StoreError, FeatcacheError) as error:
            said.append(str(error) if "\n" not in str(error) else "several lines: " + str(error))
        except Exception:
            said.append("unexpected: " + traceback.format_exc(limit=-5))

    def opened():
        return FeatureStore.open(path)

    attempt(lambda: opened().load())
    attempt(lambda: opened().load(in_memory=False))
    attempt(lambda: json.dumps(opened().info(), allow_nan=False))
    attempt(lambda: opened().check(deep=True))
    attempt(lambda: opened().requests.get({"a": 1}))
    attempt(lambda: opened().digests.get(type("S", (), {"path": "a", **dict.fromkeys(FIELDS, 1)})))
    attempt(lambda: json.dumps(opened().gc(grace_days=0.0, dry_run=True).as_dict(), allow_nan=False))
    attempt(lambda: opened().gc(grace_days=0.0))
    attempt(lambda: opened().compact())
    return said


FIELDS = ("size", "mtime_ns", "ctime_ns", "inode", "device")


def take_all(template: str, folder: str, names: list[str], repaired: int = 1) -> list[dict]:
    """Harm a copy, use it, repair it (one of `repaired`), in this process of bounded addresses; tell what was wrong."""
    resource.setrlimit(resource.RLIMIT_AS, (6 << 40, 6 << 40))  # beyond the maps of two sparse giants
    found = []
    for number, name in enumerate(names):
        path = Path(folder) / name / "s.features"
        shutil.copytree(template, path)
        HARMS[name](path)
        outside = Path(folder) / name / "outside.txt"
        outside.write_text(SECRET)
        before = _tree(path.parent, path)
        print("taking", name, flush=True)
        peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        said = use(path)
        seconds, grown = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        said += _repair(path) if number % repaired == 0 else []
        problems = [s for s in said if s.startswith(("unexpected", "several lines"))]
        if seconds > 2 * 9:
            problems.append(f"took {seconds:.1f} s")
        if grown > 200_000:
            problems.append(f"took {grown} KB")
        if _tree(path.parent, path) != before:
            problems.append("touched what is outside of the store")
        slowest = round(seconds, 2)
        found.append({"harm": name, "problems": problems, "said": said, "seconds": slowest, "kilobytes": grown})
        shutil.rmtree(path.parent)
    return found


def _repair(path: Path) -> list[str]:
    from featcache.store.repair import repair_header

    try:
        repair_header(path)
        json.dumps(FeatureStore.open(path).check(repair=True).repaired, allow_nan=False)
        return []
    except FeatcacheError as error:
        return ["several lines: " + str(error)] if "\n" in str(error) else []
    except OSError as error:
        return [f"unexpected: {error!r}"]
    except Exception:
        return ["unexpected: in repair: " + traceback.format_exc(limit=-5)]


def _tree(folder: Path, without: Path) -> dict[str, tuple]:
    found = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if Path(place) / f != without]
        for name in names:
            stat = (Path(place) / name).lstat()
            found[os.path.join(place, name)] = (stat.st_size, stat.st_mtime_ns, stat.st_nlink)
    return found
