"""The Docker files, as far as they can be tried without Docker: their structure, and every command as a process."""

import asyncio
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.store import CueStore
from tests.integration.servers import ROOT, PrefectServer, Processes, empty_cue, free_port, wait_until

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("occflow:")]
PINNED = re.compile(r"[\w./-]+:[\w.-]*\d[\w.-]*")


def instructions() -> list[list[str]]:
    """The Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "docker" / "Dockerfile").read_text())
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def example_variables() -> dict[str, str]:
    """What docker/example.env sets."""
    lines = (ROOT / "docker" / "example.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def filled_in(text: str) -> str:
    """A value of compose.yaml with the variables of example.env."""
    return re.sub(r"\$\{(\w+)(:[-?][^}]*)?\}", lambda found: example_variables()[found[1]], text)


def test_bases_are_pinned_and_images_end_without_root() -> None:
    lines = instructions()
    base = next(line[1] for line in lines if line[0] == "ARG").removeprefix("BASE=")
    assert PINNED.fullmatch(base)
    stages = {line[3]: line[1] for line in lines if line[0] == "FROM"}
    assert {stages[name] for name in stages} <= {"${BASE}", *stages}
    assert stages["cpu"] == stages["gpu"] == "run"
    users = [line[1] for line in lines if line[0] == "USER"]
    assert users == ["10001:10001"], "one user, in the stage that both images are made from"
    for name, service in SERVICES.items():
        assert name in OURS or PINNED.fullmatch(service["image"]), service["image"]


def test_what_the_images_copy_is_there_and_complete() -> None:
    copied = [line[1:-1] for line in instructions() if line[0] == "COPY" and not line[1].startswith("--from")]
    for source in (source for sources in copied for source in sources):
        assert list(ROOT.glob(source)), source
        allowed = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
        assert f"!{source}" in allowed
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    cpu, gpu = ([source for sources in part for source in sources] for part in (copied[1:8], copied[8:]))
    assert cpu == gpu
    assert rooms <= set(cpu)


def test_the_gpu_image_takes_the_locked_torch_in_another_build() -> None:
    script = next(line for line in instructions() if line[0] == "RUN" and "sed" in " ".join(line))
    command = " ".join(script[1:]).split("&& pip")[0].removesuffix(" ").removesuffix("&&")
    with tempfile.TemporaryDirectory() as name:
        lock = Path(name) / "constraints.txt"
        shutil.copy(ROOT / "constraints.txt", lock)
        subprocess.run(["sh", "-ec", f'{command}; echo "$torch"'], cwd=name, check=True)
        before = (ROOT / "constraints.txt").read_text().splitlines()
        changed = [(a, b) for a, b in zip(before, lock.read_text().splitlines(), strict=True) if a != b]
    assert len(changed) == 1
    assert re.fullmatch(r"torch==[\d.]+\+cpu", changed[0][0])
    assert changed[0][1] == changed[0][0].removesuffix("+cpu")


def test_services_name_what_exists() -> None:
    known = example_variables()
    for variable in re.findall(r"\$\{(\w+)", (ROOT / "docker" / "compose.yaml").read_text()):
        assert variable in known
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES, f"{name} needs {needed}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed], f"{name} waits for {needed}'s health"
        for volume in service.get("volumes", []):
            assert isinstance(volume, dict) or volume.split(":")[0] in COMPOSE["volumes"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: nothing here asks who is calling"
    for name in OURS:
        assert SERVICES[name]["cap_drop"] == ["ALL"]
        assert SERVICES[name]["build"]["target"] == SERVICES[name]["image"].removeprefix("occflow:")
    for name in ("gpu-worker", "train"):
        assert SERVICES[name]["image"] == "occflow:gpu"
        assert SERVICES[name]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_passwords_are_no_part_of_the_files() -> None:
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|MC_HOST|CONNECTION_URL", key):
                assert ":?" in str(value), f"{name}: {key} has to come from the environment"


def test_every_command_is_a_script_of_a_pinned_package() -> None:
    scripts = {script.name for script in importlib.metadata.entry_points(group="console_scripts")} | {"occflow"}
    for name in OURS:
        assert SERVICES[name]["command"][0] in scripts, name


def options_of(command: Any) -> set[str]:
    """Every long option of a click or typer command, and of argparse's parser."""
    if hasattr(command, "_option_string_actions"):
        return set(command._option_string_actions)
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def parser_of(words: list[str]) -> tuple[Any, list[str]]:
    """What reads the words of a command of this project's services, and the words that are left for it to read."""
    import typer

    tool, verb = words[0], words[1]
    if tool == "occflow":
        from occflow import app

        return typer.main.get_command(app).commands[verb], words[2:]  # type: ignore[attr-defined]
    if tool == "dask":
        from distributed.cli import dask_scheduler, dask_worker

        return {"scheduler": dask_scheduler.main, "worker": dask_worker.main}[verb], words[2:]
    if tool == "torchrun":
        from torch.distributed.run import get_args_parser

        return get_args_parser(), words[1:]
    assert tool == "prefect", f"{tool}: no parser of it is known here"
    from prefect.cli.server import start as server
    from prefect.cli.worker import start as worker

    return {"server": server, "worker": worker}[verb], words[3:]


@pytest.mark.parametrize("name", [name for name in OURS if SERVICES[name]["command"][0] != "prefect"])
def test_every_option_is_one_of_its_command(name: str) -> None:
    """A word that starts with dashes is known to whoever reads it; no process is started."""
    words = [filled_in(str(word)) for word in SERVICES[name]["command"]]
    parser, rest = parser_of(words)
    known = options_of(parser)
    given = {word.split("=")[0] for word in rest if word.startswith("--")}
    if words[0] == "torchrun":  # what follows --no-python is another command's
        inner = rest[rest.index("--no-python") + 1 :]
        theirs, tail = parser_of(inner)
        own = {word.split("=")[0] for word in tail if word.startswith("--")}
        assert own <= options_of(theirs)
        given -= own
    assert given
    assert given <= known, f"{name}: {sorted(given - known)}"


