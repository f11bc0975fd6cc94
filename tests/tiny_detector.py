"""A detector of squares and discs that trains in seconds, for tests."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.rng import generator, isolated
from hauberk.robustness.attack.detection import Boxes, Dense
from hauberk.robustness.attack.detection.boxes import overlap

SIDE, CELL = 32, 4


class TinyDetector(nn.Module):
    """8 x 8 cells, each of which says what lies over it (square, disc, nothing) and how far its borders are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(),
        )
        self.head = nn.Conv2d(32, 3 + 4, 1)
        self.rows, self.differentiated = 0, 0

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        out = self.head(self.body(images)).flatten(2).transpose(1, 2)  # (n, 64, 7)
        return out[..., :3], functional.softplus(out[..., 3:]) * 8

    def dense(self, images: Tensor) -> Dense:
        logits, far = self.raw(images)
        self.rows += len(images)
        if logits.requires_grad and images.requires_grad:
            logits.register_hook(self._count)
        at = centres()
        return Dense(torch.cat([at - far[..., :2], at + far[..., 2:]], 2), logits)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        said = self.dense(images)
        answers = []
        for boxes, logits in zip(said.boxes, said.logits, strict=True):
            scores, labels = logits.softmax(1)[:, :2].max(1)
            order = scores.argsort(descending=True)
            order = order[scores[order] > 0.5]
            kept: list[int] = []
            for one in order.tolist():
                if not kept or float(overlap(boxes[[one]], boxes[kept]).max()) < 0.4:
                    kept.append(one)
            answers.append({"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept]})
        return answers

    def _count(self, gradient: Tensor) -> None:
        self.differentiated += len(gradient)


def centres() -> Tensor:
    """The middles of the cells as (right, down), shape (64, 2)."""
    along = torch.arange(SIDE // CELL) * CELL + CELL / 2
    down, right = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([right.flatten(), down.flatten()], 1)


def pictures(n: int, seed: int = 0) -> tuple[Tensor, list[Boxes]]:
    """Images (n, 3, 32, 32) in [0, 1] with a square and a disc, or one of them, side by side."""
    draw = generator(seed, "pictures")
    x = 0.2 + 0.1 * torch.rand(n, 3, SIDE, SIDE, generator=draw)
    truth = []
    grid = torch.arange(SIDE) + 0.5
    for image in x:
        boxes, labels = [], []
        which = int(torch.randint(0, 3, (1,), generator=draw))
        for half in (0, 1):
            if which != 2 and half != which:
                continue
            size = int(torch.randint(9, 14, (1,), generator=draw))
            left = half * 16 + int(torch.randint(0, 17 - size, (1,), generator=draw))
            top = int(torch.randint(0, SIDE + 1 - size, (1,), generator=draw))
            label = int(torch.randint(0, 2, (1,), generator=draw))
            inside = (grid[:, None] > top) & (grid[:, None] < top + size) & (grid > left) & (grid < left + size)
            if label == 1:
                inside = (grid[:, None] - top - size / 2).square() + (grid - left - size / 2).square() < size * size / 4
            colour = 0.5 + 0.3 * torch.rand(3, 1, generator=draw)
            image[:, inside] = colour
            boxes.append([left, top, left + size, top + size])
            labels.append(label)
        truth.append(Boxes(torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels)))
    return x, truth


@functools.cache
def trained(steps: int = 250) -> TinyDetector:
    """Return a detector that finds nearly all of them; trained once, do not change it."""
    with isolated(3):
        model = TinyDetector()
    x, truth = pictures(512, seed=9)
    at = centres()
    labels, far, weight = torch.full((len(x), 64), 2), torch.zeros(len(x), 64, 4), torch.zeros(len(x), 64)
    for row, one in enumerate(truth):
        for box, label in zip(one.boxes, one.labels, strict=True):
            reach = torch.cat([at - box[:2], box[2:] - at], 1)
            inside = (reach > 2).all(1)
            labels[row][inside], far[row][inside], weight[row][inside] = label, reach[inside], 1.0
    step_size = torch.optim.Adam(model.parameters(), 5e-3)
    draw = generator(0, "train")
    for _ in range(steps):
        index = torch.randint(0, len(x), (32,), generator=draw)
        logits, reach = model.raw(x[index])
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[index].flatten())
        off = functional.smooth_l1_loss(reach, far[index], reduction="none").mean(2)
        loss = loss + 0.2 * (off * weight[index]).sum() / weight[index].sum()
        step_size.zero_grad()
        loss.backward()
        step_size.step()
    step_size.zero_grad()
    return model.eval()
