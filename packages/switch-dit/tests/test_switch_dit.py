"""Gates, prior and block against the paper's code's rules, worked numbers and brute force."""

import math
from itertools import permutations

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.backbones import DiT, DiTConfig, match_original, to_diffusers
from noiseworks.switch_dit import Switch, SwitchDiT, choose, match, prior_loss, prior_table
from noiseworks.switch_dit.gating import TimestepGate


def randomised(model, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "pos_embed":
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def inputs():
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0, 300, 700, 999]), torch.tensor([0, 3, 10, 5])


CONFIG = DiTConfig(depth=2, width=16, heads=2)


def test_gates_are_softmax_values_of_the_largest_and_do_not_sum_to_one():
    probs = torch.tensor([0, math.log(2), math.log(5)]).softmax(0)[None]
    chosen, gates = choose(probs, 2)
    assert chosen.tolist() == [[2, 1]]
    torch.testing.assert_close(gates, torch.tensor([[0.625, 0.25]]))
    torch.testing.assert_close(choose(probs, 2, renormalize=True)[1].sum(), torch.tensor(1.0))
    assert choose(torch.full((1, 5), 0.2), 3)[0].tolist() == [[0, 1, 2]]  # ties to the lowest number


def test_prior_is_a_sliding_window_with_one_shared_expert_a_block():
    for depth, starts in ((12, [0, 1, 4, 12]), (24, [0, 2, 8, 24]), (28, [0, 2, 9, 28])):
        table = prior_table(1000, depth, 3, 2, 4.0)
        assert table.shape == (1000, 3 * depth)
        assert (table.sum(1) == 2 * depth).all()
        assert table[[0, 500, 750, 999]].argmax(1).tolist() == starts
        assert int((table.mean(0) == 1).sum()) == depth


def test_loss_of_uniform_gates_and_of_the_prior_itself():
    for depth in (2, 12):
        targets = prior_table(1000, depth, 3, 2, 4.0)[[0, 400, 999]]
        uniform = torch.full((3, depth, 3), 1 / 3)
        exact = 0.5 * (2 / 3 * math.log(0.8) + math.log(2) / 3 + math.log(1.2))
        assert float(prior_loss(uniform, targets)) == pytest.approx(exact, abs=1e-4)
        assert exact == pytest.approx(0.1323, abs=1e-4)
        same = (targets / targets.sum(1, keepdim=True) * depth).reshape(3, depth, 3)
        assert float(prior_loss(same, targets)) == pytest.approx(0, abs=1e-6)
        apart = ((1 - targets) / depth * depth).reshape(3, depth, 3)
        assert 0 < float(prior_loss(apart, targets)) <= math.log(2) + 1e-5


def test_matching_is_the_best_of_all_permutations_and_does_not_see_how_experts_are_numbered():
    generator = torch.Generator().manual_seed(0)
    prior = prior_table(1000, 2, 3, 2, 4.0)
    used = (torch.rand(1000, 6, generator=generator) < 0.6).float()
    best = min(float((used - prior[:, list(p)]).abs().sum()) for p in permutations(range(6)))
    columns, agreement = match(used, prior)
    assert float((used - prior[:, columns]).abs().sum()) == best
    assert agreement == pytest.approx(1 - best / used.numel())
    order = torch.randperm(6, generator=generator)
    renumbered, same = match(used[:, order], prior, generator)
    assert same == pytest.approx(agreement)
    assert float((used[:, order] - prior[:, renumbered]).abs().sum()) == best
    assert match(prior[:, order], prior)[1] == 1


def test_the_loss_does_not_see_how_experts_are_numbered():
    """Inside a block and across blocks: the units are renumbered, the prior is matched anew, the loss is the same."""
    generator, prior = torch.Generator().manual_seed(3), prior_table(1000, 2, 3, 2, 4.0)
    probs = torch.rand(1000, 6, generator=generator)
    used = (torch.rand(1000, 6, generator=generator) < 0.6).float()
    found = []
    for order in (torch.arange(6), torch.tensor([2, 0, 1, 4, 5, 3]), torch.tensor([5, 3, 0, 1, 4, 2])):
        columns, _ = match(used[:, order], prior)
        found.append(float(prior_loss(probs[:, order].reshape(1000, 2, 3), prior[:, columns])))
    assert found[1:] == pytest.approx(2 * found[:1], rel=1e-6)
    columns, _ = match(used, prior)
    assert float(prior_loss(probs.reshape(1000, 2, 3), prior[:, columns.flip(0)])) != pytest.approx(found[0])


