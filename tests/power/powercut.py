#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Cuts the power under a server: see docs/powercut.md."""
import argparse
import os
import random
import shutil
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "system")]


def parse(words):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="of the first scenario; fresh ones if not given")
    parser.add_argument("--count", type=int, help="scenarios")
    parser.add_argument("--minutes", type=float, help="end after so long")
    parser.add_argument("--generations", type=int, default=3,
                        help="each goes on from a cut of the last one")
    parser.add_argument("--cuts", type=int, default=25, help="cuts of each generation")
    parser.add_argument("--requests", type=int, default=500, help="requests of each generation")
    parser.add_argument("--server", choices=("lazycow", "qemu-nbd"), default="lazycow")
    parser.add_argument("--keep", help="directory for the recordings of cuts that fail")
    parser.add_argument("--keep-going", action="store_true",
                        help="do not end with the first failure")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--replay", metavar="DIR", help="a recording that was kept")
    parser.add_argument("--cut", type=int, help="only this one of it")
    return parser.parse_args(words)


OPTIONS = parse(None if __name__ == "__main__" else [])
if OPTIONS.server == "qemu-nbd":
    os.environ["LAZYCOW_REFERENCE"] = "qemu-nbd"

# pylint: disable=wrong-import-position
import nbd  # noqa: E402

import recorder  # noqa: E402
from history import Wrong  # noqa: E402
from image_reader import Image  # noqa: E402
from judge import Judge, judge_cut  # noqa: E402
from recording import Replay  # noqa: E402
from scenario import Scenario, Take  # noqa: E402


def fast_directory():
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


class Run:
    def __init__(self, options):
        self.options = options
        self.cuts = 0
        self.scenarios = 0
        self.failures = 0
        self.started = time.monotonic()

    def time_left(self):
        minutes = self.options.minutes
        return minutes is None or time.monotonic() - self.started < minutes * 60

    def say(self, text):
        print(text, flush=True)

    def run(self):
        options = self.options
        if options.count is None and options.minutes is None:
            options.count = 1
        first = options.seed
        if first is None:
            first = random.SystemRandom().randrange(1 << 32)
        seed = first
        while self.time_left() and (options.count is None or self.scenarios < options.count):
            self.scenario(seed)
            self.scenarios += 1
            seed += 1
            if self.failures and not options.keep_going:
                break
        seconds = time.monotonic() - self.started
        self.say(f"seeds {first} to {seed - 1}: {self.cuts} cuts, {self.failures} failed, "
                 f"{seconds:.0f} s")
        return self.failures

    def scenario(self, seed):
        directory = tempfile.mkdtemp(prefix="lazycow-power-")
        fast = tempfile.mkdtemp(prefix="lazycow-cut-", dir=fast_directory())
        try:
            scenario = Scenario(seed, directory, self.options.requests)
            judge = Judge(fast, scenario.bases, scenario.snapshots, scenario.below)
            self.generations(scenario, judge)
        except (Wrong, AssertionError, nbd.Error) as error:
            self.fail(f"seed {seed}, while it was served: {error}")
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            shutil.rmtree(fast, ignore_errors=True)

    def generations(self, scenario, judge):
        count = self.options.generations
        for generation in range(count):
            take = scenario.record(generation, generation == count - 1)
            recording = take.recording()
            if self.options.verbose:
                self.say(f"{take.name()}: {take.kind.name}; {take.serving}; "
                         f"{len(take.history.changes)} changes, {len(recording.changes)} of the "
                         f"file, {len(recording.barriers)} barriers")
            assert not recording.failed, recording.failed
            if not recording.positions:  # killed before it wrote anything
                continue
            left = self.cut_take(scenario, judge, take, Replay(recording, take.image))
            if left is None:
                return
            scenario.go_on_from(*left)

    def cut_take(self, scenario, judge, take, replay):
        """Returns the state from which to go on: the file, and its content."""
        numbers = range(self.options.cuts)
        go_on = scenario.rng.choice(numbers)
        left = None
        for number in sorted(numbers, key=lambda number: cut_position(take, replay, number)):
            try:
                content, disk = judge_cut(judge, take, replay, number)
                if number == go_on or left is None:
                    left = content, disk
            except Wrong as error:
                self.keep(scenario, take, number, error)
                if not self.options.keep_going:
                    return None
            self.cuts += 1
        return left

    def fail(self, text):
        self.failures += 1
        self.say(f"FAILED {text}")

    def keep(self, scenario, take, number, error):
        self.fail(f"{take.name()} cut {number}: {take.kind.name}; {take.serving}\n  {error}")
        keep = self.options.keep or tempfile.mkdtemp(prefix="lazycow-failed-")
        directory = os.path.join(keep, f"{take.seed}-{take.generation}")
        take.save(directory, scenario.bases)
        self.say(f"  again: {sys.argv[0]} --replay {directory} --cut {number}")


def cut_position(take, replay, number):
    return replay.recording.choose(random.Random(f"cut {take.seed} {take.generation} {number}"))


def replay(options):
    """Judges cuts of a recording that was kept."""
    take = Take.load(options.replay)
    bases = [os.path.join(options.replay, name) for name in os.listdir(options.replay)
             if name.startswith("base")]
    fast = tempfile.mkdtemp(prefix="lazycow-cut-", dir=fast_directory())
    judge = Judge(fast, bases, Image(take.image).read_snapshots(b""), take.below)
    player = Replay(take.recording(), take.image)
    print(f"{take.name()}: {take.kind.name}; {take.serving}; files in {fast}")
    failures = 0
    for number in range(options.cuts) if options.cut is None else [options.cut]:
        try:
            judge_cut(judge, take, player, number)
            print(f"cut {number}: nothing wrong")
        except Wrong as error:
            failures += 1
            print(f"FAILED cut {number}: {error}")
    if not failures:
        shutil.rmtree(fast)
    return failures


def main():
    if recorder.missing():
        print(f"powercut: {recorder.missing()}", file=sys.stderr)
        return 2
    try:
        return 1 if (replay if OPTIONS.replay else run)(OPTIONS) else 0
    finally:
        recorder.remove_built()


def run(options):
    return Run(options).run()


if __name__ == "__main__":
    sys.exit(main())
