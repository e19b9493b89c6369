# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, threads, the interpreter's lock, memory: a forward whose disk is made slow."""
import os
import signal
import subprocess
import sys
import threading
import time
import unittest
from unittest import mock

from package_testing import PackageCase, headrace

SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import headrace, numpy as np
model = headrace.Model(sys.argv[1], ram=None, io="fault", threads=1)
x, e = np.zeros((16, 6, 10), np.float32), np.ones((4, 96), np.float32)
print("ready", flush=True)
try:
    WORK
    print("done")
except KeyboardInterrupt:
    print("interrupted", model._dit[0] == headrace._library.ffi.NULL)
"""


class Interpreter(PackageCase):
    def test_ctrl_c(self):
        for work in ("model.forward(x, e, 500)", "model.denoise(e, latents=x, steps=50)"):
            env = dict(os.environ, HEADRACE_FAULTS="delay=2500000")  # up to 2.5 s for each read
            process = subprocess.Popen([sys.executable, "-c", SLOW.replace("WORK", work), self.model], env=env,
                                       stdout=subprocess.PIPE, text=True)
            self.assertEqual(process.stdout.readline(), "ready\n")
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
            self.assertEqual((out, process.returncode), ("interrupted True\n", 0))

    def test_nothing_leaves_before_the_call_has_ended(self):
        """Ctrl-C while the thread is started, and again within interrupt()."""
        start, ended, asked = threading.Thread.start, threading.Event(), []
        go_on = threading.Event()

        def start_and_raise(thread):
            start(thread)
            raise KeyboardInterrupt

        def interrupt():
            asked.append(True)
            if len(asked) < 3:
                raise KeyboardInterrupt
            go_on.set()

        def call():
            go_on.wait(60)
            time.sleep(0.1)
            ended.set()
            return -1

        with mock.patch.object(threading.Thread, "start", start_and_raise), self.assertRaises(KeyboardInterrupt):
            headrace._library.interruptible(call, interrupt)
        self.assertTrue(ended.is_set())
        self.assertGreaterEqual(len(asked), 3)

        def no_thread(thread):
            raise RuntimeError("can't start new thread")

        with mock.patch.object(threading.Thread, "start", no_thread), self.assert_raises(RuntimeError, "new thread"):
            headrace._library.interruptible(call, interrupt)

    def test_what_is_closed_is_not_interrupted(self):
        """A handle is out of interrupt()'s sight before it is closed."""
        seen = []

        class Library:
            def __getattr__(self, name):
                function = getattr(headrace._library.lib, name)
                if name not in ("hr_dit_close", "hr_denoise_close"):
                    return function

                def close(handle):
                    seen.append((model._dit[0], model._denoise[0]))
                    function(handle)
                return close

        with headrace.Model(self.model) as model, mock.patch.object(headrace.model, "lib", Library()):
            model.forward(self.latents(), self.prompt(), 1)
            model.rest()
            model.denoise(self.prompt(), latents=self.latents(), steps=1)
        null = headrace._library.ffi.NULL
        self.assertGreater(len(seen), 2)
        self.assertEqual(set(seen), {(null, null)})

    def test_the_lock_is_released(self):
        """Another thread runs Python while blocks are computed, and ends the work."""
        with headrace.Model(self.model, ram=None) as model:
            blocked, raised = threading.Event(), []

            def pause(done, n):
                blocked.set()
                time.sleep(0.05)

            def work():
                try:
                    model.forward(self.latents(), self.prompt(), 1, progress=pause)
                except OSError as e:
                    raised.append(e)

            thread = threading.Thread(target=work)
            thread.start()
            self.assertTrue(blocked.wait(60))
            model.interrupt()
            thread.join()
            self.assertEqual(len(raised), 1)
            model.forward(self.latents(), self.prompt(), 1)

    def test_threads_wait_for_one_another(self):
        x, e = self.latents(), self.prompt()
        with headrace.Model(self.model) as model:
            want, got = model.forward(x, e, 1).tobytes(), []
            threads = [threading.Thread(target=lambda: got.append(model.forward(x, e, 1).tobytes()))
                       for _ in range(4)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
        self.assertEqual(got, [want] * 4)

    def test_memory_is_flat(self):
        def resident():
            with open("/proc/self/statm", encoding="ascii") as f:
                return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        x, e = self.latents(), self.prompt()
        with headrace.Model(self.model, ram=None, ring="64MiB") as model:
            before = 0
            for i in range(60):
                model.forward(x, e, 1)
                if i == 9:
                    before = resident()
            self.assertLess(resident() - before, 4 << 20)


unittest.main()
