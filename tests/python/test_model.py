# SPDX-License-Identifier: Apache-2.0
"""headrace.Model: forwards, loops, errors, statistics."""
import importlib.util
import os
import unittest
from unittest import mock

from package_testing import JOINT_DIM, PackageCase, headrace, np
from headrace._lora import Adapters as AdaptersMixin


class Forward(PackageCase):
    def test_shapes_and_repeats(self):
        x, e = self.latents(), self.prompt()
        with headrace.Model(self.model, precision="f32") as model:
            v = model.forward(x, e, 750)
            self.assertEqual((v.shape, v.dtype), (x.shape, np.float32))
            self.assertGreater(v.std(), 0.1)
            self.assertTrue(np.array_equal(v, model.forward(x, e, 750)))
            with_ones = model.forward(x[None], e[None], 750)
            self.assertEqual(with_ones.shape, (1, *x.shape))
            self.assertTrue(np.array_equal(v, with_ones[0]))
            self.assertTrue(np.array_equal(v, model.forward(x.astype(np.float64), e.tolist(), 750)))
            self.assertTrue(np.array_equal(v, model.forward(np.asfortranarray(x), e, 750)))

    def test_one_open_model_while_sizes_stay(self):
        x, e = self.latents(), self.prompt()
        with headrace.Model(self.model) as model:
            model.forward(x, e, 750)
            opened = model._dit[0]
            for t in (500, 250):
                model.forward(self.latents(), self.prompt(), t)
                self.assertEqual(model._dit[0], opened)
            model.forward(x, self.prompt(5), 250)
            self.assertEqual(model._key[0][2], 5)
            mask = [1, 1, 0, 1, 1]
            model.forward(x, self.prompt(5), 250, prompt_mask=mask)
            self.assertEqual(model._key[0][2], 4)

    def test_samples_share_a_pass(self):
        samples = [headrace.Inputs(self.latents(), self.prompt(4)), headrace.Inputs(self.latents(), self.prompt(7)),
                   headrace.Inputs(self.latents(4, 4), self.prompt(2), references=[self.latents(8, 4)])]
        with headrace.Model(self.model) as model:
            together = model.forward_many(samples, 600)
            used = model.stats.bytes_used
            for sample, v in zip(samples, together):
                alone = model.forward(sample.latents, sample.prompt_emb, 600, references=sample.references)
                self.assertTrue(np.array_equal(alone, v))
            self.assertEqual(model.stats.bytes_used, used)

    def test_timesteps_known(self):
        """The same bits, and the conditioning weights are read once."""
        x, e, steps = self.latents(), self.prompt(), [1000, 700, 333.25]
        with headrace.Model(self.model, ram=None) as model:
            plain = [model.forward(x, e, t) for t in steps]
            whole = model.stats.bytes_used
            used = []
            for i, t in enumerate(steps):
                self.assertTrue(np.array_equal(plain[i], model.forward(x, e, t, timesteps=steps[i:])))
                used.append(model.stats.bytes_used)
            self.assertEqual(used[0], whole)
            self.assertLess(max(used[1:]), 0.72 * whole)
            # leaving the schedule opens the model anew
            model.forward(x, e, 1000, timesteps=steps)
            self.assertTrue(np.array_equal(plain[2], model.forward(x, e, steps[2])))
            with self.assert_raises(ValueError, "timesteps", "begin"):
                model.forward(x, e, 1000, timesteps=[999, 1])

    def test_zero_cond_t(self):
        inputs = {"latents": self.latents(), "prompt_emb": self.prompt(), "references": [self.latents()]}
        with headrace.Model(self.model) as model:
            off = model.forward(timestep=400, **inputs)
            model.zero_cond_t = True
            on = model.forward(timestep=400, **inputs)
            model.zero_cond_t = False
            self.assertTrue(np.array_equal(off, model.forward(timestep=400, **inputs)))
            self.assertFalse(np.array_equal(on, off))

    def test_layered(self):
        path = os.path.join(self.folder, "layered")
        headrace.synth(path, layers=1, heads=2, joint_dim=JOINT_DIM, layered=True)
        x = self.latents(n=3)
        with headrace.Model(path) as model:
            self.assertTrue(model.layered)
            v = model.forward(x, self.prompt(), 500, references=[self.latents()])
            self.assertEqual(v.shape, x.shape)

    def test_statistics(self):
        with headrace.Model(self.model, ram="300MiB") as model:
            self.assertIsNone(model.stats)
            model.forward(self.latents(), self.prompt(), 1)
            s = model.stats
            self.assertEqual((s.n_blocks, len(s.blocks)), (4, 4))
            self.assertIn("cpu", s.device_name)
            self.assertGreater(s.bytes_used, 30e6)
            self.assertLessEqual(sum(b.bytes for b in s.blocks), s.bytes_used)
            self.assertLessEqual(sum(b.disk_bytes for b in s.blocks), s.disk_bytes)
            self.assertTrue(all(a.begin_ns + a.wall_ns <= b.begin_ns for a, b in zip(s.blocks, s.blocks[1:])))
            self.assertTrue(all(b.compute_ns + b.stall_disk_ns <= b.wall_ns for b in s.blocks))
            self.assertEqual(s.copied_bytes, 0)
            self.assertIn(s.stream.io_name, ("io_uring", "libaio", "pread"))
            self.assertGreater(s.resident_bytes, 0)
            model.rest()
            model.forward(self.latents(), self.prompt(), 1)

    def test_progress(self):
        seen = []
        with headrace.Model(self.model) as model:
            model.forward(self.latents(), self.prompt(), 1, progress=lambda done, n: seen.append((done, n)))
            self.assertEqual(seen, [(1, 4), (2, 4), (3, 4), (4, 4)])

            def stop(done, n):
                if done == 2:
                    raise LookupError("stop")
            with self.assertRaises(LookupError):
                model.forward(self.latents(), self.prompt(), 1, progress=stop)
            model.forward(self.latents(), self.prompt(), 1)

    def test_errors(self):
        x, e = self.latents(), self.prompt()
        with self.assert_raises(FileNotFoundError, "no-model"):
            headrace.Model(os.path.join(self.folder, "no-model"))
        with self.assert_raises(ValueError, "activation", "gelu_tanh or quick_gelu"):
            headrace.Model(self.model, activation="relu")
        with self.assert_raises(ValueError, "attention", "own or cudnn"):
            headrace.Model(self.model, attention="flash")
        with headrace.Model(self.model, attention="cudnn") as model:
            with self.assert_raises(OSError, "attention by cuDNN needs an NVIDIA GPU"):
                model.forward(x, e, 500)
        with self.assert_raises(ValueError, "precision", "bf16 or f32"):
            headrace.Model(self.model, precision="fp8")
        for direct in ("auto", [1]):
            with self.assert_raises(ValueError, "direct ", "expected None or True or False"):
                headrace.Model(self.model, direct=direct)
        for name in ("layers", "threads", "iodepth"):
            for bad in (-1, 0, 2**40, 1.5, "2"):
                with self.assert_raises(ValueError, name):
                    headrace.Model(self.model, **{name: bad})
        for name in ("layers", "heads", "joint_dim", "shards"):
            with self.assert_raises(ValueError, name, "out of range"):
                headrace.synth(os.path.join(self.folder, "bad"), **{name: -1})
        with self.assert_raises(ValueError, "dtype 'q4'", "bf16 or f16"):
            headrace.synth(os.path.join(self.folder, "bad"), dtype="q4")
        for ram in ("400mb", "0.4gb", "400mib", "400000kb"):
            headrace.Model(self.model, ram=ram).close()
        for ram in ("1XB", "-1", 0, True, "GiB"):
            with self.assert_raises(ValueError, "ram", "no size"):
                headrace.Model(self.model, ram=ram)
        with headrace.Model(self.model, ram="8MiB") as model, self.assert_raises(OSError, "memory limit is 8 MiB"):
            model.forward(x, e, 1)
        with headrace.Model(self.model, device="warp") as model, self.assert_raises((OSError, ValueError), "warp"):
            model.forward(x, e, 1)
        with headrace.Model(self.model) as model:
            for bad, words in (((x[:8], e, 1), ("latents", "8, 6, 10")), ((x, e[:, :90], 1), ("prompt_emb", "90")),
                               ((x, e, 1001), ("timestep",)),
                               ((x, e, float("nan")), ("timestep nan",)), ((x[:, :5], e, 1), ("even",)),
                               ((x, e.astype(np.complex64), 1), ("prompt_emb", "complex64"))):
                with self.assert_raises(ValueError, *words):
                    model.forward(*bad)
            with self.assert_raises(ValueError, "prompt_mask"):
                model.forward(x, e, 1, prompt_mask=[1, 1])
            with self.assert_raises(ValueError, "17"):
                model.forward_many([headrace.Inputs(x, e)] * 17, 1)
        with self.assert_raises(ValueError, "closed"):
            model.forward(x, e, 1)
        with headrace.Model(self.model, lora=[os.path.join(self.folder, "lora.safetensors")]) as model:
            with self.assert_raises(OSError, "lora.safetensors"):
                model.forward(x, e, 1)
            model.set_lora([])
            model.forward(x, e, 1)
        with self.assert_raises(ValueError, "lora_mode", "runtime or merged"):
            headrace.Model(self.model, lora_mode="fused")
        broken = os.path.join(self.folder, "broken.safetensors")
        with open(broken, "wb") as f:
            f.write(b"\x10" + bytes(40))
        with self.assert_raises(ValueError, "broken.safetensors"):
            headrace.Model(broken)


