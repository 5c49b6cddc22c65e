"""Several nodes and several views: joined by name, selected inside the folds, used on images as they were trained."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_tiny_backbone, write_images
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

import featcache as fc
from featcache.cli import run
from featcache.errors import HandoffError, HeadError, StoreError
from featcache.features import FeatureSet
from featcache.heads import (
    AutoClassifier,
    CosineKNeighborsClassifier,
    FittedHead,
    HeadToToeClassifier,
    LayerBlocks,
    SearchedHead,
    ViewsClassifier,
    fit,
    join_layers,
    join_views,
    linear_form,
    make_head,
)
from featcache.heads.selecting import relevance
from featcache.heads.views import views_of

RNG = np.random.default_rng(0)
Y = np.repeat(["a", "b", "c"], 20)
WIDE = RNG.normal(size=(60, 300)).astype("float32")
WIDE[:, :6] += 3 * np.eye(6)[np.repeat([0, 1, 2], 20)] + 3 * np.eye(6)[np.repeat([3, 4, 5], 20)]
VIEWS = np.hstack([WIDE[:, :20] + 0.3 * RNG.normal(size=(60, 20)) for _ in range(3)]).astype("float32")


@parametrize_with_checks(
    [
        HeadToToeClassifier(cv=2),
        HeadToToeClassifier(cv=2, head="logreg", normalise=True, fractions=(1.0, 0.5)),
        ViewsClassifier(),
        ViewsClassifier("knn"),
        ViewsClassifier(LogisticRegression(), average="codes"),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


# -- layers --------------------------------------------------------------------------------------------------------


def sets(**more):
    ids = ["x", "y", "z"]
    return [
        FeatureSet(RNG.normal(size=(3, 4, 7, 5)).astype("float16"), ids=ids, node="layer1", **more),
        FeatureSet(RNG.normal(size=(3, 9, 8)), ids=ids, node="tokens", **more),
        FeatureSet(RNG.normal(size=(3, 6)), ids=ids, node="flatten", **more),
    ]


def test_joined_as_torch_pools():
    parts = sets(y=["p", "q", "p"], fingerprint="f" * 64)
    joined = join_layers(parts, target_size=24)
    assert joined.node == "layer1:4x2x2+tokens:8+flatten:6" and joined.fingerprint == "f" * 64
    assert joined.y.tolist() == ["p", "q", "p"] and joined.X.dtype == np.float32
    blocks = LayerBlocks.parse(joined.node)
    assert blocks.sizes == (16, 8, 6)
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(parts[0].X.astype("float32")), (2, 2)).flatten(1)
    expected = [pooled.numpy(), parts[1].X.mean(axis=1), parts[2].X]
    expected = np.hstack([e / np.linalg.norm(e, axis=1, keepdims=True) for e in expected])
    np.testing.assert_allclose(joined.X, expected, atol=1e-6)
    picked = join_layers(parts, "flatten,layer1", target_size=10**6)
    assert picked.node == "flatten:6+layer1:4x7x5"


def test_rows_of_zeros_and_huge_values():
    X = np.array([[0.0, 0.0], [3e38, 0.0], [1e-40, 0.0]], "float32")
    joined = join_layers([FeatureSet(X, node="n")])
    np.testing.assert_array_equal(joined.X, [[0, 0], [1, 0], [1, 0]])


@pytest.mark.parametrize("node", ["flatten", "", "a+b", "a:1+b", "layer:x", "flatten ×5"])
def test_other_names_are_not_parsed(node):
    assert LayerBlocks.parse(node) is None


def test_layers_that_do_not_belong_together():
    one, two, three = sets()
    other = FeatureSet(one.X, ids=["x", "z", "y"], node="o")
    for bad, message in (
        ([one, other], "other images"),
        ([one, FeatureSet(two.X, ids=two.ids, node="t", fingerprint="1" * 64)], "another spec"),
        ([one, one], "different ones"),
        ([], "expected a FeatureStore"),
        ("folder", "expected a FeatureStore"),
        ([FeatureSet(one.X, ids=one.ids, node="a+b")], r"without '\+'"),
    ):
        with pytest.raises(HeadError, match=message):
            join_layers(bad)
    for options, message in (
        ({"nodes": "layer9"}, "no set of layer9"),
        ({"nodes": ""}, "expected names"),
        ({"nodes": "flatten,flatten"}, "different ones"),
        ({"target_size": 0}, "target_size"),
        ({"view": "main"}, "is for a store"),
    ):
        with pytest.raises(HeadError, match=message):
            join_layers([one, two, three], **options)
    with pytest.raises(HeadError, match="no codes of flatten"):
        LayerBlocks(("flatten",), ((3,),)).join({"layer": one.X})
    with pytest.raises(HeadError, match="can be pooled"):
        LayerBlocks(("layer1",), ((4, 9, 9),)).join({"layer1": one.X})


def test_relevance_is_that_of_the_ridge_solution():
    from sklearn.linear_model import Ridge

    from featcache.heads import ShrunkScaler

    codes = np.repeat([0, 1, 2], 20)
    targets = np.where(np.eye(3, dtype=bool)[codes], 1.0, -1.0)
    rows = ShrunkScaler().fit_transform(WIDE.astype(float))
    expected = np.linalg.norm(Ridge(alpha=100.0).fit(rows, targets).coef_, axis=0)
    np.testing.assert_allclose(relevance(WIDE.astype(float), codes, [100.0]), expected, atol=1e-8)
    np.testing.assert_allclose(relevance(WIDE, codes, [100.0]), expected, atol=1e-5)


def test_selection_finds_the_features_and_says_where_they_lie():
    model = HeadToToeClassifier([6, 294], fractions=[1.0, 0.02], guard=1.0).fit(WIDE, Y)
    assert model.fraction_ == 0.02 and model.selected_.tolist() == list(range(6))
    assert model.selected_per_block_.tolist() == [6, 0]
    assert [c["fraction"] for c in model.tried_] == [1.0, 0.02]
    assert model.best_score_ == max(c["score"] for c in model.tried_)
    W, b = linear_form(model)
    assert W.shape == (3, 300) and not W[:, 6:].any()
    np.testing.assert_allclose(WIDE @ W.T + b, model.decision_function(WIDE), atol=1e-4)


def test_selection_sees_no_held_out_row():
    """On labels that mean nothing, features selected on all rows would score far above chance; inside folds, not."""
    noise, labels = RNG.normal(size=(60, 3000)), np.arange(60) % 2
    model = HeadToToeClassifier(fractions=[0.01]).fit(noise, RNG.permutation(labels))
    assert model.best_score_ < 0.75


def test_the_guard_keeps_all_features_on_noise():
    noise = RNG.normal(size=(40, 500))
    kept = [HeadToToeClassifier().fit(noise, RNG.permutation(np.arange(40) % 2)).fraction_ for _ in range(6)]
    assert kept.count(1.0) >= 5


@pytest.mark.parametrize(
    "settings",
    [
        {"blocks": [299]},
        {"blocks": [300, 0]},
        {"blocks": []},
        {"fractions": []},
        {"fractions": [0.0]},
        {"fractions": [1.1]},
        {"head": "auto"},
        {"guard": -1},
        {"metric": "auc"},
    ],
)
def test_selection_refuses(settings):
    with pytest.raises(ValueError, match=next(iter(settings)) if "head" not in settings else "plain head"):
        HeadToToeClassifier(**settings).fit(WIDE, Y)


def test_many_features_in_seconds():
    X = RNG.normal(size=(500, 20_000)).astype("float32")
    start = time.perf_counter()
    relevance(X, np.arange(500) % 10, [1.0, 10.0, 100.0])
    assert time.perf_counter() - start < 15  # half a second on a quiet core


@pytest.mark.parametrize("head", ["knn", "centroid", "lda", "logreg"])
def test_selection_before_other_heads_and_one_row_per_class(head):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (HeadToToeClassifier(head=head, cv=2).fit(WIDE, Y).predict(WIDE) == Y).mean() > 0.9
        one = HeadToToeClassifier(head=head).fit(WIDE[::20], Y[::20])
    assert one.fraction_ == 1.0 and one.tried_ == [] and len(one.selected_) == 300


# -- views ---------------------------------------------------------------------------------------------------------


def test_views_are_averaged():
    inner = make_head("logreg", C=0.1)
    for average in ("scores", "codes"):
        model = ViewsClassifier(inner, 3, average).fit(VIEWS, Y)
        each = [model.best_estimator_.decision_function(VIEWS[:, i * 20 : i * 20 + 20]) for i in range(3)]
        np.testing.assert_allclose(model.decision_function(VIEWS), np.mean(each, axis=0), atol=1e-4)
        p = model.predict_proba(VIEWS)
        scores = model.decision_function(VIEWS)
        expected = np.exp(scores - scores.max(1, keepdims=True))
        np.testing.assert_allclose(p, expected / expected.sum(1, keepdims=True), atol=1e-4)
        np.testing.assert_array_equal(model.classes_[p.argmax(1)], model.predict(VIEWS))
        W, b = linear_form(model)
        assert W.shape == (3, 60)
        np.testing.assert_array_equal(model.classes_[(VIEWS @ W.T + b).argmax(1)], model.predict(VIEWS))


def test_equal_views_with_weights_are_one_view():
    one, thrice = VIEWS[:, :20], np.tile(VIEWS[:, :20], 3)
    plain = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000)
    a = ViewsClassifier(plain, 1).fit(one, Y).decision_function(one)
    b = ViewsClassifier(plain, 3).fit(thrice, Y).decision_function(thrice)
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_views_of_an_image_never_straddle_a_fold():
    """Copies as views, labels that mean nothing: one nearest neighbour would be perfect if a copy could train."""
    rows, labels = np.repeat(RNG.normal(size=(60, 1, 8)), 3, axis=1).reshape(60, 24), RNG.integers(0, 2, 60)
    for inner in (SearchedHead("knn", max_candidates=1), AutoClassifier(cv=3)):
        assert ViewsClassifier(inner, 3).fit(rows, labels).best_estimator_.best_score_ < 0.75
    # k is chosen by leave-one-out: without an image's other views, too.
    assert ViewsClassifier("knn", 3).fit(rows, labels).best_estimator_["knn"].loo_score_ < 0.75
    assert set(ViewsClassifier("ridge", 3).fit(VIEWS, RNG.permutation(Y)).best_params_) == {"alpha"}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("inner", ["knn", "ridge", "lda", DecisionTreeClassifier(random_state=0)])
def test_any_head_over_views(inner, classes):
    keep = np.isin(Y, ["a", "b", "c"][:classes])
    model = ViewsClassifier(inner, 3).fit(VIEWS[keep], Y[keep])
    assert (model.predict(VIEWS[keep]) == Y[keep]).mean() > 0.95
    if hasattr(model, "predict_proba"):
        np.testing.assert_allclose(model.predict_proba(VIEWS[keep]).sum(axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"n_views": 0}, "n_views"), ({"n_views": 7}, "7 views divide"), ({"average": "votes"}, "average"),
     ({"estimator": 3}, "a head's name"), ({"metric": "auc"}, "metric"), ({"estimator": "nothing"}, "expected one of")],
)  # fmt: skip
def test_views_refuse(settings, message):
    with pytest.raises(ValueError, match=message):
        ViewsClassifier(**settings).fit(VIEWS, Y)


def test_joined_views_as_columns_and_as_rows():
    parts = [
        FeatureSet(
            np.full((4, 2), k), ["p", "q", "p", ""], ["1", "2", "3", "4"],
            groups=["g", "", "g", "h"], splits=["train", "test", "val", "train"], node="flatten",
            columns={"age": np.arange(4)},
        )
        for k in range(3)
    ]  # fmt: skip
    side = join_views(parts)
    assert side.node == "flatten ×3" and views_of(side.node) == 3 and views_of("flatten") == 1
    np.testing.assert_array_equal(side.X[0], [0, 0, 1, 1, 2, 2])
    rows = join_views(parts, rows=True)
    assert len(rows) == 12 and rows.node == "flatten" and rows.row_ids[4] == "1 #1"
    assert rows.groups[:4].tolist() == ["g", "2", "g", "h"] == rows.groups[8:].tolist()
    assert rows.splits.tolist() == ["train", "test", "val", "train"] + ["train", "", "", "train"] * 2
    assert rows.columns["age"].tolist() == [0, 1, 2, 3] * 3
    with pytest.raises(HeadError, match="other images"):
        join_views([parts[0], parts[1].select([0, 1])])
    with pytest.raises(HeadError, match="expected a FeatureStore"):
        join_views("folder")


def test_heads_over_layers_and_views_are_saved(tmp_path):
    layered = FeatureSet(WIDE, Y, node="a:6+b:294")
    viewed = FeatureSet(VIEWS, Y, node="flatten ×3")
    for head, data in ((HeadToToeClassifier([6, 294], cv=2), layered), (ViewsClassifier("ridge", 3), viewed)):
        fitted = fit(head, data)
        loaded = FittedHead.load(fitted.save(tmp_path / "x.head"))
        np.testing.assert_array_equal(loaded.predict_scores(data), fitted.predict_scores(data))
        assert loaded.node == data.node
    foreign = fit(ViewsClassifier(RandomForestClassifier(5, random_state=0), 3), viewed)
    with pytest.raises(HeadError, match="joblib"):
        foreign.save(tmp_path / "y.head")


# -- with a store --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A folder of images, a backbone with feature maps of two nodes, and a store with two augmented views."""
    root = tmp_path_factory.mktemp("several")
    folder = write_images(root / "images", 16)
    backbone = make_tiny_backbone(nodes=["features.3", "features.5", "penultimate"], pooling="none")
    store = fc.extract(folder, backbone, root / "s.features", augmented=2, precision="fp32", progress=False)
    return folder, backbone, store


