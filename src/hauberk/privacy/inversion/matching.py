"""How far the gradients of candidate inputs are from those that clients sent, and which way is nearer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from hauberk.core.rng import isolated
from hauberk.privacy.inversion.client import ClientUpdate, serving, simulate
from hauberk.privacy.inversion.defences.precode import drawing
from hauberk.privacy.inversion.known import Known
from hauberk.privacy.inversion.per_victim import PerVictim, Products

# From products, each (victims, parameters), to one distance per victim, (victims,).
Distance = Callable[[Tensor, Tensor, Tensor], Tensor]


def cosine(own: Tensor, shared: Tensor, target: Tensor) -> Tensor:
    """Return 1 - cos of the angle between the whole gradients, shape (victims,)."""
    size = own.sum(1).clamp_min(torch.finfo(own.dtype).tiny).sqrt() * target.sum(1).sqrt()
    return 1 - shared.sum(1) / size


def angles(own: Tensor, shared: Tensor, target: Tensor) -> Tensor:
    """Return the mean of `cosine` and of 1 - cos for each parameter by itself, averaged over them, shape (victims,).

    The angle between whole gradients hears the largest layers alone; the small ones in front see the pixels.
    """
    tiny = 1e-36  # of a parameter whose gradient was cut to zero
    each = 1 - shared / (own.clamp_min(tiny).sqrt() * target.clamp_min(tiny).sqrt())
    told = target > 0  # a parameter whose target is nothing has no direction
    return (cosine(own, shared, target) + (each * told).sum(1) / told.sum(1)) / 2


def squared(own: Tensor, shared: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance relative to the target's size, shape (victims,)."""
    return (own.sum(1) - 2 * shared.sum(1) + target.sum(1)).clamp_min(0) / target.sum(1)


