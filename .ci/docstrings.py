"""Docstrings as the API reference shows them: for mkdocstrings, which reads them as Markdown.

In the source they are plain text: tables between rows of `=`, doctests without a fence, and sections that follow each
other without a blank line.
"""

import re
from typing import Any

import griffe

TABLE = re.compile(r"^=+ [= ]+\n.*\n=+ [= ]+$", re.M | re.S)  # from the first to the last row of =
DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1(?! *$).*)*", re.M)
SECTION = re.compile(r"(?<=\S)\n(?=(Args|Returns|Raises|Examples?):$)", re.M)


def markdown(text: str) -> str:
    text = TABLE.sub(lambda found: f"```text\n{found[0]}\n```", text)
    text = DOCTEST.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", text)
    return SECTION.sub("\n\n", text)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