def test_a_head_over_several_nodes_predicts_images(several):
    folder, backbone, store = several
    joined = join_layers(store, target_size=256)
    blocks = LayerBlocks.parse(joined.node)
    assert len(blocks.nodes) == len(store.nodes) == 3 and joined.X.shape[1] == sum(blocks.sizes)
    head = HeadToToeClassifier(blocks.sizes, fractions=[0.5], cv=2)
    for fitted in (
        fit("ridge", joined),
        fit(head, joined),
        fit(SearchedHead("logreg", cv=2, max_candidates=2), joined),
    ):
        rows = fc.predict(fitted, folder, backbone=backbone, progress=False)
        assert [r["label"] for r in rows] == fitted.predict(joined).tolist()
        found = np.array([list(r["scores"].values()) for r in rows])
        np.testing.assert_allclose(found, fitted.predict_scores(joined), atol=1e-4)
        module = fc.to_module(fitted, backbone=backbone)
        from PIL import Image

        images = [Image.open(p) for p in sorted(folder.rglob("*.jpg"))]
        with torch.no_grad():
            scores = module(torch.stack([fitted.preprocess(image) for image in images])).numpy()
        ids = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*.jpg"))]
        order = np.argsort(ids)
        np.testing.assert_array_equal(np.array(module.classes)[scores[order].argmax(1)], fitted.predict(joined))
    with pytest.raises(HeadError, match="node"):
        fitted.predict(join_layers(store, target_size=10**6))


