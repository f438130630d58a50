"""Certificates against published numbers, exact radii, and each other."""

import math

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.core.schedules import add_noise, table_schedule
from noiseworks.rrcm import DenoiseThenClassify, NoisyClassifier, RrcmEncoder, SmoothedClassifier, Smoothing
from noiseworks.rrcm.options import Network
from noiseworks.rrcm.smoothing import lower_bound, radius_of
from noiseworks.rrcm.tables import certify_images, evenly, read_table, with_confidence
from scipy.stats import binomtest
from torch import nn

BOUNDS = {
    (100, 100): (0.933254300797, 0.750237512),
    (99, 100): (0.911373111296, 0.674629519),
    (990, 1000): (0.976036187155, 0.989004791),
    (1000, 1000): (0.993116048421, 1.231631307),
    (99_000, 100_000): (0.988989340377, 1.144999978),
    (90_000, 100_000): (0.897036496224, 0.632422345),
    (100_000, 100_000): (0.999930924833, 1.905728282),
}


class HalfSpace(nn.Module):
    """Class 1 where w x + b > 0."""

    def __init__(self, w: torch.Tensor, b: float) -> None:
        super().__init__()
        self.w, self.b = w, b

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 2)."""
        side = x.flatten(1) @ self.w + self.b
        return torch.stack([-side, side], dim=1)


class Fixed(nn.Module):
    """Votes that depend on the draw's first number alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 3)."""
        first = x[:, 0, 0, 0]
        return torch.stack([first, -first, torch.zeros_like(first)], dim=1)


def test_clopper_pearson_and_radii():
    for (count, total), (bound, radius) in BOUNDS.items():
        assert lower_bound(count, total, 0.001) == pytest.approx(bound, abs=5e-13)
        assert radius_of(bound, 0.5) == pytest.approx(radius, abs=2e-9)
        two_sided = binomtest(count, total).proportion_ci(0.998, method="exact")
        assert lower_bound(count, total, 0.001) == pytest.approx(two_sided.low, abs=1e-9)
    assert lower_bound(0, 100, 0.001) == 0.0
    for count, total in ((66, 100), (550, 1000), (5156, 10_000), (50_490, 100_000)):
        assert lower_bound(count, total, 0.001) > 0.5 >= lower_bound(count - 1, total, 0.001)
    largest = [radius_of(lower_bound(n, n, 0.001), 1.0) for n in (100, 1000, 10_000, 100_000)]
    assert largest == pytest.approx([1.500475, 2.463263, 3.198578, 3.811457], abs=1e-6)
    assert math.exp(math.log(0.001) / 10**7) == pytest.approx(lower_bound(10**7, 10**7, 0.001), abs=1e-15)


def test_the_certified_radius_of_a_half_space_stays_below_the_exact_one():
    w = torch.tensor([3.0, 4.0, 0.0, 0.0])
    images = torch.tensor([0.6, 0.5, 0.1, 0.9]).view(1, 1, 2, 2).expand(40, -1, -1, -1)
    exact = float((images[0].flatten() @ w - 1.8) / w.norm())
    found = {}
    for draws in (100, 3000):
        smoothed = SmoothedClassifier(HalfSpace(w, -1.8).eval(), 2, 0.5, Smoothing(n=draws, n0=10))
        certificates = smoothed.certify(images)
        found[draws] = np.mean([one.radius for one in certificates])
        assert sum(one.radius > exact for one in certificates) <= 1
        assert {one.label for one in certificates} <= {1, -1}
    assert found[100] < found[3000] < exact


def test_votes_do_not_depend_on_batches_and_selection_draws_are_not_used_again():
    images = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    ids = [7, 8, 30]
    votes = [
        SmoothedClassifier(Fixed().eval(), 3, 0.7, Smoothing(n=60, n0=20, rows=rows)).votes(
            images, ids, 20, 60
        )
        for rows in (1000, 60, 17, 1)
    ]
    assert all(torch.equal(votes[0], other) for other in votes)
    alone = SmoothedClassifier(Fixed().eval(), 3, 0.7, Smoothing(n=60, n0=20)).votes(images[1:2], [8], 20, 60)
    assert torch.equal(alone[0], votes[0][1])
    together = SmoothedClassifier(Fixed().eval(), 3, 0.7, Smoothing(n=80, n0=20)).votes(images, ids, 0, 80)
    first = SmoothedClassifier(Fixed().eval(), 3, 0.7, Smoothing(n=80, n0=20)).votes(images, ids, 0, 20)
    assert torch.equal(first + votes[0], together)


