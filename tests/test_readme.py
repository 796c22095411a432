"""The Python examples of the README run."""

import re
from pathlib import Path


def test_the_python_of_the_readme_runs():
    readme = Path(__file__).parents[1] / "README.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", readme.read_text(), re.M | re.S)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert names["image"].shape == names["image"].shape
    assert names["coded"].loss_after < names["coded"].loss_before
    assert names["decoded"].tolist() == names["symbols"].tolist()
