"""The paper's ablations: every one of them trains, and one command compares them."""

import json

import numpy as np
import pytest
import torch
from noiseworks.core.cli import run
from noiseworks.core.errors import InputError
from noiseworks.kits.policies import Episodes
from noiseworks.mode.ablation import VARIANTS, loss_by_level, varied
from noiseworks.mode.cli import app
from noiseworks.mode.commands import ablate
from noiseworks.mode.config import Demonstrations, Recipe, SmallArchitecture
from noiseworks.mode.edm import edm_loss
from noiseworks.mode.runs import new_model
from noiseworks.mode.task_data import load_task_data
from noiseworks.mode.training import MoDEModule

TINY = SmallArchitecture(width=16, num_layers=1, num_heads=2, chunk=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    obs = np.concatenate((rng.standard_normal((40, 3)), np.eye(2)[np.repeat([0, 1], 20)]), 1)
    actions = rng.uniform(-1, 1, (40, 2))
    ends, tasks = np.array([20, 40]), np.array([0, 1])
    Episodes(obs.astype(np.float32), actions.astype(np.float32), ends, tasks).save(folder / "episodes.npz")
    np.save(folder / "goals.npy", rng.standard_normal((2, 1, 5)))
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_differs_from_the_full_model_and_trains_all_of_its_parts(data, name):
    found = load_task_data(Demonstrations(str(data)))
    variant = VARIANTS[name]
    architecture = varied(variant, TINY)
    assert name == "full" or architecture != TINY or variant.recipe
    model = new_model(found, architecture).train()
    module = MoDEModule(model, Recipe(**variant.recipe))
    torch.manual_seed(0)
    batch = {n: value[:32] for n, value in found.table(4).items()}
    before = [p.detach().clone() for p in model.parameters()]
    loss = module.loss(batch)
    loss.backward()
    assert loss.isfinite()
    if name != "argmax-routing":  # which leaves out the experts that the router does not like
        assert not [n for n, p in model.named_parameters() if p.grad is None]
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_command_compares_variants_and_goes_on_where_it_was(data, tmp_path, capsys):
    words = ["ablate", "--data", data, "--out", tmp_path / "out", "--variants", "full,token-routing"]
    words += [
        "--max-steps",
        "2",
        "--batch-size",
        "8",
        "--width",
        "16",
        "--num-layers",
        "1",
        "--num-heads",
        "2",
    ]
    words += ["--chunk", "4", "--device", "cpu", "--json"]
    printed = []
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            run(app, [str(word) for word in words])
        out, error = capsys.readouterr()
        assert stop.value.code == 0, error
        printed.append(json.loads(out))
    assert printed[0] == printed[1]
    rows = printed[0]
    assert list(rows) == ["full", "token-routing"]
    assert len(rows["full"]["loss_by_level"]) == 10
    assert rows["full"]["bits"] >= 0
    assert rows["token-routing"]["bits"] is rows["full"]["success"] is None
    assert rows["token-routing"]["megaflops"] > rows["full"]["megaflops"]  # it routes every token
    with pytest.raises(InputError, match="variants"):
        ablate(source=Demonstrations(str(data)), out=tmp_path / "none", variants="dropout")
    with pytest.raises(InputError, match="width of a variant"):
        ablate(
            source=Demonstrations(str(data)),
            out=tmp_path / "none",
            architecture=SmallArchitecture(width=2, num_heads=1),
        )
    assert not (tmp_path / "none").exists()


def test_the_loss_by_level_is_the_training_loss_at_that_level(data):
    found = load_task_data(Demonstrations(str(data)))
    model = new_model(found, TINY).eval()
    batch = {name: value[:16] for name, value in found.table(4).items()}
    losses = loss_by_level(model, batch, [0.01, 1.0, 30.0], seed=3)
    clean, cond = model.normalizer.normalize(batch["action"]), model.encode(batch)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    denoiser = model.denoiser
    for sigma, loss in zip([0.01, 1.0, 30.0], losses, strict=True):
        levels = torch.full((16,), sigma)
        n, context = denoiser.noise_embedding(levels), denoiser.context(cond)
        with torch.no_grad():
            expected = edm_loss(lambda a, n=n, c=context: denoiser(a, n, c), clean, levels, noise)
        assert loss == pytest.approx(float(expected), rel=1e-3)
