"""Several models in one search: their names, and whether their answers can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from negawatt.artifact import Artifact
from negawatt.engine import Settings
from negawatt.engine.classifier import labels_in
from negawatt.errors import ArtifactError, UsageError, WorkloadError
from negawatt.profiling.quality import SCORING_CONTEXT, tokens_held
from negawatt.profiling.retrieval import query_tokens
from negawatt.tuning.drafts import with_drafts
from negawatt.tuning.space import Space
from negawatt.workload import Workload
from negawatt.workload.items import RetrieveItem, prompt_text, queries_among


def named(artifact: Artifact, models: Sequence[Artifact | str]) -> dict[str, Artifact]:
    """Further models by name.

    Raises:
        UsageError: one is given twice.
    """
    found: dict[str, Artifact] = {}
    for each in models:
        model = Artifact.open(each) if isinstance(each, str) else each
        if model.sha256 == artifact.sha256 or model.name in found:
            raise UsageError(f"the model {model.name} is given twice")
        found[model.name] = model
    return found


def space_of(models: Sequence[Artifact], workload: Workload, space: Space, *, cluster: bool = False) -> Space:
    """What of a space fits the models: those that label texts or embed them have no cache, for one.

    Args:
        cluster: whether other machines try candidates.

    Raises:
        UsageError: the workload searches a corpus, and a model turns no texts into vectors, or no engine is
            left that runs the models, or a draft cannot propose to any of them.
    """
    writes = workload.corpus is None and not all(map(labels_in, models))
    if space.drafts and not writes:
        raise UsageError(f"a draft proposes tokens, and {models[0].name} writes no text here")
    if workload.corpus is None:
        return with_drafts(space, models, workload, cluster=cluster) if writes else space.of_classifiers()
    for model in models:
        if model.pooling() is None:
            raise UsageError(
                f"{workload.name} searches documents by their vectors, and {model.name} turns no texts into "
                "vectors; choose models that embed"
            )
    return space.of_embedders()


def refuse_incomparable(
    artifact: Artifact, others: Mapping[str, Artifact], workload: Workload, space: Space
) -> None:
    """Without labels quality is agreement token by token, which needs the same tokens on both sides.

    Raises:
        UsageError: a model or a pass has other tokens, and the workload has no labels.
    """
    if workload.quality:
        return
    ask = "without labels quality is agreement token by token with the baseline"
    if cut := [each.name for each in space.passes if each.technique.reads_usage]:
        raise UsageError(f"{ask}, and {cut[0]} changes the tokens; give a workload with a quality set")
    mine = artifact.tokenizer
    texts = [prompt_text(item.prompt) for item in workload.traffic]
    for name, other in others.items():
        theirs = other.tokenizer
        if any(mine.encode(text) != theirs.encode(text) for text in texts):
            raise UsageError(
                f"{ask}, and {name} cuts text into other tokens; give a workload with a quality set"
            )


def refuse_longer(models: Sequence[Artifact], workload: Workload, space: Space) -> None:
    """A question that does not fit would end the search at its proof, after all the work.

    Raises:
        UsageError: a sequence may hold more than any of the models was made for, as far as they tell.
        WorkloadError: a question is longer than what a sequence may hold.
    """
    made_for = list(filter(None, map(_longest, models)))
    if made_for and space.max_context > max(SCORING_CONTEXT, *made_for):
        raise UsageError(
            f"{models[0].name} was made for {max(made_for):,} tokens, and --max-context asks room for "
            f"{space.max_context:,}, which would fill the memory; ask for as many as requests need"
        )
    most = min(space.max_context, SCORING_CONTEXT)
    queries = queries_among(workload.quality)
    others = [item for item in workload.quality if not isinstance(item, RetrieveItem)]
    for model in models:
        if queries:
            query_tokens(model, Settings(max_context=most), queries)
        tokenizer, labelling = model.tokenizer, bool(labels_in(model))
        for item in others:
            if (held := tokens_held(tokenizer, item, labelling=labelling)) > most:
                raise WorkloadError(
                    f"item {item.id!r} of {workload.name} takes {held} tokens of {model.name}, and a "
                    f"sequence may hold {most}; allow more with --max-context (at most {SCORING_CONTEXT}), "
                    "or leave it out"
                )


def _longest(model: Artifact) -> int:
    """Tokens of the longest sequence that a model was made for; 0 where it does not tell."""
    try:
        return model.shape.max_context
    except ArtifactError:
        return 0
