"""A detector as one adversary sees it: asked about images, counted, within a budget, with no more access than was granted."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hauberk.core.access import Access, Budget, Ledger
from hauberk.core.errors import AccessDenied, ModelError, UsageError
from hauberk.core.target import evaluating
from hauberk.core.threat import Bounds
from hauberk.robustness.attack.detection.boxes import Boxes


class ObjectDetector(Protocol):
    """Anything that finds objects in images: a function, or a module such as those of torchvision.

    For attacks along the gradient it also has a method `dense(images) -> Dense`.
    """

    def __call__(self, images: Tensor) -> Sequence[object]:
        """Return for each image, (n, channels, height, width), a mapping with `boxes`, `labels` and `scores`, or Boxes."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Dense:
    """What a detector weighs before it decides, for as many proposals in every image.

    Arguments:
        boxes: where each proposal lies, left, top, right, bottom in pixels, shape (n, p, 4).
        logits: of each class and, last, of there being nothing, shape (n, p, classes + 1), differentiable towards the images.
    """

    boxes: Tensor
    logits: Tensor


@runtime_checkable
class DenseDetector(Protocol):
    """A detector that lets the gradient through."""

    def dense(self, images: Tensor) -> Dense:
        """Return the proposals of all images."""
        ...


class DetectorTarget:
    """A detector as one adversary sees it.

    Arguments:
        detector: an `ObjectDetector`; a module is questioned in evaluation mode.
        access: the most that is granted: SCORE for boxes with scores, GRADIENT for `dense`; None grants all there is.
        bounds: lowest and highest pixel; None: (0, 1).
        batch_size: the most images sent at once.
        budget: limits on what may be spent.

    Raises:
        ModelError: when the detector cannot be called, or cannot grant `access`.
        UsageError: for a batch size below 1.
    """

    def __init__(
        self, detector: ObjectDetector, *, access: Access | None = None, bounds: Bounds | None = None, batch_size: int = 64,
        budget: Budget | None = None,
    ) -> None:
        if not callable(detector):
            raise ModelError(f"a {type(detector).__name__} was given as the detector", want="a function of images")
        most = Access.GRADIENT if isinstance(detector, DenseDetector) else Access.SCORE
        self.access = most if access is None else Access.parse(access)
        if self.access > most:
            raise ModelError(
                f"{self.access.name} access was asked of a detector that grants {most.name}",
                fix="Give the detector a method dense(images) -> Dense",
            )
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}", want="1 or more", fix="Give the largest batch that fits in memory")
        self.detector, self.bounds, self.batch_size = detector, bounds, batch_size
        self.ledger = Ledger()
        self._accounts: tuple[tuple[Ledger, Budget], ...] = ((self.ledger, budget or Budget()),)

    def need(self, access: Access, who: str) -> None:
        """Raise AccessDenied when this view grants less than `access`."""
        if self.access < access:
            raise AccessDenied(
                f"{who} needs {access.name} access, this target grants {self.access.name}",
                fix=f"Grant {access.name} access, or choose a method for {self.access.name} "
                "(hauberk list --kind detection-attack)",
            )

    def seen_at(self, access: Access) -> DetectorTarget:
        """Return a view with less access and its own ledger; what it spends counts here as well."""
        self.need(access, "the view")
        view = object.__new__(DetectorTarget)
        view.__dict__.update(self.__dict__)
        view.access, view.ledger = access, Ledger()
        view._accounts = (*self._accounts, (view.ledger, Budget()))
        return view

    def detect(self, x: Tensor) -> list[Boxes]:
        """Return what is found in each image, (n, channels, height, width). Needs SCORE access."""
        self.need(Access.SCORE, "the boxes of an image")
        if len(x) > self.batch_size:
            self._check(queries=len(x))  # all or nothing
        answers: list[Boxes] = []
        for part in x.detach().split(self.batch_size) if len(x) else ():
            self._check(queries=len(part))
            with torch.no_grad(), self._evaluating():
                said = self.detector(self._moved(part))
            self._spend(queries=len(part))
            if isinstance(said, (Tensor, str)) or not isinstance(said, Sequence) or len(said) != len(part):
                raise ModelError(
                    f"the detector answered a {type(said).__name__} to {len(part)} images", want="a list, an entry per image"
                )
            answers += [Boxes.read(one) for one in said]
        return answers

    def dense(self, x: Tensor) -> Dense:
        """Return the proposals of all images, differentiable, in one batch. Needs GRADIENT access."""
        self.need(Access.GRADIENT, "what a detector weighs")
        self._check(queries=len(x))
        assert isinstance(self.detector, DenseDetector)
        with self._evaluating():
            said = self.detector.dense(self._moved(x))
        self._spend(queries=len(x))
        shapes = tuple(said.boxes.shape), tuple(said.logits.shape)
        if said.logits.ndim != 3 or said.logits.shape[2] < 2 or shapes[0] != (len(x), said.logits.shape[1], 4):
            raise ModelError(f"dense answered {shapes[0]} and {shapes[1]}", want="(n, p, 4) and (n, p, classes + 1)")
        logits = said.logits.to(x.device)
        if logits.requires_grad:
            logits.register_hook(lambda _: self._charge(len(x)))
        return Dense(said.boxes.detach().to(x.device), logits)

    def _moved(self, x: Tensor) -> Tensor:
        held = next(self.detector.parameters(), None) if isinstance(self.detector, nn.Module) else None
        # A copy: a detector may write on its input.
        return x.clone() if held is None else x.to(held.device, held.dtype, copy=True)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        if isinstance(self.detector, nn.Module):
            with evaluating(self.detector):
                yield
        else:
            yield

    def _check(self, *, queries: int = 0, gradients: int = 0) -> None:
        for ledger, budget in self._accounts:
            budget.check(ledger, queries=queries, gradients=gradients)

    def _spend(self, *, queries: int) -> None:
        for ledger, _ in self._accounts:
            ledger.queries += queries
            ledger.calls += 1

    def _charge(self, gradients: int) -> None:
        self._check(gradients=gradients)
        for ledger, _ in self._accounts:
            ledger.gradients += gradients
