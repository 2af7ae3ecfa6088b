"""What counts as personal data, and what only looks like it."""

import pytest

from quire_router.filtering.pii import pii_finders
from quire_router.filtering.text_filter import Rule, TextFilter


def redacted(kind: str, text: str) -> str:
    return TextFilter([Rule("p", "redact", tuple(pii_finders([kind])), "#")], lambda rule: None).whole(text)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("email", "to jane.doe+x@mail.example.org, now", "to #, now"),
        ("email", "<jörg@müller.de>", "<#>"),
        ("email", "mailto:a@b.co.", "mailto:#."),
        ("phone", "call +49 30 1234567 now", "call # now"),
        ("phone", "+1 (415) 555-2671", "#"),
        ("phone", "+441632960961.", "#."),
        ("phone", "at 415-555-2671 or (415) 555-2671", "at # or #"),
        ("phone", "Tel. 030 1234 5678", "Tel. #"),
        ("credit_card", "4111 1111 1111 1111 exp 12/30", "# exp 12/30"),
        ("credit_card", "card 5555555555554444, 3782-822463-10005", "card #, #"),
        ("credit_card", "4111-1111-1111-1111 123", "# 123"),
        ("iban", "DE89 3704 0044 0532 0130 00 BANK", "# BANK"),
        ("iban", "GB82WEST12345698765432", "#"),
        ("ip_address", "from 203.0.113.7.", "from #."),
        ("ip_address", "2001:db8::8a2e:370:7334 said", "# said"),
        ("us_ssn", "ssn: 123-45-6789", "ssn: #"),
        ("api_key", "key=sk-proj-abc123DEF456ghi789JKL0", "key=#"),
        ("api_key", "AKIAIOSFODNN7EXAMPLE and ghp_" + "a1B2" * 9, "# and #"),
        ("api_key", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4", "#"),
        ("api_key", "-----BEGIN RSA PRIVATE KEY-----\nMIIE+x/9==\n-----END RSA PRIVATE KEY-----\nok", "#\nok"),
    ],
)  # fmt: skip
def test_personal_data_is_found_and_no_more_than_it(kind: str, text: str, expected: str) -> None:
    assert redacted(kind, text) == expected


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("email", "icon@2x.png, user@host, git@github.com:a/b, react@18.2.0, a @ b.co"),
        ("phone", "2026-11-21, 12:30:45, 1,234,567.89, 10.0.0.1, order 4155552671"),
        ("phone", "v1.2-3.4, +1, +12 34, 123-45-6789, id 0123456789"),
        ("credit_card", "4111 1111 1111 1112, 0000 0000 0000 0000, 1234567890123456"),
        ("credit_card", "x4111111111111111 and 41111111111111110000000"),
        ("iban", "DE89 3704 0044 0532 0130 01, DE89, US12 3456 7890 1234, ISO9001 2015 ABCD"),
        ("ip_address", "1.2.3, 1.2.3.4.5, 999.1.1.1, 127.0.0.1, 0.0.0.0, 255.255.255.0, v1.2.3.4x"),
        ("ip_address", "12:30:45, std::vector, a::b, ::1, 00:1a:2b, fe80::1:2:3"),
        ("us_ssn", "000-12-3456, 666-12-3456, 900-12-3456, 123-00-4567, 123-45-0000, 1123-45-6789"),
        ("api_key", "sk-learn, task-force-on-something-very-long, sk-is-a-word-with-many-hyphens-in, eyJ.eyJ"),
    ],
)
def test_what_only_looks_like_personal_data_is_left_alone(kind: str, text: str) -> None:
    assert redacted(kind, text) == text
