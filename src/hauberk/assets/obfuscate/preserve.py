"""Function-preserving mixing of a torch module: other weights, the same answers."""

from __future__ import annotations

import copy
import dataclasses
import secrets

import torch
from torch import Tensor, nn

from hauberk.assets.obfuscate.attention import turn_heads
from hauberk.assets.obfuscate.channels import combinations
from hauberk.assets.obfuscate.draws import new_key
from hauberk.assets.obfuscate.fx_reader import read, traced
from hauberk.assets.obfuscate.keyed import SALT_BYTES
from hauberk.assets.obfuscate.mixing import mixed
from hauberk.core.errors import ModelError


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A module with other weights that computes the same.

    Arguments:
        module: a copy, in the mode of the one given.
        changed: names of the tensors that are not as they were.
        difference: the largest difference of an answer on the example, over the largest answer.
        bits: log2 of the number of orders its units could have.
    """

    module: nn.Module
    changed: tuple[str, ...]
    difference: float
    bits: float


@torch.no_grad()
def mix(module: nn.Module, example: Tensor, *, key: bytes | None = None) -> Mixed:
    """Return the module with the units between its layers reordered, scaled and rotated, and the answers as they were.

    Units of a layer change places with those of the next; they are scaled by powers of two where ReLU and pooling let a scale
    through; heads of attention, and layers with nothing nonlinear between them, turn by orthogonal matrices. What is not
    understood stays as it is. Copies made so cannot be told to be one model by comparing weights, and a watermark that sits at
    given places is lost: mix before a watermark is put in, not after.

    Arguments:
        module: evaluated in evaluation mode; not changed.
        example: a batch of inputs, (n, ...), on which the answers are compared.
        key: of the draws, 32 bytes; None draws one that nobody keeps.

    Returns:
        The copy, with what was changed and how far the answers moved.

    Raises:
        ModelError: for a module that cannot be traced, or whose answers moved by more than 1e-3 of the largest.
    """
    key, salt = new_key() if key is None else key, secrets.token_bytes(SALT_BYTES) if key is None else bytes(SALT_BYTES)
    channels = read(traced(module, example))
    made = copy.deepcopy(module)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    # A tensor that has two names is edited under one of them: what is loaded last under another would put the old one back.
    edited = {edit.tensor for edit in channels.edits}
    after = mixed(before, channels, key, salt)
    for name, value in made.state_dict().items():
        if name in edited:
            value.copy_(after[name])
    for name, part in made.named_modules():
        if isinstance(part, nn.MultiheadAttention):
            turn_heads(part, key, salt, name)
    difference = gap(module, made, example)
    if not difference <= 1e-3:
        raise ModelError(
            f"the answers moved by {difference:.3g} of the largest",
            want="a module that computes the same twice, in float32 or finer", fix="Rename or lock it instead",
        )
    changed = tuple(name for name, value in made.state_dict().items() if not torch.equal(value, before[name]))
    return Mixed(made, changed, difference, combinations(channels))


@torch.no_grad()
def gap(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Return the largest difference of two modules' answers in evaluation mode, over the largest answer of the first."""
    answers = []
    for module in (one, other):
        modes = {part: part.training for part in module.modules()}
        module.eval()
        answer = module(x)
        if not isinstance(answer, Tensor):
            raise ModelError(f"the module answers with a {type(answer).__name__}", want="one that answers with a tensor")
        answers.append(answer.double())
        for part, mode in modes.items():
            part.training = mode
    return float((answers[0] - answers[1]).abs().max() / answers[0].abs().max().clamp(min=1e-30))
