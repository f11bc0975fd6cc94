"""Where the scores are in an answer: `outputs.0.scores`, `$.predictions[*].scores`. Reads names and positions, runs nothing."""

from __future__ import annotations

import re
from typing import Any

from hauberk.core.errors import ModelError, UsageError

_STEP = re.compile(
    r"""\.?(?:(?P<star>\*|\[\*\])|\[(?P<index>\d{1,9})\]|\[(?P<quote>['"])(?P<quoted>.*?)(?P=quote)\]|(?P<name>[^.\[\]*'"\s]+))"""
)


def parse_path(path: str) -> tuple[str | int | None, ...]:
    """Return the steps of a path: names, positions, and None for `*`, which goes into every item of a list.

    Raises:
        UsageError: for a path that cannot be read.
    """
    text, steps = path.strip(), list[str | int | None]()
    at = 1 if text.startswith("$") else 0
    while at < len(text):
        found = _STEP.match(text, at)
        if found is None:
            raise UsageError(
                f"the response path '{path}' cannot be read from '{text[at:]}' on",
                want="names and positions, such as outputs.0.scores or $.predictions[*].scores",
            )
        at = found.end()
        if found["star"]:
            steps.append(None)
        elif found["index"] is not None:
            steps.append(int(found["index"]))
        else:
            steps.append(found["quoted"] if found["quote"] else found["name"])
    return tuple(steps)


def follow(answer: Any, steps: tuple[str | int | None, ...], path: str) -> Any:
    """Return what lies at the path in an answer made of plain JSON values.

    Raises:
        ModelError: where a step leads nowhere; the step and what is there are named.
    """
    if not steps:
        return answer
    step, rest = steps[0], steps[1:]
    if step is None:
        if not isinstance(answer, list):
            raise _lost(path, "*", answer)
        return [follow(one, rest, path) for one in answer]
    if isinstance(answer, dict) and str(step) in answer:
        return follow(answer[str(step)], rest, path)
    if isinstance(answer, list) and str(step).isdecimal() and int(step) < len(answer):
        return follow(answer[int(step)], rest, path)
    raise _lost(path, step, answer)


def _lost(path: str, step: str | int, answer: Any) -> ModelError:
    if isinstance(answer, dict):
        there = f"an object with {', '.join(sorted(map(str, answer))[:6]) or 'nothing in it'}"
    else:
        there = f"a list of {len(answer)}" if isinstance(answer, list) else f"{type(answer).__name__} {str(answer)[:40]!r}"
    return ModelError(
        f"the endpoint's answer has no '{step}' of the response path '{path}': there is {there}",
        want="the place of the scores or labels", fix="Correct the response path of the endpoint",
    )
