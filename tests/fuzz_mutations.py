"""Hostile changes to valid files, each drawn from a `random.Random`: bytes, JSON, text, headers."""

from __future__ import annotations

import copy
import gzip
import json
import os
import shutil
import struct
import zlib

EXTREMES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\x00" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7)
DEEP = "@@deep@@"
"""Stands in a JSON value for ten thousand nested lists, which no encoder writes."""
VALUES = (
    *(None, True, False, 0, -1, 1, 3, 255, 256, 2**31, 2**63, -(2**63), 10**18, 10**40, 10**400),
    *(0.5, -1.5, 1e308, -1e308, float("nan"), float("inf"), "", "x" * 100_000, "nan", "1e999"),
    *("../../../escape", "/escape", "..", ".", "a/b", "a\\b", "a\0b", "\ud800", "a\nb\x1b[2J"),
    *([], {}, [None], [[]], {"": {}}, [0] * 5000, list(range(70_000)), {"a": 1}, DEEP, [DEEP]),
)
WORDS = (
    *(
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "&a [*a]",
        "*a",
        "<<:",
    ),
    *("&x {y: &y [*x, *x]}", "!!binary YWJj", "!!set {a, b}", "!!timestamp 2026-01-01", "? [a]"),
    *("\t", "\0", "\r", "\u2028", "\ufeff", "\x85", '"', "'", "{", "[", "---", "...", "%YAML 9.9"),
    *(
        "9" * 5000,
        "0x" + "f" * 5000,
        "1e999",
        "-.inf",
        ".nan",
        "²",
        "٣",
        "-1",
        "../../escape",
        "a\tb",
    ),
    *("x" * 140_000, "[" * 3000, "{" * 3000, "- " * 3000, ":", "#", "|", ">", "n/a", "\n" * 300),
)


def change_bytes(random, data):
    """Flip, overwrite, insert, delete, repeat, splice or cut off bytes, one to eight times."""
    data = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 8))):
        place = random.randrange(len(data) + 1)
        span = random.choice((1, 2, 4, 8, 16, 64, 256))
        match random.randrange(7):
            case 0 if data:
                data[place % len(data)] ^= 1 << random.randrange(8)
            case 1:
                extreme = random.choice(EXTREMES)
                data[place : place + len(extreme)] = extreme
            case 2:
                data[place:place] = bytes(random.randrange(256) for _ in range(min(span, 16)))
            case 3:
                del data[place : place + span]
            case 4:
                data[place:place] = data[place : place + span] * random.choice((1, 3))
            case 5:
                other = random.randrange(len(data) + 1)
                data[place : place + span] = data[other : other + span]
            case 6:
                del data[place:]
    return bytes(data)


def change_text(random, data):
    """Put words that mean something to parsers into a text, or garble its lines."""
    lines = data.decode("utf-8", errors="replace").split("\n")
    for _ in range(random.choice((1, 1, 2, 3))):
        row = random.randrange(len(lines))
        word = random.choice(WORDS)
        match random.randrange(6):
            case 0:
                lines[row] = lines[row].partition(":")[0] + ": " + word
            case 1:
                place = random.randrange(len(lines[row]) + 1)
                lines[row] = lines[row][:place] + word + lines[row][place:]
            case 2:
                lines.insert(row, word)
            case 3:
                del lines[row : row + random.choice((1, 4))]
                lines = lines or [""]
            case 4:
                lines[row] = " " * random.randrange(9) + lines[row].lstrip()
            case 5:
                lines[row:row] = lines[row : row + 2]
    return "\n".join(lines).encode("utf-8", errors="surrogatepass")


def change_json(random, data):
    """Replace, remove, rename, repeat or add values anywhere in a JSON document."""
    try:
        tree = [json.loads(data)]
    except (ValueError, RecursionError):  # changed before
        return change_bytes(random, data)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        holder, key = random.choice(list(_places(tree)))
        match random.randrange(8):
            case 0 if tree and holder is not tree:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[str(random.choice(VALUES))[:2000]] = holder.pop(key)
            case 2 if isinstance(holder, list) and holder is not tree:
                copies, text = random.choice((1, 200)), json.dumps(holder[key])
                large = len(text) > 20_000 or DEEP in text
                holder[key:key] = [holder[key]] * (1 if large else copies)
            case 3:
                holder[key] = {"a": holder[key]}
            case 4:
                holder[key] = [holder[key]]
            case 5 if isinstance(holder[key], int | float):
                holder[key] = holder[key] * random.choice((-1, 0, 10, 1000, 10**9, 0.5))
            case _:
                holder[key] = copy.deepcopy(random.choice(VALUES))
    text = json.dumps(tree[0], allow_nan=True)
    deep = "[" * 10_000 + "]" * 10_000
    return text.replace(json.dumps(DEEP), deep).replace("Infinity", "1e999").encode()


def _places(tree):
    entries = enumerate(tree) if isinstance(tree, list) else tree.items()
    for key, value in list(entries):
        yield tree, key
        if isinstance(value, list | dict):
            yield from _places(value)


def change_json_lines(random, data):
    """Change one of several JSON lines, or the text of them all."""
    lines = [line for line in data.split(b"\n") if line] or [b""]
    if random.random() < 0.3:
        return change_text(random, data)
    row = random.randrange(len(lines))
    lines[row] = change_json(random, lines[row])
    return b"\n".join(lines)


