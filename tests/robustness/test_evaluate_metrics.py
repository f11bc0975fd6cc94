from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import uniform_filter
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn

from hauberk import Access, Data, Linf, Target
from hauberk.core.errors import DataError, UsageError
from hauberk.robustness.attack import pgd, square
from hauberk.robustness.attack.detection import Boxes, damage
from hauberk.robustness.evaluate import (
    Campaign,
    Figure,
    Spent,
    attack_metrics,
    black_box_metrics,
    defence_metrics,
    one_by_one,
    psnr,
    ssim,
)
from hauberk.robustness.evaluate.defence_metrics import jensen_shannon
from hauberk.robustness.evaluate.figure import mean, median, share
from hauberk.robustness.natural import jpeg


class Rows(nn.Module):
    """Answers the logits that its first feature names: a model of which every figure can be worked out by hand."""

    def __init__(self, table: list[list[float]]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x.flatten(1)[:, 0].mul(10).round().long()] + 0 * x.sum()


def log(*p: float) -> list[float]:
    return [math.log(one) for one in p]


def place(*rows: int) -> Tensor:
    """Samples of four features: the first names the row of the table, the others are .5."""
    return torch.tensor([[row / 10, 0.5, 0.5, 0.5] for row in rows], dtype=torch.float64)


TABLE = [log(0.8, 0.15, 0.05), log(0.1, 0.7, 0.2), log(0.3, 0.1, 0.6), log(0.5, 0.4, 0.1)]


def test_by_hand() -> None:
    model = Rows(TABLE)
    # Two samples of class 0 become class 1 and class 2; the third stays; the fourth is wrong from the beginning.
    x, y = place(0, 0, 0, 1), torch.tensor([0, 0, 0, 0])
    z = place(1, 2, 3, 1)
    z[0, 1] = 0.9
    found = attack_metrics(model, x, z, y)
    assert found.success.value == pytest.approx(2 / 3) and found.success.n == 3
    assert found.acac.value == pytest.approx((0.7 + 0.6) / 2) and found.acac.n == 2
    assert found.actc.value == pytest.approx((0.1 + 0.3) / 2)
    assert found.nte.value == pytest.approx((0.5 + 0.3) / 2)
    assert found.l0.value == pytest.approx((2 + 1) / 2) and found.relative_l0.value == pytest.approx(1.5 / 4)
    lengths, size = (math.hypot(0.1, 0.4), 0.2), math.sqrt(0.75)
    assert found.l2.value == pytest.approx(sum(lengths) / 2) and found.relative_l2.value == pytest.approx(sum(lengths) / 2 / size)
    assert found.linf.value == pytest.approx(0.3) and found.relative_linf.value == pytest.approx(0.6)
    errors = (0.17 / 4, 0.04 / 4)
    assert found.psnr.value == pytest.approx(sum(-10 * math.log10(one) for one in errors) / 2)
    assert not found.ass.measured and not found.rgb.measured  # a table has no likeness of images


def test_targeted_success_is_the_wanted_class_and_no_other() -> None:
    x, y, wanted = place(0, 0, 0), torch.tensor([0, 0, 0]), torch.tensor([1, 1, 0])
    # The first reaches 1; the second another wrong class; for the third the aim is its own class: nothing to do.
    found = attack_metrics(Rows(TABLE), x, place(1, 2, 3), y, wanted=wanted)
    assert (found.success.value, found.success.n) == (0.5, 2)
    assert found.acac.value == pytest.approx(0.7) and found.acac.n == 1


def test_without_a_success_nothing_but_the_rate_is_measured() -> None:
    """Means over no sample are neither 0, nor -1, nor NaN."""
    x, y = place(0, 0), torch.tensor([0, 0])
    found = attack_metrics(Rows(TABLE), x, place(0, 3), y, others={"twin": Rows(TABLE)})
    assert found.success.value == 0 and found.success.interval is not None
    for name in ("acac", "actc", "l0", "l2", "linf", "relative_l0", "relative_l2", "nte", "psnr", "rgb", "ric", "ass", "queries"):
        assert getattr(found, name) == Figure(), name
    assert found.transfer["twin"] == Figure() and found.outline()["true class gone"] is None
    told = {name: value for name, value, _, _ in found.rows()}
    assert told["lead over the second class (NTE)"] == "not measured" and "nan" not in str(found.rows()).lower()
    nobody = attack_metrics(Rows(TABLE), x, place(1, 1), torch.tensor([2, 2]))
    assert nobody.success == Figure()
    assert attack_metrics(Rows(TABLE), x[:0], x[:0], y[:0]).success == Figure()


