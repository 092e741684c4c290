"""Forks `occflow ARGS` per command, so that a run to be killed costs milliseconds, not an interpreter's start.

Reads one JSON command per line: {"start": [arguments], "log": path} answers with the child's process id; {"wait": pid}
with its exit status once it has ended. All that an extraction imports is imported before the first fork, and no thread
is started.
"""

import importlib
import json
import os
import sys

IMPORTED = (
    "cv2",
    "numcodecs.blosc",
    "numcodecs.zstd",
    "scipy.ndimage",
    "occflow",
    "pipelines.console",
    "pipelines.cues.flow_dis",
    "pipelines.cues.lidar",
    "pipelines.cues.masks_motion",
    "pipelines.cues.truth",
    "pipelines.datasets.semantic_kitti",
)


def run(arguments: list[str], log: str) -> None:
    """The command in this process, which it ends."""
    from occflow import app

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    status = 1
    try:
        app(arguments)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Serve commands until standard input ends."""
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        command = json.loads(line)
        if "wait" in command:
            answer = os.waitstatus_to_exitcode(os.waitpid(command["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            run(command["start"], command["log"])
        os.write(1, f"{answer}\n".encode())


if __name__ == "__main__":
    main()
