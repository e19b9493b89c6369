# SPDX-License-Identifier: Apache-2.0
"""scripts/setup.sh, which demo and check use: build folders of others are left alone."""
import os
import subprocess
import tempfile
import unittest

from cli_testing import main

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SETUP = os.path.join(ROOT, "scripts", "setup.sh")
TOOL = """#!/bin/sh
case $1 in
setup) mkdir -p "$2" && echo new >"$2/build.ninja" ;;
--version) echo 1 ;;
esac
"""


class Setup(unittest.TestCase):
    def build(self, folder):
        """build() with a meson and a ninja that do nothing."""
        for name in ("meson", "ninja"):
            with open(os.path.join(folder, name), "w", encoding="ascii") as f:
                f.write(TOOL)
            os.chmod(f.name, 0o755)
        env = dict(os.environ, PATH=folder + ":" + os.environ["PATH"])
        return subprocess.run(["bash", "-euc", '. "$1"; build . "$2/build"', "demo", SETUP, folder], env=env,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)

    def test_build_folders(self):
        with tempfile.TemporaryDirectory() as folder:
            ninja, stamp = (os.path.join(folder, "build", name) for name in ("build.ninja", "stamp"))
            os.mkdir(os.path.dirname(ninja))
            with open(ninja, "w", encoding="ascii") as f:
                f.write("old")
            process = self.build(folder)
            self.assertEqual(process.returncode, 1)
            self.assertIn("build was not made by this script; remove it or move it away", process.stderr)
            self.assertEqual(os.listdir(os.path.dirname(ninja)), ["build.ninja"])
            with open(stamp, "w", encoding="ascii") as f:
                f.write("of other options")
            for _ in range(2):
                process = self.build(folder)
                self.assertEqual(process.returncode, 0, process.stderr)
                with open(ninja, encoding="ascii") as f:
                    self.assertEqual(f.read(), "new\n")


if __name__ == "__main__":
    main()
