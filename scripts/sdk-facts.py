#!/usr/bin/env python3
"""Writes the tables in tools/shoes-vz-macos/facts from what other projects read from Apple's SDK.

There are two independent sources, fetched by name through the configured pip and cargo: the metadata of
PyObjC's wrappers, and the crates objc2, vmnet and libc. `check-api` compares the stand-in for Virtualization
with both. What no package has (macOS versions of enums, Swift's names, vmnet's and clonefile's Swift forms)
is in tools/shoes-vz-macos/facts/by-hand.tsv, which this program does not change.

    sdk-facts.py            writes the tables
    sdk-facts.py --check    compares the committed tables with the packages; exit code 1 if they differ
"""

import argparse
import difflib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

FACTS = pathlib.Path(__file__).resolve().parents[1] / "tools" / "shoes-vz-macos" / "facts"
PYOBJC = "12.2.2"
OBJC2 = "0.3.2"
VMNET = "0.10.0"
LIBC = "0.2.177"

# The types of AppKit that a window with a VZVirtualMachineView needs. Of Virtualization all are taken.
APPKIT = {
    "NSResponder", "NSView", "NSWindow", "NSApplication", "NSEvent", "NSGraphicsContext", "NSApplicationDelegate",
    "NSWindowDelegate", "NSWindowStyleMask", "NSBackingStoreType", "NSApplicationActivationPolicy",
    "NSAutoresizingMaskOptions", "NSEventType", "NSEventModifierFlags",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed tables, write nothing")
    check = parser.parse_args().check

    with tempfile.TemporaryDirectory(prefix="sdk-facts-") as place:
        place = pathlib.Path(place)
        crates = vendor(place)
        tables = {
            "pyobjc-virtualization.tsv": pyobjc(
                place, "Virtualization", "metadata/raw/arm64-26.5.fwinfo", lambda name: True),
            "pyobjc-appkit.tsv": pyobjc(
                place, "Cocoa", "metadata/raw.AppKit/arm64-26.5.fwinfo", lambda name: name in APPKIT),
            "objc2-virtualization.tsv": objc2(crates, "objc2-virtualization", lambda name: True),
            "objc2-appkit.tsv": objc2(crates, "objc2-app-kit", lambda name: name in APPKIT),
            "crates-c.tsv": c_functions(crates),
        }

    stale = 0
    for name, text in tables.items():
        path = FACTS / name
        committed = path.read_text() if path.exists() else ""
        if committed == text:
            continue
        stale += 1
        if check:
            difference = list(difflib.unified_diff(
                committed.splitlines(), text.splitlines(), f"committed {name}", f"{name} from the packages",
                lineterm="", n=0))
            print("\n".join(difference[:40]))
        else:
            path.write_text(text)
            print(f"wrote {name}: {text.count(chr(10))} lines")
    if check and stale:
        sys.exit(f"{stale} of {len(tables)} tables differ from the packages; run {sys.argv[0]}")
    print(f"{len(tables)} tables match the packages" if check or not stale else "done")


# --- fetching ---------------------------------------------------------------------------------------------------


def pyobjc_metadata(place, package, member):
    """Returns the metadata file of a source package. Building it needs a Mac, so pip fails, but keeps the files that
    it has unpacked."""
    unpacked = place / package
    unpacked.mkdir()
    run = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-clean", "--no-deps", "--no-build-isolation", "--no-binary",
         ":all:", "--disable-pip-version-check", "--dest", str(unpacked),
         f"pyobjc-framework-{package}=={PYOBJC}"],
        env={**os.environ, "TMPDIR": str(unpacked)}, capture_output=True, text=True, check=False)
    found = list(unpacked.glob(f"*/*/{member}"))
    if len(found) != 1:
        sys.exit(f"pip left {len(found)} files {member} of pyobjc-framework-{package}:\n{run.stdout}{run.stderr}")
    lines = found[0].read_text().splitlines()
    return json.loads("\n".join(line for line in lines if not line.startswith("//")))


