"""Automatic exclusions: keyframes that a check with `exclude` found bad, as marks."""

from eval.inspection.catalogue import BY_NAME
from eval.inspection.run import Inspection
from storage.errors import StoreError
from storage.exclusions import ExcludedFrame, author_of, fingerprints
from storage.reader import SceneReader


def automatic(inspection: Inspection) -> list[ExcludedFrame]:
    """A mark for each keyframe that a check with `exclude: true` found beyond its limit; it holds until one of the cues
    that those checks read is made anew. Only keyframes that were looked at can be among them (`--all`)."""
    marks = []
    for (scene, t), names in sorted(inspection.tally.excluded.items()):
        source = inspection.inspector.reader.scene(scene)
        cues = {cue for name in names for cue in BY_NAME[name].cues}
        marks.append(
            ExcludedFrame(
                scene=scene,
                t=t,
                token=_token(source, t),
                by=author_of(names),
                reason="; ".join(BY_NAME[name].title for name in sorted(names)),
                fingerprints=fingerprints(source, t, cues),
            )
        )
    return marks


def _token(scene: SceneReader, t: int) -> str:
    """The keyframe's token, "" where the scene's table cannot be read: the mark then goes by the index."""
    try:
        return scene.table.tokens[t]
    except StoreError:
        return ""
