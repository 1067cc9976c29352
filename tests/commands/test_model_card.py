"""The model card of an output: metadata that holds, what was done, and the source's text below it."""

from __future__ import annotations

import json
import shlex
import time

import pytest
import yaml

import qbridge
from qbridge.commands.front_matter import FrontMatter, UnreadableMetadataError
from support import cli, copy_fixture, edit_json

LICENSE = "license: other\nlicense_name: qwen\nlicense_link: LICENSE\n"
CARD = f"""---
{LICENSE}library_name: transformers
base_model: meta-llama/Llama-2-7b  # the original
quantized_by: somebody
tags:
- llama
- compressed-tensors
- w8a8
- vllm
quantization: llm-compressor
model-index:
- name: a
  results: []
---
# A model

```python
from vllm import LLM
LLM("model", quantization="compressed_tensors")
```

1. Serve:

   ```sh
   vllm serve model --max-model-len 512
   ```

~~~
print("nothing")
~~~
"""


@pytest.fixture
def src(tmp_path):
    return copy_fixture(tmp_path)


def converted(src, target="lmdeploy", **options):
    """The card that a conversion writes, and the report."""
    report = qbridge.convert(src, src.parent / "dst", target, **options)
    return (src.parent / "dst/README.md").read_text(), report


def metadata_of(card):
    """What the Hub reads of a card."""
    return yaml.safe_load(card.split("---\n")[1])


def notes(report):
    return [finding for finding in report.findings if finding.code in ("QB048", "QB055")]


def test_metadata_hold_for_the_output_and_the_rest_stays(src):
    (src / "README.md").write_text(CARD)
    card, report = converted(src)
    metadata = metadata_of(card)
    assert metadata["library_name"] == "lmdeploy" and metadata["quantization"] == "smooth-quant"
    assert metadata["tags"] == ["llama", "smooth-quant", "w8a8"]
    assert metadata["base_model_relation"] == "quantized" and metadata["quantized_by"] == "somebody"
    assert f"---\n{LICENSE}" in card and "base_model: meta-llama/Llama-2-7b  # the original\n" in card
    assert metadata["model-index"] == [{"name": "a", "results": []}]
    assert not notes(report)


def test_it_says_what_was_done_and_how_to_serve_it(src):
    (src / "README.md").write_text(CARD)
    card, report = converted(src)
    assert f"```sh\nqbridge convert SRC DST --to {report.target}\n```" in card
    assert f"```\n{report.serve.replace(report.destination, 'DST')}\n```" in card
    assert "| exactness | 14 reversible |" in card and "| passes | recast x 14 |" in card
    assert str(src.parent) not in card


def test_stale_code_is_marked_above_its_block_and_other_code_is_not(src):
    (src / "README.md").write_text(CARD)
    card, _ = converted(src)
    assert "lines 1" not in card and "line 2 of the code below is about the source" in card
    marked = [line for line in card.splitlines() if "Not for this checkpoint" in line]
    assert len(marked) == 2 and marked[1].startswith("   > ")
    body = CARD.split("---\n", 2)[2]
    assert [line for line in card.splitlines() if line.strip()][-len(body.split("\n")) :]
    assert all(line in card.splitlines() for line in body.splitlines())


def test_nothing_is_stale_where_the_format_stays(src):
    (src / "README.md").write_text(CARD)
    card, _ = converted(src, "vllm")
    metadata = metadata_of(card)
    assert metadata["library_name"] == "transformers" and metadata["tags"] == metadata_of(CARD)["tags"]
    assert "Not for this checkpoint" not in card and card.endswith(CARD.split("---\n", 2)[2])


def test_a_dense_output_is_not_called_quantized(src):
    text = CARD.replace("- w8a8", "- w8a8\n- 8-bit\n- quantized")
    text = text.replace("tags:", "base_model_relation: quantized\ntags:")
    (src / "README.md").write_text(text)
    metadata = metadata_of(converted(src, "dense")[0])
    assert metadata["tags"] == ["llama", "vllm"]
    assert "base_model_relation" not in metadata and "quantization" not in metadata


def test_a_model_without_a_card_gets_one(src):
    card, report = converted(src)
    assert metadata_of(card) == {"library_name": "lmdeploy", "tags": ["smooth-quant"]}
    assert "| exactness |" in card and "follows" not in card and not notes(report)


def test_same_bytes_wherever_it_is_written_and_done_is_done(src, tmp_path):
    (src / "README.md").write_text(CARD)
    first, _ = converted(src)
    (tmp_path / "elsewhere").mkdir()
    qbridge.convert(src.rename(tmp_path / "moved"), tmp_path / "elsewhere/out", "lmdeploy")
    assert (tmp_path / "elsewhere/out/README.md").read_text() == first
    assert qbridge.convert(tmp_path / "moved", tmp_path / "dst", "lmdeploy").already_done


