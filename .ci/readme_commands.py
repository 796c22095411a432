"""The commands of Markdown files, one to a line: the lines of their ```sh blocks, without comments, each once.

Blocks marked ```sh are run by .ci/run as they stand; blocks marked ```bash are shown only.
"""

import re
import sys
from pathlib import Path


def commands(text: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.sub(r"(^|\s+)# .*", "", line).strip())]


if __name__ == "__main__":
    found = [command for page in sys.argv[1:] for command in commands(Path(page).read_text())]
    print("\n".join(dict.fromkeys(found)))
