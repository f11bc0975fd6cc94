"""Decoy branches: several sets of weights side by side, of which a key names the true ones."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.assets.obfuscate.draws import Draws, new_key
from hauberk.core.errors import DataError, UsageError

SALT = "selector_salt"
_MARK = "branches_"


def add_decoys(module: nn.Module, key: bytes, *, branches: int = 4, growth: float = 0.1) -> nn.Module:
    """Return the module with decoys beside its smaller tensors; `choose` with the key makes it answer again.

    Where the true branch lies is derived from the key (HKDF) and nowhere written: no constant, comparison or switch in the graph
    or the file tells it. Decoys are the true weights with units and inputs out of place, so that norms, spectra and histograms
    agree. The branch is a view that is chosen once, and anew after the module was moved: it costs no time at inference.

    Whoever has labelled data can search for branches, and finds those of a small net in seconds: `attack_report` does, and tells.
    Against such an adversary lock the weights, or encrypt the file.

    Arguments:
        module: with parameters; not changed.
        key: 32 bytes.
        branches: how many there are of each, the true one included.
        growth: how much larger the weights may become, as a share.

    Raises:
        UsageError: for fewer than two branches, or where no tensor fits into the growth.
    """
    if branches < 2 or growth <= 0:
        raise UsageError(f"branches is {branches} and growth {growth}", want="two branches or more, and room for one tensor")
    made = copy.deepcopy(module)
    salt = secrets.token_bytes(16)
    chosen = _smallest(made, branches, growth)
    if not chosen:
        raise UsageError(f"no tensor fits into a growth of {growth:.0%}", want="a larger growth, or fewer branches")
    owners = dict(made.named_modules())
    for name in chosen:
        owner, part = owners[name.rpartition(".")[0]], name.rpartition(".")[2]
        value = getattr(owner, part).detach()
        stack = torch.stack([decoy_of(value) for _ in range(branches)])
        stack[Draws(key, salt, f"branch\0{name}").below(branches)] = value
        _replace(owner, part, stack, isinstance(getattr(owner, part), nn.Parameter))
    made.register_buffer(SALT, torch.frombuffer(bytearray(salt), dtype=torch.uint8).clone())
    return choose(made, new_key())


def choose(module: nn.Module, key: bytes) -> nn.Module:
    """Return the same module, answering with the branches that a key names; nothing tells whether it is the right one."""
    salt = bytes(getattr(module, SALT).cpu().numpy().tobytes())
    for name, index in branch_choices(module, key, salt).items():
        set_branch(module, name, index)
    return module


def without_decoys(state: Mapping[str, Tensor], key: bytes) -> dict[str, Tensor]:
    """Return the tensors of a saved module with decoys under the names they had, chosen by the key.

    Raises:
        DataError: for tensors without decoys. Nothing tells whether the key is the right one.
    """
    found = state.get(SALT)
    if found is None or found.dtype != torch.uint8 or found.ndim != 1:
        raise DataError("the tensors have no decoys", want="what was saved of a module that add_decoys made")
    salt, made = bytes(found.tolist()), dict[str, Tensor]()
    for name, value in state.items():
        owner, _, part = name.rpartition(".")
        if part.startswith(_MARK) and value.ndim:
            plain = f"{owner}.{part.removeprefix(_MARK)}".lstrip(".")
            made[plain] = value[Draws(key, salt, f"branch\0{plain}").below(len(value))]
        elif name != SALT:
            made[name] = value
    return made


def branch_names(module: nn.Module) -> dict[str, int]:
    """Return the tensors that have decoys, each with its number of branches."""
    return {
        f"{owner}.{part.removeprefix(_MARK)}".lstrip("."): len(value)
        for owner, one in module.named_modules() for part, value in (*one._parameters.items(), *one._buffers.items())
        if part.startswith(_MARK) and value is not None
    }


def branch_choices(module: nn.Module, key: bytes, salt: bytes) -> dict[str, int]:
    """Return which branch of each tensor a key names."""
    return {name: Draws(key, salt, f"branch\0{name}").below(many) for name, many in branch_names(module).items()}


def set_branch(module: nn.Module, name: str, index: int) -> None:
    """Make one tensor answer with one of its branches."""
    owner, _, part = name.rpartition(".")
    place = module.get_submodule(owner)
    place.__dict__[part] = getattr(place, _MARK + part)[index]


def resolved(module: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors that the branches chosen stand for."""
    return {name: module.get_submodule(name.rpartition(".")[0]).__dict__[name.rpartition(".")[2]] for name in names}


def _smallest(module: nn.Module, branches: int, growth: float) -> list[str]:
    tensors = {name: value for name, value in module.state_dict(keep_vars=True).items() if value.is_floating_point()}
    tied = [id(value) for value in tensors.values()]
    room = growth * sum(value.numel() for value in tensors.values())
    found = []
    for name, value in in_order(tensors):
        if tied.count(id(value)) == 1 and (branches - 1) * value.numel() <= room:
            room -= (branches - 1) * value.numel()
            found.append(name)
    return found


def in_order(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return the tensors that decoys suit, the best first: small matrices, without any of which nothing works, then vectors."""
    varied = {name for name, value in tensors.items() if value.numel() > 3 and bool((value != value.flatten()[0]).any())}
    fit = [(name, value) for name, value in tensors.items() if name in varied]
    return sorted(fit, key=lambda one: (one[1].ndim < 2, one[1].numel()))


def decoy_of(value: Tensor) -> Tensor:
    """Return a tensor with the same numbers along each axis, out of place."""
    for axis, size in enumerate(value.shape[:2]):
        order = torch.tensor(sorted(range(size), key=lambda _: secrets.randbits(62)), device=value.device)
        value = value.index_select(axis, order)
    return value


def _replace(owner: nn.Module, part: str, stack: Tensor, parameter: bool) -> None:
    delattr(owner, part)
    held: Any = nn.Parameter(stack, requires_grad=False) if parameter else stack
    if parameter:
        owner.register_parameter(_MARK + part, held)
    else:
        owner.register_buffer(_MARK + part, held)
