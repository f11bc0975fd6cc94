"""Coverage criteria: each against a brute-force oracle written from its paper, and one test for each mistake others made."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde, kstest, multivariate_normal
from torch import nn

from hauberk import Data, Target
from hauberk.core.access import Access
from hauberk.core.errors import DataError, ModelError, UsageError
from hauberk.core.taps import tap
from hauberk.robustness.fuzz import coverage as cov
from hauberk.robustness.fuzz.coverage.novelty import natural_distance

SPANS = ((0, 5), (5, 12), (12, 15))


def reading(n: int, seed: int, scale: float = 1.0) -> cov.Reading:
    draw = torch.Generator().manual_seed(seed)
    units = torch.randn(n, 15, generator=draw) * scale
    return cov.Reading(units, SPANS, torch.randn(n, 3, generator=draw))


@pytest.fixture
def known() -> cov.Profile:
    train = reading(60, 1)
    low, high = train.units.amin(0), train.units.amax(0)
    return cov.Profile(low, high, SPANS, train.features.double(), train.labels)


def batches(n: int = 40, seed: int = 2) -> tuple[cov.Reading, list[cov.Reading]]:
    whole = reading(n, seed, 1.3)
    return whole, [whole.rows(torch.arange(start, min(start + 16, n))) for start in range(0, n, 16)]


def followed(criterion: cov.Criterion, parts: list[cov.Reading]) -> float:
    for part in parts:
        criterion.update(part)
    return criterion.value


def test_neuron_coverage_scales_each_layer_of_each_input(known: cov.Profile) -> None:
    whole, parts = batches()
    covered = set()
    for row in whole.units.double().numpy():
        for start, stop in SPANS:
            layer = row[start:stop]
            scaled = (layer - layer.min()) / (layer.max() - layer.min())
            covered |= {start + place for place, value in enumerate(scaled) if value > 0.75}
    assert followed(cov.neuron_coverage(known, threshold=0.75), parts) == pytest.approx(len(covered) / 15, abs=1e-6)


def test_neuron_coverage_is_not_of_raw_activations_and_survives_a_flat_layer(known: cov.Profile) -> None:
    # Every activation is far above the threshold, unscaled: only the largest of each layer that varies is covered.
    units = torch.full((1, 15), 100.0)
    units[0, 2] = 101.0
    criterion = cov.neuron_coverage(known, threshold=0.5)
    criterion.update(cov.Reading(units, SPANS, torch.zeros(1, 3)))
    assert criterion.covered.nonzero().flatten().tolist() == [2]


def test_top_k_coverage(known: cov.Profile) -> None:
    whole, parts = batches(6)
    covered = set()
    for row in whole.units.numpy():
        for start, stop in SPANS:
            covered |= {start + place for place in np.argsort(row[start:stop])[-2:]}
    assert followed(cov.top_k_coverage(known, k=2), parts) == pytest.approx(len(covered) / 15, abs=1e-6)
    assert followed(cov.top_k_coverage(known, k=9), parts) == 1.0  # narrower layers give all they have


def test_top_k_patterns_are_sets_over_all_layers(known: cov.Profile) -> None:
    whole, parts = batches(40)
    patterns = {
        tuple(frozenset(np.argsort(row[start:stop])[-2:]) for start, stop in SPANS) for row in whole.units.numpy()
    }
    criterion = cov.TopKPatterns(known, k=2)
    assert followed(criterion, [*parts, *parts]) == len(patterns)
    again = cov.TopKPatterns(known, k=2)
    again.load(criterion.state())
    assert again.value == len(patterns)
    assert again.gains(whole).sum() == 0


@pytest.mark.parametrize("k", [10, 1000])
def test_multisection_coverage(known: cov.Profile, k: int) -> None:
    whole, parts = batches()
    low, high = known.low.numpy(), known.high.numpy()
    hit = set()
    for row, neuron in itertools.product(whole.units.numpy(), range(15)):
        if low[neuron] <= row[neuron] <= high[neuron]:
            place = (row[neuron] - low[neuron]) / (high[neuron] - low[neuron]) * np.float32(k)
            hit.add((neuron, min(int(place), k - 1)))
    criterion = cov.multisection_coverage(known, k=k)
    assert followed(criterion, parts) == pytest.approx(len(hit) / (k * 15), abs=1e-6)
    # The training samples themselves reach the first and the last section of every neuron, the upper end included.
    criterion.update(reading(60, 1))
    sections = criterion.covered.view(15, k)
    assert sections[:, 0].all() and sections[:, -1].all()


def test_multisection_coverage_of_a_constant_neuron_is_no_division_by_zero(known: cov.Profile) -> None:
    known.high[3] = known.low[3]
    whole, parts = batches()
    whole.units[:, 3] = known.low[3]
    criterion = cov.multisection_coverage(known, k=10)
    value = followed(criterion, [whole, *parts])
    assert np.isfinite(value)
    assert not criterion.covered.view(15, 10)[3].any()
    assert len(criterion.covered) == 150  # k times N all the same


def test_values_that_are_no_numbers_cover_nothing(known: cov.Profile) -> None:
    units = torch.full((2, 15), float("nan"))
    units[1] = torch.inf
    broken = cov.Reading(units, SPANS, torch.zeros(2, 3))
    assert followed(cov.multisection_coverage(known, k=10), [broken]) == 0
    assert followed(cov.neuron_coverage(known), [broken.rows(torch.tensor([0]))]) == 0


def test_boundary_coverage_counts_both_corners_by_themselves(known: cov.Profile) -> None:
    whole, parts = batches()
    units, low, high = whole.units.numpy(), known.low.numpy(), known.high.numpy()
    upper = {neuron for neuron in range(15) if any(row[neuron] > high[neuron] for row in units)}
    lower = {neuron for neuron in range(15) if any(row[neuron] < low[neuron] for row in units)}
    assert upper & lower  # where one flag per neuron, over N, would give another figure
    value = followed(cov.boundary_coverage(known), parts)
    assert value == pytest.approx((len(upper) + len(lower)) / 30, abs=1e-6)
    assert value != pytest.approx(len(upper | lower) / 15, abs=1e-6)
    assert followed(cov.strong_activation_coverage(known), parts) == pytest.approx(len(upper) / 15, abs=1e-6)


def test_gains_are_what_each_sample_is_the_first_to_cover(known: cov.Profile) -> None:
    whole, parts = batches()
    for name in ("nc", "tknc", "kmnc", "nbc", "snac", "tknp", "dsc"):
        batch, single = cov.criterion(name, known), cov.criterion(name, known)
        gains = torch.cat([batch.gains(part) for part in parts])
        size = 1 if name == "tknp" else len(batch.covered)  # type: ignore[attr-defined]
        before = 0.0
        for row in range(len(whole)):
            single.update(whole.rows(torch.tensor([row])))
            assert float(gains[row]) == pytest.approx((single.value - before) * size, abs=1e-3), (name, row)
            before = single.value
        assert batch.value == single.value


def test_likelihood_surprise_is_that_of_the_kernel_estimate_of_scipy(known: cov.Profile) -> None:
    whole, _ = batches()
    found = cov.likelihood_surprise(known)(whole.features, whole.labels)
    traces, labels = known.traces.numpy(), known.labels.numpy()
    for row in range(len(whole)):
        density = gaussian_kde(traces[labels == int(whole.labels[row])].T)(whole.features[row].double().numpy())
        assert float(found[row]) == pytest.approx(-np.log(density[0]), abs=1e-6)


def test_likelihood_surprise_leaves_out_neurons_that_tell_nothing(known: cov.Profile) -> None:
    whole, _ = batches()
    plain = cov.likelihood_surprise(known)(whole.features, whole.labels)
    flat = cov.Profile(
        known.low, known.high, SPANS, torch.cat([known.traces, torch.full((60, 1), 3.0).double()], 1), known.labels
    )
    wider = torch.cat([whole.features, torch.full((len(whole), 1), 7.0)], 1)
    assert torch.allclose(cov.likelihood_surprise(flat)(wider, whole.labels), plain, atol=1e-9)


def test_distance_surprise_measures_the_second_distance_from_the_neighbour(known: cov.Profile) -> None:
    whole, _ = batches()
    found = cov.distance_surprise(known)(whole.features, whole.labels)
    traces, labels = known.traces.numpy(), known.labels.numpy()
    from_sample = []
    for row in range(len(whole)):
        x, own = whole.features[row].double().numpy(), labels == int(whole.labels[row])
        first = np.linalg.norm(traces[own] - x, axis=1)
        a = traces[own][first.argmin()]
        assert float(found[row]) == pytest.approx(first.min() / np.linalg.norm(traces[~own] - a, axis=1).min(), abs=1e-6)
        from_sample.append(first.min() / np.linalg.norm(traces[~own] - x, axis=1).min())
    assert np.abs(np.array(from_sample) - found.numpy()).max() > 0.01  # what a measure from the sample itself would give


def test_mahalanobis_surprise(known: cov.Profile) -> None:
    whole, _ = batches()
    found = cov.mahalanobis_surprise(known)(whole.features, whole.labels)
    traces, labels = known.traces.numpy(), known.labels.numpy()
    for row in range(len(whole)):
        own = traces[labels == int(whole.labels[row])]
        apart = whole.features[row].double().numpy() - own.mean(0)
        inverse = np.linalg.inv(np.cov(own.T, bias=True))
        assert float(found[row]) == pytest.approx(np.sqrt(apart @ inverse @ apart), abs=1e-6)


@pytest.mark.parametrize("name", ["lsc", "dsc", "mdsc"])
def test_surprise_coverage_is_of_buckets_open_below(known: cov.Profile, name: str) -> None:
    make = {"lsc": cov.likelihood_surprise, "dsc": cov.distance_surprise, "mdsc": cov.mahalanobis_surprise}[name]
    surprise = make(known)
    whole, parts = batches()
    values = surprise(whole.features, whole.labels).numpy()
    upper, buckets = float(np.quantile(values, 0.8)), 50
    hit = {
        bucket for bucket in range(buckets) for value in values
        if upper * bucket / buckets < value <= upper * (bucket + 1) / buckets
    }
    criterion = cov.surprise_coverage(name, known, surprise, upper=upper, buckets=buckets)
    assert followed(criterion, parts) == pytest.approx(len(hit) / buckets, abs=1e-6)


def test_buckets_of_likelihood_begin_at_training_samples_that_are_left_out_of_their_own_estimate(known: cov.Profile) -> None:
    traces, labels = known.traces.numpy(), known.labels.numpy()
    found, wanted = cov.left_out_likelihood(known), []
    for row in range(len(traces)):
        own = traces[labels == labels[row]]
        spread = gaussian_kde(own.T).covariance  # of Scott's bandwidth
        others = traces[(labels == labels[row]) & (np.arange(len(traces)) != row)]
        density = np.mean([multivariate_normal(one, spread).pdf(traces[row]) for one in others])
        wanted.append(-np.log(density))
    assert np.abs(found.numpy() - np.array(wanted)).max() < 1e-6
    low, high = min(wanted), 2 * max(wanted) - min(wanted)
    whole, parts = batches()
    values = cov.likelihood_surprise(known)(whole.features, whole.labels).numpy()
    edges = np.linspace(low, high, 51)
    hit = {int(np.searchsorted(edges, value, side="left")) for value in values if low < value <= high}
    assert followed(cov.likelihood_surprise_coverage(known, buckets=50), parts) == pytest.approx(len(hit) / 50, abs=1e-6)


def test_digits_that_were_not_trained_on_fall_into_buckets_of_likelihood(digits: Data, digits_model: nn.Module) -> None:
    reader = cov.Reader(Target(digits_model))
    train, _ = digits.train.first(800)
    known = cov.profile(reader, train.split(200))
    x, _ = digits.test.first(200)
    criterion = cov.criterion("lsc", known)
    fresh = criterion.gains(reader(x))
    assert float(fresh.sum()) > 60  # of 200 samples and 1,000 buckets; most lie far apart


def test_a_profile_of_neurons_that_are_no_numbers_is_refused() -> None:
    model = nn.Linear(3, 2)
    x = torch.rand(8, 3)
    x[5, 1] = torch.nan
    with pytest.raises(DataError, match="1 of 4 training samples"):
        cov.profile(cov.Reader(Target(model)), x.split(4))


def test_a_class_never_answered_in_training_surprises_nobody(known: cov.Profile) -> None:
    known.labels[known.labels == 2] = 0
    whole, _ = batches()
    for make in (cov.likelihood_surprise, cov.distance_surprise, cov.mahalanobis_surprise):
        found = make(known)(whole.features, whole.labels)
        assert torch.equal(found.isnan(), whole.labels == 2)


def test_layer_covariance_equals_numpy_and_does_not_depend_on_the_order(known: cov.Profile) -> None:
    whole, parts = batches(50)
    wanted = 0.0
    for start, stop in SPANS:
        wanted += float(np.abs(np.cov(whole.units[:, start:stop].double().numpy().T, bias=True)).mean())
    assert followed(cov.LayerCovariance(known), parts) == pytest.approx(wanted, abs=1e-6)
    back = whole.rows(torch.arange(49, -1, -1))
    assert followed(cov.LayerCovariance(known), [back]) == pytest.approx(wanted, abs=1e-6)


def test_layer_covariance_starts_at_nothing_and_its_gains_are_those_of_each_sample_alone(known: cov.Profile) -> None:
    criterion = cov.LayerCovariance(known)
    assert criterion.value == 0.0
    first, second = reading(20, 3), reading(8, 4, 2.0)
    criterion.update(first)
    gains = criterion.gains(second)
    for row in range(8):
        alone = cov.LayerCovariance(known)
        alone.update(first)
        before = alone.value
        alone.update(second.rows(torch.tensor([row])))
        assert float(gains[row]) == pytest.approx(max(0.0, alone.value - before), abs=1e-6)


def test_novelty_is_the_exact_nearest_neighbour_of_all_before(known: cov.Profile) -> None:
    whole, parts = batches()
    kept: list[np.ndarray] = []
    for row in whole.features.double().numpy():
        if not kept or min(float(((row - one) ** 2).sum()) for one in kept) > 9.0:
            kept.append(row)
    criterion = cov.Novelty(known, threshold=9.0)
    assert followed(criterion, parts) == len(kept)
    assert np.abs(criterion.kept.numpy() - np.array(kept)).max() < 1e-12
    assert 1 < len(kept) < 40


def test_the_natural_distance_is_the_median_nearest_neighbour() -> None:
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [5.0, 0.0], [5.0, 3.0]])
    assert natural_distance(points) == pytest.approx(1.0)  # of 1, 1, 3, 3 the lower middle


def test_sensitivity_converges_where_differences_are_normal(known: cov.Profile) -> None:
    draw = torch.Generator().manual_seed(5)
    base = torch.randn(300, 15, generator=draw)
    change = torch.randn(300, 15, generator=draw) * 0.1
    change[:, 3] = 0.0  # never moves
    change[:, 7] = (torch.rand(300, generator=draw) < 0.1).float()  # two values
    seen = cov.Reading(base + change, SPANS, torch.zeros(300, 3), base)
    criterion = cov.SensitivityConvergence(known, threshold=0.1)
    criterion.update(seen)
    wanted = []
    for column in (seen.units - base).double().numpy().T:
        sample = column[-512:]
        spread = sample.std(ddof=1)
        wanted.append(spread > 0 and kstest(sample, "norm", args=(sample.mean(), spread)).statistic <= 0.1)
    assert criterion.converged.tolist() == wanted
    assert criterion.value == pytest.approx(sum(wanted) / 15, abs=1e-6)
    assert not wanted[3] and not wanted[7] and sum(wanted) == 13


def test_sensitivity_needs_enough_samples(known: cov.Profile) -> None:
    few = reading(29, 6)
    few.base = torch.zeros_like(few.units)
    criterion = cov.SensitivityConvergence(known)
    criterion.update(few)
    assert criterion.value == 0.0


@pytest.mark.parametrize("name", list(cov.CRITERIA))
def test_every_criterion_goes_on_from_its_state(known: cov.Profile, name: str) -> None:
    _, parts = batches(48)
    for part in parts:
        part.base = torch.zeros_like(part.units)
    whole, half, rest = (cov.criterion(name, known) for _ in range(3))
    followed(whole, parts)
    followed(half, parts[:1])
    rest.load({key: value.clone() for key, value in half.state().items()})
    followed(rest, parts[1:])
    assert rest.value == whole.value


@pytest.mark.parametrize("name", list(cov.CRITERIA))
def test_the_state_of_another_model_is_refused(known: cov.Profile, name: str) -> None:
    _, parts = batches(48)
    for part in parts:
        part.base = torch.zeros_like(part.units)
    one = cov.criterion(name, known)
    followed(one, parts)
    for key, value in one.state().items():
        for wrong in ({**one.state(), key: value[None]}, {other: kept for other, kept in one.state().items() if other != key}):
            with pytest.raises(DataError, match="the state of"):
                cov.criterion(name, known).load(wrong)
        if value.ndim and value.numel():
            with pytest.raises(DataError, match="the state of"):
                cov.criterion(name, known).load({**one.state(), key: value[..., 1:]})


def test_an_unknown_criterion_is_refused(known: cov.Profile) -> None:
    with pytest.raises(UsageError, match="kmnc"):
        cov.criterion("kmncc", known)


# ---- reading


def test_one_forward_pass_reads_neurons_and_answers_of_an_unmodified_model(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(50)
    calls = []
    handle = digits_model[0].register_forward_hook(lambda *_: calls.append(1))
    target = Target(digits_model, batch_size=32)
    seen = cov.Reader(target)(x)
    handle.remove()
    assert len(calls) == 2  # 50 samples in batches of 32
    assert target.ledger.queries == 50
    assert seen.spans == ((0, 16), (16, 48), (48, 112), (112, 122))
    with torch.no_grad():
        assert torch.allclose(seen.units[:, :16], digits_model[0](x).mean((2, 3)), atol=1e-6)
        assert torch.allclose(seen.answers, digits_model(x), atol=1e-5)
    assert seen.features.shape == (50, 64)
    assert not digits_model[0]._forward_hooks


def test_a_summary_is_kept_in_place_of_a_copy(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(5)
    with torch.no_grad(), tap(digits_model, ["0"], read=lambda name, output: output.amax((2, 3))) as seen:
        digits_model(x)
        assert torch.equal(seen.activations["0"], digits_model[0](x).amax((2, 3)))


def test_without_a_module_the_answers_are_the_neurons(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(10)
    scores = Target(digits_model, access=Access.SCORE)
    seen = cov.Reader(scores)(x)
    assert seen.spans == ((0, 10),)
    with torch.no_grad():
        assert torch.allclose(seen.units, digits_model(x), atol=1e-5)
    labels = cov.Reader(Target(digits_model, access=Access.LABEL), classes=10)(x)
    assert torch.equal(labels.labels, seen.labels)
    assert labels.units.sum(1).tolist() == [1.0] * 10
    with pytest.raises(ModelError, match="no module"):
        cov.Reader(scores, ["0"])


def test_a_named_layer_that_is_not_used_is_refused(digits: Data) -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 2), "idle": nn.Linear(4, 2)})
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    x = torch.rand(3, 4)
    assert cov.Reader(Target(model))(x).spans == ((0, 2),)
    with pytest.raises(ModelError, match="idle"):
        cov.Reader(Target(model), ["used", "idle"])(x)


def test_coverage_of_clean_digits_in_one_pass_is_that_of_each_criterion(digits: Data, digits_model: nn.Module) -> None:
    reader = cov.Reader(Target(digits_model))
    x, _ = digits.test.first(60)
    train, _ = digits.train.first(300)
    known = cov.profile(reader, train.split(100))
    found = cov.coverage(reader, known, x.split(25), base=x)
    parts = [reader(part) for part in x.split(25)]  # in the same batches: sums differ by a bit between batch sizes
    for part in parts:
        part.base = part.units
    assert set(found) == set(cov.CRITERIA)
    assert cov.coverage(reader, known, x.split(25), base=x) == found  # nothing adds up across calls
    for name in cov.CRITERIA:
        one = cov.criterion(name, known)
        followed(one, parts)
        assert found[name] == pytest.approx(one.value, abs=1e-6), name
    with torch.no_grad():
        low = torch.stack([digits_model[:6](train).amin(0), digits_model[:6](train).amax(0)])
    assert torch.allclose(torch.stack([known.low[48:112], known.high[48:112]]), low, atol=1e-5)
