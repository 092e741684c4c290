"""Speed, memory and quality of the cue models: `python tests/benchmarks/bench_cues.py`, on a GPU `--device cuda`.

First table: images (or pairs) per second and peak memory by backend and batch size, beside the plain, upstream-style
loop in the same run: one image, one prompt, one box at a time, float32, attention written out. Weights are random, so
the number of boxes is fixed, not found. `--size full` has the published architectures; `small` runs anywhere.

Second table: the embedded cues on a synthetic log, camera-frames per second of one core and peak memory of the process,
with their quality against its truth. `--log` takes a nuScenes-format log that is there; otherwise a small one is made.
`--flow-weights` sets a trained flow network beside them.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from cue_models import PROMPTS, build
from torch.nn.attention import SDPBackend, sdpa_kernel

from eval.labels import summarise
from pipelines.block import extract_block
from pipelines.config import load_config
from pipelines.cues.grounded_sam.boxes import OwnCarRule
from pipelines.cues.grounded_sam.detection import DetectionRule
from pipelines.cues.grounded_sam.finder import BoxRule, GroundedSam
from pipelines.cues.grounded_sam.grounding_dino import GroundingDino
from pipelines.cues.grounded_sam.prompts import Prompts
from pipelines.cues.grounded_sam.runtime import Runtime
from pipelines.cues.grounded_sam.sam import sam_from_folder
from pipelines.cues.grounded_sam.sam3 import Sam3
from pipelines.cues.unimatch.inference import Precision, flow_both_ways
from pipelines.cues.unimatch.network import UniMatch
from pipelines.cues.unimatch.variants import VARIANTS, Variant
from pipelines.registry import build_extractor
from pipelines.workbench import Workbench
from storage.layout import UnitId

CLASSES = tuple(PROMPTS)
ALL = Prompts.of(PROMPTS, CLASSES)
EVERY_BOX = BoxRule(nms=1.0, own_car=OwnCarRule(width=1.1, area=1.1), most=16)
"""Random weights: all boxes are as good as another, so sixteen are taken from each image."""
SMALL_FLOW = Variant("small", scales=1, splits=(2,), widths=(16, 24, 32), channels=32, layers=3)
Image = np.ndarray


class Meter:
    """Rate and peak memory of a call, after one call to warm up; memory of the device, or of this process on a CPU."""

    def __init__(self, device: torch.device, rows: list[tuple[str, ...]]) -> None:
        self.device, self.rows = device, rows
        self.plain: dict[str, float] = {}

    def __call__(self, backend: str, how: str, count: int, call: Callable[[], object]) -> None:
        """Time `call`, which treats `count` images or pairs; "plain loop" sets what the others are compared to."""
        call()
        self.forget()
        started = time.perf_counter()
        call()
        self._wait()
        rate = count / (time.perf_counter() - started)
        if how.startswith("plain"):
            self.plain[backend] = rate
        ratio = rate / self.plain[backend]
        row = (backend, how, f"{rate:.3g}", f"{ratio:.2f}", f"{self.peak_mb():.0f}")
        self.rows.append(row)
        print("  ".join(f"{cell:<{w}}" for cell, w in zip(row, (34, 22, 9, 7, 7), strict=True)), flush=True)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def forget(self) -> None:
        """Peak memory is counted from here on."""
        self._wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")

    def peak_mb(self) -> float:
        """MB at most since `forget`."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        status = Path("/proc/self/status")
        if status.exists():
            return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def pictures(count: int, height: int, width: int) -> list[Image]:
    """Smooth random images."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (count, height // 8 + 1, width // 8 + 1, 3)).astype(np.float32)
    return [
        cv2.resize(one, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8) for one in coarse
    ]


def image_size(image: Image) -> tuple[int, int]:
    """(height, width)."""
    return image.shape[0], image.shape[1]


def grounded_sam(
    meter: Meter, full: bool, folder: Path, images: list[Image], batches: list[int], segmenter: str
) -> None:
    """GroundingDINO and SAM over `images`: class by class, image by image, box by box; then batched."""
    size, device = image_size(images[0]), str(meter.device)
    dino, sam = build("dino", full, folder), build(segmenter, full, folder)
    name = f"grounded_sam (dino + {segmenter})"

    def detector(joint: bool) -> GroundingDino:
        rule = DetectionRule(score=0.0, word=0.0, joint=joint)
        return GroundingDino(dino, ALL, np.zeros(len(ALL.texts)), rule, Runtime(device, "float32", 1, 1))

    apart, together = detector(joint=False), detector(joint=True)
    together.model = apart.model  # one copy in memory
    masks, captions = sam_from_folder(sam, apart.runtime), apart.texts
    few = BoxRule(EVERY_BOX.nms, EVERY_BOX.own_car, EVERY_BOX.most // len(captions))

    def one_by_one() -> None:
        for caption in captions:
            apart.texts = [caption]
            GroundedSam(apart, masks, ALL, few, least_quality=-np.inf)(images[:1], size)

    with sdpa_kernel(SDPBackend.MATH):
        meter(name, "plain loop", 1, one_by_one)
    ours = GroundedSam(together, masks, ALL, EVERY_BOX, least_quality=-np.inf)
    for precision, batch in product(precisions(meter.device), batches):
        together.runtime = masks.runtime = Runtime(device, precision, batch, 32)
        meter(name, f"{precision}, batch {batch}", len(images), partial(_run, ours, images, batch, size))


def precisions(device: torch.device) -> tuple[Literal["float32", "bfloat16"], ...]:
    """What is worth measuring there."""
    return ("float32", "bfloat16") if device.type == "cuda" else ("float32",)


def _run(finder: Callable[..., object], images: list[Image], batch: int, size: tuple[int, int]) -> None:
    for start in range(0, len(images), batch):
        finder(images[start : start + batch], size)


def sam3(meter: Meter, full: bool, folder: Path, images: list[Image], batches: list[int]) -> None:
    """SAM 3: an image encoded anew for every noun, against once."""
    size, place = image_size(images[0]), build("sam3", full, folder)
    least = np.zeros(len(ALL.texts))
    alone = [Prompts((text,), (kind,)) for text, kind in zip(ALL.texts, ALL.classes, strict=True)]
    plain = Sam3(place, ALL, least, EVERY_BOX, Runtime(str(meter.device), "float32", 1, 1))
    texts = plain.texts

    def one_by_one() -> None:
        for k, prompts in enumerate(alone):
            plain.prompts, plain.texts = prompts, texts[k : k + 1]
            plain(images[:1], size)

    with sdpa_kernel(SDPBackend.MATH):
        meter("sam3", "plain loop", 1, one_by_one)
    plain.prompts, plain.texts = ALL, texts
    for precision, batch in product(precisions(meter.device), batches):
        plain.runtime = Runtime(str(meter.device), precision, batch, 32)
        meter("sam3", f"{precision}, batch {batch}", len(images), partial(_run, plain, images, batch, size))


def unimatch(meter: Meter, variant: Variant, images: list[Image], batches: list[int]) -> None:
    """Pairs both ways: each way by itself and attention written out, against both at once."""
    torch.manual_seed(0)
    network = UniMatch(variant).to(meter.device).eval()
    name = f"unimatch {variant.name}"
    both = torch.from_numpy(np.stack(images)).to(meter.device).permute(0, 3, 1, 2).float()
    first, second = both, both.roll(1, 0)

    @torch.inference_mode()
    def one_by_one() -> None:
        for pair in ((first[:1], second[:1]), (second[:1], first[:1])):
            flow_both_ways(network, *pair)[0].cpu()

    @torch.inference_mode()
    def batched(batch: int, precision: Precision) -> None:
        for start in range(0, len(first), batch):
            cut = slice(start, start + batch)
            for way in flow_both_ways(network, first[cut], second[cut], precision=precision):
                way.cpu()

    with sdpa_kernel(SDPBackend.MATH):
        meter(name, "plain loop", 1, one_by_one)
    halves: tuple[Precision, ...] = ("bfloat16", "float16") if meter.device.type == "cuda" else ()
    for precision, batch in product(("float32", *halves), batches):
        meter(name, f"{precision}, batch {batch}", len(images), partial(batched, batch, precision))


def measure_models(arguments: argparse.Namespace) -> None:
    """The first table."""
    device, full = torch.device(arguments.device), arguments.size == "full"
    meter = Meter(device, [])
    batches = arguments.batches
    count = max(batches)
    seen = pictures(count, *((900, 1600) if full else (96, 160)))
    pairs = pictures(count, *((352, 1216) if full else (64, 208)))
    print("backend                             how                     per s      ratio    peak MB")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.weights or Path(temporary)
        if "grounded_sam" in arguments.only:
            grounded_sam(meter, full, folder, seen, batches, "sam")
        if "sam2" in arguments.only and full:
            grounded_sam(meter, full, folder, seen, batches, "sam2")
        if "sam3" in arguments.only:
            sam3(meter, full, folder, seen, batches)
        if "unimatch" in arguments.only:
            for variant in VARIANTS.values() if full else (SMALL_FLOW,):
                unimatch(meter, variant, pairs, batches)


FLOW_FIGURES = ("epe", "fl_all", "coverage", "invented", "epe_moving", "coverage_moving", "static_epe")
MASK_FIGURES = ("iou", "precision", "recall", "instance_precision", "instance_recall")


def measure_embedded(
    log: Path, folder: Path, count: int, wide: int, demo_width: int | None, trained: str | None = None
) -> None:
    """The second table: every embedded backend at `wide` columns, and as the demo's preset has it (or `demo_width`).

    Masks are made from the flows just above them. Images are decoded before; flow_prev finds the films of flow_next
    followed both ways already.
    """
    config = load_config("demo", {"dataset": {"kind": "nuscenes", "root": log}, "store": folder / "store.zarr"})
    bench, demo = Workbench(config), dict(config.cues)
    for cue in ("flow_next", "flow_prev") if demo_width else ():
        demo[cue] = {**demo[cue], "max_width": demo_width}
    scenes = bench.scene_names()[:count]
    made: dict[str, dict[str, Any]] = {scene: {} for scene in scenes}
    meter = Meter(torch.device("cpu"), [])
    cv2.setNumThreads(1)
    for scene in scenes:
        bench.inputs(scene)  # hashing the raw files is not the cue's time, nor is decoding them
        for frame in bench.scene(scene).frames:
            for image in frame.images.values():
                bench.images(image)

    def run(label: str, cue: str, parameters: dict[str, Any]) -> None:
        extractor = build_extractor(config.model_copy(update={"cues": {**demo, cue: parameters}}), cue)
        busy, frames, figures = 0.0, 0, []
        meter.forget()
        for scene in scenes:
            started = time.process_time()
            block, _ = extract_block(bench, UnitId(cue, scene), extractor, made[scene].__getitem__)
            busy += time.process_time() - started
            made[scene][cue] = block.arrays
            figures.append(block.quality)
            frames += len(bench.cameras) * len(next(iter(block.arrays.values())))
        told = summarise(figures).get("against_truth", {})
        values = [
            f"{name} {told[name]['value']:.3f}"
            for name in (MASK_FIGURES if cue == "masks" else FLOW_FIGURES)
            if name in told and told[name]["value"] is not None
        ]
        print(
            f"{cue:<10} {label:<22} {frames / busy:7.1f}/s {meter.peak_mb():5.0f} MB  {'  '.join(values)}", flush=True
        )

    print("cue        backend                camera-frames a CPU second, peak memory, against truth")
    run("points", "lidar", {})
    for backend in ("dis", "dis_chain", "tracks"):
        run(backend, "flow_next", {"backend": backend, "max_width": wide})
    if trained:
        run("unimatch", "flow_next", {"backend": "unimatch", "weights": trained, "max_width": wide, "device": "cpu"})
    for cue in ("flow_next", "flow_prev", "masks"):
        run(f"demo: {demo[cue]['backend']}", cue, demo[cue])
    run("motion_epipolar", "masks", {"backend": "motion_epipolar", "flows": ["flow_next", "flow_prev"]})


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=("small", "full"), help="default: full on a GPU, else small")
    parser.add_argument("--batches", type=int, nargs="+", help="default: 1 4 16 on a GPU, else 1 4")
    parser.add_argument("--only", nargs="+", default=["grounded_sam", "sam2", "sam3", "unimatch", "embedded"])
    parser.add_argument("--weights", type=Path, help="keep the random model folders here")
    parser.add_argument("--log", type=Path, help="a synthetic log in nuScenes' format, with its truth")
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--width", type=int, default=264, help="columns at which embedded flows work")
    parser.add_argument("--demo-width", type=int, help="the same for the demo's flows; default as its preset has it")
    parser.add_argument("--flow-weights", help="a flow network's checkpoint, or its name, for the second table")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    gpu = arguments.device.startswith("cuda")
    arguments.size = arguments.size or ("full" if gpu else "small")
    arguments.batches = arguments.batches or ([1, 4, 16] if gpu else [1, 4])
    torch.set_num_threads(arguments.threads)
    where = torch.cuda.get_device_name(arguments.device) if gpu else f"CPU, {arguments.threads} threads"
    print(f"{where}; torch {torch.__version__}; {arguments.size} models")
    measure_models(arguments)
    if "embedded" in arguments.only:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            log = arguments.log or small_log(folder / "log", arguments.scenes)
            measure_embedded(
                log, folder, arguments.scenes, arguments.width, arguments.demo_width, arguments.flow_weights
            )


def small_log(folder: Path, scenes: int) -> Path:
    """A log as the demo's, of a few short scenes."""
    from rich.console import Console

    from pipelines.synth import write_log
    from pipelines.synth.config import SynthConfig

    config = SynthConfig(scenes=scenes, keyframes=4, width=264, height=148, seed=0)
    write_log(folder, config, dataset="nuscenes", console=Console(quiet=True))
    return folder


if __name__ == "__main__":
    main()
