"""The Python examples of README.md and the quick start run, and local links are valid."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "docs/quickstart.md"]


def run(page: str) -> dict:
    names: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S):
        exec(block, names)
    return names


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_python_examples_run(page):
    names = run(page)
    assert names["coded"].loss_after < names["coded"].loss_before
    assert names["decoded"].shape == names["image"].shape
    if "symbols" in names:
        assert names["restored"].tolist() == names["symbols"].tolist()


@pytest.mark.parametrize("page", PAGES)
def test_local_links_are_valid(page):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / page).read_text())
    assert links
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []
