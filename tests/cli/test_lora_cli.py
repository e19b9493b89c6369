# SPDX-License-Identifier: Apache-2.0
"""--lora and --lora-mode: parsing, reports, memory, resume."""
import json
import math
import os
import random
import struct

from cli_testing import ModelCase, floats, headrace, main, read_header, write_tensors

WIDTH, RANK = 256, 8
LAYERS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_out.0", "transformer_blocks.1.attn.to_v",
          "transformer_blocks.1.attn.add_k_proj")


class Lora(ModelCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lora = cls.path("lora.safetensors")
        cls.write_lora(cls.lora, 1)

    @classmethod
    def write_lora(cls, path, seed, rank=RANK, **more):
        rng = random.Random(seed)
        tensors = dict(more)
        for layer in LAYERS:
            for half, shape in (("A", [rank, WIDTH]), ("B", [WIDTH, rank])):
                values = [rng.uniform(-0.3, 0.3) for _ in range(shape[0] * shape[1])]
                tensors[f"transformer.{layer}.lora_{half}.weight"] = ("F32", shape, floats(values))
        write_tensors(path, tensors)

    def velocity(self, *args):
        result = self.forward(*args, "--quiet")
        self.assertEqual(result.code, 0, result.err)
        path = self.path("out.safetensors")
        n, header = read_header(path)
        begin, end = header["velocity"]["data_offsets"]
        with open(path, "rb") as f:
            f.seek(8 + n + begin)
            return struct.unpack(f"<{(end - begin) // 4}f", f.read(end - begin))

    def distance(self, a, b):
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b)) / sum(y * y for y in b))

    def test_usage(self):
        many = []
        for i in range(9):
            many += ["--lora", self.path(f"{i}.safetensors")]
        for args, word in ((["--lora", self.lora + ":strong"], "no finite number"),
                           (["--lora", self.lora + ":"], "no finite number"),
                           (["--lora", self.lora + ":inf"], "no finite number"),
                           (["--lora", self.lora + ":1e40"], "no finite number"),
                           (["--lora", ":0.5"], "empty name"), (["--lora", ""], "empty name"),
                           (["--lora", self.lora, "--lora", self.lora + ":0.5"], "twice"),
                           (many, "more than 8"), (["--lora-mode", "fused"], "runtime|merged")):
            for verb in ("forward", "denoise"):
                result = headrace(verb, self.model, "--inputs", self.inputs, *args)
                self.assertEqual(result.code, 2, result.err)
                self.assertIn(word, result.err)
        self.assertEqual(headrace("inspect", self.model, "--lora", self.lora).code, 2)

    def test_files_that_are_wrong(self):
        self.assert_fails(self.forward("--lora", self.path("none.safetensors")), "none.safetensors")
        self.assert_fails(self.forward("--lora", self.path("none.safetensors:0.5")), "none.safetensors", "No such")
        other = self.path("other.safetensors")
        write_tensors(other, {"unet.down.lora_A.weight": ("F32", [1, 4], floats([1] * 4))})
        self.assert_fails(self.forward("--lora", other), "none of its 1 tensors", "LoRA of Qwen-Image")
        self.write_lora(other, 1, **{LAYERS[0] + ".dora_scale": ("F32", [1], floats([1]))})
        self.assert_fails(self.forward("--lora", other), "DoRA")
        before = os.path.getsize(self.lora)
        result = headrace("forward", self.model, "--inputs", self.inputs, "--timestep", 750, "--lora", self.lora,
                          "--output", self.lora)
        self.assert_fails(result, "one of the LoRAs")
        self.assertEqual(os.path.getsize(self.lora), before)

    def test_modes_and_strengths(self):
        for precision, bound in (("f32", 1e-6), ("bf16", 3e-3)):
            args = ["--precision", precision]
            plain = self.velocity(*args)
            one = self.velocity(*args, "--lora", self.lora)
            self.assertGreater(self.distance(one, plain), 1e-2)
            merged = self.velocity(*args, "--lora", self.lora, "--lora-mode", "merged")
            self.assertLess(self.distance(merged, one), bound)
            self.assertEqual(self.velocity(*args, "--lora", self.lora + ":0"), plain)
            self.assertEqual(self.velocity(*args, "--lora", self.lora + ":1.0"), one)
            self.assertNotEqual(self.velocity(*args, "--lora", self.lora + ":-0.5"), one)
        again = self.path("twin:0.5")  # a colon in a name, and half of it twice
        self.write_lora(again, 1)
        halves = self.velocity("--precision", "f32", "--lora", self.lora + ":0.5", "--lora", again + ":0.5")
        self.assertLess(self.distance(halves, self.velocity("--precision", "f32", "--lora", self.lora)), 1e-6)
        self.assertEqual(self.velocity("--lora", again), self.velocity("--lora", self.lora))

    def test_report(self):
        path = self.path("more.safetensors")
        self.write_lora(path, 1, **{f"text_encoder.{i}.lora_A.weight": ("F32", [1, 4], floats([0] * 4))
                                    for i in range(5)})
        result = self.forward("--lora", path + ":0.75", "--lora-mode", "merged", "--json")
        self.assertEqual(result.code, 0, result.err)
        self.assertIn("5 of 13 tensors fit no layer of the model", result.err)
        self.assertIn("text_encoder.0.lora_A.weight", result.err)
        stats = json.loads(result.out)
        self.assertEqual(stats["lora_mode"], "merged")
        self.assertGreater(stats["lora_bytes"], 4 * 2 * RANK * WIDTH)
        (lora,) = stats["loras"]
        self.assertEqual((lora["path"], lora["strength"], lora["n_modules"], lora["n_ignored"], len(lora["ignored"])),
                         (path, 0.75, 4, 5, 4))
        self.assertIn("strength 0.75, 4 layers, others ignored", self.forward("--lora", path + ":0.75").out)
        self.assertNotIn("ignored", self.forward("--lora", path, "--quiet").err)
        self.assertNotIn("loras", json.loads(self.forward("--json").out))

    def test_memory(self):
        """A LoRA of some size is part of the bound: refused where it does not fit, and held where it does."""
        path = self.path("wide.safetensors")
        rank = 4000
        zeros = bytes(4 * rank * WIDTH)
        write_tensors(path, {f"transformer.{layer}.lora_{half}.weight": ("F32", shape, zeros) for layer in LAYERS
                             for half, shape in (("A", [rank, WIDTH]), ("B", [WIDTH, rank]))})
        small = os.environ.get("HEADRACE_TEST_SMALL") == "1"  # a sanitizer's memory is not ours
        if not small:
            self.assertEqual(self.forward("--threads", 2, "--ram", "75MiB").code, 0)
        for mode in ("runtime", "merged"):
            args = ["--lora", path, "--lora-mode", mode, "--json", "--quiet", "--threads", 2, "--ram"]
            self.assert_fails(self.forward(*args, "75MiB"), "activations and LoRAs", "75 MiB")
            if small:
                continue
            result = self.forward(*args, "220MiB")
            self.assertEqual(result.code, 0, result.err)
            stats = json.loads(result.out)
            self.assertGreater(stats["lora_bytes"], 2 * len(LAYERS) * len(zeros))
            self.assertLessEqual(stats["peak_memory_bytes"], 220 << 20)

    def test_resume(self):
        folder = self.path("resume")

        def denoise(*args):
            return headrace("denoise", self.model, "--inputs", self.inputs, "--steps", 2, "--resume", folder,
                            "--output", self.path("latents.safetensors"), "--quiet", *args)

        self.assertEqual(denoise("--lora", self.lora + ":0.5").code, 0)
        self.assertEqual(denoise("--lora", self.lora + ":0.5").code, 0)
        self.assert_fails(denoise("--lora", self.lora), "strength of LoRA 0: 0.5, now 1")
        merged = denoise("--lora", self.lora + ":0.5", "--lora-mode", "merged")
        self.assert_fails(merged, "LoRA mode: runtime, now merged")
        self.assert_fails(denoise(), "LoRA")
        other = self.path("retrained.safetensors")
        self.write_lora(other, 2)
        self.assert_fails(denoise("--lora", other + ":0.5"), "another LoRA 0")


if __name__ == "__main__":
    main()
