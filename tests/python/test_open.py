# SPDX-License-Identifier: Apache-2.0
"""headrace.open: tensors, bands, streams."""
import json
import os
import struct
import threading
import time
import unittest
from unittest import mock

from package_testing import PackageCase, headrace, np


def write(path, tensors):
    """tensors: name -> (dtype, shape, bytes)."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


class Open(PackageCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        rng = np.random.default_rng(2)
        cls.arrays = {
            "large": rng.standard_normal((2200, 4000), dtype=np.float32),  # 35 MB: two bands
            "bytes": rng.integers(0, 255, 5, dtype=np.uint8),  # what follows lies at odd addresses
            "wide": rng.standard_normal((2, 3, 300000), dtype=np.float32),
            "scalar": np.array(7.5, np.float64),
            "half": rng.standard_normal((4, 1, 2)).astype(np.float16),
            "empty": np.zeros((0, 4), np.float32),
            "flags": np.array([[True], [False]]),
        }
        names = {"float32": "F32", "uint8": "U8", "float64": "F64", "float16": "F16", "bool": "BOOL"}
        cls.file = os.path.join(cls.folder, "any.safetensors")
        write(cls.file, {k: (names[str(a.dtype)], list(a.shape), a.tobytes()) for k, a in cls.arrays.items()})

    def test_tensors(self):
        with headrace.open(self.file) as f:
            self.assertEqual(f.keys(), sorted(self.arrays))
            self.assertEqual(len(f), len(self.arrays))
            self.assertIn("half", f)
            self.assertNotIn("halves", f)
            for name, want in self.arrays.items():
                got = f.get_tensor(name)
                self.assertEqual((got.dtype, got.shape), (want.dtype, want.shape))
                self.assertTrue(np.array_equal(got, want))
            self.assertEqual(f.info("wide").shape, (2, 3, 300000))
            self.assertEqual(f.info("flags").dtype, "BOOL")
            self.assertTrue(np.array_equal(f.get_f32("half"), self.arrays["half"].astype(np.float32)))
            self.assertIsNone(f.config())

    def test_stream_is_in_order_and_stays(self):
        order = ["half", "large", "empty", "scalar", "large", "wide", "bytes", "flags"]
        with headrace.open(self.file) as f:
            got = list(f.stream(order, prefetch="64MiB", passes=2))
            self.assertEqual([name for name, _ in got], order * 2)
            for name, a in got:
                self.assertEqual((a.dtype, a.shape), (self.arrays[name].dtype, self.arrays[name].shape))
                self.assertTrue(np.array_equal(a, self.arrays[name]))
            self.assertEqual(f.stats.ring_bytes, 64 << 20)
            self.assertEqual(dict(f.stream()).keys(), self.arrays.keys())

    def test_bands_are_views(self):
        rows = 0
        with headrace.open(self.file) as f:
            for band in f.bands(["large"]):
                self.assertEqual(band.row_begin, rows)
                self.assertTrue(np.array_equal(band.data, self.arrays["large"][rows:rows + band.n_rows]))
                self.assertFalse(band.data.flags.writeable)
                rows += band.n_rows
            self.assertEqual(rows, 2200)
            wide = list((b.n_rows, b.data.shape) for b in f.bands(["wide", "scalar", "empty"]))
            self.assertEqual(wide, [(6, (6, 300000)), (1, (1,)), (0, (0, 4))])

    def test_ends_early(self):
        with headrace.open(self.model) as f:
            for _ in range(20):
                stream = f.stream(passes=0)
                next(stream)
                stream.close()
            self.assertEqual(f.config()["num_layers"], 4)

    def test_closed_while_streams_are_open(self):
        f = headrace.open(self.model)
        streams = [f.stream(prefetch="64MiB"), f.bands(prefetch="64MiB", passes=0)]
        for stream in streams:
            next(stream)
        not_begun = f.stream()
        f.close()
        self.assertGreater(f.stats.bytes_read, 0)
        for stream in (*streams, not_begun):
            with self.assert_raises(ValueError, "the model is closed"):
                next(stream)
        f.close()

    def test_closed_by_another_thread(self):
        """At any moment: between units, while one is waited for, and while its bytes are copied."""
        for i in range(40):
            with self.subTest(i=i):
                f = headrace.open(self.file)
                stream = (f.bands if i % 4 == 3 else f.stream)(["large"], prefetch="64MiB", passes=0)
                next(stream)
                thread = threading.Timer(0.0007 * i, f.close)
                thread.start()
                with self.assert_raises(ValueError, "the model is closed"):
                    for _ in stream:
                        pass
                thread.join()

    def test_not_closed_while_bytes_are_copied(self):
        """close() of another thread waits for the copy out of the ring."""
        f, copyto, closing = headrace.open(self.file), np.copyto, threading.Event()
        thread = threading.Thread(target=lambda: (closing.set(), f.close()))

        def slow(dst, src):
            if not closing.is_set():
                thread.start()
                closing.wait(60)
                time.sleep(0.1)
                self.assertTrue(thread.is_alive())
            copyto(dst, src)

        with mock.patch.object(np, "copyto", slow), self.assert_raises(ValueError, "the model is closed"):
            for _, tensor in f.stream(["large"], prefetch="64MiB", passes=0):
                self.assertTrue(np.array_equal(tensor, self.arrays["large"]))
        thread.join()

    def test_errors(self):
        with headrace.open(self.file) as f:
            with self.assert_raises(FileNotFoundError, "any.safetensors", "other"):
                f.get_tensor("other")
            with self.assert_raises(FileNotFoundError, "other"):
                next(f.stream(["half", "other"]))
            with self.assert_raises(ValueError, "ring"):
                next(f.stream(prefetch="2MiB"))
            with self.assert_raises(ValueError, "passes"):
                next(f.stream(passes=-1))
            with self.assert_raises(ValueError, "flags"):
                f.get_f32("flags")
        with self.assert_raises(ValueError, "closed"):
            f.keys()
        bf16 = os.path.join(self.folder, "bf16.safetensors")
        write(bf16, {"x": ("BF16", [2], b"\x80\x3f\x00\x40")})
        with headrace.open(bf16) as f:
            with self.assert_raises(ValueError, "numpy has no type for BF16", "get_f32"):
                f.get_tensor("x")
            with self.assert_raises(ValueError, "BF16"):
                next(f.stream())
            self.assertEqual(f.get_f32("x").tolist(), [1, 2])
        with self.assert_raises(ValueError, "framework"):
            headrace.open(bf16, framework="jax")


unittest.main()
