"""The names that `modeling_qca.training` exports, and what importing it costs."""

import json
import subprocess
import sys

from modeling_qca import training


def test_every_exported_name_is_there():
    assert {name for name in training.__all__ if callable(getattr(training, name))} == set(training.__all__)


def test_import_loads_no_optional_library():
    code = (
        "import json, sys, modeling_qca.training\n"
        "print(json.dumps([name for name in ('matplotlib', 'gradio', 'peft', 'nltk') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
