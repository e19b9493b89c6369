# SPDX-License-Identifier: Apache-2.0
"""Tensors of torch in and out of headrace.Model and headrace.open."""
import os
import unittest

from torch_testing import TorchCase, headrace, load_weights, synth, torch
from headrace._arrays import as_f32


class Tensors(TorchCase):
    def test_no_copy(self):
        x = torch.randn(16, 6, 10)
        self.assertEqual(as_f32(x, "x", (16, None, None)).ctypes.data, x.data_ptr())

        class Capsule:  # DLPack alone
            def __dlpack__(self, **kwargs):
                return x.__dlpack__(**kwargs)

            def __dlpack_device__(self):
                return x.__dlpack_device__()
        self.assertEqual(as_f32(Capsule(), "x", (16, 6, 10)).ctypes.data, x.data_ptr())
        self.assertEqual(as_f32(memoryview(x.numpy()), "x", (16, 6, 10)).ctypes.data, x.data_ptr())

    def test_forward(self):
        x, e = torch.randn(1, 16, 6, 10), torch.randn(1, 4, 96)
        with headrace.Model(self.model) as model:
            got = model.forward(x, e, 500)
            self.assertEqual((got.dtype, got.shape), (torch.float32, x.shape))
            self.assertTrue(torch.equal(got, torch.from_numpy(model.forward(x.numpy(), e.numpy(), 500))))
            half = model.forward(x.bfloat16().requires_grad_(), e.bfloat16(), 500)
            self.assertTrue(torch.equal(half, model.forward(x.bfloat16().float(), e.bfloat16().float(), 500)))
            mask = torch.tensor([True, True, False, True])
            self.assertEqual(model.forward(x, e, 500, prompt_mask=mask).shape, x.shape)
            latents = model.denoise(e, latents=x, steps=2)
            self.assertTrue(torch.is_tensor(latents) and latents.shape == x.shape)

    def test_open(self):
        folder = synth(os.path.join(self.folder, "bf16"), layers=1, heads=2, joint_dim=96)
        want = load_weights(folder)
        with headrace.open(folder, framework="torch") as f:
            self.assertEqual(set(f.keys()), set(want))
            for name, tensor in f.stream(prefetch="64MiB"):
                self.assertEqual(tensor.dtype, torch.bfloat16)
                self.assertTrue(torch.equal(tensor, want[name]))
                self.assertTrue(torch.equal(f.get_tensor(name), tensor))
            for band in f.bands(["img_in.weight"]):
                rows = slice(band.row_begin, band.row_begin + band.n_rows)
                self.assertTrue(torch.equal(band.data, want["img_in.weight"][rows]))


unittest.main()
