#!/usr/bin/env python3
"""Writes stubs for the macOS libraries that the workspace's crates link and for which zig has no symbol list.

usage: macos-stubs.py OUT < `cargo metadata`'s output

A linker needs a library's list of symbols, not the library. objc2's framework crates are generated from Apple's headers,
so the list for a framework is what its crate declares: a program that links against it imports nothing that Apple's
headers lack. The crate `libc` names libiconv, and no crate uses it: its list is empty, and an import from it fails the
link.
"""
import json
import pathlib
import re
import sys

EXTERN = re.compile(r'extern "C(?:-unwind)?" \{')
DECLARED = re.compile(r"\b(?:fn|static(?: mut)?) (\w+)\s*[(:]")
LINK_NAME = re.compile(r'#\[link_name = "([^"]+)"\]')
LINKED = re.compile(r'link\(name = "(\w+)", kind = "framework"\)')


def blocks(text):
    """The inside of every `extern "C" { … }`."""
    for start in EXTERN.finditer(text):
        depth, at = 1, start.end()
        while depth and at < len(text):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        yield text[start.end() : at]


def write(path, install_name, symbols):
    path.parent.mkdir(parents=True, exist_ok=True)
    exports = ""
    if symbols:
        listed = ", ".join(f"_{symbol}" for symbol in sorted(symbols))
        exports = f"exports:\n  - targets: [ arm64-macos ]\n    symbols: [ {listed} ]\n"
    path.write_text(
        f"--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\ninstall-name: '{install_name}'\n{exports}...\n"
    )


def main():
    out = pathlib.Path(sys.argv[1])
    write(out / "libiconv.tbd", "/usr/lib/libiconv.2.dylib", [])
    frameworks = {}
    for package in json.load(sys.stdin)["packages"]:
        source = pathlib.Path(package["manifest_path"]).parent / "src"
        if not package["name"].startswith("objc2-") or not source.is_dir():
            continue
        texts = [file.read_text() for file in sorted(source.rglob("*.rs"))]
        names = {name for text in texts for name in LINKED.findall(text)}
        symbols = set()
        for text in texts:
            for block in blocks(text):
                symbols |= set(DECLARED.findall(block)) | set(LINK_NAME.findall(block))
        for name in names:
            frameworks.setdefault(name, set()).update(symbols)
    for name, symbols in sorted(frameworks.items()):
        install_name = f"/System/Library/Frameworks/{name}.framework/Versions/A/{name}"
        write(out / f"{name}.framework" / f"{name}.tbd", install_name, symbols)
        print(f"{name}: {len(symbols)} symbols, from objc2's declarations")


main()
