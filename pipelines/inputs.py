"""Raw files of a scene as inputs: which are sound, a digest of their content, and a cache of their pixels.

A unit's fingerprint holds its inputs by content. Hashing a data set takes as long as reading it, so the digests are
kept in `<store>/inputs/<scene>.json` with each file's size and modification time: while those stand, the digest does,
and a second run only asks the file system for sizes and times. A touched or copied file is hashed again, and where its
content is the same, nothing is redone.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipelines.config import json_digest
from pipelines.datasets.files import check_image, load_image
from pipelines.datasets.records import CameraImage, DataError, Frame, LidarSweep, Log, Scene
from pipelines.datasets.zero_runs import JPEG_RUN, zeros_in_jpeg
from pipelines.transient import is_transient
from storage import files
from storage.asides import INPUTS, seal, unseal
from storage.backend import backend
from storage.location import Location

_IMAGE_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND\xaeB`\x82"}
"""First bytes of JPEG and PNG files and the marker that ends a whole one: decoders fill a cut file with grey."""

CHECKS = 1
"""Counts what files are checked for: with another check, sound files of fewer are looked at again. 1: runs of zeros."""


@dataclass(frozen=True)
class FileFacts:
    """What is known of one raw file. `fault` says why it cannot be used; `points` counts a LiDAR file's points.

    `decoded`: [height, width] of the calibration that an image was decoded for, None where it was not. `checks`: the
    CHECKS when it was looked at.
    """

    size: int
    mtime_ns: int
    digest: str
    fault: str | None = None
    points: int = 0
    decoded: list[int] | None = None
    checks: int = CHECKS


@dataclass(frozen=True)
class SceneInputs:
    """The raw files of one scene, by path. A missing file has a fault and an empty digest."""

    files: dict[Path, FileFacts]

    @property
    def faults(self) -> dict[Path, str]:
        """Path and reason of every file that cannot be used."""
        return {path: facts.fault for path, facts in self.files.items() if facts.fault is not None}

    @property
    def max_points(self) -> int:
        """Points of the largest LiDAR file."""
        return max((facts.points for facts in self.files.values()), default=0)

    def digest(self, scene: Scene) -> str:
        """SHA-256 over the records of `scene` (times, poses, calibration) and the content of the files they name."""
        return json_digest([_record_facts(scene), [self.files[path].digest for path, _ in scene_files(scene)]])


def scene_files(scene: Scene) -> Iterator[tuple[Path, CameraImage | LidarSweep]]:
    """Every raw file of a scene with its record, in time order, cameras before LiDAR."""
    for frame in scene.frames:
        for image in frame.images.values():
            yield image.path, image
        if frame.lidar is not None:
            yield frame.lidar.path, frame.lidar


def _record_facts(scene: Scene) -> list[object]:
    def facts(record: CameraImage | LidarSweep | Frame) -> list[object]:
        skipped = ("path", "images", "lidar")
        values = (v for k, v in vars(record).items() if k not in skipped)
        return [v.tolist() if isinstance(v, np.ndarray) else v for v in values]

    out: list[object] = [scene.name, list(scene.tags)]
    for frame in scene.frames:
        out.append([facts(frame), {c: facts(image) for c, image in frame.images.items()}])
        out.append(facts(frame.lidar) if frame.lidar is not None else None)
    return out


def facts_file(store: Location, scene: str) -> Location:
    """Where the digests of a scene's raw files are kept."""
    return store / INPUTS / f"{scene}.json"


def known_inputs(scene: Scene, root: Path, kept: Location, decode: bool = False) -> SceneInputs | None:
    """The kept facts of a scene if they cover every file and no size or time has changed; reads no raw file.

    With `decode`, facts of an image that was not decoded do not cover it.
    """
    known = _load_facts(kept, root)
    files = {}
    for path, record in scene_files(scene):
        facts = known.get(path)
        if facts is None or not _holds(facts, path, record, decode):
            return None
        files[path] = facts
    return SceneInputs(files)


def examine_inputs(log: Log, scene: Scene, root: Path, kept: Location, decode: bool = False) -> SceneInputs:
    """Hash and check every raw file of a scene, reusing what is known and unchanged, and keep the result in `kept`.

    Checked: the file is there and not empty, an image ends with its end marker, a JPEG has no block of zeros,
    the reader can read a LiDAR sweep.
    With `decode` also that an image can be decoded and has its calibration's size: a scene whose faults are left out
    has to know them all before its table is written.
    """
    known = _load_facts(kept, root)
    files: dict[Path, FileFacts] = {}
    for path, record in scene_files(scene):
        facts = known.get(path)
        if facts is None or not _holds(facts, path, record, decode):
            facts = _examine(log, path, record, decode)
        files[path] = facts
    inputs = SceneInputs(files)
    if files != known:
        _save_facts(inputs, root, kept)
    return inputs


