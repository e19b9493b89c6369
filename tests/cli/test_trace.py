# SPDX-License-Identifier: Apache-2.0
"""--trace: a file that trace viewers read, and that agrees with the run's own counters."""
import json
import os
import signal
import subprocess
import time

from cli_testing import HEADRACE, ModelCase, environment, headrace, main


class Trace(ModelCase):
    model_options = ["--layers", 3, "--heads", 2, "--joint-dim", 96]

    def read(self, name="trace.json"):
        with open(self.path(name), encoding="utf-8") as f:
            trace = json.load(f)
        tracks = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
        self.assertEqual(list(tracks.values()), ["steps", "disk", "copy to the device", "compute"])
        slices = {name: [] for name in tracks.values()}
        for e in trace["traceEvents"]:
            self.assertIn(e["ph"], "MXC")
            if e["ph"] == "X":
                # whole nanoseconds, so that sums and comparisons are exact
                begin = round(e["ts"] * 1000)
                slices[tracks[e["tid"]]].append((begin, begin + round(e["dur"] * 1000), e))
        return trace, slices

    def assert_nested(self, slices):
        """Of two slices of a track one lies within the other, or they do not touch."""
        ends = []
        for begin, end, e in sorted(slices, key=lambda s: (s[0], -s[1])):
            while ends and ends[-1] <= begin:
                ends.pop()
            if ends:
                self.assertLessEqual(end, ends[-1], e)
            ends.append(end)

    def names(self):
        return [t["name"] for t in json.loads(headrace("inspect", self.model, "--json").out)["tensors"]]

    def check(self, stats, n_steps):
        trace, slices = self.read()
        self.assertEqual(trace["otherData"]["dropped_events"], 0)
        for track in slices.values():
            self.assert_nested(track)
        disk = [e for _, _, e in slices["disk"]]
        reads = [e["args"] for e in disk if e["cat"] == "read"]
        self.assertEqual(sum(r["bytes"] for r in reads), stats["bytes_read"])
        self.assertEqual(len(reads), stats["reads"])
        self.assertTrue({e["cat"] for e in disk} <= {"read", "waiting for ring space"})
        # the disk's slices never overlap, not even nested
        ordered = sorted(s[:2] for s in slices["disk"])
        self.assertTrue(all(a[1] <= b[0] for a, b in zip(ordered, ordered[1:])))
        weights = [e for _, _, e in slices["compute"] if e["cat"] == "weight"]
        self.assertTrue({e["name"] for e in weights} <= set(self.names()))
        parts = [e["name"] for _, _, e in slices["compute"] if e["cat"] == "part"]
        self.assertEqual(set(parts), {"conditioning", "embeddings", "block", "attention", "head"})
        self.assertEqual(parts.count("block"), 3 * n_steps)
        steps = [e["args"] for _, _, e in slices["steps"]]
        self.assertEqual([s["step"] for s in steps], list(range(1, n_steps + 1)))
        self.assertEqual(sum(s["bytes"] for s in steps), stats["bytes_used"])
        copies = sorted(slices["copy to the device"], key=lambda s: s[0])
        self.assertEqual(sum(e["args"]["bytes"] for _, _, e in copies), stats["copied_bytes"])
        self.assertTrue(all(a[1] <= b[0] for a, b in zip(copies, copies[1:])))
        return weights

    def test_forward(self):
        self.assertEqual(self.forward("--quiet").code, 0)
        with open(self.path("out.safetensors"), "rb") as f:
            want = f.read()
        for args in ([], ["--io", "pread"], ["--ring", "36MiB", "--block-size", "64KiB"], ["--device", "emulated:500"]):
            stats = json.loads(self.forward("--trace", self.path("trace.json"), "--json", "--quiet", *args).out)
            weights = self.check(stats, 1)
            self.assertEqual(sum(e["args"]["bytes"] for e in weights), stats["bytes_used"])
            self.assertEqual(stats["copied_bytes"], stats["bytes_used"] if "--device" in args else 0)
            with open(self.path("out.safetensors"), "rb") as f:
                self.assertEqual(f.read(), want)

    def test_denoise(self):
        """Weights that stay are used in each step, and read once."""
        stats = json.loads(headrace("denoise", self.model, "--inputs", self.inputs, "--steps", 4, "--trace",
                                    self.path("trace.json"), "--ram", "150MiB", "--json", "--quiet").out)
        weights = self.check(stats, 4)
        self.assertGreater(stats["resident_bytes"], 0)
        self.assertGreater(sum(e["args"]["bytes"] for e in weights), stats["bytes_used"])

    def test_bad_paths(self):
        """Refused before anything is computed or written."""
        shard = os.path.join(self.model, next(n for n in os.listdir(self.model) if n.endswith(".safetensors")))
        same = self.path("out.safetensors")
        for path, word in (("", "empty"), (self.path("no/such/trace.json"), "folder"), (self.folder, "regular"),
                           (shard, "model"), (self.inputs, "inputs"), (same, "--output")):
            result = self.forward("--trace", path)
            self.assert_fails(result, "--trace", word)
            self.assertNotIn("headrace: io:", result.err)

    def test_interrupted(self):
        """An interrupted run leaves the trace of what it did, and no result."""
        trace = self.path("interrupted.json")
        process = subprocess.Popen(
            [HEADRACE, "denoise", self.model, "--inputs", self.inputs, "--steps", "500", "--trace", trace,
             "--io", "fault", "--block-size", "64KiB"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(HEADRACE_FAULTS="delay=2000"))
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
        self.assertEqual(process.returncode, 1, err)
        self.assertIn(b"interrupted", err)
        self.assertGreater(len(self.read("interrupted.json")[1]["disk"]), 0)


if __name__ == "__main__":
    main()
