"""A published checkpoint loads without the package, after another push or save, and beside newer releases."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fresh_process import WITHOUT_PACKAGE
from helpers.hub.connection import connected
from helpers.hub.local_hub import LocalHub
from helpers.hub.publishing import Published, run_pushes
from helpers.tiny import tiny_processor
from huggingface_hub import HfApi
from PIL import Image

from modeling_qca import QCAForVisualQuestionAnswering
from modeling_qca.hub_card.card import Release
from modeling_qca.hub_card.publish import push
from modeling_qca.hub_card.upload_folder import write_upload_folder

pytest_plugins = ["helpers.hub.fixtures"]

QUESTIONS = ["what color is the cube", "is there a ring", "how many balls left of the cube"]
# Loads through every Auto class and the pipeline and prints the outputs.
LOAD = """
    import json, sys, torch
    from transformers import AutoConfig, AutoModel, AutoModelForVisualQuestionAnswering, AutoProcessor, pipeline
    repo_id, revision, photo, *questions = sys.argv[1:]
    source = {"revision": revision, "trust_remote_code": True}
    config = AutoConfig.from_pretrained(repo_id, **source)
    base = AutoModel.from_pretrained(repo_id, **source)
    model = AutoModelForVisualQuestionAnswering.from_pretrained(repo_id, **source).eval()
    inputs = AutoProcessor.from_pretrained(repo_id, **source)(images=[photo], text=questions)
    ask = pipeline("visual-question-answering", model=repo_id, **source)
    with torch.no_grad():
        print(json.dumps({
            "module": type(model).__module__,
            "classes": [type(config).__name__, type(base).__name__, type(model).__name__],
            "logits": model(**inputs).logits.tolist(),
            "query": base.eval()(**inputs).query.tolist(),
            "answers": [answers[0]["answer"] for answers in ask(photo, questions)],
        }))
"""


def expected(published: Published) -> dict[str, Any]:
    """The outputs of the package for the local checkpoint."""
    model = QCAForVisualQuestionAnswering.from_pretrained(published.checkpoint).eval()
    inputs = tiny_processor()(images=Image.open(published.photo), text=QUESTIONS)
    with torch.no_grad():
        logits, query = model(**inputs).logits, model.qca(**inputs).query
    answers = [model.config.id2label[answer] for answer in logits.argmax(-1).tolist()]
    return {"logits": logits, "query": query, "answers": answers}


def load_elsewhere(published: Published, repo_id: str | Path, revision: str) -> dict[str, Any]:
    arguments = (repo_id, revision, published.photo, *QUESTIONS)
    return json.loads(published.client.output(LOAD, *arguments, before=WITHOUT_PACKAGE).splitlines()[-1])


def assert_same(loaded: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert loaded["module"].startswith("transformers_modules.")
    for name in ("logits", "query"):
        torch.testing.assert_close(torch.tensor(loaded[name]), wanted[name], atol=1e-5, rtol=0)
    assert loaded["answers"] == wanted["answers"]


def test_pushed_tag_loads_without_the_package_with_the_same_logits(published: Published) -> None:
    loaded = load_elsewhere(published, "user/model", "v1")
    assert_same(loaded, expected(published))
    assert loaded["classes"] == ["QCAConfig", "QCAModel", "QCAForVisualQuestionAnswering"]


@pytest.mark.slow
def test_examples_of_the_card_run(published: Published) -> None:
    card = published.hub.read("user/model", "README.md", "v1").decode()
    remote, installed, as_pipeline, _ = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    at_photo = f"import shutil; shutil.copyfile({str(published.photo)!r}, 'photo.jpg')\n"
    end = "print(heat_maps[0].shape, type(model).__module__)"
    printed = published.client.output(at_photo + remote + as_pipeline + installed + end)
    assert printed.count("'answer'") == 9
    assert "torch.Size([2, 4, 4]) modeling_qca.modeling_qca" in printed


REPUSH = """
    import sys
    from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor
    source = {"revision": "v1", "trust_remote_code": True}
    for auto in (AutoModelForVisualQuestionAnswering, AutoProcessor):
        part = auto.from_pretrained("user/model", **source)
        part.save_pretrained(sys.argv[1])
        part.push_to_hub("user/fork")
"""


def upload(hub: LocalHub, cache: Path, folder: Path, repo_id: str, tag: str) -> None:
    with connected(hub, cache):
        HfApi().create_repo(repo_id, exist_ok=True)
        HfApi().create_tag(repo_id, tag=tag, revision=HfApi().upload_folder(repo_id=repo_id, folder_path=folder).oid)


@pytest.mark.slow
def test_remote_checkpoint_loads_after_another_push(published: Published, tmp_path: Path) -> None:
    published.client.output(REPUSH, tmp_path, before=WITHOUT_PACKAGE)
    assert_same(load_elsewhere(published, "user/fork", "main"), expected(published))


@pytest.mark.slow
def test_remote_checkpoint_loads_after_another_save(published: Published, tmp_path: Path) -> None:
    published.client.output(REPUSH, tmp_path / "saved", before=WITHOUT_PACKAGE)
    assert_same(load_elsewhere(published, tmp_path / "saved", "main"), expected(published))


@pytest.mark.slow
def test_older_tag_loads_after_a_class_was_renamed(published: Published, folder: Path, tmp_path: Path) -> None:
    write_upload_folder(published.checkpoint, folder, Release("user/model"))
    for path in [*folder.glob("*.py"), folder / "config.json"]:
        path.write_text(path.read_text().replace("QCAForVisualQuestionAnswering", "QCAForAnswering"))
    upload(published.hub, tmp_path / "cache", folder, "user/model", "v2")
    older, newer = (load_elsewhere(published, "user/model", tag) for tag in ("v1", "v2"))
    assert (older["classes"][2], newer["classes"][2]) == ("QCAForVisualQuestionAnswering", "QCAForAnswering")
    assert_same(older, expected(published))
    assert_same(newer, expected(published))


OLD = ("pytorch_model.bin", "training_args.bin", "model-00001-of-00002.safetensors", "old_qca.py")
OLD += ("adapter_config.json", "results.json", "overlay.png")


def test_push_replaces_code_and_weights_and_keeps_other_files(
    checkpoint: Path, tmp_path: Path, local_hub: LocalHub
) -> None:
    old = tmp_path / "old"
    (old / "extra").mkdir(parents=True)
    for name in (*OLD, "NOTICE"):
        (old / name).write_text(name)
    (old / "extra" / "weights.bin").write_text("not ours")
    upload(local_hub, tmp_path / "cache", old, "user/model", "v0")
    run_pushes(local_hub, tmp_path / "cache", (checkpoint, "user/model", {}))
    planned = push(checkpoint, "user/model", dry_run=True).files
    assert set(local_hub.files("user/model")) == planned.keys() | {".gitattributes", "NOTICE", "extra/weights.bin"}
