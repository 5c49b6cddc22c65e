"""A narrower MobileNetV2 cut out of a trained one, as the starting point of scripts/train_embedded.py.

The outputs of MobileNetV2's blocks are linear (no activation), so each stage's residual stream may be rotated freely:
it is projected on its leading principal directions (the idea of SliceGPT, Ashkboos et al. 2024). Of the hidden channels
the ones with the largest contribution stay, and the projection after them is refitted by least squares, block
after block, to make up for what was lost before (as in ThiNet, Luo et al. 2017).
"""

from dataclasses import dataclass

import torch
from torch import nn
from torchvision.models import MobileNetV2

STAGES = [(1,), (2, 3), (4, 5, 6), (7, 8, 9, 10), (11, 12, 13), (14, 15, 16), (17,)]  # blocks that share a stream


@dataclass
class Moments:
    """Second moments of what enters a block's projection and of the block's output."""

    hidden: torch.Tensor
    output: torch.Tensor


def slice_network(teacher: MobileNetV2, student: MobileNetV2, images: torch.Tensor) -> None:
    """Fill `student` (a narrower MobileNetV2) from `teacher`, judged on `images` (n, 3, H, W), normalised."""
    moments = _gather(teacher, images)
    student.eval()
    wanted, got, basis = (
        None,
        None,
        None,
    )  # the teacher's stream, the student's, and the directions that the student keeps
    for stage in STAGES:
        width = student.features[stage[0]].conv[-1].num_features
        new_basis = torch.linalg.eigh(sum(moments[i].output for i in stage)).eigenvectors[:, -width:].flip(1)
        for number in stage:
            _choose_channels(teacher, student, number, moments[number], basis)
            if number == 1:
                wanted, got = _run(teacher.features[0], images), _run(student.features[0], images)
            wanted = _run(teacher.features[number], wanted)
            _fit_projection(student.features[number], got, wanted, new_basis)
            got = _run(student.features[number], got)
            basis = new_basis
    _slice_expansion(teacher.features[18], student.features[18], basis, torch.arange(1280))
    _recalibrate(student, images)


def _run(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([module(batch) for batch in x.split(64)])


def _gather(teacher: MobileNetV2, images: torch.Tensor) -> dict[int, Moments]:
    """Run the images through the teacher and sum the second moments of every block."""
    moments: dict[int, Moments] = {}

    def watch(number: int):
        def hook(module, inputs, output):
            moments[number].hidden += _second_moment(inputs[0])

        return hook

    def watch_output(number: int):
        def hook(module, inputs, output):
            moments[number].output += _second_moment(output)

        return hook

    handles = []
    for number in range(1, 18):
        projection = teacher.features[number].conv[-2]
        n_in, n_out = projection.in_channels, projection.out_channels
        moments[number] = Moments(torch.zeros(n_in, n_in), torch.zeros(n_out, n_out))
        handles.append(projection.register_forward_hook(watch(number)))
        handles.append(teacher.features[number].register_forward_hook(watch_output(number)))
    with torch.no_grad():
        for batch in images.split(64):
            teacher.features(batch)
    for handle in handles:
        handle.remove()
    return moments


def _rows(x: torch.Tensor, constant: bool = False) -> torch.Tensor:
    """Return the positions of a map as rows (n * H * W, C), with a 1 appended on request."""
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    return torch.cat([rows, torch.ones(len(rows), 1)], 1) if constant else rows


def _second_moment(x: torch.Tensor) -> torch.Tensor:
    rows = _rows(x)
    return rows.T @ rows / len(rows)


def _choose_channels(teacher, student, number: int, moments: Moments, basis: torch.Tensor | None) -> None:
    """Copy the hidden channels of an inverted residual block that contribute most to what comes out of it."""
    old, new = teacher.features[number].conv, student.features[number].conv
    scale = old[-1].weight / (old[-1].running_var + old[-1].eps).sqrt()
    weight = old[-2].weight.detach()[:, :, 0, 0] * scale.detach()[:, None]
    score = moments.hidden.diagonal() * weight.square().sum(0)
    keep = score.topk(new[-2].in_channels).indices.sort().values
    if number == 1:  # no expansion: the hidden channels are those of the stem
        _copy_channels(teacher.features[0], student.features[0], keep)
    else:
        _slice_expansion(old[0], new[0], basis, keep)
    _copy_channels(old[-3], new[-3], keep)


def _fit_projection(block: nn.Module, got: torch.Tensor, wanted: torch.Tensor, basis: torch.Tensor) -> None:
    """Fit the projection that brings the student's stream `got` closest to the teacher's `wanted`, rotated."""
    gram, cross = 0.0, 0.0
    for x, y in zip(got.split(64), wanted.split(64), strict=True):
        with torch.no_grad():
            hidden = _rows(block.conv[:-2](x), constant=True)
        target = _rows(y) @ basis
        if block.use_res_connect:
            target = target - _rows(x)
        gram = gram + hidden.T @ hidden / len(hidden)
        cross = cross + hidden.T @ target / len(hidden)
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram))
    fitted = torch.linalg.solve(gram + ridge, cross).T
    project, norm = block.conv[-2], block.conv[-1]
    project.weight.data = fitted[:, :-1, None, None].clone()
    norm.running_mean.data, norm.running_var.data = torch.zeros(len(fitted)), torch.ones(len(fitted))
    norm.weight.data, norm.bias.data = torch.full((len(fitted),), (1 + norm.eps) ** 0.5), fitted[:, -1].clone()


def _copy_norm(old: nn.BatchNorm2d, new: nn.BatchNorm2d, keep: torch.Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(new, name).data = getattr(old, name).data[keep].clone()


def _copy_channels(old: nn.Sequential, new: nn.Sequential, keep: torch.Tensor) -> None:
    """Keep some output channels of a convolution and its batch norm."""
    new[0].weight.data = old[0].weight.data[keep].clone()
    _copy_norm(old[1], new[1], keep)


def _slice_expansion(old: nn.Sequential, new: nn.Sequential, basis: torch.Tensor, keep: torch.Tensor) -> None:
    """Keep some output channels of a 1x1 convolution that now reads the rotated stream."""
    new[0].weight.data = (old[0].weight.data[keep, :, 0, 0] @ basis)[:, :, None, None].clone()
    _copy_norm(old[1], new[1], keep)


def _recalibrate(student: MobileNetV2, images: torch.Tensor) -> None:
    """Rewrite every batch norm so that it does the same with the true statistics of its input as its own.

    A slice sees other statistics than those it was given, and training would normalise by the true ones.
    """
    seen: dict[nn.BatchNorm2d, list[torch.Tensor]] = {}

    def hook(norm, inputs, output):
        x = inputs[0]
        seen.setdefault(norm, []).append(torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))]))

    norms = [m for m in student.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [norm.register_forward_hook(hook) for norm in norms]
    student.eval()
    with torch.no_grad():
        for batch in images.split(64):
            student.features(batch)
    for handle in handles:
        handle.remove()
    for norm in norms:
        mean, square = torch.stack(seen[norm]).mean(0)
        _restate(norm, mean, (square - mean.square()).clamp_min(1e-5))


def _restate(norm: nn.BatchNorm2d, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Give `norm` other statistics and change its weight and bias so that it computes what it did."""
    scale = norm.weight.data / (norm.running_var + norm.eps).sqrt()
    norm.bias.data += scale * (mean - norm.running_mean)
    norm.weight.data = scale * (variance + norm.eps).sqrt()
    norm.running_mean.data, norm.running_var.data = mean, variance
    norm.momentum = 0.02
