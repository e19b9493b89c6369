# SPDX-License-Identifier: Apache-2.0
"""The stages of a run on a terminal: within its width, redrawn in place, and gone at the end."""
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

from cli_testing import HEADRACE, ModelCase, environment, main

SLOW = "delay=3000"  # microseconds; so that there is something to see


class Screen:
    """What a terminal shows: text, \\r, \\n, and the escape sequences that headrace may use."""

    def __init__(self, columns):
        self.columns, self.rows, self.y, self.x, self.widest = columns, [""], 0, 0, 0
        self.seen = []  # each whole screen, before it is redrawn

    def put(self, c):
        if self.x == self.columns:
            self.down()
            self.x = 0
        row = self.rows[self.y].ljust(self.x)
        self.rows[self.y] = row[:self.x] + c + row[self.x + 1:]
        self.x += 1

    def down(self):
        self.y += 1
        if self.y == len(self.rows):
            self.rows.append("")

    def feed(self, text):
        for token in re.findall(r"\033\[[0-9;]*[A-Za-z]|[^\033]", text, flags=re.S):
            if token == "\r":
                self.x = 0
            elif token == "\n":
                self.down()
            elif token == "\033[A":
                self.y -= 1
                assert self.y >= 0
            elif token == "\033[K":
                self.rows[self.y] = self.rows[self.y][:self.x]
            elif token == "\033[J":
                self.rows[self.y] = self.rows[self.y][:self.x]
                del self.rows[self.y + 1:]
                self.seen.append(list(self.rows))
            elif not token.startswith("\033"):
                self.put(token)
            else:
                assert re.fullmatch(r"\033\[\d+m", token), repr(token)
        return self

    @property
    def left(self):
        return [row.rstrip() for row in self.rows if row.strip()]


class Live(ModelCase):
    model_options = ["--layers", 4, "--heads", 2, "--joint-dim", 96]

    def run_on_terminal(self, *args, columns=100, lines=24, interrupt_after=None, verb="denoise", **env):
        """@return exit code, what was written to the terminal as it was."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        env = {"TERM": "xterm", "HEADRACE_FAULTS": SLOW, **env}
        base = environment()
        for key in ("NO_COLOR", "COLUMNS"):
            base.pop(key, None)
        own = ["--steps", 12] if verb == "denoise" else ["--timestep", 500, "--repeat", 12]
        process = subprocess.Popen(
            [HEADRACE, verb, self.model, "--inputs", self.inputs, *map(str, own), "--io", "fault",
             "--block-size", "64KiB", *map(str, args)],
            stdout=subprocess.DEVNULL, stdin=slave, stderr=slave, env={**base, **env}, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(2, termios.TIOCSCTTY, 0))
        os.close(slave)
        out, sent = b"", False
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    got = os.read(master, 65536)
                except OSError:  # the other end is closed
                    break
                if not got:
                    break
                out += got
            if interrupt_after and interrupt_after in out and not sent:
                os.write(master, b"\x03")  # Ctrl-C, which the terminal echoes and turns into a signal
                sent = True
        code = process.wait(timeout=60)
        os.close(master)
        return code, out.decode()

    def notes(self, text):
        """The lines that stay, on a terminal of any width."""
        return [line for line in Screen(1000).feed(text).left]

    def assert_clean(self, text, columns):
        """Nothing but notes is left, and where they wrapped is where notes alone would have."""
        notes = self.notes(text)
        self.assertTrue(all(n.startswith(("headrace: ", "^C")) for n in notes), notes)
        alone = Screen(columns).feed("".join(n + "\r\n" for n in notes))
        self.assertEqual(Screen(columns).feed(text).left, alone.left)

    def test_wide(self):
        for verb in ("denoise", "forward"):
            code, text = self.run_on_terminal(verb=verb)
            self.assertEqual(code, 0, text)
            self.assert_clean(text, 100)
            drawn = [s[-3:] for s in Screen(100).feed(text).seen if "to go" in "".join(s)]
            self.assertGreater(len(drawn), 1, text)
            what = {"denoise": r"step \d+ of 12", "forward": r"forward \d+ of 12"}[verb]
            self.assertTrue(any(re.search(what + r", block [1-4] of 4  .* to go", s[0]) for s in drawn), drawn)
            for time_left, disk, compute in drawn:
                self.assertIn("about", time_left)
                self.assertRegex(disk, r"^disk +\d+ %  #*\.*  \d+\.\d\d GB/s  \d+ % waiting for room$")
                self.assertRegex(compute, r"^compute +\d+ %  #*\.*  \d+ % waiting for the disk$")
                share, bar = re.search(r"(\d+) %  (#*)\.*", disk).groups()
                self.assertAlmostEqual(len(bar), int(share) * 24 / 100, delta=1)

    def test_narrow(self):
        for columns in (60, 40, 24, 12, 5, 1):
            code, text = self.run_on_terminal(columns=columns)
            self.assertEqual(code, 0, text)
            self.assert_clean(text, columns)
            self.assertIn("disk"[:max(columns - 3, 1)], text)
        code, text = self.run_on_terminal(COLUMNS="30")
        self.assert_clean(text, 30)

    def test_low(self):
        """Where all lines would not fit, the time left alone."""
        code, text = self.run_on_terminal(lines=3)
        self.assertEqual(code, 0, text)
        self.assertIn("to go", text)
        self.assertNotIn("\033[A", text)
        self.assertNotIn("compute  ", text)

    def test_colours(self):
        self.assertRegex(self.run_on_terminal()[1], r"\033\[3\dm")
        text = self.run_on_terminal(NO_COLOR="1")[1]
        self.assertIn("to go", text)
        self.assertNotRegex(text, r"\033\[\d+m")

    def test_no_terminal(self):
        code, text = self.run_on_terminal(TERM="dumb")
        self.assertEqual(code, 0)
        self.assertNotIn("\033", text)
        self.assertNotIn("to go", text)
        code, text = self.run_on_terminal("--quiet")
        self.assertEqual((code, text), (0, ""))

    def test_interrupted(self):
        code, text = self.run_on_terminal("--repeat", 100000, verb="forward", interrupt_after=b"waiting for the disk")
        self.assertEqual(code, 1, text)
        self.assert_clean(text, 100)
        self.assertRegex(self.notes(text)[-1], "headrace: .*interrupted$")

    def test_error(self):
        """A disk that answers no more in the middle of the run."""
        code, text = self.run_on_terminal("--io-timeout", 1, "--steps", 12, HEADRACE_FAULTS=SLOW + ",hang=12000000")
        self.assertEqual(code, 1, text)
        self.assert_clean(text, 100)
        self.assertIn("the disk has not answered", self.notes(text)[-1])


if __name__ == "__main__":
    main()