def test_one_changed_pixel_of_a_dark_image_is_one_feature() -> None:
    """Relative to the features and not to the lit ones, which would make it 63 for a digit of one lit pixel."""
    x, z = torch.zeros(1, 64, dtype=torch.float64), torch.zeros(1, 64, dtype=torch.float64)
    z[0, 0] = 0.1
    found = attack_metrics(Rows(TABLE), x, z, torch.tensor([0]))
    assert found.l0.value == 1 and found.relative_l0.value == 1 / 64
    assert not found.relative_l2.measured  # relative to a sample of size zero


def test_transfer_is_over_samples_the_other_model_knows() -> None:
    x, z, y = place(0, 0, 3), place(1, 2, 1), torch.tensor([0, 0, 0])
    other = Rows([log(0.8, 0.1, 0.1), log(0.2, 0.7, 0.1), log(0.9, 0.05, 0.05), log(0.1, 0.8, 0.1)])
    found = attack_metrics(Rows(TABLE), x, z, y, others={"other": other})
    # Of three examples the other knows two clean samples; the first moves it, the second does not.
    assert found.transfer["other"].value == 0.5 and found.transfer["other"].n == 2
    assert found.outline()["transfers to other"] == 0.5


def test_what_survives_blur_and_jpeg_is_asked_of_the_model(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(96)
    z = pgd(digits_model, x, y, Linf(0.15), seed=1)
    found = attack_metrics(digits_model, x, z, y, severity=3)
    clean, labels = digits_model(x).argmax(1), digits_model(z).argmax(1)
    hit = (clean == y) & (labels != y)
    kept = (digits_model(jpeg(z[hit], 3)).argmax(1) != y[hit]).double().mean()
    assert int(hit.sum()) > 20 and found.ric.value == pytest.approx(float(kept)) and found.ric.n == int(hit.sum())
    assert found.rgb.value is not None and 0 < found.rgb.value < 1
    assert found.ass.value == pytest.approx(float(ssim(x[hit], z[hit]).mean()))
    assert found.linf.value == pytest.approx(0.15, abs=1e-3)


def test_queries_have_owners(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(12)
    target = Target(digits_model, access=Access.SCORE)
    spent = one_by_one(square, target, x, y, Linf(0.2), queries=60, seed=3)
    assert int(spent.queries.sum()) == target.ledger.queries and int(spent.gradients.sum()) == 0
    alone = Target(digits_model, access=Access.SCORE)
    square(alone, x[4:5], y[4:5], Linf(0.2), queries=60, seed=3)
    assert int(spent.queries[4]) == alone.ledger.queries <= 60
    found = attack_metrics(digits_model, x, spent.x_adv, y, spent=spent)
    right = digits_model(x).argmax(1) == y
    hit = right & (digits_model(spent.x_adv).argmax(1) != y)
    assert found.queries.value == pytest.approx(float(spent.queries[right].double().mean()))
    assert found.median_queries == pytest.approx(float(np.median(spent.queries[hit])))
    steps, shares = found.success_by_queries()
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == pytest.approx(found.success.value)
    assert steps[-1] == max(found.query_counts)


def test_median_queries_without_a_success_is_none() -> None:
    x, y = place(0, 0), torch.tensor([0, 0])
    spent = Spent(x, torch.tensor([5, 7]), torch.tensor([0, 0]), torch.tensor([0.1, 0.3]))
    found = attack_metrics(Rows(TABLE), x, x, y, spent=spent)
    assert found.median_queries is None and found.queries.value == 6 and found.seconds.value == pytest.approx(0.2)
    assert found.success_by_queries() == ([0], [0.0])


def test_probabilities_are_made_of_logits() -> None:
    """The confidence is a probability whatever the model returns: the caller need not put a softmax before."""
    model = nn.Linear(2, 3).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[30.0, 0], [0, 30.0], [0, 0]]))
        model.bias.zero_()
    x, z = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    found = attack_metrics(model, x, z, torch.tensor([0]))
    assert found.acac.value == pytest.approx(1.0) and 0 <= found.actc.value < 1e-10  # type: ignore[operator]


