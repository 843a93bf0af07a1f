"""A whole arm64 computer in a process: it boots, loses its power, reboots, and loses data that wasn't flushed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.power.initrd import RUN, make_initrd
from tests.power.kernel import Kernel
from toolkit.emulate.sshd import HOST, free_port, write_key_pair
from toolkit.errors import ConfigError, HostUnreachable

EMULATOR = "qemu-system-aarch64"
# Without this the machine would go on when the process that holds it is killed.
_ENDS_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
# A quiet machine takes 10 s, a busy one many times that.
_BOOT_TIMEOUT_S = 300.0
_POLL_S = 0.2

SSHD_CONFIG = f"""HostKey {RUN}/host_key
AuthorizedKeysFile {RUN}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
Subsystem sftp internal-sftp
# Here it takes a minute, and most of it is never imported.
SetEnv PIP_NO_COMPILE=1
"""


def make_disk(path: Path, size_bytes: int, tree: Path | None = None) -> None:
    """Make an ext4 file system in a sparse file, with the content of a folder.

    Raises ConfigError when the content doesn't fit, or mke2fs isn't installed.
    """
    with path.open("wb") as file:
        file.truncate(size_bytes)
    content = ["-d", str(tree)] if tree else []
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", *content, str(path)]
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    try:
        subprocess.run(argv, check=True, capture_output=True, text=True, env=dict(os.environ, PATH=search))
    except FileNotFoundError as exc:
        raise ConfigError("mke2fs isn't installed here", "install e2fsprogs") from exc
    except subprocess.CalledProcessError as exc:
        raise ConfigError(f"mke2fs can't make {path}: {exc.stderr.strip()}") from exc


class Machine:
    """An emulated computer of two Cortex-A76 cores with Debian, which serves SSH to root and reaches no network.

    Its writes to its root disk are lost when its process ends. `data` is its second disk, an option of qemu's
    `-blockdev` without the node name, which it mounts at `initrd.DATA`. The object has the attributes of a target:
    name, host, port, user, identity_file, known_hosts.
    """

    name = "emulated"
    host = HOST
    user = "root"

    def __init__(self, kernel: Kernel, root_disk: Path, data: str, memory_bytes: int = 2 << 30) -> None:
        self.port = free_port()
        self._kernel = kernel
        self._root_disk = root_disk
        self._data = data
        self._memory_bytes = memory_bytes
        self._child: subprocess.Popen[bytes] | None = None
        self._private = Path(tempfile.mkdtemp(prefix="edgephi-machine-"))
        self.identity_file = self._private / "client_key"
        self.known_hosts = self._private / "known_hosts"
        self._write_initrd()

    def __enter__(self) -> Self:
        try:
            self.power_on()
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clean()

    def power_on(self) -> None:
        """Boot and wait until sshd answers; the calling thread has to live as long as the machine.

        Raises ConfigError without an emulator, HostUnreachable with the console's last lines when sshd doesn't answer.
        """
        if shutil.which(EMULATOR) is None:
            raise ConfigError(f"{EMULATOR} isn't installed here", "install qemu-system-arm")
        argv = [*_ENDS_WITH_US, *self._argv()]
        with self._console.open("ab") as console:
            self._child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
            )
        self.wait_until_up()

    def power_off(self) -> None:
        """Cut the power, without a shutdown or a flush."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def wait_until_up(self) -> None:
        """Wait until sshd answers, after power_on or a reboot. Raises HostUnreachable when it doesn't."""
        deadline = time.monotonic() + _BOOT_TIMEOUT_S
        while time.monotonic() < deadline and self._child is not None and self._child.poll() is None:
            # The emulator accepts connections for the machine while the machine still boots.
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1) as sock:
                sock.settimeout(5)
                if sock.recv(64).startswith(b"SSH-"):
                    return
            time.sleep(_POLL_S)
        last = self._console.read_text(errors="replace").strip().splitlines()[-5:]
        raise HostUnreachable("the emulated machine doesn't answer: " + (" / ".join(last) or "it said nothing"))

    @property
    def _console(self) -> Path:
        return self._private / "console"

    def _clean(self) -> None:
        self.power_off()
        shutil.rmtree(self._private, ignore_errors=True)

    def _write_initrd(self) -> None:
        host_key = self._private / "host_key"
        self.known_hosts.write_text(f"[{self.host}]:{self.port} {write_key_pair(host_key)}\n", encoding="utf-8")
        files = {
            "host_key": host_key.read_text("utf-8"),
            "authorized_keys": write_key_pair(self.identity_file) + "\n",
            "sshd_config": SSHD_CONFIG,
        }
        (self._private / "initrd").write_bytes(make_initrd(self._kernel, files))

    def _argv(self) -> list[str]:
        argv = [EMULATOR, "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]
        argv += ["-machine", "virt,gic-version=3", "-cpu", "cortex-a76", "-smp", "2"]
        argv += ["-m", f"{self._memory_bytes >> 20}M", "-accel", "tcg,thread=multi"]
        argv += ["-kernel", str(self._kernel.image), "-initrd", str(self._private / "initrd")]
        argv += ["-append", "console=ttyAMA0 quiet panic=-1"]
        argv += ["-drive", f"if=none,id=root,format=raw,snapshot=on,file={self._root_disk}"]
        argv += ["-device", "virtio-blk-pci,drive=root"]
        argv += ["-blockdev", f"{self._data},node-name=data", "-device", "virtio-blk-pci,drive=data,write-cache=on"]
        argv += ["-netdev", f"user,id=net,restrict=on,hostfwd=tcp:{self.host}:{self.port}-:22"]
        return [*argv, "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"]
