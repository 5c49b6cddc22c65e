"""What fit adds on request: calibrated probabilities, accepted answers, novelties; saved with the head."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from featcache import handoff
from featcache.cli.show import predictions
from featcache.errors import HeadError
from featcache.features import FeatureSet
from featcache.heads import FittedHead, LDAClassifier, fit, linear_form
from featcache.heads.guards import guards_of
from featcache.heads.metrics import log_loss
from featcache.heads.novelty import KNeighborsDetector
from featcache.splits import k_fold

RNG = np.random.default_rng(0)
X, Y = load_digits(return_X_y=True)
ORDER = RNG.permutation(len(X))[:600]  # the rows come writer by writer
X, CODES = (X[ORDER] + RNG.normal(0, 4, (600, 64))).astype("float32"), Y[ORDER]
Y = np.char.add("digit ", CODES.astype(str))
SPLITS = np.asarray(["train", "train", "test"] * 200)
TEST = SPLITS == "test"
OLD_FILES = Path(__file__).parent / "fixtures" / "heads-format-1"


def digits(**fields):
    return FeatureSet(**{"X": X, "y": Y, "splits": SPLITS, "name": "digits", **fields})


@pytest.mark.parametrize("name", ["ridge", "svm", "centroid", "lda", "knn"])
def test_probabilities_are_calibrated_and_labels_stay(name):
    plain, better = fit(name, digits()), fit(name, digits(), calibrate=True)
    np.testing.assert_array_equal(plain.predict(X), better.predict(X))
    assert plain.scores == better.scores and plain.temperature is None and better.temperature > 0
    p = better.predict_proba(X[TEST])
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    np.testing.assert_array_equal(p, better.predict_scores(X[TEST]))
    assert log_loss(CODES[TEST], p) < 0.8
    assert better.predict_proba(X[:0]).shape == (0, 10)


def test_the_affine_form_over_the_temperature_gives_the_probabilities():
    fitted = fit("ridge", digits(), calibrate=True)
    W, b = linear_form(fitted.estimator)
    scores = (X @ W.T + b) / fitted.temperature
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    np.testing.assert_allclose(p / p.sum(axis=1, keepdims=True), fitted.predict_proba(X), atol=1e-5)


def test_rejection_and_novelty_on_predict():
    fitted = fit("ridge", digits(), reject=0.02, novelty="mahalanobis")
    accepted, wrong = fitted.accept(X[TEST]), fitted.predict(X[TEST]) != Y[TEST]
    assert 0.2 < accepted.mean() < 1 and wrong[accepted].mean() < min(0.06, wrong.mean())
    assert fitted.rejection["error_rate"] <= 0.02
    noise = FeatureSet(np.concatenate([X[TEST][:100], RNG.uniform(0, 40, (100, 64)).astype("float32")]))
    rows = handoff.predict(fitted, noise)
    assert {"id", "label", "scores", "accepted", "novelty"} == set(rows[0])
    novel = np.asarray([row["novelty"]["novel"] for row in rows])
    assert novel[:100].mean() < 0.2 and novel[100:].mean() > 0.5
    np.testing.assert_array_equal(fitted.novelty(noise) > 0, novel)
    json.dumps(rows)
    assert set(handoff.predict(fit("ridge", digits()), noise)[0]) == {"id", "label", "scores"}


def test_the_command_line_says_what_is_rejected_or_novel(capsys):
    row = {"id": "a.jpg", "label": "cat", "scores": {"cat": 0.5, "dog": 0.5}}
    predictions([row, {**row, "accepted": False, "novelty": {"score": 2.0, "novel": True}}, {**row, "accepted": True}])
    plain, flagged, accepted = capsys.readouterr().out.splitlines()
    assert plain == accepted == "a.jpg\tcat\t0.5000" and flagged == "a.jpg\tcat\t0.5000\trejected,novel"


@pytest.mark.parametrize("novelty", ["mahalanobis", "knn"])
def test_all_of_it_is_saved(novelty, tmp_path):
    fitted = fit("svm", digits(), reject=0.05, novelty=novelty)
    loaded = FittedHead.load(fitted.save(tmp_path / "head.fc"))
    assert (loaded.temperature, loaded.rejection) == (fitted.temperature, fitted.rejection)
    np.testing.assert_array_equal(loaded.predict_proba(X), fitted.predict_proba(X))
    np.testing.assert_array_equal(loaded.novelty(X), fitted.novelty(X))
    np.testing.assert_array_equal(loaded.accept(X), fitted.accept(X))


OLD = json.loads((OLD_FILES / "expected.json").read_text())


@pytest.mark.parametrize("name", OLD["heads"])
def test_heads_of_the_first_version_are_read(name):
    """Files that the first version wrote, and what it predicted."""
    loaded, expected, rows = FittedHead.load(OLD_FILES / f"{name}.head"), OLD["heads"][name], np.asarray(OLD["rows"])
    assert loaded.head == expected["head"] and type(loaded.estimator).__name__ == expected["estimator"]
    assert loaded.temperature is None and loaded.rejection is None and loaded.detector is None
    assert loaded.predict(rows.astype("float32")).tolist() == expected["labels"]
    scores = loaded.predict_scores(rows.astype("float32"))
    if expected["scores"] is not None:  # the first version's AutoClassifier gave none
        np.testing.assert_allclose(scores, expected["scores"], rtol=1e-4, atol=1e-5)
    assert loaded.classes_[scores.argmax(axis=1)].tolist() == expected["labels"]


@pytest.mark.parametrize("body", [{"format": "x"}, {"format": None}, {"format": True}, {}, [2], "text", 3, None])
def test_crafted_files_are_refused_in_one_line(body, tmp_path):
    from safetensors.numpy import save

    text = json.dumps(body)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / "h").write_bytes(save({"a": np.zeros(1)}, {"featcache_head": text, "featcache_sha256": digest}))
    with pytest.raises(HeadError) as caught:
        FittedHead.load(tmp_path / "h")
    assert "\n" not in str(caught.value)


def blobs(n):
    """Four far blobs of 32 features."""
    rng = np.random.default_rng(0)
    centres, y = 3 * rng.normal(size=(4, 32)), np.arange(n) % 4
    return FeatureSet((centres[y] + rng.normal(size=(n, 32))).astype("float32"), np.asarray(list("abcd"))[y])


def test_a_threshold_that_the_final_head_does_not_reach_is_noted():
    words = "reject: the final head accepts only 0.0% of its own training rows: too few rows"
    for level in (0.5, None):
        few = fit("auto", blobs(12), reject=0.5, reject_confidence=level)
        assert few.rejection["coverage"] == 1.0 and not few.accept(blobs(12)).any()
        assert sum(note.startswith(words) for note in few.notes) == 1
        many = fit("auto", blobs(200), reject=0.5, reject_confidence=level)
        assert many.accept(blobs(200)).mean() > 0.9 and not any("final head" in note for note in many.notes)


def rewritten(path, change):
    """Change the JSON of a head's file, with the right checksum."""
    from safetensors.numpy import load, save

    data = path.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    body = json.loads(metadata["featcache_head"].partition("\n")[2])
    change(body)
    text = json.dumps(body)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_bytes(save(load(data), {"featcache_head": f"{digest}\n{text}"}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 0}, "format 1 to 3, got 0"),
        ({"format": -1}, "format 1 to 3, got -1"),
        ({"format": 4}, "install a newer featcache"),
        ({"classes": ["a", "a"]}, "different texts"),
        ({"classes": [["a", "b"]]}, "different texts"),
        ({"fields": {"separator": ";"}}, "format 3 only"),
        ({"fields": {"target": "price"}}, "format 3 only"),
        ({"fields": {"n_features": "64"}}, "n_features"),
        ({"fields": {"n_features": True}}, "n_features"),
        ({"fields": {"n_features": 64.0}}, "n_features"),
        ({"fields": {"n_features": None}}, "n_features"),
        ({"fields": {"temperature": "2"}}, "temperature"),
        ({"fields": {"temperature": [2.0]}}, "temperature"),
        ({"fields": {"temperature": True}}, "temperature"),
        ({"fields": {"temperature": 0}}, "temperature"),
    ],
)
def test_contents_that_make_no_head_are_refused_in_one_line(change, reason, tmp_path):
    path = fit("lda", digits()).save(tmp_path / "h")
    rewritten(path, lambda body: None)
    assert FittedHead.load(path).n_features == 64

    def put(body):
        body["fields"].update(change.get("fields", {}))
        body.update({key: value for key, value in change.items() if key != "fields"})

    rewritten(path, put)
    with pytest.raises(HeadError, match=reason) as caught:
        FittedHead.load(path)
    assert "\n" not in str(caught.value)


