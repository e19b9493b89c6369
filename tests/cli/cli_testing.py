# SPDX-License-Identifier: Apache-2.0
"""What the tests of the command line share: running it, and safetensors files with the standard library."""
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

HEADRACE = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else "headrace"


def environment(**extra):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HEADRACE", "HF_"))}
    env["CUDA_VISIBLE_DEVICES"] = ""  # tests are of the CPU device, also on machines with a GPU
    env.update(extra)
    return env


class Result:
    def __init__(self, process):
        self.code, self.out, self.err = process.returncode, process.stdout, process.stderr

    @property
    def lines(self):
        """Of standard error: notes and warnings, and last of all what ended the command."""
        return [line for line in self.err.splitlines() if line.strip()]


def headrace(*args, env=None, cwd=None, timeout=300):
    process = subprocess.run([HEADRACE, *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                             errors="surrogateescape", env=env or environment(), cwd=cwd, timeout=timeout)
    return Result(process)


def read_header(path):
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        return n, json.loads(f.read(n))


def write_tensors(path, tensors, data_too_short=0):
    """tensors: name -> (dtype, shape, bytes)."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        body = b"".join(data for _, _, data in tensors.values())
        f.write(body[: len(body) - data_too_short])


def floats(values):
    return struct.pack(f"<{len(values)}f", *values)


class ModelCase(unittest.TestCase):
    """A temporary folder with a small model (2 layers, 2 heads) and inputs for it, shared by a class."""

    model_options = ["--layers", 2, "--heads", 2, "--joint-dim", 96]
    input_options = ["--width", 80, "--height", 48, "--text-tokens", 4]

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="headrace-test-")
        cls.model, cls.inputs = cls.path("model"), cls.path("in.safetensors")
        for args in (["synth", cls.model, *cls.model_options],
                     ["inputs", cls.model, "--output", cls.inputs, *cls.input_options]):
            result = headrace(*args)
            assert result.code == 0, result.err

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    @classmethod
    def path(cls, name):
        return os.path.join(cls.folder, name)

    def forward(self, *args, model=None, inputs=None, timestep=750, output="out.safetensors", env=None):
        """Run a forward; output's file must be there exactly when it succeeds."""
        out = self.path(output)
        if os.path.exists(out):
            os.remove(out)
        result = headrace("forward", model or self.model, "--inputs", inputs or self.inputs, "--timestep", timestep,
                          "--output", out, *args, env=env)
        self.assertEqual(os.path.exists(out), result.code == 0, result.err)
        return result

    def assert_fails(self, result, *words, code=1, prints=False):
        """Exit code and a last line that says all the words; no result, unless it prints; no leftovers."""
        self.assertEqual((result.code, result.out != ""), (code, prints), result.err + result.out)
        for word in words:
            self.assertIn(word, result.lines[-1])
        for line in result.lines:
            self.assertTrue(line.startswith("headrace: "), result.err)
        self.assertNotIn("assertion", result.err)
        self.assertEqual([n for n in os.listdir(self.folder) if ".tmp" in n], [])


def main():
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