def test_a_network_behind_a_power_can_be_trained_on(several):
    folder, backbone, store = several
    module = fc.to_module(fit(SearchedHead("ridge", cv=2), join_layers(store)), backbone=backbone)
    module.requires_grad_(True)
    x = torch.zeros(2, 3, 64, 64)
    module(x).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_views_of_a_store(several):
    folder, backbone, store = several
    node = list(store.nodes)[-1]
    with pytest.raises(HeadError, match="pooling='avg'"):
        join_views(store, node=list(store.nodes)[0])
    rows = join_views([join_layers(store, view_number=k) for k in range(3)], rows=True)
    plain = fit("ridge", rows)  # trained on all views; takes plain images
    assert plain.n_train == 48
    assert len(fc.predict(plain, folder, backbone=backbone, progress=False)) == 16
    side = join_views([join_layers(store, view_number=k) for k in range(3)])
    viewed = fit(ViewsClassifier("ridge", 3), side)
    with pytest.raises(HandoffError, match="rows=True"):
        fc.predict(viewed, folder, backbone=backbone, progress=False)
    for wrong in ([], [0, 0], "all", [-1], 1.5):
        with pytest.raises(HeadError, match="views"):
            join_views(store, wrong, node=node)
    with pytest.raises(StoreError, match="augmented view 3"):
        join_views(store, 3, node=node)


