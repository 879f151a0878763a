"""Records the file calls of a whole process, C libraries included, as a `Trace`. Needs strace.

Where `Recorder` sees what goes through the `Disk` port, this sees what the system sees: LMDB too.
Lines that the process writes to stdout become notes at their place among the calls.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.wal.crash_images import Trace

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace (Debian package strace)"
)

_CALLS = (
    "open,openat,creat,close,dup,write,pwrite64,writev,pwritev,pwritev2,lseek,fdatasync,fsync,msync,"
    "ftruncate,fallocate,rename,renameat,renameat2,unlink,unlinkat,mmap,sync_file_range,copy_file_range"
)
_LINE = re.compile(r"\d+\s+(?:<\.\.\. (\w+) resumed>(.*)|(\w+)\((.*))", re.DOTALL)
_RESULT = re.compile(r"^(.*)\)\s+= (-?\d+|0x[0-9a-f]+|\?)[^=]*$", re.DOTALL)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


@dataclass
class _Open:
    path: str
    inode: int
    synchronous: bool
    position: int = 0


def record(command: Sequence[str], folder: Path, *, timeout_s: float = 60) -> Trace:
    """Run a command that works in the (empty) folder; return its file calls there.

    Raises:
        subprocess.CalledProcessError: the command failed; its stderr is in the note.
        NotImplementedError: the process used a call whose effect is not understood here.
    """
    assert not any(folder.iterdir())
    output = folder.with_name(folder.name + ".strace")
    subprocess.run(
        [
            *("strace", "-f", "-v", "-xx", "-s", "16777216", "-e", f"trace={_CALLS}"),
            *("-e", "signal=none", "-o", str(output), *command),
        ],
        check=True,
        stdout=subprocess.PIPE,
        timeout=timeout_s,
    )
    reader = _Reader(str(folder))
    with output.open() as lines:
        for line in lines:
            reader.line(line)
    output.unlink()
    return reader.trace


class _Reader:
    def __init__(self, root: str) -> None:
        self.root = root
        self.trace = Trace()
        self.files: dict[int, _Open] = {}
        self.folders: dict[int, str] = {}
        self.begun: dict[str, str] = {}

    def line(self, line: str) -> None:
        match = _LINE.match(line.rstrip("\n"))
        if match is None:
            return  # exits, signals
        thread = line.split(maxsplit=1)[0]
        resumed, rest, name, arguments = match.groups()
        if resumed:
            name, arguments = resumed, self.begun.pop(thread) + rest
        elif arguments.endswith("<unfinished ...>"):
            # Each file belongs to one thread, so the order of ends is the order that matters.
            self.begun[thread] = arguments.removesuffix("<unfinished ...>").rstrip()
            return
        done = _RESULT.match(arguments)
        assert done is not None, line[:200]
        result = int(done[2], 0) if done[2] != "?" else -1
        if result >= 0:
            getattr(self, f"on_{name}", self.unknown)(done[1], result)

    def unknown(self, arguments: str, result: int) -> None:
        fd = _number(arguments, 0)
        if fd in self.files:
            raise NotImplementedError(f"an unknown call on {self.files[fd].path}: {arguments[:80]}")

    # opening and closing

    def on_openat(self, arguments: str, fd: int) -> None:
        path = _strings(arguments)[0].decode()
        self.files.pop(fd, None)
        self.folders.pop(fd, None)
        if not path.startswith(self.root) or path.endswith("-lock"):
            return  # LMDB's table of readers is rebuilt at every start
        if "O_DIRECTORY" in arguments:
            self.folders[fd] = path
            return
        if path not in self.trace.inodes:
            assert "O_CREAT" in arguments, path
            self.trace.create(path)
        inode = self.trace.inodes[path]
        if "O_TRUNC" in arguments:
            self.trace.add("truncate", inode=inode, offset=0)
        self.files[fd] = _Open(path, inode, "O_DSYNC" in arguments or "O_SYNC" in arguments)

    def on_close(self, arguments: str, result: int) -> None:
        self.files.pop(_number(arguments, 0), None)
        self.folders.pop(_number(arguments, 0), None)

    def on_mmap(self, arguments: str, result: int) -> None:
        fields = arguments.split(", ")
        if int(fields[4], 0) in self.files and "PROT_WRITE" in arguments:
            raise NotImplementedError("writes through a memory map leave no calls")

    # data

    def _write(self, fd: int, data: bytes, offset: int | None) -> None:
        if fd == 1:
            for line in data.decode().splitlines():
                self.trace.note(line)
        if (file := self.files.get(fd)) is None:
            return
        if offset is None:
            offset = file.position
            file.position += len(data)
        self.trace.write(file.inode, offset, data, synchronous=file.synchronous)

    def on_write(self, arguments: str, result: int) -> None:
        self._write(_number(arguments, 0), b"".join(_strings(arguments))[:result], None)

    on_writev = on_write

    def on_pwrite64(self, arguments: str, result: int) -> None:
        offset = int(arguments.rsplit(", ", 1)[1], 0)
        self._write(_number(arguments, 0), b"".join(_strings(arguments))[:result], offset)

    on_pwritev = on_pwrite64

    def on_pwritev2(self, arguments: str, result: int) -> None:
        head, flags = arguments.rsplit(", ", 1)
        assert flags == "0", flags
        self.on_pwrite64(head, result)

    def on_lseek(self, arguments: str, result: int) -> None:
        if (file := self.files.get(_number(arguments, 0))) is not None:
            file.position = result

    def on_ftruncate(self, arguments: str, result: int) -> None:
        if (file := self.files.get(_number(arguments, 0))) is not None:
            self.trace.add("truncate", inode=file.inode, offset=_number(arguments, 1))

    def on_fallocate(self, arguments: str, result: int) -> None:
        if (file := self.files.get(_number(arguments, 0))) is not None:
            assert _number(arguments, 1) == 0, "fallocate with a mode"
            size = _number(arguments, 2) + _number(arguments, 3)
            self.trace.add("allocate", inode=file.inode, offset=size)

    def on_fdatasync(self, arguments: str, result: int) -> None:
        fd = _number(arguments, 0)
        if fd in self.folders:
            self.trace.add("sync_folder", path=self.folders[fd])
        elif fd in self.files:
            self.trace.add("sync", inode=self.files[fd].inode)

    on_fsync = on_fdatasync

    # names

    def on_rename(self, arguments: str, result: int) -> None:
        source, target = (path.decode() for path in _strings(arguments))
        if source.startswith(self.root):
            self.trace.rename(source, target)

    on_renameat = on_renameat2 = on_rename

    def on_unlink(self, arguments: str, result: int) -> None:
        path = _strings(arguments)[0].decode()
        if path in self.trace.inodes:
            self.trace.remove(path)

    on_unlinkat = on_unlink


def _number(arguments: str, place: int) -> int:
    text = arguments.split(", ")[place]
    return int(text, 0) if text.lstrip("-").isdigit() else -1


def _strings(arguments: str) -> list[bytes]:
    found = []
    for match in _STRING.finditer(arguments):
        assert not match[2], "strace cut a string"
        found.append(bytes.fromhex(match[1].replace("\\x", "")))
    return found
