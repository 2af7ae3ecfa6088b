"""What a worker needs to know that a model embeds, and how, is fetched with it."""

from pathlib import Path

from quire_worker.fetch import selection
from tests.worker.fetch.conftest import Fetch, Site, contents, model

NAMES = ["config.json", "tokenizer.json", "model.safetensors"]


def test_the_files_of_sentence_transformers_are_fetched_and_nothing_else_from_folders() -> None:
    steps = ["modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "2_Dense/config.json"]
    others = ["onnx/model.onnx", "openvino/config.json", "1_Pooling/model.py", "a/1_Pooling/config.json"]

    assert selection.needed([*NAMES, *steps, *others], None) == sorted([*NAMES, *steps])


async def test_a_web_folder_is_asked_for_them_only_if_it_says_it_has_them(site: Site, fetch: Fetch, dest: Path) -> None:
    steps = dict.fromkeys(("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"), b"{}")
    files = {**model(), **steps}
    site.files |= {f"/m/{name}": data for name, data in files.items()}

    await fetch(uri=f"{site.url}/m")

    assert contents(dest) == files
