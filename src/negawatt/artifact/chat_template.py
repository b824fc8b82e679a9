"""Rendering a model's own chat template in a sandbox."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from negawatt.errors import ArtifactError


def reads(template: str, variable: str) -> bool:
    """Whether a template looks at a variable."""
    import jinja2
    from jinja2 import meta

    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)  # noqa: S701 - not run
    except jinja2.TemplateError:
        return False
    return variable in meta.find_undeclared_variables(tree)


def render(template: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """The conversation as the model was taught to read it.

    Follows the conventions of transformers' chat templates: blocks are trimmed, and
    ``raise_exception``, ``strftime_now``, ``tojson`` and loop controls are there. The template
    comes from the model's file, so it runs in Jinja's sandbox, where it can only make text.

    Raises:
        ArtifactError: there is no template, it is faulty, or it refuses these messages.
    """
    import jinja2

    if not template:
        raise ArtifactError("this model has no chat template; give it a plain prompt instead")
    try:
        return str(_compiled(template).render(messages=[dict(m) for m in messages], **variables))
    except jinja2.TemplateError as exc:
        raise ArtifactError(f"the model's chat template refuses these messages: {exc}") from exc


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda layout: datetime.datetime.now().strftime(layout)
    return environment.from_string(template)
