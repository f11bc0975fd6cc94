"""The oracle: a tape of the engine's interface that takes one example at a time, each with a backward pass of its own."""

from __future__ import annotations

import contextlib

import torch


class SlowTape:
    """Per-example gradients of a loss that depends on the model's outputs, and on each example's own output alone."""

    def __init__(self, model, params, norm):
        self.model, self.params, self.order = model, list(params), 1 if norm == "l1" else 2
        self.calls, self.grads, self.batch_size = [], {}, 0

    def seen(self, module, args, output):
        self.calls.append((args, output))
        self.batch_size = len(output)

    def backward(self, loss, reduction="mean", scale=1.0):
        if not self.batch_size:
            self.grads = {one: torch.zeros(0, *one.shape, dtype=one.dtype) for one in self.params}
            return
        rows = []
        arriving = torch.autograd.grad(loss, [output for _, output in self.calls])
        for i in range(self.batch_size):
            total = [torch.zeros_like(one) for one in self.params]
            for (args, _), grad in zip(self.calls, arriving, strict=True):
                again = self.model(*(arg[i : i + 1] for arg in args))
                parts = torch.autograd.grad(again, self.params, grad[i : i + 1].to(again.dtype), allow_unused=True)
                total = [a if b is None else a + b for a, b in zip(total, parts, strict=True)]
            rows.append(total)
        factor = (self.batch_size if reduction == "mean" else 1) / scale
        self.grads = {one: torch.stack([row[k] for row in rows]) * factor for k, one in enumerate(self.params)}

    def norms(self):
        return {one: torch.linalg.vector_norm(g.flatten(1), ord=self.order, dim=1) for one, g in self.grads.items()}

    def weighted(self, weights):
        made = {}
        for one, g in self.grads.items():
            w = weights[one] if isinstance(weights, dict) else weights
            rows = torch.where((w != 0).reshape(-1, *[1] * (g.ndim - 1)), g, 0.0)
            made[one] = torch.einsum("b...,b->...", rows, w.to(g.dtype))
        return made

    def release(self):
        self.calls, self.grads = [], {}


@contextlib.contextmanager
def slow_record(model, params, norm="l2"):
    tape = SlowTape(model, params, norm)
    handle = model.register_forward_hook(tape.seen)
    try:
        yield tape
    finally:
        handle.remove()
