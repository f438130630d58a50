"""The guide's example runs as it stands, and does what its page says."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "protection.md"


def test_the_example_protects_within_its_budget():
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(compile(example, str(PAGE), "exec"), names)
    change = names["pixels"].astype(int) - names["originals"]
    assert 0 < abs(change).max() <= 8
    assert names["found"].history[-1] < names["found"].history[0]
    assert set(names["host"].passes) == {"encoder"}
