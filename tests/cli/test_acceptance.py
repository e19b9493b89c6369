# SPDX-License-Identifier: Apache-2.0
"""bench/gpu_acceptance.py runs to its end and prints its rows: without a GPU, and on the emulated device."""
import os
import re
import subprocess
import sys
import tempfile
import unittest

from cli_testing import HEADRACE, environment, main

BUILD = os.path.dirname(os.path.dirname(HEADRACE))
SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "bench", "gpu_acceptance.py")


class Acceptance(unittest.TestCase):
    def run_script(self, *args):
        return subprocess.run([sys.executable, SCRIPT, BUILD, *args], capture_output=True, text=True, check=False,
                              env=environment(), timeout=280)

    def test_no_gpu(self):
        if not os.path.exists(os.path.join(BUILD, "tests", "gpu", "test_gpu_cuda")):
            self.assertIn("has no tests", self.run_script().stderr)
            self.skipTest("built without CUDA")
        for args, n in (((), r"\d\d"), (("--full",), "4")):
            result = self.run_script(*args)
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            self.assertRegex(result.stdout, rf"^no GPU: {n} checks skipped \(.+\)\n$")

    def test_whole_model(self):
        """One block of it; the figures are no GPU's and may miss every target."""
        if not os.path.exists(os.path.join(BUILD, "tests", "gpu", "test_gpu_cuda")):
            self.skipTest("built without CUDA")
        with tempfile.TemporaryDirectory() as work:
            result = self.run_script("--device", "emulated:0", "--full", "--quick", "--blocks", "1", "--size", "64",
                                     "--vram", "500MiB", "--work", work)
            self.assertEqual(os.listdir(work), [])
        self.assertEqual(result.stderr, "")
        rows = re.findall(r"^(ok|noise|FAIL|none) +(.*)$", result.stdout, re.MULTILINE)
        for name in ("copy while the disk reads", "square, ", "1 blocks, 64x64, to max(disk, link)",
                     "1 blocks, 64x64, memory of the GPU", "1 blocks on the GPU, attention own"):
            self.assertEqual(sum(text.startswith(name) for _, text in rows), 1, (name, result.stdout))
        self.assertNotIn("exit 1", result.stdout)
        self.assertRegex(result.stdout, r"\n\d+ passed, \d failed, \d+ s\n$")


if __name__ == "__main__":
    main()
