"""What a scrub knows of a record from its subject."""

from __future__ import annotations

from holdfast.admin.scrub.contents import is_sealed
from holdfast.admin.scrub.scrub import agent_of


def test_which_records_have_a_checksum() -> None:
    sealed = [
        "g1c0.7.st.Note/a",
        "g1c0.7.epoch",
        "g1c0.7.settled",
        "g1c0.pk.n-1-0.17",
        "g1c0.rl.g1c1-3",
        "g1reg.manifest",
        "g1reg.ag.Note/a",
        "g1blobs.whole.k",
    ]
    assert all(map(is_sealed, sealed))
    assert not any(
        map(
            is_sealed,
            ["g1c0.life.n-1", "g1c0.alive", "g1blobs.3.g1c0.7.Note/a.1-2", "g1c0.ch.n-1-1", "x"],
        )
    )


def test_whose_record_it_is() -> None:
    assert agent_of("g1c0.7.st.Note/a%2Eb") == "Note/a.b"
    assert agent_of("g1blobs.3.g1c0.7.Note/big.1-2") == "Note/big"
    assert agent_of("g1c0.7.epoch") == "g1c0.7.epoch"
