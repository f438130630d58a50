"""What a laptop run keeps, a package ships and a quick run loads."""

import pytest
import torch
from noiseworks.bench import shipped
from noiseworks.core.errors import InputError


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A package that can be found, not imported."""
    folder = tmp_path / "packages" / "made_up"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('is not imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setattr(shipped, "installed_package", lambda method: "made_up")
    return "made_up"


def test_what_a_run_keeps_is_shipped_in_half_precision_and_loaded_in_single(package, tmp_path):
    weights = {"w": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), "n": torch.tensor([3])}
    for seed, scale in ((1001, 2.0), (1000, 1.0)):
        folder = tmp_path / f"out/tasks/made-up/laptop-{seed}-abc"
        shipped.save(folder, "ours", {"seed": seed}, {"w": scale * weights["w"], "n": weights["n"]})
    done = shipped.ship("made-up", tmp_path / "out")
    assert done["shipped"] == ["ours"]
    config, tensors = shipped.load(package, "ours")
    assert config == {"seed": 1000}
    assert tensors["w"].dtype == torch.float32
    assert torch.equal(tensors["w"], weights["w"].half().float())
    assert torch.equal(tensors["n"], weights["n"])
    shipped.ship("made-up", tmp_path / "out", seed=1001)
    assert shipped.load(package, "ours")[0] == {"seed": 1001}


def test_what_cannot_be_shipped_is_refused(package, tmp_path):
    with pytest.raises(InputError, match="keeps nothing of made-up"):
        shipped.ship("made-up", tmp_path)
    shipped.save(tmp_path / "tasks/made-up/laptop-1000-abc", "big", {}, {"w": torch.zeros(1_000_000)})
    with pytest.raises(InputError, match=r"2\.00 MB of made-up"):
        shipped.ship("made-up", tmp_path)
    with pytest.raises(InputError, match="no shipped 'ours'"):
        shipped.load(package, "ours")
    with pytest.raises(InputError, match="no package nowhere"):
        shipped.load("nowhere", "ours")