def test_groups_reach_every_fit_and_the_detector():
    seen = []

    class Grouped(LDAClassifier):
        def fit(self, X, y, groups=None):
            seen.append(None if groups is None else len(groups) == len(X))
            return super().fit(X, y)

    groups = np.repeat(np.arange(200), 3).astype(str)
    fitted = fit(Grouped(), digits(splits=None, groups=groups), calibrate=True, novelty="mahalanobis")
    assert len(seen) > 5 and all(seen) and np.isfinite(fitted.detector.offset_)
    blind = fit("lda", digits(splits=None), novelty="mahalanobis")
    assert fitted.detector.offset_ != blind.detector.offset_


def test_a_detector_without_other_groups_is_noted_and_its_scores_are_json():
    fitted = fit("lda", digits(splits=None), novelty="knn")
    whole = KNeighborsDetector().fit(X, groups=np.zeros(len(X)))
    assert np.isfinite(whole.offset_) and whole.notes_
    broken = replace(fitted, detector=KNeighborsDetector().fit(X))
    broken.detector.offset_ = -np.inf
    rows = handoff.predict(broken, FeatureSet(X[:2]))
    assert rows[0]["novelty"] == {"score": None, "novel": False}
    json.dumps(rows, allow_nan=False)


def test_what_a_clone_says_on_a_fold_is_one_line():
    class Picky(LDAClassifier):
        def fit(self, X, y):
            if len(X) < 600:
                raise ValueError("too\nfew rows")
            return super().fit(X, y)

    with pytest.raises(HeadError, match="reject: Picky on a fold: too few rows"):
        guards_of(Picky().fit(X, Y), X, Y, k_fold(Y, 3), None, calibrate=True, reject=0.1, novelty=None)