NIFTI_FIELDS = (
    *((0, "i"), (40, "h"), (42, "h"), (44, "h"), (46, "h"), (48, "h"), (50, "h"), (52, "h")),
    *((70, "h"), (72, "h"), (76, "f"), (80, "f"), (84, "f"), (88, "f"), (108, "f"), (112, "f")),
    *((116, "f"), (252, "h"), (254, "h"), (256, "f"), (260, "f"), (264, "f"), (268, "f")),
    *((280, "f"), (284, "f"), (288, "f"), (300, "f"), (320, "f"), (344, "i"), (348, "i")),
    *((352, "i"), (356, "i")),
)
"""Offsets and types: sizes, data type, scales, offset of the data, orientation, extensions."""
NUMBERS = {
    "h": (-32768, -1, 0, 1, 2, 3, 4, 7, 8, 16, 32, 64, 128, 512, 1024, 1280, 1792, 2048, 32767),
    "i": (-(2**31), -1, 0, 1, 348, 540, 2**16, 2**30, 2**31 - 1),
    "f": (float("nan"), float("inf"), -1.0, 0.0, 1e-30, 1.0, 352.0, 353.5, 1e9, 3e38, -3e38),
}


def change_nifti(random, data):
    """Change fields of the header, or bytes anywhere, before it is packed again."""
    packed = data[:2] == b"\x1f\x8b"
    if packed and random.random() < 0.25:
        return change_bytes(random, data)
    try:
        plain = bytearray(gzip.decompress(data) if packed else data)
    except (OSError, EOFError, zlib.error):  # changed before
        return change_bytes(random, data)
    if len(plain) < 360:
        return change_bytes(random, data)
    if random.random() < 0.75:
        for _ in range(random.choice((1, 1, 2, 4))):
            offset, kind = random.choice(NIFTI_FIELDS)
            struct.pack_into(f"<{kind}", plain, offset, random.choice(NUMBERS[kind]))
        if random.random() < 0.1:
            struct.pack_into("<8h", plain, 40, 7, *[32767] * 7)
    else:
        plain = bytearray(change_bytes(random, bytes(plain)))
    return gzip.compress(bytes(plain), 1, mtime=0) if packed else bytes(plain)


def change_png(random, data):
    """Change one chunk of a PNG and mend its checksum, or bytes anywhere."""
    if random.random() < 0.4 or data[:8] != b"\x89PNG\r\n\x1a\n":
        return change_bytes(random, data)
    chunks, place = [], 8
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return change_bytes(random, data)
    row = random.randrange(len(chunks))
    kind, body = chunks[row]
    if kind == b"IHDR" and random.random() < 0.7:
        sides = (0, 1, 8, 64, 8192, 8193, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
        body = struct.pack(">II", random.choice(sides), random.choice(sides)) + body[8:]
    else:
        kind = random.choice((kind, kind, b"tRNS", b"PLTE", b"iTXt", b"zTXt", b"acTL", b"eXIf"))
        body = change_bytes(random, body)
    chunks[row : row + random.choice((0, 1, 1, 1))] = [(kind, body)]
    parts = [
        struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks
    ]
    return data[:8] + b"".join(parts)


def change_safetensors(random, data):
    """Change the header of a safetensors file, its stated length, or bytes anywhere."""
    if len(data) < 8:
        return change_bytes(random, data)
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    match random.randrange(4):
        case 0:
            stated = random.choice((0, 1, 7, 2**20, 2**27, 2**31, 2**63, 2**64 - 1, length ^ 8))
            return struct.pack("<Q", stated) + data[8:]
        case 1:
            return change_bytes(random, data)
        case _:
            header = change_json(random, header)
            return struct.pack("<Q", len(header)) + header + body


def change_place(random, path):
    """Put something else where a file was: nothing, a folder, a link, a pipe."""
    path.unlink()
    match random.randrange(7):
        case 0:
            path.mkdir()
        case 1:
            os.mkfifo(path)
        case 2:
            path.symlink_to("/dev/zero")
        case 3:
            path.symlink_to("/dev/full")
        case 4:
            path.symlink_to(path)
        case 5:
            path.symlink_to("/nonexistent/file")
        case _:
            pass


BY_NAME = {
    ".json": (change_json, change_json, change_json, change_text, change_bytes),
    ".jsonl": (change_json_lines, change_text, change_bytes),
    ".tsv": (change_text, change_text, change_bytes),
    ".txt": (change_text, change_text, change_bytes),
    ".yaml": (change_text, change_text, change_bytes),
    ".md": (change_bytes,),
    ".nii": (change_nifti,),
    ".gz": (change_nifti,),
    ".png": (change_png,),
    ".safetensors": (change_safetensors,),
}


def change_file(random, path):
    """Change a file in a way that fits its name."""
    if random.random() < 0.03:
        change_place(random, path)
        return
    change = random.choice(BY_NAME.get(path.suffix, (change_bytes,)))
    path.write_bytes(change(random, path.read_bytes()))


def fresh_copy(template, folder):
    """Copy a folder of valid files over what an earlier change left."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)
