# SPDX-License-Identifier: Apache-2.0
"""Loop devices with a file system each, for benchmarks that need drives of a known rate; as root.

Nothing stays behind, even if the process is killed: devices are let go as soon as they are attached, so that the kernel
detaches them when their last user is gone, and mounts are made in a mount namespace of its own.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

CLONE_NEWNS = 0x00020000


def run(*command: str) -> str:
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    return done.stdout.strip()


def own_mounts() -> None:
    """Mounts from here on are this process's and its children's, and gone with them."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        sys.exit(f"no mount namespace: {os.strerror(ctypes.get_errno())}")
    run("mount", "--make-rprivate", "/")


class Drive:
    """A loop device with a mounted file system."""

    def __init__(self, folder: Path, index: int, room: int) -> None:
        self.backing = folder / f"drive{index}"
        with open(self.backing, "wb") as file:
            file.truncate(room // 2**20 * 2**20)
        self.device = run("losetup", "--find", "--show", "--direct-io=on", str(self.backing))
        self.fd = os.open(self.device, os.O_RDONLY)
        run("losetup", "-d", self.device)  # takes effect when nothing uses it any more
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-m", "0", self.device)
        self.mount = folder / f"mount{index}"
        self.mount.mkdir()
        run("mount", self.device, str(self.mount))
        os.close(self.fd)
        number = os.stat(self.device).st_rdev
        self.number = f"{os.major(number)}:{os.minor(number)}"

    def close(self) -> None:
        run("umount", str(self.mount))
        self.backing.unlink()
