"""Whose process is at the other end of a TCP connection within this host, as the kernel records it.

A closed socket has no owner: the kernel then reports user 0, so its inode is checked too. A connection is
known by its descriptor and the inode of its socket: ZeroMQ may close a descriptor, and open another
connection by it.
"""

import contextlib
import ipaddress
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Final

_TABLES: Final = ("/proc/net/tcp", "/proc/net/tcp6")
_SOCK_DIAG: Final = 4  # NETLINK_SOCK_DIAG, linux/netlink.h
_BY_FAMILY: Final = 20  # SOCK_DIAG_BY_FAMILY, linux/sock_diag.h
_REQUEST: Final = 1  # NLM_F_REQUEST
_ANY: Final = 0xFFFFFFFF
_ANSWER_S: Final = 1.0
_HEAD: Final = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, process."""
_OWNER: Final = struct.Struct("=68x12xII")
"""uid and inode in struct inet_diag_msg behind the header of a reply, linux/inet_diag.h."""

Address = tuple[bytes, int]
"""Packed IP address and port."""


def is_own(descriptor: int) -> bool:
    """Return whether a process of this user holds the other end of a connection.

    Return False also where the connection has ended, or the system does not record owners.
    """
    try:
        with duplicate(descriptor) as here:
            near, far = _address(here.getsockname()), _address(here.getpeername())
    except (OSError, ValueError):
        return False
    found = _asked(far, near)
    uid, inode = _listed(far, near) if found is None else found
    return inode != 0 and uid == os.geteuid()


def inode_of(descriptor: int) -> int:
    """Return the inode of an open socket, 0 if the descriptor is closed."""
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return 0


def cut(descriptor: int, inode: int) -> None:
    """End the connection of a socket, if its descriptor still is the one with this inode."""
    with contextlib.suppress(OSError), duplicate(descriptor) as here:
        if inode_of(here.fileno()) == inode:
            here.shutdown(socket.SHUT_RDWR)


def duplicate(descriptor: int) -> socket.socket:
    """Return another descriptor of a socket; OSError if it is closed or none."""
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _address(name: tuple[str, int]) -> Address:
    """Return an address as `getsockname` returns it; IPv4 in IPv6 as IPv4. ValueError if it is not of TCP."""
    address = ipaddress.ip_address(name[0].partition("%")[0] if isinstance(name, tuple) else "")
    return (getattr(address, "ipv4_mapped", None) or address).packed, name[1]


def _asked(local: Address, remote: Address) -> tuple[int, int] | None:
    """Return user and inode of the socket with these addresses; None where the kernel does not answer."""
    mapped = b"\0" * 10 + b"\xff\xff"
    forms = [(local[0], remote[0])]
    if len(local[0]) == 4:  # a socket of IPv6 may have them too
        forms.append((mapped + local[0], mapped + remote[0]))
    with contextlib.suppress(OSError):
        for form in forms:
            if (found := _ask(form, local[1], remote[1])) is not None:
                return found
    return None


def _ask(addresses: tuple[bytes, bytes], port: int, remote_port: int) -> tuple[int, int] | None:
    """Return user and inode of one socket; None if the kernel answers with an error."""
    family = socket.AF_INET if len(addresses[0]) == 4 else socket.AF_INET6
    identity = struct.pack("!HH16s16s", port, remote_port, *(part.ljust(16, b"\0") for part in addresses))
    request = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, _ANY) + identity
    request += struct.pack("=III", 0, _ANY, _ANY)  # no interface, no cookie
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _SOCK_DIAG) as kernel:
        kernel.settimeout(_ANSWER_S)
        kernel.send(_HEAD.pack(_HEAD.size + len(request), _BY_FAMILY, _REQUEST, 1, 0) + request)
        reply = kernel.recv(4096)
    if _HEAD.unpack_from(reply)[1] != _BY_FAMILY or len(reply) < _OWNER.size:
        return None
    uid, inode = _OWNER.unpack_from(reply)
    return uid, inode


def _listed(local: Address, remote: Address) -> tuple[int, int]:
    """Return user and inode of the socket with these addresses in the table; zeros if there is none."""
    ports = f":{local[1]:04X}", f":{remote[1]:04X}"
    for table in _TABLES:
        with contextlib.suppress(OSError):
            for line in Path(table).read_text("ascii").splitlines()[1:]:
                fields = line.split()
                same_ports = (fields[1][-5:], fields[2][-5:]) == ports
                if same_ports and [_from_table(part) for part in fields[1:3]] == [local[0], remote[0]]:
                    return int(fields[7]), int(fields[9])
    return 0, 0


def _from_table(field: str) -> bytes:
    """Return the packed IP address of a table's `ADDRESS:PORT`: words of 32 bits in the machine's order."""
    words = bytes.fromhex(field[:-5])
    if sys.byteorder == "little":
        words = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    return words[12:] if len(words) == 16 and words[:12] == b"\0" * 10 + b"\xff\xff" else words
