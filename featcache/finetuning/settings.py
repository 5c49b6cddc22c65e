"""How a network is trained, as data: stages, and what holds for all of them.

Imports neither torch nor torchvision: losses, optimisers, schedulers and transforms are the user's own objects, passed
through as they are and recorded by what they print.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import FinetuneError
from ..extraction.settings import MOST_AUGMENTED

__all__ = ["BATCH_NORMS", "Stage", "Training", "recorded", "refuse_unless_one_of", "refuse_unless_whole"]

SCHEDULES = ("cosine", "linear", "constant")
OPTIMIZERS = ("adamw", "sgd")
#: What batch norms of trained parts do, see `Training`.
BATCH_NORMS = ("frozen", "statistics", "trained")
AVERAGES = ("none", "swa", "ema")
PRECISIONS = (False, True, "bf16", "fp16")


#: What float32 holds of a rate; torch refuses larger ones in words of its own.
_MOST_RATE = 1e30


def _refuse(where: str, expected: str, got: Any, advice: str) -> FinetuneError:
    return FinetuneError(f"{where}: expected {expected}, got {got!r}; {advice}")


def refuse_unless_whole(where: str, value: Any, least: int, advice: str) -> None:
    """Raise FinetuneError unless a value is a whole number of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _refuse(where, f"a whole number of {least} or more", value, advice)


def _number(where: str, value: Any, least: float, most: float, advice: str, *, open_below: bool = False) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not least <= value <= most or (open_below and value == least):
        bounds = f"above {least:g}" if open_below else f"of {least:g} or more"
        bounds += "" if math.isinf(most) else f" and at most {most:g}"
        raise _refuse(where, f"a number {bounds}", value, advice)


def refuse_unless_one_of(where: str, value: Any, choices: Sequence[Any], others: str = "") -> None:
    """Raise FinetuneError unless a value is one of the choices."""
    if not any(value is c or (isinstance(c, str) and value == c) for c in choices):
        raise _refuse(where, f"one of {', '.join(map(repr, choices))}{others}", value, "choose one of them")


