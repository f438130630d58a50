"""What stands at the target of a command survives: it is refused in one line, before the model is even looked for."""

import pytest
from noiseworks.core.cli import dispatched, run

DRAW = "--model nowhere --prompts disc"
# Commands that write a folder, and the folder that has to be theirs ({out}, or one below it).
FOLDERS = {
    "linear-ag generate": (f"linear-ag generate {DRAW} --out {{out}}", "."),
    "linear-ag profile": (f"linear-ag profile {DRAW} --out {{out}}", "."),
    "linear-ag calibrate": (f"linear-ag calibrate {DRAW} --target-nfe 30 --out {{out}}", "."),
    "linear-ag fit": (f"linear-ag fit {DRAW} --out {{out}}", "."),
    "linear-ag fit, sums": (f"linear-ag fit {DRAW} --out {{out}}/beta", "beta.partial"),
    "linear-ag search": (f"linear-ag search {DRAW} --out {{out}}", "."),
    "linear-ag compare": (f"linear-ag compare {DRAW} --out {{out}}", "."),
    "bac profile": ("bac profile --model nowhere --out {out}", "."),
    "bac plan": ("bac plan --profile nowhere --out {out}", "."),
    "bac eval": ("bac eval --model nowhere --dataset {out}", "."),
    "freecache probe": ("freecache probe --model nowhere --prompt x --out {out}", "."),
    "freecache compare": ("freecache compare --model nowhere --out {out}", "."),
    "rti-dp eval": ("rti-dp eval --model nowhere --dataset {out}", "."),
    "streaming-dp eval": ("streaming-dp eval --model nowhere --dataset {out}", "."),
    "streaming-dp convert": ("streaming-dp convert --model nowhere --out {out}", "."),
    "streaming-dp train": ("streaming-dp train --model nowhere --out {out}", "model"),
    "mode train": ("mode train --data tabletop --out {out}", "model"),
    "mode finetune": ("mode finetune --model nowhere --data tabletop --out {out}", "model"),
    "ldm import": ("ldm import --checkpoint nowhere --config nowhere --out {out}", "."),
    "ldm export": ("ldm export --run nowhere --out {out}", "."),
    "ldm train": ("ldm train --task class --data nowhere --out {out} --vae nowhere", "pipeline"),
    "ldm train-ae": ("ldm train-ae --data nowhere --out {out}", "vae"),
    "ldm sample": ("ldm sample --model nowhere --out {out}", "."),
    "bench train-testbed": ("bench train-testbed shapes --out {out}", "model"),
}


def refusal(line: str, capsys) -> str:
    """Run a command line in this process and return its one line of refusal."""
    slug, *words = line.split(" ")
    with pytest.raises(SystemExit) as stop:
        run(dispatched()[slug].load(), words)
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    return shown.err


@pytest.mark.parametrize("name", FOLDERS)
def test_a_foreign_file_in_the_folder_survives(tmp_path, monkeypatch, capsys, name):
    line, below = FOLDERS[name]
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine" / below
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("years of work")
    error = refusal(line.format(out="mine"), capsys)
    assert "is not replaced: it holds 'notes.txt'" in error or "and no training run" in error
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["notes.txt"]
    assert (folder / "notes.txt").read_text() == "years of work"


@pytest.mark.parametrize("bad", ["", ".", "..", "/", "below/..", "nul\0byte", "x" * 300])
@pytest.mark.parametrize(
    "name", ["linear-ag generate", "bac plan", "freecache compare", "streaming-dp convert"]
)
def test_a_folder_without_a_name_of_its_own_is_refused(tmp_path, monkeypatch, capsys, name, bad):
    monkeypatch.chdir(tmp_path)
    error = refusal(FOLDERS[name][0].format(out=bad), capsys)
    assert "the output" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line",
    [
        "streaming-dp convert --model own --out own",
        "ldm import --checkpoint own/model.ckpt --config own/model.yaml --out own",
    ],
)
def test_a_source_is_never_its_own_target(tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    assert "would replace its source own" in refusal(line, capsys)


# Commands that write a file.
FILES = {
    "first-hitting sample": "first-hitting sample --model nowhere --prompt x --out {out}",
    "first-hitting compare": "first-hitting compare --model nowhere --out {out}",
    "mdpo generate": "mdpo generate --model nowhere --prompt x --trace {out}",
    "mdpo eval": "mdpo eval --model nowhere --out {out}",
    "mdpo select": "mdpo select --model nowhere --data nowhere --out {out}",
    "mdpo viz": "mdpo viz nowhere --out {out}",
    "rti-dp eval": "rti-dp eval --model nowhere --record {out}",
    "rti-dp eval, video": "rti-dp eval --model nowhere --video {out}",
    "streaming-dp eval": "streaming-dp eval --model nowhere --video {out}",
    "mode usage": "mode usage --model nowhere --out {out}",
    "mode eval": "mode eval --model nowhere --video {out}",
    "bac heatmap": "bac heatmap nowhere --out {out}",
    "bac errors": "bac errors --model nowhere --plan nowhere --out {out}",
    "bac eval": "bac eval --model nowhere --video {out}",
}


@pytest.mark.parametrize("name", FILES)
def test_a_folder_at_the_name_of_a_file_is_refused(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    endings = {"video": ".webp", "record": ".npz", "usage": ".png", "bac": ".svg"}
    target = "out" + next((end for word, end in endings.items() if word in FILES[name]), ".json")
    (tmp_path / target).mkdir()
    assert "is a folder" in refusal(FILES[name].format(out=target), capsys)
    assert [path.name for path in tmp_path.iterdir()] == [target]
