"""Settings of a training: what is refused, what is recorded, the strategies of the field."""

import functools
import json
import os
import re
import subprocess
import sys

import pytest
import torch

from featcache.errors import FinetuneError
from featcache.finetuning import Stage, Training, strategy
from featcache.finetuning.settings import recorded
from featcache.finetuning.strategies import STRATEGIES


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Stage("heads"), "stage.unfreeze"),
        (lambda: Stage(0), "stage.unfreeze"),
        (lambda: Stage(()), "stage.unfreeze"),
        (lambda: Stage(True), "stage.unfreeze"),
        (lambda: Stage(epochs=0), "stage.epochs"),
        (lambda: Stage(batch_size=2.5), "stage.batch_size"),
        (lambda: Stage(lr=0.0), "stage.lr"),
        (lambda: Stage(lr=float("nan")), "stage.lr"),
        (lambda: Stage(lr=1e300), "stage.lr"),
        (lambda: Training(Stage(), n_views=10**8), "training.n_views"),
        (lambda: Stage(backbone_lr=-1.0), "stage.backbone_lr"),
        (lambda: Stage(layer_decay=1.5), "stage.layer_decay"),
        (lambda: Stage(weight_decay=-0.1), "stage.weight_decay"),
        (lambda: Stage(epochs=2, warmup=3), "stage.warmup"),
        (lambda: Stage(epochs=5, schedule_epochs=4), "stage.schedule_epochs"),
        (lambda: Stage(schedule="step"), "stage.schedule"),
        (lambda: Stage(optimizer="lion"), "stage.optimizer"),
        (lambda: Stage(batch_norm="on"), "stage.batch_norm"),
        (lambda: Training([]), "training.stages"),
        (lambda: Training(["head"]), "training.stages"),
        (lambda: Training(Stage(), seed=-1), "training.seed"),
        (lambda: Training(Stage(), loss="ce"), "training.loss"),
        (lambda: Training(Stage(), augment="flip"), "training.augment"),
        (lambda: Training(Stage(), mix="mixup"), "training.mix"),
        (lambda: Training(Stage(), amp="fp8"), "training.amp"),
        (lambda: Training(Stage(), clip_norm=0.0), "training.clip_norm"),
        (lambda: Training(Stage(), patience=0), "training.patience"),
        (lambda: Training(Stage(), average="mean"), "training.average"),
        (lambda: Training(Stage(), interpolate=1.5), "training.interpolate"),
        (lambda: Training(Stage(), micro_batch=0), "training.micro_batch"),
        (lambda: Training(Stage(), loss=len, class_weight="balanced"), "training.class_weight"),
        (lambda: strategy("most", 3), "strategy"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(make, words):
    with pytest.raises(FinetuneError, match=re.escape(words)) as caught:
        make()
    assert "\n" not in str(caught.value) and "expected" in str(caught.value) and "got" in str(caught.value)


def test_defaults_are_those_of_the_field():
    stage, training = Stage("all"), Training(Stage("all"))
    assert stage.rate_of_backbone == pytest.approx(stage.lr / 10)
    assert stage.schedule == "cosine" and stage.warmup > 0 and stage.layer_decay < 1
    assert training.batch_norm == "frozen" and training.restore_best


def test_settings_are_json_and_tell_one_object_from_another():
    from torchvision.transforms import v2

    def made(**options):
        return json.dumps(Training(Stage(optimizer=functools.partial(torch.optim.SGD, **options))).as_dict())

    assert "torch.optim.sgd.SGD" in made(momentum=0.9) and made(momentum=0.9) != made(momentum=0.5)
    flip = Training(Stage(), augment=v2.RandomHorizontalFlip(0.3), loss=torch.nn.CrossEntropyLoss(label_smoothing=0.1))
    text = json.dumps(flip.as_dict())
    assert "RandomHorizontalFlip(p=0.3)" in text and "CrossEntropyLoss" in text


def test_objects_are_recorded_without_their_address():
    class Mine:
        pass

    assert recorded(Mine()) == recorded(Mine()) and "0x" not in recorded(Mine())
    assert "0x" not in json.dumps(recorded(torch.nn.Sequential(torch.nn.ReLU())))
    one, other = torch.nn.CrossEntropyLoss(label_smoothing=0.1), torch.nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]))
    assert len({json.dumps(recorded(x)) for x in (one, other, torch.nn.CrossEntropyLoss())}) == 3
    assert recorded(torch.tensor([1.0, 2.0])) == [1.0, 2.0]


def test_functions_without_a_name_are_told_apart():
    def scaled(by):
        return lambda x: x * by

    def smoothed(value):
        loss = torch.nn.CrossEntropyLoss(label_smoothing=value)
        return lambda scores, codes: loss(scores, codes)

    plain = (lambda x: x + 1, lambda x: x + 2, lambda x: x * 1, scaled(1), scaled(2), smoothed(0.1), smoothed(0.2))
    assert len({recorded(each) for each in plain}) == len(plain)
    assert recorded(scaled(2)) == recorded(scaled(2)) and "scaled" in recorded(scaled(2))
    makers = [lambda x: x - 3, lambda x: x - 3]  # where one stands does not matter
    assert recorded(makers[0]) == recorded(makers[1])


def test_functions_that_hold_themselves_nothing_yet_or_sets_are_recorded():
    def outer(names):
        def within(x):
            return within if x in names else later

        before = recorded(within)
        later = 1
        return before, recorded(within)

    found = outer({"a", "b", "c"})
    assert all("within" in each for each in found)
    code = "from featcache.finetuning.settings import recorded\n"
    code += "s = {'a', 'b', 'c'}\nprint(recorded((lambda n: lambda x: x in n)(s)))"
    said = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in (1, 2, 3)
    }  # fmt: skip
    assert len(said) == 1


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("n_blocks", [1, 3, 18])
@pytest.mark.parametrize("epochs", [1, 2, 10])
def test_strategies_fit_networks_of_any_depth(name, n_blocks, epochs):
    if name == "gradual" and epochs < 3:
        with pytest.raises(FinetuneError, match="3 stages"):
            strategy(name, n_blocks, epochs=epochs)
        return
    stages = strategy(name, n_blocks, epochs=epochs)
    assert all(not isinstance(s.unfreeze, int) or s.unfreeze <= n_blocks for s in stages)
    assert sum(s.epochs for s in stages) == epochs


def test_gradual_goes_from_the_head_to_everything_and_frozen_stages_have_larger_batches():
    stages = strategy("gradual", 18, batch_size=16)
    assert [s.unfreeze for s in stages] == ["head", 4, "all"]
    assert stages[0].batch_size > stages[1].batch_size == 16


def test_a_fitted_head_learns_slower_than_a_new_one_and_the_blocks_alike():
    new, fitted = (strategy("last-2", 4, fitted=fitted)[0] for fitted in (False, True))
    assert new.lr == 10 * new.rate_of_backbone and fitted.lr < new.lr
    assert fitted.rate_of_backbone == pytest.approx(new.rate_of_backbone)
    assert strategy("all", 4, lr=0.01, fitted=True)[0].rate_of_backbone == pytest.approx(0.003)


def test_from_scratch_all_blocks_learn_at_one_rate_and_batch_norms_train():
    (stage,) = strategy("scratch", 4)
    assert (stage.rate_of_backbone, stage.layer_decay, stage.batch_norm) == (stage.lr, 1.0, "trained")


def test_settings_import_neither_torch_nor_torchvision():
    import subprocess
    import sys

    code = "import featcache.finetuning.settings, sys; print(sorted({'torch', 'torchvision'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
