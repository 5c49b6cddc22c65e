"""Columns, names and numbers that are unusual: what a commit acknowledges can be read; the rest is refused before."""

import numpy as np
import pytest
from test_store import SPEC, entries_for, fill, keys_for, rows_for

from featcache import export, read_features
from featcache.errors import ExchangeError, StoreError
from featcache.features import FeatureSet, texts_of
from featcache.store import FAILED, OK, Entries, FeatureStore
from featcache.store.container import Container
from featcache.store.segment import Segment
from featcache.store.texts import LONGEST_ID, Texts, pack_text, unpack_text


@pytest.fixture
def store(tmp_path):
    made = FeatureStore.create(tmp_path / "a.features", SPEC)
    yield made
    assert FeatureStore.open(made.path).check(deep=True).ok
    for state in made.snapshots():
        assert len(FeatureStore.open(made.path).snapshot(number=state).entries) >= 0


def lines(n, columns, prefix="i"):
    """n lines that share one row: long columns cost little codes."""
    ids = np.char.add(prefix, np.char.zfill(np.arange(n).astype(np.str_), 6))
    return Entries(ids, np.repeat(keys_for([1]), n, axis=0), np.full(n, OK, "u1"), np.full(n, ""), columns)


def files_of(store):
    return sorted(p for p in store.path.rglob("*") if p.is_file() and "index" not in p.parts)


def refused(store, match, action):
    before = files_of(store)
    with pytest.raises(StoreError, match=match) as caught:
        action()
    assert type(caught.value) is StoreError and "\n" not in str(caught.value)
    assert before == files_of(store)


# -- long texts ----------------------------------------------------------------------------------------------------


def test_one_long_caption_among_many_lines_is_read_back_without_its_padding(store):
    store.append(keys_for([1]), {"flatten": rows_for([1])})
    n = 60_000
    captions = np.full(n, "a", dtype=object)
    captions[7] = "ä" * 5000
    wide = np.full(n, "a", dtype="U500")
    wide[9] = "b" * 500
    store.commit(lines(n, {"caption": captions, "wide": wide}), roles={"label": "caption"})
    data = FeatureStore.open(store.path).load()
    assert data.columns["caption"].dtype == object and data.columns["wide"].dtype == object
    assert data.columns["caption"].tolist() == captions.tolist() and data.columns["wide"].tolist() == wide.tolist()
    assert data.y.dtype == object and data.classes.tolist() == ["a", "ä" * 5000]
    assert store.dataset().classes.tolist() == ["a", "ä" * 5000] and store.dataset().y.sum() == 1
    assert store.info()["classes"]["a"] == n - 1
    assert len(data.select([7, 8])) == 2 and not hasattr(data.y[7], "dtype")


def test_distinct_captions_of_which_one_is_long(store):
    store.append(keys_for([1]), {"flatten": rows_for([1])})
    captions = np.asarray([f"caption {i}" for i in range(5000)], dtype=object)
    captions[17] = "x" * 10_000
    store.commit(lines(5000, {"caption": captions}))
    column = FeatureStore.open(store.path).load().columns["caption"]
    assert column.dtype == object and column.tolist() == captions.tolist()
    _, some = store.snapshot().look_up(np.asarray(["i000017", "i000003"]))
    assert some.columns["caption"].tolist() == [captions[17], captions[3]]


def test_a_delta_with_a_long_text_pads_nothing(store):
    store.append(keys_for([1]), {"flatten": rows_for([1])})
    n = 20_000
    base = lines(n, {"caption": np.full(n, "short"), "flag": np.ones(n, bool)})
    first = store.commit(base, roles={"label": "caption"})
    long = base.take(np.arange(3)).with_columns(
        {"caption": np.asarray(["y" * 9000, "", "short"]), "flag": np.ones(3, bool)}
    )
    second = store.commit(long, keep_old=True)
    assert second.chain == 1
    column = FeatureStore.open(store.path).load().columns["caption"]
    assert column.dtype == object and column[0] == "y" * 9000 and column[1:4].tolist() == ["", "short", "short"]
    found = store.diff(first.name, second.name)
    assert found["columns"] == {"caption": 2} and len(found["changed"]) == 0
    assert [r["id"] for r in found["relabelled"]] == ["i000000", "i000001"]
    assert store.commit(second.entries).number == second.number, "nothing has changed"