def test_what_cannot_be_had_is_noted_and_saved(tmp_path):
    rows = [np.flatnonzero(c == Y)[0] for c in np.unique(Y)]
    fitted = fit("ridge", FeatureSet(X[rows], Y[rows]), reject=0.05, novelty="mahalanobis")
    assert fitted.rejection["threshold"] == np.inf and not fitted.accept(X).any()
    for words in ("not calibrated", "nothing is accepted", "one class"):
        assert any(words in note for note in fitted.notes)
    loaded = FittedHead.load(fitted.save(tmp_path / "head.fc"))
    assert loaded.rejection["threshold"] == np.inf and np.isnan(loaded.rejection["error_rate"])


def test_test_labels_choose_nothing():
    shuffled = Y.copy()
    shuffled[TEST] = RNG.permutation(shuffled[TEST])
    one, two = (fit("ridge", digits(y=y), reject=0.05, novelty="knn") for y in (Y, shuffled))
    assert (one.temperature, one.rejection) == (two.temperature, two.rejection)
    np.testing.assert_array_equal(one.novelty(X), two.novelty(X))


def test_val_rows_calibrate_where_there_are_some():
    parts = np.where(np.arange(600) % 6 == 0, "val", SPLITS)
    fitted = fit("ridge", digits(splits=parts), calibrate=True)
    assert (
        fitted.scores.keys() == {"val", "test"}
        and fitted.temperature != fit("ridge", digits(), calibrate=True).temperature
    )


