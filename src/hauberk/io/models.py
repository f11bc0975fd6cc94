"""load_model: one door for everything that a model can come as."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core.access import Access
from hauberk.core.errors import ModelError, UsageError
from hauberk.core.target import CallablePredictor, ModulePredictor, Normalize, Predictor, Target
from hauberk.core.threat import Bounds
from hauberk.io.batches import FixedBatch, whole_batches
from hauberk.io.code import from_code, named_in_code
from hauberk.io.hostile import existing
from hauberk.io.http import HttpModel
from hauberk.io.sklearn_models import SklearnPredictor, is_estimator, load_estimator
from hauberk.io.torch_files import load_exported, load_torch_file, load_weights, put_weights, settled

Source = nn.Module | Predictor | Callable[[Tensor], object] | str | Path
Normalization = tuple[float | Sequence[float], float | Sequence[float]]
_KINDS = "package.module:attr, file.py:attr, .pt2, .pt, .onnx, .skops, or http(s)://"


def load_model(
    source: Source, *, weights: str | Path | Mapping[str, Tensor] | None = None, access: Access | str | None = None,
    bounds: Bounds | None = None, normalize: Normalization | None = None, outputs: str = "auto", batch_size: int = 256,
    trust: bool = False,
) -> Target:
    """Return a target for a model, whatever it comes as.

    Arguments:
        source: an `nn.Module`; a function of a batch; a scikit-learn estimator; an `HttpModel`; or a name: `package.module:attr`
            or `file.py:attr` (a module, or a function without arguments that makes one), a `.pt2` exported program, a `.pt` or
            `.pth` TorchScript, an `.onnx` or `.skops` file, the address of an endpoint.
        weights: safetensors, or a state dict that torch saved, for a module; or the state dict itself.
        access: the most that is granted: label, score or gradient; None grants all that the model can give.
        bounds: lowest and highest input, numbers or one per feature.
        normalize: (mean, std), numbers or one per channel, that the model wants taken off; attacks then live in input space.
        outputs: logits, probabilities, labels, or auto to find out.
        batch_size: the largest batch sent at once.
        trust: open files that run code when opened: pickles, and what is not known to be safe.

    Returns:
        The target, with the files it came from and notices of what was found.

    Raises:
        ModelError: when it cannot be loaded; the cause is named.
        UnsafeFile: when opening it would run code, or burst, and it is not trusted.
        UsageError: for options that do not go together, or a library that is not installed.
    """
    name, files, notices = "", list[Path](), list[str]()
    model: Any = source
    if isinstance(source, (str, Path)):
        model, name, files, notices = _open(str(source), outputs, trust, weights is not None)
    if isinstance(model, Target):
        raise ModelError("a Target was given to load_model", want="what a target is made from", fix="Use the target as it is")
    if isinstance(model, HttpModel) and outputs != "auto":
        model = dataclasses.replace(model, outputs=outputs)
    if is_estimator(model):
        model = SklearnPredictor(model, outputs)
        notices += [model.notice] if model.notice else []
    if weights is not None:
        if not isinstance(model, nn.Module):
            raise UsageError(f"weights were given for a {type(model).__name__}", want="weights for an nn.Module alone")
        if isinstance(weights, Mapping):
            put_weights(model, dict(weights), "the state dict given")
        else:
            files = [*files, load_weights(model, weights, trust=trust)]
        if trust and not isinstance(weights, Mapping) and Path(weights).suffix.lower() != ".safetensors":
            notices.append(f"the weights were unpickled from {Path(weights).name}: safetensors runs no code")
    fixed = model.size if isinstance(model, FixedBatch) else getattr(model, "fixed_size", None)
    if normalize is not None:
        model = _normalized(model, normalize, outputs)
    target = Target(
        model, access=None if access is None else Access.parse(access), bounds=bounds, outputs=outputs,
        batch_size=batch_size if not fixed or batch_size < 1 else whole_batches(batch_size, fixed),
        name=name or _name(source, model), files=[path.resolve() for path in files],
    )
    for notice in notices:
        target.notice(notice)
    return target


def _open(source: str, outputs: str, trust: bool, weighted: bool) -> tuple[Any, str, list[Path], list[str]]:
    """Return the model that a name stands for, what to call it, its files, and what there is to say.

    Where weights are named, those that code draws at random are no matter.
    """
    if "://" in source:
        endpoint = HttpModel(source, outputs=outputs)
        return endpoint, endpoint.name, [], []
    if named_in_code(source):
        before = torch.get_rng_state()
        made, files = from_code(source)
        called = source.rpartition("/")[2]
        if not isinstance(made, nn.Module):
            return made, called, files, []
        drew = not torch.equal(before, torch.get_rng_state()) and next(made.parameters(), None) is not None
        told = [
            f"no weights named: random initialisation by {called}, and unless its code trains the model or loads weights, an "
            "untrained model is assessed; name them: --weights, or weights in the [model] of a plan"
        ]
        return settled(made), called, files, told if drew and not weighted else []
    path = existing(source)
    suffix = path.suffix.lower()
    if suffix == ".pt2":
        module, notices = load_exported(path, trust=trust)
        return module, path.stem, [path], notices
    if suffix in (".pt", ".pth"):
        module, notices = load_torch_file(path, trust=trust)
        return settled(module), path.stem, [path], notices
    if suffix == ".onnx":
        from hauberk.io.onnx_models import OnnxPredictor, external_files

        beside = external_files(path)
        return OnnxPredictor(path, outputs, beside), path.stem, [path, *beside], []
    if suffix in (".skops", ".pkl", ".pickle", ".joblib"):
        estimator, notices = load_estimator(path, trust=trust)
        return estimator, path.stem, [path], notices
    if suffix == ".safetensors":
        raise ModelError(
            f"{path} holds weights and no model", want="the code as well",
            fix=f"Give package.module:attr with weights='{path.name}'",
        )
    raise ModelError(f"{path} is no kind of model that is known here", want=_KINDS, fix="Export it to one of these")


def _normalized(model: Any, normalize: Normalization, outputs: str) -> Any:
    try:
        mean, std = normalize
        layer = Normalize(mean, std)
    except (TypeError, ValueError) as error:
        raise UsageError(f"normalize is {normalize!r}", want="(mean, std), numbers or one per channel") from error
    if not bool((layer.get_buffer("std") > 0).all()):
        raise UsageError(f"the std to normalize by is {normalize[1]!r}", want="numbers above 0")
    if isinstance(model, nn.Module):
        place = next((one for one in model.parameters()), None)
        whole = nn.Sequential(layer if place is None else layer.to(place.device), model)
        whole.training = layer.training = model.training  # parts that the owner left in either mode keep it
        return whole
    inner: Predictor = model if isinstance(model, Predictor) else CallablePredictor(model, outputs)
    return NormalizedPredictor(inner, layer)


class NormalizedPredictor:
    """A predictor that is asked in input space and answers what it says to normalised inputs."""

    def __init__(self, inner: Predictor, layer: Normalize) -> None:
        self.inner, self.layer = inner, layer
        self.access, self.outputs = min(inner.access, Access.SCORE), inner.outputs

    def __call__(self, x: Tensor) -> Tensor:
        """Return the raw outputs for a batch in input space."""
        return self.inner(self.layer(x))


def _name(source: object, model: object) -> str:
    if isinstance(model, SklearnPredictor):
        return type(model.estimator).__name__
    inner = source.module if isinstance(source, ModulePredictor) else source
    return str(getattr(inner, "name", "") or getattr(inner, "__name__", "") or type(inner).__name__)
