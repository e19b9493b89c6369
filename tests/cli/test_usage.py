# SPDX-License-Identifier: Apache-2.0
"""Verbs, options and what is said when they are wrong; what is printed when all is well."""
import json
import os
import subprocess

from cli_testing import HEADRACE, ModelCase, environment, headrace, main


class Usage(ModelCase):
    def assert_usage(self, args, *words):
        result = headrace(*args)
        self.assertEqual(result.code, 2, result.err)
        self.assertEqual(len(result.lines), 1, result.err)
        self.assertEqual(result.out, "")
        for word in words:
            self.assertIn(word, result.err)

    def test_verbs(self):
        self.assert_usage([], "verb")
        self.assert_usage(["forwrad", "x"], "forwrad", "did you mean forward")
        self.assert_usage(["zzzzzzzzz", "x"], "zzzzzzzzz", "there are forward, denoise", "--help")
        self.assert_usage(["inspect"], "MODEL")
        self.assert_usage(["forward"], "MODEL")

    def test_options(self):
        forward = ["forward", self.model, "--inputs", self.inputs, "--timestep", "1"]
        self.assert_usage([*forward, "--precison", "f32"], "--precison", "did you mean --precision")
        self.assert_usage([*forward, "--precision", "f16"], "--precision", "f16", "bf16|f32", "did you mean bf16")
        self.assert_usage([*forward, "--direct=zzzzzz"], "--direct", "zzzzzz", "auto|on|off")
        self.assert_usage([*forward, "--precison=f32"], "did you mean --precision")
        self.assert_usage([*forward, "--shard", "2"], "no option is called --shard; see")  # synth has one like it
        self.assert_usage([*forward, "--precision"], "--precision", "needs a value")
        self.assert_usage([*forward, "--attention", "cuddn"], "own|cudnn", "did you mean cudnn")
        self.assert_usage(["forward", self.model, "--inputs", "--timestep", "750"],
                          "--inputs needs a value: FILE; one that reads so is written --inputs=--timestep")
        self.assert_usage([*forward, "--trace", "--timestep=3"], "is written --trace=--timestep=3")
        self.assert_usage([*forward, "--io", "uring"], "--io", '"uring"', "auto|io_uring|libaio|pread|cufile\n")
        self.assert_usage([*forward, "--io", "io_urin"], "did you mean io_uring")
        self.assert_usage([*forward, "--io", "null", "--output", "x"], "its result is none; leave --output out")
        result = headrace(*forward, "--output", "x", env=environment(HEADRACE_IO="null"))
        self.assertEqual((result.code, "leave --output out" in result.err), (2, True), result.err)
        self.assert_usage([*forward, "--io", "PRead"], '"PRead" is not one of', "did you mean pread")
        self.assert_usage([*forward, "--ram", "18446744073709551615"], "is too large")
        for option in ("--device", "--threads", "--precision", "--activation"):
            self.assert_usage(["tune", self.model, option, "1"], f"{option} is not an option of tune")
        self.assert_usage([*forward, "--layers", "0"], "--layers", "1 to 10000")
        self.assert_usage([*forward, "--layers", "x"], "--layers", "whole number")
        self.assert_usage([*forward, "--layers", "-1"], "--layers", "whole number")
        self.assert_usage([*forward, "--shards", "2"], "--shards", "not an option of forward, but of synth")
        self.assert_usage([*forward, "--order", "file"], "but of bench and synth")
        self.assert_usage([*forward, "--json=1"], "--json", "no value")
        self.assert_usage([*forward, "--zero-cond-t", "--no-zero-cond-t"], "exclude")
        self.assert_usage(["forward", self.model, "--timestep", "1"], "--inputs")
        self.assert_usage(["forward", self.model, "--inputs", self.inputs], "--timestep")
        self.assert_usage([*forward[:-1], "abc"], "--timestep", "abc")
        for bad in ("nan", "-1", "1000.5", "inf", "2000"):
            self.assert_usage([*forward[:-1], bad], f"--timestep: {bad} is", "expected a number from 0 to 1000")
        self.assert_usage(["inputs", self.model], "--output")
        self.assert_usage(["inputs", self.model, "--output", "x", "--width", "100"], "multiples of 16")
        self.assert_usage(["synth", "a", "b"], "one model")

    def test_sizes(self):
        forward = ["forward", self.model, "--inputs", self.inputs, "--timestep", "1", "--quiet"]
        for bad in ("400", "-1GiB", "1XB", "1.GB", "GiB", "", "99999999999GiB", "0x10MB", " 1GiB", "1 GiB", "nan"):
            self.assert_usage([*forward, "--ram", bad], "--ram")
        self.assert_usage([*forward, "--block-size", "3MiB"], "power of two")
        self.assert_usage([*forward, "--block-size", "1KiB"],
                          "--block-size: 1KiB is too small; expected 64KiB to 32MiB")
        self.assert_usage([*forward, "--block-size", "64MiB"], "64MiB is too large; expected 64KiB to 32MiB")
        self.assert_usage([*forward, "--ram", "400"], "--ram: 400 is too small, a bare number counts bytes; "
                          "expected at least 1MiB, such as 400MiB")
        for large in ("99999999TiB", "99999999999999999999999"):
            self.assert_usage([*forward, "--ram", large], f"--ram: {large} is too large")
        for good in ("400MiB", "419430400", "0.5GB", "1.5gib", "800000KB", "419430400B"):
            self.assertEqual(headrace(*forward, "--ram", good).code, 0, good)

    def test_help(self):
        for args in (["--help"], ["-h"], ["help"], ["forward", "--help"], ["inspect", "--help"], ["synth", "--help"],
                     ["inputs", "--help"], ["--version"]):
            result = headrace(*args)
            self.assertEqual(result.code, 0)
            self.assertIn("headrace", result.out)
            self.assertEqual(result.err, "")
        for verb in ("forward", "synth", "completion"):
            want = headrace(verb, "--help").out
            self.assertIn(f"usage: headrace {verb}", want)
            for args in ([verb, "-h"], ["help", verb]):
                result = headrace(*args)
                self.assertEqual((result.code, result.out, result.err), (0, want, ""))
        self.assert_usage(["help", "forwrad"], "did you mean forward")

    def test_help_is_of_the_verb(self):
        for verb in ("forward", "denoise", "plan", "bench", "inputs"):
            text = headrace(verb, "--help").out
            for other in {"synth:", "plan:", "denoise:"}:
                self.assertNotIn(other, text, verb)
        self.assertNotIn("256", headrace("denoise", "--help").out)

    def test_short_output(self):
        for args in (["inputs", self.model], ["checksum", self.model], ["forward", self.model, "--inputs", self.inputs,
                     "--timestep", 1], ["denoise", self.model, "--inputs", self.inputs, "--steps", 1]):
            out = self.path("short-" + args[0])
            result = headrace(*args, "-o", out, "--quiet")
            self.assertEqual((result.code, os.path.exists(out)), (0, True), result.err)

    def test_defaults(self):
        """As the sources have them, which the help does not repeat."""
        text = "".join(headrace(verb, "--help").out for verb in ("denoise", "synth", "bench", "inputs"))
        for words in ("default 192MiB", "as tune found, else 4MiB)", "as tune found, else 16)", "(default 120;",
                      "(default 30)", "(default 4;", "(default bf16)", "blocks of the model (default 60)",
                      "(default 24)", "(default 3584)", "(default 12,", "(default 256)", "(default 5)",
                      "(default auto)"):
            self.assertIn(words, text)
        self.assertNotIn("@", text)

    def test_json(self):
        result = self.forward("--json", "--per-block", "--quiet")
        stats = json.loads(result.out)
        for key in ("bytes_read", "wall_s", "disk_gbps", "stall_disk_s", "compute_s", "peak_memory_bytes", "backend",
                    "direct", "device", "ring_bytes", "setup_s", "reads"):
            self.assertIn(key, stats)
        self.assertEqual(len(stats["blocks"]), 2)
        self.assertEqual(result.err, "")
        streamed = json.loads(headrace("inspect", self.model, "--json").out)["streamed"]
        self.assertEqual(stats["bytes_used"], streamed["bytes"])
        self.assertGreaterEqual(stats["bytes_read"], stats["bytes_used"])
        self.assertGreater(stats["peak_memory_bytes"], stats["ring_bytes"])

    def test_inspect(self):
        result = headrace("inspect", self.model)
        self.assertIn("transformer_blocks.1.txt_mlp.net.2.weight", result.out)
        self.assertIn("total     77 tensors", result.out)
        listing = json.loads(headrace("inspect", self.model, "--json").out)
        self.assertEqual(len(listing["tensors"]), 77)
        order = json.loads(headrace("inspect", self.model, "--json", "--streamed").out)["tensors"]
        self.assertEqual(order[0]["name"], "time_text_embed.timestep_embedder.linear_1.bias")
        self.assertEqual(order[-1]["name"], "proj_out.weight")
        self.assertNotIn("transformer_blocks.1.txt_mlp.net.2.weight", [t["name"] for t in order])
        self.assertIn("transformer_blocks.0.txt_mlp.net.2.weight", [t["name"] for t in order])
        other = headrace("inspect", self.inputs)
        self.assertEqual(other.code, 0)
        self.assertIn("streamed  no forward", other.out)

    def test_small_and_single(self):
        result = self.forward("--layers", 1)
        self.assertIn("forward   1 block, ", result.out)
        self.assertRegex(result.err, r"plan: 0\.0\d+ GB of weights")
        self.assertNotIn("0.00 GB", result.err)
        self.assertIn(", 1 block, ", headrace("plan", self.model, "--layers", 1).out)

    def test_empty_file(self):
        path = self.path("empty.safetensors")
        with open(path, "wb") as f:
            f.write(b"\2\0\0\0\0\0\0\0{}")
        result = headrace("inspect", path)
        self.assertEqual(result.code, 0, result.err)
        self.assertIn("total     0 tensors", result.out)

    def test_output_to_full_device(self):
        with open("/dev/full", "w") as full:
            process = subprocess.run([HEADRACE, "inspect", self.model], stdout=full, stderr=subprocess.PIPE, text=True,
                                     env=environment())
        self.assertEqual(process.returncode, 1)
        self.assertIn("standard output", process.stderr)
        with open("/dev/full", "w") as full:
            process = subprocess.run([HEADRACE, "inspect", self.model, "--json"], stdout=full, stderr=subprocess.PIPE,
                                     text=True, env=environment())
        self.assertEqual(process.returncode, 1)
        self.assertIn("standard output", process.stderr)

    def test_relative_paths_and_dashes(self):
        os.symlink("model", self.path("-m"))
        result = headrace("inspect", "--", "-m", cwd=self.folder)
        self.assertEqual(result.code, 0, result.err)


if __name__ == "__main__":
    main()
