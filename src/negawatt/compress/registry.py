"""The passes by name, imported only when used."""

from __future__ import annotations

import importlib
from typing import Any

from negawatt.compress.technique import Pass
from negawatt.errors import UsageError

PASSES = {
    "adapter": "negawatt.compress.adapter:Adapter",
    "classifier": "negawatt.compress.classifier:Classifier",
    "distil": "negawatt.compress.distil:Distil",
    "awq": "negawatt.compress.awq:Awq",
    "gptq": "negawatt.compress.gptq:Gptq",
    "hqq": "negawatt.compress.hqq:Hqq",
    "lowrank": "negawatt.compress.lowrank:LowRank",
    "magnitude": "negawatt.compress.magnitude:Magnitude",
    "mixed": "negawatt.compress.mixed:Mixed",
    "heal": "negawatt.compress.heal:Heal",
    "depth": "negawatt.compress.depth:Depth",
    "width": "negawatt.compress.width:Width",
    "vocabulary": "negawatt.compress.vocabulary:Vocabulary",
    "qat": "negawatt.compress.qat:Qat",
    "rtn": "negawatt.compress.rtn:RoundToNearest",
    "smoothquant": "negawatt.compress.smoothquant:SmoothQuant",
    "sparsegpt": "negawatt.compress.sparsegpt:SparseGpt",
    "svd": "negawatt.compress.svd:Svd",
    "wanda": "negawatt.compress.wanda:Wanda",
}


def technique(name: str) -> type[Pass]:
    """The class of a pass.

    Raises:
        UsageError: there is no pass of that name.
    """
    if name not in PASSES:
        raise UsageError(f"no pass is called {name!r}; there are {', '.join(sorted(PASSES))}")
    module, _, attribute = PASSES[name].partition(":")
    found: type[Pass] = getattr(importlib.import_module(module), attribute)
    return found


def parse(text: str) -> Pass:
    """The pass that ``NAME`` or ``NAME:key=value,key=value`` stands for.

    Raises:
        UsageError: the text, the name, a key or a value is wrong.
    """
    name, _, rest = text.partition(":")
    values: dict[str, Any] = {}
    for pair in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (word.strip() for word in pair.partition("="))
        if not equals or not key:
            raise UsageError(f"a parameter is written key=value, not {pair!r}; see: negawatt compress --help")
        if key in values:
            raise UsageError(f"{name}: {key} is given twice")
        values[key] = value
    return technique(name.strip())(**values)
