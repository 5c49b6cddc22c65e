"""audit and leaks: what is planted is found, what is clean is left alone, whatever the order of the rows."""

import json

import numpy as np
import pytest
from PIL import Image

import featcache as fc
from featcache import FeatureSet
from featcache.errors import HeadError, SourceError
from featcache.hygiene import KINDS, Audit, leaks, near_pairs, thumbnails
from featcache.hygiene.near import exact_copies, near_copies, whitened
from featcache.hygiene.pixels import alike, detail
from featcache.hygiene.strangers import blank_images, far_off
from featcache.hygiene.suspects import doubted
from featcache.hygiene.tails import excess, standardised


def blobs(n=240, classes=4, d=24, spread=0.6, seed=0):
    """Codes of n images in classes, and their labels."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % classes
    X = rng.normal(size=(classes, d))[codes] + spread * rng.normal(size=(n, d))
    return X.astype("float32"), np.char.add("class ", codes.astype(str))


def ids_of(n):
    return np.asarray([f"{i:04d}" for i in range(n)])


def leaky(seed=0):
    """200 rows to train and 40 to test, ten of which are copied, a little changed, into training."""
    X, y = blobs(seed=seed)
    rng = np.random.default_rng(seed + 1)
    for i in range(10):
        X[i] = X[200 + i] + 0.05 * rng.normal(size=X.shape[1])
        y[i] = y[200 + i]
    return FeatureSet(X, y, ids=ids_of(240), splits=["train"] * 200 + ["test"] * 40, name="leaky")


@pytest.mark.parametrize("seed", range(3))
def test_planted_copies_are_found_and_hardly_anything_else(seed):
    found = fc.audit(leaky(seed))
    pairs = {tuple(row["ids"]) for row in found.of("near duplicate")}
    planted = {(f"{i:04d}", f"{200 + i:04d}") for i in range(10)}
    assert len(pairs & planted) >= 9 and len(pairs - planted) <= 1
    assert all(row["across"] and not row["conflict"] for row in found.leaking)
    assert set(found.leave_out) >= {first for first, _ in pairs & planted}  # the training copy goes
    assert not {name for name in found.leave_out if name >= "0200"}


def test_nothing_is_found_in_clean_rows_and_it_is_said():
    X, y = blobs()
    found = fc.audit(FeatureSet(X, y))
    assert not found.of("exact duplicate") and len(found.of("near duplicate")) <= 1 and not found.leaking
    rng = np.random.default_rng(3)
    empty = fc.audit(FeatureSet(rng.normal(size=(80, 6))))
    assert empty.rows == () and "Nothing was found" in str(empty) and empty.leave_out == ()


def test_equal_codes_are_one_exact_duplicate_and_labels_that_differ_are_a_conflict():
    X, y = blobs(80)
    X[5] = X[40] = X[11]
    y[5], y[40], y[11] = "class 1", "class 1", "class 2"
    found = fc.audit(FeatureSet(X, y, ids=ids_of(80)))
    (row,) = found.of("exact duplicate")
    assert row["ids"] == ["0005", "0011", "0040"] and row["conflict"] and not row["across"] and row["score"] == 1.0
    assert found.leave_out == ("0011", "0040")
    groups = found.groups_of(["0040", "0005", "0011", "0001", "unknown"])
    assert len(set(groups[:3])) == 1 and groups[0] and groups[3:] == ["", ""]
    assert "different labels" in found.statements()[0]


def test_the_groups_of_an_audit_keep_copies_on_one_side():
    data = leaky()
    found = fc.audit(data)
    train, test = fc.splits.holdout(data.y, groups=_filled(found.groups, data), ids=data.ids, seed=3)
    sides = np.isin(np.arange(240), test)
    assert all(len({sides[int(name)] for name in row["ids"]}) == 1 for row in found.of("near duplicate"))
    assert len(train) + len(test) == 240


def _filled(groups, data):
    return [group or name for group, name in zip(groups, data.ids.tolist(), strict=True)]


def test_order_of_rows_does_not_matter():
    data = leaky()
    shuffled = data.select(np.random.default_rng(5).permutation(240))
    assert fc.audit(data).to_json() == fc.audit(shuffled).to_json()
    pairs, same = near_pairs(data.X, ids=data.ids), near_pairs(shuffled.X, ids=shuffled.ids)
    named = {tuple(sorted(data.ids[list(row)])) for row in pairs.rows}
    assert named == {tuple(sorted(shuffled.ids[list(row)])) for row in same.rows} and len(named) >= 9


def test_own_groups_on_two_sides_are_named_and_rows_without_a_group_are_not_one():
    X, y = blobs(80)
    groups = np.asarray(["", "a", "a", "b", "b"] * 16)
    splits = np.where(groups == "b", "test", "train")
    splits[1] = "test"
    found = fc.audit(FeatureSet(X, y, groups=groups, splits=splits))
    (row,) = found.of("group straddles")
    assert row["detail"] == "group a: 31 in train, 1 in test" and row["across"] and not row["conflict"]


def test_a_burst_across_a_split_is_a_group_that_straddles():
    X, y = blobs(160)
    rng = np.random.default_rng(1)
    for i in (1, 2, 150):
        X[i] = X[0] + 0.04 * rng.normal(size=24)
        y[i] = y[0]
    found = fc.audit(FeatureSet(X, y, ids=ids_of(160), splits=["train"] * 100 + ["test"] * 60))
    (row,) = found.of("group straddles")
    assert row["ids"] == ["0000", "0001", "0002", "0150"]


@pytest.mark.parametrize("seed", range(3))
def test_planted_label_noise_is_found_with_the_right_label(seed):
    X, y = blobs(400, spread=0.7, seed=seed)
    rng = np.random.default_rng(seed)
    wrong = rng.choice(400, 20, replace=False)
    noisy = y.copy()
    noisy[wrong] = np.char.add("class ", ((np.arange(400) + rng.integers(1, 4, 400)) % 4).astype(str))[wrong]
    found = fc.audit(FeatureSet(X, noisy, ids=ids_of(400)))
    rows = {int(row["ids"][0]): row for row in found.of("label suspect")}
    hits = set(rows) & set(wrong.tolist())
    assert len(hits) >= 0.75 * 20 and len(hits) >= 0.75 * len(rows)
    assert all(rows[i]["suggested"] == y[i] for i in hits)
    assert 0.4 * len(rows) <= found.expected["label suspect"] <= len(rows)


def test_a_copy_does_not_vouch_for_its_wrong_label():
    X, y = blobs(200, spread=0.5)
    X[7] = X[3]
    y[3] = y[7] = "class 0"
    found = fc.audit(FeatureSet(X, y, ids=ids_of(200)))
    assert {"0003", "0007"} <= {row["ids"][0] for row in found.of("label suspect")}


def test_labels_that_cannot_be_examined_are_told():
    X, y = blobs(60)
    lonely = y.copy()
    lonely[0] = "alone"
    found = fc.audit(FeatureSet(X, lonely))
    assert any("1 label not examined: no other row" in note for note in found.notes)
    assert doubted(X, np.full(60, "one"), ids_of(60), None).rows.size == 0
    unlabelled = fc.audit(FeatureSet(X))
    assert not unlabelled.of("label suspect")


@pytest.mark.parametrize(("n", "classes", "d"), [(100, 2, 16), (300, 5, 64)])
@pytest.mark.parametrize("seed", range(2))
def test_labels_that_codes_know_nothing_of_are_not_doubted(n, classes, d, seed):
    rng = np.random.default_rng(seed)
    data = FeatureSet(rng.normal(size=(n, d)).astype("float32"), rng.integers(classes, size=n).astype(str))
    found = fc.audit(data)
    assert not found.of("label suspect") and "label suspect" not in found.examined
    assert any("not examined: heads do not know them better" in note for note in found.notes)


@pytest.mark.parametrize("apart", [0.5, 1.0, 1.5])
def test_right_labels_of_classes_that_overlap_are_hardly_doubted(apart):
    reported = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        codes = rng.integers(3, size=300)
        X = rng.normal(size=(300, 16)).astype("float32")
        X[:, :3] += apart * np.eye(3)[codes]
        reported.append(len(fc.audit(FeatureSet(X, codes.astype(str))).of("label suspect")))
    assert max(reported) <= 6  # of 300


def test_the_expected_number_of_wrong_labels_is_the_sum_of_the_scores():
    X, y = blobs(400, spread=0.7)
    y[::25] = "class 2"
    found = fc.audit(FeatureSet(X, y))
    scores = [row["score"] for row in found.of("label suspect")]
    assert len(scores) >= 8 and abs(sum(scores) - found.expected["label suspect"]) < 0.1 and min(scores) >= 0.5


def test_settings_kept_in_the_folds_of_a_large_set_find_the_same():
    X, y = blobs(1200, spread=0.7)
    wrong = np.arange(1200) % 25 == 0
    y[wrong] = np.char.add("class ", ((np.arange(1200) + 1 + np.arange(1200) // 25 % 3) % 4).astype(str))[wrong]
    rows = doubted(X, y, ids_of(1200), None).rows
    assert wrong[rows].mean() >= 0.75 and wrong[rows].sum() >= 0.75 * wrong.sum()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (FeatureSet(np.eye(1, 4, dtype="f4")), "no blank images."),
        (FeatureSet(np.eye(2, 4, dtype="f4"), ["a", "b"]), "no equal images or blank images."),
        (FeatureSet(blobs(60)[0]), "no equal images, near copies, outliers or blank images."),
        (FeatureSet(*blobs(60)), "no equal images, near copies, doubtful labels, outliers or blank images."),
    ],
)
def test_only_what_was_looked_for_is_said_to_be_absent(data, said):
    assert fc.audit(data).statements() == (f"Nothing was found: {said}",)


@pytest.mark.parametrize(("share", "each"), [(0.05, 1), (0.5, 1), (1.0, 1), (1.0, 3)])
def test_copies_are_found_however_common_they_are(share, each):
    X, _ = blobs(160, d=48)
    rng = np.random.default_rng(1)
    origins = np.repeat(np.arange(round(share * 160)), each)
    copies = X[origins] + 0.05 * rng.normal(size=(len(origins), 48)).astype("float32")
    source = np.concatenate([np.arange(160), origins])
    found = near_pairs(np.concatenate([X, copies]))
    right = source[found.rows[:, 0]] == source[found.rows[:, 1]]
    assert right.sum() >= 0.95 * len(origins) and (~right).sum() <= max(1, 0.05 * len(right))
    both = leaks(np.concatenate([X, copies]), np.arange(160), 160 + np.arange(len(origins)))
    assert len(both) >= 0.95 * len(origins)


def test_outliers_and_codes_of_one_value():
    X, y = blobs(200, d=48)
    direction = np.random.default_rng(9).normal(size=48)
    X[17] = 30 * direction / np.linalg.norm(direction)
    X[30] = 0.25
    found = fc.audit(FeatureSet(X, y, ids=ids_of(200)))
    assert [row["ids"] for row in found.of("outlier")] == [["0017"]]
    assert [row["ids"] for row in found.of("constant")] == [["0030"]] and "0030" in found.leave_out


def test_augmented_views_are_no_copies():
    X, y = blobs(60)
    views = FeatureSet(np.concatenate([X, X]), np.concatenate([y, y]), view_of=[""] * 60 + [str(i) for i in range(60)])
    found = fc.audit(views)
    assert not found.of("exact duplicate") and len(found.ids) == 60 and "60 augmented views left out" in found.notes
    with pytest.raises(HeadError, match="expected images, got none"):
        fc.audit(views.select(np.arange(60, 120)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"false_share": 0.0}, "false_share"),
        ({"folds": 1}, "folds of 2"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "w"),
    ],
)
def test_bad_settings_are_one_line(words, message):
    with pytest.raises(HeadError, match=message) as error:
        fc.audit(FeatureSet(blobs(40)[0]), **words)
    assert "\n" not in str(error.value)


def test_few_rows_and_bad_codes():
    found = fc.audit(FeatureSet(np.eye(3, dtype="float32"), ["a", "b", "a"]))
    assert found.rows == () and any("fewer than 20" in note for note in found.notes)
    with pytest.raises(HeadError, match="NaN"):
        fc.audit(FeatureSet(np.full((4, 2), np.nan)))
    with pytest.raises(HeadError, match="FeatureSet"):
        fc.audit(np.eye(3))


def test_an_audit_tells_itself_in_text_markdown_and_json():
    X, y = blobs(60)
    X[2] = X[1]
    names = ids_of(60).astype(object)
    names[1] = "a|b\n<script>"
    found = fc.audit(FeatureSet(X, y, ids=names, splits=["test"] * 2 + ["train"] * 58))
    text, markdown = found.table(), found.to_markdown()
    assert "exact duplicate" in text and "a|b\\n<script>" in text and "across splits" in text
    assert "a\\|b\\\\n&lt;script>" in markdown and markdown.endswith("\n")
    again = Audit.from_json(found.to_json())
    assert again == found and json.loads(found.to_json())["findings"][0]["ids"] == ["0002", "a|b\n<script>"]
    with pytest.raises(ValueError, match="expected one of exact duplicate"):
        found.of("duplicates")
    assert {row["kind"] for row in found.rows} <= set(KINDS)


def test_a_table_shows_some_and_tells_of_more():
    X, y = blobs(120)
    X[60:] = X[:60]
    found = fc.audit(FeatureSet(X, y))
    assert found.table(limit=5).count("exact duplicate  ") == 5
    assert "55 more of kind exact duplicate" in found.table(limit=5) and "60 sets of equal images" in str(found)


# ---- leaks


def test_leaks_of_a_split_are_test_rows_with_a_training_copy():
    data = leaky()
    found = leaks(data.X, np.arange(200), np.arange(200, 240), ids=data.ids)
    planted = {(i, 200 + i) for i in range(10)}
    assert len({tuple(row) for row in found.rows.tolist()} & planted) >= 9 and len(found) <= 11
    pairs = near_pairs(data.X, ids=data.ids)
    same = leaks(data.X, np.arange(200), np.arange(200, 240), pairs=pairs)
    assert np.array_equal(same.rows, found.rows)
    assert len(leaks(data.X, np.arange(10, 200), np.arange(200, 240), pairs=pairs)) <= 1
    assert len(leaks(data.X, [], [1, 2], pairs=pairs)) == 0


def test_copies_of_copies_leak():
    X, _ = blobs(60)
    X[10] = X[20] = X[30]
    assert leaks(X, [10, 11], [30, 31]).rows.tolist() == [[10, 30]]


# ---- the parts


def test_excess_over_given_ordinary_values():
    rng = np.random.default_rng(0)
    mostly = np.concatenate([rng.normal(size=50), rng.normal(30, 1, size=950)])
    assert not excess(mostly).found.any()
    found = excess(mostly, ordinary=rng.normal(size=500)).found
    assert found[50:].all() and not found[:50].any()


def test_excess_takes_nothing_from_noise_and_all_that_stands_out():
    rng = np.random.default_rng(0)
    for draw in (rng.normal, rng.exponential, rng.gumbel):
        assert excess(draw(size=2000)).found.sum() <= 1
    mixed = np.concatenate([rng.normal(size=900), rng.normal(12, 1, size=100)])
    found = excess(mixed).found
    assert found[900:].all() and found[:900].sum() <= 10  # 5 % are accepted, more or less
    assert not excess(np.zeros(100)).found.any() and not excess(np.arange(5.0)).found.any()
    assert not standardised(np.zeros(30)).any()


def test_whitened_codes_are_at_unit_length_and_constant_codes_are_zeros():
    X, _ = blobs(50)
    assert np.allclose(np.linalg.norm(whitened(X), axis=1), 1, atol=1e-5)
    assert whitened(X, directions=5).shape == (50, 5)
    assert not whitened(np.ones((30, 4))).any()
    assert len(near_copies(whitened(np.ones((30, 4))))) == 0
    assert [rows.tolist() for rows in exact_copies(np.asarray([[1, 2], [3, 4], [1, 2]]))] == [[0, 2]]
    assert far_off(np.ones((30, 4)))[0].size == 0


def scene(seed, size=(120, 90)):
    """A picture with shapes of its own."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (9, 12, 3), dtype="u1")
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def planted():
    """60 pictures, then copies of the first six: cropped, mirrored, resized, compressed, and two blank ones."""
    pictures = [scene(i) for i in range(60)]
    pictures += [
        pictures[0].crop((5, 4, 116, 87)),
        pictures[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        pictures[2].resize((90, 70)),
        pictures[3].resize((150, 110)),
        Image.new("RGB", (80, 60)),
        Image.new("RGB", (80, 60), "white"),
    ]
    rng = np.random.default_rng(0)
    X = rng.normal(size=(66, 16)).astype("float32")
    return pictures, FeatureSet(X, ids=[f"{i:08d}" for i in range(66)])


def test_pixels_find_copies_that_codes_do_not_know(planted):
    pictures, data = planted
    found = fc.audit(data, images=pictures, progress=False)
    pairs = {tuple(int(name) for name in row["ids"]) for row in found.of("near duplicate")}
    assert pairs == {(0, 60), (1, 61), (2, 62), (3, 63)}
    assert [row["ids"][0] for row in found.of("constant")] == ["00000064", "00000065"]
    assert found.settings["images"] == 66
    assert not fc.audit(data).of("near duplicate")


def test_pixels_find_copies_of_all_images():
    pictures = [scene(i) for i in range(40)]
    pictures += [p.crop((4, 3, 117, 88)) if i % 2 else p.resize((100, 75)) for i, p in enumerate(pictures)]
    X = np.random.default_rng(0).normal(size=(80, 16)).astype("float32")
    found = fc.audit(FeatureSet(X, ids=[f"{i:08d}" for i in range(80)]), images=pictures, progress=False)
    pairs = {tuple(int(name) for name in row["ids"]) for row in found.of("near duplicate")}
    assert len(pairs & {(i, 40 + i) for i in range(40)}) >= 36 and len(pairs) <= 42


def test_images_may_be_a_function_and_some_may_be_missing(planted):
    pictures, data = planted

    def read(name):
        if name == "00000030":
            raise OSError("gone")
        return pictures[int(name)]

    found = fc.audit(data, images=read, progress=False)
    assert any("1 of 66 images could not be read" in note for note in found.notes)
    assert {tuple(row["ids"]) for row in found.of("near duplicate")} >= {("00000000", "00000060")}
    with pytest.raises(SourceError, match="with ids such as 'x'"):
        fc.audit(FeatureSet(data.X[:1], ids=["x"]), images=pictures)


def test_pictures_are_alike_when_shifted_scaled_and_not_otherwise(planted):
    pictures, data = planted
    thumbs, there = thumbnails(pictures, data.row_ids)
    assert there.all() and thumbs.shape == (66, 64, 64)
    fine = detail(thumbs)
    assert alike(fine[[0, 2, 3]], fine[[60, 62, 63]]).min() > 0.9
    assert alike(fine[:20], fine[20:40]).max() < 0.75
    assert alike(fine[64:65], fine[65:66])[0] <= 0  # two blank pictures have nothing in common
    assert np.flatnonzero(blank_images(thumbs)).tolist() == [64, 65]


# ---- the verb


def test_the_verb_on_a_plain_file(tmp_path, capsys):
    from featcache.cli import run

    data = leaky()
    path = tmp_path / "leaky.npz"
    np.savez(path, X=data.X, y=data.y, ids=data.ids, splits=data.splits)
    assert run(["audit", str(path), "--quiet", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["leave_out"] and document["findings"][0]["across"]
    assert run(["audit", str(path), "-q"]) == 0
    assert "across train and test" in capsys.readouterr().out
    assert run(["audit", str(path), "--false-share", "2"]) != 0
    assert capsys.readouterr().err.count("\n") == 1
