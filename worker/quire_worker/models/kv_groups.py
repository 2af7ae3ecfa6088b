"""Which layers share a block table, and where each layer's keys lie in a block.

A group is a set of layers that keep the same tokens: all of them, or those of one window. Every block belongs to one group at a time and
holds `layers_per_block` layers, so that all groups can draw on one pool; a kind with more layers than that becomes several groups.
Torch-free.
"""

from dataclasses import dataclass

from quire_worker.plan import KVGroup


@dataclass(frozen=True, kw_only=True)
class KVPlace:
    """One layer's place."""

    group: int
    layer: int
    """Index inside the group's blocks."""


@dataclass(frozen=True, kw_only=True)
class KVLayout:
    """All layers' places."""

    groups: tuple[KVGroup, ...]
    places: tuple[KVPlace, ...]
    """By layer."""
    layers_per_block: int


def decide_kv_layout(windows: tuple[int | None, ...]) -> KVLayout:
    """Groups for layers with these windows.

    A block has room for as many layers as the rarest kind has, so only a kind's last group can leave part of its blocks empty.
    """
    kinds = list(dict.fromkeys(windows))
    layers_per_block = min(windows.count(kind) for kind in kinds)
    groups: list[KVGroup] = []
    places: dict[int, KVPlace] = {}
    for kind in kinds:
        layers = [layer for layer, window in enumerate(windows) if window == kind]
        for start in range(0, len(layers), layers_per_block):
            members = layers[start : start + layers_per_block]
            for index, layer in enumerate(members):
                places[layer] = KVPlace(group=len(groups), layer=index)
            groups.append(KVGroup(num_layers=len(members), window=kind))
    return KVLayout(
        groups=tuple(groups),
        places=tuple(places[layer] for layer in range(len(windows))),
        layers_per_block=layers_per_block,
    )
