"""The training kit: folders, order of data, figures, averages, and runs that go on after a stop or a kill."""

import signal
import subprocess
import sys
from dataclasses import dataclass, replace

import lightning as L  # noqa: TID253
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException  # noqa: TID253
from noiseworks.core.errors import ArtifactError, InputError, NonFiniteError
from noiseworks.kits.training import (
    Average,
    Batches,
    Fit,
    MetricsFile,
    Stopped,
    TensorTable,
    fit,
    load_parameters,
    make_fabric,
    open_run,
    power_decay,
    read_settings,
    rounds,
    warm_decay,
)
from noiseworks.kits.training.quiet import refusals
from noiseworks.kits.training.state import replace_checkpoint
from noiseworks.kits.training.testing import check_resume
from torch import nn

OPTIONS = Fit(max_steps=12, batch_size=4, device="cpu", checkpoint_every=0, log_every=1, seed=3)
ROWS = {"x": torch.linspace(-1, 1, 22).reshape(22, 1)}


class Model(L.LightningModule):
    """Fits 3x with dropout, whose noise comes from the global random state."""

    def __init__(self, spoil_at=None, spoil="loss"):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(1, 16), nn.Dropout(0.2), nn.Linear(16, 1))
        self.average = Average(self.net, warm_decay(0.9))
        self.spoil_at, self.spoil, self.validations = spoil_at, spoil, 0

    def training_step(self, batch, index):
        loss = (self.net(batch["x"]) - 3 * batch["x"]).square().mean()
        if self.global_step == self.spoil_at and self.spoil == "loss":
            loss = loss * float("nan")
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.average.update(self.net)
        if self.global_step == self.spoil_at and self.spoil == "weights":
            self.net[0].bias.data[2] = float("inf")

    def validation_step(self, batch, index):
        self.validations += 1
        error = (self.net(batch["x"]) - 3 * batch["x"]).square().mean()
        spoiled = self.spoil == "validation" and self.spoil_at is not None
        self.log("val/error", error * float("nan") if spoiled else error, batch_size=1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class TwoOptimizers(Model):
    """Steps by hand, twice a batch: Lightning's own step count runs ahead."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        optimizers = self.optimizers()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.average.update(self.net)
        return loss.detach()

    def configure_optimizers(self):
        return [torch.optim.Adam(layer.parameters(), 1e-2) for layer in (self.net[0], self.net[2])]


def train(folder, make=Model, options=OPTIONS, validate_every=None, accumulate=1, progress=False):
    torch.manual_seed(11)
    module = make()
    held = Batches({"x": ROWS["x"][:8]}, 4, repeat=True)
    with open_run(folder, {"data": "line", "fit": options}) as run:
        fit(
            module,
            Batches(ROWS, options.batch_size, seed=options.seed, accumulate=accumulate),
            run=run,
            options=options,
            validation=held,
            validate_every=validate_every,
            progress=progress,
        )
    return module.state_dict()


# --- Runs that go on ---


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "stop_at", "validate_every", "accumulate"),
    [
        (Model, 7, None, 1),  # in the second epoch of five
        (Model, 10, None, 1),  # at the end of an epoch, with its validation
        (Model, 6, 3, 1),  # at a validation in the middle of an epoch
        (Model, 4, None, 2),
        (TwoOptimizers, 5, 4, 1),
    ],
    ids=["middle", "epoch", "validation", "accumulate", "two-optimizers"],
)
def test_a_run_goes_on_to_the_same_numbers(make, stop_at, validate_every, accumulate, tmp_path):
    check_resume(lambda out: train(out, make, OPTIONS, validate_every, accumulate), tmp_path, stop_at=stop_at)
    rows = MetricsFile(tmp_path / "whole", 12, tensorboard=False).rows()
    assert [int(row["step"]) for row in rows] == list(range(1, 12))  # the last waits for its validation
    every = validate_every or 5
    if accumulate == 1:
        assert [i + 1 for i, row in enumerate(rows) if row["val/error"]] == list(range(every, 12, every))


@pytest.mark.filterwarnings("ignore")
def test_a_kill_within_a_validation_redoes_it(tmp_path):
    """The checkpoint of a step that ends with a validation is written behind it."""

    class Dies(Model):
        def validation_step(self, batch, index):
            if self.trainer.fit_loop.epoch_loop.batch_progress.total.processed == 5:
                raise SystemError("stands for a kill")
            super().validation_step(batch, index)

    with pytest.raises(SystemError):
        train(tmp_path / "run", Dies)
    train(tmp_path / "run")
    whole = train(tmp_path / "whole")
    texts = [(tmp_path / name / "metrics.csv").read_text() for name in ("run", "whole")]
    assert texts[0] == texts[1]
    assert whole


@pytest.mark.filterwarnings("ignore")
def test_a_finished_run_is_not_done_again_and_says_what_it_measured(tmp_path, capsys):
    first = train(tmp_path)
    made = Model()
    with open_run(tmp_path, {"data": "line", "fit": OPTIONS}) as run:
        found = fit(made, Batches(ROWS, 4, seed=3), run=run, options=OPTIONS, validation=Batches(ROWS, 4))
    assert (found.steps, found.resumed_at, list(found.validation)) == (12, 12, ["val/error"])
    assert capsys.readouterr() == ("", "resumed at step 12\n")
    assert all(torch.equal(first[name], value) for name, value in made.state_dict().items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spoil", ["loss", "weights", "validation"])
def test_what_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(spoil, tmp_path):
    words = {
        "loss": "loss is not finite at step 8; the checkpoint of step 7 stays in",
        "weights": "weight 'net.0.bias' is not finite at step 8; the checkpoint of step 7 stays",
        "validation": "val/error is not finite at step 5; the checkpoint of step 4 stays",
    }
    with pytest.raises(NonFiniteError, match=words[spoil]):
        train(tmp_path, lambda: Model(7, spoil))
    kept = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(bool(tensor.isfinite().all()) for tensor in kept.values())


def test_nothing_of_lightning_reaches_the_terminal(tmp_path, capfd, recwarn):
    train(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_what_lightning_refuses_is_one_sentence():
    with pytest.raises(InputError, match=r"^Lightning refuses these settings: no such strategy$"), refusals():
        raise MisconfigurationException("no such strategy\n" + "and here is why\n" * 40)


# --- Rounds ---


class Walk:
    """A round moves a weight by noise from the global random state."""

    def __init__(self, spoil_at=None, key="loss"):
        self.weight, self.spoil_at, self.key = torch.zeros(3), spoil_at, key

    def round(self, step):
        self.weight += torch.randn(3)
        if step == self.spoil_at and self.key == "weight":
            self.weight[1] = float("nan")
        return {"loss": float("nan") if step == self.spoil_at and self.key == "loss" else step / 2}

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, state):
        self.weight = state["weight"].clone()


def walk(folder, loop=None, progress=False):
    torch.manual_seed(5)
    loop = Walk() if loop is None else loop
    with open_run(folder, {"fit": OPTIONS}) as run:
        rounds(loop, run=run, options=OPTIONS, fabric=make_fabric(OPTIONS), progress=progress)
    return {"weight": loop.weight}


def test_rounds_go_on_to_the_same_numbers(tmp_path):
    check_resume(walk, tmp_path, stop_at=7)
    assert [float(r["loss"]) for r in MetricsFile(tmp_path / "killed", 99).rows()] == [
        i / 2 for i in range(12)
    ]


def test_the_message_of_a_stop_is_true(tmp_path, capsys):
    class Interrupted(Walk):
        def round(self, step):
            if step == 4:
                signal.raise_signal(signal.SIGINT)
            return super().round(step)

    with pytest.raises(Stopped, match=r"^stopped at step 5; run the same command again to go on$"):
        walk(tmp_path, Interrupted())
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["step"] == 5
    capsys.readouterr()
    assert torch.equal(walk(tmp_path, progress=True)["weight"], walk(tmp_path / "whole")["weight"])
    assert capsys.readouterr() == ("", "resumed at step 5\n")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("loss", "loss is not finite at step 4; the checkpoint of step 3"),
        ("weight", "weight is not finite at step 4"),
    ],
)
def test_rounds_stop_at_what_is_not_finite(key, words, tmp_path):
    with pytest.raises(NonFiniteError, match=words):
        walk(tmp_path, Walk(3, key))
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["step"] == 3


def test_a_checkpoint_whose_writing_fails_leaves_the_last_one_alone(tmp_path):
    def write(part):
        part.write_text("half")
        raise OSError("no space left")

    path = tmp_path / "last.ckpt"
    path.write_text("whole")
    with pytest.raises(OSError, match="no space"):
        replace_checkpoint(path, write)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert path.read_text() == "whole"


def test_a_cut_off_checkpoint_is_named(tmp_path):
    walk(tmp_path)
    path = tmp_path / "checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"last\.ckpt cannot be read"):
        walk(tmp_path)


# --- Folders ---


@dataclass(frozen=True)
class Architecture:
    width: int = 8
    depth: int = 2


def test_the_same_settings_go_on_and_others_are_refused_by_name(tmp_path):
    out = tmp_path / "run"
    settings = {"data": "a.npz", "model": Architecture(), "fit": OPTIONS}
    with open_run(out, settings) as run:
        assert run.checkpoint is None
    with open_run(out, settings | {"data": "b.npz"}) as run:  # nothing had been trained
        run.last.parent.mkdir()
        run.last.write_bytes(b"state")
    with open_run(out, settings | {"data": "b.npz", "fit": replace(OPTIONS, checkpoint_every=9)}) as run:
        assert run.checkpoint == run.last
    assert read_settings(out)["model"] == {"width": 8, "depth": 2}
    for other, words in (
        ({"data": "c.npz"}, r"begun with data 'b\.npz', now data 'c\.npz'"),
        ({"data": "b.npz", "model": Architecture(16)}, r"begun with model\.width 8, now model\.width 16"),
        ({"data": "b.npz", "fit": replace(OPTIONS, seed=4)}, r"fit\.seed 3, now fit\.seed 4"),
        ({"data": "b.npz", "more": 1}, "begun with no more, now more 1"),
    ):
        with pytest.raises(InputError, match=words), open_run(out, settings | other):
            pass
    with pytest.raises(InputError, match="already holds a run"), open_run(out, settings, resume=False):
        pass


def test_settings_that_cannot_be_written_whole_are_not_written(tmp_path, monkeypatch):
    def full(*names):
        raise OSError("no space left")

    monkeypatch.setattr("noiseworks.core.artifacts.os.replace", full)
    with pytest.raises(OSError, match="no space left"), open_run(tmp_path / "run", {"seed": 0}, False):
        pass
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"'thesis\.tex'"), open_run(tmp_path, {}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file"), open_run(tmp_path / "thesis.tex", {}):
        pass
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="something else"), open_run(tmp_path, {}):
        pass


# --- Data, figures, averages, options ---


def test_an_epoch_is_a_permutation_and_processes_share_its_batches():
    whole = Batches({"row": torch.arange(11)}, 4, seed=1)
    epochs = [[batch["row"].tolist() for batch in whole] for _ in range(2)]
    assert all(len({row for batch in epoch for row in batch}) == 8 for epoch in epochs)
    assert epochs[0] != epochs[1]
    parts = [Batches({"row": torch.arange(11)}, 4, seed=1).part(rank, 2) for rank in range(2)]
    shared = [[row for batch in pair for row in batch["row"].tolist()] for pair in zip(*parts, strict=True)]
    assert shared == epochs[0]
    with pytest.raises(InputError, match="multiple of the 3 processes"):
        whole.part(0, 3)


def test_batches_go_on_from_their_state_within_and_between_epochs():
    def rows(batches, count):
        endless = batches.endless()
        return [next(endless)["row"].tolist() for _ in range(count)]

    def marked(batch, generator):
        return {"row": batch["row"] * 1000 + torch.randint(1000, (4,), generator=generator)}

    for done in (1, 2, 3):
        first = Batches({"row": torch.arange(11)}, 4, seed=2, transform=marked)
        expected = rows(Batches({"row": torch.arange(11)}, 4, seed=2, transform=marked), 7)
        assert rows(first, done) == expected[:done]
        second = Batches({"row": torch.arange(11)}, 4, seed=2, transform=marked)
        second.load_state_dict(first.state_dict())
        assert rows(second, 7 - done) == expected[done:]


def test_too_little_data_is_refused():
    with pytest.raises(InputError, match="times accumulate 2 needs at least 8 rows, the data hold 7"):
        Batches({"x": torch.zeros(7)}, 4, accumulate=2)
    with pytest.raises(InputError, match="common length"):
        TensorTable({"x": torch.zeros(7), "y": torch.zeros(6)})


def test_figures_behind_the_step_are_dropped_and_half_a_line_does_not_count(tmp_path):
    metrics = MetricsFile(tmp_path)
    for step in (1, 2, 3):
        metrics.write(step, {"loss": step / 4})
    metrics.write(3, {"val/psnr": 20})
    metrics.close()
    with metrics.path.open("a") as file:
        file.write("4,0.")
    again = MetricsFile(tmp_path, 2)
    again.write(3, {"loss": 9})
    again.close()
    assert metrics.path.read_text() == "step,loss,val/psnr\n1,0.25,\n2,0.5,\n3,9.0,\n"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.25), (2, 0.5), (3, 9.0)]


@pytest.mark.parametrize(
    ("decay", "update", "value"),
    [
        (warm_decay(0.9999), 0, 2 / 11),
        (warm_decay(0.9999), 9, 11 / 20),
        (warm_decay(0.5), 99, 0.5),
        (power_decay(), 1, 0.0),
        (power_decay(), 0, 0.0),
        (power_decay(), 16, 1 - 16**-0.75),
        (power_decay(), 10, 0.822172),
        (power_decay(), 1_000, 0.994377),
        (power_decay(), 100_000, 0.999822),
        (power_decay(), 10**9, 0.9999),
        (power_decay(maximum=0.9), 10**6, 0.9),
    ],
)
def test_decays_are_the_published_ones(decay, update, value):
    assert decay(update) == pytest.approx(value, abs=5e-7)


def test_the_average_moves_weights_and_copies_batch_norms():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = Average(model, lambda update: 0.75)
    start = average.model[0].weight.clone()
    with torch.no_grad():
        model[0].weight.add_(4)
        model[1].weight.fill_(7)
        model[1].running_mean.fill_(5)
    average.train().update(model)
    torch.testing.assert_close(average.model[0].weight, start + 1)
    assert (average.model[1].weight == 7).all()
    assert (average.model[1].running_mean == 5).all()
    assert not average.model.training
    assert int(average.updates) == 1


def test_the_average_follows_the_formula():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    average = Average(model, power_decay())
    expected = model[0].weight.detach().clone()
    for n in range(12):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(8, 3).double())
        average.update(model)
        s = max(0, n - 1)
        decay = 0.0 if s == 0 else 1 - (1 + s) ** -0.75
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(average.model[0].weight, expected, atol=1e-12, rtol=0)
    assert torch.equal(average.model[1].weight, model[1].weight)
    assert torch.equal(average.model[1].running_mean, model[1].running_mean)
    assert int(average.updates) == 12
    assert not any(p.requires_grad for p in average.parameters())


def test_parameters_that_are_missing_are_named():
    model = nn.Linear(2, 1)
    for state, words in (
        ({"weight": model.weight}, "the checkpoint lacks 'bias'"),
        ({"weight": model.weight, "bias": model.bias, "gain": model.bias}, "unexpected tensor 'gain'"),
        ({"weight": model.weight.T, "bias": model.bias}, r"'weight' in the shape \(2, 1\), not \(1, 2\)"),
    ):
        with pytest.raises(InputError, match=words):
            load_parameters(model, state, "the checkpoint")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1"),
        ({"batch_size": 5, "devices": 2}, "multiple of devices"),
        ({"precision": "8-true"}, "precision must be one of"),
        ({"precision": "16-mixed"}, "needs a GPU"),
        ({"strategy": "deepspeed"}, "strategy must be one of"),
        ({"device": "tpu"}, "device must be one of"),
        ({"checkpoint_every": -1}, "checkpoint_every"),
    ],
)
def test_options_that_no_run_can_have_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        replace(OPTIONS, **changes)


def test_options_and_folders_need_no_torch():
    code = (
        "import sys; from noiseworks.kits.training import Fit, open_run; Fit();"
        "from noiseworks.kits.training.metrics import MetricsFile; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
