"""Estimators of scikit-learn and of libraries with its habits: probabilities, decision values, or labels."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.errors import HauberkError, ModelError, UnsafeFile, require
from hauberk.io.hostile import check_archive, first_line


class SklearnPredictor:
    """An estimator that answers batches of any sample shape; samples are flattened to its features.

    Label i of the data is the i-th of `estimator.classes_`, as everywhere in scikit-learn.

    Arguments:
        estimator: has `predict_proba` (probabilities), else `decision_function` (logits), else `predict` (labels).
        outputs: `auto` takes the first of those it has; or probabilities, logits, labels.

    Raises:
        ModelError: when it has none of them, is not fitted, or lacks the one asked for.
    """

    def __init__(self, estimator: Any, outputs: str = "auto") -> None:
        self.estimator = estimator
        self.classes: list[Any] | None = _classes(estimator)
        have = {
            kind: name
            for kind, name in (("probabilities", "predict_proba"), ("logits", "decision_function"), ("labels", "predict"))
            if callable(getattr(estimator, name, None))
        }
        if "logits" in have and getattr(estimator, "decision_function_shape", "") == "ovo" and len(self.classes or ()) > 2:
            del have["logits"]  # one column per pair of classes
        wanted = next(iter(have), "") if outputs == "auto" else outputs
        if wanted == "logits" and "logits" not in have and "labels" in have and self.classes is None:
            have["logits"] = "predict"  # a regressor
        if wanted not in have:
            raise ModelError(
                f"a {type(estimator).__name__} gives {', '.join(have) or 'no answers'}", want=wanted or "a method predict",
                fix="Fit one that does, or state another outputs",
            )
        self._method = have[wanted]
        regressor = wanted == "labels" and self.classes is None and _regresses(estimator)
        self.outputs = "logits" if regressor else wanted
        self.access = Access.LABEL if self.outputs == "labels" else Access.SCORE

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the estimator answers to a batch, shape (n, classes) or (n,)."""
        batch = x.detach().cpu().double().reshape(len(x), -1).numpy() if len(x) else None
        if batch is None:
            width = len(self.classes or ()) or 1
            return x.new_zeros((0,), dtype=torch.long) if self.outputs == "labels" else x.new_zeros((0, width))
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="X does not have valid feature names")
                answer = np.asarray(getattr(self.estimator, self._method)(batch))
        except Exception as error:
            raise ModelError(
                f"the {type(self.estimator).__name__} refused a batch of shape {batch.shape} ({first_line(error)})",
                want="an estimator fitted on samples of this shape",
            ) from error
        if self.outputs == "labels":
            return torch.from_numpy(self._indices(answer)).to(x.device)
        made = torch.from_numpy(np.ascontiguousarray(answer, dtype=np.float64))
        return (made[:, None] if made.ndim == 1 else made).to(x.device)

    def _indices(self, answer: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if self.classes is not None:
            place = {label: index for index, label in enumerate(self.classes)}
            return np.array([place[label] for label in answer.reshape(-1).tolist()], dtype=np.int64)
        made = answer.reshape(-1)
        if made.dtype.kind not in "iu" and not (made.dtype.kind == "f" and bool((made == np.floor(made)).all())):
            raise ModelError(f"the estimator predicts values such as {made[0]!r}", want="labels 0, 1, 2, …")
        if int(made.min()) < 0:
            raise ModelError(f"the estimator predicts the label {int(made.min())}", want="labels 0, 1, 2, …")
        return made.astype(np.int64)

    @property
    def notice(self) -> str:
        """What there is to say about the labels, or nothing where they are 0, 1, 2, …"""
        if self.classes is None or self.classes == list(range(len(self.classes))):
            return ""
        shown = ", ".join(repr(label) for label in self.classes[:5]) + (", …" if len(self.classes) > 5 else "")
        return f"the estimator's classes are {shown}: labels 0, 1, … of the data are read as these, in this order"


def is_estimator(model: object) -> bool:
    """Return whether an object answers like an estimator of scikit-learn."""
    return not isinstance(model, torch.nn.Module) and callable(getattr(model, "predict", None)) and hasattr(model, "get_params")


def load_estimator(path: Path, *, trust: bool) -> tuple[Any, list[str]]:
    """Return the estimator in a .skops, .pkl or .joblib file, and what there is to say about it.

    Raises:
        ModelError: when the file is broken, or holds no estimator.
        UnsafeFile: when opening it would run code and it is not trusted.
    """
    skops = path.suffix.lower() == ".skops"
    if not skops and not trust:
        raise UnsafeFile(
            f"{path} is a pickle, which runs whatever code its maker put into it", want="a .skops file",
            fix="Save it with skops.io.dump; or pass trust=True (--trust) if you trust whoever made it",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # versions that differ are told below by what fails, not by a warning
            made = _from_skops(path, trust) if skops else _from_pickle(path)
    except HauberkError:
        raise
    except Exception as error:  # readers of broken files fail in many ways
        raise ModelError(
            f"{path} is broken or was written by another version ({type(error).__name__}: {first_line(error)})",
            want="an estimator saved with the scikit-learn installed here", fix="Save it again",
        ) from error
    if not callable(getattr(made, "predict", None)):
        raise ModelError(f"{path} holds a {type(made).__name__}", want="a fitted estimator with a method predict")
    return made, [] if skops else ["the model was unpickled from a file that can run code; it was trusted by your own word"]


def _from_skops(path: Path, trust: bool) -> Any:
    reader: Any = require("skops.io", "sklearn", "a .skops file")
    check_archive(path)
    unknown = sorted(reader.get_untrusted_types(file=path))
    if unknown and not trust:
        raise UnsafeFile(
            f"{path} asks for {len(unknown)} types that are not known to be safe: {', '.join(unknown)}",
            want="types that skops trusts", fix="Pass trust=True (--trust) if you trust whoever made it",
        )
    return reader.load(path, trusted=unknown)


def _from_pickle(path: Path) -> Any:
    if path.suffix.lower() == ".joblib":
        import joblib

        return joblib.load(path)
    with path.open("rb") as file:
        return pickle.load(file)  # noqa: S301 - only under trust


def _classes(estimator: Any) -> list[Any] | None:
    try:
        found = getattr(estimator, "classes_", None)
    except Exception:  # a pipeline whose last step has none, or that is not fitted
        return None
    if found is None:
        return None
    if isinstance(found, list) and found and isinstance(found[0], (list, np.ndarray)):
        raise ModelError(f"the estimator answers {len(found)} questions at once", want="one label per sample")
    return list(np.asarray(found).tolist())


def _regresses(estimator: Any) -> bool:
    try:
        from sklearn.base import is_regressor

        return bool(is_regressor(estimator))
    except Exception:  # an estimator of another library, without scikit-learn's tags
        return getattr(estimator, "_estimator_type", "") == "regressor"
