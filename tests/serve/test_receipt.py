"""A receipt is the sum of its parts and survives being written down."""

import json
from dataclasses import replace

import pytest

from negawatt.carbon import GRAMS, Amount
from negawatt.energy import Energy
from negawatt.serve import Caller, Estimate, OpenGate, Receipt


def receipt() -> Receipt:
    return Receipt(
        id="chatcmpl-1", key_id="k1", team="search", model="small", created_s=1.5e9, outcome="aborted",
        input_tokens=7, cached_tokens=3, output_tokens=2,
        prefill=Energy.estimated(2.0, 1.0, 3.0, "model"), decode=Energy.estimated(4.0, 2.0, 6.0, "model"),
        idle=Energy.estimated(1.0, 0.5, 2.0, "model"), boundary="chip", cpu_s=0.25,
        carbon=Amount.estimated(0.5, 0.25, 1.0, GRAMS, "stated"),
    )  # fmt: skip


def test_the_parts_make_the_whole() -> None:
    whole = receipt().to_json()
    assert (whole["value_j"], whole["low_j"], whole["high_j"]) == (7.0, 3.5, 11.0)
    assert whole["provenance"] == "estimated"
    assert whole["water"] is None and whole["carbon"]["value"] == 0.5


def test_it_is_read_back_as_it_was() -> None:
    assert Receipt.from_json(json.loads(json.dumps(receipt().to_json()))) == receipt()
    unknown = replace(receipt(), prefill=Energy.missing("the counter died"))
    assert Receipt.from_json(json.loads(json.dumps(unknown.to_json()))) == unknown


@pytest.mark.parametrize("breakage", ["outcome", "prefill", "created_s"])
def test_what_is_no_receipt_is_refused(breakage: str) -> None:
    data = receipt().to_json()
    if breakage == "outcome":
        data["receipt"]["outcome"] = "mislaid"
    elif breakage == "prefill":
        del data["prefill"]
    else:
        del data["receipt"]["created_s"]
    with pytest.raises(ValueError, match="not a receipt"):
        Receipt.from_json(data)


def test_the_open_gate_lets_everybody_in_as_they_asked() -> None:
    gate = OpenGate()
    caller = gate.caller(None)
    assert caller == Caller() == gate.caller("Bearer anything")
    held = gate.reserve(caller, Estimate("small", 5, 20, Energy.missing("not known yet")))
    assert (held.model, held.output_tokens) == ("small", 20)
    held.settle(receipt())