def test_other_words_for_the_same_output_and_edits_of_the_card_leave_it_done(src, tmp_path):
    converted(src, tp=2, source="llm-compressor")
    assert qbridge.convert(src, tmp_path / "dst", "lmdeploy", allow=["rounded"]).already_done
    (tmp_path / "dst/README.md").write_text("edited")
    assert qbridge.convert(src, tmp_path / "dst", "lmdeploy").already_done
    assert (tmp_path / "dst/README.md").read_text() == "edited"
    (tmp_path / "dst/README.md").unlink()
    with pytest.raises(qbridge.QBridgeError):
        qbridge.convert(src, tmp_path / "dst", "lmdeploy")


@pytest.mark.parametrize("text", [CARD, CARD.replace("\n", "\r\n"), "\ufeff" + CARD, "no metadata\n", "", "---\n"])
def test_restore_gives_the_card_of_the_source_back(src, tmp_path, text):
    (src / "README.md").write_bytes(text.encode())
    card, _ = converted(src)
    assert "qbridge convert" in card and ("\r\n" in text) == (b"\r\n" in (tmp_path / "dst/README.md").read_bytes())
    assert qbridge.verify(src, tmp_path / "dst").same
    qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert (tmp_path / "back/README.md").read_bytes() == text.encode()
    assert qbridge.restore(tmp_path / "dst", tmp_path / "back").already_done


def test_restore_gives_no_card_back_where_there_was_none(src, tmp_path):
    converted(src)
    qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert not (tmp_path / "back/README.md").exists()
    (tmp_path / "dst/README.md").write_text("somebody's own")
    qbridge.restore(tmp_path / "dst", tmp_path / "again")
    assert (tmp_path / "again/README.md").read_text() == "somebody's own"


def test_a_manifest_that_lies_about_the_card_is_no_crash(src, tmp_path):
    converted(src)
    for lie in (5, [], {}, ["../x"], ["config.json", "model.safetensors"], [["README.md"]], "text", None):
        edit_json(tmp_path / "dst/qbridge.json", lambda value, lie=lie: value["source"].update(added=lie))
        qbridge.restore(tmp_path / "dst", tmp_path / "back", overwrite=True)
        assert (tmp_path / "back/README.md").exists() and qbridge.verify(src, tmp_path / "back").same


def test_a_second_conversion_replaces_what_the_first_one_said(src, tmp_path):
    (src / "README.md").write_text(CARD)
    first, _ = converted(src)
    qbridge.convert(tmp_path / "dst", tmp_path / "next", "compressed-tensors")
    card = (tmp_path / "next/README.md").read_text()
    assert card.count("Converted by qbridge") == 1 == first.count("Converted by qbridge")
    assert metadata_of(card)["tags"] == ["llama", "compressed-tensors", "w8a8"]
    assert "quantization: compressed-tensors\n" in card
    assert "Not for this checkpoint" not in card and card.endswith(CARD.split("---\n", 2)[2])


def test_licences_and_other_files_are_carried_over(src, tmp_path):
    for name in ("LICENSE", "NOTICE.txt"):
        (src / name).write_bytes(b"terms\r\n\xff")
    converted(src)
    for name in ("LICENSE", "NOTICE.txt"):
        assert (tmp_path / "dst" / name).read_bytes() == b"terms\r\n\xff"


def test_without_a_card_the_source_s_is_carried_over(src, tmp_path):
    (src / "README.md").write_text(CARD)
    done = cli("convert", src, tmp_path / "dst", "--to", "lmdeploy", "--no-card")
    assert done.returncode == 0 and "QB048" in done.stderr
    assert (tmp_path / "dst/README.md").read_text() == CARD
    (src / "README.md").unlink()
    qbridge.convert(src, tmp_path / "bare", "lmdeploy", card=False)
    assert not (tmp_path / "bare/README.md").exists()


def test_the_command_in_the_card_has_the_options_that_matter(src, tmp_path):
    options = ("--tp", "2", "--from", "llm-compressor", "--allow", "rounded", "--max-shard-size", "300kB")
    cli("convert", src, tmp_path / "dst", "--to", "lmdeploy", *options, "--jobs", "1")
    card = (tmp_path / "dst/README.md").read_text()
    line = next(line for line in card.splitlines() if line.startswith("qbridge convert SRC DST"))
    assert "--jobs" not in line
    words = [str({"SRC": src, "DST": tmp_path / "again"}.get(word, word)) for word in shlex.split(line)[1:]]
    assert cli(*words).returncode == 0
    for file in (tmp_path / "dst").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)
