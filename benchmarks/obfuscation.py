"""Obfuscation: what answers, latency and size it costs, and what nets trained long are worth without the key.

Two nets on MNIST: an MLP without norms, trained until its layers are balanced (the case that rank matching was made for), and a
CNN with norms. Needs mnist.npz in the folder named by HAUBERK_DATA (else `../shared/data` beside the checkout).
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hauberk
from harness import save
from hauberk.assets import obfuscate
from hauberk.assets.obfuscate.attacks import accuracy, rank_matching, renormalise, share
from hauberk.assets.obfuscate.draws import Draws
from hauberk.assets.obfuscate.fx_reader import traced
from hauberk.assets.obfuscate.preserve import gap
from hauberk.assets.obfuscate.report import attack_report, latency, size_ratio, with_weights
from hauberk.assets.obfuscate.similarity import fx_nodes, graph_similarity
from mnist import folder

KEYS = 5


def mlp() -> nn.Sequential:
    """Return a ReLU net without norms."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def cnn() -> nn.Sequential:
    """Return a CNN with norms."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )


def trained(module: nn.Module, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    """Train with weight decay, the rate falling at the end."""
    made = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [epochs * 2 // 3, epochs * 5 // 6], 0.3)
    module.train()
    for _ in range(epochs):
        for some in torch.randperm(len(x), generator=made).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[some]), y[some]).backward()
            optimizer.step()
        schedule.step()
    return module.eval()


def turned(module: nn.Sequential) -> nn.Module:
    """Return the net with its units out of order alone: what a key of permutations gives, without scales."""
    state = dict(module.state_dict())
    for name, value in state.items():
        if value.ndim == 2 and value.shape[1] < 784:
            state[name] = value[:, Draws(bytes(32), b"", name).permutation(value.shape[1])]
    return with_weights(module, state)


def onnx_rows(module: nn.Module, x: Tensor) -> list[list[str]]:
    """Return rows of ONNX: output difference, latency and size of each way."""
    import io
    import time

    import onnx
    import onnxruntime

    from hauberk.assets.obfuscate.files import lock_onnx, unlock_onnx

    held = io.BytesIO()
    torch.onnx.export(module, (x[:8],), held, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False)
    before = onnx.load_from_string(held.getvalue())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    name = before.graph.input[0].name
    feed = {name: x[:256].numpy()}

    def session(model: Any) -> Any:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    key, plain, rows = obfuscate.new_key(), session(before), []
    for title, model in (
        ("ONNX rename", obfuscate.strip_onnx(before)), ("ONNX mix", obfuscate.mix_onnx(before)[0]),
        ("ONNX split", obfuscate.split_onnx(before)), ("ONNX lock, unlocked", unlock_onnx(lock_onnx(before, key), key)),
        ("ONNX decoys", obfuscate.add_onnx_decoys(before, key)),
    ):
        other = session(model)
        more = {"selector": obfuscate.onnx_selector(model, key)} if "decoys" in title else {}
        answers = [np.asarray(one.run(None, given)[0]) for one, given in ((plain, feed), (other, {**feed, **more}))]
        shares = []
        for turn in range(60):
            spent = {}
            for which, one, given in ((0, plain, feed), (1, other, {**feed, **more}))[:: 1 if turn % 2 else -1]:
                began = time.process_time()
                for _ in range(3):
                    one.run(None, given)
                spent[which] = time.process_time() - began
            shares.append(spent[1] / spent[0])
        difference = np.abs(answers[0] - answers[1]).max() / np.abs(answers[0]).max()
        size = f"{model.ByteSize() / before.ByteSize():.3f}"
        rows.append([title, f"{difference:.1e}", f"{statistics.median(shares):.3f}", size, "-"])
    return rows


def main() -> None:
    """Train, hide, attack, and write the tables."""
    data = hauberk.load_data(str(folder() / "mnist.npz"))
    assert data.train is not None
    quick = "--quick" in sys.argv
    x, y = (part[: 2000 if quick else 12000] for part in data.train.tensors())
    test = data.test.tensors()
    rows, content = [], {}
    cost: list[list[str]] = []
    for name, build, epochs in (("MLP", mlp, 2 if quick else 60), ("CNN", cnn, 1 if quick else 20)):
        torch.manual_seed(0)
        module = trained(build(), x, y, epochs)
        few = share((x, y), 0.05, 0)
        factors = {key: 2.0 ** (at % 7 - 3) for at, key in enumerate(module.state_dict())}
        scalar = with_weights(
            module, {key: value * factors[key] if value.ndim > 1 else value for key, value in module.state_dict().items()}
        )
        weak = {"a factor a layer, renormalised": accuracy(renormalise(scalar, few), test)}
        if name == "MLP":
            weak["order alone, as shipped"] = accuracy(turned(module), test)  # type: ignore[arg-type]
            weak["order alone, rank matching"] = accuracy(rank_matching(turned(module), few), test)  # type: ignore[arg-type]
        locks = [obfuscate.lock_weights(module.state_dict(), bytes([at]) * 32).state for at in range(KEYS)]
        found = [attack_report(module, with_weights(module, lock), (x, y), test, part=0.05, seeds=1) for lock in locks]
        rows.append([name, "with the key", f"{found[0].owner:.4f}", "-", "-"])
        for at, attempt in enumerate(found[0].attempts):
            got = [one.attempts[at].accuracy for one in found]
            none = [one.attempts[at].nothing or 0.0 for one in found]
            rows.append([
                name, f"lock: {attempt.attack}", f"{statistics.fmean(got):.3f} ({min(got):.3f} to {max(got):.3f})",
                f"{statistics.fmean(none):.3f}", attempt.has,
            ])
            content[f"{name} {attempt.attack}"] = {"locked": got, "fresh": none}
        has = f"{len(few[0])} labelled samples"
        rows += [[name, f"weaker: {what}", f"{value:.3f}", "-", has] for what, value in weak.items()]
        content[f"{name} weaker"] = weak
        decoys = obfuscate.add_decoys(module, bytes(32))
        told = attack_report(module, decoys, (x, y), test, part=0.05, seeds=1)
        rows += [
            [name, f"decoys: {one.attack}", f"{one.accuracy:.3f}", "-" if one.nothing is None else f"{one.nothing:.3f}",
             f"{one.has}, {told.evaluations} evaluations" if one.attack == "branch search" else one.has] for one in told.attempts
        ]
        graph = traced(module, x[:64])
        for title, other in (
            ("rename", obfuscate.rename_module(module, x[:64])), ("mix", obfuscate.mix(module, x[:64]).module),
            ("split", obfuscate.scatter(module, x[:64])),
            ("lock, unlocked", with_weights(module, obfuscate.unlock_weights(
                obfuscate.lock_weights(module.state_dict(), bytes(32)), bytes(32)))),
            ("decoys", obfuscate.choose(decoys, bytes(32))),
        ):
            alike = "-" if title == "decoys" else f"{graph_similarity(fx_nodes(graph), fx_nodes(traced(other, x[:64]))):.2f}"
            cost.append([
                f"{name} {title}", f"{gap(module, other, test[0][:2000]):.1e}", f"{latency(module, other, x[:512]):.3f}",
                f"{size_ratio(module.state_dict(), other.state_dict()):.3f}", alike,
            ])
        cost += [[f"{name} {row[0]}", *row[1:]] for row in onnx_rows(module, x)]
    content["cost"] = {row[0]: row[1:] for row in cost}
    width = ["net", "attack", f"accuracy, mean over {KEYS} keys", "the same on fresh weights", "adversary has"]
    notes = [
        "Accuracy is on the 10,000 test images; its 95 % interval is at most 0.01 wide either way. Fresh weights hold nothing to "
        "steal: what an attack reaches there, it owes to its labels.", "",
        "| way | largest output difference, relative | latency | size | graph similarity |", "|---|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in cost), "",
        "Latency and size are ratios to the model as it was; latency is the median of paired CPU times, one thread.",
    ]
    save("obfuscation", "Obfuscated models: what is left without the key, and what it costs", content, width, rows, notes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
