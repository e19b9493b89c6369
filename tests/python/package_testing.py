# SPDX-License-Identifier: Apache-2.0
"""What the tests of the Python package share: small models in a temporary folder. Skipped without numpy."""
import os
import shutil
import sys
import tempfile
import unittest

for name in [n for n in os.environ if n.startswith(("HEADRACE_", "HF_"))]:
    del os.environ[name]
try:
    import numpy as np
except ImportError:
    print("skipped: numpy is not installed")
    sys.exit(77)
import headrace

JOINT_DIM = 96


class PackageCase(unittest.TestCase):
    """A folder with `self.model`: 4 blocks, 2 heads, F32, shared by a class."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="headrace-test-")
        cls.model = os.path.join(cls.folder, "model")
        headrace.synth(cls.model, layers=4, heads=2, joint_dim=JOINT_DIM, dtype="f32", shards=2)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def setUp(self):
        self.rng = np.random.default_rng(1)

    def latents(self, h=6, w=10, n=None):
        return self.rng.standard_normal((16, h, w) if n is None else (n, 16, h, w), dtype=np.float32)

    def prompt(self, n=4):
        return self.rng.standard_normal((n, JOINT_DIM), dtype=np.float32)

    def assert_raises(self, error, *words):
        return self.assertRaisesRegex(error, ".*".join(words))
