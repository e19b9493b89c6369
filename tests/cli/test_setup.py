# SPDX-License-Identifier: Apache-2.0
"""scripts/setup.sh, which demo and check use: build folders of others and models being written are left alone."""
import fcntl
import os
import subprocess
import tempfile
import time
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

    def install(self, required, optional):
        """install_packages() of a user who may install nothing."""
        with tempfile.TemporaryDirectory() as folder:
            for name in ("apt-get", "sudo"):
                with open(os.path.join(folder, name), "w", encoding="ascii") as f:
                    f.write("#!/bin/sh\nexit 1\n")
                os.chmod(f.name, 0o755)
            env = dict(os.environ, PATH=folder + ":" + os.environ["PATH"])
            script = '. "$1"; install_packages "$2" "$3"; echo on'
            return subprocess.run(["bash", "-euc", script, "demo", SETUP, required, optional], env=env,
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True)

    def test_packages(self):
        here, gone = "\nhere=true\n", "gone=false\nlost=false\n"
        self.assertEqual((self.install(here, "").stdout, self.install(here, "").stderr), ("on\n", ""))
        process = self.install(here + gone, "extra=false")
        self.assertEqual((process.returncode, process.stdout), (1, ""))
        self.assertIn("run: sudo apt-get update && sudo apt-get install -y gone lost extra", process.stderr)
        process = self.install(here, "extra=false")
        self.assertEqual((process.returncode, process.stdout), (0, "on\n"))
        self.assertIn("going on without extra", process.stderr)

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

    def test_half_models(self):
        """Kept, and said: what is locked, what another kernel may be writing, all where there is no flock."""
        boot = "unknown"
        if os.path.exists("/proc/sys/kernel/random/boot_id"):
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
                boot = f.read(8)
        names = [f"m.tmp-{kernel}-{i}-00000000" for i, kernel in enumerate([boot, boot, "0badb007", "0badb007"])]
        for has_flock in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                paths = [os.path.join(folder, name) for name in names]
                for path in paths:
                    os.mkdir(path)
                    with open(os.path.join(path, "a.safetensors"), "w", encoding="ascii") as f:
                        f.write("half")
                    if path != paths[2]:
                        for old in (f.name, path):
                            os.utime(old, (time.time() - 3700,) * 2)
                os.utime(paths[2], (time.time() - 3700,) * 2)  # its file is new
                if not has_flock:
                    with open(os.path.join(folder, "flock"), "w", encoding="ascii") as f:
                        f.write("#!/bin/sh\necho 'flock: No locks available' >&2\nexit 71\n")
                    os.chmod(f.name, 0o755)
                locked = os.open(paths[0], os.O_RDONLY)
                fcntl.flock(locked, fcntl.LOCK_EX)
                env = dict(os.environ, PATH=folder + ":" + os.environ["PATH"])
                process = subprocess.run(["bash", "-euc", '. "$1"; shift; drop_half_models "$@"', "demo", SETUP, *paths,
                                          os.path.join(folder, "none.tmp-*")], env=env, capture_output=True, text=True)
                os.close(locked)
                self.assertEqual((process.returncode, process.stdout), (0, ""), process.stderr)
                kept = names if not has_flock else [names[0], names[2]]
                self.assertEqual(sorted(set(os.listdir(folder)) - {"flock"}), sorted(kept))
                self.assertEqual(len(process.stderr.splitlines()), len(paths))
                for path in paths:
                    words = f"{path}: half a model, kept" if os.path.exists(path) else f"{path}: removed"
                    self.assertIn(words, process.stderr)
                    self.assertEqual(f"rm -r {path}" in process.stderr, os.path.exists(path))


if __name__ == "__main__":
    main()
