"""What every corruption promises, over the registry: a new one is tested from the moment it is registered."""

from __future__ import annotations

import itertools

import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional

from hauberk import Data
from hauberk.core import rng
from hauberk.core.card import Card
from hauberk.core.errors import DataError, UsageError
from hauberk.methods import load_methods

CARDS = list(load_methods().cards("corruption"))
# Published levels graded by what they do to a classifier, or that change in kind from one to the next.
UNORDERED = {"elastic-transform", "fog", "frost", "glass-blur", "pixelate", "saturate", "snow", "spatter"}
pytestmark = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """Crops of two photographs, (2, 3, 224, 200): large enough for the levels of large images."""
    pixels = [torch.tensor(load_sample_image(name)).permute(2, 0, 1).float() / 255 for name in ("china.jpg", "flower.jpg")]
    return torch.stack([pixels[0][:, 100:324, 200:400], pixels[1][:, 100:324, 250:450]])


@pytest.fixture(scope="module")
def images(digits: Data) -> Tensor:
    return digits.test.first(64)[0]


def draws(seed: int = 0) -> torch.Generator:
    return rng.generator(seed, "conformance")


def away(card: Card, x: Tensor, severity: int) -> float:
    z = card.function(x, severity, generator=draws())
    return 1e4 * float((z - x).double().square().mean())


def shrunk(photo: Tensor, side: int) -> Tensor:
    return functional.interpolate(photo, size=side, mode="area")


def test_severity_0_is_the_identity_and_no_alias(card: Card, images: Tensor) -> None:
    z = card.function(images, 0, generator=draws())
    assert torch.equal(z, images)
    assert z.data_ptr() != images.data_ptr()


def test_damage_does_not_shrink_with_severity(card: Card, images: Tensor, photo: Tensor) -> None:
    """On real photographs of both tables and on digits; the published levels of eight corruptions do not promise as much."""
    assert card.facts["ordered"] == (card.name not in UNORDERED)
    for x in (images, shrunk(photo, 32), photo):
        found = [away(card, x, severity) for severity in range(6)]
        assert found[0] == 0
        if card.name == "saturate" and x.shape[1] == 1:
            assert found == [0] * 6  # gray has no colour to lose
        elif card.facts["ordered"]:
            assert all(after >= before * (1 - 1e-6) for before, after in itertools.pairwise(found)), found
            assert found[5] > 1.1 * found[2] > 0
        else:
            assert min(found[1:]) >= 0 and max(found[4:]) > 0.05


def test_shape_dtype_bounds_and_input_are_kept(card: Card, images: Tensor, photo: Tensor) -> None:
    for x in (images, photo, images.double(), images.half(), images.bfloat16(), photo[:, :2], images[:, :, :, :5]):
        before = x.clone()
        for severity in (1, 5):
            z = card.function(x, severity, generator=draws())
            assert z.shape == x.shape and z.dtype == x.dtype and z.device == x.device
            assert bool(z.isfinite().all())
            assert float(z.min()) >= 0 and float(z.max()) <= 1
        assert torch.equal(x, before)


def test_same_generator_same_bits_and_the_global_stream_is_left_alone(card: Card, images: Tensor) -> None:
    state = torch.get_rng_state()
    first, second = (card.function(images, 3, generator=draws(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(card.function(images, 3), card.function(images, 3))
    assert torch.equal(torch.get_rng_state(), state)
    if card.facts["family"] in ("noise", "geometry", "weather") or card.name in ("motion-blur", "glass-blur", "gradient-blur"):
        assert not torch.equal(first, card.function(images, 3, generator=draws(5)))


def test_other_bounds_scale_the_same_change(card: Card, images: Tensor) -> None:
    x = images.double()
    expected = card.function(x, 4, generator=draws()) * 4 - 3
    found = card.function(x * 4 - 3, 4, generator=draws(), bounds=(-3.0, 1.0))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    per_feature = (torch.zeros(1, 8, 8), torch.full((1, 8, 8), 2.0))
    found = card.function(x * 2, 4, generator=draws(), bounds=per_feature)
    torch.testing.assert_close(found, card.function(x, 4, generator=draws()) * 2, rtol=0, atol=1e-9)


def test_an_image_is_corrupted_the_same_alone_and_in_a_batch(card: Card, images: Tensor, photo: Tensor) -> None:
    """Each image takes one seed from the generator, so that a batch equals as many calls with one image each."""
    for x in (images[:6], photo, shrunk(photo, 32)[:, :, :, :29]):
        for severity in (2, 5):
            one = draws(3)
            alone = torch.cat([card.function(x[i : i + 1], severity, generator=one) for i in range(len(x))])
            torch.testing.assert_close(card.function(x, severity, generator=draws(3)), alone, rtol=0, atol=2e-6)


def test_bytes_are_corrupted_as_their_bounds_say(card: Card, images: Tensor, photo: Tensor) -> None:
    for x in (images, shrunk(photo, 32)):
        pixels = (x * 255).round().byte()
        found = card.function(pixels, 3, generator=draws(), bounds=(0, 255))
        assert found.dtype == torch.uint8
        expected = card.function(pixels.float() / 255, 3, generator=draws()) * 255
        assert float((found.float() - expected).abs().max()) <= 0.5 + 1e-3
    # Dark bytes are not taken for numbers in [0, 1].
    dark = (images * 255).byte() % 2
    assert int(card.function(dark, 0, bounds=(0, 255)).max()) == 1


def test_empty_batches_pass(card: Card, images: Tensor) -> None:
    assert card.function(images[:0], 3).shape == (0, 1, 8, 8)


def test_bad_input_is_refused(card: Card, images: Tensor) -> None:
    for severity in (-1, 6, 2.0, True):
        with pytest.raises(UsageError, match="severity"):
            card.function(images, severity)
    with pytest.raises(DataError, match="floating or bytes"):
        card.function(images.flatten(1), 1)
    with pytest.raises(DataError, match="floating or bytes"):
        card.function((images * 255).int(), 1)
    with pytest.raises(DataError, match=r"spans \[0, 255\]"):
        card.function((images * 255).byte(), 1)
    with pytest.raises(DataError, match=r"spans \[0, 2\]"):
        card.function(images * 2, 1)
    with pytest.raises(DataError, match="finite"):
        card.function(torch.full_like(images, torch.nan), 1)
    with pytest.raises(UsageError, match="finite ends"):
        card.function(images, 1, bounds=(0.0, float("inf")))


def test_the_card_says_what_a_reader_needs(card: Card) -> None:
    assert list(card.options) == ["generator", "bounds"]
    assert card.question.endswith("?") and card.paper
    assert len(card.facts["small"]) == len(card.facts["large"]) == 5
    assert "severity: 0" in (card.function.__doc__ or "")
