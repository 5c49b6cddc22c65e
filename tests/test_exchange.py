"""Out and in: what is exported comes back whole, files from elsewhere are understood, hostile ones refused."""

import errno
import inspect
import json
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import fails, ok
from test_store import entries_for, keys_for, rows_for

import featcache as fc
from featcache.cli.commands import app
from featcache.errors import ExchangeError, HandoffError
from featcache.exchange import parts, reading
from featcache.files import Disk
from featcache.heads import HEADS
from featcache.store import FeatureStore

SUFFIXES = (".h5", ".hdf5", ".npz", ".parquet")
SPEC = {"version": 1, "preprocess": {"crop": 224}, "dtype": "float16"}
X = np.random.default_rng(0).standard_normal((40, 6)).astype("f4")
Y = np.asarray([f"c{i % 2}" for i in range(40)])


@pytest.fixture
def store(tmp_path):
    made = FeatureStore.create(tmp_path / "a.features", SPEC, locator={"kind": "random", "value": "0"})
    for part in (range(20, 60), range(20)):
        made.append(keys_for(part), {"flatten": rows_for(part)})
    made.commit(entries_for(range(60)), roles={"label": "label"})
    yield made
    store = FeatureStore.open(made.path)
    assert store.check().ok


def same(a, b):
    assert a.X.dtype == b.X.dtype and a.X.shape == b.X.shape and a.X.tobytes() == b.X.tobytes()
    for name in ("y", "ids", "groups", "splits"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None) and (left is None or left.tolist() == right.tolist()), name
    for name in ("spec", "locator", "node", "fingerprint", "name"):
        assert getattr(a, name) == getattr(b, name), name
    assert list(a.columns) == list(b.columns)
    for name, column in a.columns.items():
        assert column.dtype.kind == b.columns[name].dtype.kind
        assert np.array_equal(column, b.columns[name], equal_nan=column.dtype.kind == "f"), name


def refused(match, action, *words, **options):
    with pytest.raises(ExchangeError, match=match) as caught:
        action(*words, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_store_comes_back_as_load_gives_it(store, tmp_path, suffix):
    path = fc.export(store.path, tmp_path / f"out{suffix}")
    same(store.load(), fc.read_features(path))
    assert fc.export(store, tmp_path / f"again{suffix}").read_bytes() == path.read_bytes()
    mapped = store.load(in_memory=False)
    assert mapped.X.dtype == "float16"
    same(mapped, fc.read_features(fc.export(mapped, tmp_path / f"mapped{suffix}")))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", ">f4"])
def test_everything_in_a_set_comes_back(tmp_path, suffix, dtype):
    values = np.random.default_rng(1).integers(0, 200, (7, 2, 3)).astype(dtype)
    data = fc.FeatureSet(
        values, ["a", "", "ü", "c", "d", "e", "f"], [f"dir/ü{i}\udcff" for i in range(7)], groups=list("aabbccd"),
        splits=["train"] * 7, spec={"x": [1, None, "é"]}, locator={"kind": "file"}, node="layer3", fingerprint="0" * 64,
        columns={
            "label": np.arange(7), "a/b": np.asarray(["x\0y"] * 7), "..": np.arange(7) % 2 == 0, ".": np.arange(7.0),
            "": np.full(7, np.nan, "f4"), "%": np.arange(7, dtype="u2"), "columns/label": np.asarray(list("abcdefg")),
        },
        name='"odd\0\udcff',
    )  # fmt: skip
    back = fc.read_features(fc.export(data, tmp_path / f"x{suffix}"))
    if dtype == ">f4":  # files are little-endian
        assert back.X.dtype == "float32" and np.array_equal(back.X, values)
        data, back = (replace(d, X=np.zeros((7, 1))) for d in (data, back))
    same(data, back)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_set_without_rows_or_extras(tmp_path, suffix):
    for number, data in enumerate((fc.FeatureSet(np.zeros((0, 4), "f4")), fc.FeatureSet(X))):
        same(data, fc.read_features(fc.export(data, tmp_path / f"{number}{suffix}")))


TEXT = st.text(st.characters(exclude_categories=()), max_size=8)  # all of Unicode, lone surrogates and NUL included


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=6, unique_by=lambda t: t.rstrip("\0")), st.sampled_from(SUFFIXES), st.data())
def test_any_text_comes_back(tmp_path_factory, ids, suffix, more):
    n = len(ids)
    labels = more.draw(st.lists(TEXT, min_size=n, max_size=n))
    name = more.draw(TEXT)
    data = fc.FeatureSet(X[:n], labels, ids, columns={name: np.asarray(labels)}, name=name)
    same(data, fc.read_features(fc.export(data, tmp_path_factory.mktemp("t") / f"x{suffix}")))


