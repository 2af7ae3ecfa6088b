"""Which layers share block tables."""

from quire_worker.models.kv_groups import KVPlace, decide_kv_layout
from quire_worker.plan import KVGroup


def test_layers_of_one_kind_are_one_group():
    layout = decide_kv_layout((None,) * 3)

    assert layout.groups == (KVGroup(num_layers=3, window=None),)
    assert layout.places == tuple(KVPlace(group=0, layer=i) for i in range(3))
    assert layout.layers_per_block == 3


def test_a_kind_with_more_layers_than_the_rarest_becomes_several_groups():
    layout = decide_kv_layout((None, 8, 8, None, 8, 8, 8))

    assert layout.layers_per_block == 2
    assert layout.groups == (
        KVGroup(num_layers=2, window=None),
        KVGroup(num_layers=2, window=8),
        KVGroup(num_layers=2, window=8),
        KVGroup(num_layers=1, window=8),
    )
    assert len(set(layout.places)) == 7
    assert all(place.layer < layout.layers_per_block for place in layout.places)
    assert layout.places[3] == KVPlace(group=0, layer=1)