def test_the_error_rate_that_was_asked_for_is_kept_on_new_rows():
    """Three overlapping classes, 40 draws of 400 rows each, judged on 10,000 rows that no draw has seen."""
    rng = np.random.default_rng(1)

    def drawn(n):
        y = rng.integers(0, 3, n)
        return (rng.normal(size=(n, 6)) + 1.8 * np.eye(3, 6)[y]).astype("float32"), y.astype(str)

    test, truth = drawn(10_000)
    rates, coverage = {None: [], 0.9: []}, {None: [], 0.9: []}
    for _ in range(40):
        train = FeatureSet(*drawn(400))
        for level in rates:
            fitted = fit("lda", train, reject=0.05, reject_confidence=level)
            accepted = fitted.accept(test)
            coverage[level].append(accepted.mean())
            if accepted.any():
                rates[level].append((fitted.predict(test) != truth)[accepted].mean())
                assert fitted.rejection["error_rate"] <= fitted.rejection.get("bound", 1.0)
    assert (fitted.predict(test) != truth).mean() > 0.15
    assert 0.04 < np.mean(rates[None]) < 0.06 < np.max(rates[None])
    assert sum(rate > 0.05 for rate in rates[0.9]) <= 4
    assert 0.1 < np.mean(coverage[0.9]) < np.mean(coverage[None])


def test_a_bound_says_what_it_found_or_what_it_takes(tmp_path):
    fitted = fit("ridge", digits(), reject=0.1, reject_confidence=0.9)
    found = fitted.rejection
    assert found["error_rate"] < found["bound"] <= 0.1 and found["confidence"] == 0.9
    assert any("with probability 0.9 at most" in note for note in fitted.notes)
    loaded = FittedHead.load(fitted.save(tmp_path / "head.fc"))
    np.testing.assert_array_equal(loaded.accept(X), fitted.accept(X))
    assert loaded.accept(X[:0]).shape == (0,) and 0 < loaded.accept(X[TEST]).mean() < 1
    few = fit("ridge", FeatureSet(X[:30], Y[:30]), reject=0.05, reject_confidence=0.95)
    assert not few.accept(X).any() and np.isnan(few.rejection["bound"])
    assert any("takes 59 accepted ones without an error" in note for note in few.notes)
    bursts = fit("ridge", digits(splits=None, groups=np.arange(600) // 2), reject=0.1, reject_confidence=0.9)
    assert any("one group" in note for note in bursts.notes)
    alone = fit("ridge", digits(splits=None, groups=np.arange(600)), reject=0.1, reject_confidence=0.9)
    assert not any("one group" in note for note in alone.notes)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"calibrate": "yes"}, "True or False"),
        ({"reject": 1.0}, "error rate"),
        ({"reject": True}, "error rate"),
        ({"novelty": "iforest"}, "mahalanobis, knn"),
        ({"novelty": np.zeros(2)}, "mahalanobis, knn"),
        ({"reject": np.nan}, "error rate"),
        ({"reject_confidence": 0.9}, "reject above 0"),
        ({"reject": 0.0, "reject_confidence": 0.9}, "reject above 0"),
        ({"reject": 0.1, "reject_confidence": 1.0}, "from 0.5"),
        ({"reject": 0.1, "reject_confidence": "high"}, "from 0.5"),
    ],
)
def test_errors_are_one_clear_line(options, reason):
    with pytest.raises(HeadError, match=reason) as caught:
        fit("lda", digits(), **options)
    assert "\n" not in str(caught.value)


def test_a_head_without_them_says_how_to_get_them():
    fitted = fit("svm", digits())
    for call, word in ((fitted.accept, "reject"), (fitted.novelty, "novelty"), (fitted.predict_proba, "calibrate")):
        with pytest.raises(HeadError, match=word):
            call(X)
    assert replace(fitted, temperature=2.0).predict_proba(X).shape == (600, 10)
