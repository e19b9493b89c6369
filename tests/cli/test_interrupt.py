# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C at various moments: the command ends by itself, says so, and leaves nothing behind."""
import os
import signal
import subprocess
import time

from cli_testing import HEADRACE, ModelCase, environment, main


class Interrupt(ModelCase):
    def interrupt(self, delay_s, args, env=None):
        process = subprocess.Popen([HEADRACE, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, env=env or environment())
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        # No verdict on speed, which depends on the machine: only that it ends by itself.
        out, err = process.communicate(timeout=60)
        return process.returncode, err

    def assert_clean(self, before):
        self.assertEqual(sorted(os.listdir(self.folder)), before)

    def test_forward(self):
        # Slow reads make the pass long enough to be interrupted, whatever the machine.
        env = environment(HEADRACE_FAULTS="delay=20000")
        before, codes = sorted(os.listdir(self.folder)), []
        for delay_s in (0.0, 0.05, 0.2, 0.5):
            code, err = self.interrupt(delay_s, [
                "forward", self.model, "--inputs", self.inputs, "--timestep", 750, "--output", self.path("out"),
                "--repeat", 100000, "--io", "fault"], env)
            codes.append(code)
            with self.subTest(delay_s=delay_s, err=err):
                self.assertIn(code, (1, -signal.SIGINT))  # the latter before the handler is in place
                if code == 1:
                    self.assertIn("interrupted", err.splitlines()[-1])
                self.assert_clean(before)
        self.assertIn(1, codes)

    def test_within_one_operation(self):
        """A large picture on one thread: single products and attention take seconds, the end does not wait."""
        inputs = self.path("large.safetensors")
        subprocess.run([HEADRACE, "inputs", self.model, "--output", inputs, "--width", "2048", "--height", "2048",
                        "--quiet"], check=True, stdout=subprocess.DEVNULL, env=environment())
        code, err = self.interrupt(1.0, ["forward", self.model, "--inputs", inputs, "--timestep", 750, "--threads", 1,
                                         "--repeat", 100])
        self.assertEqual(code, 1, err)
        self.assertIn("interrupted", err.splitlines()[-1])

    def test_synth(self):
        before, codes = sorted(os.listdir(self.folder)), []
        for delay_s in (0.05, 0.3, 0.6):
            code, err = self.interrupt(delay_s, ["synth", self.path("big"), "--layers", 4])
            codes.append(code)
            with self.subTest(delay_s=delay_s, err=err):
                self.assertIn(code, (1, -signal.SIGINT))  # the latter before the handler is in place
                self.assert_clean(before)
        self.assertIn(1, codes)


if __name__ == "__main__":
    main()
