"""`occflow adapt`: from a configuration to a fine-tuned checkpoint, by way of a folder of pairs."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipelines.adapt.collect import CollectSettings, collect_pairs
from pipelines.adapt.loop import AdaptSettings, adapt, split
from pipelines.adapt.pairs import MADE_FROM, FramePairs
from pipelines.adapt.state import RESULT, STATE
from pipelines.config import ConfigError, CuesConfig, closest, json_digest
from pipelines.cues.devices import pick_device
from pipelines.cues.unimatch.weights import load_network
from pipelines.schedule import stop_on_signals
from pipelines.weights import locate, weights_digest
from pipelines.workbench import Workbench
from storage.files import put, scratch_folder

FIRST = ("epe", "zero_epe", "fl_all")


@dataclass(frozen=True)
class Adaptation:
    """What a run did: measurements before and after, where the result is, whether it came to its end."""

    history: list[dict[str, Any]]
    checkpoint: Path
    finished: bool


def settings_of(values: Mapping[str, Any]) -> tuple[CollectSettings, AdaptSettings]:
    """Both sets of settings from keys of either. Raises ConfigError for an unknown key or a wrong value."""
    known = {field.name: kind for kind in (CollectSettings, AdaptSettings) for field in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"adapt has no setting {key!r} (value {value!r}); {closest(key, list(known))}")

    def build(kind: type) -> Any:
        given = {key: value for key, value in values.items() if known[key] is kind}
        try:
            return TypeAdapter(kind).validate_python(given)
        except ValidationError as error:
            fault = error.errors()[0]
            key = ".".join(str(part) for part in fault["loc"])
            raise ConfigError(f"adapt: {key or 'settings'} = {fault['input']!r}: {fault['msg']}") from None

    return build(CollectSettings), build(AdaptSettings)


def fine_tune(
    config: CuesConfig,
    weights: str,
    out: Path,
    scenes: tuple[str, ...] | None = None,
    device: str = "auto",
    values: Mapping[str, Any] | None = None,
    resume: bool = False,
    tell: Callable[[str], None] = print,
) -> Adaptation:
    """Fine-tune a checkpoint on the frame pairs of a log, without labels.

    Args:
        config: its data set, split and scenes are used, and whether truth may be looked at (to measure).
        weights: a checkpoint file or a name of `occflow weights list`.
        out: folder of the pairs and of everything that `adapt` writes.
        scenes: only these.
        device: "auto", "cpu", "cuda", ...
        values: keys of CollectSettings and AdaptSettings.
        resume: go on with the run in `out`; its pairs are taken as they are, and those of others are refused, as are
            other weights than it began with.
        tell: takes lines for the user.

    Raises:
        ConfigError: an unknown setting, a wrong value, or a run in `out` that is not to be gone on with.
        WeightsError, DataError: the checkpoint or the log cannot be used.
    """
    collect, settings = settings_of(values or {})
    where = pick_device(device)
    checkpoint = locate(weights)
    weights_digest(checkpoint)  # reads all of it against its checksums, which loading does not
    network = load_network(checkpoint)
    if (out / STATE).exists() and not resume:
        raise ConfigError(f"{out}: holds a run already; go on with it by --resume, or name another --out")
    pairs = _pairs(config, out / "pairs", scenes, collect, network.variant.multiple, tell, resume)
    network.to(where)
    truth = (
        "with truth to measure against" if pairs.flow is not None else "no truth: photometric and round-trip figures"
    )
    tell(f"{network.variant.name} on {where}; {len(pairs)} pairs of {pairs.size[0]}x{pairs.size[1]}, {truth}")
    if not split(pairs, settings)[1]:
        some = f"--set held_out={max(2, len(pairs) // 2)} holds some out, " if len(pairs) > 1 else ""
        tell(
            f"nothing will be measured: {len(pairs)} pairs are too few to hold out every {settings.held_out}th; "
            f"{some}--set held_out=0 measures on what is trained on"
        )

    def report(step: int, figures: dict[str, float]) -> None:
        told = ", ".join(f"{name} {value:.3f}" for name, value in _ordered(figures))
        tell(f"step {step}: {told or 'nothing measured'}")

    with stop_on_signals() as stop:
        history = adapt(network, pairs, settings, out, resume, report, stop.is_set)
    return Adaptation(history, out / RESULT, finished=history[-1]["step"] == settings.steps)


def _ordered(figures: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(figures.items(), key=lambda item: (item[0] not in FIRST, 0))


def _pairs(
    config: CuesConfig,
    folder: Path,
    scenes: tuple[str, ...] | None,
    collect: CollectSettings,
    multiple: int,
    tell: Callable[[str], None],
    resume: bool = False,
) -> FramePairs:
    """The pairs in `folder`, written anew unless they are those of the same log, scenes and settings.

    Raises:
        ConfigError: others, where a run with them is to be gone on with.
    """
    dataset = {f"dataset.{key}": value for key, value in config.dataset.model_dump(mode="json").items()}
    asked = {**dataset, "truth": config.truth, "scenes": scenes, **asdict(collect), "multiple": multiple}
    mark = json.dumps(asked, indent=1, default=str)
    marked = folder / MADE_FROM
    if marked.exists():
        kept = marked.read_text()
        if kept == mark:
            return FramePairs.open(folder)
        if resume:
            facts = [config.dataset.model_dump(mode="json"), config.truth, scenes, asdict(collect), multiple]
            if kept == json_digest(facts):  # all that earlier versions kept
                return FramePairs.open(folder)
            raise ConfigError(f"{marked}: {_differences(kept, mark)}; resume with what it was, or name another --out")
    bench = Workbench(config)
    names = bench.scene_names(scenes)
    tell(f"reading pairs of {len(names)} scenes")
    pairs = collect_pairs(bench.log, names, bench.images, multiple, collect, folder, truth=config.truth)
    with scratch_folder(folder / ".new") as scratch:
        put(marked, mark.encode(), scratch, replace=True)
    return pairs


def _differences(kept: str, mark: str) -> str:
    """What two marks say differently, both named."""
    try:
        was = dict(json.loads(kept))
    except (ValueError, TypeError):
        return f"holds {kept[:80]!r}, not what pairs are made from"
    now = json.loads(mark)
    other = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    return "the run's pairs are of " + ", ".join(f"{k} = {was.get(k)!r} (now {now.get(k)!r})" for k in other)