def test_fresh_experts_change_nothing_and_learn_from_the_second_step_on():
    dit, (x, t, y) = randomised(DiT(CONFIG)), inputs()
    model = SwitchDiT.from_dit(dit)
    with torch.no_grad():
        assert torch.equal(model(x, t, y), dit(x, t, y))
        assert torch.equal(model(x, t * 0 + 5, y), dit(x, t * 0 + 5, y))  # folded
    new = SwitchDiT(CONFIG)
    optimizer = torch.optim.SGD(new.parameters(), 0.1)
    for step in range(3):
        optimizer.zero_grad()
        new(x, t, y).sub(1).square().mean().backward()
        largest = max(float(e.weight.grad.abs().max()) for e in new.layers.experts)
        assert (largest > 0) == (step == 2)  # final layer, then gates of the residual branches, then experts
        optimizer.step()


def test_block_is_that_of_the_formula_for_every_sample():
    model, (x, t, y) = randomised(SwitchDiT(CONFIG)), inputs()
    with torch.no_grad():
        e = model.t_embedder(t)
        c, z = e + model.y_embedder(y), model.tokens(x)
        for block, gate, experts in zip(model.blocks, model.layers.gates, model.layers.experts, strict=True):
            p, out = gate(e), torch.zeros_like(z)
            for i in range(4):
                for j in p[i].topk(2).indices:
                    out[i] += p[i, j] * (z[i] @ experts.weight[j] + experts.bias[j])
            m = 1 + out
            z = z + block(z * m, c) - z * m
        torch.testing.assert_close(model.features(x, t, y)[0], z, atol=1e-5, rtol=1e-5)


def test_folded_sampling_equals_unfolded():
    model, (x, _, y) = randomised(SwitchDiT(CONFIG)), inputs()
    t = torch.full((4,), 321)
    with torch.no_grad():
        folded = model(x, t, y)
    unfolded = model(x, t, y).detach()
    assert float((folded - unfolded).abs().max()) <= 1e-5 * float(unfolded.abs().max())


def test_all_experts_are_a_dense_mixture():
    model, (x, t, y) = randomised(SwitchDiT(CONFIG, Switch(top_k=3))), inputs()
    z, e = torch.randn(4, 5, 16), model.t_embedder(t)
    experts, p = model.layers.experts[0], model.layers.gates[0](e)
    dense = torch.einsum("be,bnd,edo->bno", p, z, experts.weight) + (p @ experts.bias)[:, None]
    torch.testing.assert_close(model._experts(0, z, e), dense, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(model(x, t, y)).all()


def test_gradient_checkpointing_gives_the_same_gradients():
    model, (x, t, y) = randomised(SwitchDiT(CONFIG)), inputs()
    found = []
    for checkpointed in (False, True):
        model.gradient_checkpointing = checkpointed
        model.zero_grad()
        model(x, t, y).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_prior_loss_depends_on_its_count_alone_and_teaches_the_gates():
    t = torch.randint(1000, (256,), generator=torch.Generator().manual_seed(0))
    model, twin = randomised(SwitchDiT(CONFIG)), randomised(SwitchDiT(CONFIG))
    first = model.prior_loss(t)
    torch.rand(3)  # other draws do not matter
    assert torch.equal(first, twin.prior_loss(t))
    assert int(model.layers.losses) == 1
    begun = model.agreement()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.prior_loss(t).backward()
        optimizer.step()
    assert model.agreement() > max(0.9, begun)
    assert (model.routing_table().float().mean(0).amax(1) >= 0.9).all()


def test_experts_go_with_diffusers_model():
    model, (x, t, y) = randomised(SwitchDiT(CONFIG)), inputs()
    host = to_diffusers(model.plain()).eval()
    with torch.no_grad(), model.attach_to(host):
        torch.testing.assert_close(host(x, timestep=t, class_labels=y).sample, model(x, t, y))


def test_an_upcycled_model_comes_back_from_disk_and_in_a_pipeline_bit_by_bit(tmp_path):
    model, (x, t, y) = randomised(SwitchDiT.from_dit(randomised(DiT(CONFIG)))), inputs()
    model.save_pretrained(tmp_path / "model", "linear")
    loaded, schedule = SwitchDiT.from_pretrained(tmp_path / "model")
    assert schedule == "linear"
    host = to_diffusers(loaded.plain()).eval()
    host.save_pretrained(tmp_path / "host")
    host = match_original(type(host).from_pretrained(tmp_path / "host")).eval()
    with torch.no_grad():
        wanted = model(x, t, y)
        assert torch.equal(loaded(x, t, y), wanted)
        with loaded.attach_to(host):
            assert torch.equal(host(x, timestep=t, class_labels=y).sample, wanted)


def test_bad_experts_are_refused():
    with pytest.raises(InputError, match="at most num_experts"):
        Switch(top_k=4)
    with pytest.raises(InputError, match="num_experts"):
        Switch(num_experts=1)


def test_the_gate_of_a_half_precision_network_reckons_in_float32():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gate, e = TimestepGate(16, 4).bfloat16(), torch.randn(3, 16).bfloat16()
    found = gate(e)
    assert found.dtype == torch.float32
    wanted = (torch.nn.functional.silu(e.double()) @ gate.linear.weight.double().T).softmax(-1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