HOSTILE = {
    "an alias bomb": BOMB,
    "an object": "base_model: !!python/object/apply:os.system ['touch executed']\n",
    "a name of Python": "x: !!python/name:os.system\n",
    "a tag": "base_model: !mine x\n",
    "an anchor": "base_model: &x y\n",
    "a merge": "<<: {a: b}\n<<: *a\n",
    "a key twice": "tags: [a]\ntags: [b]\n",
    "no mapping": "- a\n- b\n",
    "a mapping in a line": "{a: b}\n",
    "no YAML": "a: [\n",
    "a tab": "a:\n\t- b\n",
    "control characters": "a: \x1b[2J\n",
    "brackets": "a: " + "[" * 50_000 + "\n",
    "dashes": "a:\n" + "- " * 50_000 + "\n",
    "questions": "? " * 20_000 + "\n",
    "a key that is a list": "? [a, b]\n: c\n",
    "two documents": "a: b\n--- c\n",
    "a directive": "%YAML 9.9\n",
    "tags of tags": "tags:\n- [a]\n",
    "tags that are a mapping": "tags: {a: b}\n",
    "a library of two levels": "library_name: {a: b}\n",
    "much": "a: b\n" + "# comment\n" * 20_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_metadata_that_cannot_be_changed_safely_stay_byte_for_byte(src, tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = f"---\n{HOSTILE[kind]}---\n# A model\n"
    (src / "README.md").write_text(text)
    start = time.monotonic()
    _, report = converted(src)
    assert time.monotonic() - start < 20
    assert (tmp_path / "dst/README.md").read_text() == text
    assert [finding.code for finding in notes(report)] == ["QB055"] and notes(report)[0].facts
    assert notes(report)[0].severity is qbridge.Severity.NOTE
    assert not (tmp_path / "executed").exists()
    qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert (tmp_path / "back/README.md").read_text() == text


@pytest.mark.parametrize("data", [b"\xff\xfe" + bytes(100), b"---\na: \xff\n---\n", b"# much\n" * 1_500_000])
def test_a_card_that_is_no_text_or_large_stays_as_it_is(src, tmp_path, data):
    (src / "README.md").write_bytes(data)
    report = qbridge.convert(src, tmp_path / "dst", "lmdeploy")
    assert (tmp_path / "dst/README.md").read_bytes() == data
    assert [finding.code for finding in notes(report)] == ["QB055"]


def test_a_folder_by_the_name_of_the_card_is_carried_over(src, tmp_path):
    (src / "README.md").mkdir()
    (src / "README.md/notes.txt").write_text("notes")
    report = qbridge.convert(src, tmp_path / "dst", "lmdeploy")
    assert (tmp_path / "dst/README.md/notes.txt").read_text() == "notes" and notes(report)[0].code == "QB055"


def test_names_in_the_card_are_text(src, tmp_path):
    hostile = "</script><img src=x onerror=alert(1)>|`\n# x [a](http://b) \x1b[31m\u202e"
    edit_json(src / "config.json", lambda config: config.update(architectures=["LlamaForCausalLM", hostile]))
    qbridge.convert(src, tmp_path / "first", "lmdeploy")
    edit_json(src / "config.json", lambda config: config.update(architectures=[hostile]))
    try:
        card, _ = converted(src, "compressed-tensors")
    except qbridge.QBridgeError:
        return
    own = card.split("<!-- qbridge")[1]
    assert "<img" not in own.replace("\\<", "") and "\x1b" not in own and "\u202e" not in own
    assert "\n# x" not in own


@pytest.mark.parametrize(
    "value", ["yes", "null", "- a", "a: b", "'", '"', "#", "a #b", "\u202e", "\x85", "\u2028", "{", "é", "😀", "a\nb"]
)
def test_values_that_are_written_are_read_back(value):
    changed = FrontMatter.of("---\na: b\nc: d\n---\nbody").changed({"tags": [value, "x"], "a": value})
    read = yaml.safe_load(changed.text.split("---\n")[1])
    assert read == {"a": value, "c": "d", "tags": [value, "x"]} and changed.body == "body"


def test_metadata_are_changed_where_they_stand():
    text = "---\n# first\ntags:\n  - a\n# about b\nb: |\n  x\n  # y\n\nc: {d: [e]}\n---\n# body\n"
    changed = FrontMatter.of(text).changed({"tags": ["n"], "b": None})
    assert changed.text + changed.body == "---\n# first\ntags:\n- n\n# about b\n\nc: {d: [e]}\n---\n# body\n"
    with pytest.raises(UnreadableMetadataError):
        FrontMatter.of(text).texts("c")


def test_the_manifest_names_what_was_added(src, tmp_path):
    converted(src)
    source = json.loads((tmp_path / "dst/qbridge.json").read_text())["source"]
    assert source["added"] == ["README.md"] and "README.md" not in source["files"]
