"""What coverage is counted on: the neurons of an unmodified model and its answers, read in one forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.access import Access
from hauberk.core.errors import AccessDenied, BudgetExceeded, DataError, ModelError
from hauberk.core.predictors import ModulePredictor
from hauberk.core.taps import tap
from hauberk.core.target import Target

COUNTED = (nn.Linear, nn.modules.conv._ConvNd)
POOLS = (nn.MaxPool2d, nn.AvgPool2d)
CACHED = 2**18  # input values worked on at a time on a CPU
Span = tuple[int, int]


@dataclasses.dataclass
class Reading:
    """One batch as the model saw it.

    Arguments:
        units: a number per neuron, shape (n, neurons): channels of a convolution averaged over space, outputs of a linear layer.
        spans: first and last neuron of each layer, the last one excluded.
        answers: class logits, (n, classes); one-hot labels where nothing more is granted; raw numbers for regression.
        base: the units of the clean seed behind each sample, shape of `units`; None where there is none.
    """

    units: Tensor
    spans: tuple[Span, ...]
    answers: Tensor
    base: Tensor | None = None

    def __len__(self) -> int:
        return len(self.units)

    @property
    def labels(self) -> Tensor:
        """The answered labels, shape (n,); -1 where an answer is not a number."""
        found = self.answers.argmax(1)
        return torch.where(self.answers.isnan().any(1), torch.full_like(found, -1), found)

    @property
    def features(self) -> Tensor:
        """The neurons of the last layer but one, or of the only layer, shape (n, width)."""
        start, stop = self.spans[-2] if len(self.spans) > 1 else self.spans[-1]
        return self.units[:, start:stop]

    def rows(self, index: Tensor) -> Reading:
        """Return the reading of some samples, by positions or flags."""
        base = None if self.base is None else self.base[index]
        return Reading(self.units[index], self.spans, self.answers[index], base)


class Reader:
    """Reads batches through a target: one forward pass gives neurons and answers, and is counted as one query per sample.

    Where no module is granted (ONNX, a callable, an endpoint), the answers themselves are the only layer. A network that pools is
    asked, on a CPU, with the channels of a pixel side by side in memory, where it takes that and answers alike: the same
    numbers up to rounding, in about half the time.

    Arguments:
        target: at LABEL access or more.
        layers: those whose neurons count; None takes every convolution and linear layer, before its activation function.
        regression: whether the answers are numbers to predict: raw outputs of the model.
        classes: number of classes, needed where labels alone come back.
    """

    def __init__(
        self, target: Target, layers: Sequence[str] | None = None, *, regression: bool = False, classes: int | None = None
    ) -> None:
        self.target, self.regression, self.classes = target, regression, classes
        self.module: nn.Module | None = None
        self.layers: tuple[str, ...] = ()
        if target.access >= Access.GRADIENT and isinstance(target.predictor, ModulePredictor):
            modules = dict(target.module.named_modules())
            chosen = [name for name, one in modules.items() if isinstance(one, COUNTED)] if layers is None else list(layers)
            if chosen:
                self.module, self.layers = target.module, tuple(chosen)
                self._last = {name for name in chosen if isinstance(modules.get(name), nn.Linear)}
        elif layers is not None:
            raise ModelError("layers were named, and this target grants no module", want="a target with GRADIENT access")
        self._named = layers is not None
        self.spans: tuple[Span, ...] = ()
        pools = self.module is not None and any(isinstance(one, POOLS) for one in self.module.modules())
        self._turned: bool | None = None if pools else False  # None before it was tried

    def __call__(self, x: Tensor) -> Reading:
        """Read x, shape (n, ...), in parts of the target's batch size or less."""
        if not len(x):
            raise DataError("no samples were given to read", want="one or more")
        size = self.target.batch_size
        if x.device.type == "cpu":  # activations that stay in the cache are read about twice as fast
            size = max(1, min(size, CACHED // max(1, x[0].numel())))
            if self._turned is None:
                self._turned = x.ndim == 4 and self._takes_turned(x[:2])
            if self._turned:
                x = x.contiguous(memory_format=torch.channels_last)
        parts = [self._read(part) for part in x.detach().split(size)]
        if len(parts) == 1:
            return parts[0]
        return Reading(torch.cat([one.units for one in parts]), self.spans, torch.cat([one.answers for one in parts]))

    def _read(self, x: Tensor) -> Reading:
        with torch.no_grad():
            if self.module is None:
                answers = self._answers(x)
                units = answers.float()
                self.spans = ((0, units.shape[1]),)
                return Reading(units, self.spans, answers)
            with tap(self.module, self.layers, read=self._summary) as seen:
                answers = self._answers(x)
        rows = {name: one for name, one in seen.activations.items() if one.ndim == 2 and len(one) == len(x)}
        if self._named and len(rows) < len(self.layers):
            odd = next(name for name in self.layers if name not in rows)
            raise ModelError(f"layer '{odd}' gave no row per sample", want="a layer of the forward pass, batch first")
        if not self.spans:
            self.layers = tuple(name for name in self.layers if name in rows)
            if not self.layers:
                self.module = None
                return self._read(x)
            ends = torch.tensor([rows[name].shape[1] for name in self.layers]).cumsum(0).tolist()
            self.spans = tuple(zip([0, *ends[:-1]], ends, strict=True))
        units = torch.cat([rows[name] for name in self.layers], 1)
        return Reading(units.to(x.device), self.spans, answers)

    def _takes_turned(self, x: Tensor) -> bool:
        with torch.no_grad():
            plain = self._answers(x)
            try:
                turned = self._answers(x.contiguous(memory_format=torch.channels_last))
            except (BudgetExceeded, AccessDenied):
                raise
            except Exception:  # such as a `view` of what no longer lies in one piece
                return False
        return torch.allclose(turned, plain, rtol=1e-4, atol=1e-4 * max(1.0, float(plain.abs().max())))

    def _summary(self, name: str, output: Tensor) -> Tensor:
        if output.ndim <= 2:
            return output.float().clone() if output.ndim == 2 else output.new_empty(0)
        if name in self._last:  # tokens by features
            return output.flatten(1, -2).mean(1).float()
        return output.flatten(2).mean(2).float()

    def _answers(self, x: Tensor) -> Tensor:
        if self.regression:
            raw = self.target.predictor(x)
            self.target.ledger.queries += len(x)
            return raw.reshape(len(x), -1).float()
        if self.target.access >= Access.SCORE:
            try:
                return self.target.logits(x)
            except AccessDenied:  # the first answer told that the model gives less than it seemed to grant
                if self.target.access >= Access.SCORE:
                    raise
        labels = self.target.labels(x)
        width = self.classes if self.classes is not None else int(labels.max()) + 1
        known = labels.clamp(0, width - 1)
        rows = functional.one_hot(known, width).float()
        rows[labels < 0] = float("nan")
        return rows


@dataclasses.dataclass
class Profile:
    """What is known of the neurons from training data.

    Arguments:
        low, high: the least and greatest value of each neuron, shape (neurons,).
        spans: first and last neuron of each layer.
        traces: features of the samples that surprise is measured against, shape (m, width), float64.
        labels: what the model answers to these, shape (m,).
    """

    low: Tensor
    high: Tensor
    spans: tuple[Span, ...]
    traces: Tensor
    labels: Tensor

    @property
    def neurons(self) -> int:
        """The number of neurons."""
        return len(self.low)


def profile(reader: Reader, batches: Iterable[Tensor], *, traces: int = 2000) -> Profile:
    """Return the range of every neuron over batches of training inputs, and the first features.

    Arguments:
        reader: of the model.
        batches: inputs, each (n, ...).
        traces: how many features are kept.

    Raises:
        DataError: for no samples, or samples on which a neuron is not a number.
    """
    low = high = None
    kept: list[Tensor] = []
    labels: list[Tensor] = []
    for x in batches:
        seen = reader(x)
        odd = ~seen.units.isfinite().all(1)
        if bool(odd.any()):
            raise DataError(
                f"{int(odd.sum())} of {len(x)} training samples give neurons that are NaN or infinite",
                want="finite neurons, whose ranges can be taken", fix="Leave those samples out, or mend the model",
            )
        least, most = seen.units.amin(0), seen.units.amax(0)
        low = least if low is None else torch.minimum(low, least)
        high = most if high is None else torch.maximum(high, most)
        room = traces - sum(map(len, kept))
        if room > 0:
            kept.append(seen.features[:room].double())
            labels.append(seen.labels[:room])
    if low is None or high is None:
        raise DataError("there are no samples to profile", want="training inputs")
    return Profile(low, high, reader.spans, torch.cat(kept), torch.cat(labels))
