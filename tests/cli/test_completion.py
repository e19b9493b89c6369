# SPDX-License-Identifier: Apache-2.0
"""The manual page and the completions of bash, zsh and fish, which are made from the same tables as --help."""
import os
import pty
import re
import select
import shutil
import subprocess
import tempfile
import time
import unittest

from cli_testing import environment, headrace, main


def verbs():
    """Verb -> its options, as --help says."""
    names = re.findall(r"^  ([a-z]+) ", headrace("--help").out, re.M)
    return {name: re.findall(r"^  (--[a-z-]+)", headrace(name, "--help").out, re.M) for name in names}


class Folder(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="headrace-test-")
        self.addCleanup(shutil.rmtree, self.folder)
        os.mkdir(os.path.join(self.folder, "some folder"))
        for name in ("model.safetensors", "model.json"):
            open(os.path.join(self.folder, name), "w").close()

    def script(self, shell):
        result = headrace("completion", shell)
        self.assertEqual((result.code, result.err), (0, ""))
        name = "_headrace" if shell == "zsh" else "headrace." + shell
        with open(os.path.join(self.folder, name), "w") as f:
            f.write(result.out)
        return os.path.join(self.folder, name)


class Manual(unittest.TestCase):
    def test_says_all(self):
        page = headrace("--print-man").out.replace("\\-", "-")
        for verb, options in verbs().items():
            self.assertIn(f"\n.B headrace {verb} ", page)
            for option in options:
                entries = re.findall(rf"\n\.B {option}(?: .*)?\n.*\n\.br\nVerbs: (.*)\.\n", page)
                self.assertTrue(any(verb in re.split(", | and ", entry) for entry in entries), (verb, option))

    def test_is_sound(self):
        page = headrace("--print-man").out
        tools = [["groff", "-man", "-ww", "-z"], ["mandoc", "-T", "lint", "-W", "error"]]
        tools = [tool for tool in tools if shutil.which(tool[0])]
        if not tools:
            self.skipTest("neither groff nor mandoc is here")
        for tool in tools:
            process = subprocess.run(tool, input=page, capture_output=True, text=True)
            self.assertEqual((process.returncode, process.stderr), (0, ""))


class Bash(Folder):
    def complete(self, *words):
        """The candidates for the last of the words, with the script sourced."""
        code = (f". {self.script('bash')}; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _headrace;"
                ' printf "%s\\n" "${COMPREPLY[@]}"')
        process = subprocess.run(["bash", "--norc", "-u", "-c", code, "bash", "headrace", *words],
                                 capture_output=True, text=True, cwd=self.folder)
        self.assertEqual((process.returncode, process.stderr), (0, ""))
        return process.stdout.split("\n")[:-1]

    def test_verbs_and_options(self):
        for verb, options in verbs().items():
            self.assertIn(verb, self.complete(verb[:3]))
            self.assertEqual(self.complete(verb, "--"), options)
        self.assertEqual(self.complete("den"), ["denoise"])
        self.assertEqual(self.complete("inspect", "--str"), ["--streamed"])

    def test_values(self):
        self.assertEqual(self.complete("forward", "m", "--direct", ""), ["auto", "on", "off"])
        self.assertEqual(self.complete("forward", "m", "--direct", "=", "o"), ["on", "off"])
        self.assertEqual(self.complete("forward", "m", "--direct", "="), ["auto", "on", "off"])
        self.assertEqual(self.complete("forward", "--io", "p"), ["pread"])
        self.assertEqual(self.complete("forward", "--device", ""), ["auto", "cpu", "cuda"])
        self.assertEqual(self.complete("bench", "--order", ""), ["file", "pass"])
        self.assertEqual(self.complete("synth", "--order", ""), ["name", "reverse", "shuffle"])
        self.assertEqual(self.complete("denoise", "m", "--steps", ""), [""])
        self.assertEqual(self.complete("completion", "z"), ["zsh"])

    def test_files(self):
        self.assertEqual(self.complete("inspect", "mo"), ["model.json", "model.safetensors"])
        self.assertEqual(self.complete("forward", "--inputs", "model.s"), ["model.safetensors"])
        self.assertEqual(self.complete("forward", "--lora", "model.s"), ["model.safetensors"])
        self.assertEqual(self.complete("denoise", "--resume", ""), ["some folder"])


class Zsh(Folder):
    """In a terminal, since zsh completes only there."""

    def complete(self, typed, wanted):
        self.script("zsh")
        master, slave = pty.openpty()
        env = environment(TERM="dumb", HOME=self.folder, ZDOTDIR=self.folder)
        zsh = subprocess.Popen(["zsh", "-f", "-i"], stdin=slave, stdout=slave, stderr=slave, env=env, cwd=self.folder,
                               start_new_session=True)
        os.close(slave)
        try:
            os.write(master, b"PS1='> '; fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D; echo re''ady\n")
            self.wait_for(master, "ready")
            os.write(master, typed.encode() + b"\t")
            return self.wait_for(master, wanted)
        finally:
            zsh.kill()
            zsh.wait()
            os.close(master)

    def wait_for(self, fd, wanted):
        seen, end = "", time.monotonic() + 30
        while wanted not in seen:
            if time.monotonic() > end or not select.select([fd], [], [], 30)[0]:
                self.fail(f"{wanted!r} never came: {seen!r}")
            seen += os.read(fd, 4096).decode(errors="replace")
        return seen

    @unittest.skipUnless(shutil.which("zsh"), "zsh is not here")
    def test_completes(self):
        self.complete("headrace den", "denoise")
        self.complete("headrace inspect --str", "--streamed")
        self.complete("headrace forward --io p", "pread")
        self.complete("headrace forward --direct=of", "off")
        self.complete("headrace inspect model.s", "model.safetensors")
        self.complete("headrace completion f", "fish")


class Fish(Folder):
    @unittest.skipUnless(shutil.which("fish"), "fish is not here")
    def test_completes(self):
        script = self.script("fish")
        for typed, wanted in (("den", ["denoise"]), ("inspect --str", ["--streamed"]),
                              ("forward --io p", ["pread"]), ("forward --direct o", ["off", "on"]),
                              ("inspect model.s", ["model.safetensors"]), ("completion f", ["fish"]),
                              ("denoise --resume ", ["some folder/"]),
                              ("forward --inputs model.s", ["model.safetensors"])):
            code, home = f"source {script}; complete -C 'headrace {typed}'", os.path.join(self.folder, ".home")
            process = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True,
                                     cwd=self.folder, env=environment(HOME=home, XDG_CONFIG_HOME=home))
            self.assertEqual(process.stderr, "")
            self.assertEqual([line.split("\t")[0] for line in process.stdout.splitlines()], wanted, typed)


class Usage(unittest.TestCase):
    def test_wrong_shell(self):
        for args, words in (([], "one shell"), (["bash", "zsh"], "one shell"), (["bsh"], "did you mean bash"),
                            (["csh-and-more"], "bash, zsh and fish")):
            result = headrace("completion", *args)
            self.assertEqual((result.code, result.out), (2, ""))
            self.assertIn(words, result.err)


if __name__ == "__main__":
    main()
