"""Draft models that a search may let propose: found, named for good, and refused where they cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from negawatt.artifact import Artifact
from negawatt.engine.backends import backend
from negawatt.engine.draft_model import DraftModel
from negawatt.errors import ArtifactError, UsageError
from negawatt.tuning.space import Space
from negawatt.workload import Workload
from negawatt.workload.items import prompt_text


def with_drafts(
    space: Space, models: Sequence[Artifact], workload: Workload, *, cluster: bool = False
) -> Space:
    """The space with its drafts named by what they are wherever the search is continued.

    Whether every token means the same to both is known when they are loaded; here it is seen from the
    workload's own texts, before anything is spent.

    Args:
        cluster: whether other machines try candidates.

    Raises:
        UsageError: no engine of the space runs drafts, one cuts text into other tokens than every model, or
            other machines would need it.
        NegawattError: one is no model.
    """
    if not space.drafts:
        return space
    able = [name for name in space.engines if backend(name).has_drafts]
    if not able:
        raise UsageError(
            f"{', '.join(space.engines)} cannot run a draft model beside the model; llamacpp can"
        )
    if 1 not in space.batches:
        raise UsageError("a draft model proposes at batch 1 only, which the search does not try")
    if cluster:
        raise UsageError(
            "drafts are not sent to the machines of a cluster; search without --ray, or without them"
        )
    formats = backend(able[0]).weight_formats
    texts = [prompt_text(item.prompt) for item in workload.traffic]
    found = []
    for text in space.drafts:
        try:
            draft = DraftModel.open(text, formats)
        except ArtifactError as exc:
            known = ", ".join(formats)
            raise UsageError(f"a draft is MODEL or MODEL:WEIGHTS with weights of {known}: {exc}") from exc
        cut = [draft.artifact.tokenizer.encode(each) for each in texts]
        if all([model.tokenizer.encode(each) for each in texts] != cut for model in models):
            names = " and ".join(model.name for model in models)
            raise UsageError(
                f"the draft {draft.artifact.name} cuts text into other tokens than {names}; "
                "a draft must share the vocabulary of the model that it proposes to"
            )
        found.append(draft.anywhere(text, formats))
    return replace(space, drafts=tuple(dict.fromkeys(found)))
