r"""Train the small backbone that ships inside the package: featcache/assets/embedded.safetensors.

    python scripts/train_embedded.py --data DATASETS --teacher mobilenet_v2.pth \
        --out featcache/assets/embedded.safetensors

What it does
    1. A MobileNetV2 of half width is cut out of the teacher (embedded_slicing.py): a start, not yet useful.
    2. It learns to give the teacher's penultimate features (at 224 px) from 112 px, on crops of photos, mixtures of two
       crops, and invented pictures (embedded_pictures.py). The teacher's features are computed once.
    3. In the same steps it learns to tell characters apart: letters and symbols of the DejaVu fonts, invented doodles,
       omniglot characters, all distorted and mostly scanned at a low resolution (embedded_glyphs.py).
       The last layer of this task is thrown away.

What it sees
    teacher          MobileNetV2, ImageNet-pretrained (Apache-2.0)
    clothing10       product photos, CC0; rows whose split is train, without their labels
    pneumonia_xray   X-ray, CC BY 4.0 (Kermany et al. 2018); rows whose split is train, without their labels
    omniglot_small   handwritten characters, MIT (Lake et al. 2015); four of its eight alphabets (see
                     OMNIGLOT_TRAIN)
    three photos     two that come with scikit-learn (CC BY 2.0), one with matplotlib (public domain)
    DejaVu fonts     letters and symbols, Bitstream Vera licence
    and pictures and doodles made here.
What it never sees: images of digits, neither sklearn's nor rendered ones (what is printed on some shirt apart); nor the
other rows and alphabets of the sets above.

A data set that is missing under --data is reported and left out. Given --steps the run is deterministic for a seed, a
machine and a number of threads; given --minutes the schedule follows the clock.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from embedded_glyphs import doodles, fit_canvas, font_glyphs, handwrite
from embedded_pictures import indexed_files, invented, random_crop, scenic_files, vary
from embedded_slicing import slice_network
from PIL import Image, ImageFilter, ImageOps
from safetensors.torch import save_file
from torch import nn
from torchvision.models import MobileNetV2, mobilenet_v2

ARCH, KWARGS = "mobilenet_v2", {"width_mult": 0.5}
SIZE, TEACHER_SIZE = 112, 224
CUT = 7  # blocks below stay as sliced
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESS = {"resize": SIZE, "crop": SIZE, "interpolation": "bilinear", "mean": MEAN, "std": STD}
PHOTO_SETS = ("clothing10", "pneumonia_xray")
OMNIGLOT_TRAIN = {"Early_Aramaic", "Korean", "Latin", "Sanskrit"}  # held out: Balinese, Greek, Katakana, Tagalog
PICTURES, GLYPHS = 48, 96  # of each in a step
ROUND = 6000  # glyphs distorted at a time


class Student(nn.Module):
    """The backbone (penultimate features, the teacher's size) and the throw-away character classifier."""

    def __init__(self, n_glyph_classes: int):
        super().__init__()
        self.backbone = mobilenet_v2(weights=None, **KWARGS)
        self.centre = nn.BatchNorm1d(1280, affine=False)
        self.prototypes = nn.Parameter(torch.zeros(n_glyph_classes, 1280))

    def glyph_logits(self, features: torch.Tensor, scale: float = 20.0) -> torch.Tensor:
        """Return scaled cosines to one prototype per class (NormFace, Wang et al. 2017)."""
        return scale * F.normalize(self.centre(features)) @ F.normalize(self.prototypes).T


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Bring (n, 3, H, W) in 0..1 to what the networks take, channels last in memory."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


def resized(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Scale square pictures down as the package's preprocessing would."""
    if pixels.shape[-1] == size:
        return pixels
    return F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)


def load_teacher(path: Path) -> MobileNetV2:
    teacher = mobilenet_v2(weights=None)
    teacher.load_state_dict(torch.load(path, weights_only=True))
    return teacher.eval().to(memory_format=torch.channels_last)


def picture_views(data: Path, count: int, rng: np.random.Generator):
    """Yield `count` pictures (224, 224, 3) uint8: 55 % crops of the photo sets, 20 % of the scenic ones, 25 % invented.

    A quarter of the crops are blended with the one before.
    """
    photos = [path for name in PHOTO_SETS for path, _ in indexed_files(data / name, {"train"})]
    scenic = [Image.open(path).convert("RGB") for path in scenic_files()]
    print(f"{len(photos)} photos of {', '.join(PHOTO_SETS)} (train rows), {len(scenic)} scenic photos")
    previous, queue = None, []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.25 or not (photos or scenic):
            yield invented(TEACHER_SIZE, rng)
            continue
        if kind < 0.45 or not photos:
            crop = random_crop(scenic[rng.integers(len(scenic))], TEACHER_SIZE, 0.01, rng)
        else:
            queue = queue or list(rng.permutation(len(photos)))
            photo = Image.open(photos[queue.pop()])
            photo.draft("RGB", (320, 320))
            crop = random_crop(photo.convert("RGB"), TEACHER_SIZE, 0.3, rng)
        view = vary(crop, rng)
        if previous is not None and rng.random() < 0.25:
            share = rng.uniform(0.2, 0.8)
            view = (view * share + previous * (1 - share)).astype(np.uint8)
        previous = view
        yield view


def distillation_pool(data: Path, teacher: MobileNetV2, count: int, rng) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures at the student's size (n, 3, SIZE, SIZE) uint8 and the teacher's features of them (n, 1280)."""
    pictures, targets, batch = [], [], []
    for number, view in enumerate(picture_views(data, count, rng), 1):
        batch.append(torch.from_numpy(view).permute(2, 0, 1))
        if len(batch) == 64 or number == count:
            x = torch.stack(batch).float() / 255
            with torch.inference_mode():
                targets.append(teacher.features(normalised(x)).mean((2, 3)).half())
            pictures.append((resized(x, SIZE) * 255).round().byte())
            batch = []
    return torch.cat(pictures), torch.cat(targets).clone()


def cached_pool(path: Path | None, make) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `make()` returns, or what it returned when `path` was written."""
    if path and path.exists():
        return torch.load(path, weights_only=True)
    pool = make()
    if path:
        torch.save(pool, path)
    return pool


def glyph_pool(data: Path, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return base glyphs (n, 1, CANVAS, CANVAS) uint8 and their classes: fonts, doodles, omniglot, in this order."""
    parts = [font_glyphs(), doodles(300, 24, rng), omniglot_glyphs(data / "omniglot_small")]
    images, labels, offset = [], [], 0
    for name, (pictures, numbers) in zip(("fonts", "doodles", "omniglot"), parts, strict=True):
        if len(pictures):
            print(f"{name}: {len(pictures)} glyphs of {numbers.max() + 1} classes")
            images.append(torch.from_numpy(pictures)[:, None])
            labels.append(torch.from_numpy(numbers) + offset)
            offset += int(numbers.max()) + 1
    return torch.cat(images), torch.cat(labels)


def omniglot_glyphs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the characters of the training alphabets, bright on black, with a thicker pen than the originals'."""
    files = indexed_files(folder, OMNIGLOT_TRAIN)
    classes = {name: number for number, name in enumerate(sorted({c for _, c in files}))}
    ink = (ImageOps.invert(Image.open(file).convert("L")) for file, _ in files)
    glyphs = [fit_canvas(drawing.filter(ImageFilter.MaxFilter(5))) for drawing in ink]
    return np.asarray(glyphs), np.asarray([classes[c] for _, c in files])


def distillation_loss(features: torch.Tensor, target: torch.Tensor, mean: torch.Tensor, std: torch.Tensor):
    """Return how far the centred features point away from the teacher's, plus the error in units of their spread."""
    cosine = F.cosine_similarity(features - mean, target - mean).mean()
    return 1 - cosine + 0.5 * F.smooth_l1_loss((features - mean) / std, (target - mean) / std)


def balanced_draw(labels: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw `count` rows, half from all rows alike, half from all classes alike."""
    weights = 1.0 / torch.bincount(labels)[labels].float()
    weights = weights / weights.sum() + 1.0 / len(labels)
    return torch.multinomial(weights, count, replacement=False, generator=generator)


class Trainer:
    """One run: the pools, the student, its moving average and the optimiser.

    The sliced blocks below `CUT` stay as they are, so pictures pass them once and a round of distorted glyphs once per
    round; only the blocks above are trained, on these cached maps.
    """

    def __init__(self, student: Student, pictures, targets, glyphs, labels, generator: torch.Generator, rate: float):
        self.student = student.eval()
        self.lower, self.upper = student.backbone.features[:CUT], student.backbone.features[CUT:]
        self.glyphs, self.labels, self.generator, self.rate = glyphs, labels, generator, rate
        self.n_pictures = len(pictures)
        self.targets = torch.cat([targets, targets]).float()  # a mirrored picture has the features of the picture
        self.mean, self.std = self.targets.mean(0), self.targets.std(0) + 0.05
        mirrored = torch.cat([pictures, pictures.flip(3)])
        self.maps = torch.cat([self._lowered(part.float() / 255) for part in mirrored.split(128)])
        self.draw_round()
        self._start_prototypes()
        self.average = copy.deepcopy(student)
        trained = [*self.upper.parameters(), student.prototypes]
        decay, rest = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim == 1]
        groups = [{"params": decay, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=rate)

    def _lowered(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run the fixed lower blocks; float16, to be kept."""
        with torch.no_grad():
            return self.lower(normalised(pixels)).half()

    def draw_round(self) -> None:
        """Distort a new lot of glyphs and pass them through the lower blocks."""
        rows = balanced_draw(self.labels, ROUND, self.generator)
        drawn = (handwrite(self.glyphs[part].float() / 255, SIZE, self.generator) for part in rows.split(96))
        self.glyph_maps, self.glyph_labels = torch.cat([self._lowered(x) for x in drawn]), self.labels[rows]

    def _start_prototypes(self) -> None:
        """Put each class's prototype where the sliced student sees the class: the mean of its first pictures."""
        student = self.student
        with torch.no_grad():
            features = torch.cat([self.features(maps) for maps in self.glyph_maps.split(128)])
            student.centre.running_mean, student.centre.running_var = features.mean(0), features.var(0) + 1e-4
            student.prototypes.index_add_(0, self.glyph_labels, F.normalize(student.centre(features)))
            student.prototypes.copy_(F.normalize(student.prototypes) * 0.7)

    def features(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the penultimate features (n, 1280) of cached maps."""
        with torch.autocast("cpu", torch.bfloat16):
            found = self.upper(maps.float().contiguous(memory_format=torch.channels_last))
        return found.float().mean((2, 3))

    def step(self, progress: float) -> tuple[float, float, float]:
        """Do one step at `progress` (0..1) of the run; return distillation loss, glyph loss and glyph accuracy."""
        settled = progress > 0.8  # the last part uses the statistics that the finished network will use
        self.upper.train(not settled)
        self.student.centre.train(not settled)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(1.0, progress / 0.03 + 0.02) * (0.51 + 0.5 * math.cos(math.pi * progress))
        rows = torch.randint(len(self.maps), (PICTURES,), generator=self.generator)
        marks = torch.randint(len(self.glyph_maps), (GLYPHS,), generator=self.generator)
        features = self.features(torch.cat([self.maps[rows], self.glyph_maps[marks]]))
        distilled = distillation_loss(features[:PICTURES], self.targets[rows], self.mean, self.std)
        logits = self.student.glyph_logits(features[PICTURES:])
        told_apart = F.cross_entropy(logits, self.glyph_labels[marks], label_smoothing=0.05)
        self.optimiser.zero_grad()
        (2 * distilled + 0.5 * told_apart).backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
        self.optimiser.step()
        self._follow()
        accuracy = (logits.argmax(1) == self.glyph_labels[marks]).float().mean()
        return distilled.item(), told_apart.item(), accuracy.item()

    def _follow(self, decay: float = 0.98) -> None:
        """Move the average of weights and statistics a little towards the student."""
        with torch.no_grad():
            for kept, new in zip(self.average.state_dict().values(), self.student.state_dict().values(), strict=True):
                if kept.is_floating_point():
                    kept.lerp_(new, 1 - decay)


def train(trainer: Trainer, steps: int | None, minutes: float) -> int:
    """Run `steps` steps, or for `minutes`; return how many it were. Each round of glyphs is used about twice."""
    started, log, progress = time.perf_counter(), [], 0.0
    while progress < 1:
        if log and len(log) % (2 * ROUND // GLYPHS) == 0 and progress < 0.97:
            trainer.draw_round()
        log.append(trainer.step(progress))
        seconds = time.perf_counter() - started
        progress = len(log) / steps if steps else seconds / 60 / minutes
        if len(log) % 50 == 0 or progress >= 1:
            losses = ", ".join(f"{v:.3f}" for v in np.mean(log[-50:], 0))
            print(f"step {len(log)}  {progress:.0%}  {seconds:.0f} s  {losses}", flush=True)
    return len(log)


def save(student: Student, path: Path, note: str) -> None:
    """Write the trunk: convolutions as float16, batch norm (small, wide in range) as float32."""
    tensors = {
        name: (value.half() if value.ndim > 1 else value.float()).contiguous()
        for name, value in student.backbone.state_dict().items()
        if name.startswith("features.") and not name.endswith("num_batches_tracked")
    }
    metadata = {
        "arch": ARCH,
        "kwargs": json.dumps(KWARGS),
        "preprocess": json.dumps(PREPROCESS),
        "licence": "BSD-3-Clause (this network); cut from and distilled from a MobileNetV2 under Apache-2.0",
        "description": note,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def describe(trainer: Trainer, steps: int) -> str:
    return (
        "A small MobileNetV2 (width 0.5, 112 px) for demos and first tries; a real pretrained network is better on "
        f"photos. Cut from an ImageNet MobileNetV2 and trained {steps} steps to imitate its features on "
        f"{trainer.n_pictures} views of product photos, X-rays, three scenic photos and invented pictures, and to "
        f"tell apart {int(trainer.labels.max()) + 1} letters, symbols, doodles and omniglot characters. No image of a "
        "digit was used in training."
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds clothing10/, omniglot_small/, …")
    parser.add_argument("--teacher", type=Path, required=True, help="state_dict of torchvision's mobilenet_v2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0, help="for the training steps; the pools take a few more")
    parser.add_argument("--steps", type=int, help="instead of --minutes: exactly so many steps")
    parser.add_argument("--pool", type=int, default=12000, help="pictures that the teacher sees")
    parser.add_argument(
        "--cache", type=Path, help="file to keep the pictures and the teacher's features in, for reruns"
    )
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.manual_seed(args.seed)
    rng, generator = np.random.default_rng(args.seed), torch.Generator().manual_seed(args.seed)
    started = time.perf_counter()
    teacher = load_teacher(args.teacher)
    glyphs, labels = glyph_pool(args.data, rng)
    pictures, targets = cached_pool(args.cache, lambda: distillation_pool(args.data, teacher, args.pool, rng))
    print(f"pools ready after {time.perf_counter() - started:.0f} s")
    student = Student(int(labels.max()) + 1).to(memory_format=torch.channels_last)
    drawn = handwrite(glyphs[balanced_draw(labels, 128, generator)].float() / 255, SIZE, generator)
    slice_network(teacher, student.backbone, normalised(torch.cat([pictures[:256].float() / 255, drawn])))
    print(f"sliced after {time.perf_counter() - started:.0f} s", flush=True)
    trainer = Trainer(student, pictures, targets, glyphs, labels, generator, args.rate)
    steps = train(trainer, args.steps, args.minutes)
    save(trainer.average, args.out, describe(trainer, steps))


if __name__ == "__main__":
    main()