def test_what_does_not_fit_is_refused() -> None:
    x, y = place(0, 1), torch.tensor([0, 1])
    with pytest.raises(DataError, match="same shape"):
        attack_metrics(Rows(TABLE), x, x[:1], y)
    with pytest.raises(DataError, match="wanted"):
        attack_metrics(Rows(TABLE), x, x, y, wanted=torch.tensor([1]))
    with pytest.raises(DataError, match="NaN"):
        attack_metrics(Rows(TABLE), x, x * math.nan, y)


def reference_ssim(a: Tensor, b: Tensor, span: float) -> float:
    """Written out with SciPy's moving average, window by window inside the image, as scikit-image defines it."""
    one, two = a.numpy().astype(np.float64), b.numpy().astype(np.float64)

    def over(v: np.ndarray) -> np.ndarray:
        return uniform_filter(v, 7)[3:-3, 3:-3]

    c = 49 / 48
    m1, m2 = over(one), over(two)
    v1, v2, both = c * (over(one * one) - m1 * m1), c * (over(two * two) - m2 * m2), c * (over(one * two) - m1 * m2)
    k1, k2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    return float(((2 * m1 * m2 + k1) * (2 * both + k2) / ((m1**2 + m2**2 + k1) * (v1 + v2 + k2))).mean())


@pytest.mark.parametrize("span", [1.0, 2.0, 255.0])
def test_ssim_is_that_of_the_definition_at_any_range(span: float) -> None:
    draw = torch.Generator().manual_seed(0)
    a = torch.rand(3, 2, 20, 17, generator=draw, dtype=torch.float64) * span
    b = (a + 0.1 * span * torch.randn(a.shape, generator=draw, dtype=torch.float64)).clamp(0, span)
    found = ssim(a, b, bounds=(0.0, span))
    for at in range(3):
        wanted = sum(reference_ssim(a[at, c], b[at, c], span) for c in range(2)) / 2
        assert float(found[at]) == pytest.approx(wanted, abs=1e-10)
    assert torch.allclose(ssim(a, a, bounds=(0.0, span)), torch.ones(3, dtype=torch.float64))
    # A fixed range of 2 would answer differently for images in [0, 1].
    assert float(ssim(a / span, b / span)[0]) == pytest.approx(float(found[0]), abs=1e-10)


def test_ssim_of_flat_images_has_a_closed_form() -> None:
    a, b = torch.full((1, 1, 9, 9), 0.4), torch.full((1, 1, 9, 9), 0.6)
    assert float(ssim(a, b)) == pytest.approx((2 * 0.24 + 1e-4) / (0.16 + 0.36 + 1e-4), abs=1e-6)
    assert ssim(torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)).shape == (2,)  # smaller than the window
    with pytest.raises(DataError):
        ssim(torch.rand(1, 4, 4), torch.rand(1, 4, 4))
    with pytest.raises(UsageError):
        ssim(torch.rand(1, 1, 2, 2), torch.rand(1, 1, 2, 2))


def test_psnr() -> None:
    a = torch.zeros(2, 3, dtype=torch.float64)
    b = torch.tensor([[0.1, 0.1, 0.1], [0.0, 0.0, 0.0]], dtype=torch.float64)
    found = psnr(a, b)
    assert float(found[0]) == pytest.approx(20.0) and math.isinf(float(found[1]))
    assert float(psnr(a, b, bounds=(-1.0, 1.0))[0]) == pytest.approx(20 + 20 * math.log10(2))


def test_jpeg_is_that_of_pillow() -> None:
    x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    buffer = io.BytesIO()
    Image.fromarray((x[0, 0] * 255).round().byte().numpy()).save(buffer, "JPEG", quality=80)
    wanted = torch.from_numpy(np.array(Image.open(buffer))).float() / 255
    assert torch.allclose(jpeg(x, 1)[0, 0], wanted, atol=1e-6)


