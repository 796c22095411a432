"""The requirements of some extras of pyproject.toml, one to a line, without the package itself."""

import sys
from pathlib import Path

import tomllib

extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
print("\n".join(requirement for name in sys.argv[1:] for requirement in extras[name]))
