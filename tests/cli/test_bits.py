# SPDX-License-Identifier: Apache-2.0
"""The same bits whatever the backend, budget, block size, depth, threads or layout of the files.

The model is wide enough (2048) that its largest tensors are cut into bands.
"""
import json
import os
import unittest

from cli_testing import ModelCase, headrace, main, read_header


class Bits(ModelCase):
    small = os.environ.get("HEADRACE_TEST_SMALL") == "1"  # under sanitizers: one band each
    width_options = ["--layers", 1, "--heads", 2 if small else 16, "--joint-dim", 96]
    model_options = width_options

    settings = [
        ["--io", "pread"],
        ["--io", "pread", "--direct", "off"],
        ["--direct", "off"],
        ["--ram", "230MiB"],
        ["--ring", "96MiB", "--block-size", "64KiB", "--iodepth", 3],
        ["--block-size", "32MiB", "--iodepth", 1],
        ["--iodepth", 64, "--block-size", "256KiB"],
        ["--threads", 1],
        ["--threads", 3],
        ["--threads", 5, "--io", "pread"],
        ["--device", "emulated"],  # memory of its own, asynchronous
        ["--device", "emulated:2000"],  # and copies come late
    ]
    layouts = [
        ["--shards", 5],
        ["--shards", 3, "--order", "shuffle", "--header-pad", 1],
        ["--order", "reverse", "--header-pad", 3],
        ["--prefix", "model.diffusion_model.", "--header-pad", 7],
    ]

    def output(self, *args, model=None):
        result = self.forward("--quiet", *args, model=model)
        self.assertEqual(result.code, 0, result.err)
        with open(self.path("out.safetensors"), "rb") as f:
            return f.read()

    def check(self, precision, dtype):
        model = self.path(f"{precision}-{dtype}")
        self.assertEqual(headrace("synth", model, *self.width_options, "--dtype", dtype).code, 0)
        want = self.output("--precision", precision, model=model)
        for setting in self.settings:
            if dtype == "f32" and "--ram" in setting:
                continue  # activations and bands are larger; the bound is tested with bf16
            with self.subTest(precision=precision, dtype=dtype, setting=setting):
                self.assertEqual(self.output("--precision", precision, *setting, model=model), want)
        for layout in self.layouts:
            with self.subTest(precision=precision, dtype=dtype, layout=layout):
                path = self.path("layout.safetensors" if "--prefix" in layout else "layout")
                made = headrace("synth", path, "--force", *self.width_options, "--dtype", dtype, *layout)
                self.assertEqual(made.code, 0, made.err)
                if os.path.isfile(path):
                    self.assertEqual(read_header(path)[0] % 2, 1)  # data at odd addresses
                self.assertEqual(self.output("--precision", precision, model=path), want)

    def test_bf16(self):
        self.check("bf16", "bf16")

    def test_f32(self):
        self.check("f32", "bf16")

    def test_fp8(self):
        self.check("bf16", "f8_e4m3")

    def test_repeat(self):
        once = self.output()
        self.assertEqual(self.output("--repeat", 3), once)

    def test_on_the_device(self):
        """Weights stay on a device within --vram: all of them, or some; copies come late."""
        once, needs = self.output(), []
        slots_mib = 96
        whole = json.loads(headrace("inspect", self.model, "--json").out)["streamed"]["bytes"]
        for spare in (whole // 2, 2 * whole):
            result = self.forward("--quiet", "--json", "--repeat", 3, "--device", "emulated:500",
                                  "--vram", (slots_mib + 8 << 20) + spare)
            self.assertEqual(result.code, 0, result.err)
            run = json.loads(result.out)
            with open(self.path("out.safetensors"), "rb") as f:
                self.assertEqual(f.read(), once)
            needs.append(run["device_resident_bytes"])
            self.assertEqual(run["resident_bytes"], 0)
            self.assertLessEqual(run["device_resident_bytes"], spare + (8 << 20))
            self.assertLessEqual(run["predicted"]["device_memory_bytes"], (slots_mib + 8 << 20) + spare)
            self.assertLessEqual(run["device_peak_bytes"], run["predicted"]["device_memory_bytes"])
            self.assertGreater(run["device_peak_bytes"], run["device_resident_bytes"])
            self.assertEqual(run["device_context_bytes"], 0)
            self.assertEqual(run["predicted"]["bytes_used"], run["bytes_used"])
            self.assertEqual(run["copied_bytes"], run["pass_bytes"])  # what stays is not copied again
        self.assertGreater(needs[0], whole // 4)
        self.assertEqual(run["pass_bytes"], 0)


if __name__ == "__main__":
    main()
