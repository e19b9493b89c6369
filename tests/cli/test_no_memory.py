# SPDX-License-Identifier: Apache-2.0
"""Each allocation of a run fails once: one line and exit code 1, or the same bytes; no crash, no leak, no hang.

The executable is a headrace with tests/cli/fail_alloc.c in it. HEADRACE_TEST_LONG=1: every allocation, not a sample.
Under AddressSanitizer leaks are seen, too; so its sample is the larger one, and another one.
"""
import json
import os
import random
import subprocess

from cli_testing import HEADRACE, ModelCase, environment, main

LONG = os.environ.get("HEADRACE_TEST_LONG") == "1"
SANITIZED = os.environ.get("HEADRACE_TEST_SMALL") == "1"
RUNS = 60 if SANITIZED else 30


def shape_of(value):
    if isinstance(value, dict):
        return {key: shape_of(v) for key, v in value.items()}
    return [shape_of(v) for v in value] if isinstance(value, list) else value is None or isinstance(value, str)


class NoMemory(ModelCase):
    model_options = ["--layers", 1, "--heads", 1, "--joint-dim", 8, "--shards", 2]
    input_options = ["--width", 32, "--height", 32, "--text-tokens", 4, "--negative-tokens", 3]

    def run_with(self, args, **env):
        # What a fallback says of itself is no error.
        return subprocess.run([HEADRACE, *map(str, args), "--quiet"], capture_output=True, text=True, timeout=120,
                              env=environment(HEADRACE_DEVICE="cpu", **env))  # CUDA's runtime crashes

    def fail_each(self, args, output):
        count = self.path("count")
        process = self.run_with(args, HEADRACE_COUNT_ALLOC=count)
        self.assertEqual(process.returncode, 0, process.stderr)
        with open(output, "rb") as f:
            want = f.read()
        with open(count, encoding="ascii") as f:
            n = int(f.read())
        places = range(1, n + 1)
        if not LONG and n > RUNS:
            places = sorted(random.Random(n + SANITIZED).sample(places, RUNS))
        n_failed = 0
        for place in places:
            os.remove(output)
            process = self.run_with(args, HEADRACE_FAIL_ALLOC=str(place))
            with self.subTest(args=args[0], place=place, err=process.stderr):
                lines = process.stderr.splitlines()
                self.assertIn(process.returncode, (0, 1))
                if process.returncode == 1:
                    n_failed += 1
                    self.assertEqual(len(lines), 1)
                    self.assertTrue(lines[0].startswith("headrace: "))
                    self.assertNotIn("assertion", lines[0])
                    self.assertFalse(os.path.exists(output))
                    self.assertEqual([x for x in os.listdir(self.folder) if ".tmp" in x], [])
                else:
                    with open(output, "rb") as f:
                        self.assertEqual(f.read(), want)
            if not os.path.exists(output):
                with open(output, "wb"):
                    pass
        print(f"{args[0]}: {n} allocations, {len(places)} failed one by one, {n_failed} ended the run")

    def test_forward(self):
        out = self.path("velocity")
        self.fail_each(["forward", self.model, "--inputs", self.inputs, "--timestep", 500, "--output", out,
                        "--threads", 2, "--ring", "4MiB"], out)

    def test_denoise(self):
        out = self.path("latents")
        self.fail_each(["denoise", self.model, "--inputs", self.inputs, "--steps", 2, "--output", out,
                        "--threads", 2, "--ring", "4MiB", "--io", "pread"], out)

    def test_checksum(self):
        out = self.path("manifest.json")
        self.fail_each(["checksum", self.model, "--output", out, "--ring", "4MiB"], out)

    def test_report(self):
        run, trace, page = self.path("run.json"), self.path("trace.json"), self.path("run.html")
        process = self.run_with(["forward", self.model, "--inputs", self.inputs, "--timestep", 500, "--trace", trace,
                                 "--json", "--per-block"])
        with open(run, "w", encoding="utf-8") as f:
            f.write(process.stdout)
        self.fail_each(["report", run, "--trace", trace, "-o", page], page)

    def json_each(self, args):
        """What is printed is whole or not there. Numbers that were measured differ."""
        count = self.path("count")
        process = self.run_with([*args, "--json"], HEADRACE_COUNT_ALLOC=count)
        want = shape_of(json.loads(process.stdout))
        with open(count, encoding="ascii") as f:
            places = range(1, int(f.read()) + 1)
        for place in places if LONG else places[SANITIZED::len(places) // RUNS + 1]:
            process = self.run_with([*args, "--json"], HEADRACE_FAIL_ALLOC=str(place))
            with self.subTest(args=args[0], place=place, err=process.stderr):
                self.assertIn(process.returncode, (0, 1))
                if process.returncode == 1:
                    self.assertEqual(len(process.stderr.splitlines()), 1)
                    self.assertEqual(process.stdout, "")
                else:
                    self.assertEqual(shape_of(json.loads(process.stdout)), want)

    def test_json(self):
        self.json_each(["inspect", self.model])
        self.json_each(["forward", self.model, "--inputs", self.inputs, "--timestep", 500, "--per-block"])
        self.json_each(["plan", self.model, "--steps", 2])
        self.json_each(["doctor", self.model])


if __name__ == "__main__":
    main()