def test_names_of_undecodable_files_are_their_bytes_in_hdf5(tmp_path):
    data = fc.FeatureSet(X[:2], ids=["caf\udce9.jpg", "ü.jpg"])
    with h5py.File(fc.export(data, tmp_path / "x.h5")) as file:
        assert file["ids"][:].tolist() == [b"caf\xe9.jpg", "ü.jpg".encode()]


def test_other_programs_read_what_is_written(store, tmp_path):
    data = store.load()
    with h5py.File(fc.export(store, tmp_path / "x.h5")) as file:
        assert file["features"].dtype == "float16" and np.array_equal(file["features"][:], data.X)
        assert file["features"].id.get_offset() % 4096 == 0 and file["features"].chunks is None
        assert file["labels"].asstr()[:].tolist() == data.y.tolist()
        assert file["columns/label"].asstr()[0] == data.y[0]
        assert json.loads(file.attrs["spec"]) == SPEC and file.attrs["fingerprint"].decode() == store.fingerprint
        assert file.attrs["node"] == b"flatten" and json.loads(file.attrs["locator"]) == store.locator
    with np.load(fc.export(store, tmp_path / "x.npz"), allow_pickle=False) as file:
        assert file["X"].dtype == "float16" and np.array_equal(file["X"], data.X)
        assert file["y"].tolist() == data.y.tolist() and json.loads(str(file["spec"])) == SPEC
        assert all(not file[name].dtype.hasobject for name in file.files)
    table = pq.read_table(fc.export(store, tmp_path / "x.parquet"))
    assert table["id"].to_pylist() == data.ids.tolist() and table["label"].to_pylist() == data.y.tolist()
    assert table.schema.field("features").type.list_size == 8
    assert json.loads(table.schema.metadata[b"spec"]) == SPEC
    assert np.array_equal(np.stack(table["features"].to_numpy()), data.X.astype("f2"))


def test_a_head_of_an_exported_store_still_knows_its_spec(store, tmp_path):
    fitted = fc.fit("centroid", fc.read_features(fc.export(store, tmp_path / "x.npz")))
    assert fitted.spec == SPEC and fitted.predict(store.load()).shape == (60,)


# ---------------------------------------------------------------------------------------------- files from elsewhere


def make_file(path, **arrays):
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({k: list(v) if np.ndim(v) == 2 else v for k, v in arrays.items()}), path)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                array = np.asarray(array)
                text = array.dtype.kind == "U"
                file.create_dataset(name, data=array.astype(object) if text else array, compression="gzip")
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("matrix", ["features", "X", "embeddings", "whatever"])
def test_usual_names_are_found(tmp_path, suffix, matrix):
    path = make_file(tmp_path / f"x{suffix}", **{matrix: X, "target": Y, "filenames": [f"{i}.png" for i in range(40)]})
    data = fc.read_features(path)
    assert data.X.dtype == "float32" and np.array_equal(data.X, X) and data.y.tolist() == Y.tolist()
    assert data.ids[3] == "3.png" and data.spec is None and data.fingerprint == "" and data.name == path.name


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8", "uint8", "int64", ">f4"])
@pytest.mark.parametrize("suffix", (*SUFFIXES, ".npy"))
def test_numbers_of_all_kinds_become_float32(tmp_path, suffix, dtype):
    values = np.random.default_rng(0).integers(0, 100, (5, 3)).astype(dtype)
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, np.asfortranarray(values))
    else:
        make_file(path, features=values.astype("f4") if suffix == ".parquet" and dtype == ">f4" else values, y=range(5))
    data = fc.read_features(path)
    assert data.X.dtype == "float32" and np.array_equal(data.X, values) and data.ids.tolist() == list("01234")
    assert data.y is None if suffix == ".npy" else data.y.tolist() == list("01234")