class Denoise(PackageCase):
    def test_loop(self):
        """The loop is that of forwards with guidance, step by step."""
        x, pos, neg = self.latents(), self.prompt(5), self.prompt(2)
        seen = []
        with headrace.Model(self.model, precision="f32") as model:
            got = model.denoise(pos, latents=x, negative_emb=neg, steps=4, schedule="lightning", cfg_scale=3.0,
                                progress=lambda done, n: seen.append((done, n)))
            self.assertEqual(seen, [(i, 4) for i in (1, 2, 3, 4)])
            want, sigmas = x.astype(np.float64), [1, 0.9, 0.75, 0.5, 0]
            for s, after in zip(sigmas, sigmas[1:]):
                p, n = model.forward_many([headrace.Inputs(want, pos), headrace.Inputs(want, neg)], 1000 * s)
                want = want + (after - s) * (n.astype(np.float64) + 3 * (p.astype(np.float64) - n))
        self.assertLess(np.linalg.norm(got - want) / np.linalg.norm(want), 5e-6)

    def test_seed_size_pictures(self):
        with headrace.Model(self.model) as model:
            one = model.denoise(self.prompt(), width=80, height=48, seed=3, steps=2)
            self.assertEqual(one.shape, (16, 6, 10))
            e = self.prompt()
            a, b = model.denoise_many([headrace.Picture(e, width=80, height=48, seed=s) for s in (3, 4)], steps=2)
            self.assertFalse(np.array_equal(a, b))
            self.assertTrue(np.array_equal(a, model.denoise(e, width=80, height=48, seed=3, steps=2)))

    def test_resume_and_image(self):
        e, x, folder = self.prompt(), self.latents(), os.path.join(self.folder, "state")
        with headrace.Model(self.model) as model:
            first = model.denoise(e, latents=x, steps=2, resume=folder)
            self.assertTrue(np.array_equal(first, model.denoise(e, latents=x, steps=2, resume=folder)))
            with self.assert_raises(ValueError, "state"):
                model.denoise(e, latents=x, steps=3, resume=folder)
            mask = np.zeros((6, 10))
            kept = model.denoise(e, latents=x, init=x, mask=mask, steps=2)
            self.assertLess(np.abs(kept - x).max(), 1e-5)

    def test_errors(self):
        with headrace.Model(self.model) as model:
            with self.assert_raises(ValueError, "multiples of 16"):
                model.denoise(self.prompt(), width=80)
            with self.assert_raises(ValueError, "schedule", "dynamic or lightning"):
                model.denoise(self.prompt(), latents=self.latents(), schedule="karras")
            for steps in (0, -1, 2000, 2.5):
                with self.assert_raises(ValueError, "steps"):
                    model.denoise(self.prompt(), latents=self.latents(), steps=steps)
            for scale in (0, 0.0, 1e-60):
                with self.assert_raises(ValueError, "cfg_scale: 0", "write 1 for none"):
                    model.denoise(self.prompt(), latents=self.latents(), steps=1, cfg_scale=scale)
            for strength in (0.0, 1e-50, 1.5, -1):
                with self.assert_raises(ValueError, "strength"):
                    model.denoise(self.prompt(), latents=self.latents(), init=self.latents(), strength=strength)
            with self.assert_raises(ValueError, "mu", "-20 to 20"):
                model.denoise(self.prompt(), latents=self.latents(), steps=2, mu=200)
            with self.assert_raises(ValueError, "seed"):
                model.denoise(self.prompt(), width=80, height=48, seed=-1)
            with self.assertRaises(LookupError):
                model.denoise(self.prompt(), latents=self.latents(), steps=2, progress=self.stop)

    @staticmethod
    def stop(done, n):
        raise LookupError(f"{done} of {n}")


