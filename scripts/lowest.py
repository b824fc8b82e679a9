"""Install the lowest versions that pyproject.toml allows and run the light tests on them.

.venv/bin/python scripts/lowest.py                          the base dependencies
.venv/bin/python scripts/lowest.py transformers openvino    and these extras'
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIGHT_TESTS = (
    "test_energy.py",
    "test_run.py",
    "test_cli.py",
    "meter",
    "monitor",
    "workload",
    "catalog",
    "artifact",
    "report",
)
TEST_TOOLS = ("pytest", "pytest-timeout", "hypothesis")  # at their newest: they are not what is tried


def lowest(requirement: str) -> str:
    """``numpy>=1.26`` → ``numpy==1.26``; brackets of extras stay."""
    return re.sub(r"(>=|~=)", "==", requirement)


def main(extras: list[str]) -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    known = project["optional-dependencies"]
    if unknown := [extra for extra in extras if extra not in known]:
        print(f"lowest: no extra {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    # An extra's own requirements may want newer base libraries; pip then chooses those.
    base = [line if extras else lowest(line) for line in project["dependencies"]]
    chosen = dict.fromkeys(["quality", *extras])  # the light tests judge text
    pins = [*base, *(lowest(line) for extra in chosen for line in known[extra])]
    with tempfile.TemporaryDirectory(prefix="negawatt-lowest-") as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        pip = [python, "-m", "pip", "install", "--quiet"]
        print("lowest:", " ".join(pins), flush=True)
        subprocess.run([*pip, *pins, *TEST_TOOLS], check=True)
        subprocess.run([*pip, "--no-deps", "--editable", ROOT], check=True)
        subprocess.run([python, "-m", "pip", "check"], check=True)
        tests = [path for name in LIGHT_TESTS if (path := ROOT / "tests" / name).exists()]
        return subprocess.run(
            [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