class Matcher:
    """The distance of candidates to what several clients sent. Use it inside `with matcher.ready():`.

    Arguments:
        module: the model that was sent to the clients; never changed.
        updates: theirs, all of one kind; what is `known` of a defence narrows the match to what still says something.
        distance: `cosine`, `angles` or `squared`; the latter becomes `cosine` for gradients of unknown scale.
        repeats: candidates per client, each searched for by itself.
    """

    def __init__(
        self, module: nn.Module, updates: Sequence[ClientUpdate], distance: Distance, *, repeats: int = 1
    ) -> None:
        known = [one.known or Known() for one in updates]
        if distance is squared and any(one.scaled for one in known):
            distance = cosine
        self.module, self.distance = module, distance
        self.update, self.victims = updates[0], len(updates) * repeats
        like = next(module.parameters())
        self.targets: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        for name in self.update.gradients:
            self.targets[name] = torch.stack([one.gradients[name].detach().to(like) for one in updates])
        self._forget_rounding()
        for name, rows in list(self.targets.items()):
            if any(name in one.kept for one in known):
                kept = torch.stack([
                    one.kept[name].to(rows) if name in one.kept else torch.ones_like(row)
                    for one, row in zip(known, rows, strict=True)
                ])
                if not bool(kept.any()):  # nobody's says anything: the match goes without
                    del self.targets[name]
                    continue
                rows, self.kept[name] = rows * kept, kept.repeat_interleave(repeats, 0)
            self.targets[name] = rows.repeat_interleave(repeats, 0)
        # The size of what was sent must not decide what underflows: a converged model's gradients are tiny. An angle does not
        # ask for one scale on both sides, so that its candidates, which may have large gradients, meet halfway.
        largest = torch.stack([one.abs().flatten(1).amax(1) for one in self.targets.values()]).amax(0)
        self.scale = largest.clamp_min(torch.finfo(like.dtype).tiny)
        self.targets = {name: one / self.scale.reshape(-1, *(1 for _ in one.shape[1:])) for name, one in self.targets.items()}
        self.rates = 1 / self.scale if distance is squared else self.scale.rsqrt()
        self.parameters = {name: one.detach() for name, one in module.named_parameters()}
        self.draws = {
            name: torch.cat([one.draws[name].to(like).repeat(repeats, 1) for one in known]) for name in known[0].draws
        }
        self._quick: PerVictim | None = None
        self._checked = False

    def _forget_rounding(self) -> None:
        """Leave out biases that a normalisation takes away again: their gradient is 0, and the angle of its rounding is noise."""
        for name in [one for one in self.targets if one.rpartition(".")[2] == "bias"]:
            bias, weight = self.targets[name], self.targets.get(f"{name[:-4]}weight")
            # Both sum over the same places, of terms about as large where inputs are: less than this is what rounding leaves.
            share = 64 * torch.finfo(bias.dtype).eps
            if weight is not None and bool((bias.flatten(1).norm(dim=1) < share * weight.flatten(1).norm(dim=1)).all()):
                del self.targets[name]

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Hold the module in the mode that the clients used."""
        # A model that draws at random draws alike, and leaves the global state as it was.
        with isolated(0), serving(self.module, self.update.training), torch.enable_grad():
            if self.update.local is None:
                found = PerVictim(self.module, self.targets, self.update.n, self.rates, self.kept)
                self._quick, self._checked = found if found.supports() else None, False
            yield

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the distances and their slopes.

        Arguments:
            x: candidates, shape (victims * n, ...).
            y: labels, shape (victims * n,), or logits of the labels, shape (victims * n, classes), which are searched for too.

        Returns:
            The distance of each victim, shape (victims,), the slope of their sum at x, and that at the logits, or None.
        """
        x, y = x.detach().requires_grad_(), y.detach()
        if y.is_floating_point():
            y.requires_grad_()
        if self._quick is not None and not self._checked:
            self._checked = True
            self._quick = self._quick if self._agrees(self._quick, x, y) else None
        if self._quick is not None:
            found = self._together(self._quick, x, y)
            if found is not None:
                return found
            self._quick = None
        rows = [self._alone(k, x, y) for k in range(self.victims)]
        logits = torch.cat([row[2] for row in rows if row[2] is not None]) if y.is_floating_point() else None
        return torch.stack([row[0] for row in rows]), torch.cat([row[1] for row in rows]), logits

    def _agrees(self, quick: PerVictim, x: Tensor, y: Tensor) -> bool:
        """Whether the quick way gives the first victim the gradient that it has by itself.

        It does not where a layer computes something else than its type says (a subclass, a hook), a weight is used without its
        layer being called, or victims are mixed: by a normalisation over the batch, or samples that are not the first axis.
        """
        size = slice(0, self.update.n)
        soft = y.softmax(1).detach() if y.is_floating_point() else y
        with isolated(0, x.device), drawing(self.module, self.draws):
            own = quick.first(quick.run(x, soft))
        if own is None or set(own) != set(self.targets):
            return False
        with isolated(0, x.device), drawing(self.module, {name: one[size] for name, one in self.draws.items()}):
            weights = {name: one.detach().requires_grad_() for name, one in self.parameters.items()}
            true = simulate(self.module, weights, x[size].detach(), soft[size], None, differentiable=False)
        pairs = [(one, true[name] * self.rates[0]) for name, one in own.items()]
        # A unit at its kink may round to either side: no closer than a few per cent.
        least = 1e-4 * torch.stack([wanted.norm() for _, wanted in pairs]).max()
        return all(bool((one - wanted).norm() <= 0.03 * wanted.norm() + least) for one, wanted in pairs)

    def _together(self, quick: PerVictim, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None] | None:
        with drawing(self.module, self.draws):
            layers = quick.run(x, y.softmax(1) if y.is_floating_point() else y)
        names = [layer.name for layer in layers]
        if len(set(names)) < len(names):  # a layer that is called twice has a gradient of both calls
            return None
        products, own = quick.products(layers)
        value, by_own, by_target = self._differentiate(products)
        pulls = quick.pull(layers, own, by_own, by_target)
        through = [end for layer in layers for end in (layer.a, layer.g)]
        kept = [(end, pull) for end, pull in zip(through, pulls, strict=True) if end is not None and end.requires_grad]
        wanted = [x, y] if y.requires_grad else [x]
        slopes = torch.autograd.grad(
            [end for end, _ in kept], wanted, [pull for _, pull in kept], materialize_grads=True, allow_unused=True
        )
        return value, slopes[0], slopes[1] if y.requires_grad else None

    def _differentiate(self, products: Products) -> tuple[Tensor, Tensor, Tensor]:
        own, shared, target = products
        own.requires_grad_()
        shared.requires_grad_()
        value = self.distance(own, shared, target)
        by_own, by_shared = torch.autograd.grad(value.sum(), [own, shared], materialize_grads=True)
        return value.detach(), by_own, by_shared

    def _alone(self, k: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        part = slice(k * self.update.n, (k + 1) * self.update.n)
        mine, labels = x[part].detach().requires_grad_(), y[part].detach()
        if y.is_floating_point():
            labels.requires_grad_()
        weights = {name: one.detach().requires_grad_() for name, one in self.parameters.items()}
        with drawing(self.module, {name: one[part] for name, one in self.draws.items()}):
            found = simulate(
                self.module, weights, mine, labels.softmax(1) if y.is_floating_point() else labels, self.update.local
            )
        owns = {name: found[name] * self.rates[k] for name in self.targets}
        owns.update({name: owns[name] * one[k] for name, one in self.kept.items()})
        pairs = [(owns[name], one[k]) for name, one in self.targets.items()]
        if self.distance is squared:  # by differences, which lose nothing near 0
            size = torch.stack([target.square().sum() for _, target in pairs]).sum()
            value = torch.stack([(own - target).square().sum() for own, target in pairs]).sum() / size
        else:
            rows = [torch.stack([own.square().sum(), (own * target).sum(), target.square().sum()]) for own, target in pairs]
            own, shared, target = torch.stack(rows, 1)[:, None]  # each (1, parameters)
            value = self.distance(own, shared, target)[0]
        wanted = [mine, labels] if labels.requires_grad else [mine]
        slopes = torch.autograd.grad(value, wanted, materialize_grads=True, allow_unused=True)
        return value.detach(), slopes[0], slopes[1] if labels.requires_grad else None
