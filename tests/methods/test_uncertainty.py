"""MCDropout: moments, seeds, limits."""

import itertools
import math

import pytest
import torch

from d2kd.methods import MCDropout
from d2kd.methods.uncertainty import outcomes, random_index

RAMP = (0.15, 0.20, 0.25, 0.30, 0.35)


@pytest.mark.parametrize("combine, scale", [("sum", 2.0), ("mean", 1.0)])
def test_expectation(combine, scale):
    features = torch.randn(1, 2, 3, 3).repeat(20000, 1, 1, 1)
    mean = MCDropout(RAMP, combine)(features).mean(0)
    torch.testing.assert_close(mean, scale * features[0], rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("rates", [RAMP, (0.25,) * 5, (0.1,)])
@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_variance(rates, granularity):
    # Var(m / (1 - p)) = p / (1 - p), independent samples, mean of n of them.
    expected = sum(p / (1 - p) for p in rates) / len(rates) ** 2
    draws = MCDropout(rates, granularity=granularity)(torch.ones(40000, 1, 1, 2))
    assert draws.var(0).mean() == pytest.approx(expected, rel=0.05)


def test_noise_of_the_default_is_the_published_ramps():
    # sqrt(sum p / (1 - p)) / n = 0.263 for the ramp of five rates.
    draws = MCDropout()(torch.ones(40000, 1, 1, 1))
    assert draws.std().item() == pytest.approx(0.263, abs=0.005)


@pytest.mark.parametrize("rates", [(), (0.0,), (0.0,) * 5])
def test_without_noise_mean_is_the_teacher_and_sum_is_twice_the_teacher(rates):
    features = torch.randn(2, 3, 4, 5)
    assert torch.equal(MCDropout(rates, "mean")(features), features)
    assert torch.equal(MCDropout(rates, "sum")(features), 2 * features)


def test_seed_decides():
    features = torch.randn(2, 3, 4, 5)
    torch.manual_seed(7)
    first = MCDropout()(features)
    second = MCDropout()(features)
    torch.manual_seed(7)
    again = MCDropout()(features)
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_channels_are_dropped_whole_and_images_apart():
    target = MCDropout((0.5,), granularity="channel")(torch.ones(8, 16, 5, 5))
    assert torch.equal(target, target[..., :1, :1].expand_as(target))
    assert not torch.equal(target[0], target[1])


def test_no_more_than_one_multiplier_is_kept():
    drop = MCDropout((0.3,) * 50)
    assert drop.multiplier((2, 3, 4, 5), "cpu").shape == (2, 3, 4, 5)


@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_uncertainty_is_mean_and_variance_of_the_drawn_samples(granularity):
    features = torch.rand(2, 3, 4, 5) + 0.5
    mean, variance = MCDropout(RAMP, granularity=granularity).uncertainty(features)
    rates = torch.tensor(RAMP)
    kept = torch.tensor(list(itertools.product([0.0, 1.0], repeat=len(RAMP))))
    samples = kept / (1 - rates)  # all possible samples; no two have the same mean
    nearest = (mean / features)[..., None].sub(samples.mean(1)).abs().argmin(-1)
    drawn = features[..., None] * samples[nearest]
    torch.testing.assert_close(mean, drawn.mean(-1))
    torch.testing.assert_close(variance, drawn.var(-1, correction=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rates", [(0.3,), (0.0, 0.5), RAMP])
def test_outcomes_are_as_likely_as_the_samples_are(rates):
    sums, squares = outcomes(rates).double()
    for kept in itertools.product([False, True], repeat=len(rates)):
        chance = math.prod(1 - p if k else p for p, k in zip(rates, kept, strict=True))
        total = sum(k / (1 - p) for p, k in zip(rates, kept, strict=True))
        equal = (sums - total).abs() < 1e-6
        assert equal.double().mean().item() == pytest.approx(chance, abs=2**-16)
        expected = sum(k / (1 - p) ** 2 for p, k in zip(rates, kept, strict=True))
        assert torch.allclose(squares[equal], torch.tensor(expected, dtype=torch.float64))


def test_more_samples_than_one_number_decides():
    multiplier = MCDropout((0.2,) * 11).multiplier((4, 16, 40, 40), torch.device("cpu"))
    assert multiplier.mean().item() == pytest.approx(1, abs=2e-3)
    assert multiplier.var().item() == pytest.approx(0.25 / 11, rel=0.02)


def test_neighbors_are_independent():
    found = random_index((400_000,), torch.device("cpu")).double()
    assert found.min() < 10 and found.max() > 2**16 - 10
    assert found.mean().item() == pytest.approx(2**15, rel=0.01)
    near = torch.stack(
        [found[i : 399_990 + i] for i in range(6)]
    )  # four of them come from one random number
    assert (torch.corrcoef(near) - torch.eye(6)).abs().max() < 0.01


@pytest.mark.parametrize("rates", [(), (0.0,) * 3])
def test_without_noise_nothing_is_uncertain(rates):
    features = torch.randn(2, 3, 4, 5)
    mean, variance = MCDropout(rates).uncertainty(features)
    assert torch.equal(mean, features) and not variance.any()


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(rates=(0.1, 1.0)), r"rates in \[0, 1\)"),
        (dict(rates=0.2), r"a list of rates .* found 0.2"),
        (dict(combine="median"), "expected sum or mean, found 'median'"),
        (dict(granularity="block"), "expected element or channel, found 'block'"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MCDropout(**fields)