def _holds(facts: FileFacts, path: Path, record: CameraImage | LidarSweep, decode: bool) -> bool:
    """Whether the file is as it was when these facts were found, and they say what is asked."""
    if (facts.size, facts.mtime_ns) != _stat(path) or facts.checks != CHECKS:
        return False
    if not isinstance(record, CameraImage) or not facts.digest:
        return True
    return facts.decoded == [record.height, record.width] if facts.decoded else not decode


def without_faults(scene: Scene, faults: dict[Path, str]) -> Scene:
    """The scene with the images and sweeps whose files are at fault left out of its frames."""
    if not faults:
        return scene
    frames = []
    for frame in scene.frames:
        images = {channel: image for channel, image in frame.images.items() if image.path not in faults}
        lidar = frame.lidar if frame.lidar is None or frame.lidar.path not in faults else None
        frames.append(replace(frame, images=images, lidar=lidar))
    return replace(scene, frames=tuple(frames))


def _stat(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return -1, 0
    return stat.st_size, stat.st_mtime_ns


def _examine(log: Log, path: Path, record: CameraImage | LidarSweep, decode: bool) -> FileFacts:
    size, mtime_ns = _stat(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return FileFacts(size, mtime_ns, "", fault=f"{path}: no such file; restore it, or set on_error: skip")
    except OSError as error:
        # Not remembered as a property of the file: permission or network trouble passes.
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the disk and its permissions") from error
    digest = hashlib.blake2b(data, digest_size=20).hexdigest()
    if isinstance(record, CameraImage):
        fault = image_fault(path, data) or (_decoding_fault(record, data) if decode else None)
        return FileFacts(size, mtime_ns, digest, fault, decoded=[record.height, record.width] if decode else None)
    try:
        points = len(log.read_lidar(record))
    except DataError as error:
        if is_transient(error):
            raise
        return FileFacts(size, mtime_ns, digest, fault=str(error))
    return FileFacts(size, mtime_ns, digest, points=points)


def image_fault(path: Path, data: bytes) -> str | None:
    """Why the bytes of an image file are not a whole JPEG or PNG image, or None; told without decoding."""
    remedy = "copy the file again from the data set, or set on_error: skip"
    if not data:
        return f"{path}: empty file; {remedy}"
    end = _IMAGE_ENDS.get(data[:2])
    if end is None:
        return f"{path}: neither a JPEG nor a PNG image (starts with {data[:4].hex(' ')}); {remedy}"
    # Some encoders pad the file after the end marker; a cut one has none near its end.
    if end not in data[-64:]:
        return f"{path}: truncated image, {len(data)} bytes without an end marker; {remedy}"
    zeros = zeros_in_jpeg(data) if data[:1] == b"\xff" else None
    if zeros is not None:
        return f"{path}: damaged image, {JPEG_RUN} or more zero bytes from byte {zeros} of {len(data)} on; {remedy}"
    return None


def _decoding_fault(image: CameraImage, data: bytes) -> str | None:
    try:
        check_image(image.path, data, (image.height, image.width))
    except DataError as error:
        return str(error)
    return None


def _load_facts(kept: Location, root: Path) -> dict[Path, FileFacts]:
    try:
        rows = json.loads(unseal(backend(kept.parent).get(kept.name).removesuffix(b"\n")))
        return {root / path: FileFacts(**{"checks": 0, **facts}) for path, facts in rows.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def _save_facts(inputs: SceneInputs, root: Path, kept: Location) -> None:
    rows = {
        str(path.relative_to(root) if path.is_relative_to(root) else path): asdict(facts)
        for path, facts in inputs.files.items()
    }
    store = kept.parent.parent
    try:
        backend(store).replace({f"{INPUTS}/{kept.name}": seal(json.dumps(rows).encode())})
    except OSError as error:
        raise files.explain(error, store, "keeping what is known of raw files") from error


class ImageCache:
    """Decoded raw images, least recently used first out, bounded by bytes; safe for threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._images: OrderedDict[Path, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, image: CameraImage) -> UInt8[np.ndarray, "height width 3"]:
        """Raw RGB pixels of a record, read-only. Raises DataError (missing, damaged, of another size)."""
        with self._lock:
            if image.path in self._images:
                self._images.move_to_end(image.path)
                return self._images[image.path]
        pixels = load_image(image)
        pixels.setflags(write=False)
        with self._lock:
            if image.path not in self._images and pixels.nbytes <= self._max_bytes:
                self._images[image.path] = pixels
                self._bytes += pixels.nbytes
                while self._bytes > self._max_bytes:
                    self._bytes -= self._images.popitem(last=False)[1].nbytes
        return pixels
