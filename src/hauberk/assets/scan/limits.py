"""Limits of a scan, so that a hostile file cannot exhaust the scanner in place of the loader."""

from __future__ import annotations

import dataclasses
import time

from hauberk.assets.scan.verdict import Unverifiable


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much a scan may spend on one file; what goes beyond cannot be verified.

    Arguments:
        opcodes: pickle instructions, over all parts of the file.
        read: bytes read and unpacked, over all parts; raw tensor data is skipped, not read.
        ratio: unpacked over packed bytes of a compressed part larger than 1 MiB.
        members: entries of an archive.
        objects: containers made and memo entries written by pickles: what the scan itself must hold.
        stack: objects on the stack of one pickle.
        depth: archives in archives, and pickles in pickles.
        header: bytes of a JSON or array header.
        seconds: wall time.
    """

    opcodes: int = 10_000_000
    read: int = 2 * 2**30
    ratio: int = 200
    members: int = 20_000
    objects: int = 1_000_000
    stack: int = 250_000
    depth: int = 4
    header: int = 32_000_000
    seconds: float = 120.0


class Meter:
    """What one scan has spent; raises Unverifiable at the limit."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.opcodes, self.read, self.objects = limits, 0, 0, 0
        self._ends = time.monotonic() + limits.seconds

    def step(self, count: int = 1) -> None:
        """Count one opcode, or what takes as long as several."""
        self.opcodes += count
        if self.opcodes > self.limits.opcodes:
            raise Unverifiable(f"more than {self.limits.opcodes} pickle instructions")
        if self.opcodes % 4096 < count or self.limits.seconds <= 0:
            self.clock()

    def hold(self) -> None:
        """Count one object that the scan keeps in memory."""
        self.objects += 1
        if self.objects > self.limits.objects:
            raise Unverifiable(f"more than {self.limits.objects} objects")

    def spend(self, size: int) -> None:
        """Count bytes read or unpacked."""
        self.read += size
        if self.read > self.limits.read:
            raise Unverifiable(f"more than {self.limits.read} bytes to read")
        self.clock()

    def clock(self) -> None:
        """Raise when the time is spent."""
        if time.monotonic() >= self._ends:
            raise Unverifiable(f"the scan took longer than {self.limits.seconds:g} s")
