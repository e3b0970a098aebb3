"""The environment variables that set something: which there are, and what is wrong with those there are not."""

from __future__ import annotations

import json
import os
from difflib import get_close_matches

from edged.config.errors import ConfigError
from edged.config.settings import Settings

#: Names the file where the command line does not.
FILE_VARIABLE = "EDGED_CONFIG"
_PREFIX = Settings.model_config["env_prefix"]
#: Variables that are no settings, nor misspelt ones: the project's own tests look at them.
_TESTS = "EDGED_TEST_"
_MODELS = 'a JSON list like [{"alias": "big", "path": "/srv/big.gguf"}]'


def variables() -> tuple[dict[tuple[str, ...], str], tuple[str, ...]]:
    """The names of the variables that set something by the place they set, (section, key); and warnings.

    A misspelt key of a section is found when the values are checked. A name without `__` is only warned about:
    container platforms make such names by themselves (Kubernetes sets EDGED_PORT for a service called edged).

    Raises:
        ConfigError: a variable names a section that does not exist, or its value should be JSON and is not.
    """
    found: dict[tuple[str, ...], str] = {}
    warnings: list[str] = []
    problems: list[str] = []
    for name, value in sorted(os.environ.items()):
        upper = name.upper()
        if not upper.startswith(_PREFIX) or upper == FILE_VARIABLE or upper.startswith(_TESTS):
            continue
        place = tuple(upper.removeprefix(_PREFIX).lower().split("__"))
        if place[0] not in Settings.model_fields:
            near = get_close_matches(upper, known(), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            if len(place) > 1:
                problems.append(f"environment {name}: there is no section [{place[0]}]{hint}")
            else:
                warnings.append(f"environment {name} is no setting and has no effect{hint}")
        elif problem := _malformed(place, value):
            problems.append(f"environment {name}: {problem}")
        else:
            found[place] = name
    if problems:
        raise ConfigError(*problems)
    return found, tuple(warnings)


def known() -> list[str]:
    """Every variable that sets a key, and EDGED_MODELS."""
    return [
        f"{_PREFIX}{section}__{key}".upper()
        for section, field in Settings.model_fields.items()
        for key in getattr(field.annotation, "model_fields", ())
    ] + [f"{_PREFIX}MODELS"]


def _malformed(place: tuple[str, ...], value: str) -> str | None:
    """What is wrong with the form of a variable; None where all is well."""
    if place[0] == "models" and len(place) > 1:
        return f"the models come all together, in {_PREFIX}MODELS: {_MODELS}"
    if len(place) > 2:
        return f"the form is {_PREFIX}SECTION__KEY"
    if place[0] == "models":
        return None if _is_json(value, list) else f"its value has to be {_MODELS}"
    if len(place) == 1:
        return None if _is_json(value, dict) else f"the form is {_PREFIX}SECTION__KEY, or the section as a JSON object"
    if place == ("mqtt", "reply_topics") and not _is_json(value, list):
        return 'its value has to be a JSON list like ["a/#", "b/#"]'
    return None


def _is_json(value: str, kind: type) -> bool:
    try:
        return isinstance(json.loads(value), kind)
    except (ValueError, RecursionError):
        return False