def test_defence_by_hand() -> None:
    raw = Rows([log(0.8, 0.2), log(0.3, 0.7), log(0.6, 0.4), log(0.9, 0.1)])
    defended = Rows([log(0.6, 0.4), log(0.6, 0.4), log(0.2, 0.8), log(0.7, 0.3)])
    x, y = place(0, 1, 2, 3), torch.tensor([0, 0, 0, 0])
    found = defence_metrics(raw, defended, x, y)
    # Raw: right, wrong, right, right. Defended: right, right, wrong, right.
    assert (found.crr.value, found.csr.value, found.cav.value) == (0.25, 0.25, 0.0)
    assert found.ccv.value == pytest.approx(0.2) and found.ccv.n == 2
    pairs = [([0.8, 0.2], [0.6, 0.4]), ([0.9, 0.1], [0.7, 0.3])]
    assert found.cos.value == pytest.approx(np.mean([jensenshannon(p, q) ** 2 for p, q in pairs]), abs=1e-12)
    assert found.p_value == 1.0 and found.cav.interval is not None and found.cav.interval.low < 0 < found.cav.interval.high


def test_the_confidence_that_changes_is_that_of_the_true_class() -> None:
    """Where both are right it is the largest too; a defence that turns a model round is seen in full."""
    found = defence_metrics(Rows([log(0.9, 0.1)]), Rows([log(0.1, 0.9)]), place(0), torch.tensor([0]))
    assert found.csr.value == 1 and found.cav.value == -1
    assert found.ccv == Figure() and found.cos == Figure()  # nothing both get right: not measured, where -1 would be a lie
    assert ("change of confidence (CCV)", "not measured", 0) in found.rows()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cav_is_crr_minus_csr(seed: int, fresh_cnn: Callable[..., nn.Module], digits: Data) -> None:
    x, y = digits.test.first(60)
    one, two = fresh_cnn(seed=seed).eval(), fresh_cnn(seed=seed + 7).eval()
    found = defence_metrics(one, two, x, y)
    right = [(model(x).argmax(1) == y).double().mean() for model in (one, two)]
    assert found.cav.value == pytest.approx(float(right[1] - right[0]))
    assert found.cav.value == pytest.approx(found.crr.value - found.csr.value)  # type: ignore[operator]
    same = defence_metrics(one, one, x, y)
    assert same.cav.value == 0 and same.crr.value == 0 and same.csr.value == 0
    assert not same.cos.measured or same.cos.value == 0


def test_jensen_shannon_ends() -> None:
    p, q = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    assert jensen_shannon(p, q).tolist() == pytest.approx([math.log(2), 0.0])


def test_black_box_by_hand() -> None:
    raw = Campaign(torch.tensor([100, 200, 300, 1000]), torch.tensor([True, True, True, False]))
    defended = Campaign(torch.tensor([600, 1000, 1000, 1000]), torch.tensor([True, False, False, False]))
    flagged = torch.tensor([True] + [False] * 19)
    found = black_box_metrics(
        raw, defended, budget=1000, flagged=flagged, raw_seconds=torch.tensor([0.1, 0.3]),
        defended_seconds=torch.tensor([0.3, 0.3]),
    )
    assert found.qcv.value == pytest.approx((900 - 400) / 1000)
    assert found.asv.value == pytest.approx(0.5) and found.asv.interval is not None
    assert found.fpr.value == 0.05 and found.fpr.interval is not None
    assert found.qrv.value == pytest.approx(0.5)
    whole = Campaign(torch.tensor([1000] * 4), torch.tensor([False] * 4))
    assert black_box_metrics(raw, whole, budget=1000).qcv.value == 1.0


def test_black_box_figures_without_data_are_not_measured() -> None:
    one = Campaign(torch.tensor([5]), torch.tensor([True]))
    found = black_box_metrics(one, one, budget=10)
    assert found.fpr == Figure() and found.qrv == Figure() and found.qcv.value == 0
    # A clock that saw no time at all gives no ratio: not 1e12.
    still = black_box_metrics(one, one, budget=10, raw_seconds=torch.zeros(3), defended_seconds=torch.ones(3))
    assert still.qrv == Figure()
    with pytest.raises(UsageError, match="at most the budget"):
        black_box_metrics(one, one, budget=4)
    with pytest.raises(DataError, match="same samples"):
        black_box_metrics(one, Campaign(torch.tensor([1, 2]), torch.tensor([True, True])), budget=10)


