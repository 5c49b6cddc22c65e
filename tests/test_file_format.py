"""docs/file-format.md is true: its tables name what files hold, and a reader that knows only it agrees with ours."""

import contextlib
import hashlib
import importlib.util
import json
import re

import h5py
import numpy as np
import pytest
import xxhash
from conftest import REPOSITORY

from featcache import fingerprint as identity
from featcache.errors import DamagedStore, StoreTooNew
from featcache.extraction.reading import key_by_version
from featcache.store import (
    FAILED,
    OK,
    Entries,
    FeatureStore,
    container,
    header,
    safely,
    shards,
    snapshot,
    trash,
    views,
    writing,
)
from featcache.store.container import HEADER, MAGIC, Container

PAGE = (REPOSITORY / "docs" / "file-format.md").read_text(encoding="utf-8")
WORDS = " ".join(PAGE.split())


def module_at(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


reader = module_at(REPOSITORY / "docs" / "read_store.py")
maker = module_at(REPOSITORY / "scripts" / "make_format_fixtures.py")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """One store of each kind, made now by this featcache."""
    root = tmp_path_factory.mktemp("stores")
    made = {name: make(root / f"{name}.features") for name, make in maker.MAKERS.items()}
    made["empty"] = FeatureStore.create(root / "empty.features", {})
    made["repaired"] = maker.make_damaged(root / "repaired.features")
    assert made["repaired"].check(repair=True).repaired
    return made


def section(title):
    """Return the part of the page below a heading, up to the next one of its level."""
    level = re.search(rf"^(#+) {re.escape(title)}$", PAGE, re.M)[1]
    return PAGE.split(f"\n{level} {title}\n")[1].split(f"\n{level} ")[0]


def table(title, first, number=0):
    """Return the rows of a table in a section, by the heading of its first column: name → the other cells."""
    rows = {}
    for line in section(title).split(f"\n| {first} |")[number + 1].splitlines()[2:]:
        if not line.startswith("|"):
            break
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[name.strip("`")] = cells
    assert rows
    return rows


def files_of(stores, kind):
    folder = {"shard": "shards", "snapshot": "snapshots"}[kind]
    return [path for store in stores.values() for path in sorted((store.path / folder).rglob("*.h5"))]


def pattern(name):
    return re.compile(re.sub(r"<\w+>", "(?s:.+)", re.escape(name).replace(r"\<", "<").replace(r"\>", ">")))


# -- the tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "title"), [("shard", "Shards"), ("snapshot", "Snapshots")])
def test_datasets_are_those_of_the_page(stores, kind, title):
    named = table(title, "dataset")
    met = set()
    for path in files_of(stores, kind):
        with contextlib.closing(Container(path, "off")) as file, h5py.File(path, "r", locking=False) as plain:
            found = []
            plain.visititems(lambda name, item, found=found: found.append(name) if hasattr(item, "dtype") else None)
            assert {n.strip("/") for n in file.regions} == set(found)
            for name, region in file.regions.items():
                row = [n for n in named if pattern(n).fullmatch(name)]
                row = [n for n in row if "<" not in n] or row  # the plain name says more
                assert len(row) == 1, name
                dtype, shape, meaning = named[row[0]]
                met.add(row[0])
                expected = ("float16", "float32") if dtype == "float" else (dtype,)
                assert region["dtype"] in expected, name
                if "*shape" in shape:
                    assert len(region["shape"]) >= 2
                else:
                    assert len(region["shape"]) == len([n for n in shape.strip("()").split(",") if n.strip()]), name
                    assert shape != "(n, 32)" or region["shape"][1] == 32
                assert ("groups" in region) == meaning.endswith("grouped"), name
                if "groups" in region:
                    assert region["groups"] == f"xxh3/{name}" and region["group_rows"] == 256
    assert met == set(named)


@pytest.mark.parametrize(("kind", "title"), [("shard", "Shards"), ("snapshot", "Snapshots")])
def test_attributes_are_those_of_the_page(stores, kind, title):
    named = table(title, "attribute")
    types = {"text": str, "int": int, "list": list, "object": dict, "int or null": int | None}
    met = set()
    for path in files_of(stores, kind):
        with contextlib.closing(Container(path, "off")) as file, h5py.File(path, "r", locking=False) as plain:
            assert file.kind == kind
            for name, value in file.attributes.items():
                assert isinstance(value, types[named[name][0]]), name
            met |= file.attributes.keys()
            inside = {n: json.loads(bytes(v)) for n, v in plain.attrs.items()}
            own = {"format": "featcache", "format_version": 1, "kind": kind}
            assert inside == {**own, **file.attributes}
            assert all(v.dtype.kind == "S" for v in plain.attrs.values())
    assert met == set(named)


def test_fields_of_headers_are_those_of_the_page(stores):
    for store in stores.values():
        assert json.loads((store.path / "store.json").read_text()).keys() == table("store.json", "field").keys()
    fields, about = (table("Any .h5 file", "field", number) for number in (0, 1))
    for path in files_of(stores, "shard") + files_of(stores, "snapshot"):
        data = path.read_bytes()
        said = json.loads(data[24 : 24 + int.from_bytes(data[12:16], "little")])
        assert said.keys() == fields.keys()
        plain = about.keys() - {"groups", "group_rows"}
        assert all(r.keys() in (plain, about.keys() - {"xxh3"}) for r in said["regions"])


def test_first_defaults_are_those_of_the_page():
    rows = table("Fingerprint", "field")
    assert {n: json.loads(row[0].strip("`")) for n, row in rows.items()} == identity.FIRST_DEFAULTS


def test_every_name_in_a_store_is_named_by_the_page(tmp_path):
    names = []
    for row in re.findall(r"^\| `([^|]+)` \|", section("The folder"), re.M):
        row = row.replace("<NNNNNNNN>", "[0-9]{8}").replace("<view>", "[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
        row = row.replace("<time>", "[0-9]{12}").replace("<folder>", r"(shards|snapshots\+[A-Za-z0-9._-]+)")
        names.append(re.compile(row.replace("<name>", "[A-Za-z0-9-]+").replace("/*", "/.+").replace(".h5", r"\.h5")))
    store = maker.make_plain(tmp_path / "a.features")
    store.compact()
    with store.pin(), maker.hurried():
        store.load(in_memory=False)
        store.digests.save()
        store.requests.put({"a": 1}, "b")
        seen = {p.relative_to(store.path).as_posix() for p in store.path.rglob("*") if p.is_file()}
    with maker.hurried():
        assert store.gc(grace_days=0).trashed
    path = store.path / "snapshots" / "main" / "00000000.h5"
    path.write_bytes(path.read_bytes()[:5000])
    assert FeatureStore.open(store.path).check(repair=True).repaired
    assert path.with_suffix(".lost").exists()
    seen |= {p.relative_to(store.path).as_posix() for p in store.path.rglob("*") if p.is_file()}
    assert {name.split("/")[0] for name in seen} == set(header.FOLDERS) - {"tmp"} | {"store.json"}
    assert "damaged/snapshots+main~00000000.h5" in seen
    assert [name for name in seen if not any(n.fullmatch(name) for n in names)] == []
    assert {p.name for p in store.path.iterdir() if p.is_dir()} == set(header.FOLDERS)
    assert all(f"`{folder}/" in section("The folder") for folder in header.FOLDERS)


def test_numbers_of_the_page_are_those_of_the_code():
    text = " ".join(section("Any .h5 file").split())
    assert f"more than {safely._MOST_BRACKETS} brackets or {safely._MOST_ITEMS} commas" in text
    assert container.LARGEST_REST == 64 << 20 and "no more than 64 MiB" in text
    assert container._LARGEST_HEADER == safely._LARGEST_TEXT == 16 << 20
    assert (container._GROUP_SIZES[0], container._GROUP_SIZES[-1]) == (16, 65535) and "16 to 65535" in text
    assert set(re.findall(r"\w+\d", table("Any .h5 file", "field", 1)["dtype"][1])) == container._DTYPES
    assert f"(at most {snapshot._LONGEST_CHAIN} files" in WORDS and f"a chain {snapshot._LONGEST_CHAIN};" in WORDS
    assert views._VIEW.pattern in section("The folder") and container.FORMAT_VERSION == 1
    assert trash._NAME.fullmatch("001795324848~snapshots+main~00000001.h5")


def test_the_example_of_the_page_is_true():
    example = json.loads(re.search(r"```json\n(\{\n.*?)```", section("store.json"), re.S)[1])
    assert identity.fingerprint(example["spec"]) == example["fingerprint"]
    assert header.checksum(example) == example["xxh3"]
    lines = re.findall(r"^[0-9a-f]{8}: ((?:[0-9a-f]{4} ){8})", PAGE, re.M)
    data = bytes.fromhex("".join(lines))
    magic, version, length, _ = HEADER.unpack(data[:24])
    assert (magic, version) == (MAGIC, 1) and f"{length - len(data[24:])} more bytes" in WORDS
    assert xxhash.xxh3_128_hexdigest(b"") in PAGE
    assert xxhash.xxh3_128_digest(b"").hex() == xxhash.xxh3_128_hexdigest(b"")


def test_statements_on_text_and_numbers():
    for value, text in (
        (1.0, "1.0"),
        (1e-05, "1e-05"),
        (0.0001, "0.0001"),
        (1e15, "1000000000000000.0"),
        (1e16, "1e+16"),
    ):
        assert identity.canonical({"a": value}) == f'{{"a":{text}}}'.encode()
    assert identity.canonical({"é": '\x01\t"\\é'}) == '{"é":"\\u0001\\t\\"\\\\é"}'.encode()
    assert header.checksum({"a": "é😀", "xxh3": "?"}) == xxhash.xxh3_128_hexdigest(b'{"a":"\\u00e9\\ud83d\\ude00"}')
    names = ["\ue000", "\udcff", "😀", "\udc80\udcff", "z", "é"]
    by_rule = sorted(names, key=lambda t: [ord(c) for c in t])
    lines = Entries(np.asarray(names), np.zeros((6, 32), "u1"), np.zeros(6, "u1"), np.full(6, ""))
    assert lines.ids.tolist() == by_rule
    assert by_rule != sorted(names, key=lambda t: t.encode("utf-8", "surrogateescape"))
    assert "U+DC00 + `b`" in WORDS and b"\xe9".decode("utf-8", "surrogateescape") == "\udce9"


def test_statements_on_keys_and_weights():
    assert identity.digest_bytes(b"jpeg") == hashlib.sha256(b"jpeg").digest()
    said = hashlib.sha256(b'["featcache-pixels-1","RGB",[2,3],"uint8"]\n' + b"abcdef").digest()
    assert identity.digest_pixels("RGB", (2, 3), "uint8", b"abcdef") == said
    assert '"featcache-version-1"`, version, id] in UTF-8 with a space behind each comma' in WORDS
    said = hashlib.sha256('["featcache-version-1", "v1", "é"]'.encode()).digest()
    assert key_by_version("v1", "é") == said
    tensor = np.zeros((2, 1), "<f4")
    line = json.dumps(["a", "float32", [2, 1], hashlib.sha256(tensor.tobytes()).hexdigest()]).encode() + b"\n"
    said = "sha256:" + hashlib.sha256(b"featcache-tensors-1\n" + line).hexdigest()
    assert identity.digest_tensors([("a", "float32", (2, 1), tensor)]) == said


# -- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["shard", "snapshot"])
def test_files_are_laid_out_as_the_page_says(stores, kind):
    for path in files_of(stores, kind):
        data = path.read_bytes()
        with contextlib.closing(Container(path, "off")) as file, h5py.File(path, "r", locking=False) as plain:
            length = HEADER.unpack(data[:24])[2]
            assert file.block >= 4096 and file.block & (file.block - 1) == 0 and file.block == plain.userblock_size
            assert not any(data[24 + length : file.block])
            assert data[file.block : file.block + 9] == b"\x89HDF\r\n\x1a\n\x03"
            for name, region in file.regions.items():
                item = plain[name]
                plan = item.id.get_create_plist()
                assert plan.get_layout() == h5py.h5d.CONTIGUOUS and not plan.get_nfilters() and not len(item.attrs)
                assert item.dtype == np.dtype(region["dtype"]).newbyteorder("<") and list(item.shape) == region["shape"]
                assert isinstance(plain.get(name, getlink=True), h5py.HardLink)
                if region["bytes"]:
                    assert item.id.get_offset() == region["offset"]
                    assert region["bytes"] < 4096 or region["offset"] % 4096 == 0
            if kind == "snapshot":
                assert file.attributes["segment"] == ("base" if file.attributes["onto"] is None else "delta")
                assert path.name == f"{file.attributes['number']:08d}.h5"


def test_no_flipped_bit_outside_the_zeros_goes_unseen(stores, tmp_path):
    path = files_of(stores, "shard")[0]
    data = path.read_bytes()
    length = HEADER.unpack(data[:24])[2]
    with contextlib.closing(Container(path)) as file:
        block = file.block
    bad = tmp_path / "bad.h5"
    generator = np.random.default_rng(0)
    for place in [*generator.integers(0, 24 + length, 20), *generator.integers(block, len(data), 80)]:
        wrong = bytearray(data)
        wrong[place] ^= 1 << int(generator.integers(8))
        bad.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"damaged|newer|version|upgrade"):
            reader.check_file(bad, xxhash)
        with pytest.raises((DamagedStore, StoreTooNew)), contextlib.closing(Container(bad)) as file:
            file.verify()
    wrong = bytearray(data)
    wrong[block - 1] ^= 1  # the zeros: nothing depends on them
    bad.write_bytes(wrong)
    reader.check_file(bad, xxhash)
    with contextlib.closing(Container(bad)) as file:
        file.verify()


# -- a reader that knows only the page -------------------------------------------------------------------------------


def same(column, other):
    return column.dtype.kind == other.dtype.kind and np.array_equal(column, other, equal_nan=column.dtype.kind == "f")


def require_same(store, view="main", node=None, number=None):
    codes, ids, columns, roles, failed = reader.read_store(store.path, view, node, number, xxhash)
    state = store.snapshot(view, number)
    data = store.load(view, node=node, snapshot=number)
    assert codes.dtype == store.spec["dtype"] and codes.shape == data.X.shape
    assert codes.astype("float32").tobytes() == np.ascontiguousarray(data.X).tobytes()
    assert ids == data.ids.tolist() and roles == dict(state.roles)
    assert columns.keys() == data.columns.keys()
    assert [n for n in columns if not same(columns[n], data.columns[n])] == []
    lines = state.entries
    bad = lines.status == FAILED
    assert failed == dict(zip(lines.ids[bad].tolist(), lines.errors[bad].tolist(), strict=True))


def test_the_reader_is_short_and_alone():
    text = (REPOSITORY / "docs" / "read_store.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert not re.search(r"^\s*(from|import) featcache", text, re.M)


def test_the_reader_agrees_on_every_state_and_node(stores):
    for name in ("plain", "half"):
        store = FeatureStore.open(stores[name].path)
        for view in store.views:
            for number in store.snapshots(view):
                for node in store.nodes:
                    require_same(store, view, node, number)
            require_same(store, view, next(iter(store.nodes)))
    with pytest.raises(ValueError, match="damaged"):
        reader.read_store(stores["damaged"].path, xxhash=xxhash)


@pytest.mark.parametrize("seed", range(8))
def test_the_reader_agrees_on_random_histories(tmp_path, seed):
    """Commits that add, drop and overwrite lines, with columns that come, go and change their type."""
    generator = np.random.default_rng(seed)
    store = FeatureStore.create(tmp_path / "a.features", maker.spec_for("float32", ["flatten"]))
    store.append(maker.keys_for(range(60)), {"flatten": maker.rows_for(range(60), 3)})
    kinds = {
        "text": lambda n: np.asarray(["a", "", "é"])[n % 3],
        "int": lambda n: n - 3,
        "bool": lambda n: n % 2 == 1,
        "float": lambda n: np.where(n % 4, n / 3, np.nan),
    }
    for size in (58, 4, 1, 3, 1, 1, 30, 2, 1):
        columns = {c: kinds[str(generator.choice(list(kinds)))] for c in "abcd" if generator.random() < 0.7}
        store.commit(
            maker.lines_for(sorted(generator.choice(60, size, replace=False).tolist()), columns), keep_old=True
        )
        if generator.random() < 0.5:
            lines = store.snapshot().entries
            store.commit(lines.take(generator.random(len(lines)) < 0.97))
    assert any(store.snapshot("main", n).chain > 1 for n in store.snapshots())
    for number in store.snapshots():
        if store.snapshot("main", number).entries.stored.any():
            require_same(store, number=number)


def test_the_shard_whose_name_sorts_last_counts(tmp_path):
    store = FeatureStore.create(tmp_path / "a.features", maker.spec_for("float32", ["flatten"]))
    for salt in (1, 2):
        store.append(maker.keys_for(range(3)), {"flatten": maker.rows_for(range(3), 4, salt=salt)})
    lines = Entries(np.asarray(["a", "b"]), maker.keys_for([1, 2]), np.full(2, OK, "u1"), np.full(2, ""))
    store.commit(lines)
    first, _ = sorted((store.path / "shards").iterdir())
    assert np.array_equal(FeatureStore.open(store.path).load().X, maker.rows_for([1, 2], 4, salt=2))
    require_same(FeatureStore.open(store.path))
    first.rename(first.with_name("compact-" + first.name))
    assert np.array_equal(FeatureStore.open(store.path).load().X, maker.rows_for([1, 2], 4, salt=1))
    require_same(FeatureStore.open(store.path))


# -- versions --------------------------------------------------------------------------------------------------------


def make_newer(path):
    """Give a file the format version 2, every checksum as it should be."""
    if path.suffix == ".json":
        said = json.loads(path.read_text())
        said["format_version"] = 2
        said["xxh3"] = header.checksum(said)
        path.write_text(json.dumps(said))
        return
    data = bytearray(path.read_bytes())
    length = HEADER.unpack(data[:24])[2]
    text = bytes(data[24 : 24 + length]).replace(b'"format_version":1', b'"format_version":2', 1)
    data[: 24 + length] = HEADER.pack(MAGIC, 2, length, xxhash.xxh3_64_intdigest(text)) + text
    path.write_bytes(data)


@pytest.mark.parametrize("which", ["store.json", "shards", "snapshots"])
def test_a_newer_file_is_refused_with_what_to_install_and_left_alone(tmp_path, which):
    store = maker.make_plain(tmp_path / "a.features")
    place = store.path / which
    path = place if place.is_file() else sorted(place.rglob("*.h5"))[-1]
    make_newer(path)
    before = path.read_bytes()
    for act in (
        lambda: FeatureStore.open(store.path).load(),
        lambda: FeatureStore.open(store.path).gc(grace_days=0),
        lambda: FeatureStore.open(store.path).compact(),
    ):
        with pytest.raises(StoreTooNew, match=re.escape("pip install --upgrade featcache")):
            act()
    with pytest.raises(ValueError, match=re.escape("pip install --upgrade featcache")):
        reader.read_store(store.path, xxhash=xxhash)
    assert path.read_bytes() == before


def test_what_may_come_without_a_new_version_is_passed_over(tmp_path):
    store = maker.make_plain(tmp_path / "a.features")
    expected = store.load()
    path = store.path / "store.json"
    said = json.loads(path.read_text()) | {"later": {"x": [1]}}
    path.write_text(json.dumps(said | {"xxh3": header.checksum(said)}))
    for name in (
        "later/file",
        "shards/later.json",
        "snapshots/main/00000002.later",
        "index/later",
        "snapshots/x/later",
    ):
        (store.path / name).parent.mkdir(exist_ok=True)
        (store.path / name).write_bytes(b"?")
    data = FeatureStore.open(store.path).load()
    assert np.array_equal(data.X, expected.X) and FeatureStore.open(store.path).check(deep=True).ok
    require_same(FeatureStore.open(store.path))


def test_more_datasets_and_attributes_are_passed_over(tmp_path, monkeypatch):
    """As a later featcache may write them."""
    real = writing.write_container

    def later(*place, attributes, datasets, **rest):
        extra = {"later/x": np.arange(3, dtype="<i8")}
        return real(*place, attributes={**attributes, "later": [1]}, datasets={**datasets, **extra}, **rest)

    for module in (shards, snapshot):
        monkeypatch.setattr(module, "write_container", later)
    store = FeatureStore.open(maker.make_plain(tmp_path / "a.features").path)
    assert all("later/x" in shard and "later" in shard.attributes for shard in store.shards)
    assert store.check(deep=True).ok
    require_same(store)