def test_the_command_line_takes_nodes_and_views(several, tmp_path, capsys):
    _, _, store = several
    words = ["--head", "ridge", "-o", str(tmp_path / "x.head"), "--json"]
    for more, rows in ((["--nodes", "all"], 16), (["--nodes", "all", "--views", "all"], 48)):
        assert run(["fit", str(store.path), *words, *more]) == 0
        assert FittedHead.load(tmp_path / "x.head").n_train == rows
    assert run(["compare", str(store.path), "--nodes", "all", "--heads", "ridge", "--seeds", "1", "-q"]) == 0
    capsys.readouterr()
    for more, message in (
        (["--nodes", "all", "--node", "x"], "--node or --nodes"),
        (["--nodes", "nothing"], "no node 'nothing'"),
        (["--nodes", "all", "--views", "some"], "expected 'all'"),
        (["--nodes", "all", "--views", "9"], "no augmented view 3"),
    ):
        assert run(["fit", str(store.path), *words, *more]) != 0
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1


# -- groups, weights, and names in files ---------------------------------------------------------------------------


def test_groups_and_weights_of_views_reach_a_pipelines_last_step():
    steps = [("scale", StandardScaler()), ("logreg", LogisticRegression(tol=1e-8, max_iter=2000))]
    thrice = np.hstack([WIDE[:, :20]] * 3)
    one, several = Pipeline(steps).fit(WIDE[:, :20], Y), ViewsClassifier(Pipeline(steps), n_views=3).fit(thrice, Y)
    np.testing.assert_allclose(several.best_estimator_[-1].coef_, one[-1].coef_, atol=2e-3)
    voters = Pipeline([("scale", StandardScaler()), ("knn", CosineKNeighborsClassifier())])
    assert ViewsClassifier(voters, n_views=3).fit(VIEWS, Y).best_estimator_[-1].groups_.tolist() == sorted(
        [*range(60)] * 3
    )


