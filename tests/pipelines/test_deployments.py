"""What no run could use is refused when it is deployed, before anything is asked of a Prefect server."""

from collections.abc import Callable
from typing import Any

import pytest

from pipelines.config import ConfigError, CuesConfig
from pipelines.datasets.records import DataError
from pipelines.deployments import deploy
from pipelines.extract import extract_log
from storage.errors import StoreError

ConfigMaker = Callable[..., CuesConfig]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer: asking it would be another error."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cron": "0 0 3 * * *"}, "6 fields; expected minute, hour"),
        ({"cron": "0 3 * * *", "timezone": "Europe"}, r"timezone Europe\).*such as Europe/Berlin"),
        ({"name": "cues/nightly"}, "--name 'cues/nightly': expected a name without / %"),
        ({"pool": "a%b"}, "--pool 'a%b': expected a name without / %"),
        ({"pool": ""}, "--pool '': expected a name"),
    ],
)
def test_schedules_and_names_that_are_none(cues_config: ConfigMaker, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        deploy(cues_config(), **{"name": "nightly", "pool": "occflow"} | options)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [("scenes", ["00", "99"], "scene '99' is not among"), ("split", "odd", "no split 'odd' here")],
)
def test_scenes_that_the_configuration_itself_names(cues_config: ConfigMaker, key: str, value: Any, told: str) -> None:
    dataset = cues_config().dataset.model_dump() | {key: value}
    with pytest.raises((ConfigError, DataError), match=told):
        deploy(cues_config(dataset=dataset), "nightly", "occflow")


def test_a_store_that_was_made_otherwise(cues_config: ConfigMaker) -> None:
    extract_log(cues_config(cues={"images": {}}, truth=False), scenes=["00"])
    with pytest.raises(StoreError, match="block_keyframes: 3 there, 5 asked for"):
        deploy(cues_config(cues={"images": {}}, truth=False, block_keyframes=5), "nightly", "occflow")
