"""Routing, losses and experts: the numbers that follow from the paper's formulas."""

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.ppap.experts import Expert, Experts, adapted_layers, free_names, low_rank_shapes
from noiseworks.ppap.options import Adapters
from noiseworks.ppap.routing import even_bounds, owner, snr_bounds
from noiseworks.ppap.tasks import Classification, Depth, Segmentation
from torch import nn

FIVE = [0, 200, 400, 600, 800, 1000]


def network() -> nn.Sequential:
    """Return a small network with a batch norm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
        )


def stirred(experts: Experts) -> Experts:
    """Return experts whose every number is another one, as after training."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for one in experts.parameters():
            one.add_(0.1 * torch.randn(one.shape, generator=generator))
    return experts.eval()


def test_bounds_belong_to_the_expert_above():
    assert even_bounds(5, 1000) == FIVE
    assert owner(torch.tensor([0, 199, 200, 400, 600, 800, 999]), FIVE).tolist() == [0, 0, 1, 2, 3, 4, 4]
    assert owner(199.9, FIVE).item() == 0  # between two timesteps, as some solvers ask


@pytest.mark.parametrize("count", [0, 1001])
def test_experts_without_a_timestep_are_refused(count):
    with pytest.raises(InputError, match="1000 timesteps"):
        even_bounds(count, 1000)


def test_snr_bounds_halve_the_logarithm():
    log_snr = torch.linspace(8, -8, 1001, dtype=torch.float64)
    low, high = snr_bounds(2, log_snr.sigmoid())[1:]
    assert abs(low - 500) <= 1
    assert high == 1001


def test_distillation_is_the_mean_over_classes_of_the_sharpened_divergence():
    teacher = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    sharpened = (teacher / 0.25).softmax(1)[0]
    expected = torch.tensor([6.03e-6, 3.293e-4, 0.0179802, 0.9816845])
    torch.testing.assert_close(sharpened, expected, rtol=1e-3, atol=1e-7)
    loss = Classification(0.25).distil(teacher, torch.zeros(1, 4))
    assert float(loss) == pytest.approx(0.3232954, abs=1e-6)
    assert float(4 * loss) == pytest.approx(1.2931815, abs=4e-6)
    assert float(4 * Classification(1.0).distil(teacher, torch.zeros(1, 4))) == pytest.approx(
        0.4387575, abs=1e-6
    )


def test_maps_learn_from_the_teacher_and_know_their_size():
    logits, depth = torch.randn(2, 3, 4, 4), torch.rand(2, 4, 4)
    assert float(Segmentation().distil(logits, logits)) == pytest.approx(0, abs=1e-6)
    assert float(Depth().distil(depth, depth + 2)) == pytest.approx(4, abs=1e-5)
    torch.testing.assert_close(Depth().log_likelihood(depth + 2, depth), torch.full((2,), -4.0))
    with pytest.raises(InputError, match="4x4"):
        Depth().check(depth, torch.zeros(2, 5, 5))
    with pytest.raises(InputError, match="0 to 3"):
        Classification().check(torch.zeros(2, 4), torch.tensor([0, 4]))


def test_a_fresh_expert_is_the_network_itself():
    base, x = network().eval(), torch.randn(3, 3, 4, 4)
    experts = Experts(base, FIVE, Adapters(rank=2)).eval()
    assert torch.equal(experts(x, torch.tensor(350)), base(x))


def test_a_change_is_the_product_read_as_a_kernel():
    layer = nn.Conv2d(4, 6, 3)
    assert low_rank_shapes(layer, 2) == ((6, 12), (18, 6))
    base = nn.Sequential(layer, nn.Flatten(), nn.Linear(6, 2))
    expert = Expert(base, Adapters(rank=2, alpha=8.0))
    nn.init.normal_(expert.b["0"])
    product = expert.b["0"].detach() @ expert.a["0"].detach()
    assert product.shape == (18, 12)
    change = expert.weights(base)["0.weight"].detach() - layer.weight.detach()
    torch.testing.assert_close(change, 4.0 * product.reshape(6, 4, 3, 3), rtol=1e-4, atol=1e-5)


def test_merged_by_hand_equals_the_functional_call():
    base, x = network(), torch.randn(2, 3, 4, 4)
    experts = stirred(Experts(base, FIVE, Adapters(rank=2)))
    with torch.no_grad():
        made = experts(x, torch.tensor(250))
        merged = network().eval()
        merged.load_state_dict({**merged.state_dict(), **experts.parts[1].weights(base)})
        torch.testing.assert_close(made, merged(x), rtol=1e-6, atol=1e-6)


def test_rows_go_to_the_owners_of_their_timesteps():
    experts = stirred(Experts(network(), FIVE, Adapters(rank=2)))
    x, t = torch.randn(4, 3, 4, 4), torch.tensor([950, 10, 210, 990])
    with torch.no_grad():
        together = experts(x, t)
        alone = torch.cat([experts(x[i : i + 1], t[i]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(experts(x[:1], t[0]), experts(x[:1], t[2]))


def test_targets_choose_layers_and_refuse_none():
    assert list(adapted_layers(network(), "^4$")) == ["4"]
    with pytest.raises(InputError, match="names none"):
        adapted_layers(network(), "attention")
    with pytest.raises(InputError, match="expression"):
        adapted_layers(network(), "(")


class Bottleneck(nn.Module):
    """The layers of ResNet-50's block, by torchvision's names."""

    def __init__(self, ins: int, width: int, down: bool) -> None:
        super().__init__()
        outs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(ins, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outs, 1, bias=False), nn.BatchNorm2d(outs)
        if down:
            self.downsample = nn.Sequential(nn.Conv2d(ins, outs, 1, bias=False), nn.BatchNorm2d(outs))


class ResNet50(nn.Module):
    """The layers of ResNet-50."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, bias=False), nn.BatchNorm2d(64)
        ins = 64
        for number, (count, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
            blocks = [Bottleneck(ins if i == 0 else 4 * width, width, i == 0) for i in range(count)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            ins = 4 * width
        self.fc = nn.Linear(ins, 1000)


def test_resnet50_is_adapted_where_the_paper_says():
    with torch.device("meta"):
        base = ResNet50()
    assert sum(one.numel() for one in base.parameters()) == 25_557_032
    layers = adapted_layers(base)
    assert len(layers) == 33
    for rank, expected in ((8, 705_176), (16, 1_410_352)):
        shapes = [low_rank_shapes(layer, rank) for layer in layers.values()]
        assert sum(a[0] * a[1] + b[0] * b[1] for a, b in shapes) == expected
    free = {name: base.get_parameter(name).numel() for name in free_names(base)}
    released = {name: n for name, n in free.items() if not name.endswith("downsample.1.weight")}
    assert sum(released.values()) == 49_280
    assert "fc.bias" not in free