def recorded(value: Any) -> Any:
    """Return a value as JSON types: numbers and text as they are, a user's object by what it prints.

    Examples
    --------
    >>> recorded((1, None)), recorded(math.floor)
    ([1, None], 'math.floor')
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [recorded(item) for item in value]
    if isinstance(value, dict):
        return {str(key): recorded(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # arrays and tensors: what they hold, not how they print, which is shortened
        return value.tolist()
    if hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial prints its function's address
        return {"call": recorded(value.func), "args": recorded(value.args), "keywords": recorded(value.keywords)}
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}{_distinction(value)}"
    return _object(value)


def _distinction(function: Any) -> str:
    """Return what tells a function without a name of its own from others: a digest of what it does and holds.

    What it does is Python's bytecode: with another version of Python such a function counts as another one.
    """
    code = getattr(function, "__code__", None)
    if code is None or "<" not in function.__qualname__:
        return ""
    held = [getattr(function, "__defaults__", None), *map(_content, function.__closure__ or ())]
    try:
        text = repr((_body(code), [_plain(item) for item in held]))
    except RecursionError:  # it holds itself
        text = repr(_body(code))
    return f"#{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _body(code: Any) -> Any:
    """What a function's code does, those of functions within it included; not where it stands."""
    inner = [_body(item) if hasattr(item, "co_code") else _plain(item) for item in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, inner


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _plain(value: Any) -> Any:
    """Return a value as `recorded` does; sets in an order that does not change from process to process."""
    return sorted(map(repr, value)) if isinstance(value, (set, frozenset)) else recorded(value)


def _object(value: Any) -> Any:
    """Return what an object prints, and what it holds: a loss of torch prints neither its smoothing nor its weights."""
    # An address differs from run to run and says nothing.
    text = re.sub(r"^<(.*)>$", r"\1", re.sub(r"( object)? at 0x[0-9a-fA-F]+", "", repr(value)))
    held = {
        name: item
        for name, item in getattr(value, "__dict__", {}).items()
        if not name.startswith("_") and name != "training" and isinstance(item, (bool, int, float, str))
    }
    state = value.state_dict() if hasattr(value, "state_dict") else {}
    if isinstance(state, dict) and state:
        held["state"] = recorded(state)
    return {"object": text, **held} if held else text


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a training: what is trained, for how long, how fast.

    Parameters
    ----------
    unfreeze : "head", "all", int or tuple of str, default="head"
        The head alone; everything; the last so many blocks of the trunk; or blocks by name. The head always trains.
    epochs : int, default=5
        Passes over the training rows.
    batch_size : int, default=32
        Images per step of the optimiser, however many of them fit into memory at once.
    lr : float, default=3e-3
        Learning rate of the head.
    backbone_lr : float, default=None
        Learning rate of the last block; None = a tenth of `lr`.
    layer_decay : float, default=0.9
        Each block below the last one learns at so much of the rate of the block above it.
    weight_decay : float, default=0.01
        Not applied to norms and biases.
    warmup : float, default=0.5
        Epochs (parts count) in which the rates rise from nothing.
    schedule : {"cosine", "linear", "constant"} or callable, default="cosine"
        How rates fall after that, to nothing at the end. A callable takes the optimiser and returns a scheduler of
        torch.optim.lr_scheduler, which is stepped after every step of the optimiser (`ReduceLROnPlateau` after every
        epoch, by the validation loss).
    schedule_epochs : int, default=None
        Epochs that the schedule spans; None = `epochs`. Say here how long training may become, and an extension later
        goes on as if it had been asked for at once.
    optimizer : {"adamw", "sgd"} or callable, default="adamw"
        A callable takes parameter groups (dicts with "params", "lr", "weight_decay", "name") and returns an optimiser.
        "adamw" has an eps of 1e-3, since a fitted head leaves gradients near zero; "sgd" has a momentum of 0.9.
    batch_norm : {"frozen", "statistics", "trained"}, default=None
        None = as `Training.batch_norm` says.
    name : str, default=""
        For display; "" = after `unfreeze`.

    Raises
    ------
    FinetuneError
        For a value that makes no sense.

    Examples
    --------
    >>> Stage("head", epochs=3, batch_size=128).title
    'head'
    >>> Stage(2, lr=1e-3).rate_of_backbone
    0.0001
    """

    unfreeze: str | int | tuple[str, ...] = "head"
    epochs: int = 5
    batch_size: int = 32
    lr: float = 3e-3
    backbone_lr: float | None = None
    layer_decay: float = 0.9
    weight_decay: float = 0.01
    warmup: float = 0.5
    schedule: str | Callable[[Any], Any] = "cosine"
    schedule_epochs: int | None = None
    optimizer: str | Callable[[Any], Any] = "adamw"
    batch_norm: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        self._check_unfreeze()
        refuse_unless_whole("stage.epochs", self.epochs, 1, "leave the stage out if it shall not run")
        refuse_unless_whole("stage.batch_size", self.batch_size, 1, "32 is usual")
        _number("stage.lr", self.lr, 0.0, _MOST_RATE, "find_lr suggests one", open_below=True)
        if self.backbone_lr is not None:
            _number("stage.backbone_lr", self.backbone_lr, 0.0, _MOST_RATE, "a tenth of lr is usual", open_below=True)
        _number("stage.layer_decay", self.layer_decay, 0.0, 1.0, "1.0 is one rate for all blocks", open_below=True)
        _number("stage.weight_decay", self.weight_decay, 0.0, _MOST_RATE, "0.01 is usual")
        if self.schedule_epochs is not None:
            refuse_unless_whole(
                "stage.schedule_epochs", self.schedule_epochs, self.epochs, "it cannot end before the stage does"
            )
        _number("stage.warmup", self.warmup, 0.0, float(self.span), "it is a part of the schedule's epochs")
        if not callable(self.schedule):
            refuse_unless_one_of("stage.schedule", self.schedule, SCHEDULES, " or a callable")
        if not callable(self.optimizer):
            refuse_unless_one_of("stage.optimizer", self.optimizer, OPTIMIZERS, " or a callable")
        if self.batch_norm is not None:
            refuse_unless_one_of("stage.batch_norm", self.batch_norm, BATCH_NORMS)

    def _check_unfreeze(self) -> None:
        value = self.unfreeze
        if isinstance(value, list):
            object.__setattr__(self, "unfreeze", tuple(value))
            value = self.unfreeze
        names = isinstance(value, tuple) and value and all(isinstance(name, str) for name in value)
        number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not (names or number or value in ("head", "all")):
            raise _refuse(
                "stage.unfreeze",
                "'head', 'all', a number of last blocks, or names of blocks",
                value,
                "name one of them",
            )

    @property
    def span(self) -> int:
        """Epochs that the schedule spans."""
        return self.schedule_epochs or self.epochs

    @property
    def rate_of_backbone(self) -> float:
        """Learning rate of the last block."""
        return self.lr / 10 if self.backbone_lr is None else self.backbone_lr

    @property
    def title(self) -> str:
        """What to call the stage."""
        if self.name:
            return self.name
        if isinstance(self.unfreeze, int):
            return "last block" if self.unfreeze == 1 else f"last {self.unfreeze} blocks"
        return self.unfreeze if isinstance(self.unfreeze, str) else ", ".join(self.unfreeze)

    def as_dict(self) -> dict[str, Any]:
        """Return the stage as JSON types."""
        return {field.name: recorded(getattr(self, field.name)) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class Training:
    """All that a run of training depends on, beside the network and the images.

    Parameters
    ----------
    stages : sequence of Stage
        One after the other; `strategy` makes the usual ones. Each begins with the weights that the one before it
        ended with.
    seed : int, default=0
        All randomness follows from it and from the place in the run.
    loss : callable, default=None
        (scores, codes of the classes) → a number: their mean, or one per row. None = cross entropy.
    class_weight : "balanced", sequence of float or dict, default=None
        Weights of the classes in the default loss; a dict is by class name. "balanced": inversely to their frequency.
    augment : "views" or callable, default=None
        What training images go through; see `ImageFeed`.
    n_views : int, default=8
        With ``augment="views"``: views that each image has beside itself.
    mix : callable, default=None
        (images, codes) → (images, targets) on each batch: MixUp or CutMix of torchvision.transforms.v2.
    amp : {False, True, "bf16", "fp16"}, default=False
        Mixed precision. True: fp16 with scaled gradients on a GPU, bf16 on a CPU.
    clip_norm : float, default=None
        Largest norm that the gradients may have together.
    batch_norm : {"frozen", "statistics", "trained"}, default="frozen"
        Of the blocks that train: "frozen": batch norms keep running statistics, weights and biases; "statistics": they
        keep the statistics and train weights and biases; "trained": both change, as from scratch. In frozen blocks
        they never change.
    patience : int, default=None
        A stage ends when so many epochs in a row have brought nothing better on the validation rows.
    restore_best : bool, default=True
        Return the weights of the best epoch (by accuracy on the validation rows, then by loss), not of the last.
    average : {"none", "swa", "ema"}, default="none"
        Mean of the weights in the last stage: at the ends of its last epochs, or of all steps with `ema_decay`. It
        stands in for the best or last weights.
    average_from : int, default=None
        With "swa": the first epoch of the last stage that counts; None = after three quarters of its schedule.
    ema_decay : float, default=0.999
        With "ema": what the mean keeps of itself per step.
    interpolate : float or "auto", default=None
        WiSE-FT: so much of the way from the weights with only the head trained (0) to the final ones (1); "auto" =
        what is best on the validation rows.
    micro_batch : int, default=None
        Images that go through the network at once; None = `Stage.batch_size`. Halves when memory runs out.
    checkpoint_minutes : float, default=5.0
        A checkpoint is also written within an epoch when the last one is that old.
    device : str, default="auto"
        "cpu", "cuda", …; "auto" = the first GPU, else the CPU.

    Raises
    ------
    FinetuneError
        For a value that makes no sense.

    Notes
    -----
    WiSE-FT: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022.

    Examples
    --------
    >>> Training(Stage("all"), patience=3).as_dict()["stages"][0]["unfreeze"]
    'all'
    """

    stages: Sequence[Stage]
    seed: int = 0
    loss: Callable[..., Any] | None = None
    class_weight: Any = None
    augment: str | Callable[..., Any] | None = None
    n_views: int = 8
    mix: Callable[..., Any] | None = None
    amp: bool | str = False
    clip_norm: float | None = None
    batch_norm: str = "frozen"
    patience: int | None = None
    restore_best: bool = True
    average: str = "none"
    average_from: int | None = None
    ema_decay: float = 0.999
    interpolate: float | str | None = None
    micro_batch: int | None = None
    checkpoint_minutes: float = 5.0
    device: str = "auto"

    def __post_init__(self) -> None:
        stages = (self.stages,) if isinstance(self.stages, Stage) else tuple(self.stages)
        if not stages or not all(isinstance(stage, Stage) for stage in stages):
            raise _refuse(
                "training.stages", "one Stage or more", self.stages, "strategy('gradual', n_blocks) makes some"
            )
        object.__setattr__(self, "stages", stages)
        refuse_unless_whole("training.seed", self.seed, 0, "0 is usual")
        refuse_unless_whole("training.n_views", self.n_views, 1, "8 is usual")
        if self.n_views > MOST_AUGMENTED:
            raise _refuse("training.n_views", f"at most {MOST_AUGMENTED}", self.n_views, "8 is usual")
        self._check_objects()
        refuse_unless_one_of("training.amp", self.amp, PRECISIONS)
        refuse_unless_one_of("training.batch_norm", self.batch_norm, BATCH_NORMS)
        refuse_unless_one_of("training.average", self.average, AVERAGES)
        refuse_unless_one_of("training.restore_best", self.restore_best, (True, False))
        for name, value in (("patience", self.patience), ("average_from", self.average_from)):
            if value is not None:
                refuse_unless_whole(f"training.{name}", value, 1, "leave it out for none")
        if self.micro_batch is not None:
            refuse_unless_whole("training.micro_batch", self.micro_batch, 1, "leave it out for the batch size")
        if self.clip_norm is not None:
            _number("training.clip_norm", self.clip_norm, 0.0, math.inf, "1.0 is usual", open_below=True)
        _number("training.ema_decay", self.ema_decay, 0.0, 1.0, "0.999 is usual")
        _number("training.checkpoint_minutes", self.checkpoint_minutes, 0.0, math.inf, "5 is usual")
        if self.interpolate not in (None, "auto"):
            _number("training.interpolate", self.interpolate, 0.0, 1.0, "0.5 and 'auto' are usual")

    def _check_objects(self) -> None:
        for name, value in (("loss", self.loss), ("mix", self.mix)):
            if value is not None and not callable(value):
                raise _refuse(f"training.{name}", "a callable", value, "give the object itself")
        if self.augment not in (None, "views") and not callable(self.augment):
            raise _refuse("training.augment", "None, 'views' or a callable", self.augment, "give a transform")
        if self.loss is not None and self.class_weight is not None:
            raise _refuse(
                "training.class_weight",
                "none beside a loss of your own",
                self.class_weight,
                "give the loss the weights",
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON types, objects of the user by what they print."""
        found = {field.name: recorded(getattr(self, field.name)) for field in dataclasses.fields(self)}
        found["stages"] = [stage.as_dict() for stage in self.stages]
        return found
