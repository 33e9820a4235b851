"""Python programs in processes of their own, where nothing is loaded yet."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

WITHOUT_PACKAGE = "import sys; sys.modules['modeling_qca'] = None  # importing it raises ImportError\n"


def run(program: str, *arguments: object, folder: Path, without_package: bool = False) -> str:
    """What `program` printed in `folder`, with a module cache of its own there. It must succeed and be silent."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE * without_package + textwrap.dedent(program), *map(str, arguments)],
        env=environment | {"HF_HOME": str(folder / "hf_home")},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout
