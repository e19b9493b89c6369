# SPDX-License-Identifier: Apache-2.0
"""A thousand passes over a small model: neither memory nor descriptors grow. A full disk: nothing half-written."""
import os
import re
import subprocess
import time

from cli_testing import HEADRACE, ModelCase, environment, main

SANITIZED = os.environ.get("HEADRACE_TEST_SMALL") == "1"  # whose own bookkeeping grows
PASSES = 100 if SANITIZED else 1000


class LongRun(ModelCase):
    model_options = ["--layers", 1, "--heads", 1, "--joint-dim", 8]
    input_options = ["--width", 32, "--height", 32, "--text-tokens", 4]

    def test_memory_and_descriptors_are_flat(self):
        process = subprocess.Popen(
            [HEADRACE, "forward", self.model, "--inputs", self.inputs, "--timestep", "500", "--repeat", str(PASSES),
             "--threads", "2", "--quiet", "--output", self.path("out")], stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, env=environment())
        samples = []
        while process.poll() is None:
            try:
                with open(f"/proc/{process.pid}/status", encoding="ascii") as f:
                    rss = re.search(r"VmRSS:\s+(\d+) kB", f.read())
                samples.append((int(rss.group(1)), len(os.listdir(f"/proc/{process.pid}/fd"))))
            except (AttributeError, OSError):
                break  # it is ending
            time.sleep(0.005)
        self.assertEqual(process.wait(), 0, process.stderr.read())
        process.stderr.close()
        if len(samples) < 20:
            self.skipTest("too quick to be watched")
        middle, late = samples[len(samples) // 3:2 * len(samples) // 3], samples[2 * len(samples) // 3:-1]
        print(f"{PASSES} passes, {len(samples)} samples: {max(middle)[0]} then {max(late)[0]} kB resident, "
              f"{max(s[1] for s in middle)} then {max(s[1] for s in late)} descriptors")
        # The median: files of /proc are open for an instant.
        self.assertLessEqual(*(sorted(s[1] for s in samples)[len(samples) // 2] for samples in (late, middle)))
        if not SANITIZED:
            self.assertLessEqual(max(late)[0], max(middle)[0] + 256)

    def test_full_disk(self):
        folder = self.path("full")
        os.mkdir(folder)
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder], capture_output=True)
        if mount.returncode != 0:
            self.skipTest("no right to mount")
        try:
            with open(os.path.join(folder, "filler"), "wb", buffering=0) as f, self.assertRaises(OSError):
                while f.write(bytes(4096)):
                    pass
            state = os.path.join(folder, "state")
            for args in (["forward", self.model, "--inputs", self.inputs, "--timestep", "500"],
                         ["denoise", self.model, "--inputs", self.inputs, "--steps", "2"],
                         ["denoise", self.model, "--inputs", self.inputs, "--steps", "40", "--resume", state],
                         ["checksum", self.model], ["inputs", self.model, "--width", "512", "--height", "512"]):
                before = sorted(os.listdir(folder))
                process = subprocess.run([HEADRACE, *args, "--output", os.path.join(folder, "out"), "--quiet"],
                                         capture_output=True, text=True, env=environment())
                with self.subTest(args=args, err=process.stderr):
                    self.assertEqual(process.returncode, 1)
                    self.assertIn("No space left", process.stderr)
                    self.assertEqual(len(process.stderr.splitlines()), 1)
                    self.assertEqual([n for n in os.listdir(folder) if n not in before and n != "state"], [])
        finally:
            subprocess.run(["umount", folder], check=True)

    def test_full_standard_output(self):
        with open("/dev/full", "wb") as full:
            for args in (["checksum", self.model], ["inspect", self.model], ["inspect", self.model, "--json"]):
                process = subprocess.run([HEADRACE, *args, "--quiet"], stdout=full, stderr=subprocess.PIPE, text=True,
                                         env=environment())
                self.assertEqual(process.returncode, 1)
                self.assertIn("standard output: No space left", process.stderr)


if __name__ == "__main__":
    main()
