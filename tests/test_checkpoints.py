"""What survives: kills at any moment, damaged files, other settings, extensions."""

import contextlib
import json
import multiprocessing
import time

import numpy as np
import pytest
import torch
from finetuning_parts import TinyNet, make_feed, make_source, run, same

from featcache import ImageSource
from featcache.errors import FinetuneError
from featcache.files import Disk
from featcache.finetuning import ImageFeed, Stage, Training
from featcache.finetuning.checkpoints import Checkpoints
from featcache.finetuning.evaluating import Judged
from featcache.finetuning.place import Place

needs_kill = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="needs processes that can be forked and killed"
)
STEPS = 3 * 3 + 2 * 5 + 3 * 5


def everything(**options):
    """A training that uses all that has a state: dropout, batch norms, transforms, mixing, averages, a scheduler."""
    from torchvision.transforms import v2

    stages = (
        Stage("head", epochs=3, batch_size=12, lr=1e-2),
        Stage(1, epochs=2, batch_size=8, lr=1e-2, optimizer="sgd"),
        Stage("all", epochs=3, batch_size=8, lr=1e-2, schedule=falling),
    )
    defaults = {"average": "ema", "ema_decay": 0.8, "interpolate": "auto", "batch_norm": "trained", "seed": 5}
    return Training(stages, mix=v2.MixUp(num_classes=3), clip_norm=1.0, **{**defaults, **options})


def falling(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def everything_feed():
    from torchvision.transforms import v2

    return make_feed(augment=v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(14)]))


class Telling:
    """Tells another process of each step, after it."""

    def __init__(self, pipe=None):
        self.pipe = pipe

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None

    def start(self, what, total):
        return None

    def advance(self, steps=1, note=""):
        if note:
            self.pipe.send(note)


def child(folder, pipe):
    torch.set_num_threads(1)
    run(folder, everything(checkpoint_minutes=0.0002), everything_feed(), progress=Telling(pipe))


def killed_after(folder, steps, seconds=0.0):
    """Run in another process, and kill it so many seconds after so many steps."""
    # A server that has imported everything starts each process at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_checkpoints", "torchvision.transforms.v2"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(str(folder), theirs))
    process.start()
    theirs.close()
    with contextlib.suppress(EOFError):  # it was done before
        for _ in range(steps):
            ours.recv()
        time.sleep(seconds)
    process.kill()  # SIGKILL
    process.join()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run(tmp_path_factory.mktemp("whole"), everything(), everything_feed())
    torch.set_num_threads(threads)


def moments(seed, count):
    """Steps after which to kill: right before and after changes of stage, the rest at random."""
    chosen = [9, 10, 20][:count]
    drawn = np.random.default_rng(seed).integers(1, STEPS + 3, max(0, count - 3)).tolist()
    return chosen + drawn


def check_kill(tmp_path, moment, uninterrupted):
    """Kill, kill again a little later, and go on."""
    generator = np.random.default_rng(moment)
    killed_after(tmp_path, moment, float(generator.uniform(0, 0.02)))
    if moment % 3 == 0:
        killed_after(tmp_path, int(generator.integers(1, 6)))
    trained = run(tmp_path, everything(checkpoint_minutes=0.0002), everything_feed())
    assert same(trained.model, uninterrupted.model)
    timeless = [{**row, "seconds": 0, "images_per_second": 0} for row in trained.history]
    assert timeless == [{**row, "seconds": 0, "images_per_second": 0} for row in uninterrupted.history]
    assert trained.final == uninterrupted.final


@needs_kill
@pytest.mark.parametrize("moment", moments(0, 3))
def test_a_killed_run_ends_with_the_same_bits(tmp_path, moment, uninterrupted):
    check_kill(tmp_path, moment, uninterrupted)


@needs_kill
@pytest.mark.slow
@pytest.mark.parametrize("moment", moments(1, 20), ids=lambda m: f"step{m}")
def test_twenty_killed_runs_end_with_the_same_bits(tmp_path, moment, uninterrupted):
    check_kill(tmp_path, moment, uninterrupted)


class Interrupted(Exception):
    pass


class StopsAfter(Telling):
    def __init__(self, steps):
        self.left = steps

    def advance(self, steps=1, note=""):
        self.left -= bool(note)
        if self.left == 0:
            raise Interrupted


