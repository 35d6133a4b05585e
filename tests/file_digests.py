"""What a folder holds, byte for byte."""

import hashlib


def digests(folder):
    """Return the SHA-256 of every file of a folder by its path there, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