def test_reasons_of_failures_may_be_long(store):
    n = 20_000
    entries = lines(n, {})
    errors = np.full(n, "", dtype=object)
    errors[3] = "z" * 6000
    status = np.where(errors == "", OK, FAILED).astype("u1")
    store.append(keys_for([1]), {"flatten": rows_for([1])})
    store.commit(Entries(entries.ids, entries.keys, status, errors))
    assert store.info()["failed"] == [{"id": "i000003", "reason": "z" * 6000}]


def test_text_of_objects_is_merged_compared_and_packed_as_text_of_fixed_width():
    a = entries_for(range(4)).with_columns({"label": np.asarray(["a", "b", "", "ü"], dtype=object)})
    b = entries_for(range(4)).with_columns({"label": np.asarray(["a", "b", "", "ü"])})
    assert a.same_lines(b).all() and b.same_lines(a).all()
    assert a.same_lines(b.with_columns({})).tolist() == [False, False, True, False]
    more = a.merged(entries_for([9]).with_columns({"n": np.asarray([3])}))
    assert more.columns["label"].tolist() == ["a", "b", "", "ü", ""] and np.isnan(more.columns["n"][:4]).all()
    mixed = a.merged(entries_for([9]).with_columns({"label": np.asarray([3])}))
    assert mixed.columns["label"].tolist() == ["a", "b", "", "ü", "3"]
    for x, y in zip(pack_text(a.columns["label"]), pack_text(b.columns["label"]), strict=True):
        assert np.array_equal(x, y)


def test_texts_take_fixed_width_unless_that_is_absurd():
    assert texts_of(["a" * 30] * 100).dtype.kind == "U" and texts_of([]).shape == (0,)
    odd = texts_of(["a"] * 20_000 + ["b" * 5000, "c\0"])
    assert odd.dtype == object and odd[-1] == "c", "as NumPy's own text, no NUL at the end"
    packed = Texts(*pack_text(odd))
    assert packed.array().dtype == object and packed.array().tolist() == odd.tolist()
    assert unpack_text(*pack_text(odd[:3]), fixed=True).dtype.kind == "U"


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".h5"])
def test_long_texts_are_exported_where_the_format_can_hold_them(tmp_path, suffix):
    pytest.importorskip("pyarrow")
    n = 20_000
    captions = np.full(n, "a", dtype=object)
    captions[7] = "b" * 5000
    data = FeatureSet(np.ones((n, 1), "f4"), columns={"caption": captions})
    path = tmp_path / f"x{suffix}"
    if suffix == ".parquet":
        export(data, path)
        assert read_features(path).columns["caption"].tolist() == captions.tolist()
    else:
        with pytest.raises(ExchangeError, match="caption.*5000 characters"):
            export(data, path)
        assert not path.exists()
    few = export(data.select(np.arange(5, 10)), tmp_path / f"few{suffix}")
    assert read_features(few).columns["caption"].tolist() == captions[5:10].tolist()


def test_ids_have_a_longest(store):
    store.append(keys_for([1]), {"flatten": rows_for([1])})
    good = lines(1, {}, prefix="i" * (LONGEST_ID - 6))
    assert len(store.commit(good)) == 1 and store.load().ids[0] == good.ids[0]
    refused(store, "id 'iii.*at most 16384", lambda: store.commit(lines(1, {}, prefix="i" * LONGEST_ID), view="b"))
    many = lines(30_000, {}, prefix="")
    store.commit(many, view="many")
    refused(store, "ids: expected lengths", lambda: store.commit(good, view="many", keep_old=True))
    with pytest.raises(StoreError, match="an id of"):
        many.merged(good)


def test_an_id_that_is_too_long_is_damage(store, monkeypatch):
    store.append(keys_for([1]), {"flatten": rows_for([1])})
    state = store.commit(lines(1, {}, prefix="é" * 9000))
    assert Segment(Container(state.files[0])).ids.longest() == 9006
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="an id of 9006 characters among 1"):
        patch.setattr("featcache.store.texts.LONGEST_ID", 9005)
        FeatureStore.open(store.path).load()


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [-1, 65536, 2**70, 1.0, "1", None, True, np.nan])
def test_view_numbers_that_do_not_exist_are_refused(store, number):
    rows = {"flatten": rows_for([1])}
    refused(store, "view_number: expected whole", lambda: store.append(keys_for([1]), rows, view_number=number))
    assert not store.has(keys_for([1])).any()


@pytest.mark.parametrize("numbers", [[65536, 0], [0, -1], [0.0, 1.0], [0], [[0], [1]]])
def test_arrays_of_view_numbers_are_not_wrapped(store, numbers):
    rows = {"constant": np.zeros(2, "u1"), "view_number": np.asarray(numbers), "attributes": {"computed": {}}}
    codes = {"flatten": rows_for([1, 2])}
    refused(store, "view_number: ", lambda: store._shards.publish(keys_for([1, 2]), codes, **rows))


def test_the_largest_view_number(store):
    store.append(keys_for([1]), {"flatten": rows_for([1])}, view_number=np.int64(65535))
    assert store.has(keys_for([1]), view_number=65535).all() and not store.has(keys_for([1])).any()


def test_whole_numbers_beyond_int64_are_refused_and_those_within_are_kept(store):
    store.append(keys_for([1]), {"flatten": rows_for([1])})
    good = np.asarray([2**63 - 1, 0], dtype="u8")
    store.commit(lines(2, {"n": good}))
    assert store.load().columns["n"].tolist() == good.tolist()
    refused(store, "'n': .*beyond int64", lambda: store.commit(lines(2, {"n": good + np.uint64(1)})))


def test_whole_numbers_that_no_float_can_be_do_not_silently_become_floats(store):
    store.append(keys_for([1]), {"flatten": rows_for([1])})
    big = lines(8, {"n": np.arange(8) + 2**53})
    more = lines(1, {}, prefix="j")
    floats = more.with_columns({"n": np.asarray([0.5])})
    store.commit(big)
    for other in (more, floats):
        refused(store, r"'n': .*2\*\*53", lambda other=other: store.commit(other, keep_old=True))
    store.commit(more.with_columns({"n": np.asarray(["none"])}), keep_old=True)
    assert store.load().columns["n"].tolist() == [str(2**53 + i) for i in range(8)] + ["none"]
    store.commit(more, view="later")
    refused(store, r"'n': .*2\*\*53", lambda: store.commit(big, view="later", keep_old=True))
    store.commit(big, view="later")
    assert store.load("later").columns["n"].tolist() == big.columns["n"].tolist()
    store.commit(lines(8, {"n": np.arange(8)}), view="small")
    store.commit(more, view="small", keep_old=True)
    assert store.load("small").columns["n"][:8].tolist() == list(range(8))


@pytest.mark.parametrize("column", [np.zeros(2, "M8[s]"), np.zeros(2, complex), np.asarray([1, "a"], object)])
def test_columns_of_other_kinds_are_refused(store, column):
    store.append(keys_for([1]), {"flatten": rows_for([1])})
    refused(store, "column 'x': expected text, bool", lambda: store.commit(lines(2, {"x": column})))


# -- names ---------------------------------------------------------------------------------------------------------

ODD = ["", ".", "a/", "/a", "a//b", "a/./b", "a\0b", "\udcff", "\ud800", "x" * 1025]


@pytest.mark.parametrize("name", ODD)
def test_names_that_hdf5_cannot_hold_are_refused(store, name):
    store.append(keys_for([1]), {"flatten": rows_for([1])})
    refused(store, "column '.*rename it", lambda: store.commit(lines(2, {name: np.arange(2)})))
    refused(store, "node '.*rename it", lambda: store._shards and require_node(store, name))