@pytest.mark.parametrize(
    "step", [s if s in (2, 9, 10, 23) else pytest.param(s, marks=pytest.mark.slow) for s in range(1, STEPS + 1)]
)
def test_every_step_of_a_run_can_be_the_last_before_an_interruption(tmp_path, step, uninterrupted):
    with pytest.raises(Interrupted):
        run(tmp_path, everything(checkpoint_minutes=0.0), everything_feed(), progress=StopsAfter(step))
    assert same(run(tmp_path, everything(), everything_feed()).model, uninterrupted.model)


@pytest.mark.parametrize(
    "stage", [{"schedule": "constant"}, {"schedule_epochs": 6}, {"schedule_epochs": 6, "schedule": "linear"}]
)
@pytest.mark.parametrize("average", ["none", "swa"])
def test_extending_is_as_if_it_had_been_asked_for_at_once(tmp_path, stage, average):
    def training(epochs):
        stages = (Stage("head", 1, 12), Stage("all", epochs, 8, lr=1e-2, **stage))
        return Training(stages, batch_norm="trained", average=average, average_from=4, restore_best=average == "none")

    whole = run(tmp_path / "whole", training(6))
    first = run(tmp_path / "parts", training(3))
    longer = run(tmp_path / "parts", training(6))
    assert len(first.history) == 5 and len(longer.history) == 8
    assert same(longer.model, whole.model)


def test_a_schedule_that_an_extension_stretches_is_told(tmp_path):
    said = []
    run(tmp_path, Training(Stage("head", 2)), say=said.append)
    run(tmp_path, Training(Stage("head", 3)), say=said.append)
    assert any("spanned 2 epochs and spans 3" in text for text in said)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = run(tmp_path)
    names = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("checkpoint-*")}
    again = run(tmp_path, progress=StopsAfter(1))
    assert same(first.model, again.model) and first.history == again.history and first.final == again.final
    assert names == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("checkpoint-*")}


def test_a_stage_that_was_ended_early_can_be_extended(tmp_path):
    def training(epochs):
        return Training(Stage("head", epochs, lr=1e-12, weight_decay=0.0, schedule="constant"), patience=1)

    first = run(tmp_path, training(5))
    assert first.stopped == "early" and len(first.history) < 6
    assert len(run(tmp_path, training(8)).history) > len(first.history)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"training": everything(seed=6)}, "seed: 5, not 6"),
        ({"training": everything(average="swa")}, "average"),
        ({"training": Training(Stage())}, "average: ema, not none.* more"),
        ({"model": TinyNet(seed=4)}, "model"),
        ({"feed": make_feed(45)}, "images"),
    ],
)
def test_another_run_in_the_folder_is_refused_with_the_difference(tmp_path, options, words):
    with pytest.raises(Interrupted):
        run(tmp_path, everything(), everything_feed(), progress=StopsAfter(1))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(FinetuneError, match=words) as caught:
        run(tmp_path, **{"training": everything(), "feed": everything_feed(), **options})
    assert "\n" not in str(caught.value) and before == sorted(path.name for path in tmp_path.iterdir())


def test_fewer_epochs_and_longer_earlier_stages_are_refused(tmp_path):
    run(tmp_path, Training((Stage("head", 1), Stage("all", 2))))
    for stages in ((Stage("head", 1), Stage("all", 1)), (Stage("head", 2), Stage("all", 2))):
        with pytest.raises(FinetuneError, match=r"stage \d.epochs"):
            run(tmp_path, Training(stages))


def test_resume_false_wants_a_folder_without_a_run(tmp_path):
    run(tmp_path, Training(Stage()), resume=False)
    with pytest.raises(FinetuneError, match="without a run"):
        run(tmp_path, Training(Stage()), resume=False)


