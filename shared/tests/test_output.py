"""What commands read and leave: one rule for a text or a file, targets checked before work, only valid JSON."""

import json
import math
import os

import pytest
import torch
from noiseworks.core.artifacts import FolderKind
from noiseworks.core.cli import Command, make_app, run
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.core.output import (
    check_file,
    lines_of,
    plain,
    results,
    write_json,
    write_rows,
)

TABLE = FolderKind("test/table", ("rows.csv", "config.yaml"), "config.yaml")


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.csv", "prompts", "my prompts.md"])
def test_a_file_of_any_kind_is_read_line_by_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes("\ufeffa red disc\r\n\r\n  två rutor\n".encode())
    assert lines_of(name) == ["a red disc", "  två rutor"]


@pytest.mark.parametrize(
    "text", ["a red disc", "1 + 1 =\n", "e.g. this", "and/or", "x" * 10_000, "v1.5", " "]
)
def test_a_text_is_itself(text):
    if text == " ":
        with pytest.raises(InputError, match="no prompt in ' '"):
            lines_of(text)
    else:
        assert lines_of(text) == [text]


@pytest.mark.parametrize("name", ["nope.txt", "gone/prompts.CSV", "my prompts.jsonl", "./nope.md"])
def test_a_missing_file_is_not_taken_for_a_text(name):
    with pytest.raises(InputError, match="no file"):
        lines_of(name)


def test_what_cannot_be_read_as_lines_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty").write_text(" \n\n")
    (tmp_path / "folder").mkdir()
    for name, message in (("latin.txt", "no UTF-8 text"), ("empty", "no text in"), ("folder", "is a folder")):
        with pytest.raises(InputError, match=message):
            lines_of(name, "text")
    with pytest.raises(InputError, match="no prompt"):
        lines_of("")


def test_files_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe.json")
    for name, message in (
        ("folder", "is a folder"),
        ("file/below.json", "is a file"),
        ("pipe.json", "a device or a pipe"),
        ("x" * 300, "longer than"),
        ("a\0b", "NUL"),
    ):
        with pytest.raises(InputError, match=message):
            check_file(tmp_path / name)
    for name in ("", ".", "..", "/"):
        with pytest.raises(InputError, match="is a folder"):
            check_file(name)
    with pytest.raises(InputError, match=r"must end in \.png or \.webp, got 'a\.gif'"):
        check_file(tmp_path / "a.gif", (".png", ".webp"))
    with pytest.raises(InputError, match="would overwrite its source"):
        check_file(tmp_path / "file", sources=(None, tmp_path / "file"))
    assert check_file(tmp_path / "new" / "file.json") == tmp_path / "new" / "file.json"
    assert check_file(tmp_path / "file").is_file()
    assert not (tmp_path / "new").exists()


def test_rows_are_csv_or_one_object_a_line(tmp_path):
    rows = [{"a": 1, "b": "x,y"}, {"a": torch.tensor(2), "b": None}]
    write_rows(tmp_path / "rows.csv", rows)
    assert (tmp_path / "rows.csv").read_text().splitlines()[:2] == ["a,b", '1,"x,y"']
    write_rows(tmp_path / "rows.jsonl", iter(rows))
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == [
        {"a": 1, "b": "x,y"},
        {"a": 2, "b": None},
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, torch.tensor([1.0, math.nan])])
def test_numbers_that_json_does_not_have_are_refused_by_name(tmp_path, bad):
    with pytest.raises(NonFiniteError, match=r"result\.rows\[1\]\.loss"):
        plain({"rows": [{"loss": 1.0}, {"loss": bad}]})
    with pytest.raises(NonFiniteError):
        write_json(tmp_path / "a.json", [bad])
    assert not list(tmp_path.iterdir())


def result(*, value: float) -> dict:
    """Return what was given."""
    return {"value": value}


@pytest.mark.parametrize("words", [["--json"], []])
def test_a_command_whose_result_is_not_finite_fails(capsys, words):
    app = make_app("core", {"show": Command(f"{__name__}:result", "Show.")}, distribution="noiseworks-core")
    with pytest.raises(SystemExit) as stop:
        run(app, ["show", "--value", "nan", *words])
    shown = capsys.readouterr()
    assert (stop.value.code, shown.out) == (2, "")
    assert "result.value is nan" in shown.err


def chatty() -> dict:
    """Print like a library does."""
    print("epoch 1 ━━━━")
    return {"value": 1}


def test_with_json_only_the_result_is_on_stdout(capsys):
    app = make_app("core", {"work": Command(f"{__name__}:chatty", "Work.")}, distribution="noiseworks-core")
    with pytest.raises(SystemExit):
        run(app, ["work", "--json"])
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"value": 1}
    assert "epoch" in shown.err


def test_a_folder_of_results_appears_whole_with_its_settings(tmp_path):
    out = tmp_path / "out"
    for seed in (1, 2):
        with results(out, TABLE, {"seed": seed}) as folder:
            write_rows(folder / "rows.csv", [{"a": seed}])
            assert seed == 2 or not out.exists()
    assert json.loads((out / "config.yaml").read_text()) == {"kind": "test/table", "seed": 2}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.yaml", "out", "rows.csv"]