@pytest.mark.parametrize("make", [HeadToToeClassifier, SearchedHead])
def test_groups_reach_the_final_fit(make):
    groups = np.arange(60) // 2
    settings = {"fractions": (1.0,)} if make is HeadToToeClassifier else {"max_candidates": 1}
    model = make(head="knn", cv=2, **settings).fit(WIDE, Y, groups=groups)
    assert np.array_equal(model.best_estimator_[-1].groups_, groups)


@pytest.mark.parametrize("node", ["a:" + "9" * 5000, "a:9999999999", "a:0", "a:4x0x2"])
def test_shapes_no_code_can_have_are_not_parsed(node):
    assert LayerBlocks.parse(node) is None


def test_a_huge_shape_takes_no_memory():
    blocks = LayerBlocks.parse("a:4+b:999999999x9999x9999")
    with pytest.raises(HeadError, match="can be pooled"):
        blocks.join({"a": np.ones((3, 4)), "b": np.ones((3, 4, 5, 5))})


@pytest.mark.parametrize("node", ["nowhere", "flatten:999999999", "", "nowhere:64", "x" * 9000])
def test_a_crafted_node_is_refused_in_one_line(several, node):
    folder, backbone, store = several[:3]
    fitted = fit("ridge", join_layers(store))
    for use in (
        lambda head: fc.predict(head, folder, backbone=backbone, progress=False),
        lambda head: fc.to_module(head, backbone=backbone),
    ):
        with pytest.raises(HandoffError, match="node") as caught:
            use(replace(fitted, node=node))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