@pytest.mark.slow
def test_train_is_started_by_torchrun(tmp_path: Path) -> None:
    command = [filled_in(str(word)).replace("per-node=gpu", "per-node=1") for word in SERVICES["train"]["command"]]
    command = [word.replace(example_variables()["STORE"], str(tmp_path / "none.zarr")) for word in command]
    command = [word.replace("/runs/", f"{tmp_path}/") for word in command]
    shim = tmp_path / "occflow"
    shim.write_text(f'#!/bin/sh\nexec python -P {ROOT / "occflow.py"} "$@"\n')
    shim.chmod(0o755)
    processes = Processes(tmp_path)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    try:
        started = processes.start("torch.distributed.run", *command[1:], PATH=path)
        started.wait(timeout=180)
        said = processes.said(started)
    finally:
        processes.close()
    assert started.returncode == 1
    assert str(tmp_path / "none.zarr") in said, "it reached the store, which is not there"
    assert "Usage" not in said


class Postgres:
    """A PostgreSQL of this test's own on loopback, as the user that the programs insist on where this one is root."""

    def __init__(self, password: str) -> None:
        self.port = free_port()
        self.user = "postgres" if os.getuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="occflow-postgres-"))
        secret = self.folder / "password"
        secret.write_text(password)
        if self.user is not None:
            shutil.chown(self.folder, self.user)
            shutil.chown(secret, self.user)
        where = ["--pgdata", str(self.folder / "data"), "--username", "prefect", "--auth", "scram-sha-256"]
        made = [*self._as(), "initdb", *where, "--pwfile", str(secret), "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, cwd="/")
        options = ["-D", str(self.folder / "data"), "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder)]
        self.process = subprocess.Popen([*self._as(), "postgres", *options], cwd="/", stderr=subprocess.DEVNULL)
        wait_until("PostgreSQL", lambda: asyncio.run(self._create("prefect", password)))

    async def _create(self, database: str, password: str) -> bool:
        import asyncpg

        place = {"host": "127.0.0.1", "port": self.port, "user": "prefect", "password": password}
        try:
            connection = await asyncpg.connect(**place, database="postgres")
        except (OSError, asyncpg.PostgresError):
            return False
        await connection.execute(f'CREATE DATABASE "{database}"')
        await connection.close()
        return True

    def _as(self) -> list[str]:
        return (
            [] if self.user is None else ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]
        )

    def close(self) -> None:
        """End it and remove its folder."""
        self.process.terminate()
        self.process.wait(timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    if shutil.which("initdb") is None or shutil.which("postgres") is None:
        pytest.skip("no PostgreSQL here (initdb, postgres)")
    running = Postgres(example_variables()["POSTGRES_PASSWORD"])
    yield running
    running.close()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    cue = empty_cue()
    cue.register(tmp_path)
    running = Processes(tmp_path, PREFECT_WORKER_QUERY_SECONDS="1", **cue.environment(tmp_path))
    yield running
    running.close()


@pytest.mark.slow
def test_the_services_work_together_as_processes(
    postgres: Postgres, processes: Processes, occflow: Callable[..., Any], tmp_path: Path
) -> None:
    """Server on PostgreSQL, scheduler, worker, flow worker, deployment and run, each with its service's own arguments.

    Only names of machines, ports and folders are replaced.
    """
    config = tmp_path / "cues.yaml"
    config.write_text(yaml.safe_dump(empty_cue().config_values(tmp_path, 2, 10, {"workers": 2})))
    store, scheduler = tmp_path / "deployed.zarr", str(free_port())
    exactly = {"8786": scheduler, "4200": "PORT", "nuscenes": str(config), "4": "2"}
    within = {example_variables()["STORE"]: str(store), "scheduler:8786": f"127.0.0.1:{scheduler}"}
    within |= {"=/data": f"={tmp_path / 'raw'}", ":8787": ":0"}

    def words(service: str) -> list[str]:
        command = [filled_in(str(word)) for word in SERVICES[service]["command"]]
        for old, new in within.items():
            command = [word.replace(old, new) for word in command]
        return [exactly.get(word, word) for word in command]

    database = filled_in(SERVICES["prefect"]["environment"]["PREFECT_API_DATABASE_CONNECTION_URL"])
    database = database.replace("@postgres:5432", f"@127.0.0.1:{postgres.port}")
    server = PrefectServer(processes, words("prefect"), PREFECT_API_DATABASE_CONNECTION_URL=database)
    known = {"PREFECT_API_URL": server.url}
    processes.start(*words("scheduler"))
    worker = processes.start(*words("worker"))
    processes.start(*words("flows"), **known)
    done = occflow(*words("deploy")[1:], PYTHONPATH=processes.environment["PYTHONPATH"], **known)
    assert done.returncode == 0, done.stderr
    run = server.run(server.deployment("cues/extraction")["id"])
    final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    ended = wait_until("the end of the run", lambda: (state := server.state(run)) in final and state)
    assert ended == "COMPLETED"
    assert worker.poll() is None
    assert len(list(CueStore.open(store).records())) == 2 * (1 + 10)
    again = occflow(*words("cues")[1:], PYTHONPATH=processes.environment["PYTHONPATH"], **known)
    assert again.returncode == 0, again.stderr
    assert "22 were current" in again.stdout
