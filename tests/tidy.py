#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Rules of the tree that compilers do not check. Usage: tidy.py [ROOT]; prints each breach, exit 1.

Layering, size of files and functions, width of lines, banned calls, licence lines, unique names.
"""
import os
import re
import sys

LINES_MAX, FUNCTION_LINES_MAX, COLUMNS_MAX = 600, 70, 100
MORE_LINES = {"include/headrace.h": 1200}  # the one interface, whose length is that of its comments
GENERATED = {"tests/engine/golden_values.h"}
MAY_INCLUDE = {
    "common": {"common", "headrace.h"},
    "formats": {"common", "formats", "headrace.h"},
    "io": {"common", "io", "headrace.h"},
    "gpu": {"common", "gpu", "headrace.h"},
    "engine": {"common", "formats", "io", "gpu", "engine", "headrace.h"},
    "include": set(),
    "cli": {"cli", "headrace.h"},
    "python": {"python", "headrace.h"},
    "examples": {"headrace.h"},
    "bench": None,
    "tests": None,
}
# From outside a folder only its one interface header may be included.
INTERFACES = {"io/io.h", "gpu/gpu.h", "formats/formats.h", "common/common.h"}
BANNED = {
    r"\b(?:exit|_exit|abort)\s*\(": "a library never ends the process",
    r"\b(?:strcpy|strcat|sprintf|gets|atoi|atol|atof|strtok)\s*\(": "has no bound or no error",
}
MAY_ABORT = {"common/error.c"}  # the failed assertion


def sources(root):
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith((".", "build")) and f not in ("out", "__pycache__")]
        for name in files:
            if name.endswith((".c", ".h", ".cu", ".cuh", ".py")):
                yield os.path.relpath(os.path.join(folder, name), root)


def strip_comments(text):
    blank = lambda m: re.sub(r"[^\n]", " ", m.group(0))
    text = re.sub(r'"(?:[^"\\\n]|\\.)*"', lambda m: '"' + " " * (len(m.group(0)) - 2) + '"', text)
    return re.sub(r"/\*.*?\*/|//[^\n]*", blank, text, flags=re.S)


def check_includes(path, text):
    folder = path.split(os.sep)[0]
    allowed = MAY_INCLUDE.get(folder)
    for name in re.findall(r'^#include "([^"]+)"', text, flags=re.M):
        if name == "config.h" or allowed is None:
            continue
        target = name.split("/")[0]
        if target not in allowed:
            yield f"{path}: {folder}/ must not include {name}"
        elif target != folder and "/" in name and name not in INTERFACES:
            yield f"{path}: only {target}/'s interface header may be included, not {name}"


def check_functions(path, text):
    begin = None
    for i, line in enumerate(text.split("\n"), 1):
        if line == "{":
            begin = i
        elif line == "}" and begin:
            if i - begin - 1 > FUNCTION_LINES_MAX:
                yield f"{path}:{begin}: a function of {i - begin - 1} lines; at most {FUNCTION_LINES_MAX}"
            begin = None


def check_file(root, path):
    with open(os.path.join(root, path), encoding="utf-8") as f:
        text = f.read()
    lines = text.split("\n")
    head = "\n".join(lines[:2])
    if "SPDX-License-Identifier: Apache-2.0" not in head:
        yield f"{path}: the first line names no licence"
    if path in GENERATED:
        return
    lines_max = MORE_LINES.get(path, LINES_MAX)
    if len(lines) - 1 > lines_max:
        yield f"{path}: {len(lines) - 1} lines; at most {lines_max}"
    if not text.endswith("\n") or text.endswith("\n\n"):
        yield f"{path}: must end in one newline"
    for i, line in enumerate(lines, 1):
        if path.endswith(".py"):
            if len(line) > 120:
                yield f"{path}:{i}: {len(line)} columns; at most 120"
        elif len(line) > COLUMNS_MAX:
            yield f"{path}:{i}: {len(line)} columns; at most {COLUMNS_MAX}"
        if line != line.rstrip() or "\t" in line:
            yield f"{path}:{i}: a blank at the end of the line, or a tab"
    if path.endswith(".py"):
        return
    yield from check_includes(path, text)
    code = strip_comments(text)
    yield from check_functions(path, code)
    if path.split(os.sep)[0] in ("common", "formats", "io", "gpu", "engine") and path not in MAY_ABORT:
        for pattern, why in BANNED.items():
            for m in re.finditer(pattern, code):
                line = code.count("\n", 0, m.start()) + 1
                yield f"{path}:{line}: {m.group(0).strip('( ')}: {why}"


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    breaches, names = [], {}
    for path in sorted(sources(root)):
        breaches += check_file(root, path)
        name = os.path.basename(path)
        if name in names and not name.startswith("__"):
            breaches.append(f"{path}: the name is that of {names[name]} too")
        names[name] = path
    print("\n".join(breaches) if breaches else f"tidy: {len(names)} files")
    return 1 if breaches else 0


sys.exit(main())
