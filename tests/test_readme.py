"""What README.md and the quick start show in Python runs as it stands, and their links lead somewhere."""

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
def test_the_example_runs_and_adapting_pays(page):
    names = run(page)
    assert names["coded"].loss_after < names["coded"].loss_before
    assert names["decoded"].shape == names["image"].shape
    if "symbols" in names:
        assert names["restored"].tolist() == names["symbols"].tolist()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_links_to_is_there(page):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / page).read_text())
    assert links
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []
