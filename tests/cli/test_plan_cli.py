# SPDX-License-Identifier: Apache-2.0
"""headrace plan against the runs that it plans."""
import json
import os
import re
import resource

from cli_testing import ModelCase, floats, headrace, main, write_tensors

MIB = 1 << 20


class Plan(ModelCase):
    model_options = ["--layers", 4, "--heads", 2, "--joint-dim", 96]
    input_options = ["--width", 80, "--height", 48, "--text-tokens", 4, "--negative-tokens", 3]
    sizes = input_options

    def plan(self, *args):
        result = headrace("plan", self.model, *args, "--json", "--quiet")
        self.assertEqual(result.code, 0, result.err)
        return json.loads(result.out)

    def assert_predicts(self, plan, run):
        """Bytes exactly; memory from above, by not more than what is kept for stacks and libraries."""
        self.assertEqual(run["predicted"]["bytes_used"], run["bytes_used"])
        self.assertEqual(plan["mods_bytes"], run["mods_bytes"])
        self.assertEqual(plan["first_bytes"], run["predicted"]["first_bytes"])
        if plan["resident_bytes"] == 0:
            self.assertEqual(plan["run_bytes"], run["bytes_used"])
        else:  # what the process itself holds differs by some kB from the next one, and by it what may stay
            self.assertLess(abs(plan["resident_bytes"] - run["resident_bytes"]), 2 * MIB)
        if os.environ.get("HEADRACE_TEST_SMALL") != "1":  # a sanitizer has memory of its own
            for predicted in (plan["peak_memory_bytes"] + MIB, run["predicted"]["peak_memory_bytes"]):
                self.assertGreaterEqual(predicted, run["peak_memory_bytes"])
                self.assertLess(predicted, 1.3 * run["peak_memory_bytes"] + 56 * MIB)

    def test_denoise(self):
        # Little, but enough for a sanitizer's own memory.
        tight = "160MiB" if os.environ.get("HEADRACE_TEST_SMALL") == "1" else "90MiB"
        for args in ([], ["--ram", tight], ["--ram", "600MiB"], ["--cfg-scale", 1], ["--steps", 1]):
            steps = ["--steps", 4] if "--steps" not in args else []
            run = headrace("denoise", self.model, "--inputs", self.inputs, *steps, *args, "--json", "--quiet")
            self.assertEqual(run.code, 0, run.err)
            run = json.loads(run.out)
            plan = self.plan("--inputs", self.inputs, *steps, *args)
            self.assert_predicts(plan, run)
            self.assertEqual(run["settings"]["cfg_scale"], 1 if "--cfg-scale" in args else 4)  # as used
            bytes_used = [s["bytes_used"] for s in run["steps"]]
            predicted = run["predicted"]
            self.assertEqual(bytes_used,
                             [predicted["first_bytes"]] + [predicted["later_bytes"]] * (len(bytes_used) - 1))
            self.assertEqual(plan["up_front_pays"], len(bytes_used) > 1)
            # sizes instead of inputs
            if "--cfg-scale" not in args:
                by_size = self.plan(*self.sizes, *steps, *args)
                for key in ("first_bytes", "up_front_bytes", "activation_bytes"):
                    self.assertEqual(by_size[key], plan[key])

    def test_forward(self):
        run = json.loads(self.forward("--json", "--quiet").out)
        self.assertIsNone(run["settings"]["cfg_scale"])
        plan = self.plan("--inputs", self.inputs)
        self.assert_predicts(plan, run)
        self.assertEqual((plan["n_steps"], plan["up_front_pays"]), (1, False))
        self.assertIn(plan["bound_by"], ("disk", "compute"))
        self.assertEqual((plan["link_gbps"], plan["link_s"]), (0, 0))  # no copies
        self.assertGreater(plan["disk_gbps"], 0)
        self.assertEqual(plan["run_s"], max(plan["disk_s"], plan["compute_s"]))

    def test_text(self):
        result = headrace("plan", self.model, "--steps", 3, *self.sizes)
        self.assertEqual((result.code, result.err), (0, ""))
        for word in ("3 steps", "in each later one", "saves", "resident", "GB/s", "link      none", "bound by"):
            self.assertIn(word, result.out)
        self.assertIn("once either way", headrace("plan", self.model).out)
        late = headrace("plan", self.model, "--steps", 2, *self.sizes, "--device", "emulated:0")
        self.assertEqual(late.code, 0, late.err)
        self.assertRegex(late.out, r"link +[\d.]+ GB/s, measured: ")
        late = headrace("plan", self.model, "--steps", 2, *self.sizes, "--device", "emulated:0", "--vram", "120MiB")
        self.assertRegex(late.out, r"device +at most 1[012]\d MB of its own memory \(.*weights that stay \d+ MB\)")
        self.assertRegex(self.forward().out, r"predicted \d+ MB of weights, at most \d+ MB of memory; used \d+ MB")

    def test_large(self):
        """Sizes that would take hours take seconds, and the memory of small ones."""
        big = ["--width", 8192, "--height", 8192, "--steps", 2, "--ram", "4GiB"]
        plan = self.plan(*big)
        self.assertTrue(plan["compute_extrapolated"])
        self.assertEqual(plan["tokens"], 512 * 512 + 5)
        small, large = plan["compute_sample_tokens"]
        self.assertTrue(small < large < plan["tokens"] / 4, plan)
        self.assertGreater(plan["compute_s"], 60)
        self.assertGreater(plan["activation_bytes"], 1 << 30)
        if os.environ.get("HEADRACE_TEST_SMALL") != "1":
            self.assertLess(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10, 1 << 30)
        text = headrace("plan", self.model, *big).out
        self.assertRegex(text, r"compute .* extrapolated to 262149 tokens from one and two blocks of \d+ and \d+, meas")
        exact = self.plan(*self.sizes, "--steps", 2)
        self.assertEqual((exact["compute_extrapolated"], exact["compute_sample_tokens"]), (False, None))
        self.assertEqual(exact["tokens"], 2 * 15 + 4 + 3)

    def test_map(self):
        for args in (["--steps", 3], ["--steps", 3, "--device", "emulated:0", "--vram", "110MiB"], []):
            plan = self.plan(*self.sizes[:-2], *args)
            own = [x for x in plan["memory"] if not x["overlies"]]
            by_kind = {kind: sum(x["bytes"] for x in own if x["kind"] == kind)
                       for kind in ("activations", "scales", "lora", "weights", "device")}
            self.assertEqual(sum(by_kind.values()), sum(x["bytes"] for x in own))
            self.assertEqual(plan["activation_bytes"], by_kind["activations"] + by_kind["scales"] + by_kind["lora"])
            self.assertEqual(plan["device_resident_bytes"], by_kind["weights"])
            if "--vram" in args:
                self.assertEqual(plan["device_memory_bytes"], sum(by_kind.values()))
                self.assertGreater(by_kind["weights"], 0)
            img = next(x for x in plan["memory"] if x["name"] == "img")
            self.assertEqual(img, {"name": "img", "kind": "activations", "sample": 0, "overlies": None, "dtype": "F32",
                                   "shape": [15, 256], "offset_bytes": img["offset_bytes"], "bytes": 15 * 256 * 4})
        guided = self.plan(*self.sizes, "--steps", 3)
        self.assertEqual({x["sample"] for x in guided["memory"]}, {None, 0, 1})

    def test_map_text(self):
        plain = headrace("plan", self.model, "--steps", 3, *self.sizes)
        self.assertNotIn("map ", plain.out)
        full = headrace("plan", self.model, "--steps", 3, *self.sizes, "--verbose", "--device", "emulated:0",
                        "--vram", "110MiB")
        self.assertEqual(full.code, 0, full.err)
        self.assertRegex(full.out, r"map +activations \d+ kB, buffers 20\n")
        self.assertRegex(full.out, r"\n {12}img +F32 +\[15, 256\] +2 x 15 kB\n")  # both prompts
        self.assertRegex(full.out, r"\n {14}work +F32 ")  # overlies the region above it
        self.assertRegex(full.out, r"map +weights that stay on the device \d+ MB")
        self.assertRegex(full.out, r"\n {12}slots of weights +U8 ")

    def test_inputs_without_latents(self):
        prompt = self.path("prompt.safetensors")
        write_tensors(prompt, {"prompt_emb": ("F32", [4, 96], floats([0.5] * 384))})
        self.assertEqual(headrace("plan", self.model, "--inputs", prompt, "--steps", 2, "--width", 64).code, 2)
        by_size = self.plan("--inputs", prompt, "--steps", 2, "--width", 80, "--height", 48)
        self.assertEqual(by_size["activation_bytes"],
                         self.plan("--steps", 2, "--width", 80, "--height", 48, "--text-tokens", 4)["activation_bytes"])

    def test_refuses_what_the_run_refuses(self):
        for args in (["--ram", "40MiB"], ["--layers", 9], ["--device", "none_such"]):
            run, plan = self.forward(*args), headrace("plan", self.model, "--inputs", self.inputs, *args)
            self.assert_fails(run)
            self.assert_fails(plan)
            # the process itself may differ by a MiB
            plain = [re.sub(r"(need|libraries) \d+", r"\1 N", r.lines[-1]) for r in (run, plan)]
            self.assertEqual(plain[0], plain[1])

    def test_usage(self):
        for args, word in ((["--inputs", self.inputs, "--text-tokens", 3], "--text-tokens"),
                           (["--negative-tokens", 3], "--steps"), (["--output", "x"], "--output"),
                           (["--inputs", self.inputs, "--width", 80], "go together"),
                           (["--steps", 2, "--cfg-scale", 0], "write 1 for none"),
                           (["--width", 81], "16")):
            result = headrace("plan", self.model, *args)
            self.assertEqual(result.code, 2, result.err)
            self.assertIn(word, result.err)
        self.assert_fails(headrace("plan", os.path.join(self.folder, "none")), "none")


if __name__ == "__main__":
    main()
