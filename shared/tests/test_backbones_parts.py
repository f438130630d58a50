"""Experts, metrics, probes and the ViT of the kit against closed forms and scikit-learn."""

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.backbones import (
    AffineExperts,
    Architecture,
    LossRecipe,
    Moments,
    ViT,
    check_shots,
    classifier_score,
    few_shot,
    fit_features,
    fit_loss,
    frechet_distance,
    grouped_linear,
    knn_probe,
    linear_probe,
    load_halves,
    ridge_probe,
)
from noiseworks.kits.backbones.metrics import gaussian_distance
from noiseworks.kits.backbones.probes import ridge_weights
from noiseworks.kits.training import Average
from sklearn.linear_model import Ridge
from torch import nn


@pytest.mark.parametrize(("inner", "outer"), [(8, 8), (7, 5)])
@pytest.mark.parametrize("ends", [(3, 3, 10), (0, 10, 10), (4, 7, 10)])
def test_grouped_product_is_the_loop_with_gradients_and_empty_groups(inner, outer, ends):
    generator = torch.Generator().manual_seed(0)
    found = []
    for dispatch in ("grouped", "loop"):
        rows = torch.randn(10, inner, generator=generator.manual_seed(1)).requires_grad_()
        weight = torch.randn(3, inner, outer, generator=generator.manual_seed(2)).requires_grad_()
        out = grouped_linear(
            rows, weight, torch.tensor(ends), dispatch
        )  # int64 ends, which grouped_mm refuses
        out.sum().backward()  # an expanded gradient, which grouped_mm refuses
        found.append((out.detach(), rows.grad, weight.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_groups_that_leave_rows_out_and_dtypes_without_a_product_are_refused():
    rows, weight = torch.zeros(4, 8), torch.zeros(2, 8, 8)
    for dispatch in ("grouped", "loop"):
        with pytest.raises(InputError, match="groups end at row 3 of 4"):
            grouped_linear(rows, weight, torch.tensor([1, 3]), dispatch)
    with pytest.raises(InputError, match="float64"):
        grouped_linear(rows.double(), weight.double(), torch.tensor([1, 4]), "grouped")


def test_experts_are_a_loop_over_samples_and_fold_into_one_map():
    generator = torch.Generator().manual_seed(0)
    experts = AffineExperts(4, 8)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    z = torch.randn(5, 3, 8, generator=generator)
    chosen = torch.tensor([[0, 1], [1, 0], [3, 1], [0, 3], [1, 3]])  # nobody takes expert 2
    gates = torch.rand(5, 2, generator=generator)
    slow = torch.stack(
        [
            sum(g * (x @ experts.weight[j] + experts.bias[j]) for j, g in zip(ids, gs, strict=True))
            for x, ids, gs in zip(z, chosen, gates, strict=True)
        ]
    )
    for dispatch in ("loop", "grouped"):
        experts.dispatch = dispatch
        torch.testing.assert_close(experts(z, chosen, gates), slow, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(experts(z[:1], chosen[:1], gates[:1]), slow[:1], atol=1e-5, rtol=1e-5)
    weight, bias = experts.fold(chosen[2], gates[2])
    torch.testing.assert_close(z[2] @ weight + bias, slow[2], atol=1e-5, rtol=1e-5)


def test_frechet_distance_of_gaussians():
    eye, mean = torch.eye(4, dtype=torch.float64), torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    assert gaussian_distance(0 * mean, eye, mean, 4 * eye) == pytest.approx(5, abs=1e-9)
    rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    whole = Moments.of(rows)
    assert frechet_distance(whole, whole) < 1e-6
    parts = Moments.of(rows[:70]) + Moments.of(rows[70:71]) + Moments.of(rows[71:])
    torch.testing.assert_close(parts.covariance, torch.cov(rows.double().T))
    torch.testing.assert_close(parts.mean, whole.mean)
    with pytest.raises(InputError, match="more than as many"):
        frechet_distance(Moments.of(rows[:4]), whole)


def test_classifier_score_is_one_for_guesses_and_k_for_balanced_certainty():
    assert classifier_score(torch.full((50, 5), 0.2)) == pytest.approx(1)
    assert classifier_score(torch.eye(5).repeat(10, 1)) == pytest.approx(5)


def test_features_tell_classes_apart_and_repeat():
    labels = torch.arange(40) % 2
    images = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    images = images + labels[:, None, None, None] * torch.linspace(-1, 1, 8)
    net, again = (fit_features(images, labels, steps=30, seed=1) for _ in range(2))
    assert (net(images).argmax(1) == labels).all()
    assert torch.equal(net.features(images), again.features(images))
    torch.testing.assert_close(net.moments(images, 7).mean, net.features(images).double().mean(0))


@pytest.mark.parametrize("rows", [60, 12])
def test_ridge_is_that_of_scikit_learn_in_both_forms(rows):
    generator = torch.Generator().manual_seed(0)
    X, Y = torch.randn(rows, 20, generator=generator), torch.randn(rows, 3, generator=generator)
    for penalty, weights in zip((0.5, 10.0), ridge_weights(X, Y, (0.5, 10.0)), strict=True):
        known = Ridge(alpha=penalty, fit_intercept=False).fit(X.double().numpy(), Y.double().numpy())
        assert torch.allclose(weights.T, torch.from_numpy(known.coef_), atol=1e-9)
    with pytest.raises(InputError, match="above 0"):
        ridge_weights(X, Y, (0.0,))


def test_the_few_shot_probe_is_scikit_learns_ridge_on_whitened_features_and_a_constant():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 4
    rows = torch.randn(240, 10, generator=generator) * torch.linspace(0.01, 30, 10) + 5
    rows[:, 3] += labels * 4
    train, test = (rows[:120], labels[:120]), (rows[120:], labels[120:])
    for penalty, found in ridge_probe(train, test).items():
        known, asked = (part.double().numpy() for part in (train[0], test[0]))
        mean, std = known.mean(0), known.std(0, ddof=1) + 1e-5
        known, asked = (
            np.pad((part - mean) / std, ((0, 0), (0, 1)), constant_values=100) for part in (known, asked)
        )
        fitted = Ridge(alpha=penalty, fit_intercept=False).fit(known, 2.0 * np.eye(4)[train[1]] - 1)
        assert found == (fitted.predict(asked).argmax(1) == test[1].numpy()).mean()
        assert 0.3 < found < 0.95  # neither chance nor certainty, at which any regression would agree


def test_probes_find_what_is_linear_and_fail_on_noise():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    clear = torch.randn(300, 6, generator=generator)
    clear[:, :3] += 4 * nn.functional.one_hot(labels, 3)
    noise = torch.randn(300, 6, generator=generator)
    for features, low, high in ((clear, 0.9, 1.0), (noise, 0.15, 0.55)):
        train, held, test = ((features[i::3], labels.roll(0)[i::3]) for i in range(3))
        shuffled = torch.randperm(300, generator=generator)
        train, held, test = ((features[shuffled[i::3]], labels[shuffled[i::3]]) for i in range(3))
        accuracies = [linear_probe(train, held, test), knn_probe(train, test)]
        accuracies += list(ridge_probe(train, test, shots=10).values())
        assert all(low <= accuracy <= high for accuracy in accuracies), accuracies
    with pytest.raises(InputError, match="fewer than shots"):
        ridge_probe(train, test, shots=1000)


def test_average_of_constant_weights_is_them_and_decay_zero_copies():
    model = nn.Linear(2, 2)
    average = Average(model, lambda update: 0.9)
    for _ in range(5):
        average.update(model)
    assert torch.equal(average.model.weight, model.weight)
    copying = Average(model, lambda update: 0.0)
    with torch.no_grad():
        model.weight += 1
    copying.update(model)
    assert torch.equal(copying.model.weight, model.weight)


def test_vit_speaks_timm():
    model = ViT(Architecture(depth=2, width=16, heads=2), image_size=8, channels=1, classes=3)
    x = torch.randn(2, 1, 8, 8)
    assert model(x).shape == (2, 3)
    assert model.forward_features(x).shape == (2, 17, 16)
    model.reset_classifier(0)
    assert torch.equal(model(x), model.forward_head(model.forward_features(x), pre_logits=True))
    names = set(model.state_dict())
    assert {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "blocks.1.attn.qkv.bias",
        "norm.weight",
    } <= names
    with pytest.raises(InputError, match="multiple of patch"):
        ViT(Architecture(patch=3), image_size=8)


def test_few_shots_are_the_mean_over_draws_and_small_classes_are_refused():
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    data = (rows, (rows[:, 0] > 0).long())
    wanted = [ridge_probe(data, data, shots=5, penalties=(1024.0,), seed=seed)[1024.0] for seed in range(3)]
    assert few_shot(data, data, 5) == pytest.approx(sum(wanted) / 3)
    with pytest.raises(InputError, match="smallest class"):
        check_shots(data[1], (5, 50))


def test_halves_of_a_file_share_no_image(tmp_path):
    x = np.arange(9, dtype=np.uint8)[:, None, None] + np.zeros((9, 2, 2), np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(9))
    (images, labels), (held, answers) = load_halves(str(tmp_path / "data.npz"), needs="umd")
    assert (labels.tolist(), answers.tolist()) == ([1, 2, 3, 5, 6, 7], [0, 4, 8])
    assert torch.equal(((images + 1) * 127.5).round()[:, 0, 0, 0].long(), labels)
    assert held.shape == (3, 1, 2, 2)


def test_an_optimiser_of_ones_own_takes_the_recipes_rates():
    model, rates = nn.Linear(2, 1), []

    class Recorded(torch.optim.SGD):
        def step(self, closure=None):
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def make(model):
        return Recorded([{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 1.0}])

    def loss(model, batch, step):
        return {"loss": model(batch["x"]).square().mean()}

    recipe = LossRecipe(max_steps=4, batch_size=2, warmup=0.5, device="cpu")
    fit_loss(model, {"x": torch.ones(4, 2)}, loss, recipe, make_optimizer=make, progress=False)
    assert [high for _, high in rates] == pytest.approx([0.0, 0.5, 1.0, 0.5])
    assert all(low == pytest.approx(high / 2) for low, high in rates)
