"""The extraction as a Prefect deployment: the same flow, run by workers of a work pool, by hand or on a schedule.

Needs a Prefect server of your own (PREFECT_API_URL); `pipelines.prefect_home.private_prefect` has none to deploy to.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pipelines.config import ConfigError, CuesConfig, absolute
from pipelines.plan import wanted_cues
from pipelines.prefect_home import PrefectError, quiet_prefect, refused
from pipelines.workbench import Workbench

_ENVIRONMENT = {"PYTHONSAFEPATH": "1"}
"""Of a run's processes. Prefect starts some of them as a script of its folder `runner`, which Python then puts first on
the path, and a `storage.py` there hides this project's `storage`: after each cancelling the worker told of a missing
module."""

_CRON_FIELDS = 5
_NOT_IN_NAMES = "/%&<>"
"""Characters that Prefect refuses in a name."""


@dataclass(frozen=True)
class Deployed:
    """What was deployed: `name` is what `prefect deployment run` takes; `log_seen` is False where the log's root is not
    on this machine, and nothing of it could be looked at before a run."""

    name: str
    pool: str
    schedule: str | None
    server: str
    log_seen: bool = True


def deploy(
    config: CuesConfig,
    name: str,
    pool: str,
    *,
    cron: str | None = None,
    timezone: str | None = None,
    scenes: Sequence[str] | None = None,
    cues: Sequence[str] | None = None,
    image: str | None = None,
) -> Deployed:
    """Create or renew the deployment `cues/NAME` on a work pool; where there is none, a process pool is created.

    The configuration becomes the default of the flow's parameters; a run may give others. Prefect's own limit of runs
    at a time is not used: its slot outlives a killed run by five minutes. A scheduled run sees by itself whether
    another is at the same units (`flows.cues_flow`).

    Args:
        config: what to extract; relative paths are taken from this process's working folder.
        name, pool: names at the server.
        cron: five fields, minute first, as in "0 3 * * *"; None for no schedule, and takes an earlier one away.
        timezone: of the schedule, such as "Europe/Berlin"; UTC by default.
        scenes, cues: only these, as for `extract_log`.
        image: for pools that start containers (kubernetes, docker), one that holds occflow.

    What a run would refuse is refused here, as far as this machine can see: a run at night tells nobody.

    Raises:
        ConfigError: a schedule or a name that is none, an image for a process pool, none for another; a scene or cue
            that is not there.
        DataError: a log that cannot be read.
        StoreError: another kind of store is there.
        PrefectError: no server is named, or the one that is does not answer, or refuses.
    """
    server = os.environ.get("PREFECT_API_URL")
    if server is None:
        raise PrefectError(
            "occflow deploy needs a Prefect server that stays: start one with `prefect server start`, then "
            "export PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    for option, called in (("--name", name), ("--pool", pool)):
        if not called or any(character in called for character in _NOT_IN_NAMES):
            raise ConfigError(
                f"{option} {called!r}: expected a name without {' '.join(_NOT_IN_NAMES)}, which Prefect refuses"
            )
    config = absolute(config)
    log_seen = _looked_at(config, scenes, cues)
    with quiet_prefect():
        import httpx
        from prefect.exceptions import PrefectHTTPStatusError

        schedules = _schedules(cron, timezone)  # before a pool is made for a schedule that is none
        try:
            _ensure_pool(pool, image)
            # What is not set is left to the machine that runs it: the number of its cores, for one.
            given = config.model_dump(mode="json", exclude_unset=True)
            parameters = {"config": given, "scenes": scenes, "cues": cues}
            _register(config, name, pool, schedules, parameters, image)
        except httpx.TransportError as error:
            raise PrefectError(
                f"PREFECT_API_URL={server}: no Prefect server answers there ({type(error).__name__}: {error}); start "
                "it with `prefect server start`"
            ) from error
        except PrefectHTTPStatusError as error:
            raise refused(server, error.response.status_code, error.response.text) from error
    return Deployed(f"cues/{name}", pool, cron, server, log_seen)


def _looked_at(config: CuesConfig, scenes: Sequence[str] | None, cues: Sequence[str] | None) -> bool:
    """Whether this machine sees the log.

    Raises what a run would: for names of cues in any case; where the log is here, for one that cannot be read, for
    scenes and splits that it does not have, and for a store on this machine that was made with other settings.
    """
    bench = Workbench(config)
    wanted_cues(bench, cues)
    if not config.dataset.root.exists():
        return False
    bench.scene_names(None if scenes is None else tuple(scenes))
    if isinstance(config.store, Path):
        bench.open_store(False)
    return True


def _schedules(cron: str | None, timezone: str | None) -> list[Any]:
    if cron is None:
        return []
    from prefect.schedules import Cron

    try:
        ZoneInfo(timezone or "UTC")
        if not cron.startswith("@") and len(cron.split()) != _CRON_FIELDS:  # a sixth would be of seconds
            raise ValueError(f"{len(cron.split())} fields")
        return [Cron(cron, timezone=timezone or "UTC")]
    except (ValueError, OSError, ZoneInfoNotFoundError) as error:  # OSError: "Europe" is a folder
        raise ConfigError(
            f"--cron {cron!r} (timezone {timezone or 'UTC'}): {error}; expected minute, hour, day, month and day of "
            "week, such as '0 3 * * *', and a timezone such as Europe/Berlin"
        ) from None


def _register(
    config: CuesConfig,
    name: str,
    pool: str,
    schedules: list[Any],
    parameters: dict[str, Any],
    image: str | None,
) -> None:
    from prefect.deployments.runner import RunnerDeployment
    from prefect.types.entrypoint import EntrypointType

    from pipelines.flows import cues_flow

    deployment = RunnerDeployment.from_flow(
        cues_flow,
        name=name,
        work_pool_name=pool,
        schedules=schedules,
        parameters=parameters,
        job_variables={"env": _ENVIRONMENT} | ({} if image is None else {"image": image}),
        description=f"Cues of {config.dataset.kind} at {config.dataset.root} into {config.store}",
        tags=["occflow"],
        # The workers' own installation holds the flow: there is no code to fetch, and no folder to start in.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    deployment.apply()


def _ensure_pool(name: str, image: str | None) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    with get_client(sync_client=True) as client:
        try:
            found = client.read_work_pool(name)
            kind = found.type
        except ObjectNotFound:
            if image is not None:
                raise ConfigError(
                    f"--pool {name!r}: there is no such work pool for --image; make it first (prefect work-pool create "
                    f"--type kubernetes {name}), or leave out --image: then a pool of processes is made"
                ) from None
            kind = ProcessWorker.type
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template))
    if (kind == ProcessWorker.type) is (image is not None):
        raise ConfigError(
            f"--pool {name!r} is a work pool of type {kind!r}: "
            + ("its runs are processes, leave out --image" if image else "it wants an --image with occflow in it")
        )