def vendor(place):
    """Downloads the crates' sources, by a manifest that names them."""
    package = place / "crates"
    (package / "src").mkdir(parents=True)
    (package / "src" / "lib.rs").write_text("")
    (package / "Cargo.toml").write_text(
        '[package]\nname = "facts"\nversion = "0.0.0"\nedition = "2021"\n[workspace]\n[dependencies]\n'
        f'objc2-virtualization = "={OBJC2}"\nobjc2-app-kit = "={OBJC2}"\nvmnet = "={VMNET}"\nlibc = "={LIBC}"\n')
    run = subprocess.run(
        ["cargo", "vendor", "--quiet", "vendor"], cwd=package, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.exit(f"cargo vendor failed:\n{run.stderr}")
    return package / "vendor"


# --- PyObjC -----------------------------------------------------------------------------------------------------


def pyobjc(place, package, member, wanted):
    metadata = pyobjc_metadata(place, package, member)
    definitions = metadata["definitions"]
    sdk = metadata["sdk"].rsplit("/", 1)[1]
    lines = []

    def methods(owner, it):
        getters = {}
        for prop in it["properties"]:
            named = [pair[1] for pair in prop["attributes"] if isinstance(pair, list) and pair[0] == "getter"]
            getters[named[0] if named else prop["name"]] = prop
        for method in it["methods"]:
            flags = []
            if "required" in method:
                flags.append("required" if method["required"] else "optional")
            if not method["args"] and method["selector"] in getters:
                flags.append("property")
                if "readonly" in getters[method["selector"]]["attributes"]:
                    flags.append("readonly")
            if "deprecated" in method:
                flags.append("deprecated=" + method["deprecated"])
            yield row(
                "method", owner, "+" if method["class_method"] else "-", method["selector"],
                method.get("introduced", "-"), " ".join(flags) or "-", method["retval"]["type_name"],
                *[argument["type_name"] for argument in method["args"]])

    for name, it in definitions["classes"].items():
        if wanted(name):
            lines.append(row("class", name, it["super"] or "-", " ".join(sorted(it["protocols"])) or "-"))
            lines.extend(methods(name, it))
    for name, it in definitions["formal_protocols"].items():
        if wanted(name):
            lines.append(row("protocol", name, " ".join(sorted(it["implements"])) or "-"))
            lines.extend(methods(name, it))
    for name, it in definitions["enum_type"].items():
        if wanted(name):
            lines.append(row("enum", name, it["type"]))
    for name, it in definitions["enum"].items():
        if wanted(it.get("enum", "")):
            lines.append(row("case", it["enum"], name, str(it["value"])))
    for name, it in definitions["externs"].items():
        if package == "Virtualization":
            lines.append(row("extern", name, it.get("introduced", "-"), it["type_name"]))
    return table(
        f"pyobjc-framework-{package} {PYOBJC} on PyPI, {member} (MIT); read out of {sdk}",
        ["class name superclass protocols", "protocol name inherited",
         "method owner ± selector introduced flags result arguments…", "enum name encoding", "case enum name value",
         "extern name introduced type"],
        lines)


# --- objc2 ------------------------------------------------------------------------------------------------------


def objc2(crates, crate, wanted):
    lines = []
    for path in sorted((crates / crate / "src" / "generated").glob("*.rs")):
        lines.extend(objc2_file(strip_comments(path.read_text()), wanted))
    return table(
        f"crate {crate} {OBJC2} (Zlib OR Apache-2.0 OR MIT); its types are Rust's, an `Option` is a nullable",
        ["class name superclass flags", "protocol name inherited flags",
         "method owner ± selector flags result arguments…", "enum name type", "case enum name value"],
        lines)


def objc2_file(text, wanted):
    for body in blocks(text, r"extern_class!\("):
        name = re.search(r"pub struct (\w+)", body)[1]
        parents = re.search(r"super\(([^)]*)\)", body)[1].split(",")
        if wanted(name):
            flags = "main-thread" if "MainThreadOnly" in body else "-"
            sendable = re.search(rf"unsafe impl Send for {name}\b", text)
            yield row("class", name, parents[0].strip(), " ".join(
                [flag for flag in (flags, "sendable" if sendable else "-") if flag != "-"]) or "-")
    for body in blocks(text, r"extern_protocol!\("):
        name, parents = re.search(r"pub unsafe trait (\w+)\s*(?::([^{]*))?\{", body).groups()
        if wanted(name):
            inherited = [parent.strip() for parent in (parents or "").split("+")]
            flags = "main-thread" if "MainThreadOnly" in inherited else "-"
            inherited = " ".join(parent for parent in inherited if parent and parent != "MainThreadOnly")
            yield row("protocol", name, inherited or "-", flags)
            yield from objc2_methods(name, body)
    for match in re.finditer(r"\nimpl (\w+) \{\s*extern_methods!\(", text):
        if wanted(match[1]):
            yield from objc2_methods(match[1], balanced(text, match.end() - 1))
    for match in re.finditer(r"pub struct (\w+)\(pub (\w+)\);", text):
        name = match[1]
        if not wanted(name):
            continue
        # What has no cases is a string constant's type, not an enum.
        constants = re.search(rf"impl {name}(?:: \w+)? \{{", text)
        if not constants:
            continue
        body = balanced(text, constants.end() - 1)
        yield row("enum", name, match[2])
        for alias, rest in re.findall(r'#\[doc\(alias = "(\w+)"\)\](.*?);', body, re.S):
            value = re.search(r"const \w+(?:: Self)? = (?:Self\()?([^)]*)\)?$", rest.strip(), re.S)[1]
            yield row("case", name, alias, str(constant(value)))


def objc2_methods(owner, body):
    for match in re.finditer(r"method\(([^)]*)\)\)\](.*?)fn (\w+)(?:<[^>]*>)?\(", body, re.S):
        selector, attributes = match[1], match[2]
        end = match.end() - 1
        arguments = balanced(body, end)
        result = re.match(r"\s*(?:->\s*(.*?))?\s*(?:where\b.*?)?;", body[end + len(arguments) + 2:], re.S)[1]
        before = body[:match.start()].rsplit(";", 1)[-1]
        arguments = [argument for argument in split(arguments) if argument]
        instance = bool(arguments) and (arguments[0] == "&self" or arguments[0].startswith("this:"))
        types = [argument.split(":", 1)[1].strip() for argument in arguments[instance:]]
        types = [kind for kind in types if kind != "MainThreadMarker"]
        optional = "#[optional]" in before or "#[optional]" in attributes
        yield row(
            "method", owner, "-" if instance else "+", selector.replace(":_", ":"), "optional" if optional else "-",
            squeeze(result or "()"), *[squeeze(kind) for kind in types])


def constant(text):
    text = text.strip()
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    shifted = re.fullmatch(r"(\d+)\s*<<\s*(\d+)", text)
    if shifted:
        return int(shifted[1]) << int(shifted[2])
    if re.fullmatch(r"0x[0-9a-fA-F]+", text):
        return int(text, 16)
    return text


# --- C functions ------------------------------------------------------------------------------------------------


def c_functions(crates):
    lines = []
    vmnet = strip_comments((crates / "vmnet" / "src" / "ffi" / "vmnet.rs").read_text())
    lines.extend(c_declarations("vmnet", vmnet, lambda name: name.startswith("vmnet_")))
    for enum, rust, spelled in [
            ("vmnet_return_t", "Status", lambda case: "VMNET_" + snake(case)),
            ("operating_modes_t", "Mode", lambda case: "VMNET_" + snake(case) + "_MODE")]:
        body = balanced(vmnet, re.search(rf"pub enum {rust} \{{", vmnet).end() - 1)
        for case, value in re.findall(r"(\w+) = (\d+)", body):
            lines.append(row("case", enum, spelled(case), value))
    words = used_words()
    places = ["unix/mod.rs", "unix/bsd/mod.rs", "unix/bsd/apple/mod.rs", "unix/bsd/apple/b64/mod.rs"]
    for place in places:
        text = strip_comments((crates / "libc" / "src" / place).read_text())
        lines.extend(c_declarations("libc", text, lambda name: name in words or "clonefile" in name))
        for name, kind in re.findall(r"pub const (\w+): ([^=]+) =", text):
            if name in words:
                lines.append(row("constant", name, squeeze(kind)))
        for name, body in re.findall(r"pub struct (\w+) \{([^}]*)\}", text):
            if name in words:
                lines.extend(row("field", name, field, squeeze(kind))
                             for field, kind in re.findall(r"pub (\w+): ([^\n]+),\n", body) if field in words)
    return table(
        f"crates vmnet {VMNET} (MIT) and libc {LIBC} (MIT OR Apache-2.0), whose names for macOS are here as far as "
        "VZCore has them; types are Rust's",
        ["function name crate result arguments…", "case enum name value", "constant name type",
         "field struct name type"], lines)


def used_words():
    """Every word in VZCore: libc has thousands of names, and only those VZCore may mean are wanted."""
    files = sorted((FACTS.parents[2] / "VZCore" / "Sources" / "VZCore").rglob("*.swift"))
    return {word for file in files for word in re.findall(r"\w+", file.read_text())}


def c_declarations(crate, text, wanted):
    for match in re.finditer(r"pub (?:safe |unsafe )?fn (\w+)\(", text):
        attributes = re.split(r"[;{}]", text[:match.start()])[-1]
        elsewhere = "cfg(" in attributes and "not(" not in attributes and not re.search("apple|macos", attributes)
        if not wanted(match[1]) or elsewhere:
            continue
        end = match.end() - 1
        arguments = balanced(text, end)
        after = re.match(r"\s*(?:->\s*(.*?))?\s*;", text[end + len(arguments) + 2:], re.S)
        if not after:
            continue  # a function with a body, not a declaration
        # `...` has no name.
        types = [argument.split(":", 1)[-1] for argument in split(arguments) if argument]
        yield row("function", match[1], crate, squeeze(after[1] or "()"), *[squeeze(kind) for kind in types])


def snake(camel):
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", camel).upper()


# --- text -------------------------------------------------------------------------------------------------------


def row(*columns):
    for column in columns:
        if "\t" in column or "\n" in column or not column:
            raise ValueError(f"not a column: {column!r}")
    return "\t".join(columns)


def table(source, legend, lines):
    head = ["# Made by scripts/sdk-facts.py; do not edit.", f"# Source: {source}"]
    head += [f"# {line}" for line in legend]
    return "\n".join(head + sorted(set(lines))) + "\n"


def strip_comments(text):
    return re.sub(r"(?m)^\s*//.*\n", "", text)


def blocks(text, start):
    for match in re.finditer(start, text):
        yield balanced(text, match.end() - 1)


def balanced(text, at):
    """What stands between the bracket at `at` and its partner."""
    depth = 0
    for position in range(at, len(text)):
        if text[position] in "([{":
            depth += 1
        elif text[position] in ")]}":
            depth -= 1
            if depth == 0:
                return text[at + 1:position]
    raise ValueError(f"a bracket is never closed: {text[at:at + 80]!r}")


def split(arguments):
    """Splits at the commas that stand in no bracket."""
    parts, depth, part = [], 0, ""
    previous = ""
    for character in arguments:
        if character in "([{<":
            depth += 1
        elif character in ")]}" or (character == ">" and previous != "-"):
            depth -= 1
        if character == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += character
        previous = character
    return parts + [part.strip()]


def squeeze(text):
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r",? ([>)\]])", r"\1", re.sub(r"([<(\[]) ", r"\1", text))


if __name__ == "__main__":
    main()
