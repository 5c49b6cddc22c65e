"""`finetune`: begins where the head ended, runs the frozen part once, goes on after a stop, says what it was worth."""

import copy
import errno
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import featcache as fc
from featcache.cli import run
from featcache.errors import FeatcacheError, FinetuneError
from featcache.finetuning import ImageFeed
from featcache.finetuning.evaluating import scores_of
from featcache.finetuning.outcome import outcome_of
from featcache.finetuning.scaling import divide_scores
from featcache.finetuning.starting import seen_by

SMALL = {"resize": 40, "crop": 40}
CLASSES = {"blue": (60, 60, 180), "green": (60, 180, 60), "red": (180, 60, 60)}


def draw(folder, n, seed=0):
    """Write n noisy images of each of three colours."""
    rng = np.random.default_rng(seed)
    for label, colour in CLASSES.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = np.clip(rng.normal(colour, 90.0, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Images with parts in a list, and their codes."""
    tmp = tmp_path_factory.mktemp("finetuning")
    draw(tmp / "images", 18)
    lines = ["file,class,part"]
    for label in CLASSES:
        parts = ["train"] * 8 + ["validation"] * 4 + ["test"] * 6
        lines += [f"{label}/{i:02d}.png,{label},{part}" for i, part in enumerate(parts)]
    (tmp / "list.csv").write_text("\n".join(lines))
    roles = {"path_column": "file", "label_column": "class", "split_column": "part"}
    source = fc.ImageSource.from_list(tmp / "list.csv", root=tmp / "images", **roles)
    backbone = fc.Backbone("embedded", preprocess=SMALL)
    data = fc.extract(source, backbone, tmp / "s.features", precision="fp32", progress=False).load()
    return source, backbone, data


@pytest.fixture(scope="module")
def head(setting):
    """A head that has seen the training images alone."""
    data = setting[2]
    return fc.fit("logreg", data.select(np.flatnonzero(data.splits == "train")))


@pytest.fixture(scope="module")
def finished(setting, head, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    tuned(head, setting[0], folder, epochs=1)
    return folder


def tuned(head, source, out, **options):
    options = {"stages": "last-1", "epochs": 2, "progress": False, "micro_batch": None, **options}
    return fc.finetune(head, source, out, **options)


@pytest.mark.parametrize(
    "name",
    ["logreg", "centroid", *(pytest.param(n, marks=pytest.mark.slow) for n in ("softmax", "svm", "ridge", "lda"))],
)
def test_the_first_evaluation_is_the_heads_own_accuracy(name, setting, tmp_path):
    source, _, data = setting
    train = data.select(np.flatnonzero(data.splits == "train"))
    fitted = fc.fit(name, train)
    done = tuned(fitted, source, tmp_path / "run", epochs=1)
    val = data.select(np.flatnonzero(data.splits == "validation"))
    assert done.history[0]["epoch"] == 0
    assert done.history[0]["val_accuracy"] == float(np.mean(fitted.predict(val) == val.y))
    test = data.select(np.flatnonzero(data.splits == "test"))
    assert done.outcome.part == "test" and done.outcome.n_images == 18
    assert done.outcome.head == float(np.mean(fitted.predict(test) == test.y))


@pytest.mark.parametrize("augment", [None, "views"])
@pytest.mark.parametrize("unfreeze", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in ("head", 2))])
def test_a_cached_trunk_changes_nothing(unfreeze, augment, setting, head, tmp_path):
    # SGD: Adam's first steps make as much of a gradient of 1e-8 as of any other, and so of the last bits below it.
    stage = fc.Stage(unfreeze, epochs=2, batch_size=8, lr=1e-3, optimizer="sgd")
    common = {"stages": stage, "epochs": None, "augment": augment, "n_views": 2}
    runs = [tuned(head, setting[0], tmp_path / str(cache), cache=cache, **common) for cache in (False, True)]
    steps = [[loss for line in run.history for loss in line["step_losses"]] for run in runs]
    assert len(steps[0]) == 2 * 3 and np.allclose(steps[0], steps[1], atol=1e-5, rtol=0)
    for key in ("train_loss", "val_loss"):
        losses = [[line[key] for line in run.history if line[key] is not None] for run in runs]
        assert len(losses[0]) >= 2 and np.allclose(losses[0], losses[1], atol=1e-5, rtol=0)
    a, b = (dict(run.module.state_dict()) for run in runs)
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)
    assert not (tmp_path / "False" / "trunk").exists()
    rows = {path.name.split("-")[-2]: fc.FeatureStore(path) for path in (tmp_path / "True" / "trunk").iterdir()}
    assert {part: len(store.load()) for part, store in rows.items()} == {"train": 24, "val": 12}  # no test images
    if augment:
        assert len(rows["train"].load(view_number=2)) == 24
        with pytest.raises(FeatcacheError):
            rows["val"].load(view_number=1)


def test_a_head_that_saw_the_images_that_judge_is_fitted_again(setting, tmp_path):
    source, _, data = setting
    fitted = fc.fit("logreg", data)  # on train and validation rows
    feed = ImageFeed(source, setting[1].preprocess, classes=fitted.classes_, progress=False)
    seen = seen_by(fitted, feed)
    assert (seen.known, seen.val, seen.test) == (True, True, False)
    done = tuned(fitted, source, tmp_path / "run", epochs=1)
    assert any("validation images" in note and "fitted again" in note for note in done.notes)
    train = fc.fit("logreg", data.select(np.flatnonzero(data.splits == "train")), params=fitted.params)
    val = data.select(np.flatnonzero(data.splits == "validation"))
    assert done.history[0]["val_accuracy"] == pytest.approx(float(np.mean(train.predict(val) == val.y)))
    test = data.select(np.flatnonzero(data.splits == "test"))
    assert done.outcome.head == float(np.mean(fitted.predict(test) == test.y))  # which it has not seen
    as_it_is = tuned(fitted, source, tmp_path / "head", epochs=1, start="head")
    assert not any("fitted again" in note for note in as_it_is.notes)


def test_a_head_that_saw_the_test_images_is_never_compared(setting, tmp_path):
    source, _, data = setting
    everything = fc.FeatureSet(data.X, data.y, ids=data.ids, spec=data.spec, locator=data.locator, node=data.node)
    done = tuned(fc.fit("ridge", everything), source, tmp_path / "run", epochs=1, start="head")
    assert any("test images" in note and "fitted again" in note for note in done.notes)
    assert done.outcome.worth_it is None and "may have seen them" in done.outcome.verdict
    fair = tuned(fc.fit("ridge", everything), source, tmp_path / "fair", epochs=1)
    assert fair.outcome.caution == ""
    train = fc.fit(
        "ridge", data.select(np.flatnonzero(data.splits == "train")), params=fc.fit("ridge", everything).params
    )
    test = data.select(np.flatnonzero(data.splits == "test"))
    assert fair.outcome.head == done.outcome.head == float(np.mean(train.predict(test) == test.y))


def test_parts_are_held_out_where_none_are_named(setting, head, tmp_path):
    folder = draw(tmp_path / "images", 10, seed=3)
    done = tuned(head, folder, tmp_path / "run", epochs=1, val_size=0.2, test_size=0.3)
    rows = done.settings["rows"]
    assert sum(rows.values()) == 30 and rows["test"] == 9 and rows["val"] > 0
    none = tuned(head, folder, tmp_path / "none", epochs=1, val_size=0.0, test_size=0.0)
    assert none.outcome is None and none.history[-1]["val_accuracy"] is None


def test_scores_begin_soft_and_end_calibrated(setting, head, tmp_path):
    source, _, data = setting
    done = tuned(head, source, tmp_path / "auto", epochs=3)
    exact = tuned(head, source, tmp_path / "head", epochs=1, start="head")
    first, other = done.history[0], exact.history[0]
    assert first["val_accuracy"] == other["val_accuracy"]
    assert other["val_loss"] == first["val_loss"]  # before anything trains it is the head
    begun, kept = done.history[1]["step_losses"][0], exact.history[1]["step_losses"][0]
    assert kept < begun < np.log(3)
    with pytest.raises(FinetuneError, match="softening|start"):
        tuned(head, source, tmp_path / "auto", epochs=3, start="head")
    feed = ImageFeed(source, setting[1].preprocess, classes=head.classes_, progress=False)
    truth = torch.from_numpy(feed.labels[feed.rows["val"]])
    scores = torch.from_numpy(scores_of(done.module, feed, feed.rows["val"])).double()
    losses = [float(nn.functional.cross_entropy(scores * by, truth)) for by in (0.8, 1.0, 1.25)]
    spread = float((scores - scores.mean(1, keepdim=True)).std())
    assert done.settings["temperature"] != 1.0 and spread > 0
    # The prior of one row keeps the probabilities a little below those of the smallest loss.
    assert losses[1] < losses[0] and losses[1] - min(losses) < 0.05
    raw = load_file(tmp_path / "auto" / "final.safetensors")
    scaled = done.module.head.weight * done.settings["temperature"]
    assert torch.allclose(raw["head.weight"], scaled, rtol=1e-5)


def test_scores_that_nothing_can_calibrate_are_told_of_or_left_alone(setting, head, tmp_path):
    source = setting[0]
    done = tuned(head, source, tmp_path / "none", epochs=1, val_size=0.0)
    assert done.settings["temperature"] is not None  # the list names validation images
    folder = draw(tmp_path / "more", 8, seed=3)
    done = tuned(head, folder, tmp_path / "without", epochs=1, val_size=0.0)
    assert done.settings["temperature"] is None and any("not calibrated" in note for note in done.notes)
    own = tuned(head, source, tmp_path / "own", epochs=1, loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    assert json.loads((tmp_path / "own" / "run.json").read_text())["run"]["softening"] == 1.0
    assert own.settings["temperature"] is None and not any("not calibrated" in note for note in own.notes)


def test_folders_that_are_no_place_for_a_run(setting, head, tmp_path):
    images = draw(tmp_path / "images", 8)
    for place in (images, images / "red" / "run"):
        with pytest.raises(FinetuneError, match="outside of the images"):
            tuned(head, images, place)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "history.json").write_text("mine")
    with pytest.raises(FinetuneError, match="no run.json"):
        tuned(head, images, tmp_path / "other")
    assert (tmp_path / "other" / "history.json").read_text() == "mine"


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"format": 99, "run": {}}', '{"format": 2, "run": 5}', '{"format": 2, "run": {}}']
)
def test_settings_that_no_run_has_written(text, setting, head, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(FinetuneError, match=r"run"):
        tuned(head, setting[0], tmp_path / "run", epochs=1)


def test_damaged_helpers_of_a_run_are_made_again(setting, head, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "cuts.json").write_text("[]")
    for store in (tmp_path / "run" / "trunk").iterdir():
        for shard in store.rglob("*.h5"):
            shard.write_bytes(b"")
    for path in (tmp_path / "run").glob("checkpoint-*"):
        path.unlink()
    (tmp_path / "run" / "final.json").unlink()
    tuned(head, setting[0], tmp_path / "run", epochs=1)
    assert (tmp_path / "run" / "final.safetensors").read_bytes() == (finished / "final.safetensors").read_bytes()
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(FinetuneError, match=r"run\.json"):
        tuned(head, setting[0], tmp_path / "run", epochs=1)


def test_what_is_often_taken_for_a_head_is_named(setting, finished, tmp_path):
    for given, words in (
        (finished, "model.bundle"),
        (tmp_path, "got a folder"),
        (finished / "model.bundle", "a bundle"),
    ):
        with pytest.raises(FeatcacheError, match=words):
            tuned(given, setting[0], tmp_path / "run")


def test_many_unreadable_images_are_an_error_and_few_are_not(head, tmp_path):
    images = draw(tmp_path / "images", 8)
    (images / "red" / "00.png").write_bytes(b"no image")
    with pytest.raises(FinetuneError, match="max_failed"):
        tuned(head, images, tmp_path / "run", epochs=1)
    done = tuned(head, images, tmp_path / "run", epochs=1, max_failed=0.1)
    assert sum(done.settings["rows"].values()) == 23 and any("00.png" in note for note in done.notes)


def test_a_full_disk_is_one_line(setting, head, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("featcache.finetuning.whole.make_folder", full)
    with pytest.raises(FinetuneError, match="No space left on device; see to"):
        tuned(head, setting[0], tmp_path / "run")


def test_only_plain_linear_layers_are_scaled(head):
    model = fc.to_module(head)
    weight = model.head.weight.detach().clone()
    assert divide_scores(model, 4.0) and torch.allclose(model.head.weight * 4, weight)
    torch.nn.utils.parametrizations.weight_norm(model.head)
    bias = model.head.bias.detach().clone()
    assert not divide_scores(model, 4.0) and torch.equal(model.head.bias, bias)


@pytest.mark.parametrize("start", ["fresh", "scratch"])
def test_other_starts_are_seeded_and_leave_the_head_alone(start, setting, head, tmp_path):
    runs = [
        tuned(head, setting[0], tmp_path / f"{i}", stages="all", start=start, epochs=1, seed=seed)
        for i, seed in enumerate((1, 1, 2))
    ]
    first = [next(iter(run.module.head.parameters())) for run in runs]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    assert runs[0].outcome.head == runs[2].outcome.head


def test_own_blocks_on_a_frozen_trunk(setting, head, tmp_path):
    lower = fc.Backbone("embedded", nodes="features.6", pooling="none", preprocess=SMALL)
    channels = lower.output_shapes[lower.nodes[0]][0]
    top = nn.Sequential(
        nn.Conv2d(channels, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    model = fc.assemble(lower, top, head.classes_.tolist())
    before = {name: value.clone() for name, value in model.trunk.state_dict().items()}
    curved = copy.deepcopy(top)
    curved[2] = nn.GELU()  # the same tensors, another network
    other = fc.assemble(lower, curved, head.classes_.tolist())
    tuned(other, setting[0], tmp_path / "other", stages="head", epochs=1)
    with pytest.raises(FinetuneError, match="layers"):
        tuned(model, setting[0], tmp_path / "other", stages="head", epochs=1)
    done = tuned(model, setting[0], tmp_path / "run", stages="head", epochs=4, lr=0.01, compare_with=head)
    assert done.history[-1]["train_loss"] < done.history[1]["train_loss"]
    assert all(torch.equal(value, before[name]) for name, value in done.module.trunk.state_dict().items())
    assert done.outcome.head == pytest.approx(
        float(
            np.mean(
                head.predict(setting[2].select(np.flatnonzero(setting[2].splits == "test")))
                == np.repeat(sorted(CLASSES), 6)
            )
        )
    )


def test_frozen_blocks_keep_weights_and_running_statistics(setting, head, tmp_path):
    before = fc.to_module(head).state_dict()
    stages = fc.Training((fc.Stage(1, epochs=2, batch_norm="trained"),), restore_best=False)
    done = tuned(head, setting[0], tmp_path / "run", stages=stages, epochs=None, cache=False)
    last = fc.finetuning.blocks_of(done.module)[-1]
    moved = {name for name, value in done.module.state_dict().items() if not torch.equal(value, before[name])}
    inside = [name for name in moved if any(name.startswith(f"{module}.") for module in last.modules)]
    assert inside and all(name in inside or name.startswith("head.") for name in moved)


def test_a_finished_run_is_extended_and_a_changed_one_refused(setting, head, tmp_path):
    common = {"schedule_epochs": 4, "cache": False}
    tuned(head, setting[0], tmp_path / "run", epochs=2, **common)
    longer = tuned(head, setting[0], tmp_path / "run", epochs=4, **common)
    at_once = tuned(head, setting[0], tmp_path / "other", epochs=4, **common)
    assert (tmp_path / "run" / "final.safetensors").read_bytes() == (
        tmp_path / "other" / "final.safetensors"
    ).read_bytes()
    for key in ("epoch", "train_loss", "val_loss"):
        assert [line[key] for line in longer.history] == [line[key] for line in at_once.history]
    with pytest.raises(FinetuneError, match="lr"):
        tuned(head, setting[0], tmp_path / "run", epochs=4, lr=0.5, **common)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stages": "upside-down"}, "strategy"),
        ({"start": "middle"}, "start"),
        ({"stages": fc.Stage("head"), "epochs": 3}, "epochs"),
        ({"stages": fc.Stage(("layer9",)), "epochs": None}, "layer9"),
        ({"cache": True, "augment": lambda image: image}, "cannot be cached"),
        ({"augment": "upside-down"}, "augment"),
        ({"device": "abacus"}, "device"),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(options, said, setting, head, tmp_path):
    with pytest.raises(FeatcacheError, match=said) as caught:
        tuned(head, setting[0], tmp_path / "run", **options)
    assert "\n" not in str(caught.value)


def test_heads_that_are_no_layer_and_strange_labels_are_refused(setting, head, tmp_path):
    with pytest.raises(FeatcacheError, match="linear head"):
        tuned(fc.fit("knn", setting[2]), setting[0], tmp_path / "run")
    strange = draw(tmp_path / "images", 2)
    (strange / "violet").mkdir()
    Image.new("RGB", (40, 40)).save(strange / "violet" / "1.png")
    with pytest.raises(FinetuneError, match="violet"):
        tuned(head, strange, tmp_path / "run")


def test_the_command_trains_predicts_and_says_what_it_was_worth(setting, head, tmp_path, capsys):
    head.save(tmp_path / "h.head")
    folder = draw(tmp_path / "images", 8, seed=5)
    words = ["finetune", tmp_path / "h.head", folder, "-o", tmp_path / "run", "--stages", "last-1", "--epochs", "1"]
    assert run([*map(str, words), "--test-size", "0.3", "--quiet", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["epochs"] == 1 and said["outcome"]["part"] == "test" and said["outcome"]["verdict"]
    assert run([*map(str, words), "--test-size", "0.3", "--quiet"]) == 0  # a finished run: nothing to do
    assert "test images" in capsys.readouterr().out
    assert run(["predict", said["bundle"], str(folder / "red"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 8
    assert run([*map(str, words), "--epochs", "0"]) == 2


def test_the_outcome_is_paired_and_knows_groups():
    true = np.arange(200) % 2
    rng = np.random.default_rng(0)
    before, after = (np.where(rng.random(200) < share, true, 1 - true) for share in (0.7, 0.9))
    alone = outcome_of(true, before, after, part="test")
    assert alone.worth_it and alone.difference_ci95[0] > 0 and "worth it" in alone.verdict
    grouped = outcome_of(true, before, after, part="test", units=np.arange(200) // 40)
    assert np.ptp(grouped.difference_ci95) > np.ptp(alone.difference_ci95)
    same = outcome_of(true, before, before, part="val")
    assert same.worth_it is None and same.difference_ci95 == (0.0, 0.0) and "chose the epoch" in same.verdict
    chosen = outcome_of(true, before, after, part="val")
    assert chosen.worth_it is None  # the best of many epochs looks good
    assert outcome_of(true, before, after, part="test", caution="it saw them").worth_it is None
    worse = outcome_of(true, after, before, part="test")
    assert worse.worth_it is False and "worse" in worse.verdict
    assert alone.difference == pytest.approx(-worse.difference)


def test_a_named_strategy_is_extended_by_its_last_stage(setting, head, tmp_path):
    common = {"stages": "gradual", "cache": False, "schedule_epochs": 5}
    tuned(head, setting[0], tmp_path / "run", epochs=3, **common)
    longer = tuned(head, setting[0], tmp_path / "run", epochs=5, **common)
    assert [line["stage"] for line in longer.history] == [1, 1, 2, 3, 3, 3]


def test_a_killed_run_goes_on_within_a_cached_stage(setting, tmp_path, monkeypatch):
    from featcache.finetuning import running

    fitted = fc.fit("logreg", setting[2])  # it is fitted again, and kept
    common = {"stages": "gradual", "epochs": 6, "batch_size": 8, "checkpoint_minutes": 0.0}
    expected = tuned(fitted, setting[0], tmp_path / "whole", **common)
    step, taken = running.Run._step, []

    def interrupted(self, *args):
        taken.append(self.place.stage)
        if len(taken) in (2, 5, 11):
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(running.Run, "_step", interrupted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            tuned(fitted, setting[0], tmp_path / "killed", **common)
    done = tuned(fitted, setting[0], tmp_path / "killed", **common)
    assert [(line["train_loss"], line["val_loss"]) for line in done.history] == [
        (line["train_loss"], line["val_loss"]) for line in expected.history
    ]
    assert (tmp_path / "killed" / "cuts.json").exists() and len(set(taken)) == 3
    whole, killed = ((tmp_path / name / "final.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed


def test_a_given_network_stays_as_it_is_and_classes_may_have_any_order(setting, head, tmp_path):
    source, backbone, data = setting
    top = nn.Linear(backbone.output_shapes[backbone.nodes[0]][0], 3)
    model = fc.assemble(backbone, top, ["red", "blue", "green"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):  # the second call finds a finished run
        done = tuned(model, source, tmp_path / "run", stages="all", epochs=1, compare_with=head)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    test = data.select(np.flatnonzero(data.splits == "test"))
    assert done.outcome.head == float(np.mean(head.predict(test) == test.y))
    with pytest.raises(FinetuneError, match="compare_with"):
        tuned(fc.assemble(backbone, top, ["a", "b", "c"]), source, tmp_path / "other", compare_with=head)


def test_always_caching_leaves_stages_alone_that_train_all(setting, head, tmp_path):
    done = tuned(head, setting[0], tmp_path / "run", stages="gradual", epochs=3, cache=True)
    assert json.loads((tmp_path / "run" / "cuts.json").read_text())["2"] is None and len(done.history) == 4
