"""lora-comp COMMAND: one table of commands, each a function of its settings, imported when it is called.

`python -m lora_comp.run`, `.train`, `.report` and `.zoo` are the commands of these names.
"""

import sys
import typing
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import NamedTuple

from lora_comp.errors import LoraCompError
from lora_comp.program import RESUMES, STOPPED, report_errors


class Command(NamedTuple):
    """A function of one argument, a dataclass of settings, as "module:function". stopped: what Ctrl-C prints."""

    function: str
    help: str
    stopped: str = STOPPED


COMMANDS = {
    "encode": Command("encode:encode", "encode an image to a file, adapted to the image and to a task"),
    "decode": Command("decode:decode", "decode a file to an image"),
    "info": Command("info:info", "print what the header of a file says"),
    "run": Command("run:run", "evaluate a method on a data set, beside the plain codec", RESUMES),
    "train": Command("train:train", "train codecs, task adapters or task networks", RESUMES),
    "report table": Command("report:table", "print the table of a run in Markdown"),
    "report rates": Command("report:rates", "print the BD-rates of several runs in Markdown"),
    "report bench": Command("report:bench", "print ours against named peers in Markdown"),
    "report codecs": Command("report:codecs", "measure JPEG, WebP, AVIF, JPEG 2000 and ours on a folder of images"),
    "report curves": Command("curves:curves", "compare rate curves of codecs and adapters by real files", RESUMES),
    "report cards": Command("report:cards", "write the cards of the zoo from the metadata of its weights"),
    "zoo": Command("zoo:zoo", "list the weights that ship, and published checkpoints"),
    "zoo fetch": Command("zoo:fetch", "download a published checkpoint into the cache"),
    "import": Command("import_:import_", "convert a published checkpoint to weights of this package"),
}
HELP = ("--help", "-h")


def command(words: Sequence[str]) -> int:
    """Run the command that the words name; its exit code."""
    name = _name(words)
    stopped = COMMANDS[name].stopped if name else STOPPED
    return report_errors(partial(_run, name, words), stopped)


def _name(words: Sequence[str]) -> str | None:
    """The longest name of a command that the words begin with."""
    return next((name for n in (2, 1) if (name := " ".join(words[:n])) in COMMANDS), None)


def _run(name: str | None, words: Sequence[str]) -> None:
    if name is None:
        _without_command(words)
        return
    rest = words[len(name.split()) :]
    module, function = COMMANDS[name].function.split(":")
    run = getattr(import_module(f"lora_comp.commands.{module}"), function)
    [schema] = [hint for key, hint in typing.get_type_hints(run).items() if key != "return"]
    words_before_paths = rest[: rest.index("--")] if "--" in rest else rest
    if set(words_before_paths) & set(HELP):
        from lora_comp.usage import usage

        print(usage(name, schema, run.__doc__ or ""))
    else:
        from lora_comp.config import compose

        run(compose(schema, rest, name))


def _without_command(words: Sequence[str]) -> None:
    """Help for all commands, or for those that begin with a word; LoraCompError for other words."""
    asked = [word for word in words if word not in HELP]
    below = [name for name in COMMANDS if asked and name.split()[0] == asked[0]]
    if len(asked) < len(words) and (below or not asked):
        lines = [f"  lora-comp {name:15} {COMMANDS[name].help}" for name in below or COMMANDS]
        print("\n".join(["usage: lora-comp COMMAND [PATH ...] [SETTING=VALUE ...]", "", *lines, ""]))
        print("lora-comp COMMAND --help lists the settings of a command.")
        return
    if not asked:
        raise LoraCompError("a command is missing; lora-comp --help lists them")
    if below and len(asked) == 1:
        raise LoraCompError(f"{asked[0]} needs one of {', '.join(name.split()[1] for name in below)}; see --help")
    from lora_comp.config import suggestion

    wrong = " ".join(asked[:2] if below else asked[:1])
    known = below or sorted({name.split()[0] for name in COMMANDS})
    raise LoraCompError(f"there is no command {wrong!r}{suggestion(wrong, known) or '; lora-comp --help lists them'}")


def main() -> None:
    sys.exit(command(sys.argv[1:]))


if __name__ == "__main__":
    main()
