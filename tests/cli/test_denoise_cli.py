# SPDX-License-Identifier: Apache-2.0
"""headrace denoise: options, bytes, and runs killed at any moment."""
import json
import os
import random
import shutil
import signal
import subprocess
import time

from cli_testing import HEADRACE, ModelCase, environment, floats, headrace, main, write_tensors


class Denoise(ModelCase):
    model_options = ["--layers", 4, "--heads", 2, "--joint-dim", 96]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.guided = cls.path("guided.safetensors")
        cls.write_guided(cls.guided)

    @classmethod
    def write_guided(cls, path, **more):
        rng = random.Random(1)

        def tensor(*shape):
            n = 1
            for s in shape:
                n *= s
            return ("F32", list(shape), floats([rng.uniform(-1, 1) for _ in range(n)]))
        write_tensors(path, {"prompt_emb": tensor(5, 96), "negative_prompt_emb": tensor(1, 3, 96),
                             "latents": tensor(16, 6, 10), **{k: tensor(*v) for k, v in more.items()}})

    def denoise(self, *args, inputs=None, output="latents.safetensors"):
        out = self.path(output)
        if os.path.exists(out):
            os.remove(out)
        result = headrace("denoise", self.model, "--inputs", inputs or self.guided, "--steps", 3, "--output", out,
                          *args)
        self.assertEqual(os.path.exists(out), result.code == 0, result.err)
        return result

    def bytes_of(self, output="latents.safetensors"):
        with open(self.path(output), "rb") as f:
            return f.read()

    def test_bytes_per_step(self):
        """The modulation weights, a third of the model, are read once, both prompts in one pass."""
        stats = json.loads(self.denoise("--json", "--quiet").out)
        first, *later = [s["bytes_used"] for s in stats["steps"]]
        whole = json.loads(headrace("inspect", self.model, "--json").out)["streamed"]["bytes"]
        self.assertEqual(len(later), 2)
        self.assertEqual(first, whole)
        for step in later:
            self.assertLess(step, 0.72 * whole)
        self.assertEqual(stats["bytes_used"], first + sum(later))

    def test_statistics(self):
        stats = json.loads(self.denoise("--json", "--quiet").out)
        for s in [*stats["steps"], stats["loop"]]:
            self.assertLessEqual(s["stall_disk_s"] + s["compute_s"], s["wall_s"] * 1.001)
            self.assertGreaterEqual(s["stall_space_s"], 0)
            self.assertAlmostEqual(s["bound_by_disk"], s["stall_disk_s"] / s["wall_s"], 6)
            self.assertAlmostEqual(s["gbps"], s["bytes_used"] / s["wall_s"] / 1e9, 6)
        self.assertEqual(stats["loop"]["bytes_used"], stats["bytes_used"])
        self.assertAlmostEqual(stats["loop"]["wall_s"], sum(s["wall_s"] for s in stats["steps"]), 6)
        self.assertLessEqual(stats["steps"][-1]["peak_memory_bytes"], stats["peak_memory_bytes"])
        result = self.denoise()
        self.assertRegex(result.out, r"step +3 .*GB/s.*waiting for the disk")
        self.assertRegex(result.out, r"bound by +disk \d+ %, compute \d+ %")

    def terminal(self, *args):
        """What a run writes to a terminal."""
        master, slave = os.openpty()
        process = subprocess.Popen([HEADRACE, *map(str, args)], stdout=subprocess.DEVNULL, stderr=slave,
                                   env=environment(TERM="xterm"))
        os.close(slave)
        text = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:
                break
            if not piece:
                break
            text += piece
        os.close(master)
        self.assertEqual(process.wait(), 0)
        return text.decode()

    def test_progress(self):
        """On a terminal, of the whole loop; none elsewhere, nor with --quiet."""
        run = ["denoise", self.model, "--inputs", self.guided, "--steps", 3]
        text = self.terminal(*run)
        self.assertIn("modulation of all steps", text)
        self.assertRegex(text, r"step [1-3] of 3, (block [1-4] of 4|modulation of all steps) .* GB/s .* to go")
        self.assertTrue(text.endswith("\x1b[J"), text[-80:])  # what is left is test_live.py's question
        self.assertEqual(self.terminal(*run, "--quiet"), "")
        self.assertNotIn("to go", self.denoise().err)

    def test_settings_do_not_change_bits(self):
        self.assertEqual(self.denoise("--quiet").code, 0)
        want = self.bytes_of()
        for args in (["--io", "pread"], ["--threads", 1], ["--ram", "150MiB"], ["--direct", "off", "--ring", "64MiB"]):
            self.assertEqual(self.denoise(*args, "--quiet").code, 0)
            self.assertEqual(self.bytes_of(), want, args)

    def test_onload_dtype(self):
        """Rounding is never a default, and is said wherever it was done."""
        exact = self.denoise("--ram", "150MiB", "--json", "--quiet")
        self.assertIs(json.loads(exact.out)["lossy"], False)
        want = self.bytes_of()
        self.assertEqual(self.denoise("--ram", "150MiB", "--onload-dtype", "model", "--quiet").code, 0)
        self.assertEqual(self.bytes_of(), want)
        stats = json.loads(self.denoise("--ram", "150MiB", "--onload-dtype", "fp8", "--json", "--quiet").out)
        self.assertIs(stats["lossy"], True)
        self.assertLessEqual(stats["lossy_bytes"], stats["resident_bytes"])
        self.assertLess(stats["resident_bytes"], json.loads(exact.out)["resident_bytes"])  # all stays, in half of it
        self.assertNotEqual(self.bytes_of(), want)
        text = self.denoise("--ram", "150MiB", "--onload-dtype", "fp8").out
        self.assertIn("lossy     weights that stay in memory", text)
        self.assertNotIn("lossy", self.denoise("--ram", "150MiB").out)
        self.assertIn("lossy", headrace("denoise", "--help").out)
        # without passes to stay between, nothing is rounded
        self.assertIs(json.loads(self.denoise("--onload-dtype", "fp8", "--json", "--quiet").out)["lossy"], False)

    def test_seed_and_size(self):
        inputs = self.path("prompt-only.safetensors")
        write_tensors(inputs, {"prompt_emb": ("F32", [4, 96], floats([0.5] * 384))})
        self.assert_fails(self.denoise(inputs=inputs), "no tensor is called latents; put it in", "--width and --height")
        size = ["--width", 80, "--height", 48]
        outputs = []
        for seed in (1, 1, 2):
            self.assertEqual(self.denoise(*size, "--seed", seed, inputs=inputs).code, 0)
            outputs.append(self.bytes_of())
        self.assertEqual(outputs[0], outputs[1])
        self.assertNotEqual(outputs[0], outputs[2])
        # where latents are in all inputs, nothing is drawn
        self.assert_fails(self.denoise("--seed", 1), "--seed", "leave it out")
        self.assertEqual(self.denoise("--seed", 1, *size, "--inputs", inputs).code, 0)
        self.assertEqual(self.denoise(*size).code, 0)
        self.assert_fails(self.denoise("--width", 64, "--height", 48), "latents are 80 x 48 pixels", "leave them out")

    def test_several_inputs(self):
        second = self.path("second.safetensors")
        shutil.copy(self.inputs, second)
        self.assertEqual(self.denoise("--inputs", second).code, 0)
        with open(self.path("latents.safetensors"), "rb") as f:
            header = f.read(400)
        self.assertIn(b"latents.0", header)
        self.assertIn(b"latents.1", header)

    def test_image_to_image(self):
        path = self.path("image.safetensors")
        self.write_guided(path, init_latents=(16, 6, 10), inpaint_mask=(6, 10))
        self.assertEqual(self.denoise("--strength", 0.6, inputs=path).code, 0)
        self.assert_fails(self.denoise("--strength", 0.6), "start from")
        self.write_guided(path, init_latents=(16, 6, 8))
        self.assert_fails(self.denoise(inputs=path), "init_latents", "[16, 6, 8]")
        self.write_guided(path, inpaint_mask=(6, 10))
        self.assert_fails(self.denoise(inputs=path), "mask")

    def test_usage(self):
        for args, word in ((["--strength", "2"], "--strength"), (["--width", "80"], "go together"),
                           (["--cfg-scale", "nan"], "finite"), (["--cfg-scale", "0"], "write 1 for none"),
                           (["--cfg-scale", "1e-60"], "write 1 for none"), (["--strength", "0"], "more than 0"),
                           (["--strength", "1e-50"], "more than 0"), (["--mu", "200"], "expected -20 to 20"),
                           (["--seed", 2 ** 64 - 1], "--seed"), (["--steps", "0"], "1 to 1000"),
                           (["--schedule", "karras"], "dynamic|lightning")):
            result = headrace("denoise", self.model, "--inputs", self.guided, *args)
            self.assertEqual(result.code, 2, result.err)
            self.assertIn(word, result.err)
        self.assertEqual(headrace("denoise", self.model).code, 2)

    def test_killed_at_any_moment(self):
        """SIGKILL 30 times, with HEADRACE_TEST_LONG=1 200: the run goes on from its last step, to the same bits."""
        steps = ["--steps", 12]
        self.assertEqual(self.denoise(*steps).code, 0)
        want = self.bytes_of()
        rng = random.Random(7)
        env = environment(HEADRACE_FAULTS="delay=3000")
        rounds = 40 if os.environ.get("HEADRACE_TEST_LONG") == "1" else 6  # of 5 kills
        for round_idx in range(rounds):
            folder = self.path(f"resume-{round_idx}")
            kills = 0
            while True:
                process = subprocess.Popen(
                    [HEADRACE, "denoise", self.model, "--inputs", self.guided, "--steps", "12", "--resume", folder,
                     "--output", self.path("killed"), "--io", "fault", "--block-size", "64KiB", "--quiet"],
                    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)
                if kills < 5:
                    time.sleep(rng.uniform(0.01, 0.25))
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                err = process.communicate(timeout=120)[1]
                if process.returncode == 0:
                    break
                self.assertEqual(process.returncode, -signal.SIGKILL, err)
            self.assertEqual(self.bytes_of("killed"), want)
            left = [n for n in os.listdir(folder) if n.startswith("step-")]
            self.assertIn("step-12.safetensors", left)
            os.remove(self.path("killed"))
            for name in os.listdir(self.folder):  # of a process killed while it wrote the output
                if name.startswith(".killed.tmp-"):
                    os.remove(self.path(name))

    def test_finished_run_writes_again(self):
        folder = self.path("finished")
        self.assertEqual(self.denoise("--resume", folder).code, 0)
        want = self.bytes_of()
        result = self.denoise("--resume", folder, "--json", "--quiet")
        self.assertEqual(result.code, 0)
        self.assertEqual(json.loads(result.out)["bytes_read"], 0)
        self.assertEqual(self.bytes_of(), want)
        self.assert_fails(self.denoise("--resume", folder, "--cfg-scale", 2), "guidance", "finished")
        for args in (["--output", os.path.join(folder, "state.json")], ["--output", os.path.join(folder, "step-3.x")],
                     ["--trace", os.path.join(folder, "trace.json")]):
            result = headrace("denoise", self.model, "--inputs", self.guided, "--steps", 3, "--resume", folder, *args)
            self.assert_fails(result, args[0], "lies in the folder of --resume; name another file")
        self.assertEqual(self.denoise("--resume", folder).code, 0)


if __name__ == "__main__":
    main()
