"""evaluate(): one head closely, equal to the same by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as reference
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from featcache.errors import HeadError, SplitError
from featcache.evaluation import EvalProtocol, compare, evaluate
from featcache.evaluation.draws import draws_of
from featcache.features import FeatureSet
from featcache.heads.labelled import Rows

X, Y = load_digits(return_X_y=True)
X, Y = X[:400].astype("float32"), Y[:400].astype(str)
DIGITS = FeatureSet(X, Y, ids=[f"{i:04d}" for i in range(400)], name="digits")


def test_k_fold_tests_each_row_once_per_seed_and_equals_scikit_learn():
    knn = KNeighborsClassifier(3)
    found = evaluate(DIGITS, knn, splitter="k-fold", n_folds=4, seeds=1)
    assert found.tested.tolist() == [1] * 400 and found.ids.tolist() == sorted(found.ids.tolist())
    rows, predicted = Rows.of(DIGITS), np.empty(400, dtype=Y.dtype)
    scores = []
    for draw in draws_of("d", rows, EvalProtocol(seeds=1, splitter="k-fold", n_folds=4)):
        predicted[draw.test] = knn.fit(X[draw.train], Y[draw.train]).predict(X[draw.test])
        scores.append(reference.accuracy_score(Y[draw.test], predicted[draw.test]))
    assert (found.predicted == predicted).mean() > 0.99  # equal votes: the first class, as argmax and knn both have it
    assert found.metrics["accuracy"]["mean"] == pytest.approx(np.mean(scores), abs=1e-12)
    assert np.array_equal(found.confusion, reference.confusion_matrix(Y, found.predicted))
    table = reference.classification_report(Y, found.predicted, output_dict=True)
    for line in found.per_class:
        assert line["precision"] == pytest.approx(table[line["class"]]["precision"])
        assert line["recall"] == pytest.approx(table[line["class"]]["recall"])


def test_the_same_numbers_as_compare():
    found = evaluate(DIGITS, "lda", shots=5, seeds=3, metric="auroc")
    row = compare(DIGITS, ["lda"], shots=[5], seeds=3, metric="auroc").rows[0]
    assert found.metrics["auroc"]["mean"] == row["mean"] and found.metrics["auroc"]["ci95"] == row["ci95"]
    assert {name: line["mean"] for name, line in found.metrics.items()} == row["metrics"]


def test_probabilities_are_means_over_the_draws_that_tested_a_row():
    found = evaluate(DIGITS, "logreg", seeds=4)
    assert found.scores.shape == (len(found.ids), 10) and found.tested.max() > 1
    assert np.allclose(found.scores.sum(axis=1), 1.0)
    assert (found.predicted == np.asarray(found.classes)[found.scores.argmax(axis=1)]).all()


def test_a_head_without_probabilities():
    found = evaluate(DIGITS, "ridge", seeds=2)
    assert found.scores is None and "log_loss" not in found.metrics and "auroc" in found.metrics
    with pytest.raises(HeadError, match="gives no log_loss"):
        evaluate(DIGITS, "ridge", seeds=1, metric="log_loss")


def test_text_and_json():
    found = evaluate(DIGITS, "lda", seeds=2)
    assert "accuracy" in found.table() and str(found) == found.table()
    document = json.loads(found.to_json())
    assert document["confusion"] == found.confusion.tolist() and document["settings"]["seeds"] == 2


def test_hash_split_stays_when_images_are_added():
    first = evaluate(DIGITS, "centroid", splitter="hash", seeds=3)
    more = FeatureSet(X[:350], Y[:350], ids=DIGITS.row_ids[:350], name="digits")
    fewer = evaluate(more, "centroid", splitter="hash")
    assert set(fewer.ids) <= set(first.ids) and set(first.ids) - set(fewer.ids) <= set(DIGITS.row_ids[350:])
    assert first.tested.max() == 1


def test_groups_stay_together_in_folds():
    groups = np.arange(400) // 4
    rows = Rows.of(FeatureSet(X, Y, groups=groups))
    for draw in draws_of("d", rows, EvalProtocol(seeds=2, splitter="k-fold")):
        assert not set(groups[draw.train]) & set(groups[draw.test])


def test_what_cannot_be_done():
    with pytest.raises(SplitError, match="expected train and test rows"):
        evaluate(DIGITS, "lda", splitter="named")
    with pytest.raises(HeadError, match="splitter: expected one of"):
        evaluate(DIGITS, "lda", splitter="bootstrap")
    with pytest.raises(HeadError, match="FeatureSet"):
        evaluate(None, "lda")
