"""Files that claim or stand for far more than they hold, each refused before it is believed.

`BOMBS` maps a name to what writes the file and reads it. Reading must raise a domain error within
`MEMORY` bytes and `SECONDS` of processor time.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import zlib

import h5py
import nibabel as nib
import numpy as np
from fuzz_readers import (
    SHAPE,
    make_dataset,
    make_raw,
    make_store,
    make_style,
    mend_dataset,
    mend_model,
)
from PIL import Image
from tiny_models import write_image_model

from synthgen.core.schema import BRAIN9
from synthgen.data.label_tables import read_table
from synthgen.data.nifti import read_image, read_labels
from synthgen.data.nnunet_raw import open_nnunet_raw
from synthgen.data.picture_files import read_picture
from synthgen.data.shards import Shards
from synthgen.data.store import TrainingStore
from synthgen.data.verify import verify
from synthgen.evaluate.cases import Frame
from synthgen.evaluate.foreign import open_set
from synthgen.generate.redraw import Quarantine
from synthgen.images.spade import SpadePipeline
from synthgen.images.workspace_styles import read_style
from synthgen.recipe import load_recipe

MEMORY = 3 * 2**29
SECONDS = 20


def nifti_header(shape, dtype=2, itemsize=1, **fields):
    """Return the 352 bytes before the voxels of a NIfTI file."""
    header = nib.Nifti1Header()
    header["dim"] = [len(shape), *shape, *[1] * (7 - len(shape))]
    header["datatype"], header["bitpix"] = dtype, 8 * itemsize
    header["pixdim"] = 1
    header["vox_offset"] = 352
    header["sform_code"] = 1
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        header[name] = np.eye(4)[row]
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + b"\0" * 4


ZEROS = gzip.compress(bytes(2**20), 9, mtime=0)


def packed(head, zeros):
    """Return `head` and zero bytes behind it, gzipped as far as gzip goes, in many members."""
    return gzip.compress(head, mtime=0) + ZEROS * (zeros // 2**20)


def nifti(head, zeros=0, read=read_image):
    def run(folder):
        path = folder / "sub-01_T1w.nii.gz"
        path.write_bytes(packed(head, zeros))
        return read(path)

    return run


def png(width, height, rows=0):
    """Return a grey PNG of that size, of which so many rows of zeros are there."""

    def chunk(kind, body):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 1) * rows), 9)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def picture(content):
    def run(folder):
        (folder / "a.png").write_bytes(content)
        return read_picture(folder / "a.png", colour=True)

    return run


def foreign_picture(folder):
    """A huge PNG in a folder that is judged."""
    (folder / "labelsTr").mkdir()
    (folder / "labelsTr" / "a.png").write_bytes(png(2**31 - 1, 2**31 - 1))
    about = {"labels": {"background": 0, "csf": 1}, "file_ending": ".png", "channel_names": {}}
    (folder / "dataset.json").write_text(json.dumps(about))
    return open_set(folder, Frame(BRAIN9, SHAPE)).pv([0])


def text_chunk_bomb(folder):
    """64 MiB of text, unpacked when a PNG is opened."""
    small = png(64, 64, 64)
    body = b"Comment\0\0" + zlib.compress(bytes(2**26), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return picture(small[:33] + chunk + small[33:])(folder)


def recipe(text):
    def run(folder):
        (folder / "a.yaml").write_text(text)
        return load_recipe(folder / "a.yaml")

    return run


def laughs():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "\n".join(lines)


def merges():
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 12)]
    return "\n".join(lines)


def flagged(content):
    def run(folder):
        (folder / "a.json").write_bytes(content)
        return Quarantine.read(folder / "a.json")

    return run


def store(change):
    """Change the HDF5 file of a training store and open it."""

    def run(folder):
        make_store(folder)
        with h5py.File(folder / "store.h5", "r+") as file:
            change(file, folder)
        with TrainingStore.open(folder) as opened:
            return opened.pv(0), opened.image(0)

    return run


def shards(change):
    """Change the HDF5 file of a shard, mend its checksum, and verify and read the dataset."""

    def run(folder):
        make_dataset(folder)
        with h5py.File(folder / "shards" / "00000.h5", "r+") as file:
            change(file, folder)
        mend_dataset(folder)
        found = Shards(folder)
        found.arrays(0)
        return verify(folder), found[0]

    return run


def many_rows(name):
    def change(file, _folder):
        shape, dtype = file[name].shape[1:], file[name].dtype
        del file[name]
        chunks = (1, *shape) if shape else (2**16,)
        file.create_dataset(name, (10**12, *shape), dtype, chunks=chunks, compression="gzip")

    return change


def big_chunk(name):
    def change(file, _folder):
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        chunks = (2**20, *shape[1:-1], 4)
        file.create_dataset(
            name, shape, dtype, maxshape=(None,) * len(shape), chunks=chunks, compression="gzip"
        )
        file[name][:] = 1

    return change


def elsewhere(name, how):
    """Let an array of the file lie in another one."""

    def change(file, folder):
        with h5py.File(folder / "other.h5", "w") as other:
            file.copy(name, other, "x")
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        match how:
            case "link":
                file[name] = h5py.ExternalLink(str(folder / "other.h5"), "/x")
            case "soft":
                file[name] = h5py.SoftLink("/slices/z")
            case "virtual":
                layout = h5py.VirtualLayout(shape, dtype)
                layout[...] = h5py.VirtualSource(str(folder / "other.h5"), "x", shape)
                file.create_virtual_dataset(name, layout)
            case "external":
                size = int(np.prod(shape)) * dtype.itemsize
                file.create_dataset(name, shape, dtype, external=[("/etc/passwd", 0, size)])

    return change


def huge_attribute(file, _folder):
    space = h5py.h5s.create_simple((2**16,))
    h5py.h5a.create(file.id, b"fingerprint2", h5py.h5t.NATIVE_INT64, space)
    for number in range(200):
        file.attrs[f"more{number}"] = number


def image_model(change):
    """Change a file of an image model, list its checksum, and load it."""

    def run(folder):
        write_image_model(folder / "model")
        change(folder / "model")
        mend_model(folder)
        return SpadePipeline.load(folder / "model")

    return run


def setting(name, file="generator/config.json", **values):
    def change(model):
        path = model / file
        path.write_text(json.dumps(json.loads(path.read_bytes()) | values))

    change.__name__ = name
    return change


def weights(content):
    def change(model):
        (model / "generator" / "diffusion_pytorch_model.safetensors").write_bytes(content)

    return change


def style(content):
    def run(folder):
        make_style(folder)
        (folder / "own_t1.safetensors").write_bytes(content)
        return read_style(folder / "own_t1.safetensors")

    return run


def claimed_tensor():
    header = json.dumps({"mean": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    return struct.pack("<Q", len(header)) + header.encode() + bytes(64)


def pipe(name, read, make=None):
    """Let a pipe that nobody writes to stand where a file should."""

    def run(folder):
        if make is not None:
            make(folder)
            (folder / name).unlink()
        os.mkfifo(folder / name)
        return read(folder)

    return run


def endless(name, read):
    """Let a file be a link to a device that never ends."""

    def run(folder):
        (folder / name).symlink_to("/dev/zero")
        return read(folder)

    return run


def open_raw(folder):
    return open_nnunet_raw(folder, tissues=("csf", "wm"), split="train", modalities=(), exclude=())


def huge_jpeg(folder):
    Image.new("L", (9000, 20)).save(folder / "a.jpg")
    return read_picture(folder / "a.jpg", colour=True)


NAN = float("nan")
ABSURD = (32767,) * 7
BOMBS = {
    "NIfTI of 32767^7 voxels": nifti(nifti_header(ABSURD)),
    "NIfTI of 2^30 voxels": nifti(nifti_header((1024, 1024, 1024))),
    "NIfTI, 1 GB of zeros in 1 MB": nifti(nifti_header((512, 512, 512), 64, 8), 2**30),
    "NIfTI, 1 GB of zeros, all said": nifti(nifti_header((1024, 1024, 1023)), 2**30, read_labels),
    "NIfTI, negative axes": nifti(nifti_header((4, -5, 6))),
    "NIfTI without axes": nifti(nifti_header(())),
    "NIfTI, NaN affine": nifti(nifti_header((4, 5, 6), srow_x=[NAN] * 4), 2**20),
    "NIfTI, NaN scale": nifti(nifti_header((4, 5, 6), scl_slope=1, scl_inter=3e38), 2**20),
    "NIfTI, voxels at byte 3e9": nifti(nifti_header((4, 5, 6), vox_offset=3e9), 2**30),
    "NIfTI, voxels before the start": nifti(nifti_header((4, 5, 6), vox_offset=-400), 2**20),
    "NIfTI, extension of 1 GB": nifti(
        nifti_header((4, 5, 6), vox_offset=2.0**30 + 352)[:-4]
        + struct.pack("<4B2i", 1, 0, 0, 0, 2**30, 6),
        2**30,
    ),
    "NIfTI of an unknown type": nifti(nifti_header((4, 5, 6), 7, 3), 2**20),
    "NIfTI, colours": nifti(nifti_header((4, 5, 6), 128, 3), 2**20),
    "NIfTI, complex numbers": nifti(nifti_header((4, 5, 6), 1792, 16), 2**20),
    "PNG of 2^31 x 2^31": picture(png(2**31 - 1, 2**31 - 1)),
    "PNG of 60 000 x 60 000 zeros": picture(png(60_000, 60_000, 2000)),
    "PNG of 8192 x 9000 zeros": picture(png(8192, 9000, 9000)),
    "PNG with 64 MiB of text": text_chunk_bomb,
    "PNG of 2^31 x 2^31 in a judged folder": foreign_picture,
    "JPEG of 9000 pixels": huge_jpeg,
    "YAML, a billion laughs": recipe(laughs()),
    "YAML, a billion merges": recipe(merges()),
    "YAML that holds itself": recipe("a: &a {b: *a}"),
    "YAML, Python tags": recipe("name: !!python/object/apply:os.system ['touch /tmp/x']"),
    "YAML, 100 000 brackets": recipe("a: " + "[" * 100_000),
    "YAML of 10 MB": recipe("a: [" + "x, " * 3_000_000 + "]"),
    "YAML, a number of 200 000 digits": recipe("name: " + "9" * 200_000),
    "JSON, 100 000 brackets": flagged(b"[" * 100_000 + b"]" * 100_000),
    "JSON, 200 brackets": flagged(b"[" * 200 + b"]" * 200),
    "JSON of 65 MiB": flagged(b" " * (65 * 2**20)),
    "JSON of 20 million objects": flagged(b"[" + b"{}," * 20_000_000 + b"{}]"),
    "JSON, a number of 200 000 digits": flagged(b'{"dataset": "a", "total": ' + b"9" * 200_000),
    "JSON, half a surrogate pair": flagged(b'{"dataset": "\\ud800", "total": 1, "flagged": []}'),
    "store of 10^12 slices": store(many_rows("pv")),
    "store of 10^12 subjects": store(many_rows("slices/subject")),
    "store, chunks of gigabytes": store(big_chunk("pv")),
    "store, a link out": store(elsewhere("pv", "link")),
    "store, a soft link": store(elsewhere("rows/pv_index", "soft")),
    "store, a virtual array": store(elsewhere("pv", "virtual")),
    "store, an array in /etc/passwd": store(elsewhere("lesions", "external")),
    "store, hundreds of attributes": store(huge_attribute),
    "shard of 10^12 rows": shards(many_rows("pv")),
    "shard of 10^12 indices": shards(many_rows("index")),
    "shard, a link out": shards(elsewhere("pv", "link")),
    "shard, a virtual array": shards(elsewhere("images", "virtual")),
    "shard, an array in /etc/passwd": shards(elsewhere("index", "external")),
    "weights, header of 2^63 bytes": image_model(weights(struct.pack("<Q", 2**63) + bytes(64))),
    "weights, tensor of 4 TB": image_model(weights(claimed_tensor())),
    "settings, 2^40 channels": image_model(setting("channels", base_channels=2**40)),
    "settings, 65 536 channels": image_model(setting("channels", base_channels=2**16)),
    "settings, sides of 10^9": image_model(setting("shape", shape=[10**9, 10**9])),
    "settings, 10^9 layers": image_model(
        setting("layers", "style_encoder/config.json", num_layers=10**9)
    ),
    "settings, codes of 60 000": image_model(
        setting("codes", "style_bank/config.json", latent_dim=60_000)
    ),
    "settings, 100 000 brackets": image_model(
        lambda model: (model / "generator" / "config.json").write_text("[" * 100_000)
    ),
    "style, header of 2^63 bytes": style(struct.pack("<Q", 2**63) + bytes(64)),
    "style, tensor of 4 TB": style(claimed_tensor()),
    "pipe for a picture": pipe("a.png", lambda folder: read_picture(folder / "a.png", colour=True)),
    "pipe for a NIfTI": pipe("a.nii.gz", lambda folder: read_image(folder / "a.nii.gz")),
    "pipe for a recipe": pipe("a.yaml", lambda folder: load_recipe(folder / "a.yaml")),
    "pipe for a table": pipe("a.tsv", lambda folder: read_table(folder / "a.tsv", BRAIN9)),
    "pipe for a manifest": pipe("manifest.json", Shards, make_dataset),
    "pipe for a store": pipe("store.h5", lambda folder: TrainingStore(folder / "store.h5")),
    "pipe for a dataset.json": pipe("dataset.json", open_raw, make_raw),
    "endless JSON": endless("a.json", lambda folder: Quarantine.read(folder / "a.json")),
    "endless table": endless("a.tsv", lambda folder: read_table(folder / "a.tsv", BRAIN9)),
    "endless recipe": endless("a.yaml", lambda folder: load_recipe(folder / "a.yaml")),
}