def test_prediction_needs_a_clear_lead():
    image = torch.zeros(1, 1, 1, 1)
    for lead, chance, label in ((60, 0.0568879, -1), (67, 0.00087372, 0)):
        assert binomtest(lead, 100, 0.5).pvalue == pytest.approx(chance, abs=1e-7)
        counted = SmoothedClassifier(Fixed().eval(), 3, 0.5, Smoothing(n=100))
        counted.votes = lambda *_, lead=lead: torch.tensor([[lead, 100 - lead, 0]])
        assert counted.predict(image) == [label]
    sure = SmoothedClassifier(HalfSpace(torch.ones(1), 1.0).eval(), 2, 0.5, Smoothing(n=100))
    unsure = SmoothedClassifier(HalfSpace(torch.ones(1), 0.0).eval(), 2, 0.5, Smoothing(n=100))
    assert sure.predict(image) == [1]
    assert unsure.predict(image) == [-1]


def test_what_would_void_a_certificate_is_refused():
    image = torch.zeros(1, 1, 2, 2)
    with pytest.raises(InputError, match="training mode"):
        SmoothedClassifier(nn.Sequential(nn.Dropout()).train(), 2, 0.5)
    with pytest.raises(InputError, match="sigma"):
        SmoothedClassifier(HalfSpace(torch.ones(4), 0.0).eval(), 2, 0.0)
    smoothed = SmoothedClassifier(HalfSpace(torch.ones(4), 0.0).eval(), 2, 0.5, Smoothing(n=20, n0=5))
    for wrong in (image - 1, image + 2, image.long(), image * torch.nan):
        with pytest.raises(InputError):
            smoothed.certify(wrong)
    with pytest.raises(InputError, match="logits"):
        SmoothedClassifier(Fixed().eval(), 2, 0.5, Smoothing(n=20, n0=5)).certify(image)
    broken = SmoothedClassifier(HalfSpace(torch.ones(4), math.nan).eval(), 2, 0.5, Smoothing(n=20, n0=5))
    with pytest.raises(NonFiniteError):
        broken.certify(image)


def test_a_stopped_table_goes_on_to_the_same_rows(tmp_path):
    images, labels = torch.rand(9, 1, 2, 2, generator=torch.Generator().manual_seed(1)), torch.ones(9).long()
    smoothed = SmoothedClassifier(HalfSpace(torch.ones(4), -1.5).eval(), 2, 0.5, Smoothing(n=40, n0=10))
    whole = certify_images(smoothed, images, labels, tmp_path / "whole.tsv", chosen=evenly(9, 4))
    assert evenly(9, 4) == [0, 2, 4, 6]
    text = (tmp_path / "whole.tsv").read_text()
    (tmp_path / "cut.tsv").write_text(text[: text.index("\n4\t") + 4])  # in the middle of the third row
    again = certify_images(smoothed, images, labels, tmp_path / "cut.tsv", chosen=evenly(9, 4))
    assert np.array_equal(again.radii, whole.radii)
    assert len(read_table(tmp_path / "cut.tsv").radii) == 4
    quick = certify_images(
        smoothed, images, labels, tmp_path / "q.tsv", chosen=evenly(9, 4), stop_if_wrong=True
    )
    assert quick.average_radius() == whole.average_radius()
    assert quick.accuracy(0.1) == whole.accuracy(0.1)
    assert with_confidence(0.5, 500, 0.001) == pytest.approx(0.4906797, abs=1e-6)


def test_a_perfect_denoiser_gives_the_image_back():
    schedule = table_schedule("cosine")
    image = torch.rand(2, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    class Perfect(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            level = schedule.level(t)
            alpha, sigma = (part.view(-1, 1, 1, 1) for part in level)
            return (x - alpha * (2 * image - 1)) / sigma

    for steps in (1, 5):
        cleaned = DenoiseThenClassify(Perfect(), schedule, nn.Identity(), sigma=0.5, steps=steps)
        assert torch.allclose(cleaned(image + 0.5 * torch.randn_like(image)), image, atol=1e-9)
    level = schedule.level(torch.tensor([cleaned.start]))
    assert float(level.sigma / level.alpha) == pytest.approx(1.0, rel=5e-3)
    noisy = add_noise(2 * image - 1, torch.ones_like(image), level)
    scaled = (2 * (image + 0.5) - 1) * level.alpha
    assert torch.allclose(noisy, scaled, rtol=1e-2, atol=1e-2)
    with pytest.raises(InputError, match="sigma"):
        DenoiseThenClassify(Perfect(), schedule, nn.Identity(), sigma=1e9)


def test_the_classifier_is_told_the_level_of_its_noise():
    sizes = Network(depth=1, width=16, heads=2, patch=4)
    torch.manual_seed(0)
    model = NoisyClassifier(RrcmEncoder(sizes, image_size=8, channels=1), 10, sigma=0.5).eval()
    nn.init.normal_(model.head.weight)
    x = torch.rand(2, 1, 8, 8)
    expected = model.head(model.encoder(2 * x - 1, torch.tensor(0.965417), normed=False))
    assert torch.allclose(model(x), expected, atol=1e-4)
