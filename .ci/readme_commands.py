"""The commands of a Markdown file, one to a line: the lines of its ```sh blocks, without comments."""

import re
import sys
from pathlib import Path

for block in re.findall(r"^```sh\n(.*?)^```$", Path(sys.argv[1]).read_text(), re.M | re.S):
    for line in block.replace("\\\n", " ").splitlines():
        if command := re.sub(r"\s+# .*", "", line).strip():
            print(command)
