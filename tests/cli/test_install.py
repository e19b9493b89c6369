# SPDX-License-Identifier: Apache-2.0
"""meson install into a folder of its own, and the example compiled and run against what lies there.

The second argument is the build folder."""
import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest

from cli_testing import environment, headrace, main

BUILD = sys.argv.pop(2)
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="headrace-test-")
        cls.tree = os.path.join(cls.folder, "tree")
        if not shutil.which("meson"):
            raise unittest.SkipTest("meson is not on the path")
        subprocess.run(["meson", "install", "-C", BUILD, "--no-rebuild", "--quiet", "--destdir", cls.tree], check=True,
                       stdout=subprocess.DEVNULL)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def find(self, name):
        found = [path for path in glob.glob(os.path.join(self.tree, "**", name), recursive=True)
                 if "-packages/" not in path]  # the Python package has a library of its own
        self.assertEqual(len(found), 1, f"{name}: {found}")
        return found[0]

    def pkg_config(self, *args):
        env = environment(PKG_CONFIG_PATH=os.path.dirname(self.find("headrace.pc")), PKG_CONFIG_SYSROOT_DIR=self.tree)
        process = subprocess.run(["pkg-config", *args, "headrace"], capture_output=True, text=True, env=env)
        self.assertEqual((process.returncode, process.stderr), (0, ""))
        return shlex.split(process.stdout)

    def test_files(self):
        for name in ("headrace.pc", "include/headrace.h", "libheadrace.so", "libheadrace.a", "bin/headrace",
                     "share/man/man1/headrace.1", "share/bash-completion/completions/headrace",
                     "share/zsh/site-functions/_headrace", "share/fish/vendor_completions.d/headrace.fish"):
            self.assertGreater(os.path.getsize(self.find(name)), 0, name)
        process = subprocess.run([self.find("bin/headrace"), "--version"], capture_output=True, text=True)
        self.assertEqual(process.stdout, headrace("--version").out)
        with open(os.path.join(ROOT, "include", "headrace.h")) as f:
            self.assertEqual(self.pkg_config("--modversion"), re.findall(r'HR_VERSION "(.*)"', f.read()))

    def test_example(self):
        compiler = shutil.which("cc") or shutil.which("gcc")
        if not compiler or not shutil.which("pkg-config"):
            self.skipTest("needs cc and pkg-config")
        exe, model = os.path.join(self.folder, "example"), os.path.join(self.folder, "model")
        subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", "-o", exe,
                        os.path.join(ROOT, "examples", "stream_example.c"), *self.pkg_config("--cflags", "--libs")],
                       check=True)
        self.assertEqual(headrace("synth", model, "--layers", 1, "--heads", 2, "--joint-dim", 64).code, 0)
        env = environment(LD_LIBRARY_PATH=os.path.dirname(self.find("libheadrace.so")))
        process = subprocess.run([exe, model], capture_output=True, text=True, env=env)
        self.assertEqual((process.returncode, process.stderr), (0, ""))
        self.assertIn(f"sum of bytes {self.sum_of_bytes(model)}\n", process.stdout)
        for args, words in (([], "no model is named"), (["/nowhere"], "/nowhere: cannot open"),
                            ([exe], "not a safetensors file")):
            process = subprocess.run([exe, *args], capture_output=True, text=True, env=env)
            self.assertEqual((process.returncode, process.stdout), (1, ""))
            self.assertIn(words, process.stderr)

    def sum_of_bytes(self, model):
        total = 0
        for path in glob.glob(os.path.join(model, "*.safetensors")):
            with open(path, "rb") as f:
                header_bytes = int.from_bytes(f.read(8), "little")
                f.seek(8 + header_bytes)
                total += sum(f.read())
        return total


if __name__ == "__main__":
    main()
