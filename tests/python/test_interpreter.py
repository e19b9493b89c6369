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
        start, go_on, ended, asked = threading.Thread.start, threading.Event(), threading.Event(), []

        def start_and_ctrl_c(thread):
            start(thread)
            signal.raise_signal(signal.SIGINT)

        def interrupt():
            asked.append(True)
            signal.raise_signal(signal.SIGINT)
            if len(asked) == 3:
                go_on.set()

        def call():
            go_on.wait(60)
            time.sleep(0.1)
            ended.set()
            return -1

        before = signal.getsignal(signal.SIGINT)
        with mock.patch.object(threading.Thread, "start", start_and_ctrl_c), self.assertRaises(KeyboardInterrupt):
            headrace._library.interruptible(call, interrupt)
        self.assertTrue(ended.is_set())
        self.assertGreaterEqual(len(asked), 3)
        self.assertIs(signal.getsignal(signal.SIGINT), before)

    def test_a_storm_of_signals(self):
        """The call has ended whenever its caller goes on, and handlers are what they were."""
        ended, asked = threading.Event(), threading.Event()

        def handle(number, frame):
            if not ended.is_set():
                raise InterruptedError

        def call():
            asked.wait(60)
            time.sleep(0.02)
            signal.setitimer(signal.ITIMER_REAL, 0)
            ended.set()
            return 0

        before = signal.signal(signal.SIGALRM, handle)
        try:
            for _ in range(20):
                ended.clear()
                asked.clear()
                with self.assertRaises(InterruptedError):
                    signal.setitimer(signal.ITIMER_REAL, 0.0205, 0.0002)
                    headrace._library.interruptible(lambda: (time.sleep(0.02), call())[1], asked.set)
                self.assertTrue(ended.is_set())
                self.assertIs(signal.getsignal(signal.SIGALRM), handle)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def test_a_handler_that_sets_another(self):
        """As those that say "once more to kill"."""
        def once(number, frame):
            signal.signal(signal.SIGALRM, again)
            raise InterruptedError

        def again(number, frame):
            pass

        before, asked = signal.signal(signal.SIGALRM, once), threading.Event()
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            with self.assertRaises(InterruptedError):
                headrace._library.interruptible(lambda: asked.wait(60), asked.set)
            self.assertIs(signal.getsignal(signal.SIGALRM), again)
        finally:
            signal.signal(signal.SIGALRM, before)

    def test_no_thread(self):
        def no_thread(thread):
            raise RuntimeError("can't start new thread")

        before = signal.getsignal(signal.SIGINT)
        with mock.patch.object(threading.Thread, "start", no_thread), self.assert_raises(RuntimeError, "new thread"):
            headrace._library.interruptible(self.fail, self.fail)
        self.assertIs(signal.getsignal(signal.SIGINT), before)

    def closing_with(self, before_close):
        """The library, where closing a model calls `before_close` first."""
        class Library:
            def __getattr__(self, name):
                function = getattr(headrace._library.lib, name)
                if name not in ("hr_dit_close", "hr_denoise_close"):
                    return function
                return lambda handle: (before_close(), function(handle))
        return mock.patch.object(headrace.model, "lib", Library())

    def test_what_is_closed_is_not_interrupted(self):
        """A handle is out of interrupt()'s sight before it is closed."""
        def interrupt():
            with mock.patch.object(headrace.model, "lib", None):  # it calls nothing
                model.interrupt()
            closings.append((model._dit[0], model._denoise[0]))

        closings, null = [], headrace._library.ffi.NULL
        with headrace.Model(self.model) as model, self.closing_with(interrupt):
            model.forward(self.latents(), self.prompt(), 1)
            model.rest()
            model.denoise(self.prompt(), latents=self.latents(), steps=1)
        self.assertTrue(any(dit != null for dit, _ in closings))
        self.assertTrue(any(loop != null for _, loop in closings))

    def test_ctrl_c_while_a_model_is_closed(self):
        """What is left open is closed by the next call that closes or opens, and is not used again."""
        def ctrl_c():
            raise KeyboardInterrupt

        def stop(done, n):
            raise LookupError

        x, e, null = self.latents(), self.prompt(), headrace._library.ffi.NULL
        with headrace.Model(self.model) as model:
            want = model.forward(x, e, 1)
            for progress in (None, stop):  # after a forward that ended, and after one that failed
                with self.closing_with(ctrl_c), self.assertRaises((KeyboardInterrupt, LookupError)):
                    model.forward(x, e, 1, progress=progress)
                    model.rest()
                self.assertNotEqual(model._dit[0], null)
                self.assertEqual(model.forward(x, e, 1).tobytes(), want.tobytes())
            model.rest()
            with self.closing_with(lambda: model._denoise[0] == null or ctrl_c()), self.assertRaises(KeyboardInterrupt):
                model.denoise(e, latents=x, steps=1)
            self.assertNotEqual(model._denoise[0], null)
            model.rest()
            self.assertEqual((model._dit[0], model._denoise[0]), (null, null))

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
