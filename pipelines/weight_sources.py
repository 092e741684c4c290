"""Which weights the cue backends want and where upstream publishes them: a plain list, a new backend adds its rows."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class WeightSource:
    """Weights as upstream publishes them.

    Attributes:
        name: what a configuration and `occflow weights` call them.
        backend: which cue and backend wants them.
        kind: "folder": a model folder as transformers saves it. "file": one checkpoint.
        published: a hub id (owner/name) for folders, an address for files.
        licence: of the weights.
        file: name of the checkpoint, for files.
        sha256: of the checkpoint, where it is known.
        note: one line on access or use.
    """

    name: str
    backend: str
    kind: Literal["folder", "file"]
    published: str
    licence: str
    file: str = ""
    sha256: str = ""
    note: str = ""


_DETECTOR, _SEGMENTER = "masks: grounded_sam, detector", "masks: grounded_sam, segmenter"
_DINO = "https://github.com/IDEA-Research/GroundingDINO/releases/download"
_UNIMATCH = "https://s3.eu-central-1.amazonaws.com/avg-projects/unimatch/pretrained"
_UNIMATCH_FILES = {
    "gmflow-scale1-things": "gmflow-scale1-things-e9887eda",
    "gmflow-scale1-mixdata": "gmflow-scale1-mixdata-train320x576-4c3a6e9a",
    "gmflow-scale2-things": "gmflow-scale2-things-36579974",
    "gmflow-scale2-sintel": "gmflow-scale2-sintel-3ed1cf48",
    "gmflow-scale2-mixdata": "gmflow-scale2-mixdata-train320x576-9ff1c094",
    "gmflow-scale2-regrefine6-things": "gmflow-scale2-regrefine6-things-776ed612",
    "gmflow-scale2-regrefine6-sintelft": "gmflow-scale2-regrefine6-sintelft-6e39e2b9",
    "gmflow-scale2-regrefine6-kitti": "gmflow-scale2-regrefine6-kitti15-25b554d7",
    "gmflow-scale2-regrefine6-mixdata": "gmflow-scale2-regrefine6-mixdata-train320x576-4e7b215d",
}
_COTRACKER_FILES = {
    "cotracker2": "cotracker/resolve/main/cotracker2.pth",
    "cotracker2v1": "cotracker/resolve/main/cotracker2v1.pth",
    "cotracker3-offline": "cotracker3/resolve/main/scaled_offline.pth",
    "cotracker3-offline-baseline": "cotracker3/resolve/main/baseline_offline.pth",
}
_SAM = "https://dl.fbaipublicfiles.com/segment_anything"

SOURCES: list[WeightSource] = [
    WeightSource("grounding-dino-tiny", _DETECTOR, "folder", "IDEA-Research/grounding-dino-tiny", "Apache-2.0"),
    WeightSource("grounding-dino-base", _DETECTOR, "folder", "IDEA-Research/grounding-dino-base", "Apache-2.0"),
    WeightSource("sam-vit-huge", _SEGMENTER, "folder", "facebook/sam-vit-huge", "Apache-2.0"),
    WeightSource("sam-vit-large", _SEGMENTER, "folder", "facebook/sam-vit-large", "Apache-2.0"),
    WeightSource("sam-vit-base", _SEGMENTER, "folder", "facebook/sam-vit-base", "Apache-2.0"),
    WeightSource("sam2.1-hiera-large", _SEGMENTER, "folder", "facebook/sam2.1-hiera-large", "Apache-2.0"),
    WeightSource("sam2.1-hiera-tiny", _SEGMENTER, "folder", "facebook/sam2.1-hiera-tiny", "Apache-2.0"),
    WeightSource(
        "sam3", "masks: sam3", "folder", "facebook/sam3", "SAM License", note="access is granted by upstream on request"
    ),
    WeightSource(
        "bert-base-uncased",
        _DETECTOR,
        "folder",
        "google-bert/bert-base-uncased",
        "Apache-2.0",
        note="only beside the .pth files of groundingdino: its text encoder",
    ),
    WeightSource(
        "groundingdino-swint-pth",
        _DETECTOR,
        "file",
        f"{_DINO}/v0.1.0-alpha/groundingdino_swint_ogc.pth",
        "Apache-2.0",
        "groundingdino_swint_ogc.pth",
        "3b3ca2563c77c69f651d7bd133e97139c186df06231157a64c507099c52bc799",
        note="kind groundingdino, with bert-base-uncased",
    ),
    WeightSource(
        "groundingdino-swinb-pth",
        _DETECTOR,
        "file",
        f"{_DINO}/v0.1.0-alpha2/groundingdino_swinb_cogcoor.pth",
        "Apache-2.0",
        "groundingdino_swinb_cogcoor.pth",
        "46270f7a822e6906b655b729c90613e48929d0f2bb8b9b76fd10a856f3ac6ab7",
        note="kind groundingdino, with bert-base-uncased",
    ),
    WeightSource(
        "sam-vit-h-pth",
        _SEGMENTER,
        "file",
        f"{_SAM}/sam_vit_h_4b8939.pth",
        "Apache-2.0",
        "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        note="kind segment_anything",
    ),
    WeightSource(
        "sam-vit-l-pth",
        _SEGMENTER,
        "file",
        f"{_SAM}/sam_vit_l_0b3195.pth",
        "Apache-2.0",
        "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        note="kind segment_anything",
    ),
    WeightSource(
        "sam-vit-b-pth",
        _SEGMENTER,
        "file",
        f"{_SAM}/sam_vit_b_01ec64.pth",
        "Apache-2.0",
        "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        note="kind segment_anything",
    ),
    *(
        WeightSource(name, "flow: unimatch", "file", f"{_UNIMATCH}/{file}.pth", "MIT", f"{file}.pth")
        for name, file in _UNIMATCH_FILES.items()
    ),
    *(
        WeightSource(
            name,
            "flow: cotracker",
            "file",
            f"https://huggingface.co/facebook/{file}",
            "CC-BY-NC-4.0",
            file.rpartition("/")[-1],
            note="not for commercial use; with the package cotracker",
        )
        for name, file in _COTRACKER_FILES.items()
    ),
    *(
        WeightSource(
            name,
            "flow: alltracker",
            "file",
            f"https://huggingface.co/aharley/alltracker/resolve/main/{file}",
            "MIT",
            file,
            note="with the repository alltracker on the path",
        )
        for name, file in (("alltracker-full", "alltracker.pth"), ("alltracker-tiny", "alltracker_tiny.pth"))
    ),
]
"""All known weights. Any other file, folder or hub id can be given by its path or id."""
