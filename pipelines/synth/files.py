"""Files of a synthetic log: written whole or not at all, and byte for byte the same for the same content."""

import io
import json
import os
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file under a temporary name and rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        temporary.write_bytes(data)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, one row of a list per line."""
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]\n"
    else:
        text = json.dumps(value, indent=1) + "\n"
    write_bytes(path, text.encode())


def write_image(path: Path, rgb: UInt8[np.ndarray, "height width 3"], quality: int) -> None:
    """Write RGB as JPEG (of that quality) or PNG, by the name's end."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else []
    ok, data = cv2.imencode(path.suffix, np.ascontiguousarray(rgb[..., ::-1]), options)
    if not ok:
        raise OSError(f"{path}: OpenCV could not encode an image of shape {rgb.shape}")
    write_bytes(path, data.data)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as a lightly compressed .npz. numpy's own carries the time of writing, and compresses four times
    as long."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            body = io.BytesIO()
            np.lib.format.write_array(body, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(entry, body.getvalue(), compresslevel=1)
    write_bytes(path, buffer.getbuffer())