class Adapters(PackageCase):
    def test_names(self):
        """Names made up for adapters are free ones, also after some were deleted."""
        class Transformer(AdaptersMixin):
            def __init__(self, model):
                self.model = model
                self._init_adapters()

        with headrace.Model(self.model) as model:
            transformer = Transformer(model)
            for i in range(3):
                transformer.load_lora_adapter(f"{i}.safetensors")
            transformer.delete_adapters("default_0")
            transformer.load_lora_adapter("3.safetensors")
            transformer.load_lora_adapter("4.safetensors")
            self.assertEqual(transformer.peft_config, {"default_1": "1.safetensors", "default_2": "2.safetensors",
                                                       "default_0": "3.safetensors", "default_3": "4.safetensors"})


class Modules(unittest.TestCase):
    def test_those_of_other_libraries(self):
        """After `import headrace` alone; no attributes where their library is missing, which the message says."""
        for name in ("diffusers", "diffsynth"):
            with mock.patch("importlib.import_module", side_effect=ModuleNotFoundError("No module named 'torch'")):
                self.assertFalse(hasattr(headrace, name))
                with self.assertRaisesRegex(AttributeError, f"no attribute '{name}': No module named 'torch'"):
                    getattr(headrace, name)
            if importlib.util.find_spec(name):
                self.assertEqual(getattr(headrace, name).__name__, f"headrace.{name}")
        self.assertFalse(hasattr(headrace, "none_such"))


unittest.main()
