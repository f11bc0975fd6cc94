"""Encrypting a gigabyte and opening it in memory, beside raw AES-256-GCM of the same library and `openssl speed`, in one run."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from harness import alternate, ratios, save
from hauberk.assets.encryption import EncryptedReader, Passphrase, encrypt_file, encrypt_stream, is_encrypted
from hauberk.assets.encryption.header import new_header
from hauberk.assets.encryption.suites import SUITES, suite_named

KEY, CHUNK, TAG = bytes(range(32)), 1 << 20, 16
MEMORY = """
import sys
from hauberk.assets.encryption import EncryptedReader, encrypt_file, encrypt_stream
plain, sealed, other = sys.argv[1:4]
key = bytes(range(32))


def kib(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))


def reset():  # the greatest resident size is counted anew
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return kib("VmRSS")


with open(other + ".small", "wb") as file:
    file.write(bytes(1000))
encrypt_file(other + ".small", other, key, force=True)  # imports and first use are no part of it
EncryptedReader(other, key).read()
begin = reset()
encrypt_file(plain, other, key, force=True)
sealing = kib("VmHWM") - begin
with EncryptedReader(sealed, key) as reader:
    size = reader.size
target = bytearray(size)
view = memoryview(target)
for at in range(0, size, 4096):
    view[at] = 1
begin = reset()
with EncryptedReader(sealed, key) as reader:
    reader.readinto(target)
