# SPDX-License-Identifier: Apache-2.0
"""What the documentation says against what there is: messages, verbs, options, links.

A message in docs/troubleshooting.md stands in its source as one string; "..." is what varies.
"""
import glob
import json
import os
import re
import shutil

from cli_testing import ModelCase, headrace, main, write_tensors

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PAGES = sorted(glob.glob(os.path.join(ROOT, "*.md")) + glob.glob(os.path.join(ROOT, "docs", "*.md")))
OTHERS = {"--security-opt"}  # options of other programs
VERBS = re.findall(r"^  ([a-z]+) ", headrace("--help").out, re.M)
FOLDERS = ("cli", "common", "engine", "formats", "gpu", "io", "python/headrace")


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def strings():
    """All string literals of the sources, those joined that the compiler joins; what varies is a NUL."""
    for folder in FOLDERS:
        for path in glob.glob(os.path.join(ROOT, folder, "*.[ch]")) + glob.glob(os.path.join(ROOT, folder, "*.py")):
            text = re.sub(r'"\s*PRI[a-zA-Z0-9]+\s*"', "\0", read(path))
            text = re.sub(r'"\s*\n\s*f?"', "", text)
            for literal in re.findall(r'"((?:[^"\\\n]|\\.)*)"', text):
                literal = literal.replace('\\"', '"').replace("\\n", "")
                literal = re.sub(r"%%", "%", re.sub(r"%[-0-9.*]*(?:l|ll|z)?[a-zA-Z]", "\0", literal))
                yield re.sub(r"%(?=\0)|\{[^}]*\}", "\0", literal)


def keys_of(value):
    """All keys of an object and of what is in it."""
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


class Documents(ModelCase):
    def test_messages(self):
        quoted = re.findall(r"\*\*`([^`]+)`\*\*", read(os.path.join(ROOT, "docs", "troubleshooting.md")))
        self.assertGreater(len(quoted), 60)
        literals = set(strings())
        helps = [headrace(verb, "--help").out for verb in VERBS]
        for message in quoted:
            parts = [re.escape(part.strip()) for part in message.split("...") if part.strip()]
            pattern = re.compile(".*".join(parts), re.S)
            self.assertTrue(any(pattern.search(literal) for literal in literals), f"no source says: {message}")
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", message):
                self.assertTrue(any(option in text.split() for text in helps) or option in OTHERS, message)

    def test_commands(self):
        helps = {verb: headrace(verb, "--help").out for verb in VERBS}
        n = 0
        for page in PAGES:
            text = read(page)
            code = re.findall(r"^ {4}(.*)$", text, re.M) + re.findall(r"`([^`\n]+)`", text)
            for line in code:
                if line.startswith("--"):
                    option = re.match(r"--[a-z-]*", line).group(0)
                    self.assertTrue(any(option in words.split() for words in helps.values()), f"{page}: {line}")
                for verb, rest in re.findall(r"(?<![\w/-])(?:build/cli/)?headrace ([a-z]+)\b([^#;|&]*)", line):
                    self.assertIn(verb, helps, f"{page}: {line}")
                    for option in re.findall(r"(?<= )--[a-z-]+", rest):
                        n += 1
                        self.assertIn(option, helps[verb].split(), f"{page}: {line}")
        self.assertGreater(n, 20)

    def test_json(self):
        """Keys that a verb prints stand in docs/json.md. tune, and bench beside fio, measure for minutes and are left
        out."""
        named = set(re.findall(r"`([a-z][a-z0-9_]*)`", read(os.path.join(ROOT, "docs", "json.md"))))
        lora, manifest, run = self.path("lora.safetensors"), self.path("manifest"), self.path("run.json")
        write_tensors(lora, {f"transformer_blocks.0.attn.to_q.lora_{side}.weight": ("F32", shape, bytes(4 * 256))
                             for side, shape in (("A", [1, 256]), ("B", [256, 1]))})
        forward = ["forward", self.model, "--inputs", self.inputs, "--timestep", 500, "--output", self.path("out")]
        printed = [headrace(*args, "--json") for args in (
            ["synth", self.path("one"), "--layers", 1, "--heads", 1, "--joint-dim", 8],
            ["inputs", self.model, "--width", 32, "--height", 32, "--output", self.path("in")],
            [*forward, "--per-block", "--lora", lora],
            ["denoise", self.model, "--inputs", self.inputs, "--steps", 2, "--per-block"],
            ["plan", self.model, "--steps", 2], ["inspect", self.model], ["doctor", self.model],
            ["bench", self.model, "--device", "cpu", "--turns", 1],
            ["checksum", self.model, "--output", manifest])]
        with open(run, "w", encoding="utf-8") as f:
            f.write(headrace(*forward, "--json").out)
        printed.append(headrace("report", run, "--output", self.path("run.html"), "--json"))
        shutil.copytree(self.model, self.path("damaged"))
        with open(glob.glob(self.path("damaged/*.safetensors"))[0], "ab") as f:
            f.truncate(f.tell() - 1)
            f.write(b"?")
        printed.append(headrace("verify", self.path("damaged"), "--manifest", manifest, "--json"))
        keys = set().union(*(keys_of(json.loads(result.out)) for result in printed))
        self.assertGreater(len(keys), 100)
        self.assertEqual(keys - named, set())

    def test_links(self):
        n = 0
        for page in PAGES:
            for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", read(page)):
                if not re.match(r"[a-z]+:", target):
                    n += 1
                    self.assertTrue(os.path.exists(os.path.join(os.path.dirname(page), target)), f"{page}: {target}")
        self.assertGreater(n, 10)

    def test_named_files(self):
        """Paths of the tree in backquotes are there."""
        for page in PAGES:
            for path in re.findall(r"`((?:cli|common|docs|engine|formats|gpu|include|io|python|tests|bench|examples)/"
                                   r"[\w./-]+\.\w+)`", read(page)):
                self.assertTrue(os.path.exists(os.path.join(ROOT, path)), f"{page}: {path}")


if __name__ == "__main__":
    main()