def test_black_box_shares_have_an_interval_over_pairs() -> None:
    draw = torch.Generator().manual_seed(3)
    before = torch.randint(100, 400, (60,), generator=draw)
    raw, defended = Campaign(before, before > 0), Campaign(before + 200, before > 0)
    times = torch.rand(60, generator=draw) + 0.5
    found = black_box_metrics(raw, defended, budget=1000, raw_seconds=times, defended_seconds=1.5 * times)
    # Pair by pair the same: nothing is left to chance, as it would be if the two lists were drawn apart.
    assert found.qcv.interval is not None and found.qrv.interval is not None
    for figure, wanted in ((found.qcv, 0.2), (found.qrv, 0.5)):
        assert figure.value == pytest.approx(wanted) and figure.interval is not None
        assert figure.interval.low == pytest.approx(wanted) and figure.interval.high == pytest.approx(wanted)
    after = torch.randint(300, 900, (60,), generator=draw)
    given = {"raw": raw, "defended": Campaign(after, after > 0), "budget": 1000}
    one, again, other = (black_box_metrics(**given, seed=seed).qcv for seed in (0, 0, 1))  # type: ignore[arg-type]
    assert one == again and one.interval != other.interval and one.interval is not None and one.value is not None
    change = (after - before).double() / 1000
    half = 1.96 * float(change.std()) / 60**0.5
    assert one.interval.low == pytest.approx(one.value - half, abs=0.02)
    assert one.interval.high == pytest.approx(one.value + half, abs=0.02)
    single = Campaign(torch.tensor([5]), torch.tensor([True]))
    assert black_box_metrics(single, single, budget=10).qcv.interval is None


def test_without_samples_a_defence_has_no_p_value() -> None:
    model = Rows(TABLE)
    assert math.isnan(defence_metrics(model, model, place(), torch.zeros(0, dtype=torch.long)).p_value)


@pytest.mark.parametrize("shape", [(4,), (3, 12, 12)])
def test_infinite_bounds_leave_out_what_is_a_share_of_the_range(shape: tuple[int, ...]) -> None:
    x = torch.rand(6, *shape, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 2)).eval()
    y = net(x).argmax(1)
    found = attack_metrics(Target(net, bounds=(-math.inf, math.inf)), x, x.flip(0) * 3 - 1, y)
    assert not any(one.measured for one in (found.psnr, found.ass, found.rgb, found.ric)) and found.success.n == 6


def test_figures_about_one_class_refuse_several_labels() -> None:
    x, y, net = torch.rand(4, 3), torch.zeros(4, dtype=torch.long), nn.Linear(3, 2)
    several = Target(net, outputs="multilabel")
    for labels in (y, torch.zeros(4, 2, dtype=torch.long)):
        with pytest.raises(UsageError, match="attack_metrics was given a model of several labels"):
            attack_metrics(several, x, x, labels)
        for pair in ((several, net), (net, several)):
            with pytest.raises(UsageError, match="defence_metrics was given a model of several labels"):
                defence_metrics(*pair, x, labels)
    with pytest.raises(UsageError, match="several labels"):
        attack_metrics(net, x, x, y, others={"other": several})


def test_without_true_boxes_no_share_of_them_is_found() -> None:
    none = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    told = damage([none], [none], [none])
    assert told.boxes == 0 and math.isnan(told.found_before) and math.isnan(told.found_after)
    assert (told.interval_after.low, told.interval_after.high) == (0.0, 1.0)


def test_figures_leave_out_what_is_not_finite() -> None:
    assert share(torch.zeros(0, dtype=torch.bool)) == Figure() and mean(torch.tensor([math.inf, math.nan])) == Figure()
    assert mean(torch.tensor([2.0, math.inf])).n == 1
    assert median(torch.tensor([1.0, 2.0, math.inf])).value == 2.0
    assert median(torch.tensor([1.0, math.inf, math.inf])) == Figure(None, 3)


def test_the_interval_of_a_median_holds_what_it_says() -> None:
    draw, held = torch.Generator().manual_seed(5), 0
    for _ in range(400):
        one = median(torch.rand(25, generator=draw).double() ** 3)
        assert one.interval is not None
        held += one.interval.low <= 0.125 <= one.interval.high
    # The exact level for n = 25 is 0.957; four standard errors below 0.95 is 0.906.
    assert 0.92 <= held / 400 <= 0.99
