"""Five coverage criteria in one pass against a plain forward, and a fuzzer's throughput, on a 522-neuron net, one thread."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn

from harness import alternate, ratios, save
from hauberk import Data, Split, Target
from hauberk.core.card import registry
from hauberk.methods import load_methods
from hauberk.robustness.fuzz import Options
from hauberk.robustness.fuzz.campaign import prepare
from hauberk.robustness.fuzz.coverage import Reader, criterion, multisection_coverage, profile
from hauberk.robustness.fuzz.loop import Search

BATCH, BATCHES, ROUNDS, MUTANTS = 64, 4, 15, 1024
FIVE = ("nc", "tknc", "kmnc", "nbc", "snac")


def net() -> nn.Module:
    """522 neurons (64 + 64 + 128 channels, 256 + 10 units), 0.64 million weights, 32x32 colour images."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 256), nn.ReLU(),
        nn.Linear(256, 10),
    ).eval()


def strided() -> nn.Module:
    """The same neurons and weights, with strides in place of pooling: a fifth of the arithmetic."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 256), nn.ReLU(), nn.Linear(256, 10),
    ).eval()


def photos(n: int, seed: int) -> Tensor:
    """Smooth random images: photographs are no matter here, for time alone is measured."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 6, 6, generator=draw)
    return nn.functional.interpolate(coarse, size=32, mode="bilinear").clamp(0, 1)


def overhead(model: nn.Module) -> tuple[dict[str, dict[str, float]], int]:
    """Time a forward, one that reads the neurons, and one with all five criteria."""
    target = Target(model, batch_size=BATCH)
    reader = Reader(target)
    parts = photos(BATCH * BATCHES, 1).split(BATCH)
    known = profile(reader, photos(256, 2).split(BATCH))
    assert known.neurons == 522
    five = [multisection_coverage(known, k=1000) if name == "kmnc" else criterion(name, known) for name in FIVE]

    turned = [part.contiguous(memory_format=torch.channels_last) for part in parts]
    same = turned if reader._turned else parts  # the layout in which the reader asks

    def forward() -> None:
        with torch.no_grad():
            for part in parts:
                model(part)

    def alike() -> None:
        with torch.no_grad():
            for part in same:
                model(part)

    def read() -> None:
        for part in parts:
            reader(part)

    def covered() -> None:
        for part in parts:
            seen = reader(part)
            for one in five:
                one.update(seen)

    contenders = {"forward": forward, "forward, layout of the reader": alike, "read the neurons": read, "five criteria": covered}
    seconds = alternate(contenders, rounds=ROUNDS, warm_up=2)
    table = ratios(seconds, "forward")
    for name, one in ratios(seconds, "forward, layout of the reader").items():
        table[name] |= {f"same_{key}": value for key, value in one.items() if key != "seconds"}
    return table, BATCH * BATCHES


def over(one: dict[str, float], which: str = "") -> str:
    """Return the cost beyond a forward: median, least and greatest of the rounds."""
    median, least, greatest = ((one[which + key] - 1) * 100 for key in ("ratio", "least", "greatest"))
    return f"{median:+.1f} % [{least:+.1f}, {greatest:+.1f}]"


def throughput(model: nn.Module, names: list[str], repeats: int = 3) -> tuple[float, float, int]:
    """Return valid mutants per CPU second of a guided search, all its work included; mutants made, and how many were valid."""
    x = photos(200, 3)
    with torch.no_grad():
        labels = model(x).argmax(1)
    data = Data(Split(x, labels), Split(photos(500, 4), torch.zeros(500).long()), classes=10)
    valid, made, count = [], [], 0
    for seed in range(repeats + 1):
        options = Options(budget=MUTANTS, seed=seed)
        bench, known = prepare(Target(model), data, 100, options, (), names)
        search = Search(bench, {name: criterion(name, known) for name in ("kmnc", "nc", "tknc", "nbc", "snac")}, guided=True)
        began = time.process_time()
        search.run()
        spent = time.process_time() - began
        if seed:  # the first is for warmth
            valid.append(search.done / spent)
            made.append(search.made / spent)
            count = search.done
    return statistics.median(valid), statistics.median(made), count


def main() -> None:
    """Measure both and write the table."""
    torch.set_num_threads(1)
    load_methods()
    nets, rows, times = {"pooled": net(), "strided": strided()}, [], {}
    for kind, model in nets.items():
        times[kind], images = overhead(model)
        rows += [
            [kind, name, f"{one['seconds'] / images * 1e3:.3f} ms an image", over(one), over(one, "same_")]
            for name, one in times[kind].items()
        ]
    everything = [card.name for card in registry.cards("corruption")]
    sets = {
        "fuzzing, corruptions of the quick preset": [card.name for card in registry.cards("corruption") if card.runs_at("quick")],
        "fuzzing, the fifteen kinds of MindSpore Armour": [
            "translate", "scale", "shear", "rotate", "perspective", "curve", "gaussian-blur", "motion-blur", "gradient-blur",
            "contrast", "gradient-luminance", "uniform-noise", "gaussian-noise", "salt-and-pepper", "natural-noise",
        ],
        f"fuzzing, all {len(everything)} corruptions": everything,
        "fuzzing, all corruptions, FGSM, PGD and MDI-FGSM": [],
    }
    rates: dict[str, dict[str, dict[str, float]]] = {kind: {} for kind in nets}
    for kind, model in nets.items():
        floor = times[kind]["forward"]["seconds"] / images
        for name, chosen in sets.items():
            known = [one for one in chosen if one in everything]
            valid, made, count = throughput(model, known, 1 if not chosen else 3)
            rates[kind][name] = {"valid": valid, "made": made, "mutators": len(known), "share_of_forward": valid * floor}
            rows.append([
                kind, name, f"{valid:,.0f} valid mutants/s ({made:,.0f} made/s)",
                f"{valid * floor:.0%} of a forward's rate; n = {count}", "",
            ])
    save(
        "coverage", "Coverage and throughput of the fuzzer, 522 neurons, one thread",
        {"overhead": times, "throughput": rates},
        ["net", "what", "CPU time", "over the forward in the caller's layout, median [least, greatest]",
         "over the forward in the layout of the reader"], rows,
        [f"{ROUNDS} rounds in turn, batch {BATCH}, process CPU time. Throughput counts all of the search: mutation, rule,",
         "the forward pass, five criteria, objectives, the queue. Bars: five criteria at most +10 %, over the",
         "forward in either layout; 1,400 mutants a second. Images come in contiguous; the reader asks a net that pools",
         "with the channels of a pixel side by side, which is quicker, so that the second column alone is the price of reading.",
         "Made by `benchmarks/coverage.py`."],
    )


if __name__ == "__main__":
    main()
