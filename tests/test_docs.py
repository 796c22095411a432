"""The examples in docs/ run."""

import doctest
import re
import shlex
import subprocess
import sys
import typing
from importlib import import_module
from pathlib import Path

import pytest

from lora_comp import cli, rans, tasks
from lora_comp.commands.run import RunConfig
from lora_comp.config import compose
from lora_comp.errors import LoraCompError
from lora_comp.tasks import load_task

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_custom_task_of_the_docs_runs(tmp_path):
    [code], [command] = blocks("tasks.md", "python"), blocks("tasks.md", "sh")
    assert len(code.splitlines()) < 30
    (tmp_path / "edges.py").write_text(code)
    words = [*command.split()[1:], "out=out", "engine.threads=1", "engine.steps=2"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "edges" in (tmp_path / "out" / "results.json").read_text()


def test_the_example_of_the_entropy_coder_runs():
    done = doctest.testmod(rans)
    assert done.attempted and not done.failed


def test_settings_of_ones_own_are_words():
    [code] = blocks("settings.md", "python")
    try:
        exec(code, {"__name__": "bright"})
        config = compose(RunConfig, ["task=bright", "task.power=1"], "run")
        task = load_task(**config.task.given())
        assert (task.name, task.power, task.channel) == ("bright", 1, None)
        with pytest.raises(LoraCompError, match=r"task\.channel must be an integer from 0 to 2 or null, not 3"):
            compose(RunConfig, ["task=bright", "task.channel=3"], "run")
    finally:
        tasks.TASKS.pop("bright", None)


PAGES = [*sorted(DOCS.rglob("*.md")), DOCS.parent / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_understood(page):
    """The words of each `lora-comp` line are settings that the command has, with values that they may have."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if not line.startswith("lora-comp "):
                continue
            words = shlex.split(line, comments=True)[1:]
            name = cli._name(words)
            assert name, line
            module, function = cli.COMMANDS[name].function.split(":")
            hints = typing.get_type_hints(getattr(import_module(f"lora_comp.commands.{module}"), function))
            [schema] = [hint for key, hint in hints.items() if key != "return"]
            assert compose(schema, words[len(name.split()) :], name), line