def require_node(store, name):
    other = FeatureStore.create(store.path.parent / "other", SPEC)
    try:
        other.append(keys_for([1]), {name: rows_for([1])})
    finally:
        assert not list((other.path / "shards").iterdir())


@pytest.mark.parametrize("names", [("a", "a/code"), ("a", "a/int/x"), ("a/b", "a/b/bytes")])
def test_columns_that_collide_are_refused(store, names):
    store.append(keys_for([1]), {"flatten": rows_for([1])})
    refused(store, "collides", lambda: store.commit(lines(2, {name: np.arange(2) for name in names})))


def test_nodes_that_collide_are_refused(tmp_path):
    store = FeatureStore.create(tmp_path / "s", SPEC)
    for names in (("f", "f/g"), ("f", "f/g/h")):
        refused(
            store,
            "node 'f/g.*collides with node 'f'",
            lambda n=names: store.append(keys_for([1]), dict.fromkeys(n, rows_for([1]))),
        )
    assert not list((store.path / "shards").iterdir())


def test_unusual_names_that_hdf5_can_hold(store):
    names = ["a", "a/b", "a.b", "..", "ä ö", "x" * 1024, "code", "column/x/code", " ", "a\n", "%2F"]
    store.append(keys_for([1]), {"layer/4": rows_for([1]), "layer/5": rows_for([1])})
    store.commit(lines(2, {name: np.asarray(["p", name[:3]]) for name in names}))
    columns = FeatureStore.open(store.path).load(node="layer/5").columns
    assert sorted(columns) == sorted(names)
    assert all(columns[name].tolist() == ["p", name[:3]] for name in names)


@pytest.mark.parametrize("text", ["\ud800", "\udcc3\udca9", "a\udfff"])
def test_surrogates_that_stand_for_no_byte_are_refused(store, text):
    store.append(keys_for([1]), {"flatten": rows_for([1])})
    refused(store, "entries: id .*Unicode", lambda: store.commit(lines(1, {}, prefix=text)))
    refused(store, "column 'c': .*Unicode", lambda: store.commit(lines(1, {"c": np.asarray([text])})))
    store.commit(lines(1, {"c": np.asarray(["\udcff"])}, prefix="\udcff"))
    assert store.load().columns["c"][0] == "\udcff" and store.load().ids[0].startswith("\udcff")


def test_roles_name_columns(store):
    fill(store, range(3))
    for roles in ({"label": "nope"}, {"group": None}, {"split": 3}):
        refused(
            store, "role '.*expected one of the columns", lambda r=roles: store.commit(entries_for(range(3)), roles=r)
        )
    assert store.commit(entries_for(range(2)).with_columns({}), roles={}).roles == {}, "the column of the role has gone"
    assert store.load().y is None


# -- headers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [{"location": "\udcff"}, {"a": {1, 2}}, {"a": float("nan")}, {"a": object()}])
def test_a_source_that_is_no_json_is_refused(store, source):
    store.append(keys_for([1]), {"flatten": rows_for([1])})
    refused(store, "source: expected JSON", lambda: store.commit(lines(2, {}), source=source))


def test_a_source_comes_back_as_json_has_it(store):
    store.append(keys_for([1]), {"flatten": rows_for([1])})
    first = store.commit(lines(2, {}), source={"a": (1, 2), "ü": None})
    assert first.source == {"a": [1, 2], "ü": None}
    assert store.commit(lines(2, {}), source={"a": (1, 2), "ü": None}).number == first.number


def test_headers_that_no_reader_takes_are_not_blamed_on_the_disk(store):
    store.append(keys_for([1]), {"flatten": rows_for([1])})
    huge = {"note": "x" * (1 << 24)}
    refused(store, "header of at most 16 MiB.*'source'", lambda: store.commit(lines(2, {}), source=huge))
    many = {f"c{i}": np.zeros(2) for i in range(70_000)}
    refused(store, "header of at most.*datasets.*give fewer columns", lambda: store.commit(lines(2, many)))
    refused(
        store,
        "shard: computed: expected JSON",
        lambda: store.append(keys_for([2]), {"flatten": rows_for([2])}, computed={"a": {1}}),
    )