def test_names_deep_in_a_file_and_columns_of_one(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["run/1/Features"] = X
        file["run/1/label"] = np.arange(40)[:, None] % 3
        file["run/again"] = file["run"]  # a group in itself
        file["run/self"] = h5py.SoftLink("/run/1")
    data = fc.read_features(tmp_path / "x.h5")
    assert np.array_equal(data.X, X) and data.classes.tolist() == ["0", "1", "2"]


@pytest.mark.parametrize("form", ["array", "series", "name", "npy", "txt", "csv", "header", "path"])
def test_labels_are_given_in_many_ways(tmp_path, form):
    path = make_file(tmp_path / "x.npz", features=X, art=Y)
    text = tmp_path / "labels.txt"
    text.write_text("\n".join(Y) + "\n", encoding="utf-8-sig")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["kind"] * (form == "header") + [f'"{y}"' for y in Y]) + "\n")
    np.save(tmp_path / "labels.npy", Y)
    labels = {
        "array": Y.tolist(), "series": pa.array(Y), "name": "art", "npy": str(tmp_path / "labels.npy"),
        "txt": str(text), "csv": str(table), "header": table, "path": text,
    }[form]  # fmt: skip
    assert fc.read_features(path, labels=labels).y.tolist() == Y.tolist()


def test_columns_of_an_exported_file_by_their_names(tmp_path):
    data = fc.FeatureSet(X, Y, columns={"art": Y[::-1], "fall": np.arange(40) // 4})
    for suffix in SUFFIXES:
        back = fc.read_features(fc.export(data, tmp_path / f"x{suffix}"), labels="art", groups="fall")
        assert back.y.tolist() == Y[::-1].tolist() and back.groups[5] == "1" and back.ids.tolist() == data.ids.tolist()


def test_text_with_gaps_and_without_utf8(tmp_path):
    table = pa.table({"features": pa.array(X[:3].tolist(), pa.list_(pa.float32())), "label": ["a", None, "b"],
                      "group": pa.array([1, None, 2]), "id": pa.array([b"\xff", b"b", b"c"])})  # fmt: skip
    pq.write_table(table, tmp_path / "x.parquet")
    data = fc.read_features(tmp_path / "x.parquet")
    assert data.y.tolist() == ["a", "", "b"] and data.groups.tolist() == ["1", "", "2"] and data.ids[0] == "\udcff"
    np.savez(tmp_path / "x.npz", X=X[:2], labels=np.asarray([b"a", "ü".encode()]))
    assert fc.read_features(tmp_path / "x.npz").y.tolist() == ["a", "ü"]


@pytest.mark.parametrize("head", sorted(HEADS))
def test_every_head_fits_on_a_file_from_elsewhere(tmp_path, head):
    data = fc.read_features(make_file(tmp_path / "x.h5", embeddings=X.astype("f8") + 3 * (Y == "c1")[:, None], y=Y))
    fitted = fc.fit(head, data, cv=2)
    assert (fitted.predict(data) == Y).mean() > 0.9 and fitted.spec is None
    with pytest.raises(HandoffError, match="without a spec"):
        fc.predict(fitted, write_images(tmp_path / "images", 2))


@pytest.mark.parametrize("suffix", [".npy", ".h5"])
def test_a_large_matrix_is_mapped(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(reading, "machine_memory", lambda: 2000)
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, X.astype("f2"))
    else:
        same(fc.FeatureSet(X, Y), fc.read_features(fc.export(fc.FeatureSet(X, Y), path)))
        with h5py.File(path, "a") as file:
            del file.attrs["format"]
    data = fc.read_features(path)
    assert isinstance(data.X, np.memmap) and not data.X.flags.writeable
    assert np.array_equal(data.X, X.astype(data.X.dtype))
    monkeypatch.setattr(reading, "machine_memory", lambda: 900)
    refused("fits 900 bytes of memory", fc.read_features, make_file(tmp_path / "x.npz", X=X))


# -------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arrays", "options", "said"),
    [
        ({"features": X, "x": X}, {}, "got 2: 'features'.*'x'.*key="),
        ({"one": X, "two": X}, {}, "got 2: 'one'.*'two'.*key="),
        ({"one": X[:, 0]}, {}, "a matrix of numbers.*'one'"),
        ({"X": X}, {"key": "absent"}, "key: expected one of 'X', got 'absent'"),
        ({"X": X, "y": Y}, {"key": "y"}, "'y': expected numbers of shape"),
        ({"X": X, "y": Y[:5]}, {}, "labels: expected 40 values.*'y'"),
        ({"X": X, "ids": ["a"] * 40}, {}, "different names, got repeats"),
        ({"X": X}, {"labels": ["a"]}, "labels: expected 40 values"),
        ({"X": X}, {"labels": [[1], [1, 2]]}, "labels: expected 40 values"),
        ({"X": X}, {"labels": "absent"}, "labels: expected a name among 'X'"),
        ({"X": X}, {"groups": "X"}, "groups: expected one value per row"),
        (
            {"X": np.where(abs(X) == abs(X[7, 2]), np.nan, X), "id": [f"i{i}" for i in range(40)]},
            {},
            r"row 7 \(id 'i7'\)",
        ),
        ({"X": np.where(abs(X) == abs(X[7, 2]), 1e300, X.astype(float))}, {}, r"fit float32.* row 7 \(id '7'\)"),
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", [".h5", ".npz", ".parquet"])
def test_each_mistake_in_a_file_gets_one_line(tmp_path, suffix, arrays, options, said):
    if suffix == ".parquet" and len({len(a) for a in arrays.values()}) > 1:
        pytest.skip("columns of one length only")
    path = make_file(tmp_path / f"x{suffix}", **arrays)
    assert str(path) in refused(said, fc.read_features, path, **options)


def test_each_mistake_in_a_list_gets_one_line(tmp_path):
    path = make_file(tmp_path / "x.npz", X=X)
    for name, text, said in (
        ("short.txt", b"a\nb\n", "expected 40 labels, one a line, got 2"),
        ("wide.csv", b"a,b\n" * 40, "row 1: expected one column, got 2"),
        ("bytes.txt", b"a\n\xff\n", "line 2: expected UTF-8, got byte 0xff"),
        ("no.npy", b"nothing", "cannot be read"),
    ):
        (tmp_path / name).write_bytes(text)
        refused(said, fc.read_features, path, labels=tmp_path / name)


def test_wrong_files_get_one_line(store, tmp_path):
    refused("got a folder; a store", fc.read_features, store.path)
    refused("found none", fc.read_features, tmp_path / "absent.h5")
    refused("got '.txt'", fc.read_features, tmp_path / "x.txt")
    for suffix in (*SUFFIXES, ".npy"):
        (tmp_path / f"x{suffix}").write_bytes(b"no such thing")
        refused("cannot be read", fc.read_features, tmp_path / f"x{suffix}")
        (tmp_path / f"y{suffix}").write_bytes(b"")
        refused("y" + suffix, fc.read_features, tmp_path / f"y{suffix}")


def test_pyarrow_that_is_missing_is_named(tmp_path, monkeypatch):
    path = make_file(tmp_path / "x.parquet", features=X)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.delattr(pa, "parquet", raising=False)
    refused(r"pip install 'featcache\[parquet\]'", fc.read_features, path)
    refused(r"pip install 'featcache\[parquet\]'", fc.export, fc.FeatureSet(X), tmp_path / "y.parquet")


def test_export_refuses_in_one_line(store, tmp_path):
    data = fc.FeatureSet(X, Y)
    (tmp_path / "folder.h5").mkdir()
    refused(".h5 .*npz or .parquet", fc.export, data, tmp_path / "x.csv")
    refused("got a folder", fc.export, data, tmp_path / "folder.h5")
    refused("make it first", fc.export, data, tmp_path / "absent" / "x.h5")
    refused("inside a store", fc.export, data, store.path / "x.h5")
    refused("inside a store", fc.export, data, store.path / "shards" / "x.h5", overwrite=True)
    refused("node='a': expected a store", fc.export, data, tmp_path / "x.h5", node="a")
    refused("got int", fc.export, 3, tmp_path / "x.h5")
    refused("row 0", fc.export, fc.FeatureSet(np.full((1, 2), np.nan)), tmp_path / "x.h5")
    refused("got object", fc.export, fc.FeatureSet(X[:1], columns={"a": [None]}), tmp_path / "x.h5")
    refused("JSON", fc.export, fc.FeatureSet(X, spec={"a": object()}), tmp_path / "x.h5")
    refused("X: expected codes", fc.export, fc.FeatureSet(np.zeros((2, 0))), tmp_path / "x.h5")
    with pytest.raises(fc.FeatcacheError, match="no column 'absent'"):
        fc.export(store, tmp_path / "x.h5", label="absent")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.features", "folder.h5"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_existing_file_is_replaced_only_on_request(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_text("precious")
    refused("exists already", fc.export, fc.FeatureSet(X), path)
    assert path.read_text() == "precious"
    fc.export(fc.FeatureSet(X, Y), path, overwrite=True)
    same(fc.FeatureSet(X, Y), fc.read_features(path))
    same(fc.FeatureSet(X[:3]), fc.read_features(fc.export(fc.FeatureSet(X[:3]), path, overwrite=True)))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


class Bad(Disk):
    """A disk on which one call fails, or that keeps something else than was written."""

    def __init__(self, call):
        self.call = call

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "call"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return object.__getattribute__(self, name)

    def write(self, path, data):
        content = bytearray(b"".join(data))
        if self.call == "flip":
            content[content.find(X[:, :1].tobytes()[:4]) + 1] ^= 16
        super().write(path, bytes(content[:-9] if self.call == "cut" else content))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("call", ["write", "fsync", "link", "rename", "flip", "cut"])
def test_a_bad_disk_leaves_nothing_and_harms_nothing(tmp_path, suffix, overwrite, call):
    path = tmp_path / f"x{suffix}"
    if overwrite:
        path.write_text("precious")
    if call == ("link" if overwrite else "rename"):
        pytest.skip("not called")
    said = "did not keep" if call in ("flip", "cut") else "No space left"
    refused(said, fc.export, fc.FeatureSet(X), path, overwrite=overwrite, disk=Bad(call))
    assert [p.read_text() for p in tmp_path.iterdir()] == ["precious"] * overwrite


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_after_the_export_is_noticed(tmp_path, suffix):
    path = fc.export(fc.FeatureSet(X, Y), tmp_path / f"x{suffix}")
    good = path.read_bytes()
    for place in (X[20:21].tobytes()[:4], b"c1"):
        bad = bytearray(good)
        at = bad.find(place)
        at = at if at >= 0 else bad.find("c1".encode("utf-32-le"))
        bad[at] ^= 1
        path.write_bytes(bad)
        refused("damaged|cannot be read", fc.read_features, path)
    for length in (10, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        refused("x" + suffix, fc.read_features, path)


def test_a_file_of_a_newer_featcache_says_so(tmp_path):
    path = fc.export(fc.FeatureSet(X), tmp_path / "x.h5")
    with h5py.File(path, "a") as file:
        file.attrs["format"] = np.bytes_("featcache features 2")
    refused("install a newer featcache", fc.read_features, path)
    assert np.array_equal(fc.read_features(path, key="features").X, X)


# --------------------------------------------------------------------------------------------------- hostile files


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", X=np.asarray([[Trap()]], dtype=object))
    np.savez(tmp_path / "y.npz", X=X, y=np.asarray([Trap()] * 40, dtype=object))
    np.save(tmp_path / "x.npy", np.asarray([[Trap()]], dtype=object))
    (tmp_path / "p.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("x.npz", "y.npz", "x.npy"):
        refused("holds Python objects", fc.read_features, tmp_path / name)
    refused("cannot be read", fc.read_features, tmp_path / "p.npy")
    assert np.array_equal(fc.read_features(tmp_path / "y.npz", labels=Y).X, X)


def hostile(path, kind):
    other = path.with_name("secret.h5")
    with h5py.File(other, "w") as file:
        file["features"] = X
    with h5py.File(path, "w") as file:
        if kind == "external link":
            file["features"] = h5py.ExternalLink(str(other), "features")
        elif kind == "linked group":
            file["sub"] = h5py.ExternalLink(str(other), "/")
            file["features"] = h5py.SoftLink("/sub/features")
        elif kind == "external data":
            file.create_dataset("features", (40, 6), "f4", external=[(str(other), 0, h5py.h5f.UNLIMITED)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((40, 6), "f4")
            layout[:] = h5py.VirtualSource(str(other), "features", (40, 6))
            file.create_virtual_dataset("features", layout)
        elif kind == "filter":
            file.create_dataset("features", data=X.astype("i4"), scaleoffset=True, chunks=(40, 6))
        elif kind == "huge":
            file.create_dataset("features", (10**12, 10**3), "f4", chunks=(1, 1000))
        elif kind == "huge chunk":
            file.create_dataset("features", (10**4, 10**5), "f4", chunks=(10**4, 10**5), compression="gzip")
        elif kind == "unwritten":
            file.create_dataset("features", (10**12, 10**3), "f4")
        elif kind == "object":
            file["features"] = np.zeros((3, 3), [("a", "f4")])


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("external link", "link to another file"), ("linked group", "link to another place"),
        ("external data", "data in another file"), ("virtual", "virtual dataset"), ("filter", "by filter 6"),
        ("huge", "hostile"), ("huge chunk", "hostile"), ("unwritten", "never written"), ("object", "numbers or text"),
    ],
)  # fmt: skip
def test_hostile_hdf5_is_refused(tmp_path, monkeypatch, kind, said):
    path = tmp_path / "x.h5"
    hostile(path, kind)
    (tmp_path / "secret.h5").unlink()
    refused(said, fc.read_features, path)
    refused(said, fc.read_features, path, key="features")
    with h5py.File(path, "a") as file:
        file["mine"] = X
    assert np.array_equal(fc.read_features(path, key="mine").X, X)


def test_no_other_file_is_opened_for_a_hostile_one(tmp_path):
    code = (
        "import sys, featcache as fc, h5py\n"
        "try: fc.read_features(sys.argv[1])\n"
        "except fc.FeatcacheError: pass\n"
    )  # fmt: skip
    for kind in ("external link", "linked group", "external data", "virtual"):
        hostile(tmp_path / "x.h5", kind)
        run = ["strace", "-f", "-e", "trace=open,openat", sys.executable, "-c", code, str(tmp_path / "x.h5")]
        try:
            done = subprocess.run(run, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("no strace here")
        assert "x.h5" in done.stderr and "secret.h5" not in done.stderr, kind


def test_one_long_text_among_many_is_read_without_padding(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_ALWAYS_ALLOWED", 1 << 16)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["X"] = np.zeros((5000, 1), "f4")
        file.create_dataset("y", data=["a"] * 4999 + ["b" * 100_000], dtype=h5py.string_dtype())
    assert fc.read_features(tmp_path / "x.h5").y.nbytes <= 1 << 17


def npy_header(shape, dtype="<f4"):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def test_absurd_shapes_are_refused_before_anything_is_allocated(tmp_path):
    for number, shape in enumerate(((10**15, 4), (-1, -4), (1 << 62, 1 << 62))):
        (tmp_path / "x.npy").write_bytes(npy_header(shape) + bytes(16))
        refused("x.npy", fc.read_features, tmp_path / "x.npy")
        with zipfile.ZipFile(tmp_path / f"{number}.npz", "w") as archive:
            archive.writestr("X.npy", npy_header(shape) + bytes(16))
        refused(r"\d.npz", fc.read_features, tmp_path / f"{number}.npz")


def test_a_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("X.npy", "w") as entry:
        entry.write(npy_header((75_000, 1000)))
        for _ in range(300):
            entry.write(bytes(10**6))
    assert (tmp_path / "x.npz").stat().st_size < 10**6
    refused("hostile", fc.read_features, tmp_path / "x.npz")


def test_lists_of_different_lengths_in_parquet(tmp_path):
    for rows in ([[1.0, 2.0], [1.0]], [[1.0, 2.0], None], [[1.0, 2.0], [1.0, None]]):
        pq.write_table(pa.table({"features": pa.array(rows, pa.list_(pa.float32()))}), tmp_path / "x.parquet")
        refused("expected 2 numbers in each row", fc.read_features, tmp_path / "x.parquet")


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SUFFIXES), st.integers(0, 2**32), st.integers(1, 255))
def test_a_flipped_byte_is_an_error_or_harmless(tmp_path_factory, suffix, place, flip):
    data = fc.FeatureSet(X[:8], Y[:8], columns={"a": Y[:8]}, spec=SPEC, name="n")
    path = fc.export(data, tmp_path_factory.mktemp("t") / f"x{suffix}")
    bad = bytearray(path.read_bytes())
    bad[place % len(bad)] ^= flip
    path.write_bytes(bad)
    try:
        back = fc.read_features(path)
    except ExchangeError as error:
        assert "\n" not in str(error)
    else:  # padding, dates, provenance texts: never codes or labels
        assert np.array_equal(back.X, data.X) and back.ids.tolist() == data.ids.tolist()


# ------------------------------------------------------------------------------------------- larger than memory, CLI


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize(("suffix", "limit"), [(".h5", 64), (".npz", 64), (".parquet", 192)])
def test_a_mapped_set_is_exported_in_bounded_memory(tmp_path, suffix, limit):
    store = FeatureStore.create(tmp_path / "big.features", {"dtype": "float32"})
    keys = np.random.default_rng(0).integers(0, 256, (6000, 32), dtype="u1")
    for start in range(0, 6000, 2000):
        store.append(keys[start : start + 2000], {"n": np.random.default_rng(start).random((2000, 16384), dtype="f4")})
    entries = entries_for(range(6000))
    store.commit(type(entries)(entries.ids, keys, entries.status, entries.errors))
    code = (
        "import sys, resource, re, featcache as fc, h5py, pyarrow.parquet\n"
        "from featcache.store import FeatureStore\n"
        "data = FeatureStore.open(sys.argv[1]).load(in_memory=False)\n"
        "held = int(re.search(r'VmData:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        # what is not a map of a file counts: codes take 393 MB, a block 8 MiB, a row group of parquet 16 MiB
        # several times over
        "resource.setrlimit(resource.RLIMIT_DATA, (held + int(sys.argv[3]) * 2**20,) * 2)\n"
        "fc.export(data, sys.argv[2])\n"
    )
    run = [sys.executable, "-c", code, str(store.path), str(tmp_path / f"x{suffix}"), str(limit)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert fc.read_features(tmp_path / f"x{suffix}").X.tobytes() == store.load().X.tobytes()
    store = FeatureStore.open(store.path)
    assert store.check().ok


def test_the_command_line(capsys, store, tmp_path):
    out, head = tmp_path / "x.h5", tmp_path / "head"
    said = json.loads(ok(capsys, "export", store.path, out, "--json"))
    assert said == {"path": str(out), "bytes": out.stat().st_size}
    assert "exists already" in fails(capsys, 1, "export", store.path, out)
    assert str(out) in ok(capsys, "export", store.path, out, "--overwrite")
    assert json.loads(ok(capsys, "fit", out, "-o", head, "--head", "knn", "--json"))["fingerprint"] == store.fingerprint
    assert "npz" in fails(capsys, 1, "export", store.path, tmp_path / "x.csv")
    assert "knn" in ok(capsys, "compare", out, store.path, "--heads", "knn", "--seeds", 2)


def test_the_command_line_on_files_from_elsewhere(capsys, store, tmp_path):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "y.txt").write_text("\n".join(Y))
    path = make_file(tmp_path / "x.npz", one=X, two=X, art=Y)
    head = tmp_path / "head"
    ok(capsys, "fit", tmp_path / "x.npy", "--labels", tmp_path / "y.txt", "-o", head, "--head", "knn")
    assert "without a spec" in fails(capsys, 1, "predict", head, write_images(tmp_path / "images", 2))
    assert "key=" in fails(capsys, 1, "fit", path, "-o", head)
    ok(capsys, "fit", path, "--key", "one", "--label", "art", "-o", head, "--head", "knn")
    ok(capsys, "compare", path, "--key", "two", "--labels", "art", "--heads", "knn", "--seeds", 2)
    assert "no row has a label" in fails(capsys, 1, "fit", tmp_path / "x.npy", "-o", head)
    assert "--key" in fails(capsys, 2, "fit", store.path, "--key", "x", "-o", head)
    assert "--labels" in fails(capsys, 2, "compare", store.path, "--labels", "x")
    assert "--view" in fails(capsys, 2, "fit", path, "--view", "x", "-o", head)
    assert "--node" in fails(capsys, 2, "fit", path, "--node", "x", "-o", head)
    assert "--label" in fails(capsys, 2, "fit", path, "--label", "art", "--labels", "art", "-o", head)
    assert "absent.npz" in fails(capsys, 1, "compare", tmp_path / "absent.npz")


def test_options_have_the_names_and_defaults_of_the_library():
    command = next(c.callback for c in app.registered_commands if c.callback.__name__ == "export")
    options, library = inspect.signature(command).parameters, inspect.signature(fc.export).parameters
    shared = set(options) & set(library)
    of_models = {"images", "check", "weights", "licence", "description", "intended_use"}
    assert shared == {"data", "out", "view", "node", "label", "group", "split", "overwrite"} | of_models
    assert all(options[name].default == library[name].default for name in shared)


def test_a_store_json_of_another_program_is_no_store(tmp_path):
    (tmp_path / "store.json").write_text("{}")
    assert fc.export(fc.FeatureSet(np.eye(3, dtype="f4")), tmp_path / "x.npz").is_file()