def test_another_number_of_threads_is_told(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, progress=StopsAfter(1))
    content = json.loads((tmp_path / "run.json").read_text())
    content["environment"]["threads"] += 1
    (tmp_path / "run.json").write_text(json.dumps(content))
    said = []
    run(tmp_path, say=said.append)
    assert any("threads" in text and "last bits" in text for text in said)


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "first line"])
def test_a_damaged_checkpoint_costs_only_itself(tmp_path, damage, uninterrupted):
    with pytest.raises(Interrupted):
        run(tmp_path, everything(checkpoint_minutes=0.0), everything_feed(), progress=StopsAfter(20))
    newest = sorted(tmp_path.glob("checkpoint-*.pt"))[-1]
    data = bytearray(newest.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    cut = {"cut": data[: len(data) // 2], "flipped": data, "emptied": b"", "first line": b"x" + data}[damage]
    newest.write_bytes(cut)
    said = []
    trained = run(tmp_path, everything(), everything_feed(), say=said.append)
    assert any(newest.name in text and "before it" in text for text in said)
    assert same(trained.model, uninterrupted.model)


def test_when_all_checkpoints_are_damaged_the_run_begins_again(tmp_path):
    first = run(tmp_path)
    for path in tmp_path.glob("checkpoint-*.pt"):
        path.write_bytes(b"")
    assert same(run(tmp_path, say=lambda text: None).model, first.model)


def test_only_the_last_two_checkpoints_and_the_best_weights_are_kept(tmp_path):
    trained = run(tmp_path, everything(average="none"), everything_feed())
    assert len(list(tmp_path.glob("checkpoint-*.pt"))) == 2
    best = {path.name for path in tmp_path.glob("best-*.safetensors")}
    assert trained.best["file"] in best and len(best) <= 2
    assert len(list(tmp_path.glob("anchor-*"))) == 1 and not list(tmp_path.glob(".*"))


def test_a_checkpoint_holds_no_code(tmp_path):
    class Code:
        def __reduce__(self):
            return (print, ("run",))

    with pytest.raises(FinetuneError, match="without running code"):
        Checkpoints(tmp_path, print).save(Place(), {"schedule": Code()})
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_from_elsewhere_cannot_run_code(tmp_path, capsys):
    import hashlib
    import pickle

    class Code:
        def __reduce__(self):
            return (print, ("pwned",))

    payload, here = pickle.dumps({"model": Code()}), json.dumps(Place().as_dict())
    digest = hashlib.sha256(here.encode() + b"\n" + payload).hexdigest()
    header = json.dumps({"format": 1, "sha256": digest, "place": here}).encode() + b"\n"
    (tmp_path / "checkpoint-00000001.pt").write_bytes(header + payload)
    said = []
    assert Checkpoints(tmp_path, said.append).load() is None
    assert "pwned" not in capsys.readouterr().out and said


class Recording(Disk):
    def __init__(self):
        self.calls = []

    def write(self, path, data):
        self.calls.append("write")
        super().write(path, data)

    def fsync(self, path):
        self.calls.append("folder" if path.is_dir() else "fsync")
        super().fsync(path)

    def link(self, source, target):
        self.calls.append("link")
        super().link(source, target)


def test_checkpoints_are_durable_before_they_are_visible(tmp_path):
    disk = Recording()
    Checkpoints(tmp_path, print, disk).save(Place(), {"model": {"w": torch.ones(3)}})
    assert disk.calls == ["write", "fsync", "link", "folder"]


def test_a_disk_that_fails_leaves_the_checkpoint_before(tmp_path):
    class Full(Disk):
        def fsync(self, path):
            raise OSError(28, "No space left on device")

    Checkpoints(tmp_path, print).save(Place(taken=1), {"w": torch.ones(3)})
    with pytest.raises(OSError, match="space"):
        Checkpoints(tmp_path, print, Full()).save(Place(taken=2), {"w": torch.ones(3)})
    assert Checkpoints(tmp_path, print).load()[0].taken == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_two_runs_in_one_folder_are_noticed(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, print)
    checkpoints.save(Place(), {})
    monkeypatch.setattr(Checkpoints, "_all", lambda self: [])
    with pytest.raises(FinetuneError, match="another process"):
        checkpoints.save(Place(), {})


def test_images_that_changed_are_another_run(tmp_path):
    images = [make_source(12).read(i) for i in range(12)]
    labels = make_source(12).columns["label"]

    def feed(images):
        from finetuning_parts import RECIPE

        return ImageFeed(ImageSource.from_arrays(images, labels=labels), RECIPE, progress=False)

    run(tmp_path, feed=feed(images))
    changed = [images[0].copy(), *images[1:]]
    changed[0][0, 0, 0] ^= 1
    with pytest.raises(FinetuneError, match="images"):
        run(tmp_path, feed=feed(changed))


def test_patience_goes_by_accuracy_then_loss():
    place = Place()
    for loss, accuracy, waited in ((1.0, 0.5, 0), (0.9, 0.5, 0), (0.9, 0.5, 1), (0.5, 0.4, 2), (2.0, 0.6, 0)):
        place.wait(Judged(loss, accuracy), patience=3)
        assert place.waited == waited and not place.stopped