print(sealing, kib("VmHWM") - begin)
"""


class Sink:
    """Takes everything and keeps nothing."""

    def write(self, data: memoryview) -> int:
        return len(data)


class Held:
    """A file in memory that was there before."""

    def __init__(self, place: memoryview) -> None:
        self.place, self.at = place, 0

    def write(self, data: memoryview) -> int:
        self.place[self.at : self.at + len(data)] = data
        self.at += len(data)
        return len(data)


def nonce(index: int) -> bytes:
    return index.to_bytes(12, "big")


def raw_seal(cipher: AESGCM, plain: memoryview, out: memoryview) -> None:
    for index, at in enumerate(range(0, len(plain), CHUNK)):
        cipher.encrypt_into(nonce(index), plain[at : at + CHUNK], None, out)


def raw_open(cipher: AESGCM, sealed: memoryview, out: memoryview) -> None:
    step = CHUNK + TAG
    for index in range(len(sealed) // step):
        place = out[index * CHUNK : (index + 1) * CHUNK]
        cipher.decrypt_into(nonce(index), sealed[index * step : (index + 1) * step], None, place)


def raw_open_file(cipher: AESGCM, path: Path, out: memoryview) -> None:
    buffer, index = memoryview(bytearray(CHUNK + TAG)), 0
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            cipher.decrypt_into(nonce(index), buffer, None, out[index * CHUNK : (index + 1) * CHUNK])
            index += 1


def raw_seal_file(cipher: AESGCM, path: Path, target: Path) -> None:
    buffer, out, index = memoryview(bytearray(CHUNK)), memoryview(bytearray(CHUNK + TAG)), 0
    with open(path, "rb", buffering=0) as file, open(target, "wb", buffering=0) as sink:
        while file.readinto(buffer):
            cipher.encrypt_into(nonce(index), buffer, None, out)
            sink.write(out)
            index += 1


def openssl(found: list[float], *words: str) -> Callable[[], None]:
    """Return a contender that notes the GB/s that `openssl speed` states of itself."""
    def run() -> None:
        command = ["openssl", "speed", "-evp", "aes-256-gcm", "-bytes", str(CHUNK), "-seconds", "1", *words]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
        found.append(float(told.rstrip("k")) / 1e6)

    return run


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--mib", type=int, default=1024)
    options.add_argument("--rounds", type=int, default=7)
    chosen = options.parse_args()
    size = chosen.mib << 20
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None, prefix="hauberk-bench-"))
    try:
        measure(size, chosen.rounds, folder)
    finally:
        shutil.rmtree(folder)


def measure(size: int, rounds: int, folder: Path) -> None:
    block = os.urandom(CHUNK)
    plain = memoryview(bytearray(block * (size // CHUNK)))
    cipher, one, raw = AESGCM(KEY), memoryview(bytearray(CHUNK + TAG)), memoryview(bytearray(size // CHUNK * (CHUNK + TAG)))
    for index in range(size // CHUNK):
        cipher.encrypt_into(nonce(index), block, None, raw[index * (CHUNK + TAG) : (index + 1) * (CHUNK + TAG)])
    held = Held(memoryview(bytearray(size + (2 << 20))))
    encrypt_stream(plain, held, KEY)
    ours, target = held.place[: held.at], memoryview(bytearray(size))
    target[:] = plain  # every page is there before the clock runs
    plain_file, sealed_file, raw_file = folder / "plain", folder / "sealed", folder / "raw"
    plain_file.write_bytes(plain)
    sealed_file.write_bytes(ours)
    raw_file.write_bytes(raw)

    def open_memory() -> None:
        with EncryptedReader(ours, KEY) as reader:
            reader.readinto(target)

    def open_file() -> None:
        with EncryptedReader(sealed_file, KEY) as reader:
            reader.readinto(target)

    stated: dict[str, list[float]] = {"encrypt": [], "decrypt": []}
    contenders: dict[str, Callable[[], object]] = {
        "seal raw": lambda: raw_seal(cipher, plain, one), "seal": lambda: encrypt_stream(plain, Sink(), KEY),
        "open raw": lambda: raw_open(cipher, raw, target), "open": open_memory,
        "file raw": lambda: raw_seal_file(cipher, plain_file, folder / "out"),
        "file": lambda: encrypt_file(plain_file, folder / "out", KEY, force=True),
        "load raw": lambda: raw_open_file(cipher, raw_file, target), "load": open_file,
        "one shot": lambda: cipher.encrypt(bytes(12), plain, None),
    }
    if shutil.which("openssl"):
        contenders |= {"openssl": openssl(stated["encrypt"]), "openssl -d": openssl(stated["decrypt"], "-decrypt")}
    seconds = alternate(contenders, rounds=rounds)
    assert target == plain
    assert is_encrypted(folder / "out")
    gigabytes, rows, content = size / 1e9, [], {"gigabytes": size / 1e9, "seconds": seconds, "openssl_speed": stated}
    for name, floor, words, bar in (
        ("seal", "seal raw", "encrypt, memory to a sink", 0.9), ("open", "open raw", "decrypt, memory to memory", 0.8),
        ("file", "file raw", "encrypt, file to file (memory disk)", 0.9), ("load", "load raw", "decrypt, file to memory", 0.8),
        ("one shot", "seal raw", "one call of AESGCM.encrypt for all", None),
    ):
        told = ratios({key: seconds[key] for key in (name, floor)}, floor)
        rate, share = gigabytes / told[name]["seconds"], 1 / told[name]["ratio"]
        command = stated["decrypt" if name in ("open", "load") else "encrypt"]
        beside = f"{rate / statistics.median(command):.2f}×" if command else "-"
        spread = f"{1 / told[name]['greatest']:.2f} to {1 / told[name]['least']:.2f}"
        rows.append([words, f"{rate:.2f}", f"{gigabytes / told[floor]['seconds']:.2f}", f"{share:.2f}×", spread, beside,
                     f"≥ {bar}×" if bar else ""])
    notes = [speeds(content), memory(plain_file, sealed_file, folder / "memory", content), passphrase(content)]
    if stated["encrypt"]:
        notes.append("`openssl speed -evp aes-256-gcm -bytes 1048576`, in the same run: "
                     + ", ".join(f"{key} {statistics.median(found):.2f} GB/s" for key, found in stated.items()) + ".")
    notes.append("Raw: the same library's encrypt_into and decrypt_into by 1 MiB, without header, keys, order or end; CPU "
                 f"seconds of one thread, median of {rounds} rounds in turn.")
    save("encryption", f"Encrypting {gigabytes:.2f} GB", content,
         ["what", "GB/s", "raw GB/s", "of raw", "least to greatest", "of openssl speed", "bar"], rows, notes)


def speeds(content: dict[str, object]) -> str:
    """Return what each cipher reaches on 64 MiB."""
    plain, found = memoryview(bytearray(64 << 20)), {}
    for suite in SUITES:
        times = []
        for _ in range(3):
            began = time.process_time()
            encrypt_stream(plain, Sink(), KEY, cipher=suite.name)
            times.append(time.process_time() - began)
        found[suite.name] = len(plain) / 1e9 / statistics.median(times)
    content["ciphers"] = found
    return "Ciphers, GB/s of encryption: " + ", ".join(f"{name} {rate:.2f}" for name, rate in found.items()) + "."


def memory(plain: Path, sealed: Path, other: Path, content: dict[str, object]) -> str:
    """Return how much the greatest resident size grows over what is held anyway, in a process of its own."""
    told = subprocess.run(
        [sys.executable, "-c", MEMORY, str(plain), str(sealed), str(other)], capture_output=True, text=True, check=True,
    ).stdout.split()
    sealing, opening = (int(one) / 1024 for one in told)
    content["extra_mib"] = {"encrypt": sealing, "decrypt": opening}
    return f"Growth of the greatest resident size, file to file and file to memory that is there: encrypt {sealing:.1f} MiB, " \
        f"decrypt {opening:.1f} MiB; bar 16."


def passphrase(content: dict[str, object]) -> str:
    """Return what one passphrase costs."""
    header, words, times = new_header(suite_named("aes-256-gcm"), 20, "other"), Passphrase("tin whistle"), []
    slot = words.wrap(bytearray(32), header.fixed)
    for _ in range(5):
        began = time.process_time()
        assert words.unwrap(slot, header.fixed) == bytes(32)
        times.append(time.process_time() - began)
    content["argon2id_seconds"] = statistics.median(times)
    return f"A passphrase (Argon2id, 64 MiB, 3 passes) takes {statistics.median(times):.2f} s; bar 0.5."


if __name__ == "__main__":
    main()
