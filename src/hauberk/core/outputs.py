"""Outputs: how the answers of one model read, found out as they come: logits, probabilities, labels, several labels at once."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.errors import AccessDenied, DataError, ModelError

OUTPUTS = ("auto", "logits", "probabilities", "labels")
# Several yes-or-no answers per sample, each with a sigmoid of its own: never guessed, since they look like classes.
MULTI_LABEL = ("multilabel", "multilabel-probabilities", "multilabel-labels")
ENOUGH = 64  # answers of one column within [0, 1] that settle that they are probabilities


class Outputs:
    """What all views of one model share: how its outputs read, what it can grant, and what was noticed on the way.

    Arguments:
        kind: one of OUTPUTS or MULTI_LABEL.
        most: the access that the model can grant.
    """

    def __init__(self, kind: str, most: Access) -> None:
        self.kind, self.most = kind, most
        self.guessed = False
        self.column = 0  # answers of one column within [0, 1], while they settle nothing yet
        self.refused = 0  # questions that were not answered
        self.nan = 0  # answers that were asked for a label and held NaN
        self.notices: list[str] = []

    @property
    def multi_label(self) -> bool:
        """Whether there are several yes-or-no labels per sample instead of one class."""
        return self.kind in MULTI_LABEL

    def notice(self, text: str) -> None:
        """Add a sentence to what was noticed, once."""
        if text not in self.notices:
            self.notices.append(text)

    def limit(self, access: Access, reason: str) -> None:
        """Take note that the model itself gives no more than `access`, and why."""
        if self.most > access:
            self.most = access
            self.notice(f"{reason}: it is assessed at {access.name} access")

    def read(self, raw: Tensor, highest: int = -1) -> Tensor:
        """Return logits, shape (n, classes), or labels, shape (n,) or (n, labels): whichever the model gives; see `logits`."""
        if self.kind == "multilabel-labels":
            rows = _rows(raw)
            return (rows.nan_to_num(nan=-1.0) if rows.is_floating_point() else rows).long()
        if self.kind != "labels":
            return self.logits(raw, highest)
        if raw.ndim > 2 or (raw.ndim == 2 and raw.shape[1] != 1):
            found = f"the model answered labels of shape {tuple(raw.shape)}"
            raise ModelError(found, want=f"one label per sample: ({len(raw)},)")
        raw = raw.reshape(len(raw))
        return (raw.nan_to_num(nan=-1.0) if raw.is_floating_point() else raw).long()

    def learn(self, raw: Tensor) -> None:
        """Find out from an answer how outputs read, while that is not settled."""
        if self.kind != "auto":
            return
        self.kind = self._recognise(raw)
        self.guessed = self.kind == "probabilities"
        if self.kind == "labels":
            self.limit(Access.LABEL, "the model answers labels alone")

    def logits(self, raw: Tensor, highest: int = -1) -> Tensor:
        """Return logits, shape (n, classes), differentiable where the answer is.

        Arguments:
            raw: what the model answered to n inputs.
            highest: the highest label that is in use.

        Raises:
            AccessDenied: when the model answers labels alone.
            DataError: when there is no score for the highest label.
            ModelError: for an answer of another shape, or of another kind than those before.
        """
        if self.kind in ("labels", "multilabel-labels"):
            raise AccessDenied(
                "this model answers labels alone", want="a model that returns scores",
                fix="Choose a method for LABEL (hauberk list --access label)",
            )
        rows = _rows(raw)
        if self.multi_label:
            if self.kind == "multilabel":
                return rows
            sure = torch.finfo(rows.dtype).eps  # a sigmoid that has rounded to 0 or 1 has no finite logit
            return rows.clamp(sure, 1 - sure).logit()
        if highest >= (width := max(rows.shape[1], 2)):
            raise DataError(
                f"there is a label {highest} and the model returns {width} scores per sample",
                want=f"labels from 0 to {width - 1}", fix="Check that model and labels belong together",
            )
        kind = self.kind
        if kind == "auto":  # nothing is settled: no answer but NaN yet, or a few of one column and all of them within [0, 1]
            kind = "probabilities" if rows.shape[1] == 1 else "logits"
        if kind == "probabilities":
            if self.guessed and bool(((rows.detach() < -1e-3) | (rows.detach() > 1.001)).any()):
                raise ModelError(
                    "the model's first answers looked like probabilities, and now one lies outside [0, 1]",
                    want="the same kind of output for every sample", fix="State it: outputs='logits'",
                )
            tiny = torch.finfo(rows.dtype).tiny
            both = torch.cat([1 - rows, rows], 1) if rows.shape[1] == 1 else rows
            return both.clamp(min=tiny).log()
        return torch.cat([torch.zeros_like(rows), rows], 1) if rows.shape[1] == 1 else rows

    def _recognise(self, raw: Tensor) -> str:
        if not raw.is_floating_point():
            return "labels"
        if not len(raw):  # an empty answer tells nothing
            return "auto"
        rows = raw.detach().reshape(len(raw), -1).double()
        rows = rows[~rows.isnan().any(1)]  # an answer of NaN tells nothing either
        if not len(rows):
            return "auto"
        short = raw.dtype in (torch.float16, torch.bfloat16)
        inside = bool(((rows >= -1e-6) & (rows <= 1 + 1e-5)).all())
        if rows.shape[1] == 1:
            before, self.column = self.column, self.column + len(rows)
            if inside and self.column < ENOUGH:
                # Logits may lie in [0, 1] by chance, and one column is cut at 0 or at 0.5: more answers have to settle it.
                return "auto"
            if before and not inside:
                self.notice(
                    f"the model's first {before} answers, one column, lay within [0, 1] and were read as probabilities; a later "
                    "one lies outside, so that all from there on are read as logits: state outputs= to be sure"
                )
        if inside and (rows.shape[1] == 1 or bool(((rows.sum(1) - 1).abs() < (2e-2 if short else 1e-4)).all())):
            self.notice(
                "the model returns probabilities where logits are expected; they are read as log-probabilities, "
                "and gradients through a saturated softmax can vanish: return logits if you can"
            )
            return "probabilities"
        return "logits"


def _rows(raw: Tensor) -> Tensor:
    rows = raw[:, None] if raw.ndim == 1 else raw
    if rows.ndim != 2 or not rows.shape[1]:
        raise ModelError(
            f"the model returned shape {tuple(raw.shape)}", want=f"({len(raw)}, classes)",
            fix="Flatten or pool the output to one score per class",
        )
    return rows
