"""Trains the model of the demo on scikit-learn's handwritten digits and saves its weights: a few seconds."""

from pathlib import Path

import torch
from model import build
from safetensors.torch import save_file

import hauberk


def main() -> None:
    """Train, report the accuracy, save."""
    data = hauberk.load_data("sklearn:digits")
    assert data.train is not None
    torch.manual_seed(0)
    model = build()
    hauberk.fit(model, data.train, schedule=hauberk.Schedule(epochs=15, batch_size=64))
    x, y = data.test.tensors()
    right = (model(x).argmax(1) == y).float().mean()
    place = Path(__file__).parent / "weights.safetensors"
    save_file(model.state_dict(), place)
    print(f"trained on {len(data.train)} digits: {right:.1%} of {len(y)} test digits right; weights in {place.name}")


if __name__ == "__main__":
    main()
