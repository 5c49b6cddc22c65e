"""From head to network: predictions on raw images, and one nn.Module with the same scores."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_backbone, write_images
from PIL import Image
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression

import featcache as fc
from featcache.errors import HandoffError, HeadError, WeightsError

LINEAR = ["logreg", "softmax", "svm", "ridge", "lda", "centroid"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("handoff")
    folder = write_images(tmp / "images", 24, classes=("ant", "bee", "cow"))
    backbone = make_tiny_backbone()
    store = fc.extract(folder, backbone, tmp / "s", precision="fp32", progress=False)
    return folder, backbone, store.load()


def test_predict_on_raw_images_equals_predict_on_codes(setting):
    folder, _, data = setting
    fitted = fc.fit("logreg", data)
    rows = fc.predict(fitted, folder, progress=False)
    assert [r["id"].removeprefix(f"{folder}/") for r in rows] == data.ids.tolist()
    assert [r["label"] for r in rows] == fitted.predict(data).tolist()
    scores = np.asarray([[r["scores"][c] for c in fitted.classes_] for r in rows])
    assert np.allclose(scores, fitted.predict_scores(data), atol=1e-5)


def test_predict_takes_paths_arrays_images_and_codes(setting, tmp_path):
    folder, backbone, data = setting
    fitted = fc.fit("ridge", data)
    path = fitted.save(tmp_path / "h")
    first = folder / data.ids[0]
    with Image.open(first) as image:
        image.load()
    array = np.asarray(image)
    for images in ([first], [image], [array], fc.ImageSource.from_arrays([array])):
        assert fc.predict(path, images, backbone=backbone, progress=False)[0]["label"] == fitted.predict(data)[0]
    assert [r["label"] for r in fc.predict(fitted, data)] == fitted.predict(data).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_and_the_others_are_predicted(setting, tmp_path, workers):
    folder, _, data = setting
    (tmp_path / "broken.jpg").write_bytes(b"no")
    images = [tmp_path / "broken.jpg", folder / data.ids[0], tmp_path / "broken.jpg"]
    rows = fc.predict(fc.fit("knn", data), images[:2], workers=workers, batch_size=1, progress=False)
    assert sum("error" in r for r in rows) == 1 and sum("label" in r for r in rows) == 1
    assert next(r for r in rows if "error" in r)["id"].endswith("broken.jpg")


def test_what_does_not_belong_together_is_refused(setting):
    folder, backbone, data = setting
    fitted = fc.fit("ridge", data)
    with pytest.raises(HandoffError, match="preprocess.crop: 64, not 48"):
        fc.predict(fitted, folder, backbone=make_tiny_backbone(crop=48))
    other = fc.FeatureSet(data.X, data.y, spec={**data.spec, "dtype": "float16"}, fingerprint="f" * 64, node=data.node)
    with pytest.raises(HeadError, match="dtype: float32, not float16"):
        fc.predict(fitted, other)
    bare = fc.fit("ridge", fc.FeatureSet(data.X, data.y))
    with pytest.raises(HandoffError, match="without a spec"):
        fc.predict(bare, folder)
    with pytest.raises(WeightsError):
        wrong = make_tiny_backbone(seed=3).module()
        fc.predict(fitted, folder, weights=dict(wrong.state_dict()))


@pytest.mark.parametrize("head", LINEAR)
def test_the_module_gives_the_heads_scores(setting, head):
    folder, backbone, data = setting
    fitted = fc.fit(head, data)
    module = fc.to_module(fitted)
    images = torch.stack([fitted.preprocess(Image.open(folder / i)) for i in data.ids])
    with torch.inference_mode():
        scores = module(images).numpy()
    labels = np.asarray(module.classes)[scores.argmax(1)]
    assert (labels == fitted.predict(data)).mean() == 1.0
    if head in ("logreg", "softmax", "lda"):
        exp = np.exp(scores - scores.max(1, keepdims=True))
        assert np.allclose(exp / exp.sum(1, keepdims=True), fitted.predict_proba(data), atol=1e-4)
    else:
        expected = fitted.predict_scores(data)
        assert np.allclose(scores, expected, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("head", ["svm", "ridge", "centroid"])
def test_the_module_gives_the_heads_scores_of_two_classes(setting, head):
    folder, backbone, data = setting
    data = data.select(data.y != "cow")
    fitted = fc.fit(head, data)
    images = torch.stack([fitted.preprocess(Image.open(folder / i)) for i in data.ids])
    with torch.inference_mode():
        scores = fc.to_module(fitted, backbone=backbone)(images).numpy()
    expected = fitted.predict_scores(data)
    assert np.allclose(scores, expected, atol=1e-4 * max(1, np.abs(expected).max()))


def test_the_global_random_state_is_left_alone(setting):
    folder, backbone, data = setting
    fitted = fc.fit("softmax", data)
    before = torch.get_rng_state()
    fc.to_module(fitted, backbone=backbone)
    fc.predict(fitted, folder, backbone=backbone, progress=False)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": -1}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"workers": -1}, "workers"),
        ({"backbone": "squeezenet1_1"}, "expected a Backbone"),
        ({"fitted": None}, "expected a FittedHead"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_one_line(setting, options, reason):
    folder, backbone, data = setting
    fitted = fc.fit("centroid", data)
    with pytest.raises(HandoffError, match=reason) as caught:
        fc.predict(**{"fitted": fitted, "images": folder, "backbone": backbone, "progress": False, **options})
    assert "\n" not in str(caught.value)


def test_a_head_without_scores_predicts_labels_of_codes_too(setting):
    rows = fc.predict(fc.fit(VotingClassifier([("a", LogisticRegression())]), setting[2]), setting[2])
    assert rows[0]["scores"] == {} and rows[0]["label"] in ("ant", "bee", "cow")


def test_the_module_is_ready_for_training(setting):
    _, _, data = setting
    module = fc.to_module(fc.fit("logreg", data))
    assert not module.training and isinstance(module.head, torch.nn.Linear)
    assert all(p.requires_grad for p in module.head.parameters())
    assert not any(p.requires_grad for p in module.trunk.parameters())
    module(torch.zeros(2, 3, 64, 64)).sum().backward()
    assert module.head.weight.grad is not None


def test_a_head_that_is_not_linear_is_refused(setting):
    with pytest.raises(HeadError, match="linear"):
        fc.to_module(fc.fit("knn", setting[2]))
