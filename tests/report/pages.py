"""The written page read back: its numbers and pictures, and what stands in their files."""

from __future__ import annotations

import csv
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """Numbers, pictures, links and text of the page; checks that tags are closed in order."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text: str):
        super().__init__()
        self.numbers: list[dict[str, str]] = []
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if "data-source" in attrs:
            self.numbers.append({**attrs, "text": ""})
        self.addresses += [attrs[k] for k in ("src", "href") if k in attrs]
        self.ids |= {attrs["id"]} if "id" in attrs else set()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "span" and self.numbers and not self.numbers[-1]["text"]:
            self.numbers[-1]["text"] = data
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def read(folder: Path, name: str = "report.html") -> Page:
    return Page((folder / name).read_text(encoding="utf-8"))


def look_up(root: Path, source: str):
    """What stands at "file#/a/b" of a JSON or CSV file."""
    name, _, pointer = source.partition("#")
    text = (root / name).read_text(encoding="utf-8")
    found = json.loads(text) if name.endswith(".json") else list(csv.DictReader(text.splitlines()))
    for key in pointer[1:].split("/"):
        key = key.replace("~1", "/").replace("~0", "~")
        found = found[int(key)] if isinstance(found, list) else found[key]
    return None if found == "" else found


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-gpu"]
