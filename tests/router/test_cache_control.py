"""What Cache-Control may ask."""

import pytest
from multidict import CIMultiDict

from quire_router.cache_control import MAX_DIGITS, NO_WISHES, CacheWishes, cache_wishes


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], NO_WISHES),
        (["no-store"], CacheWishes(no_store=True)),
        (["No-Cache , ONLY-IF-CACHED"], CacheWishes(no_cache=True, only_if_cached=True)),
        (["max-age=30", "no-transform"], CacheWishes(max_age_s=30)),
        (['max-age="5"'], CacheWishes(max_age_s=5)),
        (["max-age=-1"], CacheWishes(max_age_s=0)),
        (["max-age=\u0663"], CacheWishes(max_age_s=0)),
        (["max-age"], CacheWishes(max_age_s=0)),
        (["max-age=" + "9" * 5000], CacheWishes(max_age_s=10**MAX_DIGITS)),
        (["x-no-store, public=no-store"], NO_WISHES),
    ],
)
def test_directives_are_read_in_any_case_and_from_several_headers(values, expected):
    assert cache_wishes(CIMultiDict([("cache-control", value) for value in values])) == expected
