"""Identity rules: the golden pairs are part of the format and must never change."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache import fingerprint as fp
from featcache.errors import SpecError

GOLDEN = json.loads((Path(__file__).parent / "golden_fingerprints.json").read_text())


@pytest.mark.parametrize("pair", GOLDEN, ids=lambda pair: pair["what"])
def test_golden_fingerprints_never_change(pair):
    assert fp.canonical(pair["spec"]).decode() == pair["canonical"]
    assert fp.fingerprint(pair["spec"]) == pair["fingerprint"]


def test_golden_digests_never_change():
    assert fp.digest_bytes(b"featcache").hex() == hashlib.sha256(b"featcache").hexdigest()
    pixels = np.arange(12, dtype="u1").reshape(2, 2, 3)
    header = b'["featcache-pixels-1","RGB",[2,2,3],"uint8"]\n'
    assert fp.digest_pixels("RGB", (2, 2, 3), "uint8", pixels.tobytes()) == (
        hashlib.sha256(header + pixels.tobytes()).digest()
    )


def test_fields_at_their_first_default_do_not_count():
    bare = {"preprocess": {"crop": 224}}
    full = {"preprocess": {"crop": 224, "exif": True, "alpha": "white", "decoder": "pillow"}}
    assert fp.fingerprint(bare) == fp.fingerprint(full)
    assert fp.fingerprint(bare) != fp.fingerprint({"preprocess": {"crop": 224, "exif": False}})


def test_a_default_counts_only_in_its_own_place():
    assert fp.fingerprint({"exif": True}) != fp.fingerprint({})


def test_order_of_keys_and_tuples_do_not_count():
    assert fp.fingerprint({"a": (1, 2), "b": 0.5}) == fp.fingerprint({"b": 0.5, "a": [1, 2]})


def test_integers_and_floats_differ():
    assert fp.fingerprint({"a": 1}) != fp.fingerprint({"a": 1.0})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object(), b"x", {1: 2}, {1, 2}])
def test_what_has_no_unambiguous_form_asks_for_a_version(bad):
    with pytest.raises(SpecError, match="spec at|expected text"):
        fp.fingerprint({"a": bad})


def test_difference_names_every_leaf_and_fills_in_defaults():
    ours = {"preprocess": {"crop": 224}, "backbone": {"kwargs": {}}}
    theirs = {"preprocess": {"crop": 192, "exif": False}, "backbone": {"kwargs": {"width_mult": 0.5}}}
    assert fp.describe_difference(ours, theirs) == [
        'backbone.kwargs: {}, not {"width_mult": 0.5}',
        "preprocess.crop: 224, not 192",
        "preprocess.exif: true, not false",
    ]
    assert fp.describe_difference(ours, dict(ours)) == []


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=6), json_values, max_size=5), st.randoms())
def test_fingerprint_does_not_depend_on_insertion_order(spec, random):
    items = list(spec.items())
    random.shuffle(items)
    assert fp.fingerprint(dict(items)) == fp.fingerprint(spec)


@given(
    st.dictionaries(st.text(max_size=6), json_values, max_size=4),
    st.dictionaries(st.text(max_size=6), json_values, max_size=4),
)
def test_equal_fingerprints_mean_no_difference(a, b):
    if fp.fingerprint(a) == fp.fingerprint(b):
        assert fp.describe_difference(a, b) == []


def test_tensor_digest_sees_name_dtype_shape_and_values_but_not_order():
    x = np.arange(6, dtype="f4")
    base = [("a", "float32", (2, 3), x), ("b", "float32", (6,), x)]
    digest = fp.digest_tensors(base)
    assert fp.digest_tensors(base[::-1]) == digest
    changed = [
        [("a", "float32", (3, 2), x), base[1]],
        [("c", "float32", (2, 3), x), base[1]],
        [("a", "int32", (2, 3), x), base[1]],
        [("a", "float32", (2, 3), x + 1), base[1]],
        base[:1],
    ]
    assert len({digest, *map(fp.digest_tensors, changed)}) == 6


def test_fingerprint_is_the_same_in_another_process():
    code = "from featcache.fingerprint import fingerprint; print(fingerprint({'b': 1, 'a': {'x': 'ü'}}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert out == fp.fingerprint({"a": {"x": "ü"}, "b": 1})


def test_the_reference_recipe_counts_as_before_recipes_had_variants():
    from featcache.preprocess import Preprocess

    plain = next(pair for pair in GOLDEN if pair["what"] == "plain")
    assert fp.fingerprint({**plain["spec"], "preprocess": Preprocess().spec()}) == plain["fingerprint"]
    variants = [{**plain["spec"], "preprocess": recipe.spec()} for recipe in Preprocess().fast_variants()]
    known = {pair["fingerprint"] for pair in GOLDEN if pair is not plain}
    assert len({fp.fingerprint(spec) for spec in variants} & known) == len(variants)
