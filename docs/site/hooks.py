"""What mkdocs asks for: pages that are generated from the catalogue, and links that leave the folder of the docs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from qbridge.findings.catalogue.code import Code
from qbridge.targets.messages import Message
from qbridge.targets.registry import codes, messages

ROOT = Path(__file__).resolve().parents[2]
# A message that is searched for comes before pages that name a format often.
_FIRST = "---\nsearch:\n  boost: 8\n---\n\n"
# Files beside the docs that are pages of the site.
BESIDE = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
_SPECIAL = re.compile(r"([\\*_\[\]#|])")


class _Names(dict):  # type: ignore[type-arg]
    """A value that only a log has stands as its name."""

    def __missing__(self, key: str) -> str:
        return f"<{key}>"


def plain(text: str) -> str:
    """Text of the catalogue as Markdown that shows it as it is, with code where it has back quotes."""
    pieces = text.split("`")
    shown = [
        f"`{piece}`" if place % 2 else _SPECIAL.sub(r"\\\1", escape(piece)) for place, piece in enumerate(pieces)
    ]
    return "".join(shown)


def code(text: str) -> str:
    """Text in a code span, whatever quotes it has."""
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"


def recipe(message: Message) -> str:
    """The section of a message: what the engine prints is its heading."""
    names = _Names()
    lines = [f"## {code(' '.join(message.words.split()))}", ""]
    lines += [f"Printed by {message.origin} {message.versions}.", "", plain(message.cause.format_map(names)), ""]
    split = " --tp N" if message.split else ""
    commands = [f"qbridge check SRC --for {message.engine}{split} {message.check.format_map(names)}".rstrip()]
    for cure in message.cure:
        commands.append(
            f"qbridge convert SRC DST --to {cure.target} {cure.options.format_map(names)}".rstrip() + split
        )
    lines += ["```sh", *commands, "```", ""]
    if message.advice:
        lines += [plain(message.advice.format_map(names)), ""]
    lines += [f"Source: {plain(message.source)}", ""]
    return "\n".join(lines)


def engine_of(message: Message) -> str:
    """The engine whose page has a message: lmdeploy for lmdeploy-turbomind@0.18.0."""
    return message.engine.partition("@")[0].partition("-")[0]


def recipes(engine: str) -> str:
    """The page of the messages of one engine, one section for each text."""
    mine: dict[tuple[str, str], Message] = {}
    for message in messages():
        if engine_of(message) == engine:
            mine.setdefault((" ".join(message.words.split()), message.cause), message)
    words = "`SRC` is the checkpoint that was refused, `DST` a folder to write."
    head = f"{_FIRST}# Error messages of {engine}\n\n{words}\n\n"
    return head + "\n".join(map(recipe, mine.values()))


def entry(each: Code) -> str:
    """The section of one code of a finding."""
    lines = [f"## {each.code}: {plain(each.title)}", "", plain(each.what), "", plain(each.why), ""]
    lines += [f"- Example: {plain(each.example)}", f"- Way out: {plain(each.fix)}"]
    lines += [f"- `--allow {each.allow}` lets it pass."] if each.allow else []
    lines += [f"- Source: {plain(each.source)}", ""]
    return "\n".join(lines)


def all_codes() -> str:
    """The page of every code."""
    entries = sorted(codes().values(), key=lambda each: each.code)
    return "# Codes of findings\n\n`qbridge explain CODE` prints the same.\n\n" + "\n".join(map(entry, entries))


def engines() -> list[str]:
    """The engines that bring messages."""
    return sorted({engine_of(message) for message in messages()})


def index(named: Sequence[str]) -> str:
    """The page that leads to the recipes."""
    lines = [f"- [{name}]({name}.md)" for name in named]
    return (
        "# From an error message to a served model\n\n"
        "Type what the engine printed into the search: each message that qbridge knows is a heading, with its cause "
        "and commands to paste. `qbridge explain` does the same with a whole log "
        "([what it reads](../explain.md)).\n\n" + "\n".join(lines) + "\n- [codes of findings](codes.md)\n"
    )


def generated() -> Iterator[tuple[str, str]]:
    """(path, Markdown) of every page that no file has."""
    named = engines()
    yield "recipes/index.md", index(named)
    for name in named:
        yield f"recipes/{name}.md", recipes(name)
    yield "recipes/codes.md", all_codes()
    for path, file in BESIDE.items():
        yield path, (ROOT / file).read_text()


def at_home(markdown: str, page: str) -> str:
    """The Markdown with links out of the docs led to pages of the site, or left as names of files."""
    homes = {(ROOT / file).resolve(): path for path, file in BESIDE.items()}
    homes[(ROOT / "README.md").resolve()] = "index.md"
    base = ROOT if page in BESIDE else (ROOT / "docs" / page).parent

    def led(found: re.Match[str]) -> str:
        label, link = found[1], found[2]
        path, _, anchor = link.partition("#")
        if "://" in link or not path:
            return found[0]
        there = (base / path).resolve()
        up = "../" * page.count("/")
        if there in homes:
            return f"[{label}]({up}{homes[there]}{'#' + anchor if anchor else ''})"
        if there.is_relative_to(ROOT / "docs") and there.suffix == ".md":
            return f"[{label}]({up}{there.relative_to(ROOT / 'docs')}{'#' + anchor if anchor else ''})"
        if page.startswith("recipes/") or not there.exists():
            return found[0]
        return f"{label} (`{there.relative_to(ROOT)}`)"

    return _LINK.sub(led, markdown)


def spelled(nav: Sequence[Any]) -> list[Any]:
    """The navigation with every page of a folder in the place of `FOLDER/*`."""
    files = {str(file.relative_to(ROOT / "docs")) for file in (ROOT / "docs").glob("*/*.md")}
    pages = sorted(files | {path for path, _ in generated()})
    found: list[Any] = []
    for each in nav:
        if isinstance(each, dict):
            found.append({title: spelled(rest) if isinstance(rest, list) else rest for title, rest in each.items()})
        elif each.endswith("/*"):
            found += [page for page in pages if page.startswith(each[:-1]) and not page.endswith("/index.md")]
        else:
            found.append(each)
    return found


def named(nav: Sequence[Any]) -> Iterator[str]:
    """Every page of a navigation."""
    for each in nav:
        for entry in each.values() if isinstance(each, dict) else [each]:
            yield from named(entry) if isinstance(entry, list) else [entry]


def whole(nav: Sequence[Any]) -> list[Any]:
    """The navigation spelled out, with the pages that nobody has put into it yet at its end."""
    found = spelled(nav)
    there = {str(file.relative_to(ROOT / "docs")) for file in (ROOT / "docs").glob("**/*.md")}
    others = sorted(there - set(named(found)))
    return [*found, {"More": others}] if others else found


def on_config(config):  # type: ignore[no-untyped-def]
    """Spell the navigation out."""
    config.nav = whole(config.nav)
    return config


def on_files(files, config):  # type: ignore[no-untyped-def]
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for path, text in generated():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown, page, config, files):  # type: ignore[no-untyped-def]
    """Lead links home."""
    return at_home(markdown, page.file.src_uri)
