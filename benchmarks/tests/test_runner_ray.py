"""The same tasks on Ray leave the same results as without it, timings aside."""

from importlib.util import find_spec

import pytest
from noiseworks.bench.runner.cluster import Shipped, unpack
from noiseworks.bench.runner.discovery import Source
from noiseworks.bench.runner.session import bench
from noiseworks.bench.runner.tasks import RESULT_NAME, Task

TIMES = ("seconds",)


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(item) for name, item in value.items() if name not in TIMES}
    if isinstance(value, list):
        return [without_times(item) for item in value]
    return value


def test_files_of_a_node_land_in_the_task_folder(tmp_path):
    task = Task(Source("a", ("m:CLAIM",), "0.1"), 1, "quick", {}, 1000, None, "cpu", 10.0)
    files = {RESULT_NAME: b"{}", "grid/a.png": b"png", "log.txt": b"log"}
    outcome = unpack(task, Shipped({"seconds": 1.0}, None, 2.0, files), tmp_path)
    assert {str(p.relative_to(outcome.folder)) for p in outcome.folder.rglob("*") if p.is_file()} == set(
        files
    )
    assert (outcome.folder / "grid/a.png").read_bytes() == b"png"


@pytest.mark.slow
def test_ray_on_this_machine_gives_the_same_results(fakes, tmp_path):
    if find_spec("ray") is None:  # not imported here: Ray reads its environment variables when it is imported
        pytest.skip("Ray is not installed")
    options = {"methods": ["fake-steady,fake-crash"], "jobs": 2, "open_report": False}
    plain = bench(out=tmp_path / "plain", **options)
    on_ray = bench(out=tmp_path / "ray", ray="local", **options)
    assert without_times(on_ray.document["claims"]) == without_times(plain.document["claims"])
    images = on_ray.document["claims"][0]["measurements"]["ours"][0]["images"]
    assert (tmp_path / "ray" / images["first prompt"]).is_file()
